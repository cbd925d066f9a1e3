//! The worker as a whole, on models that answer by the book.

mod decoding;
mod serving;

use std::time::{Duration, Instant};

use super::*;
use crate::testing::{END, Script};

struct Model {
    worker: Worker,
    _file: tempfile::NamedTempFile,
}

fn start(script: &Script<'_>, config: WorkerConfig) -> Model {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script.gguf()).unwrap();
    let worker = Worker::start("test", ModelSource::Path(file.path().to_owned()), config).unwrap();
    Model { worker, _file: file }
}

fn ask(text: &str) -> GenerateRequest {
    GenerateRequest::greedy(vec![ChatMessage { role: "user".to_owned(), content: text.to_owned() }])
}

/// Reads to the end: the text, the tokens, and how it ended.
fn collect(mut generation: Generation) -> (String, Vec<u32>, Result<Finished, GenerateError>) {
    let (mut all, mut tokens) = (String::new(), Vec::new());
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Started { .. } => {}
            Event::Token { text, id, .. } => {
                all.push_str(&text);
                tokens.push(id);
            }
            Event::Finished(finished) => return (all, tokens, Ok(finished)),
            Event::Failed(error) => return (all, tokens, Err(error)),
        }
    }
    panic!("a stream ended without its last event");
}

fn answer(worker: &Worker, request: GenerateRequest) -> (String, FinishReason) {
    let (text, _, end) = collect(worker.submit(request).unwrap());
    (text, end.unwrap().reason)
}

/// `a` is answered with a sentence, `d` declined, `l` never ends.
const CHAINS: Script<'static> = Script {
    chains: &[
        &["a", "Hello", " world", "!", END],
        &["d", "HAND", "OFF", END],
        &["h", "HANDY", " man", END],
        &["u", "\u{e9}", "q", END],
        &["e", END],
        &["l", "l"],
    ],
    decline: Some("HANDOFF"),
    context: 1 << 20,
    template: None,
    seed: None,
};

#[test]
fn answers_end_as_they_should() {
    let model = start(&CHAINS, WorkerConfig::default());
    let check = |request: GenerateRequest, text: &str, reason: FinishReason| {
        assert_eq!(answer(&model.worker, request.clone()), (text.to_owned(), reason), "{request:?}");
    };
    check(ask("a"), "Hello world!", FinishReason::Stop);
    check(GenerateRequest { max_tokens: Some(2), ..ask("a") }, "Hello world", FinishReason::Length);
    check(GenerateRequest { stop: vec!["o w".to_owned()], ..ask("a") }, "Hell", FinishReason::Stop);
    check(ask("d"), "", FinishReason::Declined);
    check(ask("h"), "HANDY man", FinishReason::Stop);
    check(ask("u"), "\u{e9}q", FinishReason::Stop);
    check(ask("e"), "", FinishReason::Stop);
    check(GenerateRequest { max_tokens: Some(5), ..ask("l") }, "lllll", FinishReason::Length);
    let (_, tokens, end) = collect(model.worker.submit(ask("xya")).unwrap());
    let end = end.unwrap();
    assert_eq!((end.prompt_tokens, end.output_tokens, tokens.len()), (3, 4, 4), "the end counts as a token");
    assert!(end.cpu_seconds > 0.0);
    let (_, tokens, end) = collect(model.worker.submit(ask("d")).unwrap());
    assert_eq!((end.unwrap().output_tokens, tokens), (2, vec![]), "a decline counts and shows nothing");
}

#[test]
fn without_a_hold_a_decline_is_an_answer_like_any_other() {
    let model = start(&CHAINS, WorkerConfig { decline_hold: 0, ..WorkerConfig::default() });
    assert_eq!(answer(&model.worker, ask("d")), ("HANDOFF".to_owned(), FinishReason::Stop));
    assert_eq!(model.worker.info().decline_text.as_deref(), Some("HANDOFF"));
}

#[test]
fn control_tokens_in_messages_stay_text() {
    let model = start(&CHAINS, WorkerConfig::default());
    let count = |text: &str| model.worker.count_prompt_tokens(&ask(text).messages).unwrap();
    assert_eq!(count("ab"), 2);
    assert_eq!(count(END), END.len() as u32, "byte by byte");
    assert_eq!(count(&format!("<<|end|>{END}")), 1 + 2 * END.len() as u32);
    assert_eq!(count("\u{e000}<|end|>"), 3 + END.len() as u32, "the first private letter is in use");
    let template = Script { template: Some("<|end|>{{ messages[0].content }}<|end|>"), ..CHAINS };
    let model = start(&template, WorkerConfig::default());
    assert_eq!(model.worker.count_prompt_tokens(&ask("ab").messages).unwrap(), 4, "the template's own are tokens");
}

