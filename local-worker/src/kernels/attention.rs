//! Attention of one head over what a sequence has stored. Written by hand for each instruction set: what compilers make of
//! these two loops differs by a factor of three between neighbouring forms of the same code.
#![allow(unsafe_code, reason = "vector instructions; called only where the processor was found to have them")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _mm_add_ps, _mm_cvtss_f32, _mm_hadd_ps, _mm_loadu_si128, _mm256_castps256_ps128, _mm256_cvtph_ps,
    _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_reduce_add_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use half::f16;

use super::vector::{half_to_single, soft_cap, softmax};
use super::{Level, TILE};

/// How products of a query with keys become scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighing {
    /// Factor of each product.
    pub scale: f32,
    /// Bound of a score's size, drawn near by `cap · tanh(score / cap)` (Gemma 2); none usually.
    pub cap: Option<f32>,
}

/// A number as it is stored.
pub trait Element: Copy {
    /// Whether it is half precision, else single.
    const HALF: bool;
    /// In single precision.
    fn single(self) -> f32;
}

impl Element for f32 {
    const HALF: bool = false;

    fn single(self) -> f32 {
        self
    }
}

impl Element for f16 {
    const HALF: bool = true;

    fn single(self) -> f32 {
        half_to_single(self)
    }
}

/// `out = softmax(scale · query · keysᵀ) · values` over `scores.len()` positions. Keys and values lie position after
/// position, each as long as the query, in `parts` of some positions each; `scores` is scratch. Where parts end makes no
/// difference, to the bit.
pub fn attend<'kept, T: Element + 'kept>(
    level: Level,
    query: &[f32],
    parts: impl Iterator<Item = (&'kept [T], &'kept [T])> + Clone,
    weighing: &Weighing,
    scores: &mut [f32],
    out: &mut [f32],
) {
    // Heads of other sizes than sixteens are rare and small.
    let level = if query.len().is_multiple_of(TILE) { level } else { Level::Scalar };
    let mut rest = &mut *scores;
    for (keys, _) in parts.clone() {
        let (part, others) = std::mem::take(&mut rest).split_at_mut(keys.len() / query.len());
        match level {
            // SAFETY: `Level::detect` found the instructions, here and below.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { scores_avx2(query, keys, weighing.scale, part) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => unsafe { scores_avx512(query, keys, weighing.scale, part) },
            _ => scores_portable(query, keys, weighing.scale, part),
        }
        rest = others;
    }
    if let Some(cap) = weighing.cap {
        soft_cap(level, scores, cap);
    }
    let inverse = 1.0 / softmax(level, scores);
    out.fill(0.0);
    let mut rest = &*scores;
    for (_, values) in parts {
        let (part, others) = rest.split_at(values.len() / query.len());
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { weigh_avx2(part, values, out) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => unsafe { weigh_avx512(part, values, out) },
            _ => weigh_portable(part, values, out),
        }
        rest = others;
    }
    out.iter_mut().for_each(|out| *out *= inverse);
}

fn scores_portable<T: Element>(query: &[f32], keys: &[T], scale: f32, scores: &mut [f32]) {
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len())) {
        let mut lanes = [0.0; TILE];
        for (query, key) in query.chunks(TILE).zip(key.chunks(TILE)) {
            for ((lane, query), key) in lanes.iter_mut().zip(query).zip(key) {
                *lane += query * key.single();
            }
        }
        *score = lanes.iter().sum::<f32>() * scale;
    }
}

