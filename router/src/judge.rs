//! How good is a finished draft? A draft tells far more than its prompt: how sure the model was of each token, whether it
//! repeats itself, whether it ends.
//!
//! The judge is a logistic regression on a dozen such features, fitted on recorded drafts with known quality and calibrated
//! on predictions for drafts it had not seen. It is small enough to be read, so it is a text file. What its probability is
//! good for — the threshold — is solved from other drafts and lies beside it as a certificate; this module knows nothing of
//! routes, backends or money.

mod draft;
mod file;
mod fit;
mod recorded;
mod second;

pub use draft::{Draft, FEATURES, TokenFacts, features, prefix_features};
pub use file::{JudgeFile, JudgeFileError};
pub use fit::{JudgeFitError, Judged, fit};
pub use recorded::{DraftsError, RecordedDraft, parse as parse_drafts};
pub use second::{SECOND_TEMPERATURE, Verdict};

use crate::domain::Score;
use crate::evidence::calibration::Calibration;
use draft::{COUNT, LENGTH, LENGTH_OFF};

/// Tokens after which a draft is looked at for the first time, to stop a hopeless one.
pub const FIRST_LOOK: usize = 8;

/// A fitted judge.
#[derive(Clone, Debug, PartialEq)]
pub struct Judge {
    /// The model whose drafts it judges.
    pub small: String,
    mean: [f64; COUNT],
    scale: [f64; COUNT],
    weights: [f64; COUNT],
    bias: f64,
    calibration: Calibration,
    stop_below: f64,
    version: String,
}

impl Judge {
    /// P(the draft is as good as the large model's answer).
    pub fn judge(&self, draft: &Draft<'_>) -> Score {
        let probability = self.calibration.apply(self.raw(&features(draft)));
        // `apply` yields a probability for any number.
        Score::new(probability.clamp(0.0, 1.0)).unwrap_or_else(|_| self.worst())
    }

    /// Log-odds before calibration: they order drafts as the judgement does, without its steps.
    pub fn order(&self, draft: &Draft<'_>) -> f64 {
        self.raw(&features(draft))
    }

    /// Whether a draft that has come to [`FIRST_LOOK`] tokens is not worth finishing: hardly any that began so was accepted.
    pub fn hopeless(&self, draft: &Draft<'_>) -> bool {
        draft.tokens.len() >= FIRST_LOOK && self.raw(&prefix_features(draft)) < self.stop_below
    }

    /// The features that moved the judgement most, with their pull in log-odds, strongest first.
    pub fn reasons(&self, draft: &Draft<'_>, most: usize) -> Vec<(&'static str, f64)> {
        let values = features(draft);
        let mut pulls: Vec<(&'static str, f64)> =
            (0..COUNT).map(|at| (FEATURES[at], self.weights[at] * self.standard(at, &values))).collect();
        pulls.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        pulls.truncate(most);
        pulls
    }

    /// Identifies this judge: a hash of its numbers.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn worst(&self) -> Score {
        Score::new(0.0).unwrap_or_else(|_| unreachable!("0 is a probability"))
    }

    /// A value in standard deviations from the mean; what is not known counts as the mean.
    fn standard(&self, at: usize, values: &[f64; COUNT]) -> f64 {
        let value = if at == LENGTH_OFF { self.length_off(values) } else { values[at] };
        if value.is_finite() { ((value - self.mean[at]) / self.scale[at]).clamp(-6.0, 6.0) } else { 0.0 }
    }

    /// How far a length is from what is expected; not a number where it is not known.
    fn length_off(&self, values: &[f64; COUNT]) -> f64 {
        ((values[LENGTH] - self.mean[LENGTH]) / self.scale[LENGTH]).abs()
    }

    fn raw(&self, values: &[f64; COUNT]) -> f64 {
        self.bias + (0..COUNT).map(|at| self.weights[at] * self.standard(at, values)).sum::<f64>()
    }
}

#[cfg(test)]
mod tests;
