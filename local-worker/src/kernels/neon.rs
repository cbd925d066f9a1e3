//! Products with quantised matrices on 64-bit ARM: four outputs by four inputs an instruction where the processor has the
//! integer dot product, else by widening products and pairwise sums, which every such processor has.
//!
//! Weights are made signed by taking the zero point off; what is left fits a byte for every kind.
#![allow(unsafe_code, reason = "vector instructions; called only where the processor was found to have them")]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, vaddq_f32, vandq_u8, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s32,
    vdupq_n_u8, vfmaq_f32, vget_low_s8, vld1q_f32, vld1q_s32, vld1q_u8, vmull_high_s8, vmull_s8, vmulq_f32, vorrq_u8,
    vpadalq_s16, vpaddq_s32, vreinterpretq_s8_s32, vreinterpretq_s8_u8, vshlq_n_u8, vshrq_n_u8, vst1q_f32, vsubq_u8,
};
use std::ops::Range;

use half::f16;

use super::TILE;
use super::activation::{ActivationBlock, Activations};
use super::quantized::{Line, QuantizedMatrix, SUPER, TileView, by_kind};
use super::team::Output;
use super::vector::half_to_single;

/// Outputs of one register; a tile has four of these.
const QUARTER: usize = TILE / 4;

/// See [`super::Matrix::multiply`]; `DOT` needs the integer dot product.
pub(super) fn multiply<const DOT: bool>(
    matrix: &QuantizedMatrix,
    tiles: Range<usize>,
    input: &Activations,
    out: Output<'_>,
) {
    by_kind!(matrix.kind(), walk[DOT](matrix, tiles, input, out))
}

fn walk<const DOT: bool, const BITS: usize, const MIN: bool, const UNITS: bool, const PARTS: usize>(
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
                1 => some::<1, DOT, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
                2..=3 => some::<2, DOT, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
                _ => some::<4, DOT, BITS, MIN, UNITS, PARTS>(view, input, m, matrix.rows(), tile, out),
            };
        }
    }
}

/// One tile times `M` rows of input from `first` on; returns `M`.
fn some<const M: usize, const DOT: bool, const BITS: usize, const MIN: bool, const UNITS: bool, const PARTS: usize>(
    view: TileView<'_>,
    input: &Activations,
    first: usize,
    rows: usize,
    tile: usize,
    out: Output<'_>,
) -> usize {
    let inputs: [&[ActivationBlock]; M] = std::array::from_fn(|m| input.row_blocks(first + m));
    for quarter in 0..4 {
        let from = tile * TILE + quarter * QUARTER;
        let count = QUARTER.min(rows.saturating_sub(from));
        if count == 0 {
            break;
        }
        // SAFETY: `DOT` is asked for only where `Level::detect` found the dot product; the rest every such processor has.
        let total = unsafe {
            if DOT {
                quarter_dot::<M, BITS, MIN, UNITS, PARTS>(view, quarter, &inputs)
            } else {
                quarter_tile::<M, false, BITS, MIN, UNITS, PARTS>(view, quarter, &inputs)
            }
        };
        for (m, total) in total.iter().enumerate() {
            let mut sums = [0.0f32; QUARTER];
            // SAFETY: four floats fit the array.
            unsafe { vst1q_f32(sums.as_mut_ptr(), *total) };
            let at = (first + m) * rows + from;
            // SAFETY: these places belong to this tile, which one thread works.
            unsafe { out.put(at, &sums[..count]) };
        }
    }
    M
}

/// [`quarter_tile`], compiled for processors with the integer dot product.
#[target_feature(enable = "neon,dotprod")]
fn quarter_dot<const M: usize, const BITS: usize, const MIN: bool, const UNITS: bool, const PARTS: usize>(
    view: TileView<'_>,
    quarter: usize,
    inputs: &[&[ActivationBlock]; M],
) -> [float32x4_t; M] {
    // SAFETY: this function's own instruction sets are those the callee needs.
    unsafe { quarter_tile::<M, true, BITS, MIN, UNITS, PARTS>(view, quarter, inputs) }
}

/// Four lanes of a tile. With `DOT` only on a processor with the integer dot product.
#[inline(always)]
unsafe fn quarter_tile<
    const M: usize,
    const DOT: bool,
    const BITS: usize,
    const MIN: bool,
    const UNITS: bool,
    const PARTS: usize,
>(
    view: TileView<'_>,
    quarter: usize,
    inputs: &[&[ActivationBlock]; M],
) -> [float32x4_t; M] {
    let blocks = inputs[0].len();
    // SAFETY: plain vector arithmetic, which every 64-bit ARM processor has; loads stay within the slices taken below.
    unsafe {
        let mut total = [vdupq_n_f32(0.0); M];
        for (block, lines) in view.lines.as_chunks::<BITS>().0.iter().enumerate().take(blocks) {
            let now: [&ActivationBlock; M] = std::array::from_fn(|m| &inputs[m][block]);
            let dots = dots::<M, DOT, BITS, PARTS>(lines, quarter, view.zero as u8, &now);
            for part in 0..PARTS {
                let scale = if UNITS {
                    in_units(&view.scales[block / SUPER], &view.small_scales[block * PARTS + part], quarter)
                } else {
                    load_half(&view.scales[block], quarter)
                };
                for m in 0..M {
                    let dot = dots[part][m];
                    let sums = if DOT { dot[0] } else { vpaddq_s32(dot[0], dot[1]) };
                    let scale = vmulq_f32(scale, vdupq_n_f32(now[m].scale));
                    total[m] = vfmaq_f32(total[m], vcvtq_f32_s32(sums), scale);
                }
            }
            if MIN {
                let minima = if UNITS {
                    in_units(&view.minima[block / SUPER], &view.small_minima[block], quarter)
                } else {
                    load_half(&view.minima[block], quarter)
                };
                for m in 0..M {
                    total[m] = vaddq_f32(total[m], vmulq_f32(minima, vdupq_n_f32(now[m].total)));
                }
            }
        }
        total
    }
}

