//! Asking a worker, for the tests that do.

use local_worker::{Event, FinishReason, GenerateRequest, Worker};

/// Runs a request to its end: its prompt's length, its tokens and its text, and why it ended.
pub fn answer(worker: &Worker, request: GenerateRequest) -> (u32, Vec<u32>, String, FinishReason) {
    let mut generation = worker.submit(request).unwrap();
    let (mut prompt, mut tokens, mut text) = (0, Vec::new(), String::new());
    loop {
        match generation.blocking_next().unwrap() {
            Event::Started { prompt_tokens } => prompt = prompt_tokens,
            Event::Token { text: part, id, .. } => {
                tokens.push(id);
                text.push_str(&part);
            }
            Event::Finished(end) => return (prompt, tokens, text, end.reason),
            Event::Failed(error) => panic!("{error} after {text}"),
        }
    }
}
