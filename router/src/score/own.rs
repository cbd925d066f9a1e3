//! What a tenant's own outcomes say beside a fitted scorer, from the moment they are known and without a restart.
//!
//! Each tenant has a memory for each pair of models: sentence vectors of prompts (never their text) and whether the small
//! model sufficed. A new prompt's probability is then the fitted one, corrected by what came of those near it: `κ` rows that
//! say what the fitted scorer says stand beside rows of weight `e^(sharpness · (similarity − 1))`, the posterior mean of a beta
//! prior. How sharp, how many, and whether at all is chosen by what would have been foretold best: every outcome is
//! predicted by all candidates before it is learnt, and their shares fall with the log loss they ran up, half of the prior
//! being on leaving the fitted score alone (Vovk, "Aggregating strategies", 1990). So a memory that does not help is not used.
//!
//! Memories are kept apart by tenant, and nothing ever crosses: another tenant's outcomes move no score of this one. They are
//! bounded, in rows and in number, and live in the process only. What was proven of a fitted score is not proven of a
//! corrected one, so under a certificate a correction only counts downwards ([`Scoring::proven`]).

use super::{Pair, PairScorer, ScoreError, turns};
use crate::domain::{Message, Score};
use local_worker::embed::{EmbedError, StaticEmbedder};
use local_worker::scorer::Turn;
use local_worker::scorer::memory::{Meaning, Memory};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Outcomes a tenant's memory of a pair holds; the oldest makes room.
pub const MOST_ROWS: usize = 1024;

/// Memories kept; the one that was longest without news makes room.
pub const MOST_MEMORIES: usize = 256;

/// How fast weight falls off.
const SHARPNESS: [f32; 2] = [10.0, 24.0];

/// How many rows the fitted score counts as.
const FITTED_ROWS: [f64; 3] = [2.0, 8.0, 32.0];

/// Ways of correcting, and not correcting at all.
const WAYS: usize = SHARPNESS.len() * FITTED_ROWS.len();

/// Old losses count for less, so that what helps now is found.
const KEPT: f64 = 0.995;

/// Rows so similar are shown as near.
const NEAR: f32 = 0.6;

/// A graded prompt of a tenant.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'text> {
    /// Whose it is; without a name nothing is kept.
    pub tenant: &'text str,
    /// The models.
    pub pair: &'text Pair,
    /// The question.
    pub prompt: &'text str,
    /// Quality of the small model's answer, in `[0, 1]`.
    pub small_quality: f64,
    /// Quality of the large model's answer, in `[0, 1]`.
    pub large_quality: f64,
}

/// A conversation's score, and what its tenant's own outcomes make of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// Of the fitted scorer.
    pub fitted: Score,
    /// Corrected by the tenant's own outcomes, if it has any.
    pub own: Option<Own>,
}

/// What a tenant's own outcomes say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Own {
    /// The corrected probability.
    pub score: Score,
    /// Own prompts near this one.
    pub near: usize,
    /// Those of them for which the small model sufficed.
    pub sufficed: usize,
    /// How much of the score is corrected, from 0 to 1: what is left to the fitted score alone is the rest.
    pub trust: f64,
}

impl Scoring {
    /// The best that is known.
    pub fn learnt(&self) -> Score {
        self.own.map_or(self.fitted, |own| own.score)
    }

    /// What may be held against a threshold that was solved for the fitted scorer: never more than its score.
    pub fn proven(&self) -> Score {
        match self.own {
            Some(own) if own.score.get() < self.fitted.get() => own.score,
            _ => self.fitted,
        }
    }
}

/// The memories of all tenants.
#[derive(Debug, Default)]
pub(super) struct Owns {
    kept: Mutex<Kept>,
}

type Shared = Arc<RwLock<OwnMemory>>;

#[derive(Debug, Default)]
struct Kept {
    /// By tenant and pair, each with the news at which it last learnt.
    memories: BTreeMap<(String, Pair), (u64, Shared)>,
    /// Counts news, to find what was longest without.
    news: u64,
}

impl Owns {
    /// Takes in an outcome that the scorer has not seen.
    pub(super) fn observe(&self, scorer: &PairScorer, observed: &Observed<'_>) -> Result<(), ScoreError> {
        let qualities = [observed.small_quality, observed.large_quality];
        if observed.tenant.is_empty() || !qualities.iter().all(|quality| (0.0..=1.0).contains(quality)) {
            return Ok(());
        }
        let Ok(embedder) = embedder() else { return Ok(()) };
        let asked = [Turn::user(observed.prompt)];
        let meaning = Meaning::of(&embedder, &asked);
        let fitted = scorer.score_turns(&asked)?.get();
        let memory = self.memory(observed.tenant, observed.pair);
        let mut memory = memory.write().unwrap_or_else(PoisonError::into_inner);
        memory.learn(&meaning, fitted, observed.small_quality >= observed.large_quality);
        Ok(())
    }

