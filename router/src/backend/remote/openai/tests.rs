use super::*;
use crate::backend::UsageProbe;
use crate::domain::{AttemptId, Limits, Role};
use serde_json::json;
use std::sync::Arc;

fn call(limits: Limits) -> BackendCall {
    BackendCall {
        attempt: AttemptId::fresh(),
        tenant: crate::domain::TenantId::new("t"),
        messages: Arc::from([Message::text(Role::System, "Be brief."), Message::text(Role::User, "Hi \"you\"")]),
        limits,
        max_output_tokens: 64,
        deadline: None,
        end_user_id: String::new(),
        probe: UsageProbe::default(),
    }
}

fn body(call: &BackendCall, stream: bool, field: MaxTokensField) -> serde_json::Value {
    serde_json::from_slice(&request_body(call, "gpt", stream, field).unwrap()).unwrap()
}

#[test]
fn a_request_says_what_was_asked_and_no_more() {
    let mut bare = call(Limits::default());
    let messages = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hi \"you\"" }]);
    assert_eq!(
        body(&bare, false, MaxTokensField::MaxTokens),
        json!({ "model": "gpt", "messages": messages, "stream": false, "max_tokens": 64 })
    );
    bare.end_user_id = "user-7".to_owned();
    bare.limits = Limits {
        max_tokens: Some(1),
        temperature: Some(0.7),
        top_p: Some(0.9),
        stop: vec!["\n".to_owned()],
        seed: Some(u64::MAX),
        ..Limits::default()
    };
    let full = request_body(&bare, "gpt", true, MaxTokensField::MaxCompletionTokens).unwrap();
    let text = String::from_utf8(full).unwrap();
    assert!(text.contains("\"temperature\":0.7,\"top_p\":0.9"), "floats are written as they were given: {text}");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text).unwrap(),
        json!({
            "model": "gpt", "messages": messages, "stream": true, "stream_options": { "include_usage": true },
            "max_completion_tokens": 64, "temperature": 0.7, "top_p": 0.9, "stop": ["\n"], "seed": u64::MAX, "user": "user-7",
        })
    );
}

#[test]
fn forms_penalties_and_log_probabilities_are_said_in_the_protocol_s_words() {
    let said = |limits: Limits| {
        let mut said = body(&call(limits), false, MaxTokensField::MaxTokens);
        let said = said.as_object_mut().unwrap();
        ["model", "messages", "stream", "max_tokens"].iter().for_each(|known| drop(said.remove(*known)));
        serde_json::Value::Object(said.clone())
    };
    let format = |format: ResponseFormat| said(Limits { format: Some(format), ..Limits::default() });
    let schema = r#"{"type":"object","properties":{"z":{},"a":{}}}"#;
    let json = format(ResponseFormat::JsonSchema(schema.to_owned()));
    assert_eq!(json["response_format"]["type"], "json_schema");
    assert_eq!(json["response_format"]["json_schema"]["schema"].to_string(), schema, "in the caller's order");
    assert_eq!(json["response_format"]["json_schema"]["strict"], true);
    assert_eq!(format(ResponseFormat::Regex("a+".to_owned())), json!({ "structured_outputs": { "regex": "a+" } }));
    let choices = ResponseFormat::Choices(vec!["a".to_owned(), "b".to_owned()]);
    assert_eq!(format(choices), json!({ "structured_outputs": { "choice": ["a", "b"] } }));
    let limits = Limits {
        top_k: Some(5),
        min_p: Some(0.5),
        repetition_penalty: Some(1.5),
        presence_penalty: Some(-0.5),
        frequency_penalty: Some(0.5),
        logprobs: Some(2),
        ..Limits::default()
    };
    let expected = json!({ "top_k": 5, "min_p": 0.5, "repetition_penalty": 1.5, "presence_penalty": -0.5,
        "frequency_penalty": 0.5, "logprobs": true, "top_logprobs": 2 });
    assert_eq!(said(limits), expected);
    assert_eq!(said(Limits { logprobs: Some(0), ..Limits::default() }), json!({ "logprobs": true }));
}

