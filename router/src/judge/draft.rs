//! What is looked at in a draft.

use std::collections::HashSet;

/// What is known of one token of a draft.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenFacts {
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// Distance of the likeliest token to the second, in nats; `None` where it is not told.
    pub margin: Option<f64>,
    /// Entropy of the distribution it was taken from, in nats; `None` where it is not told.
    pub entropy: Option<f64>,
}

impl TokenFacts {
    /// The entropy of a distribution of which the likeliest tokens are known; the rest counts as one more token, so this is a
    /// lower bound.
    pub fn entropy_of(logprobs: impl Iterator<Item = f64>) -> f64 {
        let (mut mass, mut entropy) = (0.0, 0.0);
        for logprob in logprobs {
            let probability = logprob.exp();
            mass += probability;
            entropy -= probability * logprob.max(-100.0);
        }
        let rest: f64 = 1.0 - mass;
        if rest > 1e-9 { entropy - rest * rest.ln() } else { entropy }
    }
}

/// A draft, finished or under way.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'draft> {
    /// What was asked: the last turn.
    pub prompt: &'draft str,
    /// The text so far.
    pub text: &'draft str,
    /// Its tokens.
    pub tokens: &'draft [TokenFacts],
    /// Whether it was cut at the limit of its length.
    pub cut: bool,
    /// The score of the prompt alone, a probability.
    pub prompt_score: Option<f64>,
    /// Whether it has the form that was asked for; `None` where none was. Where the prompt asks for JSON in words, its text
    /// is looked at.
    pub valid: Option<bool>,
    /// Share of the others that gave the same answer — a second sample, or another small model; `None` where nobody asked.
    pub agrees: Option<f64>,
}

/// How many features there are.
pub(super) const COUNT: usize = 17;

/// Names of the features, in order.
pub const FEATURES: [&str; COUNT] = [
    "mean_logprob",
    "min_logprob",
    "first_logprob",
    "mean_margin",
    "min_margin",
    "unsure_share",
    "mean_entropy",
    "max_entropy",
    "ln_tokens",
    "repeated_share",
    "cut",
    "copied_share",
    "prompt_logit",
    "valid",
    "agrees",
    "length_off",
    "prompt_logit_if_agreed",
];

/// Where the length stands among the features, and how far it is from what is expected: in standard deviations of the drafts
/// that the judge learnt from, so that only a fitted judge can tell.
pub(super) const LENGTH: usize = 8;
/// See [`LENGTH`].
pub(super) const LENGTH_OFF: usize = 15;

/// A margin beyond which surer is no better.
const SURE: f64 = 10.0;

/// The features of a finished draft, in the order of [`FEATURES`]; not a number where one is not known.
pub fn features(draft: &Draft<'_>) -> [f64; COUNT] {
    let tokens = draft.tokens;
    let logprobs = || tokens.iter().map(|token| token.logprob.max(-20.0));
    let margins: Vec<f64> = tokens.iter().filter_map(|token| token.margin).map(|margin| margin.min(SURE)).collect();
    let entropies: Vec<f64> = tokens.iter().filter_map(|token| token.entropy).collect();
    let unsure = margins.iter().filter(|margin| **margin < 1.0).count() as f64 / margins.len() as f64;
    let (repeated, copied) = words(draft);
    let known = |flag: Option<bool>| flag.map_or(f64::NAN, |flag| f64::from(u8::from(flag)));
    [
        mean(logprobs()),
        least(logprobs()),
        logprobs().next().unwrap_or(f64::NAN),
        mean(margins.iter().copied()),
        least(margins.iter().copied()),
        unsure,
        mean(entropies.iter().copied()),
        -least(entropies.iter().map(|entropy| -entropy)),
        (1.0 + tokens.len() as f64).ln(),
        repeated,
        f64::from(u8::from(draft.cut)),
        copied,
        draft.prompt_score.map_or(f64::NAN, logit),
        known(draft.valid.or_else(|| json_in_words(draft))),
        draft.agrees.unwrap_or(f64::NAN),
        f64::NAN,
        // What the prompt says counts less, or more, where another answered the same.
        draft.prompt_score.zip(draft.agrees).map_or(f64::NAN, |(score, agrees)| (agrees - 0.5) * logit(score)),
    ]
}

/// The features of how a draft begins: its first [`super::FIRST_LOOK`] tokens, without those that only an end tells.
pub fn prefix_features(draft: &Draft<'_>) -> [f64; COUNT] {
    let tokens = draft.tokens.get(..super::FIRST_LOOK).unwrap_or(draft.tokens);
    let mut values = features(&Draft { tokens, cut: false, valid: None, agrees: None, ..*draft });
    for at in [LENGTH, 9, 10, 11, 13] {
        values[at] = f64::NAN;
    }
    values
}

/// Whether the draft is JSON, where the prompt speaks of it.
fn json_in_words(draft: &Draft<'_>) -> Option<bool> {
    let asked = draft.prompt.contains("JSON") || draft.prompt.contains("json");
    asked.then(|| serde_json::from_str::<serde::de::IgnoredAny>(draft.text.trim()).is_ok())
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

fn least(values: impl Iterator<Item = f64>) -> f64 {
    values.reduce(f64::min).unwrap_or(f64::NAN)
}

fn logit(probability: f64) -> f64 {
    let probability = probability.clamp(1e-4, 1.0 - 1e-4);
    (probability / (1.0 - probability)).ln()
}

/// Shares of the draft's words that end a repeated run of three, and that the prompt has too.
fn words(draft: &Draft<'_>) -> (f64, f64) {
    let of = |text: &str| -> Vec<String> {
        let word = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        text.split_whitespace().map(word).filter(|word| !word.is_empty()).collect()
    };
    let (text, prompt) = (of(draft.text), of(draft.prompt));
    if text.is_empty() {
        return (0.0, 0.0);
    }
    let mut seen = HashSet::new();
    let repeated = text.windows(3).filter(|run| !seen.insert(*run)).count();
    let prompt: HashSet<&String> = prompt.iter().collect();
    let copied = text.iter().filter(|word| prompt.contains(word)).count();
    (repeated as f64 / text.len() as f64, copied as f64 / text.len() as f64)
}
