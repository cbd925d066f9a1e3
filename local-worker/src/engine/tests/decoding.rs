//! How tokens are chosen and told, and answers of a given form.

use super::*;

fn bundled(config: WorkerConfig) -> Worker {
    Worker::start("bundled", ModelSource::Bundled, config).unwrap()
}

fn schema(schema: &str) -> Option<Constraint> {
    Some(Constraint::JsonSchema(schema.to_owned()))
}

fn choices(choices: &[&str]) -> Option<Constraint> {
    Some(Constraint::Choices(choices.iter().map(|choice| (*choice).to_owned()).collect()))
}

#[test]
fn a_seed_gives_the_same_answer_whatever_runs_beside_it() {
    let worker =
        bundled(WorkerConfig { max_sequences: 5, prefill_chunk: 16, decline_hold: 0, ..WorkerConfig::default() });
    let seeded = |seed: u64| GenerateRequest {
        temperature: 3.0,
        top_k: Some(40),
        min_p: 0.01,
        repetition_penalty: 1.1,
        seed: Some(seed),
        max_tokens: Some(24),
        ..ask("hello, how are you?")
    };
    let alone: Vec<Vec<u32>> = (0..4).map(|seed| collect(worker.submit(seeded(seed)).unwrap()).1).collect();
    let others: Vec<Generation> = (0..9)
        .map(|number| {
            let text = format!("hello {number}, {}", "how are you? ".repeat(number));
            worker
                .submit(GenerateRequest { temperature: 1.0, max_tokens: Some(7 + number as u32), ..ask(&text) })
                .unwrap()
        })
        .collect();
    let together: Vec<Generation> = (0..4).map(|seed| worker.submit(seeded(seed)).unwrap()).collect();
    let together: Vec<Vec<u32>> = together.into_iter().map(|generation| collect(generation).1).collect();
    assert_eq!(alone, together);
    assert!(alone.iter().any(|tokens| *tokens != alone[0]), "chance made no difference");
    others.into_iter().for_each(|other| drop(collect(other)));
}

#[test]
fn penalties_and_top_k_reach_the_sampler() {
    let model = start(&CHAINS, WorkerConfig::default());
    let text = |request: GenerateRequest| answer(&model.worker, GenerateRequest { max_tokens: Some(3), ..request }).0;
    assert_eq!(text(ask("l")), "lll");
    assert_ne!(text(GenerateRequest { repetition_penalty: 10.0, ..ask("l") }), "lll");
    let hot = GenerateRequest { temperature: 50.0, seed: Some(3), ..ask("l") };
    assert_ne!(text(hot.clone()), "lll");
    assert_eq!(text(GenerateRequest { top_k: Some(1), ..hot.clone() }), "lll");
    assert_eq!(text(GenerateRequest { min_p: 1.0, ..hot }), "lll");
}

#[test]
fn what_ended_an_answer_and_what_it_might_have_had_are_told() {
    let model = start(&Script { context: 8, ..CHAINS }, WorkerConfig::default());
    let check = |text: &str, max_tokens: Option<u32>, reason: FinishReason, most: u32| {
        let end = collect(model.worker.submit(GenerateRequest { max_tokens, ..ask(text) }).unwrap()).2.unwrap();
        assert_eq!((end.reason, end.max_tokens), (reason, most), "{text} {max_tokens:?}");
    };
    check("l", Some(3), FinishReason::Length, 3);
    check("l", Some(7), FinishReason::Length, 7);
    check("l", Some(8), FinishReason::Context, 7);
    check("l", None, FinishReason::Context, 7);
    check("xxl", Some(100), FinishReason::Context, 5);
    check("e", Some(100), FinishReason::Stop, 7);
}

