//! Fitting a scorer as a blend of plain parts: words, characters, surface features, trees over shapes, a line over the
//! sentence vector and the rows near it.
//!
//! Each part is fitted apart, most of them by ridge regression on how much better the small model was. What each is worth
//! shows on rows it has not seen (stacking; Wolpert, 1992; Breiman, "Stacked regressions", 1996, whose weights are not
//! negative): five folds give every row a value from every part, and the shares that explain the grades best are kept,
//! drawn towards those before as if `PRIOR_ROWS` rows had spoken for them. Parts of one kind add up to one part, so that the
//! blend costs no more than one of each kind.
//!
//! Two targets are known of a row: how its own pair of models did, and how the same prompt went for other pairs as well.
//! The latter has less noise, the former is what is wanted; words are fitted on both, and the shares decide.

mod near;
mod pool;
mod shares;

use super::features::{GROUPS, Sink, visit};
use super::learner::FitError;
use super::memory::{DIMS, Meaning, Memory};
use super::sense::{Nearness, Sense};
use super::shape::{SHAPES, shapes};
use super::sparse::{Row, dot, ridge};
use super::surface::{LENGTH, SURFACE};
use super::trees::Trees;
use super::{Scorer, Turn, group_norm, region};
use crate::embed::{EmbedError, StaticEmbedder};
use pool::Pooled;
use shares::Shares;

pub use pool::{Common, Pool};

/// One graded conversation.
#[derive(Debug, Clone, Copy)]
pub struct Case<'text> {
    /// The conversation.
    pub turns: &'text [Turn<'text>],
    /// Quality of the small model's answer less that of the large one's, in `[-1, 1]`.
    pub advantage: f32,
    /// The same, averaged over all pairs of models that were asked this, each pair brought to mean 0 and deviation 1; 0 for
    /// no news.
    pub shared: f32,
    /// How many cases this one stands for; above 0.
    pub weight: f32,
    /// Near-duplicates have the same number: they are never torn apart.
    pub group: u64,
    /// Whether its sentence vector may be kept in the scorer. What it says is learnt either way.
    pub remembered: bool,
}

