//! Training a scorer from recorded outcomes: split by cluster, fit, calibrate, measure on what neither has seen.
//!
//! Clusters of near-duplicate prompts are dealt by a hash to one of three parts, so that no prompt has a twin in another
//! part: half fits the weights, a fifth the calibration, and the rest is evidence, for the figures in the card and for the
//! certificate. The dealing depends on nothing but cluster names.

use super::blend::{BlendError, Shared, hard, raw};
use super::long::{Long, Raw};
use super::report::Report;
use super::student::{Lesson, Teacher, linear};
use super::{Gain, Pair, PairScorer, ScoreError};
use crate::evidence::bound::Evidence;
use crate::evidence::calibration::{Calibration, CalibrationError, Scored, auc};
use crate::evidence::outcome::Outcome;
use local_worker::scorer::{FitError, FitOptions, Scorer, Turn};
use std::collections::{BTreeMap, HashSet};

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    /// The models the scorer is for. Rows of the small model count; with a large model other than `*`, of both.
    pub pair: Pair,
    /// Ways to fit the raw scorer; the one that ranks best within the fitting part is used. At least one.
    pub ways: Vec<Way>,
    /// Hash of the outcomes, as read.
    pub outcomes_hash: String,
    /// Prompts without grades, for ways that can use them. Those that calibration or evidence hold are passed over.
    pub unlabelled: Vec<String>,
}

/// A way to fit a raw scorer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    /// Word and character n-grams and surface features together, row by row.
    Linear(FitOptions),
    /// Parts fitted apart and weighed on rows they have not seen, trees over shapes among them.
    Blend {
        /// Decides what each tree sees.
        seed: u64,
    },
    /// The linear one taught by a blend (`score/student.rs`): as quick, and it has heard more than the grades.
    Taught {
        /// How the linear one is fitted.
        options: FitOptions,
        /// How much what the blend says counts beside the grades, 0 to 1.
        soft: f32,
    },
}

impl From<BlendError> for TrainError {
    fn from(error: BlendError) -> Self {
        match error {
            BlendError::Fit(error) => Self::Fit(error),
            BlendError::Calibration(error) => Self::Calibration(error),
        }
    }
}

impl Way {
    /// Ways worth comparing.
    pub fn candidates(seed: u64) -> Vec<Self> {
        FitOptions::candidates(seed).map(Self::Linear).into_iter().chain([Self::Blend { seed }]).collect()
    }

    fn fit(self, rows: &[&Outcome], shared: &Shared, unlabelled: &[&str]) -> Result<Scorer, TrainError> {
        match self {
            Self::Linear(options) => Ok(linear(rows, options, None)?),
            Self::Blend { seed } => Ok(raw(rows, shared, seed)?.scorer),
            Self::Taught { options, soft } => {
                let teacher = &Teacher::fit(rows, shared, options.seed)?;
                Ok(linear(rows, options, Some(&Lesson { teacher, soft, unlabelled }))?)
            }
        }
    }
}

/// A scorer and how good it is.
#[derive(Debug, Clone)]
pub struct TrainedScorer {
    /// Ready to serve or to be written.
    pub scorer: PairScorer,
    /// Figures for the card.
    pub report: Report,
    /// Independent rows that neither fit nor calibration saw, in an order that does not depend on outcomes.
    pub evidence: Vec<Evidence>,
}

/// Why no scorer can be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// None of the rows speaks about the pair.
    #[error("no outcomes for {pair}; the rows are about {}", .found.join(", "))]
    NoRows {
        /// The pair.
        pair: Pair,
        /// Small models the rows are about.
        found: Vec<String>,
    },
    /// One of the two classes is missing in a part.
    #[error(
        "the small model suffices in {good} of the {all} outcomes for {part}; both kinds are needed, so more outcomes"
    )]
    OneClass {
        /// The part.
        part: &'static str,
        /// Rows where it suffices.
        good: usize,
        /// All its rows.
        all: usize,
    },
    /// The fit failed.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// The calibration failed.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// The scorer failed.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

/// What a cluster is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The weights.
    Fit,
    /// The map from raw scores to probabilities.
    Calibrate,
    /// Held-out figures and the certificate.
    Certify,
}

/// Percent of clusters for fit and calibration; the rest is evidence.
const FIT_PERCENT: u64 = 50;
const CALIBRATE_PERCENT: u64 = 20;

/// How many outcomes are collected for one that becomes evidence.
pub(super) const OUTCOMES_PER_EVIDENCE: f64 = 100.0 / (100 - FIT_PERCENT - CALIBRATE_PERCENT) as f64;

