//! Products with quantised matrices on AVX2: eight outputs by four inputs in three instructions.
//!
//! `maddubs` multiplies unsigned by signed bytes and adds pairs in 16 bits. Integers below 128 can't overflow that; full
//! bytes (zero point 128) are made signed first and their sign moved to the other side.
#![allow(unsafe_code, reason = "vector instructions; called only where the processor was found to have them")]

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi32, _mm256_and_si256,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_load_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8, _mm256_slli_epi16, _mm256_srli_epi16,
    _mm256_storeu_ps, _mm256_xor_si256,
};
use std::ops::Range;

use half::f16;

use super::TILE;
use super::activation::{ActivationBlock, Activations};
use super::quantized::{Line, QuantizedMatrix, SUPER, TileView, by_kind};
use super::team::Output;

/// See [`super::Matrix::multiply`].
pub(super) fn multiply(matrix: &QuantizedMatrix, tiles: Range<usize>, input: &Activations, out: Output<'_>) {
    // SAFETY: `Level::detect` found every instruction set named below.
    unsafe { by_kind!(matrix.kind(), walk [] (matrix, tiles, input, out)) }
}

#[target_feature(enable = "avx2,fma,f16c")]
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
                2..=3 => some::<2, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
                _ => some::<4, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
            };
        }
    }
}

/// One tile times `M` rows of input from `first` on; returns `M`.
#[target_feature(enable = "avx2,fma,f16c")]
fn some<const M: usize, const BITS: usize, const MIN: bool, const UNITS: bool, const PARTS: usize>(
    view: TileView<'_>,
    input: &Activations,
    first: usize,
    rows: usize,
    tile: usize,
    out: Output<'_>,
) -> usize {
    let inputs: [&[ActivationBlock]; M] = std::array::from_fn(|m| input.row_blocks(first + m));
    for half in 0..2 {
        let total = half_tile::<M, BITS, MIN, UNITS, PARTS>(view, half, &inputs);
        for (m, total) in total.iter().enumerate() {
            let mut sums = [0.0f32; 8];
            // SAFETY: eight floats fit the array.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), *total) };
            let from = tile * TILE + half * 8;
            let count = 8.min(rows.saturating_sub(from));
            let at = (first + m) * rows + from;
            if count > 0 {
                // SAFETY: these places belong to this tile, which one thread works.
                unsafe { out.put(at, &sums[..count]) };
            }
        }
    }
    M
}

/// Eight lanes of a tile, the first or the second half.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn half_tile<const M: usize, const BITS: usize, const MIN: bool, const UNITS: bool, const PARTS: usize>(
    view: TileView<'_>,
    half: usize,
    inputs: &[&[ActivationBlock]; M],
) -> [__m256; M] {
    let blocks = inputs[0].len();
    let mut total = [_mm256_setzero_ps(); M];
    for (block, lines) in view.lines.as_chunks::<BITS>().0.iter().enumerate().take(blocks) {
        let mut now = [&inputs[0][block]; M];
        for m in 1..M {
            // SAFETY: every row has as many blocks, and `block` is below that.
            now[m] = unsafe { inputs[m].get_unchecked(block) };
        }
        // SAFETY: this function's own instructions are those that are needed.
        let dots = unsafe { dots::<M, BITS, PARTS>(lines, half, view.zero, &now) };
        for (part, dots) in dots.iter().enumerate() {
            let scale = if UNITS {
                in_units(&view.scales[block / SUPER], &view.small_scales[block * PARTS + part], half)
            } else {
                load_half(&view.scales[block], half)
            };
            for m in 0..M {
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(now[m].scale));
                total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[m]), scale, total[m]);
            }
        }
        if MIN {
            let minima = if UNITS {
                in_units(&view.minima[block / SUPER], &view.small_minima[block], half)
            } else {
                load_half(&view.minima[block], half)
            };
            for m in 0..M {
                total[m] = _mm256_fmadd_ps(minima, _mm256_set1_ps(now[m].total), total[m]);
            }
        }
    }
    total
}

