//! What another policy would have given, from a log that one policy made: off-policy estimators with intervals.
//!
//! A row carries the ratio of the two policies' probabilities of the route that was taken. Routes that the logging policy
//! never takes for a request can't be estimated from any log: their mass is told apart and bounded by `[0, 1]`. Knows
//! nothing of policies or models; a row's reward may be any number, bounded only where a [`Range`] says so.
//!
//! Sources: Dudík, Langford, Li, "Doubly robust policy evaluation and learning" (2011); Swaminathan, Joachims, "The
//! self-normalized estimator for counterfactual learning" (2015); Ionides, "Truncated importance sampling" (2008); Agresti,
//! Coull, "Approximate is better than exact" (1998) for the added rows; Imbens, Manski (2004) for the partial bounds.

use super::special::incomplete_beta;
use std::collections::BTreeMap;

/// One logged request, seen by a target policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoggedStep {
    /// Rows of one cluster (a conversation, say) are not independent.
    pub cluster: u64,
    /// 1 / probability that the row was graded; at least 1.
    pub weight: f64,
    /// Target's over logger's probability of the route taken; at least 0.
    pub ratio: f64,
    /// The target's mass on routes that the logger takes with a probability above 0; within `[0, 1]`.
    pub tried: f64,
    /// What was observed.
    pub reward: f64,
    /// What the reward model says of the route taken; the model must not have seen this row.
    pub expected: f64,
    /// What the reward model says of the target's tried routes, each times its probability.
    pub expected_of_target: f64,
}

/// The least and largest reward there can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

/// The range of a quality.
pub const QUALITY: Range = Range { low: 0.0, high: 1.0 };

/// A number and the interval that it lies in with the stated confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The best guess.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A value estimated from a log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Rows used.
    pub rows: usize,
    /// Over the tried routes alone, their mass included: the target's value is this plus what the untried ones give.
    pub tried: Interval,
    /// The whole value: `low` takes the worst of the untried routes, `high` the best, `value` stands half way and is no
    /// estimate; without untried mass as `tried`.
    pub bounds: Interval,
    /// Mean mass of routes never tried.
    pub untried: f64,
    /// Kish's effective sample size of the ratios.
    pub effective: f64,
    /// Largest ratio.
    pub largest_ratio: f64,
}

/// How a value is estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Estimator {
    /// The reward model, corrected by weighted residuals: the one to report.
    DoublyRobust,
    /// Weighted mean over the sum of weights (SNIPS).
    SelfNormalized,
    /// Weighted mean, each ratio at most this; what is cut off is bounded like untried mass.
    Clipped(f64),
}

/// What one row says of the target's value from below and from above.
struct Pseudo {
    cluster: u64,
    weight: f64,
    low: f64,
    middle: f64,
    high: f64,
}

/// Estimates the target's mean reward, with a two-sided interval of `confidence` (0.95, say). `None` without rows.
///
/// The interval is Student's with cluster-robust errors; its degrees of freedom are the effective number of residuals, and
/// four rows with half the range as residual are added to the variance, as Agresti and Coull do for a share, so that a few
/// lucky tries do not look certain. Without a range nothing is added and untried mass counts 0.
pub fn estimate(steps: &[LoggedStep], estimator: Estimator, range: Option<Range>, confidence: f64) -> Option<Estimate> {
    if steps.is_empty() {
        return None;
    }
    let total: f64 = steps.iter().map(|step| step.weight).sum();
    let mean = |of: &dyn Fn(&LoggedStep) -> f64| steps.iter().map(|s| s.weight * of(s)).sum::<f64>() / total;
    let (ratios, tried) = (mean(&|s| s.ratio), mean(&|s| s.tried));
    let quotient = if ratios > 0.0 { mean(&|s| s.ratio * s.reward) / ratios } else { 0.0 };
    let scale = if ratios > 0.0 { tried / ratios } else { 0.0 };
    let pseudo = |step: &LoggedStep| {
        let untried = (1.0 - step.tried).max(0.0);
        let (middle, lost) = match estimator {
            Estimator::DoublyRobust => (step.expected_of_target + step.ratio * (step.reward - step.expected), 0.0),
            // Its linearisation: the mean is the estimate, the spread that of its influence.
            Estimator::SelfNormalized => (quotient * step.tried + scale * step.ratio * (step.reward - quotient), 0.0),
            Estimator::Clipped(most) => {
                let kept = step.ratio.min(most);
                (kept * step.reward, step.ratio - kept)
            }
        };
        let open = untried + lost;
        let (low, high) = range.map_or((0.0, 0.0), |range| (range.low * open, range.high * open));
        Pseudo { cluster: step.cluster, weight: step.weight, low: middle + low, middle, high: middle + high }
    };
    let rows: Vec<Pseudo> = steps.iter().map(pseudo).collect();
    let squares = mean(&|s| s.ratio * s.ratio);
    let half = range.map_or(0.0, |range| (range.high - range.low) / 2.0);
    let added = if ratios > 0.0 { half * squares / ratios } else { 0.0 };
    let interval = |of: fn(&Pseudo) -> f64| interval(&rows, of, added, confidence);
    let (low, middle, high) = (interval(|row| row.low), interval(|row| row.middle), interval(|row| row.high));
    let clip = |value: f64| range.map_or(value, |range| value.clamp(range.low, range.high));
    let clipped = |interval: Interval| Interval {
        value: clip(interval.value),
        low: clip(interval.low),
        high: clip(interval.high),
    };
    let weighted: Vec<f64> = steps.iter().map(|step| step.weight * step.ratio).collect();
    Some(Estimate {
        rows: steps.len(),
        tried: clipped(middle),
        bounds: clipped(Interval { value: f64::midpoint(low.value, high.value), low: low.low, high: high.high }),
        untried: (1.0 - tried).max(0.0),
        effective: effective(&weighted),
        largest_ratio: steps.iter().map(|step| step.ratio).fold(0.0, f64::max),
    })
}

