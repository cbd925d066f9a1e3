//! The vector loops of a transformer, written once as portable code in lanes of sixteen and compiled for each instruction
//! set. Sums are kept in sixteen lanes and added up in one fixed order, so every level gives the same bits.

use half::f16;

use super::TILE;
use super::activation::ActivationBlock;
use super::quantized::BLOCK;

/// Compiles a portable body once for each [`Level`], and a function that chooses.
macro_rules! leveled {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(unsafe_code, reason = "a function compiled for more instructions is called only where they were found")]
        $visibility fn $name(level: $crate::kernels::Level, $($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn portable($($argument: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($argument: $type),*) $(-> $result)? { portable($($argument),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512($($argument: $type),*) $(-> $result)? { portable($($argument),*) }
            match level {
                $crate::kernels::Level::Scalar => portable($($argument),*),
                // SAFETY: `Level::detect` found these instruction sets.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Level::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Level::Avx512Vnni => unsafe { avx512($($argument),*) },
                _ => portable($($argument),*),
            }
        }
    };
}
pub(super) use leveled;

/// Half precision to single without a call, so that the loop around it becomes vector code; infinities and NaN become large
/// finite numbers of their sign, and are refused when a file is loaded.
#[inline(always)]
pub(super) fn half_to_single(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Single precision to half, rounded to the nearest and to even between two; numbers beyond its range become its largest. The
/// same without a call.
#[inline(always)]
fn single_to_half(value: f32) -> f16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Below 2⁻¹⁴ halves are whole numbers of 2⁻²⁴, as are the last bits of what lies between one half and one.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = (magnitude + 0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    let finite = if magnitude < 113 << 23 { small } else { normal.min(0x7bff) };
    let half = if magnitude > 255 << 23 { 0x7e00 } else { finite };
    f16::from_bits((half | bits >> 16 & 0x8000) as u16)
}

leveled! {
    /// Numbers in half precision; what is beyond its range becomes its largest, what is no number stays so.
    pub fn halve(values: &[f32], into: &mut [f16]) {
        for (into, value) in into.iter_mut().zip(values) {
            *into = single_to_half(*value);
        }
    }
}

/// Adding and taking away this number rounds a smaller one to the nearest integer.
const ROUNDING: f32 = 12_582_912.0;

leveled! {
    /// 32 values as integers within ±127 of their largest.
    pub(super) fn quantize_block(values: &[f32; BLOCK], block: &mut ActivationBlock) {
        let mut largest = 0u32;
        for value in values {
            largest = largest.max(value.to_bits() & 0x7fff_ffff);
        }
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            *block = ActivationBlock { scale: f32::NAN, total: f32::NAN, ..ActivationBlock::ZERO };
            return;
        }
        if largest < 1e-30 {
            *block = ActivationBlock::ZERO;
            return;
        }
        block.scale = largest / 127.0;
        let inverse = 127.0 / largest;
        for (q, value) in block.q.iter_mut().zip(values) {
            *q = (value * inverse + ROUNDING).to_bits() as i8;
        }
        let [first, last] = [&block.q[..16], &block.q[16..]].map(|part| part.iter().map(|q| i32::from(*q)).sum::<i32>());
        block.sums = [first + last, first];
        block.total = block.sums[0] as f32 * block.scale;
    }
}

leveled! {
    /// `out = x / √(mean(x²) + epsilon) · weight`, all of one length.
    pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        let factor = rms_factor(x, epsilon);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }
}

leveled! {
    /// `out = (x − mean(x)) / √(variance(x) + epsilon) · weight + bias`, all of one length (the variance over all of `x`).
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
        let count = x.len().max(1) as f32;
        let mean = sum(x) / count;
        for (out, x) in out.iter_mut().zip(x) {
            *out = x - mean;
        }
        let factor = 1.0 / (sum_products(out, out) / count + epsilon).sqrt();
        for ((out, weight), bias) in out.iter_mut().zip(weight).zip(bias) {
            *out = *out * factor * weight + bias;
        }
    }
}

