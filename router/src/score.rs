//! Scores: how probably a small model's answer will be as good as a large one's.
//!
//! `local-worker` turns text into a raw number; here that number becomes a calibrated probability for one pair of models,
//! with a version that certificates name. From a length on an encoder may score in the n-grams' place ([`long`]). Far from all
//! that was seen it is the score of what is hard. Scorers are swapped whole
//! while requests run, and a tenant's own outcomes count from the moment they are known ([`own`]). This module must not know
//! policies or routes, and holds no code about n-grams.

pub mod blend;
pub mod file;
pub mod long;
pub mod own;
#[cfg(feature = "lab")]
pub mod performer;
pub mod report;
pub mod routing;
pub mod solve;
pub mod student;
pub mod train;

use crate::domain::{Message, Part, Role, Score, ScoreOutOfRange};
use crate::evidence::calibration::Calibration;
use crate::evidence::certificate::ANY_LARGE;
use arc_swap::ArcSwap;
use local_worker::scorer::{Neighbours, Reading, Reason, Speaker, Turn};
use long::Raw;
use own::{Observed, Owns, Scoring};
use std::collections::BTreeMap;
use std::sync::Arc;

pub use file::PairFileError;

/// A small and a large model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// The small model's catalog name.
    pub small: String,
    /// The large model's catalog name, or `*` for any.
    pub large: String,
}

impl Pair {
    /// A pair of two catalog names.
    pub fn new(small: impl Into<String>, large: impl Into<String>) -> Self {
        Self { small: small.into(), large: large.into() }
    }

    /// A small model against any large one: for outcomes where only the small model was graded.
    pub fn any_large(small: impl Into<String>) -> Self {
        Self::new(small, ANY_LARGE)
    }
}

impl std::fmt::Display for Pair {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} / {}", self.small, self.large)
    }
}

/// Why there is no score; the caller goes remote.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScoreError {
    /// Nobody trained a scorer for the pair.
    #[error("no scorer for {0}; train one with `sluice train scorer`")]
    NoScorer(Pair),
    /// The scorer gave something that is no probability.
    #[error("the scorer gave no probability: {0}")]
    NotAProbability(ScoreOutOfRange),
}

/// A calibrated scorer for one pair of models; immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct PairScorer {
    pair: Pair,
    raw: Raw,
    calibration: Calibration,
    /// From raw scores to what the large model would gain, where it was fitted.
    gain: Option<Gain>,
    /// Raw score of what is hard: one of ten seen rows lies below. The most that a conversation gets that is like nothing seen.
    hard: Option<f64>,
    /// Hash of the outcomes it was trained on.
    outcomes: String,
    version: String,
}

impl PairScorer {
    /// The models it speaks about.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Identifies scorer and calibration: a hash of all content, 16 hex digits. Certificates name it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The map from raw scores to probabilities.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// What scores, in words.
    pub fn describe(&self) -> String {
        self.raw.describe()
    }

    /// Whether scoring a conversation takes milliseconds: an encoder reads all of it.
    pub fn is_slow(&self, messages: &[Message]) -> bool {
        self.raw.encoder(&turns(messages)).is_some()
    }

    /// What reads a conversation where it is not the n-grams, in words.
    pub fn read_by(&self, messages: &[Message]) -> Option<String> {
        let turns = turns(messages);
        let encoder = self.raw.encoder(&turns)?;
        Some(format!("scored by a {} over {} tokens", long::kind(encoder.shape()), encoder.tokens(&turns).len()))
    }

    /// Probability that the small model suffices for a conversation. Takes microseconds, milliseconds where an encoder reads
    /// it ([`PairScorer::is_slow`]); does no I/O.
    ///
    /// # Errors
    /// Not expected: only a calibration that gives no probability.
    pub fn score(&self, messages: &[Message]) -> Result<Score, ScoreError> {
        self.score_turns(&turns(messages))
    }