/// The mean of plain numbers, each of its cluster, with its interval; `None` without numbers.
pub fn plain_mean(values: &[(u64, f64)], confidence: f64) -> Option<Interval> {
    if values.is_empty() {
        return None;
    }
    let row = |(cluster, value): &(u64, f64)| {
        let value = *value;
        Pseudo { cluster: *cluster, weight: 1.0, low: value, middle: value, high: value }
    };
    let rows: Vec<Pseudo> = values.iter().map(row).collect();
    Some(interval(&rows, |row| row.middle, 0.0, confidence))
}

/// Kish's effective sample size: (Σw)² / Σw²; 0 where all weights are 0.
pub fn effective(weights: &[f64]) -> f64 {
    let (sum, squares) = weights.iter().fold((0.0, 0.0), |(sum, squares), w| (sum + w, squares + w * w));
    if squares > 0.0 { sum * sum / squares } else { 0.0 }
}

/// Wilson's interval for a share of `hits` in `n`.
pub fn wilson(hits: f64, n: f64, confidence: f64) -> Interval {
    if n <= 0.0 {
        return Interval { value: 0.0, low: 0.0, high: 1.0 };
    }
    let z = student_t(confidence, f64::INFINITY);
    let (share, z2) = (hits / n, z * z);
    let middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { value: share, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
}

fn interval(rows: &[Pseudo], of: fn(&Pseudo) -> f64, added: f64, confidence: f64) -> Interval {
    let total: f64 = rows.iter().map(|row| row.weight).sum();
    let mean = rows.iter().map(|row| row.weight * of(row)).sum::<f64>() / total;
    let mut clusters: BTreeMap<u64, f64> = BTreeMap::new();
    for row in rows {
        *clusters.entry(row.cluster).or_default() += row.weight * (of(row) - mean) / total;
    }
    let groups = clusters.len() as f64;
    let mut squares: Vec<f64> = clusters.values().map(|sum| sum * sum).collect();
    let correction = if groups > 1.0 { groups / (groups - 1.0) } else { f64::INFINITY };
    let spread: f64 = squares.iter().sum::<f64>();
    let one = (added / rows.len() as f64).powi(2);
    let extra = 4.0 * one;
    // The added rows count as residuals too: without them rows that all agree would have no freedom at all.
    squares.extend([one; 4]);
    let variance = if spread > 0.0 { spread * correction } else { 0.0 } + extra;
    let freedom = (effective(&squares) - 1.0).max(1.0);
    let half = student_t(confidence, freedom) * variance.sqrt();
    Interval { value: mean, low: mean - half, high: mean + half }
}

/// The two-sided quantile of Student's distribution: `P(|T| <= t) = confidence` at `freedom` degrees.
fn student_t(confidence: f64, freedom: f64) -> f64 {
    // Past this many degrees it is the normal quantile to four digits.
    let freedom = freedom.min(1e5);
    let outside = |t: f64| incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t));
    let (mut low, mut high) = (0.0, 1e4);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if outside(middle) > 1.0 - confidence {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, expected) in [(1.0, 12.706), (5.0, 2.571), (30.0, 2.042), (f64::INFINITY, 1.960)] {
            assert!((student_t(0.95, freedom) - expected).abs() < 1e-3, "{freedom}: {}", student_t(0.95, freedom));
        }
        assert_eq!(effective(&[1.0; 8]), 8.0);
        assert_eq!(effective(&[0.0, 3.0, 0.0]), 1.0);
        let wilson = wilson(0.0, 10.0, 0.95);
        assert!(wilson.low < 1e-9 && (wilson.high - 0.2775).abs() < 1e-3);
    }

    /// A world with a known truth: a score, two routes, and the quality of each.
    struct World {
        rng: StdRng,
        exploration: f64,
    }

    impl World {
        fn small(score: f64) -> f64 {
            0.1 + 0.8 * score * score
        }

        /// A logged request: remote below 0.7 but for exploration, seen by a target that is local from `threshold` on.
        fn step(&mut self, threshold: f64, model: fn(f64, bool) -> f64) -> LoggedStep {
            let score: f64 = self.rng.random();
            let explores = score < 0.7 && self.rng.random_bool(self.exploration);
            let local = score >= 0.7 || explores;
            let logged = match (score >= 0.7, explores) {
                (true, _) => 1.0,
                (false, true) => self.exploration,
                (false, false) => 1.0 - self.exploration,
            };
            let target_local = score >= threshold;
            let truth = if local { Self::small(score) } else { 0.9 };
            let reward = f64::from(u8::from(self.rng.random_bool(truth)));
            let tried = if score >= 0.7 && !target_local { 0.0 } else { 1.0 };
            LoggedStep {
                cluster: self.rng.random(),
                weight: 1.0,
                ratio: if local == target_local { 1.0 / logged } else { 0.0 },
                tried,
                reward,
                expected: model(score, local),
                expected_of_target: tried * model(score, target_local),
            }
        }

        fn truth(threshold: f64) -> f64 {
            let below = 0.9 * threshold;
            let above = 0.1 * (1.0 - threshold) + 0.8 * (1.0 - threshold.powi(3)) / 3.0;
            below + above
        }
    }

    fn coverage(rows: usize, exploration: f64, threshold: f64, estimator: Estimator, wrong: bool) -> f64 {
        const REPETITIONS: u32 = 400;
        let model: fn(f64, bool) -> f64 =
            if wrong { |_, _| 0.3 } else { |score, local| if local { World::small(score) } else { 0.9 } };
        let truth = World::truth(threshold);
        let mut hits = 0;
        for seed in 0..REPETITIONS {
            let mut world = World { rng: StdRng::seed_from_u64(u64::from(seed)), exploration };
            let steps: Vec<LoggedStep> = (0..rows).map(|_| world.step(threshold, model)).collect();
            let found = estimate(&steps, estimator, Some(QUALITY), 0.95).unwrap();
            hits += u32::from(found.bounds.low <= truth && truth <= found.bounds.high);
        }
        f64::from(hits) / f64::from(REPETITIONS)
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        use Estimator::{Clipped, DoublyRobust, SelfNormalized};
        // Three standard errors of a share of 0.95 in 400 repetitions.
        let slack = 3.0 * (0.95_f64 * 0.05 / 400.0).sqrt();
        for (rows, exploration, threshold, estimator, wrong) in [
            (300, 0.3, 0.4, DoublyRobust, false),
            (300, 0.3, 0.4, DoublyRobust, true),
            (300, 0.3, 0.4, SelfNormalized, false),
            (1000, 0.05, 0.5, DoublyRobust, true),
            (1000, 0.05, 0.5, SelfNormalized, false),
            (300, 0.05, 0.6, DoublyRobust, true),
            (300, 0.3, 0.7, DoublyRobust, false),
        ] {
            let share = coverage(rows, exploration, threshold, estimator, wrong);
            let case = format!("{rows} rows, exploration {exploration}, threshold {threshold}, {estimator:?}: {share}");
            println!("{case}");
            assert!(share >= 0.95 - slack, "{case}");
            // Nor may an interval be right by being wide. Few tries are an exception that is meant.
            assert!(share <= 0.95 + slack || rows * (exploration * 100.0) as usize <= 1_500 || share < 1.0, "{case}");
        }
        // What is cut off or was never tried widens an interval; it must never miss more often.
        assert!(coverage(1000, 0.05, 0.5, Clipped(10.0), false) >= 0.95 - slack);
        assert!(coverage(300, 0.3, 0.9, DoublyRobust, false) >= 0.95 - slack);
    }

    #[test]
    fn routes_never_tried_are_bounded_and_not_guessed() {
        let step = |tried: f64| LoggedStep {
            cluster: tried.to_bits(),
            weight: 1.0,
            ratio: tried,
            tried,
            reward: 1.0,
            expected: 1.0,
            expected_of_target: tried,
        };
        let steps: Vec<LoggedStep> =
            (0..100).map(|n| LoggedStep { cluster: n, ..step(f64::from(u8::from(n >= 40))) }).collect();
        let found = estimate(&steps, Estimator::DoublyRobust, Some(QUALITY), 0.95).unwrap();
        assert!((found.untried - 0.4).abs() < 1e-12);
        assert!((found.tried.value - 0.6).abs() < 1e-12);
        assert!(found.bounds.low < 0.6 && found.bounds.high == 1.0, "{found:?}");
        assert_eq!(found.effective, 60.0);
        let nothing = [LoggedStep { cluster: 0, ..step(0.0) }];
        let found = estimate(&nothing, Estimator::SelfNormalized, Some(QUALITY), 0.95).unwrap();
        assert_eq!((found.bounds.low, found.bounds.high, found.untried), (0.0, 1.0, 1.0));
        assert_eq!(estimate(&[], Estimator::DoublyRobust, None, 0.95), None);
    }
}
