//! Attention over what a sequence has stored, for the queries that look at the same keys: each key and value is read, and
//! widened, once for up to four of them. Written by hand in registers: what compilers make of these two loops differs by a
//! factor of three between neighbouring forms of the same code.
//!
//! A score is summed in one order whatever stands beside it, and values are added position after position, so neither the
//! number of queries nor the parts in which a sequence is stored changes a bit.
#![allow(unsafe_code, reason = "vector instructions; called only where the processor was found to have them")]

mod lanes;

pub use lanes::Element;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512, _MM_HINT_T0, _mm_prefetch};

use super::vector::{soft_cap, softmax};
use super::{Level, TILE};
use lanes::Lanes;

/// Keys that are multiplied side by side.
const KEYS: usize = 4;
/// Queries that are served together.
const QUERIES: usize = 4;

/// How products of a query with keys become scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighing {
    /// Factor of each product.
    pub scale: f32,
    /// Bound of a score's size, drawn near by `cap · tanh(score / cap)` (Gemma 2); none usually.
    pub cap: Option<f32>,
}

/// Queries that look at one key head's keys.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// All of them, one after the other.
    pub values: &'a [f32],
    /// Numbers of one, and of a key or a value.
    pub head: usize,
    /// The neighbouring positions that they are of, in order, as many of each. The last sees all keys, each before it one fewer.
    pub rows: usize,
}

/// `out = softmax(scale · query · keysᵀ) · values` for each query, over as many positions as `scores` (scratch) has for each, or
/// fewer as [`Queries::rows`] says. Keys and values lie position after position in `parts` of some positions each; where parts
/// end makes no difference, to the bit.
pub fn attend<'kept, T: Element + 'kept>(
    level: Level,
    queries: Queries<'_>,
    parts: impl Iterator<Item = (&'kept [T], &'kept [T])> + Clone,
    weighing: &Weighing,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let Queries { values: queries, head, rows } = queries;
    let count = queries.len() / head;
    let (positions, of_row) = (scores.len() / count, count / rows);
    // Heads of other sizes than sixteens are rare and small.
    let level = if head.is_multiple_of(TILE) { level } else { Level::Scalar };
    let mut from = 0;
    let coming = parts.clone().skip(1).map(|(keys, _)| keys).chain(parts.clone().take(1).map(|(_, values)| values));
    for ((keys, _), next) in parts.clone().zip(coming) {
        let place = Place { from, positions, head, scale: weighing.scale };
        score_part(level, queries, keys, next, place, scores);
        from += keys.len() / head;
    }
    if let Some(cap) = weighing.cap {
        soft_cap(level, scores, cap);
    }
    for (number, scores) in scores.chunks_exact_mut(positions).enumerate() {
        let (seen, later) = scores.split_at_mut(positions + 1 + number / of_row - rows);
        let inverse = 1.0 / softmax(level, seen);
        super::multiply_by(level, seen, inverse);
        // Nothing of what comes later is added.
        later.fill(0.0);
    }
    out.fill(0.0);
    let mut from = 0;
    let coming = parts.clone().skip(1).map(|(_, values)| values).chain([&[] as &[T]]);
    for ((_, values), next) in parts.zip(coming) {
        weigh_part(level, scores, values, next, Place { from, positions, head, scale: 1.0 }, out);
        from += values.len() / head;
    }
}

