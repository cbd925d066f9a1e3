//! Choosing the next token from logits.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::kernels::{Level, log_sum_exp, top_two};

/// How tokens are chosen for one request, and the state of chance.
#[derive(Debug)]
pub(super) struct Sampler {
    temperature: f32,
    top_p: f32,
    state: u64,
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub id: u32,
    /// Natural logarithm of its probability at temperature 1.
    pub logprob: f32,
    /// Distance of the likeliest to the second.
    pub margin: f32,
}

/// Buffers of [`Sampler::choose`].
#[derive(Debug, Default)]
pub(super) struct SampleScratch {
    terms: Vec<f32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// Without a seed, chance differs from request to request.
    pub fn new(temperature: f32, top_p: f32, seed: Option<u64>) -> Self {
        Self { temperature, top_p, state: seed.unwrap_or_else(|| RandomState::new().build_hasher().finish()) }
    }

    /// The next token; `None` if the logits are not numbers.
    pub fn choose(&mut self, level: Level, logits: &[f32], scratch: &mut SampleScratch) -> Option<Choice> {
        scratch.terms.resize(logits.len(), 0.0);
        let (likeliest, first, second) = top_two(level, logits);
        let sum = log_sum_exp(level, logits, &mut scratch.terms);
        if !sum.is_finite() || !first.is_finite() {
            return None;
        }
        let id = if self.temperature > 0.0 { self.draw(logits, first, scratch) } else { likeliest };
        let margin = if second.is_finite() { first - second } else { 0.0 };
        Some(Choice { id: id as u32, logprob: (logits[id] - sum).min(0.0), margin })
    }

    /// Draws from the smallest set of likeliest tokens that has `top_p` of the mass.
    fn draw(&mut self, logits: &[f32], largest: f32, scratch: &mut SampleScratch) -> usize {
        let inverse = 1.0 / f64::from(self.temperature);
        let weight = |logit: f32| (f64::from(logit - largest) * inverse).exp() as f32;
        let total: f64 = logits.iter().map(|logit| f64::from(weight(*logit))).sum();
        // A token lighter than this can't be among them: all such together have less than 1 − top_p of the mass.
        let floor = (1.0 - f64::from(self.top_p)) * total / logits.len() as f64;
        let candidates = &mut scratch.candidates;
        candidates.clear();
        candidates.extend(
            logits.iter().map(|logit| weight(*logit)).zip(0..).filter(|(weight, _)| f64::from(*weight) >= floor),
        );
        if self.top_p < 1.0 {
            candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let wanted = f64::from(self.top_p) * total;
            let mut mass = 0.0;
            let enough = candidates.iter().position(|(weight, _)| {
                mass += f64::from(*weight);
                mass >= wanted
            });
            candidates.truncate(enough.map_or(candidates.len(), |at| at + 1));
        }
        let mass: f64 = candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
        let mut left = self.uniform() * mass;
        for (weight, id) in candidates.iter() {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *id as usize;
            }
        }
        candidates.last().map_or(0, |(_, id)| *id as usize)
    }

    /// Uniform in 0..1, by SplitMix64.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(temperature: f32, top_p: f32, logits: &[f32]) -> Vec<f64> {
        let (mut sampler, mut scratch) = (Sampler::new(temperature, top_p, Some(7)), SampleScratch::default());
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(Level::Scalar, logits, &mut scratch).unwrap().id as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn chances_are_those_of_the_softmax_within_the_nucleus() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let check = |temperature: f32, top_p: f32, expected: [f64; 4]| {
            for (got, want) in frequencies(temperature, top_p, &logits).into_iter().zip(expected) {
                assert!((got - want).abs() < 0.015, "temperature {temperature}, top-p {top_p}: {got} for {want}");
            }
        };
        check(0.0, 1.0, [1.0, 0.0, 0.0, 0.0]);
        check(1.0, 1.0, [0.5, 0.3, 0.15, 0.05]);
        check(1.0, 0.79, [0.625, 0.375, 0.0, 0.0]);
        check(1.0, 0.01, [1.0, 0.0, 0.0, 0.0]);
        let squares = 0.25 + 0.09 + 0.0225 + 0.0025;
        check(0.5, 1.0, [0.25 / squares, 0.09 / squares, 0.0225 / squares, 0.0025 / squares]);
    }

    #[test]
    fn a_choice_tells_its_probability_and_margin_and_refuses_what_is_no_number() {
        let mut scratch = SampleScratch::default();
        let mut choose = |logits: &[f32]| Sampler::new(0.0, 1.0, None).choose(Level::detect(), logits, &mut scratch);
        let choice = choose(&[0.25f32.ln(), 0.75f32.ln()]).unwrap();
        assert_eq!(choice.id, 1);
        assert!((choice.logprob - 0.75f32.ln()).abs() < 1e-5 && (choice.margin - 3f32.ln()).abs() < 1e-5);
        assert_eq!(choose(&[0.0, f32::NAN]), None);
        assert_eq!(choose(&[f32::NAN; 40]), None);
    }
}
