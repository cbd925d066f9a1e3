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
        let (text, declined) = match running.pop_front().flatten() {
            Some(generation) => answer(generation).map_err(|reason| GradeError { id: record.id.clone(), reason })?,
            None => (String::new(), false),
        };
        let right = if record.task == decline_task { declined } else { !declined && same(&text, &record.answer) };
        graded.push(Graded { text, declined, right });
    }
    Ok(graded)
}

fn request(prompt: &str) -> GenerateRequest {
    let messages = vec![ChatMessage { role: "user".to_owned(), content: prompt.to_owned() }];
    GenerateRequest { max_tokens: Some(LONGEST_ANSWER), ..GenerateRequest::greedy(messages) }
}

fn answer(mut generation: Generation) -> Result<(String, bool), String> {
    let mut text = String::new();
    loop {
        match generation.blocking_next() {
            Some(Event::Token { text: more, .. }) => text.push_str(&more),
            Some(Event::Finished(finished)) => return Ok((text, finished.reason == FinishReason::Declined)),
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
