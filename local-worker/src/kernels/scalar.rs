//! The portable product with a quantised matrix: the definition the fast forms are tested against.

use std::ops::Range;

use super::TILE;
use super::activation::Activations;
use super::quantized::{BLOCK, QuantizedMatrix};
use super::team::Output;

/// See [`super::Matrix::multiply`].
#[allow(unsafe_code, reason = "outputs are shared by threads, each with tiles of its own")]
pub(super) fn multiply(matrix: &QuantizedMatrix, tiles: Range<usize>, input: &Activations, out: Output<'_>) {
    let (rows, kind) = (matrix.rows(), matrix.kind());
    let size = BLOCK / kind.parts();
    for row in tiles.start * TILE..rows.min(tiles.end * TILE) {
        let (tile, lane) = (matrix.tile(row / TILE), row % TILE);
        for m in 0..input.rows() {
            let mut total = 0.0f32;
            for (block, activation) in input.row_blocks(m).iter().enumerate() {
                for part in 0..kind.parts() {
                    let mut dot = 0;
                    for index in part * size..(part + 1) * size {
                        dot += tile.integer(kind, lane, block, index) * i32::from(activation.q[index]);
                    }
                    total += dot as f32 * (tile.scale(kind, lane, block, part) * activation.scale);
                }
                if kind.minima() {
                    total += tile.minimum(kind, lane, block) * activation.total;
                }
            }
            // SAFETY: these places belong to this row's tile, which one thread works.
            unsafe { out.put(m * rows + row, &[total]) };
        }
    }
}