impl Purpose {
    /// What the rows of a cluster are used for, always.
    pub fn of(cluster: &str) -> Self {
        match place("purpose", cluster) % 100 {
            percent if percent < FIT_PERCENT => Purpose::Fit,
            percent if percent < FIT_PERCENT + CALIBRATE_PERCENT => Purpose::Calibrate,
            _ => Purpose::Certify,
        }
    }
}

/// A number that depends on a name only, evenly spread; one name has independent numbers for different uses.
pub(crate) fn place(used_for: &str, name: &str) -> u64 {
    let mut hash = blake3::Hasher::new_derive_key("sluice 2026 split of outcomes");
    hash.update(used_for.as_bytes());
    hash.update(&[0]);
    hash.update(name.as_bytes());
    let bytes = hash.finalize();
    bytes.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Trains a scorer for a pair of models.
///
/// # Errors
/// No rows for the pair, a part with one class only, and what fitting refuses.
pub fn train(outcomes: &[Outcome], options: &TrainOptions) -> Result<TrainedScorer, TrainError> {
    train_with(outcomes, options, None)
}

/// Fits what reads long conversations on all rows of fitting clusters, for one pair.
pub type FitLong<'a> = &'a mut dyn FnMut(&[&Outcome], &Pair) -> Result<Long, FitError>;

/// The same with an encoder for long conversations, which learns from the fitting part too.
///
/// # Errors
/// As [`train`].
pub fn train_with(
    outcomes: &[Outcome],
    options: &TrainOptions,
    long: Option<FitLong<'_>>,
) -> Result<TrainedScorer, TrainError> {
    let parts = Parts::of(outcomes, &options.pair)?;
    // Grades of other pairs on prompts of the fitting part help; those of other parts must not be seen.
    let fitting = || outcomes.iter().filter(|row| Purpose::of(&row.cluster) == Purpose::Fit);
    let shared = Shared::of(fitting());
    let held_back: HashSet<&str> =
        parts.calibrate.iter().chain(&parts.certify).map(|row| row.prompt.as_str()).collect();
    let unlabelled = options.unlabelled.iter().map(String::as_str).filter(|prompt| !held_back.contains(prompt));
    let unlabelled: Vec<&str> = unlabelled.collect();
    let way = match options.ways.as_slice() {
        [only] => *only,
        ways => best_way(&parts.fit, ways, &Shared::of(fitting().filter(|row| !compares(row))), &unlabelled)?,
    };
    let mut raw = Raw::from(way.fit(&parts.fit, &shared, &unlabelled)?);
    if let Some(fit) = long {
        let long = fit(&fitting().collect::<Vec<_>>(), &options.pair)?;
        raw.long = Some(aligned(&raw.scorer, long, &parts.calibrate)?);
    }
    let score = |row: &&Outcome| raw.read(&[Turn::user(&row.prompt)]).score;
    let calibration: Vec<Scored> =
        parts.calibrate.iter().map(|row| Scored { score: score(row), suffices: row.small_suffices() }).collect();
    let gain = |(row, scored): (&&Outcome, &Scored)| (scored.score, row.large_quality - row.small_quality);
    let gain = Gain::fit(&parts.calibrate.iter().zip(&calibration).map(gain).collect::<Vec<_>>());
    let hard = hard(calibration.iter().map(|row| row.score));
    let calibration = Calibration::fit(&calibration)?;
    let hash = options.outcomes_hash.clone();
    let scorer = PairScorer::new(options.pair.clone(), raw, calibration, hash).with_gain(gain).with_hard(hard);
    let evidence = evidence(&scorer, &parts.certify)?;
    let report = Report::measure(&scorer, &parts)?;
    Ok(TrainedScorer { scorer, report, evidence })
}

/// An encoder whose raw scores mean what the scorer's do: both are brought to log-odds on the same rows.
fn aligned(scorer: &Scorer, long: Long, rows: &[&Outcome]) -> Result<Long, CalibrationError> {
    let sigmoid = |score: &dyn Fn(&[Turn<'_>]) -> f64| {
        let scored =
            |row: &&Outcome| Scored { score: score(&[Turn::user(&row.prompt)]), suffices: row.small_suffices() };
        Calibration::sigmoid(&rows.iter().map(scored).collect::<Vec<_>>())
    };
    let (slope, offset) = sigmoid(&|turns| long.encoder.score(turns))?;
    let (unit, zero) = match sigmoid(&|turns| scorer.score(turns))? {
        (unit, zero) if unit > 1e-3 => (unit, zero),
        _ => (1.0, 0.0),
    };
    let encoder = long.encoder.rescaled((slope / unit) as f32, ((offset - zero) / unit) as f32);
    Ok(Long { encoder, ..long })
}

/// One fit in how many clusters is held back to compare ways of fitting.
const COMPARE_EVERY: u64 = 4;

fn compares(row: &Outcome) -> bool {
    place("compare", &row.cluster).is_multiple_of(COMPARE_EVERY)
}

/// The way of fitting that ranks best on a quarter of the clusters when the others are learnt, of which alone `shared` may
/// know; the first among equals. Calibration and evidence are not looked at.
fn best_way(rows: &[&Outcome], ways: &[Way], shared: &Shared, unlabelled: &[&str]) -> Result<Way, TrainError> {
    let (test, learnt): (Vec<&Outcome>, Vec<&Outcome>) = rows.iter().partition(|row| compares(row));
    let mut best: Option<(f64, Way)> = None;
    for way in ways {
        let scorer = way.fit(&learnt, shared, unlabelled)?;
        let scored: Vec<Scored> = test.iter().map(|row| scored(&scorer, row)).collect();
        let ranks = auc(&scored).unwrap_or(0.5);
        if best.is_none_or(|(most, _)| ranks > most) {
            best = Some((ranks, *way));
        }
    }
    Ok(best.map_or(Way::Linear(FitOptions::default()), |(_, way)| way))
}

fn scored(scorer: &Scorer, row: &Outcome) -> Scored {
    Scored { score: scorer.score(&[Turn::user(&row.prompt)]), suffices: row.small_suffices() }
}

/// Evidence for a certificate of a scorer that was trained before: the rows of its pair that it never saw, if it was
/// trained on these outcomes.
///
/// # Errors
/// No rows for the pair.
pub fn evidence_for(scorer: &PairScorer, outcomes: &[Outcome]) -> Result<Vec<Evidence>, TrainError> {
    let parts = Parts::of(outcomes, scorer.pair())?;
    Ok(evidence(scorer, &parts.certify)?)
}

/// One row a cluster, thinned to equal sampling probability, in the order of cluster hashes.
pub fn representatives<'rows>(rows: &[&'rows Outcome]) -> Vec<&'rows Outcome> {
    let least = rows.iter().map(|row| row.sampling_probability).fold(1.0, f64::min);
    let mut by_cluster: BTreeMap<(u64, &str), (u64, &'rows Outcome)> = BTreeMap::new();
    for row in rows {
        let kept = place("thinning", &row.id) as f64 / u64::MAX as f64;
        if kept > least / row.sampling_probability {
            continue;
        }
        let drawn = place("representative", &row.id);
        let key = (place("order", &row.cluster), row.cluster.as_str());
        let slot = by_cluster.entry(key).or_insert((drawn, row));
        if drawn < slot.0 {
            *slot = (drawn, row);
        }
    }
    by_cluster.into_values().map(|(_, row)| row).collect()
}

