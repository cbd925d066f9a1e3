//! How long answers take: learnt from finished ones, model by model, and predicted for the next at the quantile that
//! latency ceilings speak of.
//!
//! A prediction is a quantile over what was seen lately, brought to the request at hand: each answer seen counts with its
//! own time to the first byte and the rest of its time, shortened to the most tokens that the request may get. Where the
//! backend knows its own queue and speed (a model of this process), its word on the first byte replaces what was seen: a
//! queue changes faster than any history. What was seen is forgotten after [`MEMORY`], so that a model that was slow and
//! is passed over for it is tried again; at a restart everything is learnt anew. Knows no policy and no clock of its own.

use crate::domain::{ModelId, Predicted};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The quantile that is predicted.
pub const QUANTILE: f64 = 0.95;
/// Answers that are remembered of each model.
const ANSWERS: usize = 128;
/// Fewer answers than this give no quantile.
const FEWEST: usize = 20;
/// How long answers are remembered.
pub const MEMORY: Duration = Duration::from_secs(600);

/// A finished answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// When it ended.
    pub at: Instant,
    /// From the attempt's start to its first byte.
    pub first_byte: Duration,
    /// From the attempt's start to its end.
    pub total: Duration,
    /// Tokens generated.
    pub output_tokens: u64,
}

/// What is known of all models.
#[derive(Debug, Default)]
pub struct Latencies(Mutex<HashMap<ModelId, VecDeque<Seen>>>);

impl Latencies {
    /// Remembers a complete answer.
    pub fn observe(&self, model: &ModelId, seen: Seen) {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = models.entry(model.clone()).or_default();
        if answers.len() == ANSWERS {
            answers.pop_front();
        }
        answers.push_back(seen);
    }

    /// Times that 95 % of answers of at most `most_tokens` tokens are predicted to keep. `own` is what the backend says of
    /// itself. `None` where too little was seen and the backend says nothing.
    pub fn predict(
        &self,
        model: &ModelId,
        most_tokens: u32,
        own: Option<Predicted>,
        now: Instant,
    ) -> Option<Predicted> {
        let models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |seen: &&Seen| now.saturating_duration_since(seen.at) < MEMORY;
        let seen: Vec<Seen> = models.get(model).into_iter().flatten().filter(fresh).copied().collect();
        drop(models);
        if seen.len() < FEWEST {
            return own;
        }
        let rest = |seen: &Seen| {
            let share = f64::from(most_tokens) / seen.output_tokens.max(1) as f64;
            seen.total.saturating_sub(seen.first_byte).mul_f64(share.min(1.0))
        };
        Some(match own {
            Some(own) => Predicted {
                first_byte: own.first_byte,
                total: own.first_byte + quantile(seen.iter().map(rest).collect()),
            },
            None => Predicted {
                first_byte: quantile(seen.iter().map(|seen| seen.first_byte).collect()),
                total: quantile(seen.iter().map(|seen| seen.first_byte + rest(seen)).collect()),
            },
        })
    }
}

/// The least of `times` that at least [`QUANTILE`] of them do not exceed; zero of none.
fn quantile(mut times: Vec<Duration>) -> Duration {
    let last = times.len().saturating_sub(1);
    let place = ((times.len() as f64 * QUANTILE).ceil() as usize).saturating_sub(1).min(last);
    match times.is_empty() {
        true => Duration::ZERO,
        false => *times.select_nth_unstable(place).1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Answers `1..=count`: a first byte after `10 n` ms and 100 tokens in `n` seconds more.
    fn learnt(model: &ModelId, count: u64, at: Instant) -> Latencies {
        let latencies = Latencies::default();
        for number in 1..=count {
            let first_byte = milliseconds(10 * number);
            let total = first_byte + Duration::from_secs(number);
            latencies.observe(model, Seen { at, first_byte, total, output_tokens: 100 });
        }
        latencies
    }

    #[test]
    fn quantiles_of_what_was_seen_are_brought_to_the_request() {
        let (model, now) = (ModelId::new("m"), Instant::now());
        let check = |count: u64, most: u32, expected: Option<(u64, u64)>| {
            let found = learnt(&model, count, now).predict(&model, most, None, now);
            let expected = expected
                .map(|(first, total)| Predicted { first_byte: milliseconds(first), total: milliseconds(total) });
            assert_eq!(found, expected, "{count} answers, {most} tokens");
        };
        check(0, 100, None);
        check(19, 100, None);
        check(20, 100, Some((190, 19_190)));
        check(100, 100, Some((950, 95_950)));
        // Half the tokens, half the time after the first byte; more tokens than answers had take no longer.
        check(100, 50, Some((950, 48_450)));
        check(100, 1_000, Some((950, 95_950)));
        // The oldest are gone: 73..=200 are remembered.
        check(200, 100, Some((1_940, 195_940)));
    }

    #[test]
    fn a_backend_that_knows_its_queue_is_believed_about_the_first_byte() {
        let (model, now) = (ModelId::new("m"), Instant::now());
        let own = Some(Predicted { first_byte: Duration::from_secs(7), total: Duration::from_secs(8) });
        assert_eq!(learnt(&model, 3, now).predict(&model, 100, own, now), own, "too little seen");
        let found = learnt(&model, 20, now).predict(&model, 100, own, now).unwrap();
        assert_eq!((found.first_byte, found.total), (Duration::from_secs(7), Duration::from_secs(26)));
    }

    #[test]
    fn what_was_seen_is_forgotten_and_models_are_kept_apart() {
        let (model, now) = (ModelId::new("m"), Instant::now());
        let latencies = learnt(&model, 20, now);
        assert!(latencies.predict(&model, 9, None, now + MEMORY - milliseconds(1)).is_some());
        assert!(latencies.predict(&model, 9, None, now + MEMORY).is_none());
        assert!(latencies.predict(&ModelId::new("other"), 9, None, now).is_none());
    }
}