#[test]
fn tokens_are_read_with_their_alternatives() {
    let mut decoder = Decoder::default();
    let event = r#"{"choices":[{"index":0,"delta":{"content":"Hé"},"logprobs":{"content":[
        {"token":"H","logprob":-0.25,"bytes":[72],"top_logprobs":[{"token":"H","logprob":-0.25},{"token":"J","logprob":-1.5}]},
        {"token":"é","logprob":-0.5,"bytes":null,"top_logprobs":[]}]}}]}"#;
    assert_eq!(decoder.event(event), Ok(Step::Text("Hé".to_owned())));
    let alternative = |text: &str, logprob: f32| TokenAlternative { bytes: text.as_bytes().to_vec(), logprob };
    let first = TokenLogprob {
        bytes: b"H".to_vec(),
        logprob: -0.25,
        margin: Some(1.25),
        alternatives: vec![alternative("H", -0.25), alternative("J", -1.5)],
    };
    let second =
        TokenLogprob { bytes: "é".as_bytes().to_vec(), logprob: -0.5, margin: None, alternatives: Vec::new() };
    assert_eq!(decoder.take_logprobs(), [first, second]);
    assert_eq!(decoder.take_logprobs(), []);
    assert_eq!(decoder.event(HELLO), Ok(Step::Text("Hello".to_owned())), "none is no fault");
}

/// Feeds events to a decoder: text so far and how it stands.
fn decode(events: &[&str]) -> (String, Decoder, Result<Step, BackendError>) {
    let (mut decoder, mut text, mut last) = (Decoder::default(), String::new(), Ok(Step::Nothing));
    for event in events {
        last = decoder.event(event);
        match &last {
            Ok(Step::Text(more)) => text.push_str(more),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    (text, decoder, last)
}

const HELLO: &str = r#"{"model":"m-1","choices":[{"index":0,"delta":{"content":"Hello"}}]}"#;
const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;

#[test]
fn usage_is_read_wherever_it_stands() {
    let check = |events: &[&str], expected: Option<(u64, u64, u64, u64)>| {
        let (_, decoder, last) = decode(events);
        assert_eq!(last, Ok(Step::Done), "{events:?}");
        let usage = decoder
            .usage()
            .map(|usage| (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.reasoning_tokens));
        assert_eq!(usage, expected, "{events:?}");
    };
    let own = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4},
        "completion_tokens_details":{"reasoning_tokens":3}}}"#;
    check(&[HELLO, STOP, own, "[DONE]"], Some((9, 5, 4, 3)));
    let with_choices = r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":5}}"#;
    check(&[HELLO, with_choices, "[DONE]"], Some((9, 5, 0, 0)));
    let counting =
        r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":9,"completion_tokens":1}}"#;
    check(&[counting, HELLO, with_choices, "[DONE]"], Some((9, 5, 0, 0)));
    let no_choices = r#"{"choices":null,"usage":null}"#;
    let (_, _, last) = decode(&[no_choices]);
    assert!(matches!(last, Err(BackendError::Protocol { .. })), "neither text nor error");
    check(&[HELLO, STOP, r#"{"choices":[],"usage":{}}"#, "[DONE]"], None);
    check(&[HELLO, STOP, "[DONE]"], None);
    let nonsense = r#"{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":7},
        "completion_tokens_details":{"reasoning_tokens":8}}}"#;
    check(&[HELLO, STOP, nonsense, "[DONE]"], Some((2, 1, 2, 1)));
}

#[test]
fn an_answer_needs_its_finish_reason_and_its_end_marker() {
    let (text, decoder, last) = decode(&[HELLO, HELLO, STOP, "[DONE]"]);
    assert_eq!((text.as_str(), last), ("HelloHello", Ok(Step::Done)));
    let finish = decoder.finish(Usage { output_tokens: 3, ..Usage::default() });
    assert_eq!((finish.response_model.as_str(), finish.usage.output_tokens, finish.usage_reported), ("m-1", 3, false));
    assert!(matches!(decode(&[HELLO, "[DONE]"]).2, Err(BackendError::Cut { .. })));
    let other_choice = r#"{"choices":[{"index":1,"delta":{"content":"x"},"finish_reason":"stop"}]}"#;
    assert!(matches!(decode(&[other_choice, "[DONE]"]).2, Err(BackendError::Cut { .. })));
}

