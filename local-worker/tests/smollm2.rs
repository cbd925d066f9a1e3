//! SmolLM2-135M-Instruct with its real weights, beside llama.cpp: the same tokens for texts and templates, and the same
//! greedy answers up to ties.
//!
//! What is a tie: both engines round a product's inputs to 8 bits, and any change in the order of their sums changes which
//! way some values round. llama.cpp with other settings (batches of 1, flash attention, a cache of single precision)
//! chooses another token than llama.cpp with its defaults at 9 to 13 of these 366 positions, and the distance of its two
//! highest logits changes by up to 0.65. The same weights in single precision differ from llama.cpp at 13 positions, from
//! this engine at 9. So a different token counts as a fault where llama.cpp's two highest logits lie further apart than
//! 0.5, and more than 20 different ones count as a fault too.
//!
//! The weights are not in the repository: `tests/fetch_smollm2.sh` fetches them; without them these tests say so and pass.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says when it has no weights")]

use std::path::PathBuf;

use local_worker::model::{Cache, CacheFormat, CacheShape, Decoder, Gguf, Row, Scratch};
use local_worker::template::ChatTemplate;
use local_worker::tokenizer::Tokenizer;
use local_worker::{ChatMessage, Constraint, Event, FinishReason, GenerateRequest, ModelSource, Worker, WorkerConfig};
use serde_json::Value;

/// Distance of the two highest logits up to which either may win.
const TIE: f64 = 0.5;
/// Positions of 366 that may differ.
const MOST_TIES: usize = 20;

fn model_path() -> Option<PathBuf> {
    #[allow(clippy::disallowed_methods, reason = "a test has no settings; this says where weights are kept")]
    let cache = std::env::var_os("TEST_MODELS").map(PathBuf::from);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = cache.unwrap_or_else(|| root.join(".cache/models")).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there; local-worker/tests/fetch_smollm2.sh fetches it", path.display());
    None
}

fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/smollm2_greedy.json")).unwrap()
}

fn integers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

fn gaps(case: &Value) -> Vec<f64> {
    case["gaps"].as_array().unwrap().iter().map(|gap| gap.as_f64().unwrap()).collect()
}

fn messages(case: &Value) -> Vec<ChatMessage> {
    let text = |turn: &Value, key: &str| turn[key].as_str().unwrap().to_owned();
    let turns = case["messages"].as_array().unwrap().iter();
    turns.map(|turn| ChatMessage { role: text(turn, "role"), content: text(turn, "content") }).collect()
}

#[test]
fn texts_templates_and_greedy_choices_are_those_of_llama_cpp() {
    let Some(path) = model_path() else { return };
    let bytes = std::fs::read(&path).unwrap();
    let file = Gguf::parse("SmolLM2", &bytes).unwrap();
    let model = Decoder::load(&file).unwrap();
    let shape = model.shape().clone();
    let tokenizer = Tokenizer::load(&file, shape.vocabulary).unwrap();
    let (begin, end) = tokenizer.names();
    let template = ChatTemplate::new(file.text("tokenizer.chat_template"), begin, end).unwrap();
    let fixture = fixture();
    for text in fixture["texts"].as_array().unwrap() {
        let tokens = tokenizer.encode(text["text"].as_str().unwrap()).unwrap();
        assert_eq!(tokens, integers(&text["tokens"]), "{text}");
    }
    let (mut positions, mut ties) = (0, 0);
    for case in fixture["cases"].as_array().unwrap() {
        let (prompt, tokens, gaps) = (integers(&case["prompt"]), integers(&case["tokens"]), gaps(case));
        let rendered = template.render(&messages(case)).unwrap();
        assert_eq!(tokenizer.encode_marked(&rendered, None, usize::MAX).unwrap(), prompt, "{rendered}");
        let (mut cache, mut scratch) = (Cache::new(1, shape.layers, shape.key_heads, shape.head), Scratch::default());
        let row = |position, token, wants_logits| Row { slot: 0, position, token, wants_logits };
        let mut rows: Vec<Row> =
            prompt.iter().enumerate().map(|(at, token)| row(at, *token, at + 1 == prompt.len())).collect();
        for (at, token) in tokens.iter().enumerate() {
            let logits = model.step(&mut cache, &mut scratch, &rows);
            let own = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            assert!(
                own == *token || gaps[at] <= TIE,
                "token {at} of {}: {own} for {token}, gap {}",
                case["messages"],
                gaps[at]
            );
            positions += 1;
            ties += usize::from(own != *token);
            rows = vec![row(prompt.len() + at, *token, true)];
        }
    }
    println!("{ties} of {positions} greedy tokens differ, all at ties");
    assert!(ties <= MOST_TIES, "{ties} of {positions} tokens differ");
}