/// Asks for the numbers from `from` on of what comes next: parts lie apart, too far for the processor to guess.
#[inline(always)]
fn fetch<T>(next: &[T], from: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    if !next.is_empty() {
        for at in (from..from + count).step_by(64 / size_of::<T>()) {
            // SAFETY: a prefetch reads nothing, so it may go beyond the end.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(next.as_ptr().wrapping_add(at).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (next, from, count);
}

/// Which positions a part is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The first.
    from: usize,
    /// Scores of a query.
    positions: usize,
    /// Numbers of a query, a key or a value.
    head: usize,
    /// Factor of a score.
    scale: f32,
}

/// Calls a kernel in the form for a level.
macro_rules! by_level {
    ($level:expr, $lanes:ident, $avx512:ident, $avx2:ident, $portable:ident, ($from:expr, $part:expr, $next:expr, $place:expr, $into:expr)) => {
        match $level {
            // SAFETY: `Level::detect` found the instructions, here and below.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { $avx2($from, $part, $next, $place, $into) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => unsafe { $avx512($from, $part, $next, $place, $into) },
            #[cfg(target_arch = "aarch64")]
            Level::Neon | Level::NeonDot => unsafe {
                $lanes::<std::arch::aarch64::float32x4_t, T>($from, $part, $next, $place, $into);
            },
            _ => $portable($from, $part, $place, $into),
        }
    };
}

fn score_part<T: Element>(level: Level, queries: &[f32], keys: &[T], next: &[T], place: Place, scores: &mut [f32]) {
    by_level!(level, score_lanes, score_avx512, score_avx2, score_portable, (queries, keys, next, place, scores));
}

fn weigh_part<T: Element>(level: Level, scores: &[f32], values: &[T], next: &[T], place: Place, out: &mut [f32]) {
    by_level!(level, weigh_lanes, weigh_avx512, weigh_avx2, weigh_portable, (scores, values, next, place, out));
}

/// The definition, which the other forms are held against.
fn score_portable<T: Element>(queries: &[f32], keys: &[T], place: Place, scores: &mut [f32]) {
    for (query, scores) in queries.chunks_exact(place.head).zip(scores.chunks_exact_mut(place.positions)) {
        for (score, key) in scores[place.from..].iter_mut().zip(keys.chunks_exact(place.head)) {
            *score = query.iter().zip(key).map(|(query, key)| query * key.single()).sum::<f32>() * place.scale;
        }
    }
}

fn weigh_portable<T: Element>(scores: &[f32], values: &[T], place: Place, out: &mut [f32]) {
    for (scores, out) in scores.chunks_exact(place.positions).zip(out.chunks_exact_mut(place.head)) {
        for (score, value) in scores[place.from..].iter().zip(values.chunks_exact(place.head)) {
            for (out, value) in out.iter_mut().zip(value) {
                *out += score * value.single();
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn score_avx512<T: Element>(queries: &[f32], keys: &[T], next: &[T], place: Place, scores: &mut [f32]) {
    // SAFETY: this function's own instructions are those the callee needs; so below.
    unsafe { score_lanes::<__m512, T>(queries, keys, next, place, scores) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn score_avx2<T: Element>(queries: &[f32], keys: &[T], next: &[T], place: Place, scores: &mut [f32]) {
    // SAFETY: as above.
    unsafe { score_lanes::<__m256, T>(queries, keys, next, place, scores) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn weigh_avx512<T: Element>(scores: &[f32], values: &[T], next: &[T], place: Place, out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { weigh_lanes::<__m512, T>(scores, values, next, place, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn weigh_avx2<T: Element>(scores: &[f32], values: &[T], next: &[T], place: Place, out: &mut [f32]) {
    // SAFETY: as above.
    unsafe { weigh_lanes::<__m256, T>(scores, values, next, place, out) }
}

/// Needs the instructions of `L`, and heads of whole sixteens.
#[inline(always)]
unsafe fn score_lanes<L: Lanes, T: Element>(
    queries: &[f32],
    keys: &[T],
    mut next: &[T],
    place: Place,
    scores: &mut [f32],
) {
    let some = queries.chunks(QUERIES * place.head).zip(scores.chunks_mut(QUERIES * place.positions));
    for (queries, scores) in some {
        // SAFETY: the caller's promise.
        unsafe {
            match queries.len() / place.head {
                1 => score_some::<L, T, 1>(queries, keys, next, place, scores),
                2 => score_some::<L, T, 2>(queries, keys, next, place, scores),
                3 => score_some::<L, T, 3>(queries, keys, next, place, scores),
                _ => score_some::<L, T, QUERIES>(queries, keys, next, place, scores),
            }
        }
        // Once is enough.
        next = &[];
    }
}

#[inline(always)]
unsafe fn score_some<L: Lanes, T: Element, const Q: usize>(
    queries: &[f32],
    keys: &[T],
    next: &[T],
    place: Place,
    scores: &mut [f32],
) {
    let head = place.head;
    let queries: [&[f32]; Q] = std::array::from_fn(|q| &queries[q * head..(q + 1) * head]);
    for (number, some) in keys.chunks(KEYS * head).enumerate() {
        let count = some.len() / head;
        fetch(next, number * KEYS * head, some.len());
        // Where fewer are left the last one is taken again, so that sums have one form.
        let key = |k: usize| some[k.min(count - 1) * head..][..head].as_ptr();
        let keys: [*const T; KEYS] = [key(0), key(1), key(2), key(3)];
        // SAFETY: the caller's promise; every key is `head` long, of which `at` is a whole register before the end.
        unsafe {
            let mut sums = [[L::splat(0.0); KEYS]; Q];
            for at in (0..head).step_by(L::WIDTH) {
                let keys = keys.map(|key| L::load(key.add(at)));
                for (sums, query) in sums.iter_mut().zip(queries) {
                    let query = L::load(query.as_ptr().add(at));
                    for (sum, key) in sums.iter_mut().zip(keys) {
                        *sum = sum.add_product(query, key);
                    }
                }
            }
            let from = place.from + number * KEYS;
            for q in 0..Q {
                let sums = L::sums(sums[q]).map(|sum| sum * place.scale);
                let scores = &mut scores[q * place.positions + from..];
                match scores.first_chunk_mut() {
                    Some(four) if count == KEYS => *four = sums,
                    _ => scores[..count].copy_from_slice(&sums[..count]),
                }
            }
        }
    }
}

/// Needs what [`score_lanes`] needs.
#[inline(always)]
unsafe fn weigh_lanes<L: Lanes, T: Element>(
    scores: &[f32],
    values: &[T],
    mut next: &[T],
    place: Place,
    out: &mut [f32],
) {
    let some = scores.chunks(QUERIES * place.positions).zip(out.chunks_mut(QUERIES * place.head));
    for (scores, out) in some {
        let mut at = 0;
        while at < place.head {
            // SAFETY: the caller's promise.
            at += unsafe {
                match out.len() / place.head {
                    1 => weigh_some::<L, T, 1, 8>(scores, values, next, place, at, out),
                    2 => weigh_some::<L, T, 2, 4>(scores, values, next, place, at, out),
                    3 => weigh_some::<L, T, 3, 4>(scores, values, next, place, at, out),
                    _ => weigh_some::<L, T, QUERIES, 4>(scores, values, next, place, at, out),
                }
            };
            // Once is enough.
            next = &[];
        }
    }
}

/// [`weigh_columns`] of `N` registers, of four or of one where so many are not left: few sums wait for each other.
#[inline(always)]
unsafe fn weigh_some<L: Lanes, T: Element, const Q: usize, const N: usize>(
    scores: &[f32],
    values: &[T],
    next: &[T],
    place: Place,
    at: usize,
    out: &mut [f32],
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        if place.head - at >= N * L::WIDTH {
            weigh_columns::<L, T, Q, N>(scores, values, next, place, at, out)
        } else if place.head - at >= 4 * L::WIDTH {
            weigh_columns::<L, T, Q, 4>(scores, values, next, place, at, out)
        } else {
            weigh_columns::<L, T, Q, 1>(scores, values, next, place, at, out)
        }
    }
}

/// `N` registers of neighbouring sums for `Q` queries, kept over all positions; returns how many numbers that is.
#[inline(always)]
unsafe fn weigh_columns<L: Lanes, T: Element, const Q: usize, const N: usize>(
    scores: &[f32],
    values: &[T],
    next: &[T],
    place: Place,
    at: usize,
    out: &mut [f32],
) -> usize {
    let (head, count) = (place.head, values.len() / place.head);
    let scores: [&[f32]; Q] = std::array::from_fn(|q| &scores[q * place.positions + place.from..][..count]);
    assert!(at + N * L::WIDTH <= head && out.len() >= Q * head, "columns of {head}");
    // SAFETY: the caller's promise; places are within their slices by the line above.
    unsafe {
        let mut sums: [[L; N]; Q] =
            std::array::from_fn(|q| std::array::from_fn(|n| L::load(out.as_ptr().add(q * head + at + n * L::WIDTH))));
        for (position, value) in values.chunks_exact(head).enumerate() {
            fetch(next, position * head, head);
            let value: [L; N] = std::array::from_fn(|n| L::load(value.as_ptr().add(at + n * L::WIDTH)));
            for (sums, scores) in sums.iter_mut().zip(scores) {
                let score = L::splat(*scores.get_unchecked(position));
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum = sum.add_product(score, value);
                }
            }
        }
        for (q, sums) in sums.into_iter().enumerate() {
            for (n, sum) in sums.into_iter().enumerate() {
                sum.store(out.as_mut_ptr().add(q * head + at + n * L::WIDTH));
            }
        }
    }
    N * L::WIDTH
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// In parts of so many positions.
    fn attend_in<T: Element>(
        level: Level,
        part: usize,
        queries: &[f32],
        keys: &[T],
        values: &[T],
        head: usize,
    ) -> Vec<f32> {
        let (mut scores, mut out) = (vec![0.0; queries.len() / head * keys.len() / head], vec![7.0; queries.len()]);
        let parts = keys.chunks(part * head).zip(values.chunks(part * head));
        let queries = Queries { values: queries, head, rows: 1 };
        attend(level, queries, parts, &Weighing { scale: 0.3, cap: None }, &mut scores, &mut out);
        out
    }

    #[test]
    fn rows_together_see_what_each_sees_alone() {
        let (head, positions, of_row) = if cfg!(miri) { (16, 35, 2) } else { (64, 71, 3) };
        let wave = |seed: usize, count: usize| (0..count).map(|i| ((i * 7 + seed) as f32 * 0.37).sin()).collect();
        let (keys, values): (Vec<f32>, Vec<f32>) = (wave(2, head * positions), wave(3, head * positions));
        for level in Level::available() {
            for rows in 1..=5 {
                let queries: Vec<f32> = wave(5, rows * of_row * head);
                let parts = keys.chunks(32 * head).zip(values.chunks(32 * head));
                let (mut scores, mut out) = (vec![0.0; rows * of_row * positions], vec![7.0; queries.len()]);
                let weighing = Weighing { scale: 0.3, cap: None };
                attend(level, Queries { values: &queries, head, rows }, parts, &weighing, &mut scores, &mut out);
                let each = queries.chunks(of_row * head).zip(out.chunks(of_row * head)).enumerate();
                for (row, (queries, out)) in each {
                    let seen = (positions + 1 + row - rows) * head;
                    let alone = attend_in(level, 32, queries, &keys[..seen], &values[..seen], head);
                    assert_eq!(alone, out, "row {row} of {rows}, {level:?}");
                }
            }
        }
    }

    #[test]
    fn attention_is_the_textbook_one_at_every_level_for_any_queries_and_in_any_parts() {
        for (head, positions, count) in [
            (40, 21, 2),
            (16, 1, 1),
            (64, 33, 3),
            (80, 7, 5),
            (128, 100, 1),
            (6, 5, 4),
            (256, 70, 4),
            (64, 66, 7),
            (96, 34, 2),
        ] {
            if cfg!(miri) && head * positions * count > 2000 {
                continue;
            }
            let wave = |seed: usize, count: usize| {
                (0..count).map(|i| ((i * 7 + seed) as f32 * 0.37).sin()).collect::<Vec<_>>()
            };
            let (queries, keys, values) = (wave(1, head * count), wave(2, head * positions), wave(3, head * positions));
            let halves = |values: &[f32]| values.iter().map(|value| f16::from_f32(*value)).collect::<Vec<_>>();
            let (half_keys, half_values) = (halves(&keys), halves(&values));
            let want: Vec<f64> = queries.chunks(head).flat_map(|query| textbook(query, &keys, &values)).collect();
            for level in Level::available() {
                let whole = attend_in(level, positions, &queries, &keys, &values, head);
                let half = attend_in(level, positions, &queries, &half_keys, &half_values, head);
                for (d, want) in want.iter().enumerate() {
                    assert!((f64::from(whole[d]) - want).abs() < 1e-5, "{level:?} {d}: {} for {want}", whole[d]);
                    assert!((f64::from(half[d]) - want).abs() < 4e-3, "{level:?} {d}: {} for {want}", half[d]);
                }
                for part in [1, 3, 32] {
                    assert_eq!(attend_in(level, part, &queries, &keys, &values, head), whole, "{level:?} {part}");
                    assert_eq!(
                        attend_in(level, part, &queries, &half_keys, &half_values, head),
                        half,
                        "{level:?} {part}"
                    );
                }
                for (query, among) in queries.chunks(head).zip(half.chunks(head)) {
                    let alone = attend_in(level, 32, query, &half_keys, &half_values, head);
                    assert_eq!(alone, among, "a query alone and among others, {level:?}");
                }
            }
        }
    }

    fn textbook(query: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
        let head = query.len();
        let dot = |key: &[f32]| query.iter().zip(key).map(|(q, k)| f64::from(q * k)).sum::<f64>();
        let terms: Vec<f64> = keys.chunks(head).map(|key| (dot(key) * f64::from(0.3f32)).exp()).collect();
        let sum: f64 = terms.iter().sum();
        let column =
            |d: usize| terms.iter().zip(values.chunks(head)).map(move |(term, value)| term * f64::from(value[d]));
        (0..head).map(|d| column(d).sum::<f64>() / sum).collect()
    }
}