#[test]
fn a_dropped_generation_is_let_go_and_its_usage_stays_readable() {
    let model = start(&CHAINS, WorkerConfig { max_sequences: 1, ..WorkerConfig::default() });
    let mut generation = model.worker.submit(ask("l")).unwrap();
    let waiting = model.worker.submit(ask("l")).unwrap();
    for _ in 0..10 {
        generation.blocking_next().unwrap();
    }
    let (meter, never_ran) = (generation.meter(), waiting.meter());
    drop(waiting);
    drop(generation);
    assert_eq!(answer(&model.worker, ask("a")).0, "Hello world!", "the place is free again");
    assert!(meter.settled() && never_ran.settled());
    let usage = meter.usage();
    assert!(usage.prompt_tokens == 1 && usage.output_tokens >= 9 && usage.cpu_seconds > 0.0, "{usage:?}");
    assert!(usage.output_tokens < 1 << 19, "it did not run to the end of its context");
    assert_eq!(never_ran.usage(), Usage::default());
    assert_eq!((model.worker.load().waiting, model.worker.load().running), (0, 0));
}

#[test]
fn a_full_queue_refuses() {
    let model = start(&CHAINS, WorkerConfig { queue_capacity: 2, max_sequences: 1, ..WorkerConfig::default() });
    let mut kept: Vec<Generation> = (0..3).map(|_| model.worker.submit(ask("l")).unwrap()).collect();
    assert_eq!(model.worker.submit(ask("a")).err(), Some(SubmitError::QueueFull { capacity: 2 }));
    kept.pop();
    drop(model.worker.submit(ask("a")).expect("the place of a cancelled one in the queue is free at once"));
    kept.remove(0);
    kept.pop();
    assert_eq!(answer(&model.worker, ask("a")).0, "Hello world!");
}

#[test]
fn deadlines_refuse_and_cut() {
    let model = start(&CHAINS, WorkerConfig { max_sequences: 1, ..WorkerConfig::default() });
    let now = Instant::now();
    let late = model.worker.submit(GenerateRequest { deadline: Some(now), ..ask("a") });
    assert!(matches!(late, Err(SubmitError::DeadlineUnreachable { .. })), "{late:?}");
    let enough = model.worker.predicted_wait(1, 1 << 19) * 4 + Duration::from_millis(200);
    let soon = GenerateRequest { deadline: Some(Instant::now() + enough), max_tokens: Some(1 << 19), ..ask("l") };
    let running = model.worker.submit(soon.clone()).unwrap();
    let waiting = model.worker.submit(GenerateRequest { max_tokens: Some(1), ..soon });
    assert_eq!(collect(running).2, Err(GenerateError::DeadlinePassed));
    if let Ok(waiting) = waiting {
        assert_eq!(collect(waiting).2, Err(GenerateError::DeadlinePassed));
    }
    assert!(model.worker.predicted_wait(1_000_000, 10) > model.worker.predicted_wait(10, 10));
}

#[test]
fn a_panic_fails_what_runs_and_the_model_comes_back() {
    let model = start(&CHAINS, WorkerConfig { max_sequences: 1, ..WorkerConfig::default() });
    let mut running = model.worker.submit(ask("l")).unwrap();
    running.blocking_next().unwrap();
    let waiting = model.worker.submit(ask("a")).unwrap();
    model.worker.inject_panic();
    assert_eq!(collect(running).2, Err(GenerateError::WorkerPanicked));
    assert_eq!(collect(waiting).0, "Hello world!", "what waited is answered by the model loaded again");
    assert_eq!(model.worker.health(), Health::Ready);
    assert_eq!(answer(&model.worker, ask("a")).0, "Hello world!");
}

#[test]
fn a_model_that_cannot_come_back_says_so() {
    let model = start(&CHAINS, WorkerConfig { max_sequences: 1, ..WorkerConfig::default() });
    let mut running = model.worker.submit(ask("l")).unwrap();
    running.blocking_next().unwrap();
    let waiting = model.worker.submit(ask("a")).unwrap();
    std::fs::write(model._file.path(), Script { context: 77, ..CHAINS }.gguf()).unwrap();
    model.worker.inject_panic();
    assert_eq!(collect(running).2, Err(GenerateError::WorkerPanicked));
    assert_eq!(collect(waiting).2, Err(GenerateError::WorkerPanicked));
    assert!(matches!(model.worker.health(), Health::Failed(reason) if reason.contains("changed")));
    assert!(matches!(model.worker.submit(ask("a")), Err(SubmitError::Unhealthy(_))));
    model.worker.shutdown(Duration::from_secs(10));
}

