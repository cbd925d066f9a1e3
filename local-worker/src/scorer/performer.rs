//! An encoder over all tokens of a conversation → raw score, for prompts too long for n-grams of an excerpt to say much.
//!
//! Tokens are those of the bundled table of word vectors, which stays as it is; everything behind is learnt: a projection,
//! a few layers of attention and gated feed-forward parts, the mean over tokens, a line. Attention looks both ways and is
//! either softmax's, whose time grows with the square of the length, or the Performer's (Choromanski et al., "Rethinking
//! Attention with Performers", ICLR 2021), whose time grows with the length: `e^(q·k)` is the mean of products of positive
//! random features ([`favor`]). Reading takes plain slices and no more memory than [`Performer::read`] tells.
//!
//! A line over the mean of tokens is a sum over tokens, so what each word adds to the score is known exactly.
//! Training ([`mod@train`]) is part of cargo feature `lab`. This module must not know calibration, pairs of models or thresholds.

#[cfg(feature = "lab")]
pub mod approximation;
mod attention;
#[cfg(feature = "lab")]
mod backward;
pub mod favor;
mod file;
mod network;
#[cfg(feature = "lab")]
pub mod train;

pub use file::PerformerFileError;
pub use network::{Attention, MOST_TOKENS, Shape};

use super::{Reason, Turn};
use crate::embed::StaticEmbedder;
use network::{Network, Pass, UNKNOWN};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most bytes of a conversation that are split into tokens: half from its head, half from its tail.
pub const READ_BYTES: usize = 64 * 1024;

/// Words with other characters than ASCII's that are looked up at most.
const UNUSUAL_WORDS: usize = 2048;

/// A trained encoder with its line; immutable.
#[derive(Debug, Clone)]
pub struct Performer {
    network: Network,
    embedder: Arc<StaticEmbedder>,
    /// First 16 hex digits of the blake3 hash of the file.
    version: String,
}

impl PartialEq for Performer {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.network == other.network
    }
}

/// What reading a conversation came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Read {
    /// The raw score.
    pub score: f64,
    /// Tokens that were read, at most [`MOST_TOKENS`].
    pub tokens: usize,
    /// Bytes of the buffers that were worked in.
    pub bytes: usize,
}

impl Performer {
    /// The raw score of a conversation; finite for any text. Time grows with its tokens, of which [`MOST_TOKENS`] are read at
    /// most: milliseconds for a thousand.
    pub fn score(&self, turns: &[Turn<'_>]) -> f64 {
        self.read(turns).score
    }

    /// The same with what it took.
    pub fn read(&self, turns: &[Turn<'_>]) -> Read {
        let tokens = self.tokens(turns);
        let mut pass = Pass::default();
        let score = self.network.score(&self.embedder, &tokens, &mut pass);
        Read { score, tokens: tokens.len(), bytes: pass.bytes() }
    }

    /// The tokens of a conversation as they are read: of more than [`MOST_TOKENS`] the first and the last half.
    pub fn tokens(&self, turns: &[Turn<'_>]) -> Vec<u32> {
        tokens(&self.embedder, turns)
    }

    /// The `most` strongest contributions of words, strongest first: of the score, the line's offset and the length's share
    /// are left out.
    pub fn reasons(&self, turns: &[Turn<'_>], most: usize) -> Vec<Reason> {
        let tokens = self.tokens(turns);
        let pushes = self.network.pushes(&self.embedder, &tokens);
        let mut words: BTreeMap<String, f64> = BTreeMap::new();
        let mut word = (String::new(), 0.0);
        for (token, push) in tokens.iter().zip(pushes) {
            let (text, continues) = match *token {
                UNKNOWN => ("an unknown word".to_owned(), false),
                piece => self.embedder.piece(piece),
            };
            if !continues {
                let (text, push) = std::mem::take(&mut word);
                *words.entry(text).or_default() += push;
            }
            word.0.push_str(&text);
            word.1 += push;
        }
        *words.entry(word.0).or_default() += word.1;
        words.remove("");
        let reason = |(word, push)| Reason { what: format!("\"{word}\""), push };
        let mut reasons: Vec<Reason> = words.into_iter().map(reason).collect();
        reasons.sort_by(|a, b| b.push.abs().total_cmp(&a.push.abs()).then(a.what.cmp(&b.what)));
        reasons.truncate(most);
        reasons
    }

    /// Its sizes and its kind of attention.
    pub fn shape(&self) -> &Shape {
        &self.network.shape
    }

    /// Identifies it: a hash of all its content.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The same encoder with scores of `slope · score + offset`, to bring them to another scorer's scale.
    pub fn rescaled(&self, slope: f32, offset: f32) -> Self {
        let mut network = self.network.clone();
        network.rescale(slope, offset);
        Self::named(network, Arc::clone(&self.embedder))
    }
}

/// The tokens of a conversation: of more bytes than [`READ_BYTES`] and more tokens than [`MOST_TOKENS`] head and tail.
pub(super) fn tokens(embedder: &StaticEmbedder, turns: &[Turn<'_>]) -> Vec<u32> {
    let total: usize = turns.iter().map(|turn| turn.text.len()).sum();
    let (head, tail) = match total <= READ_BYTES {
        true => (total, total),
        false => (READ_BYTES / 2, total - READ_BYTES / 2),
    };
    let (mut tokens, mut offset, mut unusual) = (Vec::new(), 0, UNUSUAL_WORDS);
    for Turn { text, .. } in turns {
        for (from, to) in [(0, head), (tail, total)] {
            let from = text.ceil_char_boundary(from.saturating_sub(offset).min(text.len()));
            let to = text.floor_char_boundary(to.saturating_sub(offset).min(text.len()));
            let Some(text) = text.get(from..to) else { continue };
            unusual = embedder.pieces(text, unusual, |piece| tokens.push(piece.unwrap_or(UNKNOWN)));
        }
        offset += text.len();
    }
    if tokens.len() > MOST_TOKENS {
        tokens.drain(MOST_TOKENS / 2..tokens.len() - MOST_TOKENS / 2);
    }
    tokens
}

#[cfg(test)]
mod tests;
