//! Matrices of floating point, for files that are not quantised: sixteen rows interleaved in a tile, as with integers.
#![allow(unsafe_code, reason = "outputs are shared by threads, each with tiles of its own")]

use std::ops::Range;

use half::{bf16, f16};

use super::activation::Activations;
use super::memory::{Kept, Memory, Plain};
use super::team::{Output, share};
use super::vector::half_to_single;
use super::{Level, TILE};

/// Weights times rows of input from which on a product is shared by threads.
const WORTH_SHARING: usize = 131_072;
/// Tiles worked side by side for one row of input, so that one sum need not wait for the other.
const ABREAST: usize = 4;

/// A matrix of single precision, or of either half precision.
#[derive(Debug)]
pub struct DenseMatrix {
    rows: usize,
    cols: usize,
    weights: Weights,
}

/// Tile after tile, each `cols` long.
#[derive(Debug)]
enum Weights {
    Single(Kept<[f32; TILE]>),
    Half(Kept<[f16; TILE]>),
    Brain(Kept<[bf16; TILE]>),
}

impl DenseMatrix {
    /// Packs a matrix of single precision; `weight` is asked for each row and column.
    pub fn pack_single(
        memory: &mut Memory,
        (rows, cols): (usize, usize),
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        Self { rows, cols, weights: Weights::Single(interleave(memory, rows, cols, weight)) }
    }

    /// Packs a matrix of half precision.
    pub fn pack_half(memory: &mut Memory, (rows, cols): (usize, usize), weight: impl Fn(usize, usize) -> f16) -> Self {
        Self { rows, cols, weights: Weights::Half(interleave(memory, rows, cols, weight)) }
    }

    /// Packs a matrix of bfloat16.
    pub fn pack_brain(
        memory: &mut Memory,
        (rows, cols): (usize, usize),
        weight: impl Fn(usize, usize) -> bf16,
    ) -> Self {
        Self { rows, cols, weights: Weights::Brain(interleave(memory, rows, cols, weight)) }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Memory taken, in bytes.
    pub fn bytes(&self) -> u64 {
        match &self.weights {
            Weights::Single(tiles) => size_of_val(&**tiles) as u64,
            Weights::Half(tiles) => size_of_val(&**tiles) as u64,
            Weights::Brain(tiles) => size_of_val(&**tiles) as u64,
        }
    }

    /// One row as floating point.
    pub fn read_row(&self, row: usize, into: &mut [f32]) {
        let (from, lane) = (row / TILE * self.cols, row % TILE);
        for (column, value) in into.iter_mut().enumerate().take(self.cols) {
            *value = match &self.weights {
                Weights::Single(tiles) => tiles[from + column][lane],
                Weights::Half(tiles) => tiles[from + column][lane].to_f32(),
                Weights::Brain(tiles) => tiles[from + column][lane].to_f32(),
            };
        }
    }

    /// See [`super::Matrix::multiply`]. Shared by the input's team where there is enough to share, as with integers.
    pub fn multiply(&self, level: Level, input: &Activations, out: &mut [f32]) {
        let out = Output::new(out);
        let team = input.team().filter(|_| self.rows * self.cols * input.rows() >= WORTH_SHARING);
        share(team, self.rows.div_ceil(TILE), ABREAST, |tiles| self.multiply_tiles(level, tiles, input, out));
    }

    fn multiply_tiles(&self, level: Level, tiles: Range<usize>, input: &Activations, out: Output<'_>) {
        let columns = tiles.start * self.cols..tiles.end * self.cols;
        let place = Place { first: tiles.start, rows: self.rows };
        match &self.weights {
            Weights::Single(weights) => multiply_single(level, &weights[columns], place, input, out),
            Weights::Half(weights) => multiply_half(level, &weights[columns], place, input, out),
            Weights::Brain(weights) => multiply_brain(level, &weights[columns], place, input, out),
        }
    }
}

/// Where some tiles belong.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The first tile's number.
    first: usize,
    /// Rows of the whole matrix.
    rows: usize,
}

