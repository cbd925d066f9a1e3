//! Products whose factors are rounded to bfloat16 while they are packed; sums stay single. The dot product of AVX-512 (BF16)
//! takes two steps of the depth at once: twice the work of a single-precision product in an instruction.
//!
//! Panels of both factors hold pairs of the depth side by side, low half first. Blocks are as large as the caches like.
#![allow(unsafe_code, reason = "vector instructions; called only where the processor was found to have them")]

use super::{View, ViewMut};
use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_si512,
};
use std::cell::RefCell;
use std::mem::transmute;
use std::ops::Range;

/// Rows of the left factor in a panel.
const ROWS: usize = 12;
/// Columns of the right factor in a panel: two registers.
const COLUMNS: usize = 32;
/// Depth worked at once.
const DEPTH: usize = 512;
/// Rows of the left factor that stay in the second cache, a multiple of [`ROWS`].
const LEFT: usize = 192;
/// Columns of the right factor packed at once, a multiple of [`COLUMNS`].
const RIGHT: usize = 512;

thread_local! {
    /// Panels of both factors, kept from product to product.
    static PANELS: RefCell<(Vec<u32>, Vec<u32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Whether this processor has the instructions.
pub(super) fn possible() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bf16")
}

/// See [`super::product`]; only where it is [`possible`], columns of `out` are neighbours, and the sizes match.
pub(super) fn product(out: ViewMut<'_>, left: View<'_>, right: View<'_>, factor: f32, add: bool) {
    let ViewMut { values, places } = out;
    debug_assert!(possible() && places.column_step == 1, "{places:?}");
    PANELS.with_borrow_mut(|(lefts, rights)| {
        let (depth, columns) = (left.places.columns, right.places.columns);
        let (left, right) = (Lanes::of(left), Lanes::of(right.transposed()));
        for from in (0..depth).step_by(DEPTH) {
            let deep = from..(from + DEPTH).min(depth);
            let pairs = deep.len().div_ceil(2);
            // SAFETY: the processor has the instructions.
            unsafe { pack::<ROWS>(lefts, left, 0..left.count, deep.clone()) };
            for first in (0..columns).step_by(RIGHT) {
                // SAFETY: as before.
                unsafe { pack::<COLUMNS>(rights, right, first..(first + RIGHT).min(columns), deep.clone()) };
                for (block, lefts) in lefts.chunks(LEFT * pairs).enumerate() {
                    for (across, right) in rights.chunks_exact(COLUMNS * pairs).enumerate() {
                        for (down, left) in lefts.chunks_exact(ROWS * pairs).enumerate() {
                            let at = (block * LEFT + down * ROWS, first + across * COLUMNS);
                            let into = Into { step: places.row_step, at, end: (places.rows, places.columns) };
                            // SAFETY: as before.
                            unsafe { tile(left, right, values, into, (factor, add || from > 0)) };
                        }
                    }
                }
            }
        }
    });
}

/// A factor as lanes (rows of the left, columns of the right) along the depth.
#[derive(Clone, Copy)]
struct Lanes<'a> {
    values: &'a [f32],
    count: usize,
    step: usize,
    depth_step: usize,
}

impl<'a> Lanes<'a> {
    fn of(view: View<'a>) -> Self {
        let places = view.places;
        Self { values: view.values, count: places.rows, step: places.row_step, depth_step: places.column_step }
    }
}

/// Half the bits, rounded to the nearest, ties to even.
#[inline]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16
}

