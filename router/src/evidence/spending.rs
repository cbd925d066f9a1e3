//! Thresholds for a ceiling on cost: how high a threshold may be so that the mean cost of a request stays under it.
//!
//! Recorded requests say what each would cost at every threshold. The lowest threshold keeps everything local and costs
//! least; from there thresholds are tried upwards, in fixed order, and the first that can't be proven ends it, so that the
//! error probability is spent once. The proof of each is a bet (`evidence/betting.rs`) against the mean cost reaching the
//! ceiling; costs lie between nothing and the greatest worst case among the requests recorded. That range is a statement
//! about traffic like the recorded one, and stands in the certificate; that the ceiling is kept whatever comes is not the
//! certificate's business but that of the allowance that is held live (`budget/allowance.rs`).

use super::betting::Losses;
use super::bound::Evidence;
use super::certificate::{Certificate, CertificateError, Mismatch};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// The format this build reads and writes.
pub const SPENDING_SCHEMA: u32 = 1;
/// What tells this certificate from one of quality.
const GOAL: &str = "max-quality";

/// What one conversation costs at a threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    /// USD of a request of it.
    pub usd: f64,
    /// Requests that it stands for, over those of the longest conversation; above 0, at most 1.
    pub weight: f64,
}

/// What a threshold was found to cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Solution {
    /// The highest proven threshold; `None` if none is, then everything stays local.
    pub threshold: Option<f64>,
    /// Mean USD of a request at it; 0 without one.
    pub mean: f64,
    /// Upper confidence bound of that; without a threshold that of the first one that failed.
    pub bound: f64,
}

/// Finds the highest threshold whose mean cost is proven to be at most `ceiling` USD a request at `confidence`. `steps` are
/// thresholds in rising order with what each conversation costs there, in an order that does not depend on costs; no cost
/// exceeds `most`.
pub fn solve(steps: impl IntoIterator<Item = (f64, Vec<Spent>)>, ceiling: f64, most: f64, confidence: f64) -> Solution {
    let alpha = 1.0 - confidence;
    let mut found = Solution { threshold: None, mean: 0.0, bound: 0.0 };
    for (threshold, spent) in steps {
        let evidence: Vec<Evidence> = spent.iter().map(|spent| evidence(spent, most)).collect();
        let bound = upper(&evidence, most, alpha);
        if spent.is_empty() || !proven(&evidence, ceiling, most, alpha) {
            if found.threshold.is_none() {
                found.bound = bound;
            }
            return found;
        }
        let weights: f64 = spent.iter().map(|spent| spent.weight).sum();
        let mean = spent.iter().map(|spent| spent.weight * spent.usd).sum::<f64>() / weights;
        found = Solution { threshold: Some(threshold), mean, bound };
    }
    found
}

/// A cost as a row of the betting test: with a target of 0 the loss is the cost over `most`, less one.
fn evidence(spent: &Spent, most: f64) -> Evidence {
    let share = if most > 0.0 { (spent.usd / most).clamp(0.0, 1.0) } else { 0.0 };
    Evidence { score: 0.0, small: 1.0, large: 1.0 - share, weight: spent.weight }
}

fn losses(evidence: &[Evidence]) -> Losses<'_> {
    // No score reaches it: every row counts by its cost.
    Losses { evidence, threshold: 2.0, target: 0.0 }
}

fn proven(evidence: &[Evidence], ceiling: f64, most: f64, alpha: f64) -> bool {
    ceiling >= most || losses(evidence).mean_is_at_most(ceiling / most - 1.0, alpha)
}

fn upper(evidence: &[Evidence], most: f64, alpha: f64) -> f64 {
    if evidence.is_empty() {
        return most;
    }
    (losses(evidence).upper_mean(alpha) + 1.0) * most
}