fn interleave<T>(memory: &mut Memory, rows: usize, cols: usize, weight: impl Fn(usize, usize) -> T) -> Kept<[T; TILE]>
where
    [T; TILE]: Plain,
{
    let mut tiles = memory.take::<[T; TILE]>(rows.div_ceil(TILE) * cols);
    for row in 0..rows {
        for column in 0..cols {
            tiles[row / TILE * cols + column][row % TILE] = weight(row, column);
        }
    }
    tiles
}

super::vector::leveled! {
    fn multiply_single(tiles: &[[f32; TILE]], place: Place, input: &Activations, out: Output<'_>) {
        multiply_all(tiles, place, input, out, |weights| *weights);
    }
}

super::vector::leveled! {
    fn multiply_half(tiles: &[[f16; TILE]], place: Place, input: &Activations, out: Output<'_>) {
        multiply_all(tiles, place, input, out, |weights| {
            let mut wide = [0.0; TILE];
            for (wide, weight) in wide.iter_mut().zip(weights) {
                *wide = half_to_single(*weight);
            }
            wide
        });
    }
}

super::vector::leveled! {
    fn multiply_brain(tiles: &[[bf16; TILE]], place: Place, input: &Activations, out: Output<'_>) {
        multiply_all(tiles, place, input, out, |weights| {
            let mut wide = [0.0; TILE];
            for (wide, weight) in wide.iter_mut().zip(weights) {
                *wide = f32::from_bits(u32::from(weight.to_bits()) << 16);
            }
            wide
        });
    }
}

#[inline(always)]
fn multiply_all<T>(
    tiles: &[[T; TILE]],
    place: Place,
    input: &Activations,
    out: Output<'_>,
    widen: impl Fn(&[T; TILE]) -> [f32; TILE],
) {
    let abreast = ABREAST * input.cols();
    let mut m = 0;
    while m < input.rows() {
        if input.rows() - m >= 4 {
            for (number, tile) in tiles.chunks_exact(input.cols()).enumerate() {
                some::<4, 1, T>(tile, Place { first: place.first + number, ..place }, input, m, out, &widen);
            }
            m += 4;
            continue;
        }
        let (wide, rest) = tiles.split_at(tiles.len() / abreast * abreast);
        for (number, tiles) in wide.chunks_exact(abreast).enumerate() {
            let place = Place { first: place.first + number * ABREAST, ..place };
            some::<1, ABREAST, T>(tiles, place, input, m, out, &widen);
        }
        let first = place.first + wide.len() / input.cols();
        for (number, tile) in rest.chunks_exact(input.cols()).enumerate() {
            some::<1, 1, T>(tile, Place { first: first + number, ..place }, input, m, out, &widen);
        }
        m += 1;
    }
}

/// `M` rows of input from `m` on with `N` neighbouring tiles; every output is summed column after column.
#[inline(always)]
fn some<const M: usize, const N: usize, T>(
    tiles: &[[T; TILE]],
    place: Place,
    input: &Activations,
    m: usize,
    out: Output<'_>,
    widen: &impl Fn(&[T; TILE]) -> [f32; TILE],
) {
    let cols = input.cols();
    let inputs: [&[f32]; M] = std::array::from_fn(|at| &input.row(m + at)[..cols]);
    let tiles: [&[[T; TILE]]; N] = std::array::from_fn(|n| &tiles[n * cols..(n + 1) * cols]);
    let mut total = [[[0.0f32; TILE]; N]; M];
    for column in 0..cols {
        for n in 0..N {
            let weights = widen(&tiles[n][column]);
            for at in 0..M {
                let value = inputs[at][column];
                for lane in 0..TILE {
                    total[at][n][lane] += weights[lane] * value;
                }
            }
        }
    }
    for (at, total) in total.iter().enumerate() {
        for (n, total) in total.iter().enumerate() {
            let row = (place.first + n) * TILE;
            let count = TILE.min(place.rows - row);
            // SAFETY: these places belong to this tile, which one thread works.
            unsafe { out.put((m + at) * place.rows + row, &total[..count]) };
        }
    }
}
