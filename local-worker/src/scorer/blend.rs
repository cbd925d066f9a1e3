//! Fitting a scorer as a blend of plain parts: words, characters, surface features and trees over shapes.
//!
//! Each part is fitted apart, most of them by ridge regression on how much better the small model was. What each is worth
//! shows on rows it has not seen (stacking; Wolpert, 1992; Breiman, "Stacked regressions", 1996, whose weights are not
//! negative): five folds give every row a value from every part, and the shares that explain the grades best are kept,
//! drawn towards equal ones as if `PRIOR_ROWS` rows had spoken for those. All parts but the trees are linear, so that the
//! blend costs no more than one of them.
//!
//! Two targets are known of a row: how its own pair of models did, and how the same prompt went for other pairs as well.
//! The latter has less noise, the former is what is wanted; words are fitted on both, and the shares decide.

use super::features::{GROUPS, Sink, visit};
use super::learner::FitError;
use super::shape::{SHAPES, shapes};
use super::sparse::{Row, dot, ridge};
use super::surface::{LENGTH, SURFACE};
use super::trees::Trees;
use super::{Scorer, Turn, group_norm, region};

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
pub const PARTS: usize = 6;

const NAMES: [&str; PARTS] =
    ["words", "words, all pairs", "characters", "surface", "trees over shapes, all pairs", "length"];

/// Table of a blend: words in one half, characters in the other.
const BITS: u32 = 18;

const FOLDS: u64 = 5;
const WORDS_ALPHA: f32 = 4.0;
const CHARACTERS_ALPHA: f32 = 8.0;
const SURFACE_ALPHA: f32 = 100.0;

/// Equal shares count as much as this many rows.
const PRIOR_ROWS: f64 = 300.0;
const PRIOR_SHARE: f64 = 0.1;

