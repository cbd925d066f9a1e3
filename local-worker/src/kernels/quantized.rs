//! Quantised matrices in one packed layout for all file formats: unsigned integers of 4 or 8 bits, a scale for each 32 (or
//! 16) of them, and a zero point that is one number for the whole matrix or a minimum for each block.
//!
//! `weight = scale · (q − zero) + minimum`
//!
//! Sixteen rows lie interleaved in a tile, four neighbouring integers of a row at a time, because that is what one
//! instruction of the integer dot product takes: 64 bytes, sixteen rows by four inputs. No weight is rounded in packing.

use std::ops::Range;

use half::f16;

use super::activation::Activations;
use super::team::{Output, share};
use super::{Level, TILE, scalar};

/// Weights that share a scale.
pub const BLOCK: usize = 32;

/// Lines of 64 weight bytes, times rows of input, from which on a product is shared by threads: less takes longer to hand
/// out than to do.
const WORTH_SHARING: usize = 2_048;

/// Sixteen rows by four inputs, as bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u8; 64]);

/// Calls a kernel with what a [`Kind`] is made of as constants: 4 bits, minima, scales of single precision, scales of a
/// block. Constants of the kernel's own come first.
macro_rules! by_kind {
    ($kind:expr, $kernel:ident [$($own:ident),*] $arguments:tt) => {
        match $kind {
            $crate::kernels::Kind::Four => $kernel::<$($own,)* true, false, false, 1> $arguments,
            $crate::kernels::Kind::FourMin => $kernel::<$($own,)* true, true, false, 1> $arguments,
            $crate::kernels::Kind::FourMinWide => $kernel::<$($own,)* true, true, true, 1> $arguments,
            $crate::kernels::Kind::Eight => $kernel::<$($own,)* false, false, false, 1> $arguments,
            $crate::kernels::Kind::EightMinWide => $kernel::<$($own,)* false, true, true, 1> $arguments,
            $crate::kernels::Kind::EightTwo => $kernel::<$($own,)* false, false, true, 2> $arguments,
        }
    };
}
pub(super) use by_kind;

/// What a packed matrix keeps for its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 4 bits, scales of half precision (Q4_0).
    Four,
    /// 4 bits, scales and minima of half precision (Q4_1).
    FourMin,
    /// 4 bits, scales and minima of single precision (Q4_K).
    FourMinWide,
    /// 8 bits, scales of half precision (Q8_0, Q5_0).
    Eight,
    /// 8 bits, scales and minima of single precision (Q5_1, Q5_K).
    EightMinWide,
    /// 8 bits, two scales of single precision for each 32 (Q6_K).
    EightTwo,
}

impl Kind {
    pub(super) fn four(self) -> bool {
        matches!(self, Self::Four | Self::FourMin | Self::FourMinWide)
    }

    pub(super) fn minima(self) -> bool {
        matches!(self, Self::FourMin | Self::FourMinWide | Self::EightMinWide)
    }

    pub(super) fn wide(self) -> bool {
        matches!(self, Self::FourMinWide | Self::EightMinWide | Self::EightTwo)
    }

    pub(super) fn parts(self) -> usize {
        if self == Self::EightTwo { 2 } else { 1 }
    }

    /// Lines of one block of a tile.
    pub(super) fn lines(self) -> usize {
        if self.four() { 4 } else { 8 }
    }
}

/// One block of one row, unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    /// Integers, below 16 for kinds of 4 bits.
    pub q: [u8; BLOCK],
    /// Scale of the first and the last 16; equal but for [`Kind::EightTwo`].
    pub scale: [f32; 2],
    /// Added to every weight, for kinds with minima.
    pub minimum: f32,
}

/// A packed quantised matrix.
#[derive(Debug)]
pub struct QuantizedMatrix {
    rows: usize,
    cols: usize,
    kind: Kind,
    zero: i32,
    lines: Vec<Line>,
    half_scales: Vec<[f16; TILE]>,
    half_minima: Vec<[f16; TILE]>,
    wide_scales: Vec<[f32; TILE]>,
    wide_minima: Vec<[f32; TILE]>,
}

/// A view of one tile, for the kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileView<'matrix> {
    pub zero: i32,
    pub lines: &'matrix [Line],
    pub half_scales: &'matrix [[f16; TILE]],
    pub half_minima: &'matrix [[f16; TILE]],
    pub wide_scales: &'matrix [[f32; TILE]],
    pub wide_minima: &'matrix [[f32; TILE]],
}

