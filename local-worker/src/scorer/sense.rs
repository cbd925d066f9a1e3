//! What a scorer makes of what a conversation is about: a line over its vector, the memory of rows near it, and how familiar
//! it is.
//!
//! Familiar is what lies as near to a remembered row as training prompts lie to those of other clusters; the nearest
//! similarity of all but the oddest twentieth of them counts as wholly familiar, and from there it falls off.

use super::memory::{DIMS, Meaning, Memory};
use super::{ScorerFileError, Turn};
use crate::embed::{EmbedError, StaticEmbedder};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The parts of a scorer that read the sentence vector.
#[derive(Debug, Clone)]
pub(super) struct Sense {
    embedder: Arc<StaticEmbedder>,
    /// What each number of the vector is worth.
    pub line: [f32; DIMS],
    /// Rows whose values are worth what stands there.
    pub memory: Memory,
    pub nearness: Nearness,
}

/// How rows of a memory are weighed, and what counts as near.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nearness {
    /// How fast weight falls off.
    pub sharpness: f32,
    /// Rows of value 0 that stand by.
    pub held_back: f32,
    /// Nearest similarity up to which nothing like it was seen.
    pub strange: f32,
    /// Nearest similarity from which on it is familiar; above `strange`.
    pub familiar: f32,
}

/// A score and how far it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Raw log-odds, as [`Scorer::score`](super::Scorer::score).
    pub score: f64,
    /// From 0, nothing like the conversation was ever seen, to 1; 1 for a scorer that cannot tell.
    pub familiar: f64,
}

/// What a scorer remembers around a conversation, for Explain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbours {
    /// Remembered prompts that are as near as familiar ones are.
    pub count: usize,
    /// Share of them that speak for the side that most of them speak for.
    pub agreement: f64,
    /// What they add to the raw score; above 0 speaks for the small model.
    pub push: f64,
    /// As in [`Reading`].
    pub familiar: f64,
}

/// A scorer's header about its sense; the rows follow as bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SenseHeader {
    /// Version of the table of word vectors.
    vectors: String,
    line: Vec<f32>,
    pub rows: usize,
    nearness: Nearness,
}

/// More rows than this are no scorer's.
const MOST_ROWS: usize = 1 << 20;

impl PartialEq for Sense {
    fn eq(&self, other: &Self) -> bool {
        let parts = |sense: &Self| (sense.embedder.version().to_owned(), sense.line, sense.nearness);
        parts(self) == parts(other) && self.memory == other.memory
    }
}

impl Sense {
    pub(super) fn new(line: [f32; DIMS], memory: Memory, nearness: Nearness) -> Result<Self, EmbedError> {
        Ok(Self { embedder: StaticEmbedder::shared()?, line, memory, nearness })
    }

    /// What it adds to a raw score, and how familiar the conversation is.
    pub(super) fn read(&self, turns: &[Turn<'_>]) -> Reading {
        let meaning = Meaning::of(&self.embedder, turns);
        let near = self.memory.look(&meaning, self.nearness.sharpness);
        let line: f32 = self.line.iter().zip(meaning.values()).map(|(weight, number)| weight * number).sum();
        let score = f64::from(line + near.estimate(self.nearness.held_back));
        Reading { score, familiar: self.familiar(near.nearest) }
    }

    pub(super) fn neighbours(&self, turns: &[Turn<'_>]) -> Neighbours {
        let meaning = Meaning::of(&self.embedder, turns);
        let Nearness { sharpness, held_back, familiar, .. } = self.nearness;
        let near = self.memory.look(&meaning, sharpness);
        let (count, good) = self.memory.count(&meaning, familiar, 0.0);
        Neighbours {
            count,
            agreement: good.max(count - good) as f64 / count.max(1) as f64,
            push: f64::from(near.estimate(held_back)),
            familiar: self.familiar(near.nearest),
        }
    }

    /// How familiar a conversation is whose nearest row is so similar; without rows there is no telling.
    fn familiar(&self, nearest: f32) -> f64 {
        if self.memory.rows() == 0 { 1.0 } else { self.nearness.familiarity(nearest) }
    }

    /// What the line adds.
    pub(super) fn line_push(&self, turns: &[Turn<'_>]) -> f64 {
        let meaning = Meaning::of(&self.embedder, turns);
        self.line.iter().zip(meaning.values()).map(|(weight, number)| f64::from(weight * number)).sum()
    }

    pub(super) fn header(&self) -> SenseHeader {
        SenseHeader {
            vectors: self.embedder.version().to_owned(),
            line: self.line.to_vec(),
            rows: self.memory.rows(),
            nearness: self.nearness,
        }
    }
}

impl Nearness {
    /// How familiar a conversation is whose nearest row is so similar.
    fn familiarity(&self, nearest: f32) -> f64 {
        let share = (nearest - self.strange) / (self.familiar - self.strange).max(1e-6);
        f64::from(share.clamp(0.0, 1.0))
    }

    fn sound(&self) -> bool {
        let numbers = [self.sharpness, self.held_back, self.strange, self.familiar];
        numbers.iter().all(|number| number.is_finite())
            && self.sharpness >= 0.0
            && self.held_back > 0.0
            && self.familiar > self.strange
    }
}

impl SenseHeader {
    /// The sense of a file's header and rows.
    pub(super) fn sense(self, rows: &[u8]) -> Result<Sense, ScorerFileError> {
        let header = ScorerFileError::Header;
        let embedder = StaticEmbedder::shared().map_err(|error| header(error.to_string()))?;
        if self.vectors != embedder.version() {
            let problem = format!(
                "it was made with the word vectors {}, this build has {}; train it again",
                self.vectors,
                embedder.version()
            );
            return Err(header(problem));
        }
        if !(self.nearness.sound() && self.line.iter().all(|weight| weight.is_finite())) {
            return Err(header("a number about sentence vectors is none, or out of order".to_owned()));
        }
        let line = self.line.try_into().map_err(|line: Vec<f32>| {
            header(format!("a line over {} numbers, this build's vectors have {DIMS}", line.len()))
        })?;
        let memory = Memory::from_bytes(rows, self.rows);
        let memory = memory.ok_or_else(|| header("a remembered value is no number".to_owned()))?;
        Ok(Sense { embedder, line, memory, nearness: self.nearness })
    }

    /// Whether the count of rows can be believed.
    pub(super) fn sound(&self) -> bool {
        self.rows <= MOST_ROWS
    }
}
