//! The report of a replay: figures of each policy, the frontier over thresholds, calibration, and what would change route.
//! One value, shown as JSON, as a table and as a page.

use super::ReplayError;
use super::arms::{Comparison, compare};
use super::estimate::{Assessment, Estimates, Replayed, assess, difference, slowest};
use super::log::{Log, Logged};
use super::redecide::{Prepared, Target, Unusable};
use crate::evidence::estimate::{Estimate, Interval, wilson};
use serde::Serialize;
use std::collections::BTreeMap;

/// Points of the frontier.
const FRONTIER_POINTS: usize = 25;
/// Bins of the reliability diagram.
const CALIBRATION_BINS: usize = 10;
/// Local answers of at least this quality count as good where the large model's is not known.
const GOOD: f64 = 0.5;

/// What a replay is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct ReplayOptions {
    /// Confidence of all intervals.
    pub confidence: f64,
    /// Most changed requests to list.
    pub most_changes: usize,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self { confidence: 0.95, most_changes: 20 }
    }
}

/// A number with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// Best guess.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl From<Interval> for Range {
    fn from(interval: Interval) -> Self {
        Self { value: interval.value, low: interval.low, high: interval.high }
    }
}

/// One estimator's word on quality.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QualityEstimate {
    /// The whole quality: from the worst to the best that routes never tried could give.
    pub bounds: Range,
    /// The part that tried routes give.
    pub tried: Range,
    /// Mean mass of routes never tried.
    pub untried: f64,
    /// Effective sample size.
    pub effective: f64,
    /// Largest ratio of propensities.
    pub largest_ratio: f64,
}

impl From<Estimate> for QualityEstimate {
    fn from(found: Estimate) -> Self {
        Self {
            bounds: found.bounds.into(),
            tried: found.tried.into(),
            untried: found.untried,
            effective: found.effective,
            largest_ratio: found.largest_ratio,
        }
    }
}

/// Quality by three estimators.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// Doubly robust: the one to read.
    pub doubly_robust: QualityEstimate,
    /// Inverse propensity, self-normalised (SNIPS).
    pub snips: QualityEstimate,
    /// Inverse propensity, ratios clipped.
    pub clipped: QualityEstimate,
    /// Where they are clipped.
    pub clip: f64,
}

impl From<Estimates> for Quality {
    fn from(found: Estimates) -> Self {
        Self {
            doubly_robust: found.doubly_robust.into(),
            snips: found.self_normalized.into(),
            clipped: found.clipped.into(),
            clip: found.clip,
        }
    }
}

/// What a policy would have come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyFigures {
    /// Its name.
    pub policy: String,
    /// Its content hash.
    pub hash: String,
    /// Its threshold; `None` sends everything remote.
    pub threshold: Option<f64>,
    /// Its certificate, in words.
    pub certificate: String,
    /// Requests decided again.
    pub requests: usize,
    /// Of them, graded.
    pub graded: usize,
    /// Requests that can't be decided again, by why.
    pub left_out: BTreeMap<String, usize>,
    /// Quality; `None` without grades.
    pub quality: Option<Quality>,
    /// USD per 1,000 requests.
    pub usd_per_1000: Option<Range>,
    /// Mean latency, ms, over tried routes.
    pub latency_ms: Option<Range>,
    /// 95th percentile, ms, over tried routes.
    pub latency_p95_ms: Option<Range>,
    /// Share decided local.
    pub local_share: Option<Range>,
    /// Mean mass of routes never tried, over all requests.
    pub untried: f64,
    /// Effective sample size over all requests.
    pub effective: f64,
    /// The frontier, by rising threshold.
    pub frontier: Vec<FrontierPoint>,
}

/// What a threshold would give.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FrontierPoint {
    /// The threshold; `None` sends everything remote.
    pub threshold: Option<f64>,
    /// Quality by the doubly robust estimator, its bounds included.
    pub quality: Option<Range>,
    /// USD per 1,000 requests.
    pub usd_per_1000: Option<Range>,
    /// Share decided local.
    pub local_share: f64,
    /// Mean mass of routes never tried.
    pub untried: f64,
}

/// Local answers with neighbouring scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CalibrationBin {
    /// Rows.
    pub rows: usize,
    /// Mean score.
    pub predicted: f64,
    /// Share that was good enough.
    pub observed: Range,
}

/// A request whose route changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Its id.
    pub id: String,
    /// The model decided for before.
    pub from: String,
    /// The model that the policy would decide for.
    pub to: String,
    /// Why.
    pub reason: String,
}

