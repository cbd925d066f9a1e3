//! FAVOR+: attention by positive orthogonal random features (Choromanski et al. 2021, sections 2.3 and 2.4).
//!
//! With `w` from the standard normal distribution, `e^(q·k) = E[e^(w·q − |q|²/2) · e^(w·k − |k|²/2)]`. The mean over `m` such
//! `w` is positive whatever is drawn, so shares stay shares; its relative variance for one pair is `(e^|q+k|² − 1) / m`, so
//! the error falls like `1/√m` and grows exponentially with the norms. Rows `w` that are orthogonal to each other within
//! blocks, with lengths drawn as those of normal vectors, keep the mean right and lower the variance (section 2.4).
//!
//! What keeps numbers safe: each feature is divided by its largest value over all keys, which multiplies the same feature of
//! every query, and each query's features by their largest. Neither changes the shares. So for every feature some key has
//! exactly 1, for every query some feature has exactly 1, and the sum a query divides by is never below 1: no small number is
//! added, and nothing overflows. Sums over keys are made in chunks; a chunk that raises a peak lowers what was summed before.

use super::attention::Rows;
use crate::kernels::{
    Level, View, ViewMut, bound_exponents, exponentials_below, multiply_by, product, query_exponentials, raise,
    sum_products,
};

/// Sums over keys, feature by feature.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    /// Largest exponent of each feature.
    pub peaks: Vec<f32>,
    /// Features times values: a row of a head's width for each feature.
    pub values: Vec<f32>,
    /// Sums of the features alone.
    pub totals: Vec<f32>,
    before: Vec<f32>,
    chunk: Vec<f32>,
}

impl Sums {
    /// Nothing summed yet.
    pub fn reset(&mut self, features: usize, width: usize) {
        for (buffer, length, value) in [
            (&mut self.peaks, features, f32::NEG_INFINITY),
            (&mut self.before, features, f32::NEG_INFINITY),
            (&mut self.totals, features, 0.0),
            (&mut self.chunk, features, 0.0),
            (&mut self.values, features * width, 0.0),
        ] {
            buffer.clear();
            buffer.resize(length, value);
        }
    }

    /// Bytes of its buffers.
    pub fn bytes(&self) -> usize {
        let buffers = [&self.peaks, &self.values, &self.totals, &self.before, &self.chunk];
        buffers.iter().map(|buffer| buffer.capacity() * size_of::<f32>()).sum()
    }
}

/// What both sides are multiplied by, so that their product is divided by the root of the width.
pub(super) fn side_scale(width: usize) -> f32 {
    1.0 / (width as f32).sqrt().sqrt()
}

/// Adds `rows` keys and values to the sums. `features` has a random row for each feature; `shares` becomes the keys' features.
pub(super) fn add_keys(
    level: Level,
    features: &[f32],
    (keys, values): (Rows<'_>, Rows<'_>),
    rows: usize,
    shares: &mut [f32],
    sums: &mut Sums,
) {
    let width = keys.width;
    let count = features.len() / width;
    let scale = side_scale(width);
    let draws = View::new(features, count, width, width).transposed();
    product(ViewMut::new(shares, rows, count, count), keys.view(rows), draws, scale, false);
    sums.before.copy_from_slice(&sums.peaks);
    for (row, shares) in shares.chunks_exact_mut(count).take(rows).enumerate() {
        let key = keys.row(row);
        bound_exponents(level, shares, 0.5 * scale * scale * sum_products(key, key));
        raise(level, &mut sums.peaks, shares);
    }
    let summed = sums.values.chunks_exact_mut(width).zip(&mut sums.totals);
    for ((before, peak), (values, total)) in sums.before.iter().zip(&sums.peaks).zip(summed) {
        let left = (before - peak).exp();
        if left < 1.0 {
            multiply_by(level, values, left);
            *total *= left;
        }
    }
    sums.chunk.fill(0.0);
    for shares in shares.chunks_exact_mut(count).take(rows) {
        exponentials_below(level, shares, &sums.peaks, &mut sums.chunk);
    }
    for (total, chunk) in sums.totals.iter_mut().zip(&sums.chunk) {
        *total += chunk;
    }
    let shares = View::new(shares, rows, count, count).transposed();
    product(ViewMut::new(&mut sums.values, count, width, width), shares, values.view(rows), 1.0, true);
}

/// Attention of `rows` queries over all keys that were added. `shares` becomes the queries' features, `out` (rows `step`
/// apart) what they see.
pub(super) fn look(
    level: Level,
    features: &[f32],
    queries: Rows<'_>,
    rows: usize,
    shares: &mut [f32],
    sums: &Sums,
    (out, step): (&mut [f32], usize),
) {
    let width = queries.width;
    let count = features.len() / width;
    let draws = View::new(features, count, width, width).transposed();
    product(ViewMut::new(shares, rows, count, count), queries.view(rows), draws, side_scale(width), false);
    // A query's own norm multiplies all its features alike and is left out.
    for shares in shares.chunks_exact_mut(count).take(rows) {
        query_exponentials(level, shares, &sums.peaks);
    }
    let values = View::new(&sums.values, count, width, width);
    product(ViewMut::new(out, rows, width, step), View::new(shares, rows, count, count), values, 1.0, false);
    for (out, shares) in out.chunks_mut(step).zip(shares.chunks_exact(count)).take(rows) {
        multiply_by(level, &mut out[..width], 1.0 / sum_products(shares, &sums.totals));
    }
}

/// Draws random rows for `features` features: orthogonal within blocks of `width`, lengths as those of normal vectors.
#[cfg(feature = "lab")]
pub fn draw(features: usize, width: usize, random: &mut impl rand::Rng) -> Vec<f32> {
    let mut rows: Vec<f32> = Vec::with_capacity(features * width);
    let mut block: Vec<Vec<f64>> = Vec::with_capacity(width);
    while rows.len() < features * width {
        if block.len() == width {
            block.clear();
        }
        let mut row: Vec<f64> = (0..width).map(|_| normal(random)).collect();
        // Gram and Schmidt, twice, since once is not enough in floating point.
        for _ in 0..2 {
            for other in &block {
                let along: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        if length < 1e-9 {
            continue;
        }
        row.iter_mut().for_each(|value| *value /= length);
        let chi = (0..width).map(|_| normal(random).powi(2)).sum::<f64>().sqrt();
        rows.extend(row.iter().map(|value| (value * chi) as f32));
        block.push(row);
    }
    rows
}

/// A number of the standard normal distribution (Box and Muller 1958).
#[cfg(feature = "lab")]
pub(super) fn normal(random: &mut impl rand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.random::<f64>()).cos()
}
