//! Finite-sample bounds, and the threshold solver that stands on them.
//!
//! The promise of a threshold `t` is that the expected paired loss `target * q_large - q_routed` is at most 0, where `q_routed`
//! is the small model's quality for scores of at least `t` and the large one's below. Thresholds are tested one after the other
//! from all-remote outward, on a grid fixed beforehand, and the first that cannot be proven ends the sequence; so every test
//! may use the whole error probability (fixed-sequence testing, as in "Learn then test", Angelopoulos et al. 2021).
//!
//! Evidence must be independent (one row a cluster), unseen by scorer and calibration, and in an order that does not depend
//! on outcomes. This module cannot check that; `score::train` sees to it.

use super::betting::Losses;
use super::certificate::Method;
use super::special::{erf, incomplete_beta};
use serde::{Deserialize, Serialize};

/// One independent piece of evidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    /// Calibrated score, in `[0, 1]`.
    pub score: f64,
    /// Quality of the small model's answer, in `[0, 1]`.
    pub small: f64,
    /// Quality of the large model's answer, in `[0, 1]`.
    pub large: f64,
    /// Importance weight, above 0 and at most 1: the least sampling probability of the recording design over this row's.
    pub weight: f64,
}

impl Evidence {
    /// The paired loss `target * large - routed` when scores of at least `threshold` are served by the small model.
    pub fn loss(&self, threshold: f64, target: f64) -> f64 {
        let routed = if self.score >= threshold { self.small } else { self.large };
        target * self.large - routed
    }

    pub(super) fn check(&self, place: usize) -> Result<(), BoundError> {
        let unit = 0.0..=1.0;
        let good = [self.score, self.small, self.large, self.weight].iter().all(|value| unit.contains(value));
        if good && self.weight > 0.0 { Ok(()) } else { Err(BoundError::Evidence { place }) }
    }
}

/// What is to be proven, and how surely.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Share of the large model's quality to keep, in `(0, 1]`.
    pub target: f64,
    /// Probability that a solved threshold keeps it, in `(0, 1)`.
    pub confidence: f64,
}

/// The outcome of a search for a threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// The lowest proven threshold; `None` when none that lets anything stay local is proven.
    pub threshold: Option<f64>,
    /// Upper confidence bound of the expected loss at the threshold, or at the first one that failed.
    pub bound: f64,
    /// Share of the evidence at or above the threshold.
    pub local_share: f64,
    /// Pieces of evidence.
    pub n: usize,
    /// Without a threshold: about how many more pieces would prove one; `None` when more would not.
    pub needed: Option<u64>,
    /// How the bounds were computed.
    pub method: Method,
    /// The promise.
    pub promise: Promise,
}

/// Why no search is possible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BoundError {
    /// The target or the confidence is out of range.
    #[error(
        "quality target {target} with confidence {confidence}; the target is above 0 and at most 1, the confidence between 0 and 1"
    )]
    Promise {
        /// The target.
        target: f64,
        /// The confidence.
        confidence: f64,
    },
    /// A score or quality out of range.
    #[error("evidence {place} has a score, quality or weight that is not within 0 and 1")]
    Evidence {
        /// Which, counted from 0.
        place: usize,
    },
}

/// The thresholds that are tried, in order: 1.000, 0.995, … 0.000. Fixed for all time, so that nobody can pick a grid that suits
/// the data.
pub fn grid() -> impl Iterator<Item = f64> {
    (0..=200_u32).rev().map(|step| f64::from(step) / 200.0)
}

/// A threshold counts as useful for `needed` once this share of the evidence is at or above it.
const USEFUL_SHARE: f64 = 0.05;

/// Finds the lowest threshold that keeps the promise.
///
/// Losses that take two values, as when only the small model was graded right or wrong, are bounded exactly; others by betting.
///
/// # Errors
/// Numbers out of range.
pub fn solve(evidence: &[Evidence], promise: Promise) -> Result<Solution, BoundError> {
    promise.check()?;
    for (place, row) in evidence.iter().enumerate() {
        row.check(place)?;
    }
    let test = Test { evidence, promise, method: method(evidence) };
    let mut proven = None;
    let mut failed = None;
    let mut last_local = None;
    for threshold in grid() {
        // Losses change only with the rows that are served locally.
        let local = test.local(threshold);
        if last_local != Some(local) && !test.proves(threshold) {
            failed = Some(threshold);
            break;
        }
        proven = Some(threshold);
        last_local = Some(local);
    }
    let share = |threshold: f64| test.share(threshold);
    // A proven threshold that nothing reaches promises nothing.
    let threshold = proven.filter(|threshold| share(*threshold) > 0.0);
    let reported = threshold.or(failed).unwrap_or(0.0);
    let bound = test.bound(reported);
    Ok(Solution {
        threshold,
        // What is proven is at most 0; the search for the exact bound may end a rounding error above.
        bound: if threshold.is_some() { bound.min(0.0) } else { bound },
        local_share: threshold.map_or(0.0, share),
        n: evidence.len(),
        needed: if threshold.is_none() { test.needed().or_else(|| test.least()) } else { None },
        method: test.method,
        promise,
    })
}

fn method(evidence: &[Evidence]) -> Method {
    let two_valued = |row: &Evidence| row.large == 1.0 && (row.small == 0.0 || row.small == 1.0) && row.weight == 1.0;
    if evidence.iter().all(two_valued) { Method::ExactBinomial } else { Method::Betting }
}