/// What a default is chosen by: a cache of half precision costs no more than any other order of the same sums would. Tokens
/// differ at ties only, as above, and what was written is about as likely as before.
#[test]
fn a_cache_of_half_precision_costs_no_quality() {
    let Some(path) = model_path() else { return };
    let bytes = std::fs::read(&path).unwrap();
    let model = Decoder::load(&Gguf::parse("SmolLM2", &bytes).unwrap()).unwrap();
    let (layers, key_heads, head) = (model.shape().layers, model.shape().key_heads, model.shape().head);
    let (mut losses, mut positions, mut others, mut widest) = ([0.0f64; 2], 0, 0, 0.0f32);
    for case in fixture()["cases"].as_array().unwrap() {
        let (prompt, tokens) = (integers(&case["prompt"]), integers(&case["tokens"]));
        let formats = [CacheFormat::Single, CacheFormat::Half];
        let shapes = formats.map(|format| CacheShape { layers, key_heads, head, format });
        let mut caches = shapes.map(|shape| Cache::bounded(1, shape, usize::MAX));
        let mut scratches = [Scratch::default(), Scratch::default()];
        let row = |position, token, wants_logits| Row { slot: 0, position, token, wants_logits };
        let mut rows: Vec<Row> =
            prompt.iter().enumerate().map(|(at, token)| row(at, *token, at + 1 == prompt.len())).collect();
        for (at, token) in tokens.iter().enumerate() {
            let mut choices = [0; 2];
            for (which, (cache, scratch)) in caches.iter_mut().zip(&mut scratches).enumerate() {
                let logits = model.step(cache, scratch, &rows);
                choices[which] = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
                let largest = logits[choices[which]];
                let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
                losses[which] -= f64::from(logits[*token as usize] - largest) - sum.ln();
                if which == 1 && choices[0] != choices[1] {
                    others += 1;
                    widest = widest.max(largest - logits[choices[0]]);
                }
            }
            positions += 1;
            rows = vec![row(prompt.len() + at, *token, true)];
        }
    }
    let perplexities = losses.map(|loss| (loss / f64::from(positions)).exp());
    println!("{others} of {positions} greedy tokens differ by {widest} at most; perplexities {perplexities:?}");
    assert!((perplexities[1] / perplexities[0] - 1.0).abs() < 0.01, "{perplexities:?}");
    assert!(others <= MOST_TIES && f64::from(widest) <= TIE, "{others} of {positions}, {widest}");
}