fn weigh_portable<T: Element>(scores: &[f32], values: &[T], out: &mut [f32]) {
    for (score, value) in scores.iter().zip(values.chunks_exact(out.len())) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += score * value.single();
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn scores_avx512<T: Element>(query: &[f32], keys: &[T], scale: f32, scores: &mut [f32]) {
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len())) {
        let mut sum = _mm512_setzero_ps();
        for (query, key) in query.as_chunks::<16>().0.iter().zip(key.as_chunks::<16>().0) {
            sum = _mm512_fmadd_ps(load16(query), load16(key), sum);
        }
        *score = _mm512_reduce_add_ps(sum) * scale;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn weigh_avx512<T: Element>(scores: &[f32], values: &[T], out: &mut [f32]) {
    let head = out.len();
    let mut from = 0;
    while from < head {
        from += match head - from {
            left if left >= 64 => weigh_some_avx512::<T, 4>(scores, values, from, out),
            _ => weigh_some_avx512::<T, 1>(scores, values, from, out),
        };
    }
}

/// `16 · N` neighbouring sums, kept in registers over all positions; returns how many.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn weigh_some_avx512<T: Element, const N: usize>(scores: &[f32], values: &[T], from: usize, out: &mut [f32]) -> usize {
    let place = out[from..from + 16 * N].as_chunks::<16>().0;
    let mut sums = [_mm512_setzero_ps(); N];
    for (sum, old) in sums.iter_mut().zip(place) {
        *sum = load16(old);
    }
    for (score, value) in scores.iter().zip(values.chunks_exact(out.len())) {
        let score = _mm512_set1_ps(*score);
        let value = value[from..from + 16 * N].as_chunks::<16>().0;
        for n in 0..N {
            sums[n] = _mm512_fmadd_ps(score, load16(&value[n]), sums[n]);
        }
    }
    for (out, sum) in out[from..from + 16 * N].as_chunks_mut::<16>().0.iter_mut().zip(sums) {
        // SAFETY: sixteen floats fit.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
    16 * N
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn load16<T: Element>(values: &[T; 16]) -> __m512 {
    // SAFETY: sixteen numbers are there, of the kind they say.
    unsafe {
        if T::HALF {
            _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast()))
        } else {
            _mm512_loadu_ps(values.as_ptr().cast())
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn scores_avx2<T: Element>(query: &[f32], keys: &[T], scale: f32, scores: &mut [f32]) {
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len())) {
        let mut sums = [_mm256_setzero_ps(); 2];
        for (query, key) in query.as_chunks::<16>().0.iter().zip(key.as_chunks::<16>().0) {
            let (query, key) = (query.as_chunks::<8>().0, key.as_chunks::<8>().0);
            for half in 0..2 {
                sums[half] = _mm256_fmadd_ps(load8(&query[half]), load8(&key[half]), sums[half]);
            }
        }
        let four = |sum| _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
        let four = _mm_add_ps(four(sums[0]), four(sums[1]));
        let two = _mm_hadd_ps(four, four);
        *score = _mm_cvtss_f32(_mm_hadd_ps(two, two)) * scale;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn weigh_avx2<T: Element>(scores: &[f32], values: &[T], out: &mut [f32]) {
    let head = out.len();
    let mut from = 0;
    while from < head {
        from += match head - from {
            left if left >= 64 => weigh_some_avx2::<T, 8>(scores, values, from, out),
            _ => weigh_some_avx2::<T, 2>(scores, values, from, out),
        };
    }
}

/// `8 · N` neighbouring sums, kept in registers over all positions; returns how many.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn weigh_some_avx2<T: Element, const N: usize>(scores: &[f32], values: &[T], from: usize, out: &mut [f32]) -> usize {
    let place = out[from..from + 8 * N].as_chunks::<8>().0;
    let mut sums = [_mm256_setzero_ps(); N];
    for (sum, old) in sums.iter_mut().zip(place) {
        *sum = load8(old);
    }
    for (score, value) in scores.iter().zip(values.chunks_exact(out.len())) {
        let score = _mm256_set1_ps(*score);
        let value = value[from..from + 8 * N].as_chunks::<8>().0;
        for n in 0..N {
            sums[n] = _mm256_fmadd_ps(score, load8(&value[n]), sums[n]);
        }
    }
    for (out, sum) in out[from..from + 8 * N].as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        // SAFETY: eight floats fit.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
    8 * N
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load8<T: Element>(values: &[T; 8]) -> __m256 {
    // SAFETY: eight numbers are there, of the kind they say.
    unsafe {
        if T::HALF {
            _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().cast()))
        } else {
            _mm256_loadu_ps(values.as_ptr().cast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In parts of so many positions.
    fn attend_in<T: Element>(level: Level, part: usize, query: &[f32], keys: &[T], values: &[T]) -> Vec<f32> {
        let head = query.len();
        let (mut scores, mut out) = (vec![0.0; keys.len() / head], vec![7.0; head]);
        let parts = keys.chunks(part * head).zip(values.chunks(part * head));
        attend(level, query, parts, &Weighing { scale: 0.3, cap: None }, &mut scores, &mut out);
        out
    }

    #[test]
    fn attention_is_the_textbook_one_at_every_level_and_in_any_parts() {
        for (head, positions) in [(40, 21), (16, 1), (64, 33), (80, 7), (128, 100), (6, 5), (256, 70)] {
            let wave = |seed: usize, count: usize| {
                (0..count).map(|i| ((i * 7 + seed) as f32 * 0.37).sin()).collect::<Vec<_>>()
            };
            let (query, keys, values) = (wave(1, head), wave(2, head * positions), wave(3, head * positions));
            let halves = |values: &[f32]| values.iter().map(|value| f16::from_f32(*value)).collect::<Vec<_>>();
            let (half_keys, half_values) = (halves(&keys), halves(&values));
            let terms: Vec<f64> = (0..positions)
                .map(|p| {
                    let dot: f64 = (0..head).map(|d| f64::from(query[d] * keys[p * head + d])).sum();
                    (dot * f64::from(0.3f32)).exp()
                })
                .collect();
            let sum: f64 = terms.iter().sum();
            for level in Level::available() {
                let whole = attend_in(level, positions, &query, &keys, &values);
                let half = attend_in(level, positions, &query, &half_keys, &half_values);
                for d in 0..head {
                    let want: f64 =
                        (0..positions).map(|p| terms[p] * f64::from(values[p * head + d])).sum::<f64>() / sum;
                    assert!((f64::from(whole[d]) - want).abs() < 1e-5, "{level:?} {d}: {} for {want}", whole[d]);
                    assert!((f64::from(half[d]) - want).abs() < 4e-3, "{level:?} {d}: {} for {want}", half[d]);
                }
                for part in [1, 3, 32] {
                    assert_eq!(attend_in(level, part, &query, &keys, &values), whole, "{level:?} {part}");
                    assert_eq!(attend_in(level, part, &query, &half_keys, &half_values), half, "{level:?} {part}");
                }
            }
        }
    }
}