/// Some lanes along some of the depth as panels of `GROUP` lanes: pair after pair, a word for each lane, zeros where there is
/// none.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn pack<const GROUP: usize>(panels: &mut Vec<u32>, lanes: Lanes<'_>, some: Range<usize>, deep: Range<usize>) {
    let pairs = deep.len().div_ceil(2);
    panels.resize(some.len().div_ceil(GROUP) * pairs * GROUP, 0);
    for (first, panel) in some.clone().step_by(GROUP).zip(panels.chunks_exact_mut(pairs * GROUP)) {
        let count = GROUP.min(some.end - first);
        let panel = panel.as_chunks_mut::<GROUP>().0;
        if lanes.step == 1 {
            for (pair, words) in panel.iter_mut().enumerate() {
                let at = deep.start + 2 * pair;
                let across = |at: usize| &lanes.values[first + at * lanes.depth_step..][..count];
                for (word, low) in words.iter_mut().zip(across(at)) {
                    *word = round(*low);
                }
                if at + 1 < deep.end {
                    for (word, high) in words.iter_mut().zip(across(at + 1)) {
                        *word |= round(*high) << 16;
                    }
                }
                words[count..].fill(0);
            }
        } else {
            debug_assert_eq!(lanes.depth_step, 1, "one of the two steps is 1 in every view");
            for lane in 0..count {
                let along = &lanes.values[(first + lane) * lanes.step + deep.start..][..deep.len()];
                pack_lane(panel, lane, along);
            }
            for words in panel {
                words[count..].fill(0);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn pack_lane<const GROUP: usize>(panel: &mut [[u32; GROUP]], lane: usize, along: &[f32]) {
    let (whole, rest) = along.as_chunks::<32>();
    let (panel, last) = panel.split_at_mut(whole.len() * 16);
    for (values, words) in whole.iter().zip(panel.as_chunks_mut::<16>().0) {
        let mut rounded = [0_u32; 16];
        // SAFETY: both arrays are as long as what is read and written.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16)));
            let pairs = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(rounded.as_mut_ptr().cast(), pairs);
        }
        for (words, rounded) in words.iter_mut().zip(rounded) {
            words[lane] = rounded;
        }
    }
    for (words, pair) in last.iter_mut().zip(rest.chunks(2)) {
        words[lane] = round(pair[0]) | pair.get(1).map_or(0, |high| round(*high) << 16);
    }
}

/// Where a tile goes: its first row and column, and those behind the last of the whole.
#[derive(Clone, Copy)]
struct Into {
    step: usize,
    at: (usize, usize),
    end: (usize, usize),
}

/// A panel of rows times a panel of columns, all sums in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn tile(left: &[u32], right: &[u32], out: &mut [f32], into: Into, (factor, add): (f32, bool)) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for (left, right) in left.as_chunks::<ROWS>().0.iter().zip(right.as_chunks::<COLUMNS>().0) {
        // SAFETY: the array holds two registers; their bits are pairs of bfloat16.
        let (one, other) = unsafe {
            let (one, other) =
                (_mm512_loadu_si512(right.as_ptr().cast()), _mm512_loadu_si512(right.as_ptr().add(16).cast()));
            (transmute::<__m512i, __m512bh>(one), transmute::<__m512i, __m512bh>(other))
        };
        for (sums, left) in sums.iter_mut().zip(left) {
            // SAFETY: bits of pairs of bfloat16.
            let left = unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(left.cast_signed())) };
            sums[0] = _mm512_dpbf16_ps(sums[0], left, one);
            sums[1] = _mm512_dpbf16_ps(sums[1], left, other);
        }
    }
    let factor = _mm512_set1_ps(factor);
    for (row, sums) in (into.at.0..into.end.0).zip(sums) {
        for (column, sums) in (into.at.1..into.end.1).step_by(16).zip(sums) {
            let place = &mut out[row * into.step + column..][..16.min(into.end.1 - column)];
            let mask = ((1_u32 << place.len()) - 1) as u16;
            // SAFETY: the mask lets through as many lanes as the place is long.
            unsafe {
                let old = if add { _mm512_maskz_loadu_ps(mask, place.as_ptr()) } else { _mm512_setzero_ps() };
                _mm512_mask_storeu_ps(place.as_mut_ptr(), mask, _mm512_fmadd_ps(sums, factor, old));
            }
        }
    }
}
