//! Grades a served model on corpus records, through the same engine that serves.
//!
//! A label or text is right if it equals the answer after lower-casing, trimming and collapsing white space; JSON answers
//! are compared parsed. For records of the `handoff` task the right answer is to decline.

use super::corpus::Record;
use crate::engine::{ChatMessage, Event, FinishReason, GenerateRequest, Generation, SubmitError, Worker};
use std::collections::{BTreeMap, VecDeque};

/// One graded answer.
#[derive(Clone, Debug)]
pub struct Graded {
    /// The model's text; empty if it declined.
    pub text: String,
    /// Whether it declined.
    pub declined: bool,
    /// Whether it is right.
    pub right: bool,
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
    /// Natural logarithms of the five largest probabilities.
    pub likeliest: Vec<Vec<f32>>,
    /// Whether the answer was cut off.
    pub cut: bool,
}

/// Counts of one task.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskScore {
    /// Records.
    pub n: usize,
    /// Right answers.
    pub right: usize,
    /// Declined ones.
    pub declined: usize,
}

/// The grading could not go on.
#[derive(Debug, thiserror::Error)]
#[error("record {id}: {reason}")]
pub struct GradeError {
    /// The record.
    pub id: String,
    /// What the engine said.
    pub reason: String,
}

/// Longest answer that is waited for, in tokens.
const LONGEST_ANSWER: u32 = 64;

/// Likeliest tokens that are traced.
const LIKELIEST: u32 = 5;

/// Grades greedy answers to all records, in their order, with up to `together` of them asked for at once: no more than the
/// worker's queue holds. A prompt that does not fit the model's context counts as a wrong answer.
pub fn grade(
    worker: &Worker,
    records: &[Record],
    together: usize,
    decline_task: &str,
) -> Result<Vec<Graded>, GradeError> {
    let mut graded = Vec::with_capacity(records.len());
    let mut running: VecDeque<Option<Generation>> = VecDeque::new();
    let mut next = 0;
    while graded.len() < records.len() {
        while next < records.len() && running.len() < together {
            let record = &records[next];
            running.push_back(match worker.submit(request(&record.prompt)) {
                Ok(generation) => Some(generation),
                Err(SubmitError::PromptTooLong { .. }) => None,
                Err(error) => return Err(GradeError { id: record.id.clone(), reason: error.to_string() }),
            });
            next += 1;
        }
        let record = &records[graded.len()];
        let (text, declined, trace) = match running.pop_front().flatten() {
            Some(generation) => answer(generation).map_err(|reason| GradeError { id: record.id.clone(), reason })?,
            None => (String::new(), false, Trace::default()),
        };
        let right = if record.task == decline_task { declined } else { !declined && same(&text, &record.answer) };
        graded.push(Graded { text, declined, right, trace });
    }
    Ok(graded)
}

fn request(prompt: &str) -> GenerateRequest {
    let messages = vec![ChatMessage { role: "user".to_owned(), content: prompt.to_owned() }];
    let (max_tokens, logprobs) = (Some(LONGEST_ANSWER), Some(LIKELIEST));
    GenerateRequest { max_tokens, logprobs, ..GenerateRequest::greedy(messages) }
}

fn answer(mut generation: Generation) -> Result<(String, bool, Trace), String> {
    let (mut text, mut trace, mut shown) = (String::new(), Trace::default(), 0);
    loop {
        match generation.blocking_next() {
            Some(Event::Token { text: more, logprob, margin, detail, .. }) => {
                text.push_str(&more);
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
                return Ok((text, finished.reason == FinishReason::Declined, trace));
            }
            Some(Event::Failed(error)) => return Err(error.to_string()),
            Some(_) => {}
            None => return Err("the engine ended the answer without saying so".to_owned()),
        }
    }
}

/// Whether two answers say the same.
pub fn same(given: &str, expected: &str) -> bool {
    let normal = |text: &str| text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    if normal(given) == normal(expected) {
        return true;
    }
    let structured = |text: &str| -> Option<serde_json::Value> {
        serde_json::from_str(text).ok().filter(|value: &serde_json::Value| value.is_object() || value.is_array())
    };
    matches!((structured(given), structured(expected)), (Some(given), Some(expected)) if given == expected)
}

/// Sums up by a key of the record, such as its task.
pub fn scores<'record>(
    records: &'record [Record],
    graded: &[Graded],
    key: impl Fn(&'record Record) -> String,
) -> BTreeMap<String, TaskScore> {
    let mut scores: BTreeMap<String, TaskScore> = BTreeMap::new();
    for (record, graded) in records.iter().zip(graded) {
        let score = scores.entry(key(record)).or_default();
        score.n += 1;
        score.right += usize::from(graded.right);
        score.declined += usize::from(graded.declined);
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn answers_are_compared_as_the_corpus_says() {
        assert!(same(" Transfer_Timing ", "transfer_timing"));
        assert!(same(r#"{"a": 1, "b": "x"}"#, r#"{"b":"x","a":1}"#));
        assert!(!same("1", "2"));
        assert!(!same("", "positive"));
    }
}
