//! Chat templates beside `transformers`: what the families' templates make of conversations, and what they refuse.
//! `make_template_fixtures.py` writes the fixtures and says where the templates are from; a folder of other templates that it
//! has been run on is checked as well, if `TEST_TEMPLATES` names one.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and tell what it measured")]

use std::path::{Path, PathBuf};

use local_worker::ChatMessage;
use local_worker::template::ChatTemplate;
use serde_json::Value;

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap().to_owned()
}

/// Checks a folder's templates; returns how many conversations were rendered and refused alike, and what was not.
fn check(folder: &Path) -> (usize, usize, Vec<String>) {
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let (mut rendered, mut refused, mut wrong) = (0, 0, Vec::new());
    for (name, template) in expected.as_object().unwrap() {
        let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        let own = match ChatTemplate::new(Some(&source), &text(template, "begin"), &text(template, "end")) {
            Ok(own) => own,
            Err(problem) => {
                wrong.push(format!("{name}: {problem}"));
                continue;
            }
        };
        for case in template["cases"].as_array().unwrap() {
            let turn = |turn: &Value| ChatMessage { role: text(turn, "role"), content: text(turn, "content") };
            let messages: Vec<ChatMessage> = case["messages"].as_array().unwrap().iter().map(turn).collect();
            let own = own.render(&messages);
            let today =
                jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::UTC).strftime("%d %b %Y").to_string();
            match (own, case["text"].as_str()) {
                (Ok(got), Some(want)) if got.replace(&today, "{today}") == want => rendered += 1,
                (Err(got), None) if got.contains(case["error"].as_str().unwrap()) => refused += 1,
                (got, want) => wrong.push(format!("{name}: {messages:?}\n  got  {got:?}\n  want {want:?}")),
            }
        }
    }
    (rendered, refused, wrong)
}

#[test]
fn the_families_templates_give_what_transformers_gives() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates");
    let (rendered, refused, wrong) = check(&folder);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rendered > 80 && refused > 5, "{rendered} {refused}");
    #[allow(clippy::disallowed_methods, reason = "a test has no settings; this says where more templates are")]
    if let Some(more) = std::env::var_os("TEST_TEMPLATES") {
        let (rendered, refused, wrong) = check(Path::new(&more));
        println!("{rendered} rendered and {refused} refused alike, {} not", wrong.len());
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
