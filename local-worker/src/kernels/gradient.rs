//! The vector loops that training adds to those of decoding: each operation with what its backward pass needs, one row or
//! one head at a time. Gradients are added up in one fixed order, so a run can be repeated bit by bit.

use super::TILE;
use super::vector::{exponential, leveled, maximum, rms_factor, softmax_terms, sum_products};

leveled! {
    /// `out = x · factor · weight` with `factor = 1 / √(mean(x²) + epsilon)`, which is returned for the way back.
    pub fn rms_norm_forward(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) -> f32 {
        let factor = rms_factor(x, epsilon);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
        factor
    }
}

leveled! {
    /// Adds the gradient by `x` to `dx` and that by the weight to `dweight`, given the one by the output.
    pub fn rms_norm_backward(
        x: &[f32],
        weight: &[f32],
        factor: f32,
        dout: &[f32],
        dx: &mut [f32],
        dweight: &mut [f32],
    ) {
        let pull = sum_of_three(dout, x, weight) * factor * factor * factor / x.len().max(1) as f32;
        for ((((dx, dweight), dout), x), weight) in dx.iter_mut().zip(dweight).zip(dout).zip(x).zip(weight) {
            *dx += dout * weight * factor - x * pull;
            *dweight += dout * x * factor;
        }
    }
}

leveled! {
    /// The way back through `inner = gate · sigmoid(gate) · up`: `gate` and `up` become the gradients by them.
    pub fn silu_multiply_backward(gate: &mut [f32], up: &mut [f32], dinner: &[f32]) {
        for ((gate, up), dinner) in gate.iter_mut().zip(up).zip(dinner) {
            let share = 1.0 / (1.0 + exponential(-*gate));
            let dgate = dinner * *up * share * (1.0 + *gate * (1.0 - share));
            *up = dinner * *gate * share;
            *gate = dgate;
        }
    }
}

leveled! {
    /// Scores of a square, each row of which may look at itself and what is before, become shares; what is after gets none.
    pub fn causal_softmax(scores: &mut [f32], length: usize) {
        for (row, scores) in scores.chunks_exact_mut(length.max(1)).enumerate() {
            let (seen, hidden) = scores.split_at_mut(row + 1);
            let factor = 1.0 / softmax_terms(seen);
            seen.iter_mut().for_each(|share| *share *= factor);
            hidden.fill(0.0);
        }
    }
}

leveled! {
    /// The way back: `dshares` become the gradients by the scores, times `scale`.
    pub fn causal_softmax_backward(shares: &[f32], dshares: &mut [f32], length: usize, scale: f32) {
        let rows = shares.chunks_exact(length.max(1)).zip(dshares.chunks_exact_mut(length.max(1)));
        for (row, (shares, dshares)) in rows.enumerate() {
            let (seen, hidden) = dshares.split_at_mut(row + 1);
            let pull = sum_products(&shares[..row + 1], seen);
            for (dshare, share) in seen.iter_mut().zip(shares) {
                *dshare = share * (*dshare - pull) * scale;
            }
            hidden.fill(0.0);
        }
    }
}

leveled! {
    /// Cross entropy of one row: logits become their gradient times `weight`; the loss (unweighted) is returned.
    pub fn cross_entropy(logits: &mut [f32], target: usize, weight: f32) -> f32 {
        let largest = maximum(logits);
        let right = logits[target] - largest;
        let total = softmax_terms(logits);
        let factor = weight / total;
        logits.iter_mut().for_each(|logit| *logit *= factor);
        logits[target] -= weight;
        total.ln() - right
    }
}

/// What a teacher says of one row, and how much it counts.
#[derive(Clone, Copy, Debug)]
pub struct Soft<'a> {
    /// Its likeliest tokens.
    pub ids: &'a [u32],
    /// Their shares at the temperature; they add up to one.
    pub shares: &'a [f32],
    /// What logits of both are divided by.
    pub temperature: f32,
    /// Weight of the divergence, which counts temperature squared times (Hinton, Vinyals & Dean 2015, section 2).
    pub weight: f32,
}

