//! What it is worth that a big scorer teaches the linear one: the same student on the same rows, with a teacher and without,
//! measured on rows that neither saw.
//!
//! Differences are paired: they are taken within each draw of clusters, pair by pair, and averaged over seeds.

use super::{RoutingError, by_pair, drawn, middle, of_pair, ordered_by, unseen};
use crate::evidence::calibration::{Calibration, Ranks, Scored};
use crate::evidence::frontier::{Frontier, differ};
use crate::evidence::outcome::Outcome;
use crate::score::blend::{BlendError, Shared, blend};
use crate::score::student::{Lesson, Teacher, linear};
use crate::score::train::place;
use crate::score::{Pair, PairScorer};
use local_worker::scorer::{FitOptions, Scorer, Turn};
use std::collections::{BTreeMap, BTreeSet};

/// What is compared: the student on grades alone, taught on the graded prompts, taught on prompts without grades as well,
/// and the teacher itself.
pub const ARMS: [&str; 4] = ["grades alone", "taught", "taught, more prompts", "teacher"];

/// Fits of everything, each with a seed of its own.
const SEEDS: u64 = 3;

/// Most prompts without grades that a student is taught on.
const MORE_PROMPTS: usize = 3000;

/// Figures of one arm, means over seeds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Arm {
    /// Mean performance gap recovered; `None` where there is no gap.
    pub apgr: Option<f64>,
    /// How well scores rank rows where the small model suffices above others; `None` with one class only.
    pub auc: Option<f64>,
}

/// Figures of one pair on one source.
#[derive(Debug, Clone, PartialEq)]
pub struct StudentFigures {
    /// The data set.
    pub source: String,
    /// The models.
    pub pair: Pair,
    /// Test rows.
    pub n: usize,
    /// Rows fitted on.
    pub fitted_on: usize,
    /// Prompts without grades that the third arm is taught on.
    pub more_prompts: usize,
    /// Whether the models' qualities differ at 95 %; only then does the pair count for means of APGR.
    pub differs: bool,
    /// In the order of [`ARMS`].
    pub arms: [Arm; ARMS.len()],
}

/// By how much an arm is better than the student on grades alone, means over pairs and seeds, with 95 % intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct Gain {
    /// In APGR.
    pub apgr: f64,
    /// Its interval.
    pub apgr_ci: (f64, f64),
    /// In AUC.
    pub auc: f64,
    /// Its interval.
    pub auc_ci: (f64, f64),
    /// In APGR, by seed.
    pub apgr_by_seed: Vec<f64>,
    /// In AUC, by seed.
    pub auc_by_seed: Vec<f64>,
}

/// All figures.
#[derive(Debug, Clone)]
pub struct Students {
    /// By source and pair.
    pub pairs: Vec<StudentFigures>,
    /// Means over pairs, in the order of [`ARMS`].
    pub means: [Arm; ARMS.len()],
    /// Of all arms but the first, in their order.
    pub gains: Vec<Gain>,
    /// Taught student and teacher of the pair with most rows, to time.
    pub timed: Option<(PairScorer, PairScorer)>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A pair on a source, measured.
struct Task<'rows> {
    test: Vec<&'rows Outcome>,
    differs: bool,
    /// By seed and arm.
    orders: Vec<[(Frontier, Ranks); ARMS.len()]>,
}

/// Fits on `train`, measures on `test`; `soft` is how much the teacher counts beside the grades, 0 to 1. Training rows of
/// clusters that are in the test rows are left out.
///
/// # Errors
/// No pair has rows for both.
pub fn students(train: &[Outcome], test: &[Outcome], seed: u64, soft: f32) -> Result<Students, RoutingError> {
    let mut notes = Vec::new();
    let clean = unseen(train, test, &mut notes);
    let shared = Shared::of(clean.iter().copied());
    let mut prompts: BTreeMap<&str, &str> = BTreeMap::new();
    for row in &clean {
        prompts.entry(&row.cluster).or_insert(&row.prompt);
    }
    let (mut tasks, mut pairs, mut timed) = (Vec::new(), Vec::new(), None);
    let mut most = 0;
    for ((source, small, large), test) in by_pair(test.iter()) {
        let own = of_pair(&clean, (source, small, large));
        let pair = Pair::new(small, large);
        let more = more_prompts(&prompts, &own);
        let (task, fitted) = match Task::measure(&own, test, &shared, (seed, soft), &more) {
            Ok(measured) => measured,
            Err(error) => {
                notes.push(format!("{source}: {pair}: left out: {error}"));
                continue;
            }
        };
        pairs.push(StudentFigures {
            source: source.to_owned(),
            n: task.test.len(),
            fitted_on: own.len(),
            more_prompts: more.len(),
            differs: task.differs,
            arms: std::array::from_fn(|arm| task.arm(arm)),
            pair: pair.clone(),
        });
        if own.len() > most {
            most = own.len();
            timed = timed_pair(pair, &own, &shared, seed, fitted);
        }
        tasks.push(task);
    }
    if tasks.is_empty() {
        return Err(RoutingError::NothingInCommon);
    }
    let means = std::array::from_fn(|arm| {
        let of = |figure: &dyn Fn(&StudentFigures) -> Option<f64>| mean(pairs.iter().filter_map(figure));
        Arm {
            apgr: of(&|pair| pair.arms.get(arm)?.apgr.filter(|_| pair.differs)),
            auc: of(&|pair| pair.arms.get(arm)?.auc),
        }
    });
    let gains = gains(&tasks, seed);
    Ok(Students { pairs, means, gains, timed, notes })
}