/// Fits a blend.
///
/// # Errors
/// No cases, fewer than two groups, or a case with an advantage outside `[-1, 1]` or a weight not above 0.
pub fn fit(cases: &[Case<'_>], seed: u64) -> Result<Blend, FitError> {
    check(cases)?;
    let rows = Rows::of(cases);
    let all: Vec<usize> = (0..cases.len()).collect();
    let mut values = vec![[0.0_f32; PARTS]; cases.len()];
    for fold in 0..FOLDS {
        let held = |place: &usize| cases.get(*place).is_some_and(|case| case.group % FOLDS == fold);
        let (test, learn): (Vec<usize>, Vec<usize>) = all.iter().partition(|place| held(place));
        if test.is_empty() {
            continue;
        }
        let parts = rows.parts(&learn, seed);
        for place in test {
            if let (Some(values), Some(view)) = (values.get_mut(place), rows.views.get(place)) {
                *values = parts.values(view);
            }
        }
    }
    let shares = Shares::of(&values, &rows);
    let held_out = values.iter().map(|values| shares.blended(values)).collect();
    let scorer = rows.parts(&all, seed).scorer(&shares, cases.len() as u64);
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
}

impl View {
    fn of(turns: &[Turn<'_>]) -> Self {
        let mut groups = Groups::default();
        let surface = visit(turns, BITS, &mut groups).values();
        let mut rows = [Row::new(), Row::new()];
        for (group, mut slots) in groups.0.into_iter().enumerate() {
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
        let [words, characters] = rows;
        Self { words, characters, surface, shapes: shapes(turns) }
    }
}

/// Slots by group.
#[derive(Default)]
struct Groups([Vec<u32>; GROUPS]);

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
}

impl Rows {
    fn of(cases: &[Case<'_>]) -> Self {
        let weights: Vec<f32> = cases.iter().map(|case| case.weight).collect();
        Self {
            views: cases.iter().map(|case| View::of(case.turns)).collect(),
            own: standard(cases.iter().map(|case| case.advantage), &weights),
            shared: standard(cases.iter().map(|case| case.shared), &weights),
            weights,
        }
    }

    /// The parts as fitted on some of the rows.
    fn parts(&self, learn: &[usize], seed: u64) -> Parts {
        let pick =
            |values: &[f32]| -> Vec<f32> { learn.iter().filter_map(|place| values.get(*place)).copied().collect() };
        let (own, shared, weights) = (pick(&self.own), pick(&self.shared), pick(&self.weights));
        let views: Vec<&View> = learn.iter().filter_map(|place| self.views.get(*place)).collect();
        let table = |row: fn(&View) -> &Row, targets: &[f32], alpha| {
            let rows: Vec<&Row> = views.iter().map(|view| row(view)).collect();
            ridge(&rows, targets, &weights, alpha, 1 << BITS)
        };
        let shapes: Vec<[f32; SHAPES]> = views.iter().map(|view| view.shapes).collect();
        Parts {
            tables: [
                table(|view| &view.words, &own, WORDS_ALPHA),
                table(|view| &view.words, &shared, WORDS_ALPHA),
                table(|view| &view.characters, &own, CHARACTERS_ALPHA),
            ],
            surface: surface(&views, &own, &weights, |_| true),
            trees: Trees::fit(&shapes, &shared, &weights, seed),
            length: surface(&views, &own, &weights, |place| place == LENGTH),
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
struct Parts {
    tables: [Vec<f32>; 3],
    surface: [f32; SURFACE],
    trees: Trees,
    length: [f32; SURFACE],
}

impl Parts {
    /// What each part says of a conversation.
    fn values(&self, view: &View) -> [f32; PARTS] {
        let plain =
            |weights: &[f32; SURFACE]| weights.iter().zip(view.surface).map(|(weight, value)| weight * value).sum();
        let [own, shared, characters] = &self.tables;
        [
            dot(own, &view.words),
            dot(shared, &view.words),
            dot(characters, &view.characters),
            plain(&self.surface),
            self.trees.value(&view.shapes) as f32,
            plain(&self.length),
        ]
    }

    /// One scorer that gives the blend of all parts.
    fn scorer(self, shares: &Shares, seen: u64) -> Scorer {
        let [own, shared, characters, surface, trees, length] = shares.factors;
        let mut table = vec![0.0_f32; 1 << BITS];
        let mut sums = [0.0_f32; SURFACE];
        for (weights, factor) in self.tables.iter().zip([own, shared, characters]) {
            for (sum, weight) in table.iter_mut().zip(weights) {
                *sum += weight * factor as f32;
            }
            sums[0] += weights.last().copied().unwrap_or(0.0) * factor as f32;
        }
        for (weights, factor) in [(self.surface, surface), (self.length, length)] {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight * factor as f32;
            }
        }
        Scorer::rounded(&table, sums, seen, true, self.trees.times(trees as f32))
    }
}

/// How the parts are blended.
struct Shares {
    /// What each part is worth once its values have deviation 1.
    worth: [f64; PARTS],
    /// By what each part's plain values are multiplied.
    factors: [f64; PARTS],
}

impl Shares {
    /// Least squares with shares that are not negative, by coordinate descent.
    fn of(values: &[[f32; PARTS]], rows: &Rows) -> Self {
        let column = |part: usize| values.iter().map(move |values| values[part]);
        let columns: [Vec<f32>; PARTS] = std::array::from_fn(|part| standard(column(part), &rows.weights));
        let product = |a: &[f32], b: &[f32]| -> f64 {
            let terms =
                a.iter().zip(b).zip(&rows.weights).map(|((a, b), weight)| f64::from(a * b) * f64::from(*weight));
            terms.sum()
        };
        let mut worth = [PRIOR_SHARE; PARTS];
        for _ in 0..200 {
            for part in 0..PARTS {
                let mut wanted = product(&columns[part], &rows.own) + PRIOR_ROWS * PRIOR_SHARE;
                for (other, share) in worth.iter().enumerate().filter(|(other, _)| *other != part) {
                    wanted -= share * product(&columns[part], &columns[other]);
                }
                worth[part] = (wanted / (product(&columns[part], &columns[part]) + PRIOR_ROWS)).max(0.0);
            }
        }
        let total: f64 = rows.weights.iter().map(|weight| f64::from(*weight)).sum();
        let factors = std::array::from_fn(|part| {
            let mean = column(part).zip(&rows.weights).map(|(v, w)| f64::from(v * w)).sum::<f64>() / total;
            let spread = column(part)
                .zip(&rows.weights)
                .map(|(v, w)| (f64::from(v) - mean).powi(2) * f64::from(*w))
                .sum::<f64>();
            let deviation = (spread / total).sqrt();
            if deviation > 1e-6 { worth[part] / deviation } else { 0.0 }
        });
        for (worth, factor) in worth.iter_mut().zip(factors) {
            if factor == 0.0 {
                *worth = 0.0;
            }
        }
        Self { worth, factors }
    }

    fn blended(&self, values: &[f32; PARTS]) -> f64 {
        values.iter().zip(self.factors).map(|(value, factor)| f64::from(*value) * factor).sum()
    }
}

#[cfg(test)]
mod tests;