/// Integer products of half a tile with one block, part by part. Inlined, because sixteen sums handed over in memory would take as long again.
///
/// # Safety
/// Needs the instructions of the caller.
#[inline(always)]
unsafe fn dots<const M: usize, const BITS: usize, const PARTS: usize>(
    lines: &[Line; BITS],
    half: usize,
    zero: i32,
    now: &[&ActivationBlock; M],
) -> [[__m256i; M]; PARTS] {
    // SAFETY: the caller has the instructions.
    unsafe {
        let mut dots = [[_mm256_setzero_si256(); M]; PARTS];
        if BITS == 8 {
            for (group, line) in lines.iter().enumerate() {
                let weights = load(line, half);
                for m in 0..M {
                    dots[0][m] = full_dot(dots[0][m], weights, now[m].word(group));
                }
            }
            return dots;
        }
        for (part, dots) in dots.iter_mut().enumerate() {
            for (dot, now) in dots.iter_mut().zip(now) {
                *dot = _mm256_set1_epi32(now.sum::<PARTS>(part).wrapping_mul(-zero));
            }
        }
        let low = _mm256_set1_epi8(15);
        let above = [load(&lines[4.min(BITS - 1)], half), load(&lines[5.min(BITS - 1)], half)];
        for (group, line) in lines.iter().enumerate().take(4) {
            let both = load(line, half);
            let mut near = _mm256_and_si256(both, low);
            let mut far = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
            if BITS > 4 {
                near = _mm256_or_si256(near, high::<BITS>(above[0], group));
                far = _mm256_or_si256(far, high::<BITS>(above[1], group + 4));
            }
            for m in 0..M {
                dots[0][m] = small_dot(dots[0][m], near, now[m].word(group));
                dots[PARTS - 1][m] = small_dot(dots[PARTS - 1][m], far, now[m].word(group + 4));
            }
        }
        dots
    }
}

/// The bits of `group` above the low four, at their place.
#[inline]
#[target_feature(enable = "avx2")]
fn high<const BITS: usize>(line: __m256i, group: usize) -> __m256i {
    let at = if BITS == 5 { group } else { group % 4 * 2 };
    let moved = match at {
        0 => _mm256_slli_epi16::<4>(line),
        1 => _mm256_slli_epi16::<3>(line),
        2 => _mm256_slli_epi16::<2>(line),
        3 => _mm256_slli_epi16::<1>(line),
        4 => line,
        5 => _mm256_srli_epi16::<1>(line),
        6 => _mm256_srli_epi16::<2>(line),
        _ => _mm256_srli_epi16::<3>(line),
    };
    _mm256_and_si256(moved, _mm256_set1_epi8(if BITS == 5 { 0x10 } else { 0x30 }))
}

/// Adds the products of eight times four unsigned integers below 128 with the four signed ones of `word`.
#[inline]
#[target_feature(enable = "avx2")]
fn small_dot(dot: __m256i, weights: __m256i, word: i32) -> __m256i {
    let pairs = _mm256_maddubs_epi16(weights, _mm256_set1_epi32(word));
    _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// The same for full bytes around 128.
#[inline]
#[target_feature(enable = "avx2")]
fn full_dot(dot: __m256i, weights: __m256i, word: i32) -> __m256i {
    let signed = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(_mm256_set1_epi32(word), signed));
    _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(line: &Line, half: usize) -> __m256i {
    let bytes = &line.0[half * 32..half * 32 + 32];
    // SAFETY: 32 bytes, aligned to 32, as a line is to 64.
    unsafe { _mm256_load_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_half(scales: &[f16; TILE], half: usize) -> __m256 {
    let eight = &scales[half * 8..half * 8 + 8];
    // SAFETY: eight halves, 16 bytes, are there.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(eight.as_ptr().cast()) })
}

/// Small integers times their unit.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn in_units(units: &[f16; TILE], small: &[i8; TILE], half: usize) -> __m256 {
    let eight = &small[half * 8..half * 8 + 8];
    // SAFETY: eight bytes are there.
    let small = _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(eight.as_ptr().cast()) });
    _mm256_mul_ps(load_half(units, half), _mm256_cvtepi32_ps(small))
}
