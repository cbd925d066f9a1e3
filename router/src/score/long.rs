//! What reads conversations from a length on in a scorer's place: an encoder over all their tokens.
//!
//! Below that length, and for how familiar a conversation is, the scorer over n-grams speaks. Both raw scores are brought to
//! one scale before they are calibrated together, as they are served.

use super::PairFileError;
use local_worker::scorer::performer::{Attention, Performer, Shape};
use local_worker::scorer::{Reading, Reason, Scorer, Turn};

/// What scores where no encoder does, in words.
pub const NGRAMS: &str = "n-grams";

/// Bytes that count as a token before anything is split.
const BYTES_PER_TOKEN: usize = 4;

/// An encoder, and from which length on it scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Long {
    /// The encoder.
    pub encoder: Performer,
    /// Tokens, estimated at four bytes each; 0 for every conversation.
    pub from_tokens: usize,
}

impl Long {
    /// Reads the encoder's bytes.
    ///
    /// # Errors
    /// They are none of this build.
    pub fn from_bytes(bytes: &[u8], from_tokens: usize) -> Result<Self, PairFileError> {
        Ok(Self { encoder: Performer::from_bytes(bytes)?, from_tokens })
    }

    fn speaks(&self, turns: &[Turn<'_>]) -> bool {
        turns.iter().map(|turn| turn.text.len()).sum::<usize>().div_ceil(BYTES_PER_TOKEN) >= self.from_tokens
    }
}

/// What gives raw scores: a scorer over n-grams and, from a length on, an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    /// Of every length, and the only one that knows what is familiar.
    pub scorer: Scorer,
    /// Of long ones.
    pub long: Option<Long>,
}

impl From<Scorer> for Raw {
    fn from(scorer: Scorer) -> Self {
        Self { scorer, long: None }
    }
}

impl Raw {
    /// The encoder, where it is the one that scores a conversation.
    pub fn encoder(&self, turns: &[Turn<'_>]) -> Option<&Performer> {
        self.long.as_ref().filter(|long| long.speaks(turns)).map(|long| &long.encoder)
    }

    /// The raw score, and how far it can be trusted.
    pub fn read(&self, turns: &[Turn<'_>]) -> Reading {
        let reading = self.scorer.read(turns);
        match self.encoder(turns) {
            Some(encoder) => Reading { score: encoder.score(turns), ..reading },
            None => reading,
        }
    }

    /// The `most` strongest reasons of whatever scores.
    pub fn reasons(&self, turns: &[Turn<'_>], most: usize) -> Vec<Reason> {
        match self.encoder(turns) {
            Some(encoder) => encoder.reasons(turns, most),
            None => self.scorer.reasons(turns, most),
        }
    }

    /// What it is, in words.
    pub fn describe(&self) -> String {
        let Some(Long { encoder, from_tokens }) = &self.long else { return NGRAMS.to_owned() };
        let kind = kind(encoder.shape());
        match from_tokens {
            0 => kind,
            from => format!("{kind} from {from} tokens on, n-grams below"),
        }
    }
}

/// The kind of an encoder, in words.
pub fn kind(shape: &Shape) -> String {
    match shape.attention {
        Attention::Favor { features } => format!("Performer encoder ({features} random features a head)"),
        Attention::Softmax => "encoder with softmax attention".to_owned(),
    }
}