impl Promise {
    pub(super) fn check(self) -> Result<(), BoundError> {
        let good = self.target > 0.0 && self.target <= 1.0 && self.confidence > 0.0 && self.confidence < 1.0;
        let Promise { target, confidence } = self;
        if good { Ok(()) } else { Err(BoundError::Promise { target, confidence }) }
    }

    /// The error probability.
    fn alpha(self) -> f64 {
        1.0 - self.confidence
    }
}

/// The tests of one search.
struct Test<'evidence> {
    evidence: &'evidence [Evidence],
    promise: Promise,
    method: Method,
}

impl Test<'_> {
    fn local(&self, threshold: f64) -> usize {
        self.evidence.iter().filter(|row| row.score >= threshold).count()
    }

    /// Weighted share of the evidence at or above the threshold.
    fn share(&self, threshold: f64) -> f64 {
        let (mut local, mut all) = (0.0, 0.0);
        for row in self.evidence {
            all += row.weight;
            local += if row.score >= threshold { row.weight } else { 0.0 };
        }
        if all > 0.0 { local / all } else { 0.0 }
    }

    /// Small answers that were wrong and would be served.
    fn wrong(&self, threshold: f64) -> usize {
        let wrong = |row: &&Evidence| row.score >= threshold && row.small < 1.0;
        self.evidence.iter().filter(wrong).count()
    }

    fn losses(&self, threshold: f64) -> Losses<'_> {
        Losses { evidence: self.evidence, threshold, target: self.promise.target }
    }

    fn proves(&self, threshold: f64) -> bool {
        match self.method {
            Method::ExactBinomial => {
                // So few wrong answers would be too unlikely if the promise were broken.
                let slack = 1.0 - self.promise.target;
                binomial_tail(self.wrong(threshold), self.evidence.len(), slack) <= self.promise.alpha()
            }
            _ => self.losses(threshold).mean_is_at_most(0.0, self.promise.alpha()),
        }
    }

    /// Upper confidence bound of the expected loss.
    fn bound(&self, threshold: f64) -> f64 {
        let Promise { target, .. } = self.promise;
        match self.method {
            Method::ExactBinomial => {
                let wrong = self.wrong(threshold);
                target - 1.0 + clopper_pearson_upper(wrong, self.evidence.len(), self.promise.alpha())
            }
            _ => self.losses(threshold).upper_mean(self.promise.alpha()),
        }
    }

    /// More evidence for the first useful threshold, if its rates stay what they are; every threshold outside it counts.
    fn needed(&self) -> Option<u64> {
        let mut most = 0;
        for threshold in grid() {
            most = most.max(self.sample_size(threshold)?);
            if self.share(threshold) >= USEFUL_SHARE {
                return Some(most.saturating_sub(self.evidence.len() as u64).max(1));
            }
        }
        None
    }

    /// Evidence without which nothing can be proven, however good it is; `None` when there is that much.
    fn least(&self) -> Option<u64> {
        // Rows that stay remote lose `-(1 - target)` each: the least varied evidence there is.
        let least = (self.promise.alpha().ln() / self.promise.target.ln()).ceil();
        let n = self.evidence.len() as f64;
        (least > n).then_some((least - n) as u64)
    }

    /// Evidence that would prove a threshold if the rates stay what they are; `None` when it looks false. For betting by the
    /// normal approximation, but never less than even the least varied evidence needs.
    fn sample_size(&self, threshold: f64) -> Option<u64> {
        let alpha = self.promise.alpha();
        let n = self.evidence.len();
        if self.method == Method::Betting {
            let (mean, variance) = self.losses(threshold).moments();
            let normal = variance * (normal_quantile(alpha) / mean).powi(2);
            return (mean < 0.0).then(|| normal.max(alpha.ln() / self.promise.target.ln()).ceil() as u64);
        }
        let rate = self.wrong(threshold) as f64 / n.max(1) as f64;
        let slack = 1.0 - self.promise.target;
        if rate >= slack {
            return None;
        }
        let enough = |size: u64| {
            let wrong = (rate * size as f64).ceil() as usize;
            clopper_pearson_upper(wrong, size as usize, alpha) <= slack
        };
        let mut high = 16_u64;
        while !enough(high) {
            high = high.checked_mul(2).filter(|size| *size < 1 << 32)?;
        }
        let mut low = high / 2;
        while low + 1 < high {
            let middle = low.midpoint(high);
            if enough(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(high)
    }
}

/// Upper end of the one-sided Clopper–Pearson interval: the rate at which `hits` or fewer in `n` trials have probability
/// `alpha`. With no trials it is 1.
pub fn clopper_pearson_upper(hits: usize, n: usize, alpha: f64) -> f64 {
    if hits >= n {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if binomial_tail(hits, n, middle) > alpha {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// How many standard deviations a normal variable exceeds with probability `alpha`.
fn normal_quantile(alpha: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if 0.5 * (1.0 - erf(middle / std::f64::consts::SQRT_2)) > alpha {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// Probability of at most `hits` in `n` trials; falls as the rate rises.
fn binomial_tail(hits: usize, n: usize, rate: f64) -> f64 {
    if hits >= n {
        return 1.0;
    }
    incomplete_beta((n - hits) as f64, hits as f64 + 1.0, 1.0 - rate)
}

#[cfg(test)]
mod tests;