/// Integer products of four lanes with one block, part by part; see [`products`] for how they lie.
#[inline(always)]
unsafe fn dots<const M: usize, const DOT: bool, const BITS: usize, const PARTS: usize>(
    lines: &[Line; BITS],
    quarter: usize,
    zero: u8,
    now: &[&ActivationBlock; M],
) -> [[[int32x4_t; 2]; M]; PARTS] {
    // SAFETY: as in the caller.
    unsafe {
        let (zero, low) = (vdupq_n_u8(zero), vdupq_n_u8(15));
        let mut dots = [[[vdupq_n_s32(0); 2]; M]; PARTS];
        if BITS == 8 {
            for (group, line) in lines.iter().enumerate() {
                let weights = signed(load(line, quarter), zero);
                for m in 0..M {
                    dots[0][m] = products::<DOT>(dots[0][m], weights, now[m].word(group));
                }
            }
            return dots;
        }
        let above = [load(&lines[4.min(BITS - 1)], quarter), load(&lines[5.min(BITS - 1)], quarter)];
        for group in 0..4 {
            let both = load(&lines[group], quarter);
            let (mut near, mut far) = (vandq_u8(both, low), vshrq_n_u8::<4>(both));
            if BITS > 4 {
                near = vorrq_u8(near, high::<BITS>(above[0], group));
                far = vorrq_u8(far, high::<BITS>(above[1], group + 4));
            }
            let (near, far) = (signed(near, zero), signed(far, zero));
            for m in 0..M {
                dots[0][m] = products::<DOT>(dots[0][m], near, now[m].word(group));
                dots[PARTS - 1][m] = products::<DOT>(dots[PARTS - 1][m], far, now[m].word(group + 4));
            }
        }
        dots
    }
}

/// The bits of `group` above the low four, at their place.
#[inline(always)]
unsafe fn high<const BITS: usize>(line: uint8x16_t, group: usize) -> uint8x16_t {
    let at = if BITS == 5 { group } else { group % 4 * 2 };
    // SAFETY: instructions of every 64-bit ARM processor.
    unsafe {
        let moved = match at {
            0 => vshlq_n_u8::<4>(line),
            1 => vshlq_n_u8::<3>(line),
            2 => vshlq_n_u8::<2>(line),
            3 => vshlq_n_u8::<1>(line),
            4 => line,
            5 => vshrq_n_u8::<1>(line),
            6 => vshrq_n_u8::<2>(line),
            _ => vshrq_n_u8::<3>(line),
        };
        vandq_u8(moved, vdupq_n_u8(if BITS == 5 { 0x10 } else { 0x30 }))
    }
}

/// Adds the products of four times four signed bytes with the four of `word`. With the dot product the sums of the four
/// outputs lie in the first register; without it each output has two neighbours to be added at the end of a block.
#[inline(always)]
unsafe fn products<const DOT: bool>(dot: [int32x4_t; 2], weights: int8x16_t, word: i32) -> [int32x4_t; 2] {
    // SAFETY: `DOT` is asked for only on a processor that has the instruction; the rest every one has.
    unsafe {
        let word = vreinterpretq_s8_s32(vdupq_n_s32(word));
        if DOT {
            let mut sum = dot[0];
            std::arch::asm!(
                "sdot {sum:v}.4s, {weights:v}.16b, {word:v}.16b",
                sum = inout(vreg) sum,
                weights = in(vreg) weights,
                word = in(vreg) word,
                options(pure, nomem, nostack, preserves_flags),
            );
            return [sum, dot[1]];
        }
        let near = vmull_s8(vget_low_s8(weights), vget_low_s8(word));
        let far = vmull_high_s8(weights, word);
        [vpadalq_s16(dot[0], near), vpadalq_s16(dot[1], far)]
    }
}

/// Unsigned integers with their zero point taken off.
#[inline(always)]
unsafe fn signed(weights: uint8x16_t, zero: uint8x16_t) -> int8x16_t {
    // SAFETY: an instruction of every 64-bit ARM processor.
    unsafe { vreinterpretq_s8_u8(vsubq_u8(weights, zero)) }
}

#[inline(always)]
unsafe fn load(line: &Line, quarter: usize) -> uint8x16_t {
    let bytes = &line.0[quarter * 16..quarter * 16 + 16];
    // SAFETY: sixteen bytes are there.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline(always)]
unsafe fn load_half(scales: &[f16; TILE], quarter: usize) -> float32x4_t {
    let four: [f32; QUARTER] = std::array::from_fn(|lane| half_to_single(scales[quarter * QUARTER + lane]));
    // SAFETY: four floats are there.
    unsafe { vld1q_f32(four.as_ptr()) }
}

/// Small integers times their unit.
#[inline(always)]
unsafe fn in_units(units: &[f16; TILE], small: &[i8; TILE], quarter: usize) -> float32x4_t {
    let four: [i32; QUARTER] = std::array::from_fn(|lane| i32::from(small[quarter * QUARTER + lane]));
    // SAFETY: four integers are there.
    unsafe { vmulq_f32(load_half(units, quarter), vcvtq_f32_s32(vld1q_s32(four.as_ptr()))) }
}
