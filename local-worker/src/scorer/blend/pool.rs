//! Difficulty is shared: what all pairs of models made of all prompts, fitted once for every pair.
//!
//! A small model's own outcomes are few; which words and which subjects are hard for others mostly holds for it too. The pool
//! is fitted once without each fold, and once on everything, so that a pair's held-out rows are never known to it.

use super::super::features::visit;
use super::super::memory::{DIMS, Meaning};
use super::super::sparse::{Row, ridge};
use super::super::{FitError, Turn};
use super::{BITS, FOLDS, Groups, WORDS_ALPHA, near, standard};
use crate::embed::StaticEmbedder;

/// A prompt and how it went for all pairs that were asked it.
#[derive(Debug, Clone, Copy)]
pub struct Common<'text> {
    /// The conversation.
    pub turns: &'text [Turn<'text>],
    /// As [`Case::shared`](super::Case::shared).
    pub shared: f32,
    /// As [`Case::group`](super::Case::group).
    pub group: u64,
}

/// What all pairs say together.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    /// Without each fold, then on everything; empty for a pool that knows nothing.
    fits: Vec<Pooled>,
}

/// A fit of the pool.
#[derive(Debug, Clone)]
pub(super) struct Pooled {
    /// Weights of words, the bias last.
    pub words: Vec<f32>,
    /// Weights of the vector's numbers, and the bias.
    line: ([f32; DIMS], f32),
}

impl Pooled {
    /// What the line over the vector says.
    pub(super) fn line(&self, meaning: &Meaning) -> f32 {
        let (weights, bias) = &self.line;
        bias + weights.iter().zip(meaning.values()).map(|(weight, value)| weight * value).sum::<f32>()
    }

    /// The line's weights and bias, each multiplied.
    pub(super) fn times(&self, factor: f32) -> ([f32; DIMS], f32) {
        let (weights, bias) = self.line;
        (weights.map(|weight| weight * factor), bias * factor)
    }
}

impl Pool {
    /// Fits a pool on prompts that check nothing.
    ///
    /// # Errors
    /// No sentence vectors in this build, or a difficulty that is no number.
    pub fn fit(prompts: &[Common<'_>]) -> Result<Self, FitError> {
        if let Some(place) = prompts.iter().position(|prompt| !prompt.shared.is_finite()) {
            let target = prompts.get(place).map_or(0.0, |prompt| prompt.shared);
            return Err(FitError::Example { place, target, weight: 1.0 });
        }
        if prompts.is_empty() {
            return Ok(Self::default());
        }
        let embedder = StaticEmbedder::shared()?;
        let words: Vec<Row> = prompts.iter().map(|prompt| words(prompt.turns)).collect();
        let meanings: Vec<Meaning> = prompts.iter().map(|prompt| Meaning::of(&embedder, prompt.turns)).collect();
        let targets = standard(prompts.iter().map(|prompt| prompt.shared), &vec![1.0; prompts.len()]);
        let fit = |fold: u64| {
            let learn = |place: &usize| prompts.get(*place).is_some_and(|prompt| prompt.group % FOLDS != fold);
            let learn: Vec<usize> = (0..prompts.len()).filter(learn).collect();
            let targets: Vec<f32> = learn.iter().filter_map(|place| targets.get(*place)).copied().collect();
            let words: Vec<&Row> = learn.iter().filter_map(|place| words.get(*place)).collect();
            let meanings: Vec<&Meaning> = learn.iter().filter_map(|place| meanings.get(*place)).collect();
            let weights = vec![1.0; targets.len()];
            Pooled {
                words: ridge(&words, &targets, &weights, WORDS_ALPHA, 1 << BITS),
                line: near::line(&meanings, &targets, &weights),
            }
        };
        Ok(Self { fits: (0..=FOLDS).map(fit).collect() })
    }

    /// The fit without a fold; with all rows for `None`.
    pub(super) fn without(&self, fold: Option<u64>) -> Option<&Pooled> {
        self.fits.get(fold.unwrap_or(FOLDS) as usize)
    }
}

/// The words of a conversation.
fn words(turns: &[Turn<'_>]) -> Row {
    let mut groups = Groups::default();
    visit(turns, BITS, &mut groups);
    let [words, _] = groups.rows();
    words
}
