//! Softmax attention over rows that lie in wider rows, and what both kinds of attention share.

use super::favor::side_scale;
use crate::kernels::{Level, View, ViewMut, bound_exponents, multiply_by, product, softmax};

/// Rows of one head's numbers, each `step` after the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    values: &'a [f32],
    step: usize,
    /// Numbers of a row.
    pub width: usize,
}

impl<'a> Rows<'a> {
    /// The rows of `width` numbers that begin at `offset` of each `step`.
    pub fn new(values: &'a [f32], offset: usize, step: usize, width: usize) -> Self {
        Self { values: &values[offset..], step, width }
    }

    /// One of them.
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.step..][..self.width]
    }

    /// The first `rows` of them as a matrix.
    pub fn view(&self, rows: usize) -> View<'a> {
        View::new(self.values, rows, self.width, self.step)
    }
}

/// Softmax attention of `rows` queries over `seen` keys: `out` (rows `step` apart) becomes what they see. `shares` has room for
/// `rows · seen`; with `keep` they are the shares afterwards, else shares of another scale.
pub(super) fn look(
    level: Level,
    (queries, rows): (Rows<'_>, usize),
    (keys, values, seen): (Rows<'_>, Rows<'_>, usize),
    shares: &mut [f32],
    keep: bool,
    (out, step): (&mut [f32], usize),
) {
    let width = queries.width;
    let scale = side_scale(width);
    let shares = &mut shares[..rows * seen];
    product(
        ViewMut::new(shares, rows, seen, seen),
        queries.view(rows),
        keys.view(seen).transposed(),
        scale * scale,
        false,
    );
    let mut factors = [0.0; BLOCK];
    let mut at = 0;
    while at < rows {
        let some = BLOCK.min(rows - at);
        let block = &mut shares[at * seen..(at + some) * seen];
        for (shares, factor) in block.chunks_exact_mut(seen).zip(&mut factors) {
            bound_exponents(level, shares, 0.0);
            *factor = 1.0 / softmax(level, shares);
            if keep {
                multiply_by(level, shares, *factor);
                *factor = 1.0;
            }
        }
        let out = &mut out[at * step..];
        product(
            ViewMut::new(out, some, width, step),
            View::new(block, some, seen, seen),
            values.view(seen),
            1.0,
            false,
        );
        for (out, factor) in out.chunks_mut(step).zip(factors).take(some) {
            multiply_by(level, &mut out[..width], factor);
        }
        at += some;
    }
}

/// Queries that are worked at once: their shares are what softmax attention needs memory for.
pub(super) const BLOCK: usize = 64;
