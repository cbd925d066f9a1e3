//! The input of a matrix product: rows of floating point, and the same rows as 8-bit integers with a scale for each 32.
//!
//! A scale for 32 values, not for more, keeps a channel with outliers from drowning its neighbours.

use std::sync::Arc;

use super::Level;
use super::quantized::BLOCK;
use super::team::Team;
use super::vector::quantize_block;

/// 32 neighbouring values as integers.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct ActivationBlock {
    /// Values in units of `scale`, within ±127.
    pub q: [i8; BLOCK],
    /// Sums of all integers and of the first 16.
    pub sums: [i32; 2],
    /// What one unit is worth; not a number if any value was not finite.
    pub scale: f32,
    /// The sum of all integers, times `scale`.
    pub total: f32,
}

impl ActivationBlock {
    pub const ZERO: Self = Self { q: [0; BLOCK], sums: [0; 2], scale: 0.0, total: 0.0 };

    /// The sum of all integers, or of one half of them.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn sum<const PARTS: usize>(&self, part: usize) -> i32 {
        match (PARTS, part) {
            (2, 0) => self.sums[1],
            (2, _) => self.sums[0].wrapping_sub(self.sums[1]),
            _ => self.sums[0],
        }
    }

    /// Four integers from `4 * index` on, as they lie in memory.
    #[inline(always)]
    pub fn word(&self, index: usize) -> i32 {
        let at = index * 4;
        i32::from_le_bytes([self.q[at] as u8, self.q[at + 1] as u8, self.q[at + 2] as u8, self.q[at + 3] as u8])
    }
}

/// Rows going into a product; kept and refilled, so that a step allocates nothing.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
    blocks: Vec<ActivationBlock>,
    team: Option<Arc<Team>>,
}

impl Activations {
    /// Rows whose products are shared by the threads of `team`.
    pub fn shared_by(team: Option<Arc<Team>>) -> Self {
        Self { team, ..Self::default() }
    }

    /// Who shares the products.
    pub(super) fn team(&self) -> Option<&Team> {
        self.team.as_deref()
    }

    /// Makes room for `rows` rows of `cols` values and hands it out for filling; then call [`Activations::quantize`].
    pub fn reset(&mut self, rows: usize, cols: usize) -> &mut [f32] {
        self.rows = rows;
        self.cols = cols;
        self.values.resize(rows * cols, 0.0);
        &mut self.values
    }

    /// All rows, one after the other.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Derives the integers from the values; needed before a product with a quantised matrix.
    pub fn quantize(&mut self, level: Level) {
        if !self.cols.is_multiple_of(BLOCK) {
            self.blocks.clear();
            return;
        }
        self.blocks.resize(self.values.len() / BLOCK, ActivationBlock::ZERO);
        for (values, block) in self.values.as_chunks::<BLOCK>().0.iter().zip(&mut self.blocks) {
            quantize_block(level, values, block);
        }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of one row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `row` as floating point.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    /// Row `row` as integers.
    pub(super) fn row_blocks(&self, row: usize) -> &[ActivationBlock] {
        self.rows_blocks(row, 1)
    }

    /// So many rows from `first` on, one after the other.
    pub(super) fn rows_blocks(&self, first: usize, rows: usize) -> &[ActivationBlock] {
        let blocks = self.cols / BLOCK;
        &self.blocks[first * blocks..(first + rows) * blocks]
    }
}