    /// As [`PairScorer::score`], for text that is not a request.
    ///
    /// # Errors
    /// As [`PairScorer::score`].
    pub fn score_turns(&self, turns: &[Turn<'_>]) -> Result<Score, ScoreError> {
        Score::new(self.calibration.apply(self.raw(turns))).map_err(ScoreError::NotAProbability)
    }

    /// The raw score, which orders conversations as [`PairScorer::score`] does, without its steps. The less familiar a
    /// conversation, the nearer it is drawn down to what is hard: where nothing is known, the safe side wins.
    pub fn raw(&self, turns: &[Turn<'_>]) -> f64 {
        self.safe(self.raw.read(turns))
    }

    fn safe(&self, Reading { score, familiar }: Reading) -> f64 {
        match self.hard {
            Some(hard) if score > hard && familiar < 1.0 => hard + (score - hard) * familiar,
            _ => score,
        }
    }

    /// By how much the large model's answer is expected to be better, in quality from -1 to 1: what a call to it buys.
    /// `None` where the scorer was fitted without it.
    pub fn expected_gain(&self, messages: &[Message]) -> Option<f64> {
        self.gain.map(|gain| gain.of(self.raw(&turns(messages))))
    }

    /// The `most` strongest reasons, strongest first, for Explain: words of the conversation and shapes of the text, with
    /// what each adds to the raw log-odds.
    pub fn reasons(&self, messages: &[Message], most: usize) -> Vec<Reason> {
        self.raw.reasons(&turns(messages), most)
    }

    /// What is remembered around a conversation, and how familiar it is; `None` for a scorer without memory.
    pub fn neighbours(&self, messages: &[Message]) -> Option<Neighbours> {
        self.raw.scorer.neighbours(&turns(messages))
    }

    /// By how much a conversation's probability was drawn down because nothing like it was seen; 0 mostly.
    pub fn drawn_down(&self, messages: &[Message]) -> f64 {
        let reading = self.raw.read(&turns(messages));
        (self.calibration.apply(reading.score) - self.calibration.apply(self.safe(reading))).max(0.0)
    }
}

/// A line from raw scores to the expected gain by the large model; it never rises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gain {
    /// Change for one raw score; at most 0.
    pub slope: f64,
    /// Gain at a raw score of 0.
    pub offset: f64,
}

impl Gain {
    /// Least squares on raw scores with the gains that were seen; flat where they do not fall.
    pub fn fit(rows: &[(f64, f64)]) -> Self {
        let n = rows.len().max(1) as f64;
        let (x, y) = rows.iter().fold((0.0, 0.0), |(x, y), row| (x + row.0 / n, y + row.1 / n));
        let (cross, square) = rows.iter().fold((0.0, 0.0), |(cross, square), row| {
            (cross + (row.0 - x) * (row.1 - y), square + (row.0 - x) * (row.0 - x))
        });
        let slope = if square > 0.0 { (cross / square).min(0.0) } else { 0.0 };
        Self { slope, offset: y - slope * x }
    }

    /// The gain at a raw score, within `[-1, 1]`.
    pub fn of(self, raw: f64) -> f64 {
        (self.slope * raw + self.offset).clamp(-1.0, 1.0)
    }
}

/// A request's messages as the scorer reads them, one turn a part.
fn turns(messages: &[Message]) -> Vec<Turn<'_>> {
    let turn = |message: &Message| match message.role {
        Role::System => Speaker::System,
        Role::User => Speaker::User,
        Role::Assistant => Speaker::Assistant,
        Role::Tool => Speaker::Tool,
    };
    let parts = messages.iter().flat_map(|message| {
        let speaker = turn(message);
        message.parts.iter().map(move |Part::Text(text)| Turn { speaker, text })
    });
    parts.collect()
}

/// The scorers in use, by pair. Readers never wait; whoever holds a scorer keeps it through a swap.
#[derive(Debug, Default)]
pub struct Scorers {
    by_pair: ArcSwap<BTreeMap<Pair, Arc<PairScorer>>>,
    own: Owns,
}

impl Scorers {
    /// A registry of these scorers; of two for one pair the later wins.
    pub fn new(scorers: impl IntoIterator<Item = PairScorer>) -> Self {
        let by_pair = scorers.into_iter().map(|scorer| (scorer.pair.clone(), Arc::new(scorer))).collect();
        Self { by_pair: ArcSwap::from_pointee(by_pair), own: Owns::default() }
    }

    /// The scorer of a pair: its own, else the small model's for any large one.
    ///
    /// # Errors
    /// There is neither.
    pub fn get(&self, small: &str, large: &str) -> Result<Arc<PairScorer>, ScoreError> {
        let by_pair = self.by_pair.load();
        let pair = Pair::new(small, large);
        by_pair.get(&pair).or_else(|| by_pair.get(&Pair::any_large(small))).cloned().ok_or(ScoreError::NoScorer(pair))
    }

    /// Puts a scorer in place of its pair's present one, which is returned.
    pub fn swap(&self, scorer: PairScorer) -> Option<Arc<PairScorer>> {
        let scorer = Arc::new(scorer);
        let before = self.by_pair.rcu(|by_pair| {
            let mut by_pair = BTreeMap::clone(by_pair);
            by_pair.insert(scorer.pair.clone(), Arc::clone(&scorer));
            by_pair
        });
        before.get(&scorer.pair).cloned()
    }

    /// Takes in a graded prompt of a tenant, which corrects what this scorer says: it counts from the next score on, for this
    /// tenant only. Takes microseconds.
    ///
    /// # Errors
    /// The scorer fails.
    pub fn observe(&self, scorer: &PairScorer, observed: &Observed<'_>) -> Result<(), ScoreError> {
        self.own.observe(scorer, observed)
    }

    /// A scorer's score for a conversation, and what the tenant's own outcomes for the pair make of it.
    ///
    /// # Errors
    /// As [`PairScorer::score`].
    pub fn scoring(
        &self,
        scorer: &PairScorer,
        tenant: &str,
        pair: &Pair,
        messages: &[Message],
    ) -> Result<Scoring, ScoreError> {
        let fitted = scorer.score(messages)?;
        Ok(Scoring { fitted, own: self.own.of(tenant, pair, fitted, messages)? })
    }

    /// All scorers in use, by pair.
    pub fn all(&self) -> Vec<Arc<PairScorer>> {
        self.by_pair.load().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
