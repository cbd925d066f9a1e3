//! The parts of a blend that read the sentence vector: a line over it, and the rows near it.

use super::super::memory::{DIMS, Meaning, Memory};
use super::super::sense::Nearness;
use super::super::sparse::{Row, ridge};
use super::{FOLDS, Rows};

/// How fast weight may fall off; the one that foretells best is used.
const SHARPNESS: [f32; 4] = [3.0, 6.0, 10.0, 16.0];
const HELD_BACK: f32 = 1.0;
const LINE_ALPHA: f32 = 20.0;

/// Rows a scorer remembers at most: a scan of all takes some microseconds.
pub(super) const MOST_ROWS: usize = 2048;

/// One row in so many is odder than what counts as familiar.
const ODD: usize = 20;

/// What training rows say about how near is near, and which sharpness foretells best; by folds, so that no row is near itself.
pub(super) fn nearness(rows: &Rows) -> Nearness {
    let mut estimates = vec![[0.0_f32; SHARPNESS.len()]; rows.own.len()];
    let mut nearest = Vec::with_capacity(rows.own.len());
    for fold in 0..FOLDS {
        let (test, learn): (Vec<usize>, Vec<usize>) =
            (0..rows.own.len()).partition(|place| rows.folds.get(*place) == Some(&fold));
        let memory = remembered(rows, &learn, |place| rows.own.get(place).copied().unwrap_or(0.0));
        if memory.rows() == 0 {
            continue;
        }
        for place in test {
            let (Some(view), Some(estimates)) = (rows.views.get(place), estimates.get_mut(place)) else { continue };
            for (estimate, sharpness) in estimates.iter_mut().zip(SHARPNESS) {
                let near = memory.look(&view.meaning, sharpness);
                *estimate = near.estimate(HELD_BACK);
                if sharpness == SHARPNESS[0] {
                    nearest.push(near.nearest);
                }
            }
        }
    }
    let worth = |at: usize| {
        let column = estimates.iter().filter_map(|estimates| estimates.get(at)).copied();
        super::standard(column, &rows.weights).iter().zip(&rows.own).map(|(a, b)| f64::from(a * b)).sum::<f64>()
    };
    let best = (0..SHARPNESS.len()).max_by(|a, b| worth(*a).total_cmp(&worth(*b))).unwrap_or(0);
    nearest.sort_unstable_by(f32::total_cmp);
    let at = |place: usize| nearest.get(place).copied().unwrap_or(1.0);
    let (odd, usual) = (at(nearest.len() / ODD), at(nearest.len() / 2));
    // As far below the oddest as those are below the usual, and at least a twentieth of the way to nothing in common.
    let strange = odd - (usual - odd).max(0.05);
    Nearness { sharpness: SHARPNESS.get(best).copied().unwrap_or(6.0), held_back: HELD_BACK, strange, familiar: odd }
}

/// A memory of those of the rows that may be remembered, evenly thinned where there are too many.
pub(super) fn remembered(rows: &Rows, learn: &[usize], value: impl Fn(usize) -> f32) -> Memory {
    let mut kept: Vec<usize> =
        learn.iter().copied().filter(|place| rows.remembered.get(*place).is_some_and(|may| *may)).collect();
    if kept.len() > MOST_ROWS {
        kept.sort_by_key(|place| rows.groups.get(*place).map(|group| group.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        kept.truncate(MOST_ROWS);
    }
    let mut memory = Memory::new(MOST_ROWS);
    for place in kept {
        if let Some(view) = rows.views.get(place) {
            memory.remember(&view.meaning, value(place));
        }
    }
    memory
}

/// A line over the vector, by ridge regression: its weights and its bias.
pub(super) fn line(meanings: &[&Meaning], targets: &[f32], weights: &[f32]) -> ([f32; DIMS], f32) {
    let row = |meaning: &&Meaning| -> Row { (0..DIMS as u32).zip(*meaning.values()).collect() };
    let rows: Vec<Row> = meanings.iter().map(row).collect();
    let solved = ridge(&rows.iter().collect::<Vec<_>>(), targets, weights, LINE_ALPHA, DIMS);
    let mut line = [0.0; DIMS];
    for (to, weight) in line.iter_mut().zip(&solved) {
        *to = *weight;
    }
    (line, solved.last().copied().unwrap_or(0.0))
}
