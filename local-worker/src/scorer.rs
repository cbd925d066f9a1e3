//! Text → features → raw score: will the small model's answer to this conversation be good enough?
//!
//! The score is a hashed linear model, because it must cost microseconds in front of every request and learn from a few
//! thousand outcomes: word 1–2-grams and character 3–5-grams hashed into one table of 16-bit weights, plus a few dozen
//! surface features (lengths, digits, questions, code, lists), and often a few trees over the shapes of the text. Nothing
//! is allocated while scoring. [`Learner`] fits the linear part example by example, [`blend`] all parts together.
//!
//! At most [`EXCERPT_BYTES`] bytes of a conversation are looked at: all of it when it is shorter, else its head, its tail
//! and windows spread evenly over the middle. Lengths and turn counts are always those of the whole.
//!
//! [`performer`] reads every token of longer conversations with a small encoder instead: milliseconds, not microseconds.
//!
//! The result is a log-odds that means nothing by itself: calibration, pairs of models and thresholds belong to the router,
//! and this module must not know them.

pub mod blend;
mod bundled;
mod excerpt;
mod features;
mod file;
mod learner;
pub mod memory;
pub mod performer;
mod reasons;
mod sense;
mod shape;
pub mod sparse;
mod surface;
mod trees;

pub use bundled::SLUICE_NANO_SCORER;
pub use excerpt::EXCERPT_BYTES;
pub use file::ScorerFileError;
pub use learner::{Example, FitError, FitOptions, Learner};
pub use reasons::Reason;
pub use sense::{Neighbours, Reading};

use features::{GROUPS, Sink, visit};
use sense::Sense;
use shape::shapes;
use surface::{SURFACE, Surface};
use trees::Trees;

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// Instructions of the calling service.
    System,
    /// The person or service that asks.
    User,
    /// An earlier answer.
    Assistant,
    /// The result of a tool.
    Tool,
}

/// One turn of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'text> {
    /// Who speaks.
    pub speaker: Speaker,
    /// What is said.
    pub text: &'text str,
}

impl<'text> Turn<'text> {
    /// A turn of the asking side.
    pub fn user(text: &'text str) -> Self {
        Self { speaker: Speaker::User, text }
    }
}

/// A fitted linear model over hashed features; immutable, cheap to share.
#[derive(Debug, Clone, PartialEq)]
pub struct Scorer {
    /// Hashed weights in units of `scale`; the length is a power of two.
    weights: Box<[i16]>,
    /// What one unit of a hashed weight is worth.
    scale: f32,
    /// Weights of the surface features; the first is the bias.
    surface: [f32; SURFACE],
    /// Examples seen while fitting, every epoch counted.
    seen: u64,
    /// Words have one half of the table and count once a conversation, characters have the other; else both have all of it
    /// and everything counts as often as it stands there.
    halves: bool,
    /// Trees over the shapes of the text; often none.
    trees: Trees,
    /// What reads the sentence vector; often nothing.
    sense: Option<Sense>,
    /// First 16 hex digits of the blake3 hash of the file.
    version: String,
}

impl Scorer {
    /// Raw log-odds that the small model's answer is good enough; finite for any text. Costs microseconds and allocates
    /// nothing.
    pub fn score(&self, turns: &[Turn<'_>]) -> f64 {
        self.read(turns).score
    }

    /// The score, and how far it can be trusted.
    pub fn read(&self, turns: &[Turn<'_>]) -> Reading {
        let sense = self.sense.as_ref().map_or(Reading { score: 0.0, familiar: 1.0 }, |sense| sense.read(turns));
        Reading { score: self.spelled(turns) + sense.score, ..sense }
    }

    /// What is remembered around a conversation; `None` for a scorer without memory.
    pub fn neighbours(&self, turns: &[Turn<'_>]) -> Option<Neighbours> {
        self.sense.as_ref().map(|sense| sense.neighbours(turns))
    }

    /// What words, characters, surface and shapes say.
    fn spelled(&self, turns: &[Turn<'_>]) -> f64 {
        let sums = Sums { weights: &self.weights, sums: [0; GROUPS], counts: [0; GROUPS] };
        let (sums, surface) = if self.halves {
            let mut sink = HalvesSink { sums, bits: self.bits(), said: [0; SAID] };
            let surface = visit(turns, self.bits(), &mut sink);
            (sink.sums, surface)
        } else {
            let mut sums = sums;
            let surface = visit(turns, self.bits(), &mut sums);
            (sums, surface)
        };
        let mut hashed = 0.0;
        for (sum, count) in sums.sums.into_iter().zip(sums.counts) {
            hashed += sum as f64 * group_norm(count);
        }
        let trees = if self.trees.is_empty() { 0.0 } else { self.trees.value(&shapes(turns)) };
        hashed * f64::from(self.scale) + self.surface_score(&surface) + trees
    }

    /// Examples seen while fitting, every epoch counted.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Identifies this scorer: a hash of all its content.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn bits(&self) -> u32 {
        self.weights.len().trailing_zeros()
    }

    fn surface_score(&self, surface: &Surface) -> f64 {
        self.surface.iter().zip(surface.values()).map(|(weight, value)| f64::from(*weight) * f64::from(value)).sum()
    }
}

/// The factor of each of `count` hashed features of a group: makes short and long texts comparable.
fn group_norm(count: u32) -> f64 {
    1.0 / f64::from(count.max(1)).sqrt()
}

/// The slot of a feature where words and characters have halves of the table: even groups are words.
#[inline(always)]
fn region(group: usize, slot: usize, bits: u32) -> usize {
    (slot >> 1) | ((group & 1) << (bits - 1))
}

/// Adds up weights; integers, so that the order of addition cannot matter.
struct Sums<'weights> {
    weights: &'weights [i16],
    sums: [i64; GROUPS],
    counts: [u32; GROUPS],
}

impl Sums<'_> {
    #[inline(always)]
    fn weight(&self, slot: usize) -> i64 {
        i64::from(self.weights.get(slot).copied().unwrap_or(0))
    }
}

impl Sink for Sums<'_> {
    #[inline(always)]
    fn slots<const N: usize>(&mut self, group: usize, slots: [usize; N]) {
        let mut sum = 0;
        for slot in slots {
            sum += self.weight(slot);
        }
        self.sums[group] += sum;
        self.counts[group] += N as u32;
    }
}

/// Words of two groups of at most `2^17` slots, a bit each.
const SAID: usize = (2 << 17) / 64;

/// Adds up weights where words have a half of the table and count once.
struct HalvesSink<'weights> {
    sums: Sums<'weights>,
    bits: u32,
    /// Which words were there before.
    said: [u64; SAID],
}

impl Sink for HalvesSink<'_> {
    #[inline(always)]
    fn slots<const N: usize>(&mut self, group: usize, slots: [usize; N]) {
        let slots = slots.map(|slot| region(group, slot, self.bits));
        if group % 2 == 1 {
            return self.sums.slots(group, slots);
        }
        self.sums.counts[group] += N as u32;
        for slot in slots {
            if first(&mut self.said, group, slot) {
                self.sums.sums[group] += self.sums.weight(slot);
            }
        }
    }
}

/// Whether a word of a group was not there before; from now on it was.
#[inline(always)]
fn first(said: &mut [u64; SAID], group: usize, slot: usize) -> bool {
    let place = ((group >> 1) << 17) | (slot & ((1 << 17) - 1));
    let bit = 1 << (place & 63);
    said.get_mut(place >> 6).is_some_and(|word| {
        let new = *word & bit == 0;
        *word |= bit;
        new
    })
}

#[cfg(test)]
mod tests;