leveled! {
    /// [`rms_norm`] of every `weight.len()` values in their place: each head of a row, or each row.
    pub fn rms_norm_parts(values: &mut [f32], weight: &[f32], epsilon: f32) {
        for part in values.chunks_exact_mut(weight.len()) {
            let factor = rms_factor(part, epsilon);
            for (value, weight) in part.iter_mut().zip(weight) {
                *value = *value * factor * weight;
            }
        }
    }
}

leveled! {
    /// Turns pairs of values by their angle, in every head of `head` values: neighbours where files keep rows permuted for
    /// that (GGUF's Llama). The angles' cosines and sines may be fewer than half a head, the rest stays.
    pub fn rope_neighbours(values: &mut [f32], head: usize, cosines: &[f32], sines: &[f32]) {
        for values in values.chunks_exact_mut(head) {
            for ((pair, cosine), sine) in values.as_chunks_mut::<2>().0.iter_mut().zip(cosines).zip(sines) {
                *pair = [pair[0] * cosine - pair[1] * sine, pair[0] * sine + pair[1] * cosine];
            }
        }
    }
}

leveled! {
    /// As [`rope_neighbours`], a pair being the same places of the first and the second half of what is turned.
    pub fn rope_halves(values: &mut [f32], head: usize, cosines: &[f32], sines: &[f32]) {
        for values in values.chunks_exact_mut(head) {
            let (first, rest) = values.split_at_mut(cosines.len());
            for (((a, b), cosine), sine) in first.iter_mut().zip(rest).zip(cosines).zip(sines) {
                (*a, *b) = (*a * cosine - *b * sine, *a * sine + *b * cosine);
            }
        }
    }
}