/// A threshold solved for a ceiling on cost, with the hashes of what it was solved for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpendingCertificate {
    /// The format.
    pub schema: u32,
    /// `max-quality`.
    pub goal: String,
    /// Name of the policy.
    pub policy: String,
    /// Content hash of the policy it was solved for.
    pub policy_hash: String,
    /// Version of the scorer whose scores the threshold cuts.
    pub scorer_version: String,
    /// Hash of the recorded requests that served as evidence.
    pub evidence_hash: String,
    /// The small model.
    pub small: String,
    /// The first large model.
    pub large: String,
    /// Scores at or above this stay local, in `[0, 1]`; absent, everything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Recorded requests.
    pub n: u64,
    /// Of them, those whose cost at the large model was recorded; the others' comes from prices.
    pub paid: u64,
    /// The ceiling, USD for 1,000 requests.
    pub ceiling_usd_per_1000: f64,
    /// Mean USD for 1,000 requests at the threshold.
    pub mean_usd_per_1000: f64,
    /// Upper confidence bound of that; at most the ceiling where there is a threshold.
    pub bound_usd_per_1000: f64,
    /// The most that one request can cost, USD: what the bound takes for granted.
    pub most_usd: f64,
    /// Confidence of the bound, in `(0, 1)`.
    pub confidence: f64,
    /// Share of the recorded requests that stay local.
    pub local_share: f64,
    /// Day it was solved, `YYYY-MM-DD`.
    pub date: String,
}

impl SpendingCertificate {
    /// What it says of itself first.
    pub fn goal() -> String {
        GOAL.to_owned()
    }

    /// Reads the text of a `*.solved.toml` file.
    ///
    /// # Errors
    /// Text that is not TOML, unknown or missing keys, another schema or goal, and values out of range, all at once.
    pub fn parse(text: &str) -> Result<Self, CertificateError> {
        if Certificate::parse(text).is_ok() {
            let what = "it is about quality, and the policy's goal is `max-quality`";
            return Err(CertificateError::Syntax(what.to_owned()));
        }
        let found: Self = toml::from_str(text)
            .map_err(|error| CertificateError::Syntax(error.to_string().trim().replace('\n', " ")))?;
        if found.schema != SPENDING_SCHEMA {
            return Err(CertificateError::Schema { found: found.schema });
        }
        let problems = found.problems();
        if problems.is_empty() { Ok(found) } else { Err(CertificateError::Invalid(problems)) }
    }

    /// The text of the `*.solved.toml` file.
    ///
    /// # Errors
    /// A value that can't be written as TOML; not expected.
    pub fn to_toml(&self) -> Result<String, CertificateError> {
        let body = toml::to_string(self).map_err(|error| CertificateError::Syntax(error.to_string()))?;
        let mut text = String::from(
            "# Written by `sluice replay --solve`; do not edit: a changed policy or scorer needs a new solution.\n",
        );
        let _ = match self.threshold {
            Some(threshold) => writeln!(
                text,
                "# Scores of at least {threshold} stay local: about {:.1} % of requests like the evidence.",
                self.local_share * 100.0
            ),
            None => writeln!(text, "# Not enough evidence for any threshold: everything stays local."),
        };
        text.push_str(&body);
        Ok(text)
    }

    /// Checks that it was made for this policy content and this scorer.
    ///
    /// # Errors
    /// The first of the two that differs; everything stays local then.
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

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.goal != GOAL {
            problems.push(format!("goal {:?} is not {GOAL:?}", self.goal));
        }
        for (key, text) in
            [("policy_hash", &self.policy_hash), ("scorer_version", &self.scorer_version), ("small", &self.small)]
        {
            if text.trim().is_empty() {
                problems.push(format!("{key} is empty"));
            }
        }
        let shares = [("threshold", self.threshold.unwrap_or(0.0)), ("local_share", self.local_share)];
        for (key, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                problems.push(format!("{key} {share} is not within 0 and 1"));
            }
        }
        let amounts = [
            ("ceiling_usd_per_1000", self.ceiling_usd_per_1000),
            ("mean_usd_per_1000", self.mean_usd_per_1000),
            ("bound_usd_per_1000", self.bound_usd_per_1000),
            ("most_usd", self.most_usd),
        ];
        for (key, amount) in amounts {
            if !(amount.is_finite() && amount >= 0.0) {
                problems.push(format!("{key} {amount} is no amount"));
            }
        }
        if self.threshold.is_some() && self.bound_usd_per_1000 > self.ceiling_usd_per_1000 * (1.0 + 1e-9) {
            problems.push("the bound is above the ceiling, so no threshold is proven".to_owned());
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            problems.push(format!("confidence {} is not between 0 and 1", self.confidence));
        }
        if self.date.parse::<jiff::civil::Date>().is_err() {
            problems.push(format!("date {:?} is not of the form 2026-01-31", self.date));
        }
        problems
    }
}

#[cfg(test)]
mod tests;
