//! From re-decided requests to figures: the reward models, fitted on other conversations than those they speak of, and the
//! estimators of `evidence` on top.

use super::log::{Action, Logged};
use super::redecide::Redecision;
use crate::evidence::bootstrap::{bootstrap, weighted_quantile};
use crate::evidence::estimate::{Estimate, Estimator, Interval, LoggedStep, QUALITY, Range, estimate, plain_mean};
use std::collections::BTreeMap;

/// Parts that reward models are fitted across.
const FOLDS: u64 = 5;
/// Rows of no information that each reward model starts from.
const PRIOR_ROWS: f64 = 5.0;
/// Seed of the bootstrap.
const SEED: u64 = 11;

/// A request and what the target would do with it.
pub struct Replayed<'a> {
    /// The request.
    pub logged: &'a Logged,
    /// What the target would do.
    pub target: Redecision,
}

/// A value by three estimators.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimates {
    /// The one to report.
    pub doubly_robust: Estimate,
    /// Inverse propensity, self-normalised.
    pub self_normalized: Estimate,
    /// Inverse propensity, each ratio at most `clip`.
    pub clipped: Estimate,
    /// Where ratios were clipped.
    pub clip: f64,
}

/// What a policy would have come to on the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// Requests decided again.
    pub requests: usize,
    /// Of them, graded.
    pub graded: usize,
    /// Quality, on graded requests; `None` without any.
    pub quality: Option<Estimates>,
    /// USD a request. Routes never tried cost what prices say.
    pub cost_usd: Option<Interval>,
    /// Mean milliseconds over routes that were tried; `None` if none was.
    pub latency_ms: Option<Interval>,
    /// Share decided local.
    pub local: Option<Interval>,
    /// Mean mass of routes never tried, over all requests.
    pub untried: f64,
    /// Effective sample size over all requests.
    pub effective: f64,
}

/// A linear model of a reward for each choice: level and slope on the score, shrunk to the mean of all.
struct RewardModel {
    overall: f64,
    lines: BTreeMap<Action, (f64, f64, f64)>,
    range: Option<Range>,
}

impl RewardModel {
    fn fit(rows: impl Iterator<Item = (Action, f64, f64)>, range: Option<Range>) -> Self {
        let mut by_action: BTreeMap<Action, Vec<(f64, f64)>> = BTreeMap::new();
        let (mut sum, mut count) = (0.0, 0.0);
        for (action, score, reward) in rows {
            by_action.entry(action).or_default().push((score, reward));
            (sum, count) = (sum + reward, count + 1.0);
        }
        let overall = if count > 0.0 { sum / count } else { 0.0 };
        let line = |points: &Vec<(f64, f64)>| {
            let n = points.len() as f64;
            let centre = points.iter().map(|(score, _)| score).sum::<f64>() / n;
            let level =
                (points.iter().map(|(_, reward)| reward).sum::<f64>() + PRIOR_ROWS * overall) / (n + PRIOR_ROWS);
            let moved: f64 = points.iter().map(|(score, reward)| (score - centre) * (reward - level)).sum();
            let spread: f64 = points.iter().map(|(score, _)| (score - centre).powi(2)).sum();
            (centre, level, moved / (spread + PRIOR_ROWS * 0.08))
        };
        Self {
            overall,
            lines: by_action.iter().map(|(action, points)| (action.clone(), line(points))).collect(),
            range,
        }
    }

    fn expect(&self, action: &Action, score: f64) -> f64 {
        let value =
            self.lines.get(action).map_or(self.overall, |(centre, level, slope)| level + slope * (score - centre));
        self.range.map_or(value, |range| value.clamp(range.low, range.high))
    }
}

