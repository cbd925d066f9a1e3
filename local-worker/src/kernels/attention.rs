//! Attention of one head over what a sequence has stored. Written by hand for each instruction set: what compilers make of
//! these two loops differs by a factor of three between neighbouring forms of the same code.
#![allow(unsafe_code, reason = "vector instructions; called only where the processor was found to have them")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _mm_add_ps, _mm_cvtss_f32, _mm_hadd_ps, _mm256_castps256_ps128, _mm256_extractf128_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use super::vector::{softmax, sum_products};
use super::{Level, TILE};

/// `out = softmax(scale · query · keysᵀ) · values` over `scores.len()` positions. Keys and values lie position after
/// position, each as long as the query; `scores` is scratch.
pub fn attend(
    level: Level,
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    scale: f32,
    scores: &mut [f32],
    out: &mut [f32],
) {
    // Heads of other sizes than sixteens are rare and small.
    let level = if query.len().is_multiple_of(TILE) { level } else { Level::Scalar };
    match level {
        Level::Scalar => scores_portable(query, keys, scale, scores),
        // SAFETY: `Level::detect` found the instructions, here and below.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { scores_avx2(query, keys, scale, scores) },
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { scores_avx512(query, keys, scale, scores) },
        _ => scores_portable(query, keys, scale, scores),
    }
    let inverse = 1.0 / softmax(level, scores);
    match level {
        Level::Scalar => weigh_portable(scores, values, inverse, out),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { weigh_avx2(scores, values, inverse, out) },
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { weigh_avx512(scores, values, inverse, out) },
        _ => weigh_portable(scores, values, inverse, out),
    }
}

fn scores_portable(query: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len())) {
        *score = sum_products(query, key) * scale;
    }
}

fn weigh_portable(scores: &[f32], values: &[f32], inverse: f32, out: &mut [f32]) {
    out.fill(0.0);
    for (score, value) in scores.iter().zip(values.chunks_exact(out.len())) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += score * value;
        }
    }
    out.iter_mut().for_each(|out| *out *= inverse);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn scores_avx512(query: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
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
fn weigh_avx512(scores: &[f32], values: &[f32], inverse: f32, out: &mut [f32]) {
    let head = out.len();
    let mut from = 0;
    while from < head {
        from += match head - from {
            left if left >= 64 => weigh_some_avx512::<4>(scores, values, inverse, from, out),
            _ => weigh_some_avx512::<1>(scores, values, inverse, from, out),
        };
    }
}

/// `16 · N` neighbouring sums, kept in registers over all positions; returns how many.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn weigh_some_avx512<const N: usize>(
    scores: &[f32],
    values: &[f32],
    inverse: f32,
    from: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [_mm512_setzero_ps(); N];
    for (score, value) in scores.iter().zip(values.chunks_exact(out.len())) {
        let score = _mm512_set1_ps(*score);
        let value = value[from..from + 16 * N].as_chunks::<16>().0;
        for n in 0..N {
            sums[n] = _mm512_fmadd_ps(score, load16(&value[n]), sums[n]);
        }
    }
    for (out, sum) in out[from..from + 16 * N].as_chunks_mut::<16>().0.iter_mut().zip(sums) {
        // SAFETY: sixteen floats fit.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(sum, _mm512_set1_ps(inverse))) };
    }
    16 * N
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn load16(values: &[f32; 16]) -> __m512 {
    // SAFETY: sixteen floats are there.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn scores_avx2(query: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
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
#[target_feature(enable = "avx2,fma")]
fn weigh_avx2(scores: &[f32], values: &[f32], inverse: f32, out: &mut [f32]) {
    let head = out.len();
    let mut from = 0;
    while from < head {
        from += match head - from {
            left if left >= 64 => weigh_some_avx2::<8>(scores, values, inverse, from, out),
            _ => weigh_some_avx2::<2>(scores, values, inverse, from, out),
        };
    }
}

/// `8 · N` neighbouring sums, kept in registers over all positions; returns how many.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn weigh_some_avx2<const N: usize>(
    scores: &[f32],
    values: &[f32],
    inverse: f32,
    from: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [_mm256_setzero_ps(); N];
    for (score, value) in scores.iter().zip(values.chunks_exact(out.len())) {
        let score = _mm256_set1_ps(*score);
        let value = value[from..from + 8 * N].as_chunks::<8>().0;
        for n in 0..N {
            sums[n] = _mm256_fmadd_ps(score, load8(&value[n]), sums[n]);
        }
    }
    for (out, sum) in out[from..from + 8 * N].as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        // SAFETY: eight floats fit.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(sum, _mm256_set1_ps(inverse))) };
    }
    8 * N
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn load8(values: &[f32; 8]) -> __m256 {
    // SAFETY: eight floats are there.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_the_textbook_one_at_every_level() {
        for (head, positions) in [(40, 21), (16, 1), (64, 33), (80, 7), (128, 100), (6, 5)] {
            let wave = |seed: usize, count: usize| {
                (0..count).map(|i| ((i * 7 + seed) as f32 * 0.37).sin()).collect::<Vec<_>>()
            };
            let (query, keys, values) = (wave(1, head), wave(2, head * positions), wave(3, head * positions));
            let scale = 0.3f32;
            let terms: Vec<f64> = (0..positions)
                .map(|p| {
                    let dot: f64 = (0..head).map(|d| f64::from(query[d] * keys[p * head + d])).sum();
                    (dot * f64::from(scale)).exp()
                })
                .collect();
            let sum: f64 = terms.iter().sum();
            for level in Level::available() {
                let (mut scores, mut out) = (vec![0.0; positions], vec![0.0; head]);
                attend(level, &query, &keys, &values, scale, &mut scores, &mut out);
                for d in 0..head {
                    let want: f64 =
                        (0..positions).map(|p| terms[p] * f64::from(values[p * head + d])).sum::<f64>() / sum;
                    assert!((f64::from(out[d]) - want).abs() < 1e-5, "{level:?} {d}: {} for {want}", out[d]);
                }
            }
        }
    }
}
