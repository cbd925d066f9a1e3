//! A pair's scorer as a file, `NAME.scorer`: magic, a JSON header with pair and calibration, the raw scorer, the encoder of long
//! conversations if there is one, a blake3 hash.

use super::long::{Long, Raw};
use super::{Gain, Pair, PairScorer};
use crate::evidence::calibration::Calibration;
use local_worker::scorer::performer::PerformerFileError;
use local_worker::scorer::{SLUICE_NANO_SCORER, Scorer, ScorerFileError};
use serde::{Deserialize, Serialize};
use std::path::Path;

const MAGIC: &[u8; 8] = b"SLPAIR\0\x01";
const HASH_BYTES: usize = 32;

/// Why a file is no scorer of a pair.
#[derive(Debug, thiserror::Error)]
pub enum PairFileError {
    /// The file cannot be read or written.
    #[error("{file}: {error}")]
    Io {
        /// The file as it was named.
        file: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// Not a scorer of a pair at all.
    #[error("not a scorer file: it does not start with SLPAIR and version 1")]
    Magic,
    /// The content is not what was written.
    #[error("scorer file is damaged or cut short: its hash does not match; fetch or train it again")]
    Hash,
    /// The header cannot be used.
    #[error("scorer file has a header this build cannot use: {0}")]
    Header(String),
    /// The raw scorer inside cannot be used.
    #[error(transparent)]
    Scorer(#[from] ScorerFileError),
    /// The encoder inside cannot be used.
    #[error(transparent)]
    Encoder(#[from] PerformerFileError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    small: String,
    large: String,
    outcomes: String,
    calibration: RawCalibration,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gain: Option<RawGain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hard: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    long: Option<RawLong>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLong {
    /// Bytes of the encoder, which ends the file.
    bytes: usize,
    from_tokens: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGain {
    slope: f64,
    offset: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "lowercase")]
enum RawCalibration {
    Platt { slope: f64, offset: f64 },
    Isotonic { points: Vec<(f64, f64)> },
}

impl PairScorer {
    /// Joins what gives raw scores and its calibration, trained on the outcomes of this hash.
    pub fn new(pair: Pair, raw: impl Into<Raw>, calibration: Calibration, outcomes: String) -> Self {
        Self { pair, raw: raw.into(), calibration, gain: None, hard: None, outcomes, version: String::new() }.named()
    }

    /// The same with a line from raw scores to the gain by the large model.
    pub fn with_gain(self, gain: Gain) -> Self {
        Self { gain: Some(gain), ..self }.named()
    }

    /// The same, drawn down to this raw score where nothing like a conversation was seen.
    pub fn with_hard(self, hard: f64) -> Self {
        Self { hard: Some(hard).filter(|hard| hard.is_finite()), ..self }.named()
    }

    /// The same for another pair.
    #[cfg(test)]
    pub fn about(self, pair: Pair) -> Self {
        Self { pair, ..self }.named()
    }

    /// Gives it the version of its content.
    fn named(mut self) -> Self {
        let bytes = self.to_bytes();
        let body = bytes.len().saturating_sub(HASH_BYTES);
        self.version = version(blake3::hash(bytes.get(..body).unwrap_or_default()));
        self
    }

    /// The bytes of the scorer's file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let long = self.raw.long.as_ref().map(|long| (long.encoder.to_bytes(), long.from_tokens));
        let header = Header {
            small: self.pair.small.clone(),
            large: self.pair.large.clone(),
            outcomes: self.outcomes.clone(),
            calibration: match &self.calibration {
                Calibration::Platt { slope, offset } => RawCalibration::Platt { slope: *slope, offset: *offset },
                Calibration::Isotonic(points) => RawCalibration::Isotonic { points: points.clone() },
            },
            gain: self.gain.map(|Gain { slope, offset }| RawGain { slope, offset }),
            hard: self.hard,
            long: long.as_ref().map(|(bytes, from_tokens)| RawLong { bytes: bytes.len(), from_tokens: *from_tokens }),
        };
        // A struct of texts and numbers always becomes JSON.
        let header = serde_json::to_vec(&header).unwrap_or_default();
        let mut bytes = MAGIC.to_vec();
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header);
        bytes.extend(self.raw.scorer.to_bytes());
        bytes.extend(long.map(|(bytes, _)| bytes).unwrap_or_default());
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes
    }

    /// Reads what [`PairScorer::to_bytes`] wrote.
    ///
    /// # Errors
    /// Anything that is not exactly such a file, by kind.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PairFileError> {
        if !bytes.starts_with(MAGIC) {
            return Err(PairFileError::Magic);
        }
        let (body, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or(PairFileError::Hash)?;
        let computed = blake3::hash(body);
        if computed != *hash {
            return Err(PairFileError::Hash);
        }
        let short = || PairFileError::Header("it is longer than the file".to_owned());
        let rest = body.get(MAGIC.len()..).unwrap_or_default();
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (header, scorer) = rest.split_at_checked(length).ok_or_else(short)?;
        let header: Header =
            serde_json::from_slice(header).map_err(|error| PairFileError::Header(error.to_string()))?;
        let gain = header.gain.map(|RawGain { slope, offset }| Gain { slope, offset });
        if gain.is_some_and(|gain| !(gain.slope <= 0.0 && gain.slope.is_finite() && gain.offset.is_finite())) {
            return Err(PairFileError::Header(
                "gain: slope and offset must be numbers, the slope at most 0".to_owned(),
            ));
        }
        if header.hard.is_some_and(|hard| !hard.is_finite()) {
            return Err(PairFileError::Header("hard: not a number".to_owned()));
        }
        Ok(Self {
            gain,
            hard: header.hard,
            pair: Pair::new(header.small, header.large),
            raw: raw(scorer, header.long)?,
            calibration: header.calibration.checked()?,
            outcomes: header.outcomes,
            version: version(computed),
        })
    }

    /// The scorer of the bundled model; `None` if this build has none.
    ///
    /// # Errors
    /// The bundled bytes are no scorer of this build: a mistake in packaging.
    pub fn bundled() -> Result<Option<Self>, PairFileError> {
        SLUICE_NANO_SCORER.map(Self::from_bytes).transpose()
    }

    /// Reads a scorer file.
    ///
    /// # Errors
    /// The file cannot be read, and all of [`PairScorer::from_bytes`].
    pub fn read(file: &Path) -> Result<Self, PairFileError> {
        let bytes = std::fs::read(file).map_err(|error| io(file, error))?;
        Self::from_bytes(&bytes)
    }

    /// Writes a scorer file: beside it first, then in its place, so that a reader never meets half of one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, file: &Path) -> Result<(), PairFileError> {
        crate::files::replace(file, self.to_bytes()).map_err(|error| io(file, error))
    }
}

/// The raw scorer, and the encoder behind it if the header says that there is one.
fn raw(bytes: &[u8], long: Option<RawLong>) -> Result<Raw, PairFileError> {
    let Some(RawLong { bytes: length, from_tokens }) = long else { return Ok(Scorer::from_bytes(bytes)?.into()) };
    let split = bytes.len().checked_sub(length).and_then(|at| bytes.split_at_checked(at));
    let (scorer, encoder) = split.ok_or_else(|| PairFileError::Header("long: is longer than the file".to_owned()))?;
    Ok(Raw { scorer: Scorer::from_bytes(scorer)?, long: Some(Long::from_bytes(encoder, from_tokens)?) })
}

fn io(file: &Path, error: std::io::Error) -> PairFileError {
    PairFileError::Io { file: file.display().to_string(), error }
}

impl RawCalibration {
    /// A map that rises and gives probabilities only.
    fn checked(self) -> Result<Calibration, PairFileError> {
        let problem = match &self {
            Self::Platt { slope, offset } => {
                let good = slope.is_finite() && *slope >= 0.0 && offset.is_finite();
                (!good).then_some("slope and offset must be numbers, the slope at least 0")
            }
            Self::Isotonic { points } => {
                let probabilities = points.iter().all(|(x, y)| x.is_finite() && (0.0..=1.0).contains(y));
                let rising = points.windows(2).all(|pair| match pair {
                    [(x0, y0), (x1, y1)] => x0 < x1 && y0 <= y1,
                    _ => true,
                });
                (points.is_empty() || !probabilities || !rising)
                    .then_some("points must rise from raw score to raw score and lie within 0 and 1")
            }
        };
        match (problem, self) {
            (Some(problem), _) => Err(PairFileError::Header(format!("calibration: {problem}"))),
            (None, Self::Platt { slope, offset }) => Ok(Calibration::Platt { slope, offset }),
            (None, Self::Isotonic { points }) => Ok(Calibration::Isotonic(points)),
        }
    }
}

fn version(hash: blake3::Hash) -> String {
    hash.to_hex().chars().take(16).collect()
}
