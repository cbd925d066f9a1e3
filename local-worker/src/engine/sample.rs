//! Choosing the next token from logits: penalties, then what the answer must look like (a mask), temperature, top-k, top-p
//! and min-p, in the order that Hugging Face `transformers` and vLLM take them.
//!
//! A draw depends on the seed, on how many draws the request has made and on the logits, never on what runs beside it.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::request::GenerateRequest;
use crate::kernels::{Level, log_sum_exp, top_two};

/// How tokens are chosen for one request; ranges as checked when it was submitted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sampling {
    pub temperature: f32,
    /// 0 takes all.
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub seed: Option<u64>,
    /// Likeliest tokens to tell with each choice.
    pub alternatives: usize,
}

impl From<&GenerateRequest> for Sampling {
    fn from(request: &GenerateRequest) -> Self {
        Self {
            temperature: request.temperature,
            top_k: request.top_k.unwrap_or(0) as usize,
            top_p: request.top_p,
            min_p: request.min_p,
            repetition_penalty: request.repetition_penalty,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            seed: request.seed,
            alternatives: request.logprobs.unwrap_or(0) as usize,
        }
    }
}

impl Sampling {
    /// Whether what was said before changes what comes next.
    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// How tokens are chosen for one request, and the state of chance.
#[derive(Debug)]
pub(super) struct Sampler {
    sampling: Sampling,
    state: u64,
    /// How often each token was written; 0 for those of the prompt. Empty where nothing is penalised.
    seen: HashMap<u32, u32>,
    alternatives: Vec<(u32, f32)>,
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub id: u32,
    /// Natural logarithm of the probability the model gives it: at temperature 1, without penalties and masks.
    pub logprob: f32,
    /// Distance of the model's likeliest token to its second.
    pub margin: f32,
}

/// Why no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoChoice {
    /// The logits are not numbers.
    NotANumber,
    /// The mask forbids all.
    NothingAllowed,
}

/// Which tokens may come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed<'mask> {
    /// A bit for each token, 32 to a word.
    pub words: &'mask [u32],
    /// A token that may come as well if the model itself finds it likeliest.
    pub or_likeliest: Option<u32>,
}

impl Allowed<'_> {
    fn has(&self, id: usize, likeliest: usize) -> bool {
        self.words.get(id / 32).is_some_and(|word| word & (1 << (id % 32)) != 0)
            || (id == likeliest && self.or_likeliest == Some(id as u32))
    }
}

