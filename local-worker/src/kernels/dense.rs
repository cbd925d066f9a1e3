//! Matrices of floating point, for files that are not quantised: sixteen rows interleaved in a tile, as with integers.

use half::f16;

use super::activation::Activations;
use super::vector::half_to_single;
use super::{Level, TILE};

/// A matrix of single or half precision.
#[derive(Debug)]
pub struct DenseMatrix {
    rows: usize,
    cols: usize,
    weights: Weights,
}

/// Tile after tile, each `cols` long.
#[derive(Debug)]
enum Weights {
    Single(Vec<[f32; TILE]>),
    Half(Vec<[f16; TILE]>),
}

impl DenseMatrix {
    /// Packs a matrix of single precision; `weight` is asked for each row and column.
    pub fn pack_single(rows: usize, cols: usize, weight: impl Fn(usize, usize) -> f32) -> Self {
        Self { rows, cols, weights: Weights::Single(interleave(rows, cols, weight)) }
    }

    /// Packs a matrix of half precision.
    pub fn pack_half(rows: usize, cols: usize, weight: impl Fn(usize, usize) -> f16) -> Self {
        Self { rows, cols, weights: Weights::Half(interleave(rows, cols, weight)) }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Memory taken, in bytes.
    pub fn bytes(&self) -> u64 {
        match &self.weights {
            Weights::Single(tiles) => size_of_val(tiles.as_slice()) as u64,
            Weights::Half(tiles) => size_of_val(tiles.as_slice()) as u64,
        }
    }

    /// One row as floating point.
    pub fn read_row(&self, row: usize, into: &mut [f32]) {
        let (from, lane) = (row / TILE * self.cols, row % TILE);
        for (column, value) in into.iter_mut().enumerate().take(self.cols) {
            *value = match &self.weights {
                Weights::Single(tiles) => tiles[from + column][lane],
                Weights::Half(tiles) => tiles[from + column][lane].to_f32(),
            };
        }
    }

    /// See [`super::Matrix::multiply`].
    pub fn multiply(&self, level: Level, input: &Activations, out: &mut [f32]) {
        match &self.weights {
            Weights::Single(tiles) => multiply_single(level, tiles, self.rows, input, out),
            Weights::Half(tiles) => multiply_half(level, tiles, self.rows, input, out),
        }
    }
}

fn interleave<T: Copy + Default>(rows: usize, cols: usize, weight: impl Fn(usize, usize) -> T) -> Vec<[T; TILE]> {
    let mut tiles = vec![[T::default(); TILE]; rows.div_ceil(TILE) * cols];
    for row in 0..rows {
        for column in 0..cols {
            tiles[row / TILE * cols + column][row % TILE] = weight(row, column);
        }
    }
    tiles
}

super::vector::leveled! {
    fn multiply_single(tiles: &[[f32; TILE]], rows: usize, input: &Activations, out: &mut [f32]) {
        multiply_tiles(tiles, rows, input, out, |weights| *weights);
    }
}

super::vector::leveled! {
    fn multiply_half(tiles: &[[f16; TILE]], rows: usize, input: &Activations, out: &mut [f32]) {
        multiply_tiles(tiles, rows, input, out, |weights| {
            let mut wide = [0.0; TILE];
            for (wide, weight) in wide.iter_mut().zip(weights) {
                *wide = half_to_single(*weight);
            }
            wide
        });
    }
}

#[inline(always)]
fn multiply_tiles<T>(
    tiles: &[[T; TILE]],
    rows: usize,
    input: &Activations,
    out: &mut [f32],
    widen: impl Fn(&[T; TILE]) -> [f32; TILE],
) {
    let mut m = 0;
    while m < input.rows() {
        m += match input.rows() - m {
            1..=3 => some::<1, T>(tiles, rows, input, m, out, &widen),
            _ => some::<4, T>(tiles, rows, input, m, out, &widen),
        };
    }
}

#[inline(always)]
fn some<const M: usize, T>(
    tiles: &[[T; TILE]],
    rows: usize,
    input: &Activations,
    first: usize,
    out: &mut [f32],
    widen: &impl Fn(&[T; TILE]) -> [f32; TILE],
) -> usize {
    let inputs: [&[f32]; M] = std::array::from_fn(|m| input.row(first + m));
    for (tile, columns) in tiles.chunks_exact(input.cols()).enumerate() {
        let mut total = [[0.0f32; TILE]; M];
        for (column, weights) in columns.iter().enumerate() {
            let weights = widen(weights);
            for m in 0..M {
                let value = inputs[m][column];
                for lane in 0..TILE {
                    total[m][lane] += weights[lane] * value;
                }
            }
        }
        let count = TILE.min(rows - tile * TILE);
        for (m, total) in total.iter().enumerate() {
            let at = (first + m) * rows + tile * TILE;
            out[at..at + count].copy_from_slice(&total[..count]);
        }
    }
    M
}