leveled! {
    /// `x += y`.
    pub fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

leveled! {
    /// Adds one row to each row of `rows`.
    pub fn add_to_rows(rows: &mut [f32], row: &[f32]) {
        for values in rows.chunks_exact_mut(row.len().max(1)) {
            for (value, more) in values.iter_mut().zip(row) {
                *value += more;
            }
        }
    }
}

leveled! {
    /// `x · factor`, in its place.
    pub fn multiply_by(x: &mut [f32], factor: f32) {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

leveled! {
    /// `cap · tanh(x / cap)`, in its place: what Gemma 2 does to scores and logits.
    pub fn soft_cap(values: &mut [f32], cap: f32) {
        for value in values {
            *value = cap - 2.0 * cap / (exponential(*value / cap * 2.0) + 1.0);
        }
    }
}

leveled! {
    /// `out = gelu(gate) · up`, all of one length, by the approximation with tanh (Hendrycks and Gimpel 2016, section 2).
    pub fn gelu_multiply(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gelu_of(*gate) * up;
        }
    }
}

leveled! {
    /// `out = gelu(x)`, see [`gelu_multiply`].
    pub fn gelu(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = gelu_of(*x);
        }
    }
}

leveled! {
    /// `x = gelu(x)` as first defined, `x · Φ(x)`, in its place.
    pub fn gelu_exact(values: &mut [f32]) {
        for value in values {
            *value = 0.5 * *value * (1.0 + error_function(*value * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

leveled! {
    /// `sum += scale · bytes`, the bytes being integers within ±127; as many as the shorter one has.
    pub fn add_scaled_bytes(sum: &mut [f32], bytes: &[u8], scale: f32) {
        for (sum, byte) in sum.iter_mut().zip(bytes) {
            *sum += scale * f32::from(*byte as i8);
        }
    }
}

leveled! {
    /// Products of one vector with many that lie interleaved: `tiles` has, tile after tile and number after number, the bytes
    /// of [`TILE`] vectors as long as `vector`, whose length is a multiple of 4. One sum a vector goes to `sums`.
    pub fn products_with_tiles(vector: &[f32], tiles: &[i8], sums: &mut [f32]) {
        let tiles = tiles.as_chunks::<TILE>().0.chunks_exact(vector.len().max(1));
        for (sums, tile) in sums.as_chunks_mut::<TILE>().0.iter_mut().zip(tiles) {
            let mut totals = [[0.0f32; TILE]; 4];
            for (factors, columns) in vector.as_chunks::<4>().0.iter().zip(tile.as_chunks::<4>().0) {
                for ((total, factor), column) in totals.iter_mut().zip(factors).zip(columns) {
                    for (total, byte) in total.iter_mut().zip(column) {
                        *total += factor * f32::from(*byte);
                    }
                }
            }
            let [a, b, c, d] = totals;
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = (a[lane] + b[lane]) + (c[lane] + d[lane]);
            }
        }
    }
}

leveled! {
    /// Weighs neighbours by `e^(sharpness · (similarity − 1))`: the sum of their weights, the sum of their weighted values,
    /// and the greatest similarity (-1 without any). Lengths are a multiple of [`TILE`].
    pub fn weigh_neighbours(similarities: &[f32], values: &[f32], sharpness: f32) -> [f32; 3] {
        let (mut weights, mut sums, mut nearest) = ([0.0f32; TILE], [0.0f32; TILE], [-1.0f32; TILE]);
        for (similarities, values) in similarities.as_chunks::<TILE>().0.iter().zip(values.as_chunks::<TILE>().0) {
            let lanes = weights.iter_mut().zip(&mut sums).zip(&mut nearest);
            for (((total, sum), nearest), (similarity, value)) in lanes.zip(similarities.iter().zip(values)) {
                let weight = exponential(sharpness * (similarity - 1.0));
                *total += weight;
                *sum += weight * value;
                *nearest = if *similarity > *nearest { *similarity } else { *nearest };
            }
        }
        [weights.iter().sum(), sums.iter().sum(), nearest.iter().fold(-1.0, |most, near| near.max(most))]
    }
}

leveled! {
    /// `out = gate · sigmoid(gate) · up`, all of one length.
    pub fn silu_multiply(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exponential(-gate)) * up;
        }
    }
}

leveled! {
    /// Replaces each value by the exponential of its distance to the largest, and returns their sum.
    pub fn softmax(values: &mut [f32]) -> f32 {
        softmax_terms(values)
    }
}

leveled! {
    /// Natural logarithm of the sum of exponentials; `scratch` is as long.
    pub fn log_sum_exp(logits: &[f32], scratch: &mut [f32]) -> f32 {
        scratch.copy_from_slice(logits);
        let largest = maximum(logits);
        largest + softmax_terms(scratch).ln()
    }
}

leveled! {
    /// The index of the largest value, the largest and the second largest; the first of equals. Not-a-numbers never win, and
    /// of an empty slice the index is 0.
    pub fn top_two(values: &[f32]) -> (usize, f32, f32) {
        let (mut at, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
        for (chunk, part) in values.chunks(TILE).enumerate() {
            if maximum(part) <= second {
                continue;
            }
            for (index, value) in part.iter().enumerate() {
                if *value > first {
                    (at, first, second) = (chunk * TILE + index, *value, first);
                } else if *value > second {
                    second = *value;
                }
            }
        }
        (at, first, second)
    }
}

/// Replaces each value by the exponential of its distance to the largest, and returns their sum.
#[inline(always)]
pub(super) fn softmax_terms(values: &mut [f32]) -> f32 {
    let largest = maximum(values);
    let mut total = [0.0f32; TILE];
    let (lanes, rest) = values.as_chunks_mut::<TILE>();
    for lanes in lanes {
        for (value, total) in lanes.iter_mut().zip(&mut total) {
            *value = exponential(*value - largest);
            *total += *value;
        }
    }
    for (value, total) in rest.iter_mut().zip(&mut total) {
        *value = exponential(*value - largest);
        *total += *value;
    }
    total.iter().sum()
}

#[inline(always)]
pub(super) fn maximum(values: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; TILE];
    let (lanes, rest) = values.as_chunks::<TILE>();
    for lanes in lanes.iter().map(<[f32; TILE]>::as_slice).chain([rest]) {
        for (value, largest) in lanes.iter().zip(&mut largest) {
            *largest = if *value > *largest { *value } else { *largest };
        }
    }
    largest.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
}

/// `1 / √(mean(x²) + epsilon)`.
#[inline(always)]
pub(super) fn rms_factor(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum_products(x, x) / x.len().max(1) as f32 + epsilon).sqrt()
}

/// `x / 2 · (1 + tanh y) = x · sigmoid(2 y)` with `y = √(2/π) · (x + 0.044715 x³)`.
#[inline(always)]
fn gelu_of(x: f32) -> f32 {
    x / (1.0 + exponential(-1.595_769 * (x + 0.044_715 * x * x * x)))
}

/// `erf x` within 2e-7: Abramowitz and Stegun 1964, formula 7.1.26.
#[inline(always)]
fn error_function(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let mut sum = 1.061_405_4;
    for term in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6, 0.0] {
        sum = sum * t + term;
    }
    (1.0 - sum * exponential(-x * x)).copysign(x)
}

#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let mut total = [0.0f32; TILE];
    let (x, rest) = x.as_chunks::<TILE>();
    for x in x {
        for (total, x) in total.iter_mut().zip(x) {
            *total += x;
        }
    }
    total.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// The scalar product.
#[inline(always)]
pub fn sum_products(x: &[f32], y: &[f32]) -> f32 {
    let mut total = [0.0f32; TILE];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<TILE>(), y.as_chunks::<TILE>());
    for (x, y) in x.iter().zip(y) {
        for ((total, x), y) in total.iter_mut().zip(x).zip(y) {
            *total += x * y;
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    total.iter().sum::<f32>() + rest
}

/// `e^x` within 2 ulp-ish (relative error below 3e-7) for x in ±87, saturating outside: range reduction by ln 2 in two parts
/// and a polynomial of degree 6. No call and no branch, so that loops around it become vector code.
#[inline(always)]
pub(super) fn exponential(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDING;
    let power = shifted - ROUNDING;
    let rest = x - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let mut sum = 1.0 / 720.0;
    for term in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * rest + term;
    }
    // The low bits of `shifted` are the power as an integer.
    sum * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn halves_are_those_of_the_half_crate_for_every_pattern() {
        let step = if cfg!(miri) { 997 } else { 1 };
        let mut values: Vec<f32> = (0..=u16::MAX).step_by(step).map(|bits| f16::from_bits(bits).to_f32()).collect();
        // What lies just beside, half way to, and just before half way to the next.
        let beside =
            |value: &f32| [1, 0xfff, 0x1000, 0x1001, 0x1800].map(|more| f32::from_bits(value.to_bits() ^ more));
        values.extend(values.clone().iter().flat_map(beside));
        values.extend([f32::MIN_POSITIVE, 1e-40, f32::MAX, f32::MIN, 65520.0, 65519.9]);
        let mut halves = vec![f16::ZERO; values.len()];
        for level in Level::available() {
            halve(level, &values, &mut halves);
            for (value, half) in values.iter().zip(&halves) {
                let wanted = f16::from_f32(value.clamp(-65504.0, 65504.0));
                let same = if value.is_nan() { half.is_nan() } else { half.to_bits() == wanted.to_bits() };
                assert!(same, "{value:e} ({:x}): {half:?} for {wanted:?}, {level:?}", value.to_bits());
            }
        }
    }

    #[test]
    fn exponential_is_close() {
        for step in (-8700..=8700).step_by(if cfg!(miri) { 300 } else { 1 }) {
            let x = step as f32 / 100.0;
            let (got, want) = (f64::from(exponential(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3e-7 + 1e-6 * f64::from(x.abs()) / 87.0, "e^{x}: {got} for {want}");
        }
        assert!(exponential(f32::NAN).is_nan());
        assert!(exponential(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn norms_gates_and_turns_are_those_of_the_textbook() {
        let x: Vec<f32> = (0..40).map(|i| (i as f32 * 0.73).sin() * 3.0 + 0.5).collect();
        let weight: Vec<f32> = (0..40).map(|i| 1.0 + (i as f32 * 0.31).cos() * 0.2).collect();
        let near = |got: f32, want: f64| {
            assert!((f64::from(got) - want).abs() < 4e-6 * (1.0 + want.abs()), "{got} for {want}")
        };
        let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mean = wide.iter().sum::<f64>() / 40.0;
        let variance = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 40.0;
        for level in Level::available() {
            let mut out = vec![0.0; 40];
            layer_norm(level, &x, &weight, &x, 1e-5, &mut out);
            (0..40).for_each(|i| {
                near(out[i], (wide[i] - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + wide[i])
            });
            let mut parts = x.clone();
            rms_norm_parts(level, &mut parts, &weight[..8], 1e-5);
            for (i, got) in parts.iter().enumerate() {
                let square = wide[i / 8 * 8..][..8].iter().map(|x| x * x).sum::<f64>() / 8.0;
                near(*got, wide[i] / (square + 1e-5).sqrt() * f64::from(weight[i % 8]));
            }
            gelu(level, &x, &mut out);
            let exact =
                |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
            (0..40).for_each(|i| near(out[i], exact(wide[i])));
            // The normal distribution by its series (Marsaglia 2004).
            let normal = |x: f64| {
                let terms =
                    (1..60).scan(x, |term, k| Some(std::mem::replace(term, *term * x * x / f64::from(2 * k + 1))));
                0.5 + (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * terms.sum::<f64>()
            };
            let bytes: Vec<u8> = (0..40).map(|i| (i * 6 - 120) as i8 as u8).collect();
            let mut sum = x.clone();
            add_scaled_bytes(level, &mut sum, &bytes, 0.25);
            (0..40).for_each(|i| near(sum[i], wide[i] + 0.25 * f64::from(i as i32 * 6 - 120)));
            let mut exact = x.clone();
            gelu_exact(level, &mut exact);
            (0..40).for_each(|i| near(exact[i], wide[i] * normal(wide[i])));
            let mut capped = x.clone();
            soft_cap(level, &mut capped, 2.0);
            (0..40).for_each(|i| near(capped[i], 2.0 * (wide[i] / 2.0).tanh()));
            let (mut halves, mut neighbours) = (x.clone(), x.clone());
            let (cosines, sines) = ([0.6, 0.0, 1.0], [0.8, 1.0, 0.0]);
            rope_halves(level, &mut halves, 10, &cosines, &sines);
            rope_neighbours(level, &mut neighbours, 10, &cosines, &sines);
            for head in 0..4 {
                for pair in 0..3 {
                    for (got, at, apart) in [(&halves, head * 10 + pair, 3), (&neighbours, head * 10 + 2 * pair, 1)] {
                        let (a, b) = (wide[at], wide[at + apart]);
                        let (cosine, sine) = (f64::from(cosines[pair]), f64::from(sines[pair]));
                        near(got[at], a * cosine - b * sine);
                        near(got[at + apart], a * sine + b * cosine);
                    }
                }
                assert_eq!(
                    (&halves[head * 10 + 6..][..4], &neighbours[head * 10 + 6..][..4]),
                    (&x[head * 10 + 6..][..4], &x[head * 10 + 6..][..4])
                );
            }
        }
    }

    #[test]
    fn top_two_finds_the_first_of_equals() {
        let mut values: Vec<f32> = (0..100).map(|i| ((i * 37) % 91) as f32).collect();
        values[70] = 200.0;
        values[71] = 200.0;
        for level in Level::available() {
            assert_eq!(top_two(level, &values), (70, 200.0, 200.0));
            assert_eq!(top_two(level, &[1.0, f32::NAN, 3.0, 2.0]), (2, 3.0, 2.0));
        }
    }
}
