//! How well scorers route on outcomes that nothing was fitted on, beside simple rules.
//!
//! Every pair of models and source is one task: a scorer is fitted on its training rows (and on what other pairs did on the
//! same prompts), then orders and scores its test rows. Figures are those of `evidence::frontier` and
//! `evidence::calibration`; intervals draw clusters with replacement, the same ones for every pair and rule, so that
//! differences are paired.

mod baseline;
mod students;

use super::blend::{BlendError, Shared, blend};
use super::train::place;
use super::{Pair, PairScorer, ScoreError};
use crate::evidence::calibration::{ECE_BINS, Scored, auc, reliability};
use crate::evidence::frontier::{self, Frontier, differ};
use crate::evidence::outcome::Outcome;
use baseline::{Baseline, BaselineError};
use local_worker::scorer::Turn;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};

pub use baseline::BASELINES;
pub use students::{ARMS, Arm, Gain, StudentFigures, Students, students};

/// Draws of clusters for intervals.
const DRAWS: usize = 1000;

/// Draws of outcomes for the calibration error of perfect scores.
const PERFECT_DRAWS: usize = 400;

/// Another way of ordering requests that is held against the scorer on the same rows.
pub struct Rival<'a> {
    /// What it is.
    pub name: &'static str,
    /// The score of a prompt for a source and a pair; the higher, the longer it stays with the small model.
    pub score: &'a dyn Fn(&str, &Pair, &str) -> f64,
}

/// How a rival did over the pairs whose models differ.
#[derive(Debug, Clone, PartialEq)]
pub struct RivalMean {
    /// What it is.
    pub name: &'static str,
    /// Mean of its APGR.
    pub apgr: f64,
    /// By how much it is better than the scorer, then than each rival before it, with 95 % intervals.
    pub gains: Vec<(f64, (f64, f64))>,
}

/// Why routing cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// No pair has rows for both.
    #[error("no pair of models has rows both to fit on and to test on")]
    NothingInCommon,
    /// The sentence vectors cannot be used.
    #[error(transparent)]
    Baseline(#[from] BaselineError),
    /// The scorer failed.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

/// Figures of one pair on one source.
#[derive(Debug, Clone, PartialEq)]
pub struct PairFigures {
    /// The data set.
    pub source: String,
    /// The models.
    pub pair: Pair,
    /// Test rows.
    pub n: usize,
    /// Rows the scorer was fitted on.
    pub fitted_on: usize,
    /// Whether the models' qualities differ at 95 %; only then does the pair count for the mean.
    pub differs: bool,
    /// Mean performance gap recovered; `None` where there is no gap.
    pub apgr: Option<f64>,
    /// Its 95 % interval.
    pub apgr_ci: Option<(f64, f64)>,
    /// Share of large-model calls that recovers half of the gap.
    pub cpt50: Option<f64>,
    /// The same for 80 %.
    pub cpt80: Option<f64>,
    /// How well scores rank rows where the small model suffices above others; `None` with one class only.
    pub auc: Option<f64>,
    /// Calibration error of scores, debiased.
    pub ece: f64,
    /// Where 95 % of perfect scores of the same values would lie.
    pub ece_perfect: (f64, f64),
    /// APGR of simple rules, in the order of [`BASELINES`].
    pub baselines: Vec<Option<f64>>,
    /// APGR of the rivals.
    pub rivals: Vec<Option<f64>>,
    /// What each part of the blend is worth; empty where nothing could be fitted.
    pub shares: Vec<(&'static str, f32)>,
}

/// Means over the pairs whose models differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    /// Pairs.
    pub pairs: usize,
    /// Mean of their APGR.
    pub apgr: f64,
    /// Means of the simple rules, in the order of [`BASELINES`].
    pub baselines: Vec<f64>,
    /// The best of the rules but the one that knows the answers.
    pub best: &'static str,
    /// By how much the scorer is better than that.
    pub gain: f64,
    /// Its 95 % interval.
    pub gain_ci: (f64, f64),
    /// The rivals.
    pub rivals: Vec<RivalMean>,
}

/// APGR after so many of a pair's own outcomes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learnt {
    /// Outcomes fitted on.
    pub outcomes: usize,
    /// Pairs that have so many and whose models differ.
    pub pairs: usize,
    /// Mean APGR over them.
    pub apgr: f64,
    /// Mean APGR over the same pairs with all their outcomes.
    pub apgr_with_all: f64,
}