/// A fitted blend.
#[derive(Debug, Clone)]
pub struct Blend {
    /// Gives raw scores: expected advantage, in deviations of the advantages it was fitted on.
    pub scorer: Scorer,
    /// For each case the raw score of a blend whose parts have not seen its group.
    pub held_out: Vec<f64>,
    /// What each part is worth, by name; 0 where it does not help.
    pub shares: [(&'static str, f32); PARTS],
}

/// Parts of a blend.
pub const PARTS: usize = 11;

const NAMES: [&str; PARTS] = [
    "words",
    "words, all pairs",
    "words, all prompts",
    "characters",
    "surface",
    "length",
    "trees over shapes",
    "trees over shapes, all pairs",
    "meaning, all prompts",
    "memory",
    "memory, all pairs",
];

/// Table of a blend: words in one half, characters in the other.
const BITS: u32 = 18;

const FOLDS: u64 = 5;
const WORDS_ALPHA: f32 = 4.0;
const CHARACTERS_ALPHA: f32 = 8.0;
const SURFACE_ALPHA: f32 = 100.0;

/// Shares before count as much as this many rows.
const PRIOR_ROWS: f64 = 300.0;

/// Shares before any row has spoken. Those of 0 must be earned: where outcomes are few, parts that help seldom only blur.
const PRIOR_SHARES: [f64; PARTS] = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0, 0.1, 0.0, 0.0, 0.0];

/// Fits a blend; the pool may have learnt from the same prompts.
///
/// # Errors
/// No cases, fewer than two groups, or a case with an advantage outside `[-1, 1]` or a weight not above 0.
pub fn fit(cases: &[Case<'_>], pool: &Pool, seed: u64) -> Result<Blend, FitError> {
    check(cases)?;
    let rows = Rows::of(cases)?;
    let nearness = near::nearness(&rows);
    let all: Vec<usize> = (0..cases.len()).collect();
    let mut values = vec![[0.0_f32; PARTS]; cases.len()];
    for fold in 0..FOLDS {
        let held = |place: &usize| rows.folds.get(*place) == Some(&fold);
        let (test, learn): (Vec<usize>, Vec<usize>) = all.iter().partition(|place| held(place));
        if test.is_empty() {
            continue;
        }
        let parts = rows.parts(&learn, pool.without(Some(fold)), (seed, nearness));
        for place in test {
            if let (Some(values), Some(view)) = (values.get_mut(place), rows.views.get(place)) {
                *values = parts.values(view);
            }
        }
    }
    let shares = Shares::of(&values, &rows);
    let held_out = values.iter().map(|values| shares.blended(values)).collect();
    let scorer = rows.parts(&all, pool.without(None), (seed, nearness)).scorer(&shares, cases.len() as u64)?;
    let mut named = NAMES.map(|name| (name, 0.0));
    for ((_, share), value) in named.iter_mut().zip(shares.worth) {
        *share = value as f32;
    }
    Ok(Blend { scorer, held_out, shares: named })
}

fn check(cases: &[Case<'_>]) -> Result<(), FitError> {
    let Some(first) = cases.first() else { return Err(FitError::Empty) };
    if cases.iter().all(|case| case.group % FOLDS == first.group % FOLDS) {
        return Err(FitError::OneGroup { cases: cases.len() });
    }
    for (place, Case { advantage, shared, weight, .. }) in cases.iter().enumerate() {
        if !((-1.0..=1.0).contains(advantage) && shared.is_finite() && weight.is_finite() && *weight > 0.0) {
            return Err(FitError::Example { place, target: *advantage, weight: *weight });
        }
    }
    Ok(())
}

/// What the parts see of a conversation.
struct View {
    words: Row,
    characters: Row,
    surface: [f32; SURFACE],
    shapes: [f32; SHAPES],
    meaning: Meaning,
}

impl View {
    fn of(embedder: &StaticEmbedder, turns: &[Turn<'_>]) -> Self {
        let mut groups = Groups::default();
        let surface = visit(turns, BITS, &mut groups).values();
        let [words, characters] = groups.rows();
        Self { words, characters, surface, shapes: shapes(turns), meaning: Meaning::of(embedder, turns) }
    }
}

/// Slots by group.
#[derive(Default)]
struct Groups([Vec<u32>; GROUPS]);

impl Groups {
    /// Words and characters.
    fn rows(self) -> [Row; 2] {
        let mut rows = [Row::new(), Row::new()];
        for (group, mut slots) in self.0.into_iter().enumerate() {
            let norm = group_norm(slots.len() as u32) as f32;
            slots.sort_unstable();
            let characters = group % 2;
            for same in slots.chunk_by(|a, b| a == b) {
                // A word counts once, however often it is said.
                let times = if characters == 1 { same.len() as f32 } else { 1.0 };
                if let (Some(row), Some(slot)) = (rows.get_mut(characters), same.first()) {
                    row.push((*slot, norm * times));
                }
            }
        }
        rows
    }
}

impl Sink for Groups {
    fn slots<const N: usize>(&mut self, group: usize, slots: [usize; N]) {
        if let Some(group_slots) = self.0.get_mut(group) {
            group_slots.extend(slots.map(|slot| region(group, slot, BITS) as u32));
        }
    }
}

/// All cases as the parts see them, with targets of mean 0 and deviation 1.
struct Rows {
    views: Vec<View>,
    own: Vec<f32>,
    shared: Vec<f32>,
    weights: Vec<f32>,
    groups: Vec<u64>,
    folds: Vec<u64>,
    remembered: Vec<bool>,
}

impl Rows {
    fn of(cases: &[Case<'_>]) -> Result<Self, EmbedError> {
        let weights: Vec<f32> = cases.iter().map(|case| case.weight).collect();
        let embedder = StaticEmbedder::shared()?;
        Ok(Self {
            views: cases.iter().map(|case| View::of(&embedder, case.turns)).collect(),
            own: standard(cases.iter().map(|case| case.advantage), &weights),
            shared: standard(cases.iter().map(|case| case.shared), &weights),
            weights,
            groups: cases.iter().map(|case| case.group).collect(),
            folds: cases.iter().map(|case| case.group % FOLDS).collect(),
            remembered: cases.iter().map(|case| case.remembered).collect(),
        })
    }

    /// The parts as fitted on some of the rows.
    fn parts<'pool>(
        &self,
        learn: &[usize],
        pooled: Option<&'pool Pooled>,
        (seed, nearness): (u64, Nearness),
    ) -> Parts<'pool> {
        let pick =
            |values: &[f32]| -> Vec<f32> { learn.iter().filter_map(|place| values.get(*place)).copied().collect() };
        let (own, shared, weights) = (pick(&self.own), pick(&self.shared), pick(&self.weights));
        let views: Vec<&View> = learn.iter().filter_map(|place| self.views.get(*place)).collect();
        let table = |row: fn(&View) -> &Row, targets: &[f32], alpha| {
            let rows: Vec<&Row> = views.iter().map(|view| row(view)).collect();
            ridge(&rows, targets, &weights, alpha, 1 << BITS)
        };
        let memory = |values: &[f32]| near::remembered(self, learn, |place| values.get(place).copied().unwrap_or(0.0));
        let shapes: Vec<[f32; SHAPES]> = views.iter().map(|view| view.shapes).collect();
        Parts {
            tables: [
                table(|view| &view.words, &own, WORDS_ALPHA),
                table(|view| &view.words, &shared, WORDS_ALPHA),
                table(|view| &view.characters, &own, CHARACTERS_ALPHA),
            ],
            surface: surface(&views, &own, &weights, |_| true),
            trees: [&own, &shared].map(|targets| Trees::fit(&shapes, targets, &weights, seed)),
            length: surface(&views, &own, &weights, |place| place == LENGTH),
            memories: [memory(&self.own), memory(&self.shared)],
            nearness,
            pooled,
        }
    }
}

/// Values brought to mean 0 and deviation 1; all 0 where they are all alike.
fn standard(values: impl Iterator<Item = f32> + Clone, weights: &[f32]) -> Vec<f32> {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let mean = |values: &mut dyn Iterator<Item = f64>| -> f64 {
        values.zip(weights).map(|(value, weight)| value * f64::from(*weight)).sum::<f64>() / total
    };
    let middle = mean(&mut values.clone().map(f64::from));
    let deviation = mean(&mut values.clone().map(|value| (f64::from(value) - middle).powi(2))).sqrt();
    values.map(|value| if deviation > 0.0 { ((f64::from(value) - middle) / deviation) as f32 } else { 0.0 }).collect()
}

/// Ridge regression on some of the surface features, each brought to mean 0 and deviation 1 first; weights for the plain
/// features, the bias first.
fn surface(views: &[&View], targets: &[f32], weights: &[f32], used: impl Fn(usize) -> bool) -> [f32; SURFACE] {
    let mut scales = [(0.0, 0.0); SURFACE];
    let mut rows = vec![Row::new(); views.len()];
    for (place, scale) in scales.iter_mut().enumerate().skip(1).filter(|(place, _)| used(*place)) {
        let column: Vec<f32> = views.iter().filter_map(|view| view.surface.get(place)).copied().collect();
        let count = column.len().max(1) as f32;
        let mean = column.iter().sum::<f32>() / count;
        let deviation = (column.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count).sqrt();
        if deviation < 1e-6 {
            continue;
        }
        *scale = (mean, deviation);
        for (row, value) in rows.iter_mut().zip(column) {
            row.push((place as u32, (value - mean) / deviation));
        }
    }
    let solved = ridge(&rows.iter().collect::<Vec<_>>(), targets, weights, SURFACE_ALPHA, SURFACE);
    let mut plain = [0.0; SURFACE];
    let mut bias = solved.last().copied().unwrap_or(0.0);
    for ((plain, weight), (mean, deviation)) in plain.iter_mut().zip(&solved).zip(scales) {
        if deviation > 0.0 {
            *plain = weight / deviation;
            bias -= *plain * mean;
        }
    }
    plain[0] = bias;
    plain
}

/// Fitted parts, not yet weighed.
struct Parts<'pool> {
    tables: [Vec<f32>; 3],
    surface: [f32; SURFACE],
    trees: [Trees; 2],
    length: [f32; SURFACE],
    /// Of the same rows.
    memories: [Memory; 2],
    nearness: Nearness,
    pooled: Option<&'pool Pooled>,
}

impl Parts<'_> {
    /// What each part says of a conversation.
    fn values(&self, view: &View) -> [f32; PARTS] {
        let plain =
            |weights: &[f32; SURFACE]| weights.iter().zip(view.surface).map(|(weight, value)| weight * value).sum();
        let near =
            |memory: &Memory| memory.look(&view.meaning, self.nearness.sharpness).estimate(self.nearness.held_back);
        let [own, shared, characters] = &self.tables;
        let [near_own, near_shared] = &self.memories;
        let [trees_own, trees_shared] = &self.trees;
        [
            dot(own, &view.words),
            dot(shared, &view.words),
            self.pooled.map_or(0.0, |pooled| dot(&pooled.words, &view.words)),
            dot(characters, &view.characters),
            plain(&self.surface),
            plain(&self.length),
            trees_own.value(&view.shapes) as f32,
            trees_shared.value(&view.shapes) as f32,
            self.pooled.map_or(0.0, |pooled| pooled.line(&view.meaning)),
            near(near_own),
            near(near_shared),
        ]
    }

    /// One scorer that gives the blend of all parts.
    fn scorer(self, shares: &Shares, seen: u64) -> Result<Scorer, EmbedError> {
        let [own, shared, all, characters, surface, length, trees_own, trees_shared, line, near_own, near_shared] =
            shares.factors.map(|factor| factor as f32);
        let mut table = vec![0.0_f32; 1 << BITS];
        let mut sums = [0.0_f32; SURFACE];
        let pooled = self.pooled.map_or(&[][..], |pooled| &pooled.words);
        let tables = self.tables.iter().map(Vec::as_slice).zip([own, shared, characters]);
        for (weights, factor) in tables.chain([(pooled, all)]) {
            for (sum, weight) in table.iter_mut().zip(weights) {
                *sum += weight * factor;
            }
            sums[0] += weights.last().copied().unwrap_or(0.0) * factor;
        }
        for (weights, factor) in [(self.surface, surface), (self.length, length)] {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight * factor;
            }
        }
        let (line, bias) = self.pooled.map_or(([0.0; DIMS], 0.0), |pooled| pooled.times(line));
        sums[0] += bias;
        let [grown, others] = self.trees;
        let trees = grown.times(trees_own).and(others.times(trees_shared));
        let [own, shared] = self.memories;
        let memory = own.plus((near_own, near_shared), &shared);
        let sense = Sense::new(line, memory, self.nearness)?;
        Ok(Scorer::rounded(&table, sums, seen, true).with(trees, Some(sense)))
    }
}

#[cfg(test)]
mod tests;