#[test]
fn ten_conversations_at_once_are_answered_as_llama_cpp_does_until_a_tie() {
    let Some(path) = model_path() else { return };
    let config = WorkerConfig { queue_capacity: 10, context_limit: Some(1024), ..WorkerConfig::default() };
    let worker = Worker::start("smollm2", ModelSource::Path(path), config).unwrap();
    let info = worker.info();
    assert_eq!((info.quantization.as_str(), info.has_chat_template, info.decline_text), ("Q4_1", true, None));
    let fixture = fixture();
    let cases = fixture["cases"].as_array().unwrap();
    let submit = |case: &Value| {
        let request = GenerateRequest { max_tokens: Some(48), ..GenerateRequest::greedy(messages(case)) };
        worker.submit(request).unwrap()
    };
    let mut same = 0;
    for (case, mut generation) in cases.iter().zip(cases.iter().map(submit).collect::<Vec<_>>()) {
        let (mut tokens, mut text, mut finished) = (Vec::new(), String::new(), None);
        while let Some(event) = generation.blocking_next() {
            match event {
                Event::Started { prompt_tokens } => assert_eq!(prompt_tokens as usize, integers(&case["prompt"]).len()),
                Event::Token { text: part, id, logprob, margin, .. } => {
                    assert!(logprob <= 0.0 && margin >= 0.0);
                    text.push_str(&part);
                    tokens.push(id);
                }
                Event::Finished(end) => finished = Some(end),
                Event::Failed(error) => panic!("{error}"),
            }
        }
        let finished = finished.unwrap();
        let expected = integers(&case["tokens"]);
        assert_eq!(finished.output_tokens as usize, tokens.len());
        assert!(finished.cpu_seconds > 0.0);
        let differs = tokens.iter().zip(&expected).position(|(own, theirs)| own != theirs);
        match differs {
            Some(at) => assert!(gaps(case)[at] <= TIE, "{}: token {at} differs", case["messages"]),
            None => {
                same += 1;
                assert_eq!(tokens.len(), expected.len());
                assert_eq!(text, case["text"].as_str().unwrap());
                let reason = if tokens.len() == 48 { FinishReason::Length } else { FinishReason::Stop };
                assert_eq!(finished.reason, reason);
            }
        }
    }
    println!("{same} of {} answers are the same to the end", cases.len());
    assert!(same >= 3, "the answers without a tie must be the same");
    assert!(worker.shutdown(std::time::Duration::from_secs(60)));
}

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let Some(path) = model_path() else { return };
    let worker = Worker::start("smollm2", ModelSource::Path(path), WorkerConfig::default()).unwrap();
    let write = |text: &str, constraint: Constraint| {
        let turn = ChatMessage { role: "user".to_owned(), content: text.to_owned() };
        let request = GenerateRequest {
            constraint: Some(constraint),
            max_tokens: Some(120),
            ..GenerateRequest::greedy(vec![turn])
        };
        let (mut generation, mut text) = (worker.submit(request).unwrap(), String::new());
        loop {
            match generation.blocking_next().unwrap() {
                Event::Started { .. } => {}
                Event::Token { text: part, .. } => text.push_str(&part),
                Event::Finished(finished) => {
                    assert_eq!(finished.reason, FinishReason::Stop, "{text}");
                    return text;
                }
                Event::Failed(error) => panic!("{error} after {text}"),
            }
        }
    };
    let schema = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":20},"age":{"type":"integer","minimum":0,
        "maximum":150},"colours":{"type":"array","items":{"enum":["red","green","blue"]},"minItems":1,"maxItems":3}},
        "required":["name","age","colours"],"additionalProperties":false}"#;
    let text =
        write("Ada is 36 and likes red and blue. Write that as JSON.", Constraint::JsonSchema(schema.to_owned()));
    println!("{text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value["name"].is_string() && value["age"].as_u64().unwrap() <= 150, "{text}");
    assert!((1..=3).contains(&value["colours"].as_array().unwrap().len()), "{text}");
    let date = write("When did the second world war end?", Constraint::Regex(r"\d{4}-\d{2}-\d{2}".to_owned()));
    println!("{date}");
    assert!(date.len() == 10 && date.split('-').all(|part| part.parse::<u32>().is_ok()), "{date}");
    let choices = ["Paris", "London", "Rome"];
    let constraint = Constraint::Choices(choices.map(str::to_owned).to_vec());
    let city = write("What is the capital of France?", constraint);
    println!("{city}");
    assert!(choices.contains(&city.as_str()), "{city}: a form makes no model wiser, but it is kept");
    assert!(worker.shutdown(std::time::Duration::from_secs(60)));
}
