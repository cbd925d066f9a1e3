//! Quantised matrices in one packed layout for all file formats: unsigned integers of 4, 5, 6 or 8 bits, a scale for each 32
//! (or 16) of them, and a zero point that is one number for the whole matrix or a minimum for each block.
//!
//! `weight = scale · (q − zero) + minimum`
//!
//! Sixteen rows lie interleaved in a tile, four neighbouring integers of a row at a time, because that is what one
//! instruction of the integer dot product takes: 64 bytes, sixteen rows by four inputs. No weight is rounded in packing, and
//! a packed matrix is within 3 % of its size in the file, because reading it sets the pace where sequences are few.

use std::ops::Range;

use half::f16;

use super::activation::Activations;
use super::memory::{Kept, Memory};
use super::team::{Output, share};
use super::{Level, TILE, scalar};

/// Weights that share a scale.
pub const BLOCK: usize = 32;

/// Blocks whose scales and minima are small integers in units of their own, for the kinds called `Super`.
pub(super) const SUPER: usize = 8;

/// Lines of 64 weight bytes, times rows of input, from which on a product is shared by threads: less takes longer to hand
/// out than to do.
const WORTH_SHARING: usize = 2_048;

/// Sixteen rows by four inputs, as bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u8; 64]);

/// Calls a kernel with what a [`Kind`] is made of as constants: bits, minima, scales in units, scales of a block. Constants
/// of the kernel's own come first.
macro_rules! by_kind {
    ($kind:expr, $kernel:ident [$($own:ident),*] $arguments:tt) => {
        match $kind {
            $crate::kernels::Kind::Four => $kernel::<$($own,)* 4, false, false, 1> $arguments,
            $crate::kernels::Kind::FourMin => $kernel::<$($own,)* 4, true, false, 1> $arguments,
            $crate::kernels::Kind::FourSuper => $kernel::<$($own,)* 4, true, true, 1> $arguments,
            $crate::kernels::Kind::Five => $kernel::<$($own,)* 5, false, false, 1> $arguments,
            $crate::kernels::Kind::FiveMin => $kernel::<$($own,)* 5, true, false, 1> $arguments,
            $crate::kernels::Kind::FiveSuper => $kernel::<$($own,)* 5, true, true, 1> $arguments,
            $crate::kernels::Kind::SixSuper => $kernel::<$($own,)* 6, false, true, 2> $arguments,
            $crate::kernels::Kind::Eight => $kernel::<$($own,)* 8, false, false, 1> $arguments,
        }
    };
}
pub(super) use by_kind;

/// What a packed matrix keeps for its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 4 bits around 8, scales of half precision (Q4_0).
    Four,
    /// 4 bits, scales and minima of half precision (Q4_1).
    FourMin,
    /// 4 bits, scales and minima as integers in units of half precision, one unit for eight blocks (Q4_K).
    FourSuper,
    /// 5 bits around 16, scales of half precision (Q5_0).
    Five,
    /// 5 bits, scales and minima of half precision (Q5_1).
    FiveMin,
    /// 5 bits, scales and minima as with [`Kind::FourSuper`] (Q5_K).
    FiveSuper,
    /// 6 bits around 32, two scales for each block, as integers in units (Q6_K).
    SixSuper,
    /// 8 bits around 128, scales of half precision (Q8_0).
    Eight,
}

impl Kind {
    /// Bits of an integer; lines of one block of a tile as well.
    pub(super) fn bits(self) -> usize {
        match self {
            Self::Four | Self::FourMin | Self::FourSuper => 4,
            Self::Five | Self::FiveMin | Self::FiveSuper => 5,
            Self::SixSuper => 6,
            Self::Eight => 8,
        }
    }

    pub(super) fn minima(self) -> bool {
        matches!(self, Self::FourMin | Self::FourSuper | Self::FiveMin | Self::FiveSuper)
    }

    /// Whether scales and minima are integers in units of several blocks.
    pub(super) fn units(self) -> bool {
        matches!(self, Self::FourSuper | Self::FiveSuper | Self::SixSuper)
    }

    pub(super) fn parts(self) -> usize {
        if self == Self::SixSuper { 2 } else { 1 }
    }

    /// Weights of a row that have all they need together: columns are a multiple of it.
    pub fn group(self) -> usize {
        if self.units() { SUPER * BLOCK } else { BLOCK }
    }

    /// The integer that stands for 0.
    pub(super) fn zero(self) -> i32 {
        match self {
            Self::Four => 8,
            Self::Five => 16,
            Self::SixSuper => 32,
            Self::Eight => 128,
            Self::FourMin | Self::FourSuper | Self::FiveMin | Self::FiveSuper => 0,
        }
    }