/// All figures.
#[derive(Debug, Clone)]
pub struct Routing {
    /// By source and pair.
    pub pairs: Vec<PairFigures>,
    /// Over them.
    pub mean: Means,
    /// The learning curve, where it was asked for.
    pub curve: Vec<Learnt>,
    /// A fitted scorer to measure decisions with.
    pub scorer: Option<PairScorer>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Outcomes after which the learning curve is taken.
pub const CURVE: [usize; 4] = [100, 300, 1000, 3000];

/// Fits on `train`, measures on `test`. Training rows of clusters that are in the test rows are left out.
///
/// # Errors
/// No pair in common, and sentence vectors that cannot be read.
pub fn routing(train: &[Outcome], test: &[Outcome], seed: u64, curve: bool) -> Result<Routing, RoutingError> {
    routing_beside(train, test, seed, curve, &[])
}

/// The same beside rivals, who must have learnt from no more than [`unseen`] rows.
///
/// # Errors
/// As [`routing`].
pub fn routing_beside(
    train: &[Outcome],
    test: &[Outcome],
    seed: u64,
    curve: bool,
    rivals: &[Rival<'_>],
) -> Result<Routing, RoutingError> {
    let mut notes = Vec::new();
    let clean = unseen(train, test, &mut notes);
    let shared = Shared::of(clean.iter().copied());
    let mut baselines = Baseline::new()?;
    let mut tasks = Vec::new();
    for ((source, small, large), test) in by_pair(test.iter()) {
        let own = of_pair(&clean, (source, small, large));
        let pair = Pair::new(small, large);
        if own.is_empty() {
            notes.push(format!("{source}: no rows to fit {pair} on; it is left out"));
            continue;
        }
        tasks.push(Task::measure((source, pair), &own, test, &shared, &mut baselines, rivals, seed)?);
    }
    if tasks.is_empty() {
        return Err(RoutingError::NothingInCommon);
    }
    notes.extend(tasks.iter().flat_map(|task| task.notes.clone()));
    let curve = if curve { learning_curve(&tasks, seed)? } else { Vec::new() };
    let draws = Draws::new(&tasks, seed);
    let mean = draws.means(&tasks, rivals);
    let scorer = tasks.iter().max_by_key(|task| task.own.len()).and_then(|task| task.scorer.clone());
    let figures = |(place, task): (usize, Task<'_>)| PairFigures { apgr_ci: draws.interval(place), ..task.figures };
    let pairs = tasks.into_iter().enumerate().map(figures).collect();
    Ok(Routing { pairs, mean, curve, scorer, notes })
}

/// Training rows of clusters that the test rows have not.
pub fn unseen<'rows>(train: &'rows [Outcome], test: &[Outcome], notes: &mut Vec<String>) -> Vec<&'rows Outcome> {
    let tested: BTreeSet<&str> = test.iter().map(|row| row.cluster.as_str()).collect();
    let clean: Vec<&Outcome> = train.iter().filter(|row| !tested.contains(row.cluster.as_str())).collect();
    if clean.len() < train.len() {
        let left_out = train.len() - clean.len();
        notes.push(format!("{left_out} training rows are about prompts of the test rows and were left out"));
    }
    clean
}

fn of_pair<'rows>(rows: &[&'rows Outcome], pair: (&str, &str, &str)) -> Vec<&'rows Outcome> {
    rows.iter().filter(|row| (&*row.source, &*row.small, &*row.large) == pair).copied().collect()
}

type PairRows<'rows> = BTreeMap<(&'rows str, &'rows str, &'rows str), Vec<&'rows Outcome>>;

fn by_pair<'rows>(rows: impl Iterator<Item = &'rows Outcome>) -> PairRows<'rows> {
    let mut pairs = PairRows::new();
    for row in rows {
        pairs.entry((&row.source, &row.small, &row.large)).or_default().push(row);
    }
    pairs
}

/// A pair on a source, measured.
struct Task<'rows> {
    own: Vec<&'rows Outcome>,
    test: Vec<&'rows Outcome>,
    scorer: Option<PairScorer>,
    figures: PairFigures,
    /// Of the scorer, then of the simple rules, then of the rivals.
    frontiers: Vec<Frontier>,
    notes: Vec<String>,
}