/// A replay, whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Where the rows came from.
    pub source: String,
    /// Rows in all.
    pub rows: usize,
    /// First and last time, ms since 1970.
    pub from_ms: i64,
    /// See `from_ms`.
    pub to_ms: i64,
    /// Confidence of all intervals.
    pub confidence: f64,
    /// The log as it was: quality of graded rows, cost, latency, share local.
    pub logged: LoggedFigures,
    /// The policies asked for, in order.
    pub policies: Vec<PolicyFigures>,
    /// Quality of the second policy minus that of the first, paired; `None` where one of them has untried routes.
    pub quality_difference: Option<Range>,
    /// Local answers' scores against what happened.
    pub calibration: Vec<CalibrationBin>,
    /// Experiments that ran on the traffic, as they were served.
    pub experiments: Vec<Comparison>,
    /// Requests whose route changes under the first policy: how many, and the first of them.
    pub changed: usize,
    /// See `changed`.
    pub changes: Vec<Change>,
    /// What to know.
    pub notes: Vec<String>,
}

/// The log as it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoggedFigures {
    /// Mean quality of graded rows.
    pub quality: Option<Range>,
    /// USD per 1,000 requests.
    pub usd_per_1000: Option<Range>,
    /// Mean latency, ms.
    pub latency_ms: Option<Range>,
    /// Share decided local.
    pub local_share: Option<Range>,
    /// Rows explored or that could have been: propensity below 1.
    pub randomized: usize,
}

/// Replays a log under each target.
///
/// # Errors
/// Not one request can be decided again.
pub fn replay(source: &str, log: &Log, targets: &[Target<'_>], options: ReplayOptions) -> Result<Report, ReplayError> {
    let mut policies = Vec::new();
    let mut replayed = Vec::new();
    for target in targets {
        let (prepared, left_out) = prepare(target, &log.rows);
        if prepared.is_empty() {
            let why = left_out.iter().map(|(why, count)| format!("{count} {why}")).collect::<Vec<_>>().join("; ");
            return Err(ReplayError::Nothing { rows: log.rows.len(), why });
        }
        let rows = at(target, &prepared, target.policy.threshold());
        policies.push(figures(target, &prepared, &rows, left_out, options));
        replayed.push(rows);
    }
    let first = replayed.first().map_or(&[][..], Vec::as_slice);
    let changed: Vec<Change> = first.iter().filter_map(change).collect();
    let difference = replayed.get(1).and_then(|second| difference(first, second, options.confidence));
    let times = || log.rows.iter().map(|row| row.at_ms);
    Ok(Report {
        source: source.to_owned(),
        rows: log.rows.len(),
        from_ms: times().min().unwrap_or(0),
        to_ms: times().max().unwrap_or(0),
        confidence: options.confidence,
        logged: logged(&log.rows, options.confidence),
        notes: notes(log, &policies),
        policies,
        quality_difference: difference.map(Range::from),
        calibration: calibration(first, options.confidence),
        experiments: compare(&log.rows, options.confidence),
        changed: changed.len(),
        changes: changed.into_iter().take(options.most_changes).collect(),
    })
}

type PreparedRows<'a> = Vec<(&'a Logged, Prepared)>;

fn prepare<'a>(target: &Target<'_>, rows: &'a [Logged]) -> (PreparedRows<'a>, BTreeMap<String, usize>) {
    let mut prepared = Vec::new();
    let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
    let mut leave = |why: Unusable| *left_out.entry(why.describe().to_owned()).or_default() += 1;
    for row in rows {
        match target.prepare(row).and_then(|facts| target.redecide(&facts).map(|_| facts)) {
            Ok(facts) => prepared.push((row, facts)),
            Err(why) => leave(why),
        }
    }
    (prepared, left_out)
}