    /// Integers as they lie in the lines of a block, a word of each. The low four bits of the first sixteen lie beside those
    /// of the last sixteen; the bits above, one or two for each group of four integers, side by side in lines of their own.
    #[inline(always)]
    pub fn words(self, q: &[u8; BLOCK]) -> [u32; 8] {
        let q = q.as_chunks::<4>().0;
        let group = |at: usize| u32::from_le_bytes(q[at]);
        let low = |at: usize| (group(at) & 0x0f0f_0f0f) | (group(at + 4) & 0x0f0f_0f0f) << 4;
        let fifth = |at: usize| (group(at) >> 4 & 0x0101_0101) << at;
        let pair = |at: usize| (group(at) >> 4 & 0x0303_0303) << (at % 4 * 2);
        match self.bits() {
            8 => std::array::from_fn(group),
            bits => {
                let above = match bits {
                    5 => [(0..8).fold(0, |word, at| word | fifth(at)), 0],
                    6 => [(0..4).fold(0, |word, at| word | pair(at)), (4..8).fold(0, |word, at| word | pair(at))],
                    _ => [0, 0],
                };
                [low(0), low(1), low(2), low(3), above[0], above[1], 0, 0]
            }
        }
    }
}

/// One block of one row, as it is kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unit {
    /// See [`Kind::words`].
    pub words: [u32; 8],
    /// The scale, or its unit.
    pub scale: f16,
    /// Added to every weight, for kinds with minima, or its unit.
    pub minimum: f16,
    /// Scale of the first and the last 16, in units; equal but for [`Kind::SixSuper`].
    pub small_scale: [i8; 2],
    /// The minimum in units.
    pub small_minimum: i8,
}

/// A packed quantised matrix.
#[derive(Debug)]
pub struct QuantizedMatrix {
    rows: usize,
    cols: usize,
    kind: Kind,
    lines: Kept<Line>,
    scales: Kept<[f16; TILE]>,
    minima: Kept<[f16; TILE]>,
    small_scales: Kept<[i8; TILE]>,
    small_minima: Kept<[i8; TILE]>,
}

/// A view of one tile, for the kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileView<'matrix> {
    pub zero: i32,
    pub lines: &'matrix [Line],
    /// One for each block, or for each [`SUPER`] blocks; minima likewise.
    pub scales: &'matrix [[f16; TILE]],
    pub minima: &'matrix [[f16; TILE]],
    /// One for each part of each block; of minima one for each block.
    pub small_scales: &'matrix [[i8; TILE]],
    pub small_minima: &'matrix [[i8; TILE]],
}

impl QuantizedMatrix {
    /// Packs a matrix of `(rows, cols)`; `unit` is asked for each block of each row, tile by tile, so that what is written lies together.
    /// `cols` must be a multiple of [`Kind::group`].
    // Inlined, so that there is one for each kind and format with nothing left to decide in its loops.
    #[inline(always)]
    pub fn pack(
        memory: &mut Memory,
        (rows, cols): (usize, usize),
        kind: Kind,
        mut unit: impl FnMut(usize, usize) -> Unit,
    ) -> Self {
        debug_assert_eq!(cols % kind.group(), 0, "columns of a quantised matrix");
        let mut matrix = Self::empty(memory, rows, cols, kind);
        let blocks = cols / BLOCK;
        for tile in 0..rows.div_ceil(TILE) {
            let lanes = TILE.min(rows - tile * TILE);
            for block in 0..blocks {
                for lane in 0..lanes {
                    matrix.put(kind, tile * blocks + block, lane, &unit(tile * TILE + lane, block));
                }
            }
        }
        matrix
    }

    fn empty(memory: &mut Memory, rows: usize, cols: usize, kind: Kind) -> Self {
        let count = rows.div_ceil(TILE) * (cols / BLOCK);
        let sized = |wanted: bool, count: usize| if wanted { count } else { 0 };
        let halves = if kind.units() { count / SUPER } else { count };
        Self {
            rows,
            cols,
            kind,
            lines: memory.take(count * kind.bits()),
            scales: memory.take(halves),
            minima: memory.take(sized(kind.minima(), halves)),
            small_scales: memory.take(sized(kind.units(), count * kind.parts())),
            small_minima: memory.take(sized(kind.units() && kind.minima(), count)),
        }
    }

