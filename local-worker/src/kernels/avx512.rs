//! Products with quantised matrices by the integer dot product of AVX-512 (VNNI): sixteen outputs by four inputs an
//! instruction. The zero point is taken off by where the sum starts, so it takes no time.
#![allow(unsafe_code, reason = "vector instructions; called only where the processor was found to have them")]

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_loadu_si256, _mm512_add_epi32,
    _mm512_and_si512, _mm512_andnot_si512, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_si512, _mm512_mask_storeu_ps, _mm512_mul_ps, _mm512_or_si512,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi16,
    _mm512_slli_epi32, _mm512_srai_epi32, _mm512_srli_epi16, _mm512_sub_epi32,
};
use std::ops::Range;

use half::f16;

use super::TILE;
use super::activation::{ActivationBlock, Activations};
use super::quantized::{Line, QuantizedMatrix, SUPER, TileView, by_kind};
use super::team::Output;

/// How far ahead of use weights are asked for, in lines of 64 bytes.
const AHEAD: usize = 64;

/// Rows of input up to which it pays to spare instructions on weights rather than on sums.
const FEW: usize = 2;

/// See [`super::Matrix::multiply`].
pub(super) fn multiply(matrix: &QuantizedMatrix, tiles: Range<usize>, input: &Activations, out: Output<'_>) {
    // SAFETY: `Level::detect` found every instruction set named below.
    unsafe { by_kind!(matrix.kind(), walk [] (matrix, tiles, input, out)) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn walk<const BITS: usize, const MIN: bool, const UNITS: bool, const PARTS: usize>(
    matrix: &QuantizedMatrix,
    tiles: Range<usize>,
    input: &Activations,
    out: Output<'_>,
) {
    for tile in tiles {
        let view = matrix.tile(tile);
        let mut m = 0;
        while m < input.rows() {
            m += match input.rows() - m {
                1 => some::<1, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
                2 => some::<2, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
                3 => some::<3, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
                4..=7 => some::<4, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
                _ => some::<8, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
            };
        }
    }
}

/// One tile times `M` rows of input from `first` on; returns `M`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn some<const M: usize, const BITS: usize, const MIN: bool, const UNITS: bool, const PARTS: usize>(
    view: TileView<'_>,
    input: &Activations,
    first: usize,
    rows: usize,
    tile: usize,
    out: Output<'_>,
) -> usize {
    let inputs = input.rows_blocks(first, M);
    let blocks = inputs.len() / M;
    let mut total = [_mm512_setzero_ps(); M];
    for (block, lines) in view.lines.as_chunks::<BITS>().0.iter().enumerate().take(blocks) {
        prefetch(lines);
        let mut now = [&inputs[block]; M];
        for (m, now) in now.iter_mut().enumerate().skip(1) {
            // SAFETY: there are `M` times `blocks`, and `block` is below that.
            *now = unsafe { inputs.get_unchecked(m * blocks + block) };
        }
        // SAFETY: this function's own instructions are those that are needed.
        let dots = unsafe { dots::<M, BITS, MIN, PARTS>(lines, &now) };
        for (part, dots) in dots.into_iter().enumerate() {
            let scale = if UNITS {
                in_units(&view.scales[block / SUPER], &view.small_scales[block * PARTS + part])
            } else {
                load_half(&view.scales[block])
            };
            for m in 0..M {
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(now[m].scale));
                total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[m]), scale, total[m]);
            }
        }
        if MIN {
            let minimum = if UNITS {
                in_units(&view.minima[block / SUPER], &view.small_minima[block])
            } else {
                load_half(&view.minima[block])
            };
            for m in 0..M {
                total[m] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(now[m].total), total[m]);
            }
        }
    }
    let count = TILE.min(rows - tile * TILE);
    let mask = u16::MAX >> (TILE - count);
    for (m, total) in total.iter().enumerate() {
        let places = out.places((first + m) * rows + tile * TILE, count);
        // SAFETY: `count` places are there, of this tile, which one thread works.
        unsafe { _mm512_mask_storeu_ps(places, mask, *total) };
    }
    M
}