#[test]
fn shutdown_finishes_or_gives_up() {
    let model = start(&CHAINS, WorkerConfig { max_sequences: 1, ..WorkerConfig::default() });
    let answers: Vec<_> = (0..3).map(|_| model.worker.submit(ask("a")).unwrap()).collect();
    assert!(model.worker.shutdown(Duration::from_secs(60)));
    assert!(answers.into_iter().all(|answer| collect(answer).0 == "Hello world!"));
    assert_eq!(model.worker.submit(ask("a")).err(), Some(SubmitError::ShuttingDown));
    assert!(model.worker.shutdown(Duration::ZERO), "twice is no harm");

    let model = start(&CHAINS, WorkerConfig { max_sequences: 1, ..WorkerConfig::default() });
    let endless: Vec<_> = (0..2).map(|_| model.worker.submit(ask("l")).unwrap()).collect();
    assert!(!model.worker.shutdown(Duration::ZERO));
    assert!(endless.into_iter().all(|answer| collect(answer).2 == Err(GenerateError::ShutDown)));
}

#[test]
fn seeds_make_chance_repeatable() {
    let model = start(&CHAINS, WorkerConfig::default());
    let draw = |seed: Option<u64>| {
        let request = GenerateRequest { temperature: 30.0, max_tokens: Some(20), seed, ..ask("a") };
        collect(model.worker.submit(request).unwrap()).1
    };
    assert_eq!(draw(Some(1)), draw(Some(1)));
    assert_ne!(draw(Some(1)), draw(Some(2)));
    assert_ne!(draw(None), draw(None));
}

#[test]
fn requests_out_of_range_are_refused_by_name() {
    let model = start(&Script { context: 8, ..CHAINS }, WorkerConfig::default());
    let check = |request: GenerateRequest, expected: &str| {
        let error = model.worker.submit(request).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "{error} should say {expected}");
    };
    check(GenerateRequest { messages: vec![], ..ask("") }, "messages are empty");
    check(GenerateRequest { max_tokens: Some(0), ..ask("a") }, "max_tokens is 0");
    check(GenerateRequest { temperature: f32::NAN, ..ask("a") }, "temperature is NaN");
    check(GenerateRequest { temperature: -1.0, ..ask("a") }, "temperature is -1");
    check(GenerateRequest { top_p: 0.0, ..ask("a") }, "top_p is 0");
    check(GenerateRequest { stop: vec![String::new()], ..ask("a") }, "stop has an empty text");
    check(ask("12345678"), "at least 8 tokens, the context holds 8");
    check(ask(&"x".repeat(10_000_000)), "tokens, the context holds 8");
    assert_eq!(answer(&model.worker, ask("123456l")).1, FinishReason::Context, "one token fits");
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let check = |config: WorkerConfig, expected: &str| {
        let error = Worker::start("test", ModelSource::Path("nowhere.gguf".into()), config).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should say {expected}");
    };
    let config = WorkerConfig::default;
    check(config(), "nowhere.gguf");
    check(WorkerConfig { threads: 65, ..config() }, "threads is 65");
    check(WorkerConfig { max_sequences: 0, ..config() }, "max_sequences is 0");
    check(WorkerConfig { prefill_chunk: 0, ..config() }, "prefill_chunk is 0");
    check(WorkerConfig { context_limit: Some(1), ..config() }, "context_limit is 1");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), CHAINS.gguf()).unwrap();
    let small = WorkerConfig { cache_bytes: 16_383, ..config() };
    let error = Worker::start("test", ModelSource::Path(file.path().to_owned()), small).unwrap_err().to_string();
    assert!(error.contains("cache_bytes is 16383; 32 tokens of this model take 16384"), "{error}");
}

#[tokio::test]
async fn a_worker_serves_async_callers() {
    let model = start(&CHAINS, WorkerConfig::default());
    let mut generations: Vec<_> = (0..20).map(|_| model.worker.submit(ask("a")).unwrap()).collect();
    for generation in &mut generations {
        let mut text = String::new();
        while let Some(event) = generation.next().await {
            if let Event::Token { text: part, .. } = event {
                text.push_str(&part);
            }
        }
        assert_eq!(text, "Hello world!");
    }
}

#[test]
fn the_bundled_model_answers_and_knows_what_is_not_for_it() {
    let worker = Worker::start("bundled", ModelSource::Bundled, WorkerConfig::default()).unwrap();
    let info = worker.info();
    assert!(info.has_chat_template && info.decline_text.is_some() && info.parameters > 1_000_000, "{info:?}");
    let (text, reason) = answer(&worker, GenerateRequest { max_tokens: Some(60), ..ask("hello, how are you?") });
    assert!(!text.is_empty() && reason == FinishReason::Stop, "{text} {reason:?}");
    let hard = "Write a Rust program that parses JSON with error recovery and explain each step in detail.";
    assert_eq!(answer(&worker, ask(hard)), (String::new(), FinishReason::Declined));
}
