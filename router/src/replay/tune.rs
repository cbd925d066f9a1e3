//! Thresholds from recorded outcomes: split, score, certify, and measure what was promised on rows none of them saw.
//!
//! Clusters of near-duplicates are dealt by a hash to scorer, certificate and check; rows that carry a recorded score need no
//! scorer and are all evidence. This module reads no files and prints nothing.
//!
//! A scorer that is fitted here only serves to rank: a calibration needs rows of its own and has flat steps, which a threshold
//! cannot cut. So raw scores become ranks among those that its own rows got from parts that had not seen them, with ties
//! dealt by a hash of the prompt. Equal scores are then divided as by a coin, which keeps the promise as well as taking all
//! or none of them. A pair for which no scorer can be fitted is one such step.

use crate::evidence::bound::{BoundError, Evidence, Promise, Solution, grid, solve};
use crate::evidence::outcome::Outcome;
use crate::score::Pair;
use crate::score::blend::{Shared, raw};
use local_worker::scorer::{Scorer, Turn};
use std::collections::{BTreeMap, BTreeSet};

/// Percent of the clusters that fit and calibrate the scorer, and of those that check the promise where no other file does.
const FIT_PERCENT: u64 = 40;
const CHECK_PERCENT: u64 = 20;

/// By what requests are told apart for certificates of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Segment {
    /// The request's label.
    Label,
    /// Whose request it was.
    Tenant,
    /// The task or subject.
    Domain,
    /// The data set.
    Source,
}

impl Segment {
    fn of(self, row: &Outcome) -> &str {
        match self {
            Segment::Label => &row.recorded.label,
            Segment::Tenant => &row.recorded.tenant,
            Segment::Domain => &row.domain,
            Segment::Source => &row.source,
        }
    }
}

/// What to tune.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TuneOptions {
    /// What is to be proven.
    pub promise: Promise,
    /// Certificates for parts of the traffic as well.
    pub segment: Option<Segment>,
}

/// Routed quality at a threshold, measured on rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Realised {
    /// Mean routed quality over the mean of the large model; 1 where the large model is never right.
    pub quality_share: f64,
    /// Standard error of the share, by the delta method; 0 with fewer than two rows.
    pub se: f64,
    /// Share served locally, in `[0, 1]`.
    pub local_share: f64,
    /// Rows.
    pub n: usize,
}

/// What could be served locally if all grades of the rows were known, as shares in `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hindsight {
    /// By the best threshold on the score.
    pub threshold: f64,
    /// By choosing request by request.
    pub oracle: f64,
    /// By a coin: `(1 - target) S / (S - W)`, or 1 where the small model keeps the target by itself.
    pub random: f64,
}

/// A solved segment.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentResult {
    /// Its name; empty for rows without one.
    pub name: String,
    /// Its threshold, proven with its share of the error probability.
    pub solution: Solution,
}

/// A solved pair.
#[derive(Debug, Clone, PartialEq)]
pub struct PairResult {
    /// The models.
    pub pair: Pair,
    /// The threshold and its proof.
    pub solution: Solution,
    /// Whether the threshold cuts recorded scores; else it cuts ranks in `[0, 1]` by a scorer fitted for the purpose.
    pub recorded: bool,
    /// Outcomes to be collected for one more piece of evidence.
    pub outcomes_per_evidence: f64,
    /// What the threshold did on rows that neither scorer nor certificate saw.
    pub realised: Realised,
    /// What was possible on those rows.
    pub hindsight: Hindsight,
    /// Certificates of segments; all hold together at the promised confidence (the error probability is shared equally).
    pub segments: Vec<SegmentResult>,
    /// What the reader should know, in words.
    pub notes: Vec<String>,
}

/// Why nothing can be tuned.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// Some rows of a pair have a recorded score.
    #[error("{with} of the {all} outcomes for {pair} have a score: record it with all of them or leave it out of all")]
    SomeScored {
        /// The pair.
        pair: Pair,
        /// Rows with one.
        with: usize,
        /// All rows.
        all: usize,
    },
    /// The rows to check on are about other pairs.
    #[error("the validation rows hold none for {0}")]
    NoValidation(Pair),
    /// Numbers out of range.
    #[error(transparent)]
    Bound(#[from] BoundError),
}

/// Solves every pair of the outcomes, in the order of their first rows, and checks on `validate` or on held-out clusters.
///
/// # Errors
/// Scores recorded for some rows only, no validation rows for a pair, and numbers out of range.
pub fn tune(
    outcomes: &[Outcome],
    validate: Option<&[Outcome]>,
    options: &TuneOptions,
) -> Result<Vec<PairResult>, TuneError> {
    let shared = Shared::of(outcomes.iter().filter(|row| fits(row)));
    pairs(outcomes).into_iter().map(|pair| tune_pair(pair, outcomes, validate, &shared, options)).collect()
}