/// Buffers of [`Sampler::choose`].
#[derive(Debug, Default)]
pub(super) struct SampleScratch {
    terms: Vec<f32>,
    adjusted: Vec<f32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// Without a seed, chance differs from request to request.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let state = sampling.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let seen = if sampling.penalises() { prompt.iter().map(|id| (*id, 0)).collect() } else { HashMap::new() };
        Self { sampling, state, seen, alternatives: Vec::new() }
    }

    /// The likeliest tokens at the last choice with the model's log-probabilities, likeliest first; as many as asked for.
    pub fn alternatives(&self) -> &[(u32, f32)] {
        &self.alternatives
    }

    /// The next token, of those that may come.
    pub fn choose(
        &mut self,
        level: Level,
        logits: &[f32],
        allowed: Option<Allowed<'_>>,
        scratch: &mut SampleScratch,
    ) -> Result<Choice, NoChoice> {
        scratch.terms.resize(logits.len(), 0.0);
        let (likeliest, first, second) = top_two(level, logits);
        let sum = log_sum_exp(level, logits, &mut scratch.terms);
        if !sum.is_finite() || !first.is_finite() {
            return Err(NoChoice::NotANumber);
        }
        self.list_alternatives(logits, sum, scratch);
        let id = if allowed.is_some() || !self.seen.is_empty() {
            let mut adjusted = std::mem::take(&mut scratch.adjusted);
            let id = self.choose_adjusted(logits, allowed.map(|allowed| (allowed, likeliest)), &mut adjusted, scratch);
            scratch.adjusted = adjusted;
            id.ok_or(NoChoice::NothingAllowed)?
        } else if self.sampling.temperature > 0.0 {
            self.draw(logits, first, scratch)
        } else {
            likeliest
        };
        if self.sampling.penalises() {
            *self.seen.entry(id as u32).or_default() += 1;
        }
        let margin = if second.is_finite() { first - second } else { 0.0 };
        Ok(Choice { id: id as u32, logprob: (logits[id] - sum).min(0.0), margin })
    }

    /// Chooses after penalties, of tokens that may come beside the model's likeliest; `None` if nothing is left.
    fn choose_adjusted(
        &mut self,
        logits: &[f32],
        allowed: Option<(Allowed<'_>, usize)>,
        adjusted: &mut Vec<f32>,
        scratch: &mut SampleScratch,
    ) -> Option<usize> {
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        self.penalise(adjusted);
        if let Some((allowed, likeliest)) = allowed {
            for (id, logit) in adjusted.iter_mut().enumerate() {
                if !allowed.has(id, likeliest) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let largest = adjusted.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !largest.is_finite() {
            return None;
        }
        if self.sampling.temperature > 0.0 {
            return Some(self.draw(adjusted, largest, scratch));
        }
        adjusted.iter().position(|logit| *logit == largest)
    }

    /// Repetition: divides positive logits of tokens seen in prompt or answer and multiplies negative ones (Keskar et al. 2019,
    /// arXiv:1909.05858, section 4.1). Presence and frequency: subtracts once, and for each time, for tokens of the answer
    /// (OpenAI API reference).
    fn penalise(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty: repetition, presence_penalty, frequency_penalty, .. } = self.sampling;
        for (id, times) in &self.seen {
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            if *times > 0 {
                *logit -= presence_penalty + frequency_penalty * *times as f32;
            }
        }
    }

    fn list_alternatives(&mut self, logits: &[f32], sum: f32, scratch: &mut SampleScratch) {
        self.alternatives.clear();
        let wanted = self.sampling.alternatives.min(logits.len());
        if wanted == 0 {
            return;
        }
        let all = &mut scratch.candidates;
        all.clear();
        all.extend(logits.iter().copied().zip(0..));
        keep_largest(all, wanted);
        self.alternatives.extend(all.iter().map(|(logit, id)| (*id, (logit - sum).min(0.0))));
    }

    /// Draws from the `top_k` likeliest tokens, of those from the smallest set that has `top_p` of their mass, and of those
    /// from the ones at least `min_p` times as likely as the likeliest.
    fn draw(&mut self, logits: &[f32], largest: f32, scratch: &mut SampleScratch) -> usize {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let inverse = 1.0 / f64::from(temperature);
        let weight = |logit: f32| (f64::from(logit - largest) * inverse).exp() as f32;
        let candidates = &mut scratch.candidates;
        candidates.clear();
        let limited = (1..logits.len()).contains(&top_k);
        if limited {
            candidates.extend(logits.iter().copied().zip(0..));
            keep_largest(candidates, top_k);
            candidates.iter_mut().for_each(|(logit, _)| *logit = weight(*logit));
        } else {
            let total: f64 = logits.iter().map(|logit| f64::from(weight(*logit))).sum();
            // A token lighter than this can't be among them: all such together have less than 1 − top_p of the mass.
            let floor = (1.0 - f64::from(top_p)) * total / logits.len() as f64;
            let weights = logits.iter().map(|logit| weight(*logit)).zip(0..);
            candidates.extend(weights.filter(|(weight, _)| f64::from(*weight) >= floor && *weight > 0.0));
        }
        if top_p < 1.0 {
            let total: f64 = match limited {
                true => candidates.iter().map(|(weight, _)| f64::from(*weight)).sum(),
                false => logits.iter().map(|logit| f64::from(weight(*logit))).sum(),
            };
            candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let wanted = f64::from(top_p) * total;
            let mut mass = 0.0;
            let enough = candidates.iter().position(|(weight, _)| {
                mass += f64::from(*weight);
                mass >= wanted
            });
            candidates.truncate(enough.map_or(candidates.len(), |at| at + 1));
        }
        candidates.retain(|(weight, _)| *weight >= min_p);
        let mass: f64 = candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
        let mut left = uniform(&mut self.state) * mass;
        for (weight, id) in candidates.iter() {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *id as usize;
            }
        }
        candidates.last().map_or(0, |(_, id)| *id as usize)
    }
}

/// Keeps the `count` largest, largest first; of equal ones the first.
fn keep_largest(entries: &mut Vec<(f32, u32)>, count: usize) {
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if count < entries.len() {
        entries.select_nth_unstable_by(count, order);
        entries.truncate(count);
    }
    entries.sort_unstable_by(order);
}

/// Uniform in 0..1, by SplitMix64.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
