//! Encoders for long conversations, trained on outcomes (feature `lab`).
//!
//! One encoder learns from all rows it is given, whatever pair of models they are about: a prompt that many models were asked
//! is read once. What it learns of each pair is how much better than usual the small model does on a prompt, in standard
//! deviations, as the blends do.

use super::Pair;
use super::blend::HEAVIEST;
use super::long::Long;
use crate::evidence::outcome::Outcome;
use local_worker::scorer::performer::Performer;
use local_worker::scorer::performer::train::{Example, Progress, Target, TrainOptions, Trained, train};
use local_worker::scorer::{FitError, Turn};
use std::collections::BTreeMap;

/// An encoder and what it learnt of each task.
pub struct Encoders {
    trained: Trained,
    tasks: BTreeMap<String, usize>,
}

/// Sums of a task: weight, advantage, and its square.
type Sums = (f64, f64, f64);

impl Encoders {
    /// Trains on rows; `task` names the task of each.
    ///
    /// # Errors
    /// No rows, or options that can't be.
    pub fn fit(
        rows: &[&Outcome],
        task: impl Fn(&Outcome) -> String,
        options: &TrainOptions,
        told: impl FnMut(Progress),
    ) -> Result<Self, FitError> {
        let weight = |row: &Outcome| (1.0 / row.sampling_probability).min(HEAVIEST);
        let advantage = |row: &Outcome| row.small_quality - row.large_quality;
        let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
        for row in rows {
            let (sum, weight, advantage) = (sums.entry(task(row)).or_default(), weight(row), advantage(row));
            *sum = (sum.0 + weight, sum.1 + weight * advantage, sum.2 + weight * advantage * advantage);
        }
        let tasks: BTreeMap<String, usize> =
            sums.keys().enumerate().map(|(place, name)| (name.clone(), place)).collect();
        let mut prompts: BTreeMap<&str, Vec<Target>> = BTreeMap::new();
        for row in rows {
            let name = task(row);
            let (Some(task), Some((total, sum, squares))) = (tasks.get(&name), sums.get(&name)) else { continue };
            let mean = sum / total;
            let deviation = (squares / total - mean * mean).max(0.0).sqrt();
            let value = if deviation > 1e-9 { (advantage(row) - mean) / deviation } else { 0.0 };
            let target = Target { task: *task, value: value as f32, weight: weight(row) as f32 };
            prompts.entry(&row.prompt).or_default().push(target);
        }
        let example = |(prompt, targets)| Example { turns: vec![Turn::user(prompt)], targets };
        let examples: Vec<Example<'_>> = prompts.into_iter().map(example).collect();
        Ok(Self { trained: train(&examples, tasks.len(), options, told)?, tasks })
    }

    /// The encoder of a task; `None` for one that no row was about.
    pub fn of(&self, task: &str) -> Option<Performer> {
        self.trained.task(*self.tasks.get(task)?)
    }
}

/// The task of a row where every source and pair is one.
pub fn by_pair(source: &str, small: &str, large: &str) -> String {
    format!("{source}\0{small}\0{large}")
}

/// What reads long conversations for one pair: it learns from that pair's rows as one task, and from all others beside.
///
/// # Errors
/// As [`Encoders::fit`].
pub fn fit_long(
    rows: &[&Outcome],
    pair: &Pair,
    from_tokens: usize,
    options: &TrainOptions,
    told: impl FnMut(Progress),
) -> Result<Long, FitError> {
    const OWN: &str = "own";
    let any = Pair::any_large(&pair.small) == *pair;
    let task = |row: &Outcome| match row.small == pair.small && (any || row.large == pair.large) {
        true => OWN.to_owned(),
        false => by_pair(&row.source, &row.small, &row.large),
    };
    let encoder = Encoders::fit(rows, task, options, told)?.of(OWN).ok_or(FitError::Empty)?;
    Ok(Long { encoder, from_tokens })
}
