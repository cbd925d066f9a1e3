//! The demo's traffic: requests with right answers, drawn by a seed, and what the bundled model answers to all of them.

use super::own;
use crate::evidence::grading::Grader;
use anyhow::Context as _;
use local_worker::evaluate::{AskOptions, Record, ask, read_suite};
use local_worker::{ModelSource, Worker, WorkerConfig};
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

/// Tasks that the bundled model serves, by its card.
const SERVED: [&str; 15] = [
    "intent_closed",
    "intent_candidates",
    "intent_full_list",
    "oos_detect",
    "sentiment",
    "topic",
    "spam",
    "clickbait",
    "language_id",
    "smalltalk",
    "dialogue_act",
    "slots_json",
    "ticket_extract",
    "log_parse",
    "order_json",
];

/// Share of requests in these tasks.
pub const SERVED_SHARE: f64 = 0.7;

/// Tokens of an answer, as the catalog has them for the bundled model.
const ANSWER_TOKENS: u32 = 128;

/// All that may be asked.
pub struct Pool {
    served: Vec<Record>,
    hard: Vec<Record>,
}

/// A request of the pool: how often it is asked beside the others, and whether the bundled model answers it right.
pub struct Known<'pool> {
    /// The request.
    pub record: &'pool Record,
    /// Its probability.
    pub weight: f64,
    /// 1 if right, else 0.
    pub quality: f64,
}

impl Pool {
    /// The demo's own requests, or those of files: JSON lines with id, task, prompt and answer.
    pub fn read(files: &[PathBuf]) -> anyhow::Result<Self> {
        if files.is_empty() {
            return Ok(Self { served: own::served(), hard: own::hard() });
        }
        let records = read_suite(files)?;
        let mut seen = HashSet::new();
        // Whoever asks the same has one right answer here.
        let records: Vec<Record> =
            records.into_iter().filter(|record| seen.insert(record.prompt.trim().to_owned())).collect();
        let (served, hard): (Vec<Record>, Vec<Record>) =
            records.into_iter().partition(|record| SERVED.contains(&record.task.as_str()));
        if served.is_empty() || hard.is_empty() {
            anyhow::bail!("the suite needs requests of {} and of other tasks", SERVED.join(", "));
        }
        Ok(Self { served, hard })
    }

    /// Sizes of the two parts.
    pub fn sizes(&self) -> (usize, usize) {
        (self.served.len(), self.hard.len())
    }

    /// `count` requests in the order a seed gives them, none twice.
    pub fn draw(&self, count: usize, seed: u64) -> anyhow::Result<Vec<&Record>> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut parts = [&self.served, &self.hard].map(|part| part.iter().collect::<Vec<&Record>>());
        for part in &mut parts {
            part.shuffle(&mut random);
        }
        let [mut served, mut hard] = parts;
        let mut drawn = Vec::with_capacity(count);
        for _ in 0..count {
            let next = if random.random_bool(SERVED_SHARE) { served.pop() } else { hard.pop() };
            drawn.push(next.with_context(|| format!("the suite is too small for {count} requests"))?);
        }
        Ok(drawn)
    }

    /// The right answers, as the simulated large model gives them.
    pub fn answers(&self) -> HashMap<String, String> {
        let all = self.served.iter().chain(&self.hard);
        all.map(|record| (record.prompt.trim().to_owned(), record.answer.clone())).collect()
    }

    /// Asks the bundled model everything: what a certificate is true of.
    pub fn known(&self) -> anyhow::Result<Vec<Known<'_>>> {
        let worker = Worker::start("sluice-nano", ModelSource::Bundled, WorkerConfig::default())?;
        let options = AskOptions { max_tokens: ANSWER_TOKENS, ..AskOptions::default() };
        let mut all = Vec::new();
        for (part, share) in [(&self.served, SERVED_SHARE), (&self.hard, 1.0 - SERVED_SHARE)] {
            let (answers, _) = ask(&worker, part, &options, &mut |_| {})?;
            for (record, answer) in part.iter().zip(answers) {
                let right = !answer.hands_off() && grade(&answer.text, &record.answer) == 1.0;
                let quality = f64::from(u8::from(right));
                all.push(Known { record, weight: share / part.len() as f64, quality });
            }
        }
        worker.shutdown(Duration::from_secs(5));
        Ok(all)
    }
}

/// Quality of an answer: 1 if it says the same as the right one.
pub fn grade(answer: &str, right: &str) -> f64 {
    Grader::Exact.grade(answer, right).unwrap_or(0.0)
}
