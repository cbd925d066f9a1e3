//! The `[[tests]]` of a policy file.

use super::{duration, read_money, read_placement};
use crate::domain::{Labels, Message, ReasonCode, Role, Route};
use crate::policy::selftest::SelfTest;
use crate::toml_file::{Problems, Section};
use std::time::Duration;

/// Reads all tests.
pub fn read(root: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<SelfTest> {
    root.sections("tests", problems).into_iter().map(|section| read_one(section, problems)).collect()
}

fn read_one(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> SelfTest {
    let span = section.span();
    let name = section.text("name", problems).map(|(name, _)| name);
    if name.is_none() {
        section.missing("name", "a test needs one", problems);
    }
    let messages = read_messages(&mut section, problems);
    let mut labels = Labels::new();
    if let Some(mut table) = section.section("labels", problems) {
        for (key, key_span, value) in table.take_all() {
            match value.get_ref().as_str() {
                Some(text) => drop(labels.insert(key, text.to_owned())),
                None => problems.add(key_span, &table.path(&key), "should be a text in quotes", ""),
            }
        }
    }
    let placement = read_placement(&mut section, problems).unwrap_or_default();
    let regions = section.texts("regions", problems);
    let predicted = read_predicted(&mut section, problems);
    let allowance = read_money(&mut section, "allowance", problems);
    let score = section.number_in("score", 0.0..=1.0, problems);
    let threshold = section.number_in("threshold", 0.0..=1.0, problems);
    let mut test = SelfTest {
        name: name.unwrap_or_default(),
        messages,
        labels,
        placement,
        score,
        threshold,
        regions: regions.map(|regions| regions.into_iter().map(|(region, _)| region).collect()),
        stream: section.flag("stream", problems).unwrap_or(false),
        went_remote: section.flag("went_remote", problems).unwrap_or(false),
        predicted,
        allowance,
        expect_route: None,
        expect_refused: false,
        expect_model: None,
        expect_rule: None,
        expect_reason: None,
        span,
    };
    match section.section("expect", problems) {
        Some(mut expect) => {
            match expect.word("route", &["local", "remote", "refused"], problems) {
                Some("refused") => test.expect_refused = true,
                word => test.expect_route = word.and_then(Route::parse),
            }
            test.expect_model = expect.text("model", problems).map(|(model, _)| model);
            test.expect_rule = expect.text("rule", problems).map(|(rule, _)| rule);
            let codes = ReasonCode::ALL.map(ReasonCode::as_str);
            test.expect_reason = expect.word("reason", &codes, problems);
            if !["route", "model", "rule", "reason"].iter().any(|key| expect.has(key)) {
                expect.missing("route", "a test that expects nothing can't fail", problems);
            }
            if test.expect_refused && ["model", "rule", "reason"].iter().any(|key| expect.has(key)) {
                let message = "a refused request has no model, rule or reason";
                problems.add(expect.span(), &expect.path("route"), message, "expect nothing else");
            }
            expect.finish(problems);
        }
        None => section.missing("expect", "say what should come out: expect = { route = \"local\" }", problems),
    }
    section.finish(problems);
    test
}

/// `predicted = { "model" = "3s" }`.
fn read_predicted(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<(String, Duration)> {
    let Some(mut table) = section.section("predicted", problems) else { return Vec::new() };
    let mut predicted = Vec::new();
    for (model, span, value) in table.take_all() {
        match value.get_ref().as_str().and_then(duration) {
            Some(time) => predicted.push((model, time)),
            None => problems.add(span, &table.path(&model), "should be a time", "write it like 500ms or 3s"),
        }
    }
    predicted
}

/// `prompt = "…"`, or `messages = [{ role = "user", text = "…" }]`.
fn read_messages(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<Message> {
    let prompt = section.text("prompt", problems);
    let turns = section.sections("messages", problems);
    match (prompt, section.has("messages")) {
        (Some((_, span)), true) => {
            problems.add(span, &section.path("prompt"), "is given beside `messages`", "keep one of the two");
            Vec::new()
        }
        (Some((prompt, _)), false) => vec![Message::text(Role::User, prompt)],
        (None, false) => {
            section.missing("prompt", "a test needs it, or `messages`", problems);
            Vec::new()
        }
        (None, true) => {
            if turns.is_empty() {
                problems.add(section.span_of("messages"), &section.path("messages"), "has no message", "");
            }
            turns.into_iter().map(|turn| read_message(turn, problems)).collect()
        }
    }
}

fn read_message(mut turn: Section<'_, '_>, problems: &mut Problems<'_>) -> Message {
    let role = match turn.word("role", &["system", "user", "assistant", "tool"], problems) {
        Some("system") => Role::System,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        _ => Role::User,
    };
    turn.missing("role", "say who speaks", problems);
    let text = turn.text("text", problems).map(|(text, _)| text);
    turn.missing("text", "say what is said", problems);
    turn.finish(problems);
    Message::text(role, text.unwrap_or_default())
}
