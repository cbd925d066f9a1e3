//! Answers to all records of a suite through the engine that serves, many of them at once.

use super::compare::{normal, same};
use super::metric::HANDOFF;
use super::suite::Record;
use crate::engine::{ChatMessage, Constraint, Event, FinishReason, GenerateRequest, Generation, SubmitError, Worker};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What a model answered to one record.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The model's text; empty if it declined or was not asked.
    pub text: String,
    /// Whether it declined by the text its file names for that.
    pub declined: bool,
    /// Whether the prompt does not fit the model's context, so that it was not asked: a wrong answer.
    pub too_long: bool,
    /// Tokens generated.
    pub output_tokens: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// What the model gave away while writing.
    pub trace: Trace,
}

/// How sure a model was, token by token, up to the last that added text.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Natural logarithms of the tokens' probabilities.
    pub logprobs: Vec<f32>,
    /// Distances of the likeliest tokens to the second, in nats.
    pub margins: Vec<f32>,
    /// Natural logarithms of the largest probabilities, as many as were asked for.
    pub likeliest: Vec<Vec<f32>>,
    /// Whether the answer was cut off.
    pub cut: bool,
}

impl Answer {
    /// An answer of this text.
    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        Self { text: text.to_owned(), ..Self::default() }
    }

    /// Whether it hands the request on, by declining or by saying `HANDOFF`.
    pub fn hands_off(&self) -> bool {
        self.declined || normal(&self.text) == normal(HANDOFF)
    }

    /// The text to compare: `HANDOFF` for one that hands on.
    pub fn said(&self) -> &str {
        if self.declined { HANDOFF } else { &self.text }
    }

    /// Whether it says the same as the record's right answer.
    pub fn right(&self, record: &Record) -> bool {
        same(self.said(), &record.answer)
    }
}

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AskOptions {
    /// Tokens of an answer at most; what the context leaves if that is less.
    pub max_tokens: u32,
    /// Requests in flight at once: no more than the worker's queue holds.
    pub together: usize,
    /// Likeliest probabilities that are traced with each token.
    pub likeliest: Option<u32>,
    /// Temperature; 0 is greedy. Above it each record is sampled from a seed of its own, the same one each time.
    pub temperature: f32,
    /// Whether answers to records with a closed list of labels are held to one of them.
    pub choices: bool,
}

impl Default for AskOptions {
    fn default() -> Self {
        Self { max_tokens: 128, together: 48, likeliest: None, temperature: 0.0, choices: false }
    }
}

/// The asking could not go on.
#[derive(Debug, thiserror::Error)]
#[error("record {id}: {reason}")]
pub struct AskError {
    /// The record.
    pub id: String,
    /// What the engine said.
    pub reason: String,
}

/// Answers to all records in their order, and the time they took. A prompt that does not fit the model's context is
/// marked so and not asked. `tell` hears how many are answered.
///
/// # Errors
/// The engine refuses a request or fails one.
pub fn ask(
    worker: &Worker,
    records: &[Record],
    options: &AskOptions,
    tell: &mut dyn FnMut(usize),
) -> Result<(Vec<Answer>, Duration), AskError> {
    let started = Instant::now();
    let mut answers = Vec::with_capacity(records.len());
    let mut running: VecDeque<Option<Generation>> = VecDeque::new();
    let mut next = 0;
    while answers.len() < records.len() {
        while next < records.len() && running.len() < options.together.max(1) {
            let record = &records[next];
            running.push_back(match worker.submit(request(record, options)) {
                Ok(generation) => Some(generation),
                Err(SubmitError::PromptTooLong { .. }) => None,
                Err(error) => return Err(AskError { id: record.id.clone(), reason: error.to_string() }),
            });
            next += 1;
        }
        let record = &records[answers.len()];
        answers.push(match running.pop_front().flatten() {
            Some(generation) => finish(generation).map_err(|reason| AskError { id: record.id.clone(), reason })?,
            None => Answer { too_long: true, ..Answer::default() },
        });
        tell(answers.len());
    }
    Ok((answers, started.elapsed()))
}

fn request(record: &Record, options: &AskOptions) -> GenerateRequest {
    let messages = vec![ChatMessage { role: "user".to_owned(), content: record.prompt.clone() }];
    let hash = blake3::hash(record.id.as_bytes());
    let seed = hash.as_bytes().first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let (max_tokens, logprobs, temperature) = (Some(options.max_tokens), options.likeliest, options.temperature);
    let seed = seed.filter(|_| temperature > 0.0);
    let constraint = (options.choices && !record.labels.is_empty()).then(|| Constraint::Choices(record.labels.clone()));
    GenerateRequest { max_tokens, logprobs, temperature, seed, constraint, ..GenerateRequest::greedy(messages) }
}

fn finish(mut generation: Generation) -> Result<Answer, String> {
    let (mut answer, mut shown) = (Answer::default(), 0);
    let trace = &mut answer.trace;
    loop {
        match generation.blocking_next() {
            Some(Event::Token { text: more, logprob, margin, detail, .. }) => {
                answer.text.push_str(&more);
                trace.logprobs.push(logprob);
                trace.margins.push(margin);
                let likeliest = detail.iter().flat_map(|detail| &detail.alternatives);
                trace.likeliest.push(likeliest.map(|alternative| alternative.logprob).collect());
                if !more.is_empty() {
                    shown = trace.logprobs.len();
                }
            }
            Some(Event::Finished(finished)) => {
                trace.logprobs.truncate(shown);
                trace.margins.truncate(shown);
                trace.likeliest.truncate(shown);
                trace.cut = matches!(finished.reason, FinishReason::Length | FinishReason::Context);
                answer.declined = finished.reason == FinishReason::Declined;
                answer.output_tokens = finished.output_tokens;
                answer.prompt_tokens = finished.prompt_tokens;
                return Ok(answer);
            }
            Some(Event::Failed(error)) => return Err(error.to_string()),
            Some(_) => {}
            None => return Err("the engine ended the answer without saying so".to_owned()),
        }
    }
}