leveled! {
    /// Adds to `gradient` what the divergence of the teacher's shares from those of `logits` pulls, and returns the divergence
    /// times temperature squared; `scratch` is as long as the logits.
    pub fn soft_divergence(logits: &[f32], soft: Soft<'_>, scratch: &mut [f32], gradient: &mut [f32]) -> f32 {
        let (heat, pull) = (1.0 / soft.temperature, soft.weight * soft.temperature);
        for (scratch, logit) in scratch.iter_mut().zip(logits) {
            *scratch = logit * heat;
        }
        let largest = maximum(scratch);
        let total = softmax_terms(scratch);
        let (factor, log_total) = (pull / total, total.ln());
        for (gradient, term) in gradient.iter_mut().zip(&*scratch) {
            *gradient += term * factor;
        }
        let mut divergence = 0.0;
        for (id, share) in soft.ids.iter().zip(soft.shares) {
            let (Some(gradient), Some(logit)) = (gradient.get_mut(*id as usize), logits.get(*id as usize)) else {
                continue;
            };
            *gradient -= pull * share;
            if *share > 0.0 {
                divergence += share * (share.ln() - (logit * heat - largest - log_total));
            }
        }
        divergence * soft.temperature * soft.temperature
    }
}

leveled! {
    /// The way back through [`super::rope_neighbours`]: turns the other way.
    pub fn rope_neighbours_backward(values: &mut [f32], head: usize, cosines: &[f32], sines: &[f32]) {
        for values in values.chunks_exact_mut(head) {
            for ((pair, cosine), sine) in values.as_chunks_mut::<2>().0.iter_mut().zip(cosines).zip(sines) {
                *pair = [pair[0] * cosine + pair[1] * sine, pair[1] * cosine - pair[0] * sine];
            }
        }
    }
}

/// What AdamW (Loshchilov & Hutter 2019) needs to know beside weights and gradients.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// Learning rate, over the correction of the first moment.
    pub rate: f32,
    /// What is kept of a weight: 1 less the learning rate times the decay.
    pub keep: f32,
    /// What is kept of the first moment.
    pub beta1: f32,
    /// What is kept of the second moment.
    pub beta2: f32,
    /// 1 over the correction of the second moment.
    pub correction2: f32,
    /// What gradients are multiplied by: 1 over the batch's weight, and what clipping leaves.
    pub scale: f32,
}

/// Keeps the division finite.
const EPSILON: f32 = 1e-8;

leveled! {
    /// Moves weights and moments by one step.
    pub fn adam_step(
        adam: Adam,
        weights: &mut [f32],
        gradients: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        for (((weight, gradient), first), second) in weights.iter_mut().zip(gradients).zip(first).zip(second) {
            let gradient = gradient * adam.scale;
            *first = adam.beta1 * *first + (1.0 - adam.beta1) * gradient;
            *second = adam.beta2 * *second + (1.0 - adam.beta2) * gradient * gradient;
            *weight = *weight * adam.keep - adam.rate * *first / ((*second * adam.correction2).sqrt() + EPSILON);
        }
    }
}

leveled! {
    /// `x += y`, and the sum of squares of what `x` becomes.
    pub fn add_and_square(x: &mut [f32], y: &[f32]) -> f32 {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
        sum_products(x, x)
    }
}

/// `Σ x · y · z`, of one length.
#[inline(always)]
fn sum_of_three(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    let mut total = [0.0f32; TILE];
    let ((x, x_rest), (y, y_rest), (z, z_rest)) = (x.as_chunks::<TILE>(), y.as_chunks::<TILE>(), z.as_chunks::<TILE>());
    for ((x, y), z) in x.iter().zip(y).zip(z) {
        for (((total, x), y), z) in total.iter_mut().zip(x).zip(y).zip(z) {
            *total += x * y * z;
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).zip(z_rest).map(|((x, y), z)| x * y * z).sum();
    total.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests;
