//! The certificate: a solved threshold and everything needed to decide whether it still speaks for what is running.
//!
//! A policy's threshold is never typed in by hand. It is solved from recorded outcomes (`evidence::bound`) and written beside the
//! policy as `NAME.solved.toml`. A certificate that is missing, unreadable or made for another policy, scorer or pair is worth
//! nothing: the reader goes remote. This file knows the format and that check; it must not know how a threshold is solved.

use super::drift::Reference;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// The format this build reads and writes.
pub const CERTIFICATE_SCHEMA: u32 = 1;

/// The large side of a pair whose outcomes were graded against a perfect large model.
pub const ANY_LARGE: &str = "*";

/// How the bound was obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Clopper–Pearson on losses that take two values.
    ExactBinomial,
    /// A betting test on bounded losses (`evidence::betting`).
    Betting,
    /// One that may be looked at after every outcome (`evidence::live`).
    AnytimeBetting,
}

impl Method {
    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Method::ExactBinomial => "exact-binomial",
            Method::Betting => "betting",
            Method::AnytimeBetting => "anytime-betting",
        }
    }

    /// The method of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        [Method::ExactBinomial, Method::Betting, Method::AnytimeBetting]
            .into_iter()
            .find(|method| method.name() == name)
    }
}

/// A solved threshold, with the hashes of what it was solved for.
#[derive(Debug, Clone, PartialEq)]
pub struct Certificate {
    /// Name of the policy.
    pub policy: String,
    /// Content hash of the policy the threshold was solved for.
    pub policy_hash: String,
    /// Version of the scorer whose scores the threshold cuts.
    pub scorer_version: String,
    /// Hash of the outcomes that served as evidence; of one that is solved live, the name of the stream they came in.
    pub evidence_hash: String,
    /// The small model of the pair.
    pub small: String,
    /// The large model of the pair; [`ANY_LARGE`] when the large model was taken to be perfect.
    pub large: String,
    /// Scores at or above this go local, in `[0, 1]`; `None` means everything goes remote.
    pub threshold: Option<f64>,
    /// Independent outcomes (one a cluster) in the certificate split.
    pub n: u64,
    /// Upper confidence bound of the expected paired loss `target * q_large - q_routed` at the threshold; at most 0 when
    /// there is a threshold, else the bound of the first threshold that failed.
    pub bound: f64,
    /// Confidence of the bound, in `(0, 1)`.
    pub confidence: f64,
    /// Share of the large model's quality that is kept, in `(0, 1]`.
    pub target: f64,
    /// Share of the evidence at or above the threshold: an estimate of the traffic that can stay local, in `[0, 1]`.
    pub local_share: f64,
    /// Without a threshold: about how many more outcomes would be needed for one; `None` when more would not help.
    pub needed: Option<u64>,
    /// How the bound was obtained.
    pub method: Method,
    /// Day it was solved, `YYYY-MM-DD`.
    pub date: String,
    /// How the requests looked that it was solved on, for live checks of drift.
    pub reference: Option<Reference>,
}

/// What is wrong with the text of a certificate.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum CertificateError {
    /// Not TOML, or a key is missing, unknown or of the wrong type.
    #[error("certificate is unreadable: {0}; solve it again")]
    Syntax(String),
    /// Made by another version of this program.
    #[error("certificate schema {found} is not the supported {CERTIFICATE_SCHEMA}; solve it again")]
    Schema {
        /// The schema found.
        found: u32,
    },
    /// Values that cannot be right, every one of them.
    #[error("certificate is not valid: {}; solve it again", .0.join("; "))]
    Invalid(Vec<String>),
}

