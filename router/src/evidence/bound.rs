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
use super::special::incomplete_beta;

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
#[derive(Debug, Clone, Copy, PartialEq)]
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
/// Grades of only right and wrong are tested exactly, together with betting where the large model is sometimes wrong; other
/// grades, and rows with unequal weights, by betting alone.
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

/// The sharpest test the kind of evidence allows. The choice depends on what grades are possible, not on who did well.
fn method(evidence: &[Evidence]) -> Method {
    let binary = |value: f64| value == 0.0 || value == 1.0;
    let all_binary = evidence.iter().all(|row| binary(row.small) && binary(row.large) && row.weight == 1.0);
    match all_binary {
        true if evidence.iter().all(|row| row.large == 1.0) => Method::ExactBinomial,
        true => Method::ExactAndBetting,
        false => Method::Betting,
    }
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

    /// Among rows the large model got right, those it would be wrong to serve locally, and all of them.
    ///
    /// Given the large model's answers, serving locally where only the small one is right can only help. Without counting
    /// that help, the promise says that among rows the large model got right at most `1 - target` are lost: a binomial
    /// test, exact for any number of rows.
    fn lost(&self, threshold: f64) -> (usize, usize) {
        let right = self.evidence.iter().filter(|row| row.large == 1.0);
        let lost = right.clone().filter(|row| row.score >= threshold && row.small < 1.0);
        (lost.count(), right.count())
    }

    fn losses(&self, threshold: f64) -> Losses<'_> {
        Losses { evidence: self.evidence, threshold, target: self.promise.target }
    }

    /// The error probability of each of the tests that are made at a threshold.
    fn alpha(&self) -> f64 {
        match self.method {
            Method::ExactBinomial | Method::Betting => self.promise.alpha(),
            Method::ExactAndBetting => self.promise.alpha() / 2.0,
        }
    }

    fn proves(&self, threshold: f64) -> bool {
        let alpha = self.alpha();
        let exact = || {
            // So few lost answers would be too unlikely if the promise were broken.
            let (lost, right) = self.lost(threshold);
            binomial_tail(lost, right, 1.0 - self.promise.target) <= alpha
        };
        let betting = || self.losses(threshold).mean_is_at_most(0.0, alpha);
        match self.method {
            Method::ExactBinomial => exact(),
            Method::Betting => betting(),
            Method::ExactAndBetting => exact() || betting(),
        }
    }

    /// Upper confidence bound of the expected loss.
    fn bound(&self, threshold: f64) -> f64 {
        let alpha = self.alpha();
        let exact = || {
            let (lost, right) = self.lost(threshold);
            clopper_pearson_upper(lost, right, alpha) - (1.0 - self.promise.target)
        };
        let betting = || self.losses(threshold).upper_mean(alpha);
        match self.method {
            Method::ExactBinomial => exact(),
            Method::Betting => betting(),
            // How often the large model is right is not known, so what the exact test proves is only "at most 0".
            Method::ExactAndBetting => exact().max(0.0).min(betting()),
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
        let least = (self.alpha().ln() / self.promise.target.ln()).ceil();
        let n = self.evidence.len() as f64;
        (least > n).then_some((least - n) as u64)
    }

    /// Evidence that would prove a threshold; `None` when it looks false.
    fn sample_size(&self, threshold: f64) -> Option<u64> {
        let betting = || {
            let growth = self.losses(threshold).log_capital(0.0, self.alpha()) / self.evidence.len().max(1) as f64;
            (growth > 0.0).then(|| (-self.alpha().ln() / growth).ceil() as u64)
        };
        match self.method {
            Method::Betting => betting(),
            Method::ExactBinomial => self.exact_size(threshold),
            Method::ExactAndBetting => match (self.exact_size(threshold), betting()) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            },
        }
    }

    /// The same for the exact test, if the rates stay what they are.
    fn exact_size(&self, threshold: f64) -> Option<u64> {
        let (lost, right) = self.lost(threshold);
        let rate = lost as f64 / right.max(1) as f64;
        let slack = 1.0 - self.promise.target;
        if rate >= slack || right == 0 {
            return None;
        }
        let enough = |size: u64| {
            let lost = (rate * size as f64).ceil() as usize;
            clopper_pearson_upper(lost, size as usize, self.alpha()) <= slack
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
        Some((high as f64 * self.evidence.len() as f64 / right as f64).ceil() as u64)
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

/// Probability of at most `hits` in `n` trials; falls as the rate rises.
fn binomial_tail(hits: usize, n: usize, rate: f64) -> f64 {
    if hits >= n {
        return 1.0;
    }
    incomplete_beta((n - hits) as f64, hits as f64 + 1.0, 1.0 - rate)
}

#[cfg(test)]
mod tests;