/// The pairs rows speak about, in the order of their first rows.
pub fn pairs(outcomes: &[Outcome]) -> Vec<Pair> {
    let mut seen = BTreeSet::new();
    let all = outcomes.iter().map(|row| Pair::new(&row.small, &row.large));
    all.filter(|pair| seen.insert(pair.clone())).collect()
}

fn of_pair<'rows>(outcomes: &'rows [Outcome], pair: &Pair) -> Vec<&'rows Outcome> {
    outcomes.iter().filter(|row| row.small == pair.small && row.large == pair.large).collect()
}

/// Whether a row is of the clusters that scorers are fitted on.
fn fits(row: &Outcome) -> bool {
    place("fit", &row.cluster) % 100 < FIT_PERCENT
}

fn tune_pair(
    pair: Pair,
    outcomes: &[Outcome],
    validate: Option<&[Outcome]>,
    shared: &Shared,
    options: &TuneOptions,
) -> Result<PairResult, TuneError> {
    let rows = of_pair(outcomes, &pair);
    let validation = validate.map(|rows| of_pair(rows, &pair));
    if validation.as_ref().is_some_and(Vec::is_empty) {
        return Err(TuneError::NoValidation(pair));
    }
    let recorded = recorded_scores(&pair, rows.iter().chain(validation.iter().flatten()).copied())?;
    let mut notes = Vec::new();
    let (fit, rest): (Vec<&Outcome>, Vec<&Outcome>) = rows.iter().partition(|row| !recorded && fits(row));
    let checked = |row: &&&Outcome| validation.is_none() && place("check", &row.cluster) % 100 < CHECK_PERCENT;
    let check: Vec<&Outcome> = rest.iter().filter(checked).copied().collect();
    let certify: Vec<&Outcome> = rest.iter().filter(|row| !checked(row)).copied().collect();
    let scores = if recorded { Scores::Recorded } else { Scores::fit(&pair, &fit, shared, &mut notes) };
    let evidence = scores.evidence(&certify);
    let solution = solve(&evidence, options.promise)?;
    let check = validation.unwrap_or(check);
    let checked: Vec<Evidence> = check.iter().map(|row| scores.row(row, 1.0)).collect();
    let outcomes_per_evidence = rows.len() as f64 / evidence.len().max(1) as f64;
    Ok(PairResult {
        recorded,
        outcomes_per_evidence,
        realised: realised(&checked, solution.threshold),
        hindsight: hindsight(&checked, options.promise.target),
        segments: segments(&scores, &certify, options)?,
        pair,
        solution,
        notes,
    })
}

fn recorded_scores<'rows>(pair: &Pair, rows: impl Iterator<Item = &'rows Outcome>) -> Result<bool, TuneError> {
    let (mut with, mut all) = (0, 0);
    for row in rows {
        with += usize::from(row.recorded.score.is_some());
        all += 1;
    }
    if with > 0 && with < all {
        return Err(TuneError::SomeScored { pair: pair.clone(), with, all });
    }
    Ok(with > 0)
}

/// Certificates of segments. With `k` of them each may err with a `k`-th of the error probability (Bonferroni), so all hold
/// together.
fn segments(scores: &Scores, rows: &[&Outcome], options: &TuneOptions) -> Result<Vec<SegmentResult>, TuneError> {
    let Some(segment) = options.segment else { return Ok(Vec::new()) };
    let mut by_name: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
    for row in rows {
        by_name.entry(segment.of(row)).or_default().push(row);
    }
    let error = (1.0 - options.promise.confidence) / by_name.len().max(1) as f64;
    let promise = Promise { confidence: 1.0 - error, ..options.promise };
    let solved = by_name.into_iter().map(|(name, rows)| {
        let solution = solve(&scores.evidence(&rows), promise)?;
        Ok(SegmentResult { name: name.to_owned(), solution })
    });
    solved.collect()
}

/// Where scores come from.
enum Scores {
    /// The rows carry them.
    Recorded,
    /// A scorer, and the scores that rows it was fitted on get from one that had not seen them, sorted.
    Ranked(Box<Scorer>, Vec<f64>),
    /// No scorer could be fitted: a coin.
    Alike,
}

/// Decides what the trees of fitted scorers see.
const SEED: u64 = 1;

/// Rows without which no scorer is fitted.
const LEAST_TO_FIT: usize = 20;