/// Why a certificate does not speak for what is running.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The policy was edited after solving.
    #[error("certificate was solved for policy {certified}, this is {running}; solve it again")]
    Policy {
        /// Hash in the certificate.
        certified: String,
        /// Hash of the running policy.
        running: String,
    },
    /// The scorer was replaced after solving.
    #[error("certificate was solved for scorer {certified}, this is {running}; solve it again")]
    Scorer {
        /// Version in the certificate.
        certified: String,
        /// Version of the running scorer.
        running: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCertificate {
    schema: u32,
    policy: String,
    policy_hash: String,
    scorer_version: String,
    evidence_hash: String,
    small: String,
    large: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    n: u64,
    bound: f64,
    confidence: f64,
    target: f64,
    local_share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    needed: Option<u64>,
    method: String,
    date: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<Reference>,
}

impl Certificate {
    /// Reads the text of a `*.solved.toml` file.
    ///
    /// # Errors
    /// Text that is not TOML, unknown or missing keys, another schema, and values out of range, which are all reported at once.
    pub fn parse(text: &str) -> Result<Self, CertificateError> {
        let raw: RawCertificate = toml::from_str(text)
            .map_err(|error| CertificateError::Syntax(error.to_string().trim().replace('\n', " ")))?;
        if raw.schema != CERTIFICATE_SCHEMA {
            return Err(CertificateError::Schema { found: raw.schema });
        }
        let problems = raw.problems();
        match Method::from_name(&raw.method) {
            Some(method) if problems.is_empty() => Ok(raw.checked(method)),
            _ => Err(CertificateError::Invalid(problems)),
        }
    }

    /// The text of the `*.solved.toml` file, with a note on where it came from.
    ///
    /// # Errors
    /// A value that cannot be written as TOML; not expected of a certificate that was solved or parsed.
    pub fn to_toml(&self) -> Result<String, CertificateError> {
        let body = toml::to_string(&self.raw()).map_err(|error| CertificateError::Syntax(error.to_string()))?;
        let mut text = String::from(
            "# Written by `sluice train scorer --solve`; do not edit: a changed policy or scorer needs a new solution.\n",
        );
        let _ = match self.threshold {
            Some(threshold) => writeln!(
                text,
                "# Scores of at least {threshold} go local: about {:.1} % of requests like the evidence.",
                self.local_share * 100.0
            ),
            None => writeln!(text, "# Not enough evidence for any threshold: everything goes remote."),
        };
        text.push_str(&body);
        Ok(text)
    }

    /// Checks that the certificate was made for this policy content and this scorer.
    ///
    /// # Errors
    /// Names the first of the two that differs; the caller must then go remote.
    pub fn check(&self, policy_hash: &str, scorer_version: &str) -> Result<(), Mismatch> {
        if self.policy_hash != policy_hash {
            return Err(Mismatch::Policy { certified: self.policy_hash.clone(), running: policy_hash.to_owned() });
        }
        if self.scorer_version != scorer_version {
            return Err(Mismatch::Scorer {
                certified: self.scorer_version.clone(),
                running: scorer_version.to_owned(),
            });
        }
        Ok(())
    }

    fn raw(&self) -> RawCertificate {
        RawCertificate {
            schema: CERTIFICATE_SCHEMA,
            policy: self.policy.clone(),
            policy_hash: self.policy_hash.clone(),
            scorer_version: self.scorer_version.clone(),
            evidence_hash: self.evidence_hash.clone(),
            small: self.small.clone(),
            large: self.large.clone(),
            threshold: self.threshold,
            n: self.n,
            bound: self.bound,
            confidence: self.confidence,
            target: self.target,
            local_share: self.local_share,
            needed: self.needed,
            method: self.method.name().to_owned(),
            date: self.date.clone(),
            reference: self.reference.clone(),
        }
    }
}

impl RawCertificate {
    /// Everything that is out of range, in the order of the keys.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let texts = [
            ("policy", &self.policy),
            ("policy_hash", &self.policy_hash),
            ("scorer_version", &self.scorer_version),
            ("evidence_hash", &self.evidence_hash),
            ("small", &self.small),
            ("large", &self.large),
        ];
        for (key, text) in texts {
            if text.trim().is_empty() {
                problems.push(format!("{key} is empty"));
            }
        }
        let unit = 0.0..=1.0;
        if let Some(threshold) = self.threshold {
            if !unit.contains(&threshold) {
                problems.push(format!("threshold {threshold} is not within 0 and 1"));
            }
            if self.bound.is_nan() || self.bound > 0.0 {
                problems.push(format!("bound {} of the loss is above 0, so no threshold is proven", self.bound));
            }
            if self.n == 0 {
                problems.push("n is 0, so no threshold is proven".to_owned());
            }
        }
        if !self.bound.is_finite() {
            problems.push(format!("bound {} is not a number", self.bound));
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            problems.push(format!("confidence {} is not between 0 and 1", self.confidence));
        }
        if !(self.target > 0.0 && self.target <= 1.0) {
            problems.push(format!("target {} is not above 0 and at most 1", self.target));
        }
        if !unit.contains(&self.local_share) {
            problems.push(format!("local_share {} is not within 0 and 1", self.local_share));
        }
        if Method::from_name(&self.method).is_none() {
            problems.push(format!("method {:?} is none of exact-binomial, betting and anytime-betting", self.method));
        }
        if self.date.parse::<jiff::civil::Date>().is_err() {
            problems.push(format!("date {:?} is not of the form 2026-01-31", self.date));
        }
        if self.reference.as_ref().is_some_and(|reference| !reference.is_sound()) {
            problems
                .push("reference: shares of bins do not add up, edges do not rise, or a feature is unknown".to_owned());
        }
        problems
    }

    fn checked(self, method: Method) -> Certificate {
        Certificate {
            policy: self.policy,
            policy_hash: self.policy_hash,
            scorer_version: self.scorer_version,
            evidence_hash: self.evidence_hash,
            small: self.small,
            large: self.large,
            threshold: self.threshold,
            n: self.n,
            bound: self.bound,
            confidence: self.confidence,
            target: self.target,
            local_share: self.local_share,
            needed: self.needed,
            method,
            date: self.date,
            reference: self.reference,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::drift::Look;
    use super::*;

    fn certificate(threshold: Option<f64>) -> Certificate {
        Certificate {
            policy: "balanced".to_owned(),
            policy_hash: "aa11".to_owned(),
            scorer_version: "bb22".to_owned(),
            evidence_hash: "cc33".to_owned(),
            small: "sluice-nano".to_owned(),
            large: ANY_LARGE.to_owned(),
            threshold,
            n: 812,
            bound: if threshold.is_some() { -0.004 } else { 0.02 },
            confidence: 0.95,
            target: 0.95,
            local_share: if threshold.is_some() { 0.41 } else { 0.0 },
            needed: threshold.is_none().then_some(300),
            method: Method::ExactBinomial,
            date: "2026-11-23".to_owned(),
            reference: None,
        }
    }

    #[test]
    fn reads_back_what_it_writes() {
        let looks = [Look::of(Some(0.4), ["is it so?"]), Look::of(None, ["say 12\nand more"])];
        for (threshold, reference) in [(Some(0.62), None), (None, Reference::of(&looks))] {
            let certificate = Certificate { reference, ..certificate(threshold) };
            let text = certificate.to_toml().unwrap();
            assert_eq!(Certificate::parse(&text).unwrap(), certificate);
        }
    }

    #[test]
    fn refuses_what_cannot_be_right() {
        let good = certificate(Some(0.62)).to_toml().unwrap();
        let table = [
            ("threshold = 0.62", "threshold = 1.5", "threshold 1.5 is not within"),
            ("threshold = 0.62", "threshold = nan", "threshold NaN is not within"),
            ("bound = -0.004", "bound = 0.01", "bound 0.01 of the loss is above 0"),
            ("bound = -0.004", "bound = nan", "is not a number"),
            ("n = 812", "n = 0", "n is 0"),
            ("n = 812", "n = -1", "unreadable"),
            ("target = 0.95", "target = 0.0", "target 0 is not above 0"),
            ("confidence = 0.95", "confidence = 1.0", "confidence 1 is not"),
            ("local_share = 0.41", "local_share = 2.0", "local_share 2 is not"),
            ("\"exact-binomial\"", "\"guess\"", "method \"guess\""),
            ("2026-11-23", "yesterday", "date \"yesterday\""),
            ("policy_hash = \"aa11\"", "policy_hash = \"\"", "policy_hash is empty"),
            ("schema = 1", "schema = 2", "schema 2"),
            ("n = 812", "n = 812\nextra = 1", "unknown field `extra`"),
            ("n = 812\n", "", "missing field `n`"),
        ];
        for (from, to, expected) in table {
            assert!(good.contains(from), "{from} is in the file");
            let error = Certificate::parse(&good.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(expected), "{to}: {error}");
        }
    }

    #[test]
    fn reports_every_problem_at_once() {
        let text = certificate(Some(0.62)).to_toml().unwrap();
        let text = text.replace("threshold = 0.62", "threshold = 7.0").replace("n = 812", "n = 0");
        let CertificateError::Invalid(problems) = Certificate::parse(&text).unwrap_err() else {
            panic!("expected the list of problems");
        };
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn speaks_only_for_its_policy_and_scorer() {
        let certificate = certificate(Some(0.62));
        assert_eq!(certificate.check("aa11", "bb22"), Ok(()));
        assert!(matches!(certificate.check("other", "bb22"), Err(Mismatch::Policy { .. })));
        assert!(matches!(certificate.check("aa11", "other"), Err(Mismatch::Scorer { .. })));
    }
}
