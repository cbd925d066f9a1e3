//! Suites asked and texts foretold, on models that answer by the book.

use super::suite::tests::record;
use super::*;
use crate::engine::{ChatMessage, Constraint, Event, GenerateRequest, ModelSource, Worker, WorkerConfig};
use crate::testing::{END, Script};

/// `a` is answered with `yes`, `d` declined, `l` never ends.
const CHAINS: Script<'static> = Script {
    chains: &[&["a", "yes", END], &["d", "HAND", "OFF", END], &["l", "l"]],
    decline: Some("HANDOFF"),
    context: 64,
    template: None,
    seed: None,
};

fn source(script: &Script<'_>) -> (tempfile::NamedTempFile, ModelSource) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script.gguf()).unwrap();
    let source = ModelSource::Path(file.path().to_owned());
    (file, source)
}

#[test]
fn answers_come_in_the_order_of_records_whatever_becomes_of_them() {
    let (_file, source) = source(&CHAINS);
    let worker = Worker::start("test", source, WorkerConfig { max_sequences: 4, ..WorkerConfig::default() }).unwrap();
    let long = "x".repeat(80);
    let mut records: Vec<Record> = (0..40).map(|n| record("t", &format!("{n} a"), "Yes")).collect();
    records.extend([record("t", "d", "HANDOFF"), record("t", "l", "l"), record("t", &long, "x")]);
    let options = AskOptions { max_tokens: 5, together: 7, likeliest: Some(2), ..AskOptions::default() };
    let mut told = 0;
    let (answers, _) = ask(&worker, &records, &options, &mut |done| told = done).unwrap();
    assert_eq!((answers.len(), told), (43, 43));
    for (record, answer) in records.iter().zip(&answers).take(40) {
        assert!(answer.right(record) && !answer.hands_off() && !answer.trace.cut, "{answer:?}");
        assert_eq!((answer.output_tokens, answer.trace.logprobs.len(), answer.trace.likeliest[0].len()), (2, 1, 2));
    }
    let [declined, endless, unasked] = &answers[40..] else { panic!("three more") };
    assert!(declined.declined && declined.hands_off() && declined.right(&records[40]));
    assert!(endless.trace.cut && endless.text == "lllll" && !endless.too_long);
    assert!(unasked.too_long && unasked.said().is_empty());
    let refused = ask(&worker, &records, &AskOptions { max_tokens: 0, ..options }, &mut |_| {}).unwrap_err();
    assert!(refused.to_string().starts_with("record 0 a: max_tokens"), "{refused}");
}

#[test]
fn answers_are_held_to_the_labels_of_a_record_where_that_is_asked_for() {
    let (_file, source) = source(&CHAINS);
    let worker = Worker::start("test", source, WorkerConfig::default()).unwrap();
    let free = record("t", "a", "yes");
    let closed = Record { labels: vec!["no".to_owned(), "maybe".to_owned()], ..free.clone() };
    let options = AskOptions { max_tokens: 9, choices: true, ..AskOptions::default() };
    let (answers, _) = ask(&worker, &[free, closed.clone()], &options, &mut |_| {}).unwrap();
    assert_eq!(answers[0].text, "yes");
    assert!(closed.labels.contains(&answers[1].text), "{answers:?}");
    let (answers, _) = ask(&worker, &[closed], &AskOptions { choices: false, ..options }, &mut |_| {}).unwrap();
    assert_eq!(answers[0].text, "yes");
}

/// The engine, made to write a text, tells what it thinks of each token.
fn told(worker: &Worker, prompt: &str, text: &str) -> (f64, usize) {
    let messages = vec![ChatMessage { role: "user".to_owned(), content: prompt.to_owned() }];
    let constraint = Some(Constraint::Choices(vec![text.to_owned()]));
    let mut generation = worker.submit(GenerateRequest { constraint, ..GenerateRequest::greedy(messages) }).unwrap();
    let (mut nats, mut tokens) = (0.0, 0);
    while let Some(event) = generation.blocking_next() {
        if let Event::Token { logprob, .. } = event {
            (nats, tokens) = (nats - f64::from(logprob), tokens + 1);
        }
    }
    (nats, tokens)
}

#[test]
fn the_probe_says_what_the_engine_says() {
    let (_file, source) = source(&Script { seed: Some(7), context: 256, ..Script::default() });
    let worker = Worker::start("test", source.clone(), WorkerConfig::default()).unwrap();
    let mut probe = Probe::open(&source, &WorkerConfig::default()).unwrap();
    let long = "so many words ".repeat(9);
    let records = [record("t", "one two", "three"), record("t", &long, "4"), record("t", &"y".repeat(300), "z")];
    let forecast = probe.answers(&records).unwrap();
    let (first, second) = (told(&worker, "one two", "three"), told(&worker, &long, "4"));
    let ends = forecast.nats - first.0 - second.0;
    assert_eq!((forecast.tokens, forecast.bytes, forecast.left_out), (first.1 + second.1 + 2, 6, 1));
    assert!(ends > 0.1, "the ends of both answers, which the engine was not asked for: {ends}");

    let text = probe.text("one two three", 256).unwrap();
    let (nats, tokens) = told(&worker, "o", "ne two three");
    assert_eq!((text.tokens, tokens), (12, 12));
    assert!((text.nats - nats).abs() < 1e-3, "{} for {nats}", text.nats);
    assert_eq!(text.agreement(&text), Some(1.0));
    assert_eq!(text.agreement(&forecast), None);
    let halves = probe.text("one two three", 7).unwrap();
    assert_eq!((halves.tokens, halves.bytes), (11, 11), "the first of each window is not scored");
    assert!(probe.decode_speed(10) > 0.0 && probe.decode_speed(100_000) > 0.0, "no longer than the context");
    assert!(matches!(probe.text("o", 256), Err(ProbeError::TooShort { tokens: 1 })));
}

#[test]
fn a_model_without_knowledge_is_as_perplexed_as_its_vocabulary_is_large() {
    let (_file, source) = source(&Script::default());
    let mut probe = Probe::open(&source, &WorkerConfig::default()).unwrap();
    let text = probe.text("whatever comes, all is alike", 4096).unwrap();
    assert!((text.perplexity() - 257.0).abs() < 1e-6, "{}", text.perplexity());
    assert!((text.bits_per_byte() - 257f64.log2()).abs() < 1e-9);
}