#[test]
fn tokens_are_told_in_full_where_asked_for() {
    let model = start(&Script { decline: None, ..CHAINS }, WorkerConfig::default());
    let tell = |logprobs: Option<u32>| {
        let request = GenerateRequest { logprobs, constraint: choices(&["d\u{e8} \u{1f600}"]), ..ask("a") };
        let mut generation = model.worker.submit(request).unwrap();
        let mut told = Vec::new();
        while let Some(event) = generation.blocking_next() {
            if let Event::Token { text, detail, logprob, .. } = event {
                assert!(logprob <= 0.0 && !text.contains('\u{fffd}'));
                told.push((text, detail));
            }
        }
        assert_eq!(told.iter().map(|(text, _)| text.as_str()).collect::<String>(), "d\u{e8} \u{1f600}");
        told
    };
    assert!(tell(None).iter().all(|(_, detail)| detail.is_none()));
    let told = tell(Some(3));
    assert_eq!(told.len(), 8, "each byte is a token");
    let bytes: Vec<u8> = told.iter().flat_map(|(_, detail)| detail.as_ref().unwrap().bytes.clone()).collect();
    assert_eq!(bytes, "d\u{e8} \u{1f600}".as_bytes());
    for (_, detail) in &told {
        let alternatives = &detail.as_ref().unwrap().alternatives;
        assert!(alternatives.len() == 3 && alternatives.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
    }
    assert_eq!(told[0].1.as_ref().unwrap().alternatives[0].bytes, b"Hello", "the model's own wish, though not allowed");
    assert!(tell(Some(0)).iter().all(|(_, detail)| detail.as_ref().unwrap().alternatives.is_empty()));
}

#[test]
fn an_answer_is_what_was_asked_for_or_an_error() {
    let worker = bundled(WorkerConfig { max_sequences: 3, ..WorkerConfig::default() });
    let person = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":8},"age":{"type":"integer",
        "minimum":0,"maximum":150},"mood":{"enum":["good","bad"]}},"required":["name","age","mood"],"additionalProperties":false}"#;
    let requests: Vec<GenerateRequest> = (0..12)
        .map(|seed| GenerateRequest {
            temperature: if seed < 2 { 0.0 } else { 1.5 },
            seed: Some(seed),
            max_tokens: Some(if seed % 2 == 0 { 120 } else { 9 }),
            constraint: schema(person),
            ..ask("hello, how are you?")
        })
        .collect();
    let answers: Vec<Generation> = requests.iter().map(|request| worker.submit(request.clone()).unwrap()).collect();
    let mut complete = 0;
    for (request, answer) in requests.iter().zip(answers) {
        let (text, _, end) = collect(answer);
        match end {
            Ok(Finished { reason: FinishReason::Declined, .. }) => assert_eq!(text, ""),
            Ok(finished) => {
                complete += 1;
                assert_eq!(finished.reason, FinishReason::Stop, "{text}");
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert!(value["name"].is_string() && value["age"].as_u64().unwrap() <= 150, "{text}");
                assert!(
                    ["good", "bad"].contains(&value["mood"].as_str().unwrap()) && value.as_object().unwrap().len() == 3
                );
            }
            Err(error) => {
                assert_eq!(error, GenerateError::Unfinished(request.max_tokens.unwrap()));
                assert!(serde_json::from_str::<serde_json::Value>(&text).is_err(), "{text} is whole");
            }
        }
    }
    assert!(complete > 0);
}

#[test]
fn a_form_does_not_keep_a_model_from_declining() {
    let chains: &[&[&str]] = &[&["d", "H", "A", "N", "D", "Q"], &["y", "y"]];
    let model = start(&Script { chains, decline: Some("HANDQ"), ..Script::default() }, WorkerConfig::default());
    let check = |text: &str, form: &[&str], expected: &str, reason: FinishReason| {
        let request = GenerateRequest { constraint: choices(form), ..ask(text) };
        assert_eq!(answer(&model.worker, request), (expected.to_owned(), reason), "{text} {form:?}");
    };
    check("d", &["HEY", "yes"], "", FinishReason::Declined);
    check("y", &["HEY", "yyy"], "yyy", FinishReason::Stop);
    let cut = GenerateRequest { constraint: choices(&["HEY", "yes"]), max_tokens: Some(3), ..ask("d") };
    let (text, _, end) = collect(model.worker.submit(cut).unwrap());
    assert_eq!((text.as_str(), end), ("", Err(GenerateError::Unfinished(3))));
    let worker = bundled(WorkerConfig::default());
    let hard = "Write a Rust program that parses JSON with error recovery and explain each step in detail.";
    let request = GenerateRequest { constraint: schema(r#"{"type":"object"}"#), ..ask(hard) };
    assert_eq!(answer(&worker, request), (String::new(), FinishReason::Declined));
}

#[test]
fn an_open_form_is_whole_at_the_limit_or_fails() {
    let model = start(&CHAINS, WorkerConfig::default());
    let regex = |pattern: &str, max_tokens: Option<u32>| {
        let constraint = Some(Constraint::Regex(pattern.to_owned()));
        let (text, _, end) =
            collect(model.worker.submit(GenerateRequest { constraint, max_tokens, ..ask("l") }).unwrap());
        (text, end.map(|end| end.reason))
    };
    assert_eq!(regex("l+", Some(4)), ("llll".to_owned(), Ok(FinishReason::Length)));
    assert_eq!(regex("l{3}", Some(9)), ("lll".to_owned(), Ok(FinishReason::Stop)));
    assert_eq!(regex("l{3}", Some(3)), ("lll".to_owned(), Ok(FinishReason::Stop)));
    assert_eq!(regex("l{3}", Some(2)), ("l".to_owned(), Err(GenerateError::Unfinished(2))));
}

#[test]
fn fields_of_decoding_out_of_range_are_refused_by_name() {
    let model = start(&CHAINS, WorkerConfig::default());
    let check = |request: GenerateRequest, expected: &str| {
        let error = model.worker.submit(request).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with(expected), "{error} should say {expected}");
    };
    check(GenerateRequest { min_p: 1.1, ..ask("a") }, "min_p is 1.1");
    check(GenerateRequest { min_p: f32::NAN, ..ask("a") }, "min_p is NaN");
    check(GenerateRequest { repetition_penalty: 0.0, ..ask("a") }, "repetition_penalty is 0");
    check(GenerateRequest { presence_penalty: 2.5, ..ask("a") }, "presence_penalty is 2.5");
    check(GenerateRequest { frequency_penalty: -3.0, ..ask("a") }, "frequency_penalty is -3");
    check(GenerateRequest { logprobs: Some(21), ..ask("a") }, "logprobs is 21");
    check(GenerateRequest { constraint: choices(&[]), ..ask("a") }, "choices has 0 texts");
    check(GenerateRequest { constraint: schema("{"), ..ask("a") }, "json_schema is no JSON");
    let both = GenerateRequest { constraint: choices(&["x"]), stop: vec!["x".to_owned()], ..ask("a") };
    check(both, "stop can't be combined");
}