/// Integer products of one block, part by part. Inlined, because sixteen sums handed over in memory would take as long again.
///
/// # Safety
/// Needs the instructions of the caller.
#[inline(always)]
unsafe fn dots<const M: usize, const BITS: usize, const MIN: bool, const PARTS: usize>(
    lines: &[Line; BITS],
    now: &[&ActivationBlock; M],
) -> [[__m512i; M]; PARTS] {
    // SAFETY: the caller has the instructions.
    unsafe {
        let mut dots = [[_mm512_setzero_si512(); M]; PARTS];
        for (part, dots) in dots.iter_mut().enumerate() {
            for (dot, now) in dots.iter_mut().zip(now) {
                *dot = start::<BITS, MIN>(now.sum::<PARTS>(part));
            }
        }
        if BITS == 8 {
            for (group, line) in lines.iter().enumerate() {
                let weights = load(line);
                for m in 0..M {
                    dots[0][m] = _mm512_dpbusd_epi32(dots[0][m], weights, _mm512_set1_epi32(now[m].word(group)));
                }
            }
            return dots;
        }
        let low = _mm512_set1_epi8(15);
        if BITS == 4 && M <= FEW {
            // The upper halves stay where they are, sixteen times too large, until the end: exact, and fewer instructions.
            let mut far = [_mm512_setzero_si512(); M];
            for (group, line) in lines[..4].iter().enumerate() {
                let both = load(line);
                let (near, upper) = (_mm512_and_si512(both, low), _mm512_andnot_si512(low, both));
                for m in 0..M {
                    dots[0][m] = _mm512_dpbusd_epi32(dots[0][m], near, _mm512_set1_epi32(now[m].word(group)));
                    far[m] = _mm512_dpbusd_epi32(far[m], upper, _mm512_set1_epi32(now[m].word(group + 4)));
                }
            }
            for m in 0..M {
                dots[0][m] = _mm512_add_epi32(dots[0][m], _mm512_srai_epi32::<4>(far[m]));
            }
            return dots;
        }
        let above = [load(&lines[4.min(BITS - 1)]), load(&lines[5.min(BITS - 1)])];
        for (group, line) in lines.iter().enumerate().take(4) {
            let both = load(line);
            let mut near = _mm512_and_si512(both, low);
            let mut far = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
            if BITS > 4 {
                near = _mm512_or_si512(near, high::<BITS>(above[0], group));
                far = _mm512_or_si512(far, high::<BITS>(above[1], group + 4));
            }
            for m in 0..M {
                dots[0][m] = _mm512_dpbusd_epi32(dots[0][m], near, _mm512_set1_epi32(now[m].word(group)));
                dots[PARTS - 1][m] =
                    _mm512_dpbusd_epi32(dots[PARTS - 1][m], far, _mm512_set1_epi32(now[m].word(group + 4)));
            }
        }
        dots
    }
}

/// Where a sum of products with integers around their zero point (half of what their bits can say) starts, if the sum of the
/// other side is `sum`: see `Kind::zero`.
#[inline]
#[target_feature(enable = "avx512f")]
fn start<const BITS: usize, const MIN: bool>(sum: i32) -> __m512i {
    let none = _mm512_setzero_si512();
    if MIN {
        return none;
    }
    let sum = _mm512_set1_epi32(sum);
    let times = match BITS {
        4 => _mm512_slli_epi32::<3>(sum),
        5 => _mm512_slli_epi32::<4>(sum),
        6 => _mm512_slli_epi32::<5>(sum),
        _ => _mm512_slli_epi32::<7>(sum),
    };
    _mm512_sub_epi32(none, times)
}

/// The bits of `group` above the low four, at their place.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn high<const BITS: usize>(line: __m512i, group: usize) -> __m512i {
    let at = if BITS == 5 { group } else { group % 4 * 2 };
    let moved = match at {
        0 => _mm512_slli_epi16::<4>(line),
        1 => _mm512_slli_epi16::<3>(line),
        2 => _mm512_slli_epi16::<2>(line),
        3 => _mm512_slli_epi16::<1>(line),
        4 => line,
        5 => _mm512_srli_epi16::<1>(line),
        6 => _mm512_srli_epi16::<2>(line),
        _ => _mm512_srli_epi16::<3>(line),
    };
    _mm512_and_si512(moved, _mm512_set1_epi8(if BITS == 5 { 0x10 } else { 0x30 }))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_half(scales: &[f16; TILE]) -> __m512 {
    // SAFETY: sixteen halves, 32 bytes, are there.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
}

/// Small integers times their unit.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_units(units: &[f16; TILE], small: &[i8; TILE]) -> __m512 {
    // SAFETY: sixteen bytes are there.
    let small = _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(small.as_ptr().cast()) });
    _mm512_mul_ps(load_half(units), _mm512_cvtepi32_ps(small))
}

/// Asks for the lines that many bytes on, of the next tile at the end of one.
#[inline(always)]
fn prefetch(lines: &[Line]) {
    for line in lines {
        // SAFETY: a prefetch reads nothing, so the address need not be within the matrix.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).wrapping_add(AHEAD).cast()) };
    }
}
