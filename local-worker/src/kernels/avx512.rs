//! Products with quantised matrices by the integer dot product of AVX-512 (VNNI): sixteen outputs by four inputs an
//! instruction. The zero point is taken off by where the sum starts, so it takes no time.
#![allow(unsafe_code, reason = "vector instructions; called only where the processor was found to have them")]

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_and_si512, _mm512_cvtepi32_ps,
    _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_si512, _mm512_loadu_ps, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srli_epi16,
    _mm512_storeu_ps,
};
use std::ops::Range;

use half::f16;

use super::TILE;
use super::activation::{ActivationBlock, Activations};
use super::quantized::{Line, QuantizedMatrix, TileView, by_kind};
use super::team::Output;

/// How far ahead of use weights are asked for, in lines of 64 bytes.
const AHEAD: usize = 64;

/// See [`super::Matrix::multiply`].
pub(super) fn multiply(matrix: &QuantizedMatrix, tiles: Range<usize>, input: &Activations, out: Output<'_>) {
    // SAFETY: `Level::detect` found every instruction set named below.
    unsafe { by_kind!(matrix.kind(), walk [] (matrix, tiles, input, out)) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn walk<const FOUR: bool, const MIN: bool, const WIDE: bool, const PARTS: usize>(
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
                1 => some::<1, FOUR, MIN, WIDE, PARTS>(view, input, m, matrix.rows(), tile, out),
                2 => some::<2, FOUR, MIN, WIDE, PARTS>(view, input, m, matrix.rows(), tile, out),
                3 => some::<3, FOUR, MIN, WIDE, PARTS>(view, input, m, matrix.rows(), tile, out),
                4..=7 => some::<4, FOUR, MIN, WIDE, PARTS>(view, input, m, matrix.rows(), tile, out),
                _ => some::<8, FOUR, MIN, WIDE, PARTS>(view, input, m, matrix.rows(), tile, out),
            };
        }
    }
}

/// One tile times `M` rows of input from `first` on; returns `M`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn some<const M: usize, const FOUR: bool, const MIN: bool, const WIDE: bool, const PARTS: usize>(
    view: TileView<'_>,
    input: &Activations,
    first: usize,
    rows: usize,
    tile: usize,
    out: Output<'_>,
) -> usize {
    let inputs: [&[ActivationBlock]; M] = std::array::from_fn(|m| input.row_blocks(first + m));
    let blocks = inputs[0].len();
    let per_block = if FOUR { 4 } else { 8 };
    let low = _mm512_set1_epi8(15);
    let mut total = [_mm512_setzero_ps(); M];
    for (block, lines) in view.lines.chunks_exact(per_block).enumerate().take(blocks) {
        prefetch(view.lines, block * per_block + AHEAD, per_block);
        let mut now = [&inputs[0][block]; M];
        for m in 1..M {
            // SAFETY: every row has as many blocks, and `block` is below that.
            now[m] = unsafe { inputs[m].get_unchecked(block) };
        }
        for part in 0..PARTS {
            let mut dot = [_mm512_setzero_si512(); M];
            for m in 0..M {
                dot[m] = _mm512_set1_epi32(now[m].sum::<PARTS>(part).wrapping_mul(-view.zero));
            }
            if FOUR {
                for (group, line) in lines.iter().enumerate() {
                    let both = load(line);
                    let (near, far) =
                        (_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low));
                    for m in 0..M {
                        dot[m] = _mm512_dpbusd_epi32(dot[m], near, _mm512_set1_epi32(now[m].word(group)));
                        dot[m] = _mm512_dpbusd_epi32(dot[m], far, _mm512_set1_epi32(now[m].word(group + 4)));
                    }
                }
            } else {
                let from = part * (8 / PARTS);
                for (group, line) in (from..).zip(&lines[from..from + 8 / PARTS]) {
                    let weights = load(line);
                    for m in 0..M {
                        dot[m] = _mm512_dpbusd_epi32(dot[m], weights, _mm512_set1_epi32(now[m].word(group)));
                    }
                }
            }
            let at = block * PARTS + part;
            let scale = if WIDE { load_wide(&view.wide_scales[at]) } else { load_half(&view.half_scales[at]) };
            for m in 0..M {
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(now[m].scale));
                total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[m]), scale, total[m]);
            }
        }
        if MIN {
            let minimum = if WIDE { load_wide(&view.wide_minima[block]) } else { load_half(&view.half_minima[block]) };
            for m in 0..M {
                total[m] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(now[m].total), total[m]);
            }
        }
    }
    for (m, total) in total.iter().enumerate() {
        let mut sums = [0.0f32; TILE];
        // SAFETY: sixteen floats fit the array.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *total) };
        let count = TILE.min(rows - tile * TILE);
        let at = (first + m) * rows + tile * TILE;
        // SAFETY: these places belong to this tile, which one thread works.
        unsafe { out.put(at, &sums[..count]) };
    }
    M
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_wide(scales: &[f32; TILE]) -> __m512 {
    // SAFETY: sixteen floats are there.
    unsafe { _mm512_loadu_ps(scales.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_half(scales: &[f16; TILE]) -> __m512 {
    // SAFETY: sixteen halves, 32 bytes, are there.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
}

#[inline(always)]
fn prefetch(lines: &[Line], from: usize, count: usize) {
    for line in lines.get(from..from + count).unwrap_or(&[]) {
        // SAFETY: the address lies within the slice; a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.0.as_ptr().cast()) };
    }
}
