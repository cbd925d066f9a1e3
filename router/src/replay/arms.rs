//! The two sides of an experiment, as they were served: cost, quality, latency and share local of each, and the candidate's
//! minus the control's, all with intervals. Which side a conversation is on was drawn by a hash, so the sides differ by
//! their policies and by chance alone: nothing has to be re-weighted, and whole conversations are what varies.

use super::log::Logged;
use super::report::Range;
use crate::evidence::bootstrap::{bootstrap, weighted_quantile};
use crate::evidence::estimate::{Estimator, Interval, LoggedStep, QUALITY, estimate, plain_mean};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Seed of the bootstrap.
const SEED: u64 = 17;

/// One side of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmFigures {
    /// The policies that decided, by name.
    pub policies: BTreeSet<String>,
    /// Requests.
    pub requests: usize,
    /// Conversations; a request without one counts as its own.
    pub conversations: usize,
    /// Requests that were graded.
    pub graded: usize,
    /// Mean quality of graded requests, weighted by how seldom they were graded. This and what follows: `None` with fewer than
    /// two conversations.
    pub quality: Option<Range>,
    /// USD per 1,000 requests.
    pub usd_per_1000: Option<Range>,
    /// Mean latency, ms.
    pub latency_ms: Option<Range>,
    /// 95th percentile, ms.
    pub latency_p95_ms: Option<Range>,
    /// Share decided local.
    pub local_share: Option<Range>,
}

/// An experiment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The policy that runs it.
    pub experiment: String,
    /// Its own side.
    pub control: ArmFigures,
    /// The other policy's side.
    pub candidate: ArmFigures,
    /// Candidate minus control; `None` where a side has nothing to tell.
    pub quality_difference: Option<Range>,
    /// See `quality_difference`.
    pub usd_per_1000_difference: Option<Range>,
    /// See `quality_difference`.
    pub latency_ms_difference: Option<Range>,
    /// See `quality_difference`.
    pub local_share_difference: Option<Range>,
}

/// All experiments in the rows, by name.
pub fn compare(rows: &[Logged], confidence: f64) -> Vec<Comparison> {
    let mut sides: BTreeMap<&str, [Vec<&Logged>; 2]> = BTreeMap::new();
    for row in rows {
        if let Some(arm) = &row.arm {
            sides.entry(&arm.experiment).or_default()[usize::from(arm.candidate)].push(row);
        }
    }
    sides.into_iter().map(|(name, [control, candidate])| comparison(name, &control, &candidate, confidence)).collect()
}

fn comparison(name: &str, control: &[&Logged], candidate: &[&Logged], confidence: f64) -> Comparison {
    let (control, candidate) = (figures(control, confidence), figures(candidate, confidence));
    let minus = |of: fn(&ArmFigures) -> Option<Range>| Some(difference(of(&control)?, of(&candidate)?));
    Comparison {
        experiment: name.to_owned(),
        quality_difference: minus(|side| side.quality),
        usd_per_1000_difference: minus(|side| side.usd_per_1000),
        latency_ms_difference: minus(|side| side.latency_ms),
        local_share_difference: minus(|side| side.local_share),
        control,
        candidate,
    }
}

/// The second minus the first, of independent samples: distances to the ends add like errors do, each end with the one
/// that it comes of.
fn difference(first: Range, second: Range) -> Range {
    let value = second.value - first.value;
    let low = (second.value - second.low).hypot(first.high - first.value);
    let high = (second.high - second.value).hypot(first.value - first.low);
    Range { value, low: value - low, high: value + high }
}

fn figures(rows: &[&Logged], confidence: f64) -> ArmFigures {
    let mean = |of: &dyn Fn(&Logged) -> Option<f64>| {
        let values: Vec<(u64, f64)> = rows.iter().filter_map(|row| Some((row.cluster, of(row)?))).collect();
        plain_mean(&values, confidence).filter(|_| several(values.iter().map(|(cluster, _)| *cluster)))
    };
    let local = |row: &Logged| row.action.is_some().then_some(f64::from(u8::from(row.local)));
    ArmFigures {
        policies: rows.iter().map(|row| row.policy.clone()).filter(|policy| !policy.is_empty()).collect(),
        requests: rows.len(),
        conversations: rows.iter().map(|row| row.cluster).collect::<BTreeSet<_>>().len(),
        graded: rows.iter().filter(|row| row.quality.is_some()).count(),
        quality: quality(rows, confidence).map(Range::from),
        usd_per_1000: mean(&|row| Some(row.cost_usd * 1e3)).map(Range::from),
        latency_ms: mean(&|row| Some(row.latency_ms)).map(Range::from),
        latency_p95_ms: slowest(rows, confidence).map(Range::from),
        local_share: mean(&local).map(Range::from),
    }
}

/// Whether there is more than one conversation: of one alone nobody can say how much they vary.
fn several(clusters: impl Iterator<Item = u64>) -> bool {
    clusters.collect::<BTreeSet<_>>().len() > 1
}

fn quality(rows: &[&Logged], confidence: f64) -> Option<Interval> {
    let step = |row: &&&Logged| {
        let (reward, probability) = row.quality?;
        let (weight, ratio, tried) = (1.0 / probability, 1.0, 1.0);
        let cluster = row.cluster;
        Some(LoggedStep { cluster, weight, ratio, tried, reward, expected: 0.0, expected_of_target: 0.0 })
    };
    let steps: Vec<LoggedStep> = rows.iter().filter_map(|row| step(&row)).collect();
    let found = estimate(&steps, Estimator::SelfNormalized, Some(QUALITY), confidence)?;
    several(steps.iter().map(|step| step.cluster)).then_some(found.tried)
}

fn slowest(rows: &[&Logged], confidence: f64) -> Option<Interval> {
    let clusters: Vec<u64> = rows.iter().map(|row| row.cluster).collect();
    if !several(clusters.iter().copied()) {
        return None;
    }
    bootstrap(&clusters, confidence, SEED, |counts| {
        let weighted: Vec<(f64, f64)> = rows.iter().zip(counts).map(|(row, count)| (row.latency_ms, *count)).collect();
        weighted_quantile(&weighted, 0.95)
    })
}

#[cfg(test)]
mod tests;
