//! Rows of tokens: some of them apart from the others, and their norms both ways.

use super::super::network::Network;
use super::fit;
use crate::kernels::{Level, rms_norm_backward, rms_norm_forward};

/// Some rows, one after the other.
pub(super) fn gather(some: &[usize], from: &[f32], to: &mut [f32], width: usize) {
    for (to, row) in to.chunks_exact_mut(width).zip(some) {
        to.copy_from_slice(&from[row * width..][..width]);
    }
}

/// Puts rows that lie one after the other where they belong among `count`; the others are zero.
pub(super) fn scatter(some: &[usize], rows: &mut Vec<f32>, scratch: &mut Vec<f32>, (count, width): (usize, usize)) {
    let all = fit(scratch, count * width);
    all.fill(0.0);
    for (from, row) in rows.chunks_exact(width).zip(some) {
        all[row * width..][..width].copy_from_slice(from);
    }
    std::mem::swap(rows, scratch);
}

/// Norms of rows, and what each was multiplied by.
pub(super) fn norm(
    level: Level,
    input: &[f32],
    weight: &[f32],
    network: &Network,
    normal: &mut Vec<f32>,
    factors: &mut Vec<f32>,
) {
    let width = weight.len();
    let factors = fit(factors, input.len() / width);
    let rows = fit(normal, input.len()).chunks_exact_mut(width).zip(input.chunks_exact(width)).zip(factors);
    for ((out, row), factor) in rows {
        *factor = rms_norm_forward(level, row, weight, network.shape.norm_epsilon as f32, out);
    }
}

/// A norm's way back.
pub(super) struct Back<'a> {
    pub level: Level,
    pub weight: &'a [f32],
    pub dweight: &'a mut [f32],
}

impl Back<'_> {
    /// Adds the gradient by the input to `dinput`.
    pub fn norm(self, input: &[f32], factors: &[f32], dnormal: &[f32], dinput: &mut [f32]) {
        let width = self.weight.len();
        let rows = dinput.chunks_exact_mut(width).zip(dnormal.chunks_exact(width)).zip(input.chunks_exact(width));
        for (((dinput, dnormal), input), factor) in rows.zip(factors) {
            rms_norm_backward(self.level, input, self.weight, *factor, dnormal, dinput, self.dweight);
        }
    }
}