impl<'rows> Task<'rows> {
    fn measure(
        (source, pair): (&str, Pair),
        own: &[&'rows Outcome],
        test: Vec<&'rows Outcome>,
        shared: &Shared,
        baselines: &mut Baseline,
        rivals: &[Rival<'_>],
        seed: u64,
    ) -> Result<Self, RoutingError> {
        let mut notes = Vec::new();
        let fitted = match blend(&pair, own, shared, seed, "") {
            Ok(fitted) => Some(fitted),
            Err(BlendError::Fit(error)) => {
                notes.push(format!("{source}: {pair}: no scorer ({error}); every row gets the same score"));
                None
            }
            Err(BlendError::Calibration(error)) => {
                notes.push(format!("{source}: {pair}: no scorer ({error}); every row gets the same score"));
                None
            }
        };
        let scorer = fitted.as_ref().map(|fitted| fitted.scorer.clone());
        let base_rate = own.iter().filter(|row| row.small_suffices()).count() as f64 / own.len().max(1) as f64;
        let mut scored = Vec::with_capacity(test.len());
        let mut ordered = Vec::with_capacity(test.len());
        for row in &test {
            let turns = [Turn::user(&row.prompt)];
            let (score, order) = match &scorer {
                Some(scorer) => (scorer.score_turns(&turns)?.get(), scorer.raw(&turns)),
                None => (base_rate, 0.0),
            };
            scored.push(Scored { score, suffices: row.small_suffices() });
            ordered.push(order);
        }
        let rows = |scores: &[f64]| ordered_by(&test, scores);
        let differs = differ(&rows(&ordered));
        let mut frontiers = vec![Frontier::new(&rows(&ordered))];
        frontiers.extend(baselines.scores(own, &test).iter().map(|scores| Frontier::new(&rows(scores))));
        for rival in rivals {
            let scores: Vec<f64> = test.iter().map(|row| (rival.score)(source, &pair, &row.prompt)).collect();
            frontiers.push(Frontier::new(&rows(&scores)));
        }
        let once = |_: usize| 1.0;
        let apgr =
            |from: usize, most: usize| frontiers.iter().skip(from).take(most).map(|one| one.apgr(once)).collect();
        let cpt = |recovered| frontiers.first().and_then(|frontier| frontier.cpt(recovered));
        let figures = PairFigures {
            source: source.to_owned(),
            n: test.len(),
            fitted_on: own.len(),
            differs,
            apgr: frontiers.first().and_then(|frontier| frontier.apgr(once)),
            apgr_ci: None,
            cpt50: cpt(0.5),
            cpt80: cpt(0.8),
            auc: auc(&scored),
            ece: reliability(&scored, ECE_BINS).ece_debiased,
            ece_perfect: perfect(&scored, seed),
            baselines: apgr(1, BASELINES.len()),
            rivals: apgr(1 + BASELINES.len(), rivals.len()),
            shares: fitted.map(|fitted| fitted.shares).unwrap_or_default(),
            pair,
        };
        Ok(Self { own: own.to_vec(), test, scorer, figures, frontiers, notes })
    }

    /// APGR on the test rows of a scorer that learnt from some of the training rows.
    fn apgr_after(&self, rows: &[&Outcome], seed: u64) -> Option<f64> {
        let shared = Shared::of(rows.iter().copied());
        let scorer = super::blend::raw(rows, &shared, seed).ok()?.scorer;
        let rows: Vec<frontier::Scored> = self
            .test
            .iter()
            .map(|row| frontier::Scored {
                score: scorer.score(&[Turn::user(&row.prompt)]),
                small: row.small_quality,
                large: row.large_quality,
            })
            .collect();
        Frontier::new(&rows).apgr(|_| 1.0)
    }
}

/// Test rows with what orders them.
fn ordered_by(test: &[&Outcome], scores: &[f64]) -> Vec<frontier::Scored> {
    let row = |(row, score): (&&Outcome, &f64)| frontier::Scored {
        score: *score,
        small: row.small_quality,
        large: row.large_quality,
    };
    test.iter().zip(scores).map(row).collect()
}

/// Mean APGR after the first of each pair's own outcomes, in an order by hash.
fn learning_curve(tasks: &[Task<'_>], seed: u64) -> Result<Vec<Learnt>, RoutingError> {
    let mut curve = Vec::new();
    for outcomes in CURVE {
        let mut found = Vec::new();
        for task in tasks.iter().filter(|task| task.figures.differs && task.own.len() >= outcomes) {
            let mut rows = task.own.clone();
            rows.sort_by_key(|row| place("curve", &row.id));
            rows.truncate(outcomes);
            found.push((task.apgr_after(&rows, seed).unwrap_or(0.5), task.apgr_after(&task.own, seed).unwrap_or(0.5)));
        }
        let mean = |pick: fn(&(f64, f64)) -> f64| found.iter().map(pick).sum::<f64>() / found.len().max(1) as f64;
        if !found.is_empty() {
            let (apgr, apgr_with_all) = (mean(|pair| pair.0), mean(|pair| pair.1));
            curve.push(Learnt { outcomes, pairs: found.len(), apgr, apgr_with_all });
        }
    }
    Ok(curve)
}

/// The middle 95 % of the calibration error of scores that are right: outcomes are drawn from the scores themselves.
fn perfect(scored: &[Scored], seed: u64) -> (f64, f64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut drawn = || {
        let rows: Vec<Scored> = scored
            .iter()
            .map(|row| Scored { suffices: random.random_bool(row.score.clamp(0.0, 1.0)), ..*row })
            .collect();
        reliability(&rows, ECE_BINS).ece_debiased
    };
    middle((0..PERFECT_DRAWS).map(|_| drawn()).collect())
}

/// The middle 95 % of values; zeros without any.
fn middle(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get((share * values.len().saturating_sub(1) as f64).round() as usize).copied();
    (at(0.025).unwrap_or(0.0), at(0.975).unwrap_or(0.0))
}

/// Draws clusters of test rows with replacement, the same for all tasks, and calls `take` with how often a row of a task
/// counts then.
fn drawn<T>(tests: &[&[&Outcome]], seed: u64, mut take: impl FnMut(&dyn Fn(usize, usize) -> f64) -> T) -> Vec<T> {
    let mut clusters: BTreeMap<&str, usize> = BTreeMap::new();
    let mut places: Vec<Vec<usize>> = Vec::with_capacity(tests.len());
    for test in tests {
        let mut rows = Vec::with_capacity(test.len());
        for row in *test {
            let next = clusters.len();
            rows.push(*clusters.entry(&row.cluster).or_insert(next));
        }
        places.push(rows);
    }
    let mut random = StdRng::seed_from_u64(seed);
    let all = clusters.len();
    let mut draw = || {
        let mut counts = vec![0.0_f64; all];
        for _ in 0..all {
            if let Some(count) = counts.get_mut(random.random_range(0..all)) {
                *count += 1.0;
            }
        }
        take(&|task: usize, row: usize| {
            let cluster = places.get(task).and_then(|places| places.get(row));
            cluster.and_then(|cluster| counts.get(*cluster)).copied().unwrap_or(0.0)
        })
    };
    (0..DRAWS).map(|_| draw()).collect()
}

/// APGR of every task and rule under draws of clusters.
struct Draws {
    /// By draw, task and rule.
    apgr: Vec<Vec<Vec<Option<f64>>>>,
}

impl Draws {
    fn new(tasks: &[Task<'_>], seed: u64) -> Self {
        let tests: Vec<&[&Outcome]> = tasks.iter().map(|task| task.test.as_slice()).collect();
        let apgr = drawn(&tests, seed, |count| {
            let rules = |(task, measured): (usize, &Task<'_>)| {
                measured.frontiers.iter().map(|frontier| frontier.apgr(|row| count(task, row))).collect()
            };
            tasks.iter().enumerate().map(rules).collect()
        });
        Self { apgr }
    }

    fn interval(&self, task: usize) -> Option<(f64, f64)> {
        let values: Vec<f64> = self.apgr.iter().filter_map(|draw| draw.get(task)?.first().copied().flatten()).collect();
        (!values.is_empty()).then(|| middle(values))
    }

    fn means(&self, tasks: &[Task<'_>], rivals: &[Rival<'_>]) -> Means {
        let counted: Vec<usize> =
            (0..tasks.len()).filter(|place| tasks.get(*place).is_some_and(|t| t.figures.differs)).collect();
        let once: Vec<Vec<Option<f64>>> =
            tasks.iter().map(|task| task.frontiers.iter().map(|frontier| frontier.apgr(|_| 1.0)).collect()).collect();
        let mean = |draw: &[Vec<Option<f64>>], rule: usize| {
            let value = |place: &usize| draw.get(*place).and_then(|rules| rules.get(rule).copied().flatten());
            let values: Vec<f64> = counted.iter().filter_map(value).collect();
            values.iter().sum::<f64>() / values.len().max(1) as f64
        };
        let baselines: Vec<f64> = (1..=BASELINES.len()).map(|rule| mean(&once, rule)).collect();
        let fair = baselines.iter().enumerate().filter(|(place, _)| BASELINES.get(*place) != Some(&baseline::ORACLE));
        let best = fair.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(place, _)| place);
        let gain = |one: usize, other: usize| {
            let drawn = self.apgr.iter().map(|draw| mean(draw, one) - mean(draw, other)).collect();
            (mean(&once, one) - mean(&once, other), middle(drawn))
        };
        let first = 1 + BASELINES.len();
        let rival = |(place, rival): (usize, &Rival<'_>)| RivalMean {
            name: rival.name,
            apgr: mean(&once, first + place),
            gains: [0].into_iter().chain(first..first + place).map(|other| gain(first + place, other)).collect(),
        };
        Means {
            pairs: counted.len(),
            apgr: mean(&once, 0),
            gain: gain(0, best + 1).0,
            gain_ci: gain(0, best + 1).1,
            rivals: rivals.iter().enumerate().map(rival).collect(),
            best: BASELINES.get(best).copied().unwrap_or_default(),
            baselines,
        }
    }
}

#[cfg(test)]
mod tests;