/// Estimates all figures of a target at a confidence.
pub fn assess(rows: &[Replayed<'_>], confidence: f64) -> Assessment {
    let graded = rows.iter().filter(|row| row.logged.quality.is_some()).count();
    let all: Vec<&Replayed<'_>> = rows.iter().collect();
    let every = steps(&all, |row| row.logged.latency_ms, None);
    let local =
        |row: &Replayed<'_>| row.target.ways.iter().filter(|way| way.local).fold(0.0, |sum, way| sum + way.probability);
    let shares: Vec<(u64, f64)> = rows.iter().map(|row| (row.logged.cluster, local(row))).collect();
    let overall = estimate(&every, Estimator::DoublyRobust, None, confidence);
    Assessment {
        requests: rows.len(),
        graded,
        quality: quality(rows, confidence),
        cost_usd: cost(&all, confidence),
        latency_ms: overall.filter(|found| found.untried < 1.0 && found.effective > 0.0).map(|found| {
            let per = 1.0 / (1.0 - found.untried);
            let at = |value: f64| (value * per).max(0.0);
            Interval { value: at(found.tried.value), low: at(found.tried.low), high: at(found.tried.high) }
        }),
        local: plain_mean(&shares, confidence).map(|share| Interval {
            low: share.low.max(0.0),
            high: share.high.min(1.0),
            ..share
        }),
        untried: overall.map_or(0.0, |found| found.untried),
        effective: overall.map_or(0.0, |found| found.effective),
    }
}

/// How much quality and USD a request the second target gives beyond the first, on the requests that both decide: paired,
/// so that what they share does not blur the difference. `None` where either has untried mass.
pub fn difference(first: &[Replayed<'_>], second: &[Replayed<'_>], confidence: f64) -> Option<Interval> {
    let values = |rows: &[Replayed<'_>]| -> Vec<(u64, f64)> {
        let steps = quality_steps(rows);
        let value = |s: &LoggedStep| (s.cluster, s.expected_of_target + s.ratio * (s.reward - s.expected), s.tried);
        let all = steps
            .iter()
            .map(value)
            .map(|(cluster, value, tried)| (cluster, value + if tried < 1.0 { f64::NAN } else { 0.0 }));
        all.collect()
    };
    let (first, second) = (values(first), values(second));
    if first.len() != second.len() || first.iter().chain(&second).any(|(_, value)| value.is_nan()) {
        return None;
    }
    let pairs: Vec<(u64, f64)> = first.iter().zip(&second).map(|((cluster, a), (_, b))| (*cluster, b - a)).collect();
    plain_mean(&pairs, confidence)
}

/// Quality by three estimators, on the graded rows; `None` without any.
pub fn quality(rows: &[Replayed<'_>], confidence: f64) -> Option<Estimates> {
    let steps = quality_steps(rows);
    // The square root of the rows keeps both bias and variance small (Ionides, 2008).
    let clip = (steps.len() as f64).sqrt().max(1.0);
    let by = |estimator: Estimator| estimate(&steps, estimator, Some(QUALITY), confidence);
    Some(Estimates {
        doubly_robust: by(Estimator::DoublyRobust)?,
        self_normalized: by(Estimator::SelfNormalized)?,
        clipped: by(Estimator::Clipped(clip))?,
        clip,
    })
}

fn quality_steps(rows: &[Replayed<'_>]) -> Vec<LoggedStep> {
    let graded: Vec<&Replayed<'_>> = rows.iter().filter(|row| row.logged.quality.is_some()).collect();
    steps(&graded, |row| row.logged.quality.map_or(0.0, |(quality, _)| quality), Some(QUALITY))
}

fn score_of(row: &Replayed<'_>) -> f64 {
    row.target.score.unwrap_or(0.5)
}

/// Logged steps under the target, with reward models that never saw a row's conversation.
fn steps(rows: &[&Replayed<'_>], reward: impl Fn(&Replayed<'_>) -> f64, range: Option<Range>) -> Vec<LoggedStep> {
    let models: Vec<RewardModel> = (0..FOLDS)
        .map(|fold| {
            let others = rows.iter().filter(|row| row.logged.cluster % FOLDS != fold);
            let seen = others.filter_map(|row| Some((row.logged.action.clone()?, score_of(row), reward(row))));
            RewardModel::fit(seen, range)
        })
        .collect();
    let step = |row: &&Replayed<'_>| {
        let logged = row.logged;
        let model = models.get((logged.cluster % FOLDS) as usize)?;
        let action = logged.action.as_ref()?;
        let tried = row.target.ways.iter().filter(|way| logged.propensities.contains_key(&way.action));
        let (mut mass, mut expected) = (0.0, 0.0);
        for way in tried {
            mass += way.probability;
            expected += way.probability * model.expect(&way.action, score_of(row));
        }
        let same = row.target.ways.iter().filter(|way| way.action == *action).map(|way| way.probability).sum::<f64>();
        Some(LoggedStep {
            cluster: logged.cluster,
            weight: logged.quality.filter(|_| range.is_some()).map_or(1.0, |(_, sampled)| 1.0 / sampled),
            ratio: same / logged.propensities.get(action).copied().unwrap_or(1.0),
            tried: mass,
            reward: reward(row),
            expected: model.expect(action, score_of(row)),
            expected_of_target: expected,
        })
    };
    rows.iter().filter_map(step).collect()
}

/// USD a request: prices say what each model costs, scaled to what it did cost on other conversations; what was tried
/// corrects them.
fn cost(rows: &[&Replayed<'_>], confidence: f64) -> Option<Interval> {
    let expected = |row: &Replayed<'_>, action: &Action| {
        let recorded = row.logged.candidates.iter().find(|candidate| candidate.model == action.model);
        let by_target = row.target.expected_costs.get(&action.model).copied();
        by_target.or_else(|| recorded.map(|candidate| candidate.expected_cost.amount.as_usd())).unwrap_or(0.0)
    };
    let mut values = Vec::new();
    for fold in 0..FOLDS {
        let mut sums: BTreeMap<Action, (f64, f64, f64)> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.logged.cluster % FOLDS != fold) {
            let Some(action) = &row.logged.action else { continue };
            let sum = sums.entry(action.clone()).or_default();
            *sum = (sum.0 + row.logged.cost_usd, sum.1 + expected(row, action), sum.2 + 1.0);
        }
        let model = |row: &Replayed<'_>, action: &Action| match sums.get(action) {
            Some((cost, expected_sum, _)) if *expected_sum > 0.0 => expected(row, action) * cost / expected_sum,
            // A local draft has no price, but what escalates after it does.
            Some((cost, _, count)) => cost / count,
            None => expected(row, action),
        };
        for row in rows.iter().filter(|row| row.logged.cluster % FOLDS == fold) {
            let Some(action) = &row.logged.action else { continue };
            let of_target: f64 = row.target.ways.iter().map(|way| way.probability * model(row, &way.action)).sum();
            let same: f64 = row.target.ways.iter().filter(|way| way.action == *action).map(|way| way.probability).sum();
            let ratio = same / row.logged.propensities.get(action).copied().unwrap_or(1.0);
            values.push((row.logged.cluster, of_target + ratio * (row.logged.cost_usd - model(row, action))));
        }
    }
    let at_least_nothing = |found: Interval| Interval { value: found.value.max(0.0), low: found.low.max(0.0), ..found };
    plain_mean(&values, confidence).map(at_least_nothing)
}

/// The 95th percentile of milliseconds over routes that were tried, with a bootstrap interval; `None` if none was.
pub fn slowest(rows: &[Replayed<'_>], confidence: f64) -> Option<Interval> {
    let clusters: Vec<u64> = rows.iter().map(|row| row.logged.cluster).collect();
    let ratio = |row: &Replayed<'_>| {
        let action = row.logged.action.as_ref()?;
        let same = row.target.ways.iter().filter(|way| way.action == *action).map(|way| way.probability).sum::<f64>();
        Some((row.logged.latency_ms, same / row.logged.propensities.get(action)?))
    };
    let values: Vec<(f64, f64)> = rows.iter().map(|row| ratio(row).unwrap_or((0.0, 0.0))).collect();
    bootstrap(&clusters, confidence, SEED, |counts| {
        let weighted: Vec<(f64, f64)> =
            values.iter().zip(counts).map(|((value, w), count)| (*value, w * count)).collect();
        weighted_quantile(&weighted, 0.95)
    })
}
