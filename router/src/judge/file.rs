//! The judge as a text file, `NAME.judge.toml` beside a policy: its numbers, and the certificate of its threshold.

use super::Judge;
use super::draft::{COUNT, FEATURES};
use crate::evidence::calibration::Calibration;
use crate::evidence::certificate::{Certificate, CertificateError};
use serde::{Deserialize, Serialize};

/// The format this build reads and writes.
const SCHEMA: u32 = 1;

/// A judge with the certificate of the threshold that drafts must reach.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgeFile {
    /// The judge.
    pub judge: Judge,
    /// Its threshold, solved for one policy; the scorer it names is this judge.
    pub certificate: Certificate,
}

/// Why a file holds no judge.
#[derive(Debug, thiserror::Error)]
pub enum JudgeFileError {
    /// It is no such text.
    #[error("{0}")]
    Syntax(String),
    /// It was written by another version.
    #[error("schema {found} is not {SCHEMA}, which this build reads; run `sluice train judge` again")]
    Schema {
        /// What the file says.
        found: u32,
    },
    /// A value is impossible.
    #[error("`{key}` {problem}; run `sluice train judge` again")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The certificate is none.
    #[error("[certificate]: {0}")]
    Certificate(CertificateError),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    schema: u32,
    small: String,
    features: Vec<String>,
    mean: Vec<f64>,
    scale: Vec<f64>,
    weights: Vec<f64>,
    bias: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    platt: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    points: Vec<(f64, f64)>,
    stop_below: f64,
    certificate: toml::Table,
}

impl JudgeFile {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// See [`JudgeFileError`].
    pub fn parse(text: &str) -> Result<Self, JudgeFileError> {
        let syntax =
            |error: &dyn std::fmt::Display| JudgeFileError::Syntax(error.to_string().trim().replace('\n', " "));
        let raw: Raw = toml::from_str(text).map_err(|error| syntax(&error))?;
        if raw.schema != SCHEMA {
            return Err(JudgeFileError::Schema { found: raw.schema });
        }
        let certificate = toml::to_string(&raw.certificate).map_err(|error| syntax(&error))?;
        let certificate = Certificate::parse(&certificate).map_err(JudgeFileError::Certificate)?;
        Ok(Self { certificate, judge: checked(&raw)? })
    }

    /// The text of the file.
    ///
    /// # Errors
    /// A value that can't be written as TOML; not expected of a fitted judge.
    pub fn to_toml(&self) -> Result<String, JudgeFileError> {
        let syntax = |error: &dyn std::fmt::Display| JudgeFileError::Syntax(error.to_string());
        let certificate = self.certificate.to_toml().map_err(JudgeFileError::Certificate)?;
        let certificate = toml::from_str(&certificate).map_err(|error| syntax(&error))?;
        let body = toml::to_string(&self.judge.raw_file(certificate)).map_err(|error| syntax(&error))?;
        Ok(format!("# Written by `sluice train judge`; do not edit: a changed policy needs a new solution.\n{body}"))
    }
}

fn checked(raw: &Raw) -> Result<Judge, JudgeFileError> {
    let invalid = |key, problem: &str| JudgeFileError::Invalid { key, problem: problem.to_owned() };
    if raw.features.iter().map(String::as_str).ne(FEATURES) {
        return Err(invalid("features", "are not those of this build"));
    }
    let numbers = |key, values: &[f64]| -> Result<[f64; COUNT], JudgeFileError> {
        let values: [f64; COUNT] = values.try_into().map_err(|_| invalid(key, &format!("needs {COUNT} numbers")))?;
        if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(invalid(key, "is not finite")) }
    };
    let scale = numbers("scale", &raw.scale)?;
    if scale.iter().any(|scale| *scale <= 0.0) {
        return Err(invalid("scale", "holds a number that is not above 0"));
    }
    if !raw.bias.is_finite() || raw.stop_below.is_nan() {
        return Err(invalid("bias", "or `stop_below` is not a number"));
    }
    let calibration = match raw.platt {
        Some([slope, offset]) if slope.is_finite() && slope >= 0.0 && offset.is_finite() => {
            Calibration::Platt { slope, offset }
        }
        Some(_) => return Err(invalid("platt", "is no rising curve")),
        None => {
            Calibration::Isotonic(points(&raw.points).ok_or_else(|| invalid("points", "do not rise within 0 to 1"))?)
        }
    };
    let mut judge = Judge {
        small: raw.small.clone(),
        mean: numbers("mean", &raw.mean)?,
        scale,
        weights: numbers("weights", &raw.weights)?,
        bias: raw.bias,
        calibration,
        stop_below: raw.stop_below,
        version: String::new(),
    };
    judge.version = judge.hash();
    Ok(judge)
}

/// Points that rise in both, within their ranges.
fn points(points: &[(f64, f64)]) -> Option<Vec<(f64, f64)>> {
    let good = |(raw, probability): &(f64, f64)| raw.is_finite() && (0.0..=1.0).contains(probability);
    let rising = points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1);
    (!points.is_empty() && points.iter().all(good) && rising).then(|| points.to_vec())
}

impl Judge {
    fn raw_file(&self, certificate: toml::Table) -> Raw {
        let (platt, points) = match &self.calibration {
            Calibration::Platt { slope, offset } => (Some([*slope, *offset]), Vec::new()),
            Calibration::Isotonic(points) => (None, points.clone()),
        };
        Raw {
            schema: SCHEMA,
            small: self.small.clone(),
            features: FEATURES.map(str::to_owned).to_vec(),
            mean: self.mean.to_vec(),
            scale: self.scale.to_vec(),
            weights: self.weights.to_vec(),
            bias: self.bias,
            platt,
            points,
            stop_below: self.stop_below,
            certificate,
        }
    }

    /// First 16 hex digits of a hash of all numbers.
    pub(super) fn hash(&self) -> String {
        let raw = self.raw_file(toml::Table::new());
        let text = toml::to_string(&raw).unwrap_or_default();
        blake3::hash(text.as_bytes()).to_hex().chars().take(16).collect()
    }
}