impl QuantizedMatrix {
    /// Packs a matrix; `unit` is asked for each block of each row. `cols` must be a multiple of [`BLOCK`], and `zero` 128 or
    /// at most 64 with all integers below 128.
    pub fn pack(rows: usize, cols: usize, kind: Kind, zero: i32, mut unit: impl FnMut(usize, usize) -> Unit) -> Self {
        debug_assert_eq!(cols % BLOCK, 0, "columns of a quantised matrix");
        debug_assert!(zero == 128 || (0..=64).contains(&zero), "zero point {zero}");
        let blocks = cols / BLOCK;
        let tiles = rows.div_ceil(TILE);
        let count = tiles * blocks;
        let scales = count * kind.parts();
        let sized = |wanted: bool, count: usize| if wanted { count } else { 0 };
        let (half, wide) = (sized(!kind.wide(), scales), sized(kind.wide(), scales));
        let mut matrix = Self {
            rows,
            cols,
            kind,
            zero,
            lines: vec![Line([0; 64]); count * kind.lines()],
            half_scales: vec![[f16::ZERO; TILE]; half],
            half_minima: vec![[f16::ZERO; TILE]; sized(kind.minima(), half)],
            wide_scales: vec![[0.0; TILE]; wide],
            wide_minima: vec![[0.0; TILE]; sized(kind.minima(), wide)],
        };
        for row in 0..rows {
            for block in 0..blocks {
                matrix.put(row, block, &unit(row, block));
            }
        }
        matrix
    }

    fn put(&mut self, row: usize, block: usize, unit: &Unit) {
        let (tile, lane) = (row / TILE, row % TILE);
        let at = tile * (self.cols / BLOCK) + block;
        let count = self.kind.lines();
        let lines = &mut self.lines[at * count..(at + 1) * count];
        for (group, words) in unit.q.as_chunks::<4>().0.iter().enumerate() {
            let (line, shift) = if self.kind.four() { (group % 4, group / 4 * 4) } else { (group, 0) };
            for (byte, q) in lines[line].0[lane * 4..lane * 4 + 4].iter_mut().zip(words) {
                *byte |= q << shift;
            }
        }
        for part in 0..self.kind.parts() {
            let place = at * self.kind.parts() + part;
            if self.kind.wide() {
                self.wide_scales[place][lane] = unit.scale[part];
            } else {
                self.half_scales[place][lane] = f16::from_f32(unit.scale[part]);
            }
        }
        if self.kind.minima() {
            if self.kind.wide() {
                self.wide_minima[at][lane] = unit.minimum;
            } else {
                self.half_minima[at][lane] = f16::from_f32(unit.minimum);
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
        let half = (self.half_scales.len() + self.half_minima.len()) * TILE * 2;
        let wide = (self.wide_scales.len() + self.wide_minima.len()) * TILE * 4;
        (self.lines.len() * 64 + half + wide) as u64
    }

    pub(super) fn tile(&self, tile: usize) -> TileView<'_> {
        let blocks = self.cols / BLOCK;
        let (lines, scales) = (blocks * self.kind.lines(), blocks * self.kind.parts());
        fn part<T>(all: &[T], tile: usize, size: usize) -> &[T] {
            all.get(tile * size..(tile + 1) * size).unwrap_or(&[])
        }
        TileView {
            zero: self.zero,
            lines: part(&self.lines, tile, lines),
            half_scales: part(&self.half_scales, tile, scales),
            half_minima: part(&self.half_minima, tile, blocks),
            wide_scales: part(&self.wide_scales, tile, scales),
            wide_minima: part(&self.wide_minima, tile, blocks),
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
        let (group, byte) = (index / 4, lane * 4 + index % 4);
        let q = if kind.four() {
            (self.lines[block * 4 + group % 4].0[byte] >> (group / 4 * 4)) & 15
        } else {
            self.lines[block * 8 + group].0[byte]
        };
        i32::from(q) - self.zero
    }

    /// The scale of `lane` in `part` of `block`.
    #[inline(always)]
    pub fn scale(&self, kind: Kind, lane: usize, block: usize, part: usize) -> f32 {
        let place = block * kind.parts() + part;
        if kind.wide() { self.wide_scales[place][lane] } else { self.half_scales[place][lane].to_f32() }
    }

    /// The minimum of `lane` in `block`; 0 for kinds without.
    #[inline(always)]
    pub fn minimum(&self, kind: Kind, lane: usize, block: usize) -> f32 {
        match (kind.minima(), kind.wide()) {
            (false, _) => 0.0,
            (true, true) => self.wide_minima[block][lane],
            (true, false) => self.half_minima[block][lane].to_f32(),
        }
    }

    fn weight(&self, kind: Kind, lane: usize, block: usize, index: usize) -> f32 {
        let part = if kind.parts() == 2 { index / 16 } else { 0 };
        self.scale(kind, lane, block, part) * self.integer(kind, lane, block, index) as f32
            + self.minimum(kind, lane, block)
    }
}