fn at<'a>(target: &Target<'_>, rows: &[(&'a Logged, Prepared)], threshold: Option<f64>) -> Vec<Replayed<'a>> {
    let decided = rows.iter().filter_map(|(logged, prepared)| {
        Some(Replayed { logged, target: target.redecide_at(prepared, threshold).ok()? })
    });
    decided.collect()
}

fn per_1000(interval: Interval) -> Range {
    Range { value: interval.value * 1e3, low: interval.low * 1e3, high: interval.high * 1e3 }
}

fn figures(
    target: &Target<'_>,
    prepared: &PreparedRows<'_>,
    rows: &[Replayed<'_>],
    left_out: BTreeMap<String, usize>,
    options: ReplayOptions,
) -> PolicyFigures {
    let Assessment { requests, graded, quality, cost_usd, latency_ms, local, untried, effective } =
        assess(rows, options.confidence);
    PolicyFigures {
        policy: target.policy.reference.name.clone(),
        hash: target.policy.reference.hash.clone(),
        threshold: target.policy.threshold(),
        certificate: target.policy.certificate().describe(),
        requests,
        graded,
        left_out,
        quality: quality.map(Quality::from),
        usd_per_1000: cost_usd.map(per_1000),
        latency_ms: latency_ms.map(Range::from),
        latency_p95_ms: slowest(rows, options.confidence).map(Range::from),
        local_share: local.map(Range::from),
        untried,
        effective,
        frontier: frontier(target, prepared, rows, options.confidence),
    }
}

/// Quality and cost over thresholds at even shares of the scores, and all remote.
fn frontier(
    target: &Target<'_>,
    prepared: &PreparedRows<'_>,
    rows: &[Replayed<'_>],
    confidence: f64,
) -> Vec<FrontierPoint> {
    let mut scores: Vec<f64> = rows.iter().filter_map(|row| row.target.score).collect();
    scores.sort_by(f64::total_cmp);
    let last = scores.len().saturating_sub(1);
    let at_share = |point: usize| scores.get(point * last / (FRONTIER_POINTS - 1)).copied();
    let mut thresholds: Vec<Option<f64>> = (0..FRONTIER_POINTS).filter_map(|point| at_share(point).map(Some)).collect();
    thresholds.dedup();
    thresholds.push(None);
    let point = |threshold: Option<f64>| {
        let found = assess(&at(target, prepared, threshold), confidence);
        FrontierPoint {
            threshold,
            quality: found.quality.map(|quality| quality.doubly_robust.bounds.into()),
            usd_per_1000: found.cost_usd.map(per_1000),
            local_share: found.local.map_or(0.0, |share| share.value),
            untried: found.untried,
        }
    };
    thresholds.into_iter().map(point).collect()
}

fn change(row: &Replayed<'_>) -> Option<Change> {
    let (before, way) = (row.logged.action.as_ref()?, row.target.ways.first()?);
    (way.action.model != before.model).then(|| Change {
        id: row.logged.id.clone(),
        from: before.model.to_string(),
        to: way.action.model.to_string(),
        reason: format!("{}: {}", way.reason.code.as_str(), way.reason.detail),
    })
}

fn logged(rows: &[Logged], confidence: f64) -> LoggedFigures {
    let mean = |of: &dyn Fn(&Logged) -> Option<f64>| {
        let values: Vec<(u64, f64)> = rows.iter().filter_map(|row| Some((row.cluster, of(row)?))).collect();
        crate::evidence::estimate::plain_mean(&values, confidence)
    };
    LoggedFigures {
        quality: mean(&|row| row.quality.map(|(quality, _)| quality)).map(Range::from),
        usd_per_1000: mean(&|row| Some(row.cost_usd)).map(per_1000),
        latency_ms: mean(&|row| Some(row.latency_ms)).map(Range::from),
        local_share: mean(&|row| row.action.is_some().then_some(f64::from(u8::from(row.local)))).map(Range::from),
        randomized: rows.iter().filter(|row| row.propensities.len() > 1).count(),
    }
}

/// Scores against what happened: of all rows where outcomes tell both qualities, else of graded local answers.
fn calibration(rows: &[Replayed<'_>], confidence: f64) -> Vec<CalibrationBin> {
    let happened = |row: &Replayed<'_>| {
        let graded = row.logged.quality.filter(|_| row.logged.local).map(|(quality, _)| quality >= GOOD);
        Some((row.target.score?, row.logged.suffices.or(graded)?))
    };
    let mut points: Vec<(f64, bool)> = rows.iter().filter_map(happened).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bins = CALIBRATION_BINS.min(points.len() / 10);
    let bin = |bin: usize| {
        let part = points.get(bin * points.len() / bins..(bin + 1) * points.len() / bins)?;
        let n = part.len() as f64;
        let good = part.iter().filter(|(_, good)| *good).count() as f64;
        let predicted = part.iter().map(|(score, _)| score).sum::<f64>() / n;
        Some(CalibrationBin { rows: part.len(), predicted, observed: wilson(good, n, confidence).into() })
    };
    (0..bins).filter_map(bin).collect()
}

fn notes(log: &Log, policies: &[PolicyFigures]) -> Vec<String> {
    let mut notes = log.warnings.clone();
    for figures in policies {
        let name = &figures.policy;
        if figures.graded == 0 {
            notes.push(format!("{name}: no graded request: quality unknown; give feedback, or --outcomes FILE"));
        } else if figures.graded < figures.requests {
            let (graded, all) = (figures.graded, figures.requests);
            notes.push(format!("{name}: quality speaks for the {graded} graded of {all} requests"));
        }
        if let Some(quality) = figures.quality {
            let found = quality.doubly_robust;
            if found.untried > 0.0 {
                let share = found.untried * 100.0;
                notes.push(format!(
                    "{name}: {share:.1} % of its choices were never tried by the policy that served: bounded by [0, 1], not \
                     estimated; `exploration.share` tries them"
                ));
            }
            if found.effective < 30.0 {
                let effective = found.effective;
                notes.push(format!(
                    "{name}: quality rests on only {effective:.1} effective graded rows; read the interval, not the number"
                ));
            }
        }
        if figures.threshold.is_none() {
            let certificate = &figures.certificate;
            notes.push(format!("{name}: has no threshold, everything goes remote (certificate {certificate})"));
        }
    }
    notes
}