/// Prompts of other pairs, one of each cluster that this one has no grade of, in an order by hash.
fn more_prompts<'rows>(prompts: &BTreeMap<&str, &'rows str>, own: &[&Outcome]) -> Vec<&'rows str> {
    let graded: BTreeSet<&str> = own.iter().map(|row| row.cluster.as_str()).collect();
    let mut more: Vec<(u64, &str)> = prompts
        .iter()
        .filter(|(cluster, _)| !graded.contains(*cluster))
        .map(|(cluster, prompt)| (place("more prompts", cluster), *prompt))
        .collect();
    more.sort_unstable();
    more.into_iter().take(MORE_PROMPTS).map(|(_, prompt)| prompt).collect()
}

impl<'rows> Task<'rows> {
    fn measure(
        own: &[&Outcome],
        test: Vec<&'rows Outcome>,
        shared: &Shared,
        (seed, soft): (u64, f32),
        more: &[&str],
    ) -> Result<(Self, Scorer), BlendError> {
        let (mut orders, mut last) = (Vec::new(), None);
        for seed in seed..seed + SEEDS {
            let options = FitOptions { seed, ..FitOptions::default() };
            let teacher = Teacher::fit(own, shared, seed)?;
            let taught = |unlabelled| Lesson { teacher: &teacher, soft, unlabelled };
            let alone = linear(own, options, None)?;
            let plainly = linear(own, options, Some(&taught(&[])))?;
            let widely = linear(own, options, Some(&taught(more)))?;
            let by = |scorer: &Scorer| order(&test, |prompt| scorer.score(&[Turn::user(prompt)]));
            orders.push([by(&alone), by(&plainly), by(&widely), order(&test, |prompt| teacher.says(prompt))]);
            last = Some(plainly);
        }
        let qualities = ordered_by(&test, &vec![0.0; test.len()]);
        let student = last.ok_or(local_worker::scorer::FitError::Empty)?;
        Ok((Self { test, differs: differ(&qualities), orders }, student))
    }

    fn arm(&self, arm: usize) -> Arm {
        let figures = || self.orders.iter().filter_map(|arms| arms.get(arm));
        Arm {
            apgr: mean(figures().filter_map(|(frontier, _)| frontier.apgr(|_| 1.0))),
            auc: mean(figures().filter_map(|(_, ranks)| ranks.auc(|_| 1.0))),
        }
    }
}

fn order(test: &[&Outcome], score: impl Fn(&str) -> f64) -> (Frontier, Ranks) {
    let scores: Vec<f64> = test.iter().map(|row| score(&row.prompt)).collect();
    let scored = |(row, score): (&&Outcome, &f64)| Scored { score: *score, suffices: row.small_suffices() };
    let ranks = Ranks::new(&test.iter().zip(&scores).map(scored).collect::<Vec<_>>());
    (Frontier::new(&ordered_by(test, &scores)), ranks)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

/// Differences to the first arm, by arm, then seed: APGR and AUC.
type Differences = Vec<Vec<(f64, f64)>>;

fn differences(tasks: &[Task<'_>], count: &dyn Fn(usize, usize) -> f64) -> Differences {
    let of = |arm: usize, seed: usize| {
        let pair = |(place, task): (usize, &Task<'_>)| {
            let arms = task.orders.get(seed)?;
            let (alone, other) = (arms.first()?, arms.get(arm)?);
            let counts = |row| count(place, row);
            let less = |other: Option<f64>, alone: Option<f64>| Some(other? - alone?);
            let apgr = less(other.0.apgr(counts), alone.0.apgr(counts)).filter(|_| task.differs);
            Some((apgr, less(other.1.auc(counts), alone.1.auc(counts))))
        };
        let (apgr, auc): (Vec<Option<f64>>, Vec<Option<f64>>) = tasks.iter().enumerate().filter_map(pair).unzip();
        let of_all = |found: Vec<Option<f64>>| mean(found.into_iter().flatten()).unwrap_or(0.0);
        (of_all(apgr), of_all(auc))
    };
    (1..ARMS.len()).map(|arm| (0..SEEDS as usize).map(|seed| of(arm, seed)).collect()).collect()
}

fn gains(tasks: &[Task<'_>], seed: u64) -> Vec<Gain> {
    let tests: Vec<&[&Outcome]> = tasks.iter().map(|task| task.test.as_slice()).collect();
    let draws = drawn(&tests, seed, |count| differences(tasks, count));
    let over_seeds = |seeds: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| mean(seeds.iter().map(pick)).unwrap_or(0.0);
    let gain = |(arm, seeds): (usize, Vec<(f64, f64)>)| {
        let interval = |pick: fn(&(f64, f64)) -> f64| {
            middle(draws.iter().filter_map(|draw| Some(over_seeds(draw.get(arm)?, pick))).collect())
        };
        Gain {
            apgr: over_seeds(&seeds, |gain| gain.0),
            apgr_ci: interval(|gain| gain.0),
            auc: over_seeds(&seeds, |gain| gain.1),
            auc_ci: interval(|gain| gain.1),
            apgr_by_seed: seeds.iter().map(|gain| gain.0).collect(),
            auc_by_seed: seeds.iter().map(|gain| gain.1).collect(),
        }
    };
    differences(tasks, &|_, _| 1.0).into_iter().enumerate().map(gain).collect()
}

/// A student and its teacher as they would serve.
fn timed_pair(
    pair: Pair,
    own: &[&Outcome],
    shared: &Shared,
    seed: u64,
    student: Scorer,
) -> Option<(PairScorer, PairScorer)> {
    let teacher = blend(&pair, own, shared, seed, "").ok()?.scorer;
    let row =
        |row: &&Outcome| Scored { score: student.score(&[Turn::user(&row.prompt)]), suffices: row.small_suffices() };
    let calibration = Calibration::fit(&own.iter().map(row).collect::<Vec<_>>()).ok()?;
    Some((PairScorer::new(pair, student, calibration, String::new()), teacher))
}