impl Scores {
    fn fit(pair: &Pair, rows: &[&Outcome], shared: &Shared, notes: &mut Vec<String>) -> Self {
        let grades = |row: &Outcome| (row.small_quality, row.large_quality);
        let alike = rows.windows(2).all(|two| matches!(two, [a, b] if grades(a) == grades(b)));
        let problem = if rows.len() < LEAST_TO_FIT {
            format!("fewer than {LEAST_TO_FIT}")
        } else if alike {
            "all their grades are alike, both kinds are needed".to_owned()
        } else {
            match raw(rows, shared, SEED) {
                Ok(blend) => {
                    let mut known = blend.held_out;
                    known.sort_unstable_by(f64::total_cmp);
                    return Scores::Ranked(Box::new(blend.scorer), known);
                }
                Err(error) => error.to_string(),
            }
        };
        notes.push(format!(
            "{pair}: no scorer from {} outcomes ({problem}), so a coin decides what stays local; collect more outcomes, or \
             record a score with each",
            rows.len()
        ));
        Scores::Alike
    }

    fn row(&self, row: &Outcome, weight: f64) -> Evidence {
        let coin = place("tie", &row.prompt) as f64 / u64::MAX as f64;
        let score = match self {
            Scores::Recorded => row.recorded.score.unwrap_or(0.0),
            Scores::Ranked(scorer, known) => {
                let score = scorer.score(&[Turn::user(&row.prompt)]);
                let below = known.partition_point(|other| *other < score) as f64;
                let equal = known.partition_point(|other| *other <= score) as f64 - below;
                (below + coin * (equal + 1.0)) / (known.len() as f64 + 1.0)
            }
            Scores::Alike => coin,
        };
        Evidence { score, small: row.small_quality, large: row.large_quality, weight }
    }

    /// One row a cluster, in the order of cluster hashes, weighted by how seldom it was recorded.
    fn evidence(&self, rows: &[&Outcome]) -> Vec<Evidence> {
        let least = rows.iter().map(|row| row.sampling_probability).fold(1.0, f64::min);
        let mut by_cluster: BTreeMap<(u64, &str), (u64, &Outcome)> = BTreeMap::new();
        for row in rows {
            let drawn = place("representative", &row.id);
            let slot = by_cluster.entry((place("order", &row.cluster), &row.cluster)).or_insert((drawn, row));
            if drawn < slot.0 {
                *slot = (drawn, row);
            }
        }
        by_cluster.into_values().map(|(_, row)| self.row(row, least / row.sampling_probability)).collect()
    }
}

/// A number that depends on a name only; one name has independent numbers for different uses.
fn place(used_for: &str, name: &str) -> u64 {
    let mut hash = blake3::Hasher::new_derive_key("sluice 2026 split for tune");
    hash.update(used_for.as_bytes());
    hash.update(&[0]);
    hash.update(name.as_bytes());
    let bytes = hash.finalize();
    bytes.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// What a threshold does on rows; `None` sends all to the large model.
pub fn realised(rows: &[Evidence], threshold: Option<f64>) -> Realised {
    let n = rows.len() as f64;
    let local = |row: &Evidence| threshold.is_some_and(|threshold| row.score >= threshold);
    let routed = |row: &Evidence| if local(row) { row.small } else { row.large };
    let large = rows.iter().map(|row| row.large).sum::<f64>() / n.max(1.0);
    let kept = rows.iter().map(routed).sum::<f64>() / n.max(1.0);
    let quality_share = if large > 0.0 { kept / large } else { 1.0 };
    let squares: f64 = rows.iter().map(|row| (routed(row) - quality_share * row.large).powi(2)).sum();
    let se = if rows.len() > 1 && large > 0.0 { (squares / (n - 1.0) / n).sqrt() / large } else { 0.0 };
    let local = rows.iter().filter(|row| local(row)).count() as f64 / n.max(1.0);
    Realised { quality_share, se, local_share: local, n: rows.len() }
}

fn mean_loss(rows: &[Evidence], threshold: f64, target: f64) -> f64 {
    rows.iter().map(|row| row.loss(threshold, target)).sum::<f64>() / rows.len().max(1) as f64
}

/// What could be served locally if these rows were all there is.
pub fn hindsight(rows: &[Evidence], target: f64) -> Hindsight {
    let n = rows.len().max(1) as f64;
    let share = |threshold: f64| rows.iter().filter(|row| row.score >= threshold).count() as f64 / n;
    let kept = grid().filter(|threshold| mean_loss(rows, *threshold, target) <= 1e-12);
    let threshold = kept.map(share).fold(0.0, f64::max);
    let large: f64 = rows.iter().map(|row| row.large).sum();
    let small: f64 = rows.iter().map(|row| row.small).sum();
    let random = if small >= target * large { 1.0 } else { (1.0 - target) * large / (large - small) };
    let mut harms: Vec<f64> = rows.iter().map(|row| row.large - row.small).collect();
    harms.sort_unstable_by(f64::total_cmp);
    let mut left = (1.0 - target) * large + 1e-9;
    let fits = |harm: &&f64| {
        left -= **harm;
        left >= 0.0
    };
    let oracle = harms.iter().take_while(fits).count() as f64 / n;
    Hindsight { threshold, oracle, random }
}

pub mod coverage;

#[cfg(test)]
mod tests;