    /// What the tenant's outcomes make of a fitted score.
    pub(super) fn of(
        &self,
        tenant: &str,
        pair: &Pair,
        fitted: Score,
        messages: &[Message],
    ) -> Result<Option<Own>, ScoreError> {
        let Some(memory) = self.find(tenant, pair) else { return Ok(None) };
        let Ok(embedder) = embedder() else { return Ok(None) };
        let meaning = Meaning::of(&embedder, &turns(messages));
        let memory = memory.read().unwrap_or_else(PoisonError::into_inner);
        let (near, sufficed) = memory.rows.count(&meaning, NEAR, 0.5);
        let score = Score::new(memory.foretell(&meaning, fitted.get())).map_err(ScoreError::NotAProbability)?;
        let [.., alone] = memory.shares();
        Ok(Some(Own { score, near, sufficed, trust: 1.0 - alone }))
    }

    fn find(&self, tenant: &str, pair: &Pair) -> Option<Shared> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.memories.is_empty() {
            return None;
        }
        kept.memories.get(&(tenant.to_owned(), pair.clone())).map(|(_, memory)| Arc::clone(memory))
    }

    /// The memory of a tenant and a pair, made where there is none.
    fn memory(&self, tenant: &str, pair: &Pair) -> Shared {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.news += 1;
        let news = kept.news;
        let key = (tenant.to_owned(), pair.clone());
        if kept.memories.len() >= MOST_MEMORIES && !kept.memories.contains_key(&key) {
            let oldest = kept.memories.iter().min_by_key(|(_, (last, _))| *last).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                kept.memories.remove(&oldest);
            }
        }
        let (last, memory) = kept.memories.entry(key).or_insert_with(|| (news, Arc::default()));
        *last = news;
        Arc::clone(memory)
    }
}

fn embedder() -> Result<Arc<StaticEmbedder>, EmbedError> {
    StaticEmbedder::shared()
}

/// Rows of a tenant and a pair, and how well each way of using them would have done.
#[derive(Debug)]
struct OwnMemory {
    rows: Memory,
    /// Log loss of each way so far; the last leaves the fitted score alone.
    losses: [f64; WAYS + 1],
}

impl Default for OwnMemory {
    fn default() -> Self {
        Self { rows: Memory::new(MOST_ROWS), losses: [0.0; WAYS + 1] }
    }
}

impl OwnMemory {
    fn learn(&mut self, meaning: &Meaning, fitted: f64, suffices: bool) {
        let ways = self.ways(meaning, fitted);
        for (loss, foretold) in self.losses.iter_mut().zip(ways) {
            let foretold = foretold.clamp(0.01, 0.99);
            *loss = *loss * KEPT - if suffices { foretold.ln() } else { (-foretold).ln_1p() };
        }
        self.rows.remember(meaning, f32::from(u8::from(suffices)));
    }

    /// The probability by each way.
    fn ways(&self, meaning: &Meaning, fitted: f64) -> [f64; WAYS + 1] {
        let mut ways = [fitted; WAYS + 1];
        for (sharpness, ways) in SHARPNESS.iter().zip(ways.chunks_mut(FITTED_ROWS.len())) {
            let near = self.rows.look(meaning, *sharpness);
            for (way, rows) in ways.iter_mut().zip(FITTED_ROWS) {
                *way = (rows * fitted + f64::from(near.sum)) / (rows + f64::from(near.weight));
            }
        }
        ways
    }

    /// How much each way counts; together 1.
    fn shares(&self) -> [f64; WAYS + 1] {
        let least = self.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let mut shares = self.losses.map(|loss| (least - loss).exp());
        for share in shares.iter_mut().take(WAYS) {
            *share /= WAYS as f64;
        }
        let total: f64 = shares.iter().sum();
        shares.map(|share| share / total)
    }

    fn foretell(&self, meaning: &Meaning, fitted: f64) -> f64 {
        let ways = self.ways(meaning, fitted);
        self.shares().iter().zip(ways).map(|(share, way)| share * way).sum::<f64>().clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests;