fn evidence(scorer: &PairScorer, rows: &[&Outcome]) -> Result<Vec<Evidence>, ScoreError> {
    representatives(rows)
        .into_iter()
        .map(|row| {
            Ok(Evidence {
                score: scorer.score_turns(&[Turn::user(&row.prompt)])?.get(),
                small: row.small_quality,
                large: row.large_quality,
                weight: 1.0,
            })
        })
        .collect()
}

/// The rows of a pair by what they are used for.
pub(super) struct Parts<'rows> {
    pub fit: Vec<&'rows Outcome>,
    pub calibrate: Vec<&'rows Outcome>,
    pub certify: Vec<&'rows Outcome>,
}

impl<'rows> Parts<'rows> {
    fn of(outcomes: &'rows [Outcome], pair: &Pair) -> Result<Self, TrainError> {
        let any = Pair::any_large(&pair.small) == *pair;
        let mut parts = Self { fit: Vec::new(), calibrate: Vec::new(), certify: Vec::new() };
        for row in outcomes.iter().filter(|row| row.small == pair.small && (any || row.large == pair.large)) {
            match Purpose::of(&row.cluster) {
                Purpose::Fit => parts.fit.push(row),
                Purpose::Calibrate => parts.calibrate.push(row),
                Purpose::Certify => parts.certify.push(row),
            }
        }
        if parts.fit.len() + parts.calibrate.len() + parts.certify.len() == 0 {
            let mut found: Vec<String> = outcomes.iter().map(|row| row.small.clone()).collect();
            found.sort_unstable();
            found.dedup();
            return Err(TrainError::NoRows { pair: pair.clone(), found });
        }
        // Folds of the calibration are dealt in turn: clusters stay together, sources mix.
        parts.calibrate.sort_by_key(|row| place("order", &row.cluster));
        let named = [("fitting", &parts.fit), ("calibration", &parts.calibrate), ("evidence", &parts.certify)];
        for (part, rows) in named {
            let good = rows.iter().filter(|row| row.small_suffices()).count();
            if good == 0 || good == rows.len() {
                let all = rows.len();
                return Err(TrainError::OneClass { part, good, all });
            }
        }
        Ok(parts)
    }
}