    /// `kind` once more, as a constant.
    #[inline(always)]
    fn put(&mut self, kind: Kind, at: usize, lane: usize, unit: &Unit) {
        let count = kind.bits();
        for (line, word) in self.lines[at * count..(at + 1) * count].iter_mut().zip(&unit.words) {
            line.0[lane * 4..lane * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        let place = if kind.units() { at / SUPER } else { at };
        self.scales[place][lane] = unit.scale;
        if kind.minima() {
            self.minima[place][lane] = unit.minimum;
        }
        if kind.units() {
            let parts = kind.parts();
            for (small, scale) in self.small_scales[at * parts..(at + 1) * parts].iter_mut().zip(unit.small_scale) {
                small[lane] = scale;
            }
            if kind.minima() {
                self.small_minima[at][lane] = unit.small_minimum;
            }
        }
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
        let halves = (self.scales.len() + self.minima.len()) * 2;
        let small = self.small_scales.len() + self.small_minima.len();
        (self.lines.len() * 64 + (halves + small) * TILE) as u64
    }

    pub(super) fn tile(&self, tile: usize) -> TileView<'_> {
        let blocks = self.cols / BLOCK;
        let halves = if self.kind.units() { blocks / SUPER } else { blocks };
        fn part<T>(all: &[T], tile: usize, size: usize) -> &[T] {
            all.get(tile * size..(tile + 1) * size).unwrap_or(&[])
        }
        TileView {
            zero: self.kind.zero(),
            lines: part(&self.lines, tile, blocks * self.kind.bits()),
            scales: part(&self.scales, tile, halves),
            minima: part(&self.minima, tile, halves),
            small_scales: part(&self.small_scales, tile, blocks * self.kind.parts()),
            small_minima: part(&self.small_minima, tile, blocks),
        }
    }

    /// One row as floating point.
    pub fn read_row(&self, row: usize, into: &mut [f32]) {
        let tile = self.tile(row / TILE);
        for (block, values) in into.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            for (index, value) in values.iter_mut().enumerate() {
                *value = tile.weight(self.kind, row % TILE, block, index);
            }
        }
    }

    /// See [`super::Matrix::multiply`]. Shared by the input's team where there is enough to share; every output is summed by
    /// one thread in one order, so the result does not depend on it.
    pub fn multiply(&self, level: Level, input: &Activations, out: &mut [f32]) {
        let out = Output::new(out);
        let team = input.team().filter(|_| self.lines.len() * input.rows() >= WORTH_SHARING);
        share(team, self.rows.div_ceil(TILE), 1, |tiles| self.multiply_tiles(level, tiles, input, out));
    }

    fn multiply_tiles(&self, level: Level, tiles: Range<usize>, input: &Activations, out: Output<'_>) {
        match level {
            Level::Scalar => scalar::multiply(self, tiles, input, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => super::avx2::multiply(self, tiles, input, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => super::avx512::multiply(self, tiles, input, out),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => super::neon::multiply::<false>(self, tiles, input, out),
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => super::neon::multiply::<true>(self, tiles, input, out),
            // Levels of another kind of processor; `Level::detect` never chooses them.
            _ => scalar::multiply(self, tiles, input, out),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}

impl TileView<'_> {
    /// The integer of `lane` at `index` within `block`.
    #[inline(always)]
    pub fn integer(&self, kind: Kind, lane: usize, block: usize, index: usize) -> i32 {
        let (group, byte, bits) = (index / 4, lane * 4 + index % 4, kind.bits());
        let line = |number: usize| self.lines[block * bits + number].0[byte];
        let low = || (line(group % 4) >> (group / 4 * 4)) & 15;
        let q = match bits {
            8 => line(group),
            5 => low() | ((line(4) >> group) & 1) << 4,
            6 => low() | ((line(4 + group / 4) >> (group % 4 * 2)) & 3) << 4,
            _ => low(),
        };
        i32::from(q) - self.zero
    }

    /// The scale of `lane` in `part` of `block`.
    #[inline(always)]
    pub fn scale(&self, kind: Kind, lane: usize, block: usize, part: usize) -> f32 {
        if kind.units() {
            self.scales[block / SUPER][lane].to_f32() * f32::from(self.small_scales[block * kind.parts() + part][lane])
        } else {
            self.scales[block][lane].to_f32()
        }
    }

    /// The minimum of `lane` in `block`; 0 for kinds without.
    #[inline(always)]
    pub fn minimum(&self, kind: Kind, lane: usize, block: usize) -> f32 {
        match (kind.minima(), kind.units()) {
            (false, _) => 0.0,
            (true, true) => self.minima[block / SUPER][lane].to_f32() * f32::from(self.small_minima[block][lane]),
            (true, false) => self.minima[block][lane].to_f32(),
        }
    }

    fn weight(&self, kind: Kind, lane: usize, block: usize, index: usize) -> f32 {
        let part = if kind.parts() == 2 { index / 16 } else { 0 };
        self.scale(kind, lane, block, part) * self.integer(kind, lane, block, index) as f32
            + self.minimum(kind, lane, block)
    }
}