#[test]
fn finish_reasons_are_known_or_refused() {
    let check = |word: &str, expected: Option<FinishReason>| assert_eq!(finish_reason(word).ok(), expected, "{word}");
    check("stop", Some(FinishReason::Stop));
    check("length", Some(FinishReason::Length));
    check("tool_calls", Some(FinishReason::ToolCalls));
    check("content_filter", Some(FinishReason::Filtered));
    check("eos", None);
}

#[test]
fn errors_inside_a_stream_keep_the_usage_and_lose_the_message() {
    let usage = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5}}"#;
    for object in [
        r#"{"error":{"message":"you said SECRET","type":"server_error","code":"sk-123","param":"a b"}}"#,
        r#"{"error":"you said SECRET"}"#,
    ] {
        let error = decode(&[HELLO, usage, object]).2.unwrap_err();
        assert_eq!(error.usage().map(|usage| usage.output_tokens), Some(5));
        assert!(matches!(error, BackendError::Cut { .. }), "{error}");
        let message = error.to_string();
        assert!(!message.contains("SECRET") && !message.contains("sk-"), "{message}");
    }
}

#[test]
fn unary_bodies_are_read() {
    let read = |body: &str| {
        let mut decoder = Decoder::default();
        decoder.body(body.as_bytes()).map(|text| (text, decoder.finish(Usage::default()).usage.input_tokens))
    };
    let whole = r#"{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":4}}"#;
    assert_eq!(read(whole).unwrap(), ("Hi".to_owned(), 4));
    assert!(matches!(read(&whole[..40]), Err(BackendError::Protocol { .. })));
    assert!(matches!(read(r#"{"choices":[{"message":{"content":"Hi"}}]}"#), Err(BackendError::Cut { .. })));
    assert!(matches!(read("[]"), Err(BackendError::Protocol { .. })));
}

#[test]
fn statuses_become_what_the_caller_can_do() {
    let coded = |code: &str| format!(r#"{{"error":{{"message":"SECRET","type":"t","code":"{code}"}}}}"#);
    let check = |status: u16, body: &str, expected: &str, billed: bool| {
        let error = refusal(status, None, body.as_bytes());
        assert_eq!((error.code(), error.may_have_been_billed()), (expected, billed), "{status} {body}");
        assert!(!error.to_string().contains("SECRET"), "{error}");
    };
    check(400, &coded("x"), "rejected", false);
    check(400, &coded("context_length_exceeded"), "prompt_too_long", false);
    check(401, "SECRET", "unauthorized", false);
    check(403, "", "unauthorized", false);
    check(404, &coded("model_not_found"), "rejected", false);
    check(408, "", "unavailable", false);
    check(413, "", "prompt_too_long", false);
    check(422, "", "rejected", false);
    check(429, &coded("rate_limit_exceeded"), "rate_limited", false);
    check(429, &coded("insufficient_quota"), "unauthorized", false);
    check(500, "<html>SECRET", "unavailable", false);
    check(503, "", "unavailable", false);
    check(504, "", "unavailable", true);
    check(529, "", "overloaded", false);
    check(302, "", "protocol", true);
}

#[test]
fn retry_after_is_read_as_seconds_and_as_a_date() {
    let now: jiff::Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
    let check = |value: &str, seconds: Option<f64>| {
        assert_eq!(retry_after(value, now).map(|wait| wait.as_secs_f64()), seconds, "{value}");
    };
    check("7", Some(7.0));
    check(" 0.25 ", Some(0.25));
    check("Sun, 06 Nov 1994 08:49:37 GMT", Some(37.0));
    check("Sun, 06 Nov 1994 08:48:00 GMT", Some(0.0));
    check("-5", None);
    check("soon", None);
    check("NaN", None);
}
