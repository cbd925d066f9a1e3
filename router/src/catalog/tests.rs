//! The catalog's text in, models or named problems out.

use super::*;

const GOOD: &str = r#"
[[models]]
id = "a/large"
kind = "remote"
target = "a"
upstream = "large"
context = 1000
max_output = 100
default_output = 50
capabilities = ["sampling", "stop"]
price = { input = "0.40", cached_input = "0.10", output = "1.60", date = "2026-01-01", source = "test" }
"#;

#[test]
fn costs_are_exact_and_never_above_the_bound() {
    let catalog = Catalog::parse("models.toml", GOOD).unwrap();
    let model = catalog.get(&ModelId::new("a/large")).unwrap();
    let usage = Usage { input_tokens: 10, cached_input_tokens: 4, output_tokens: 3, reasoning_tokens: 1 };
    assert_eq!(model.cost(&usage).nanos(), 6 * 400 + 4 * 100 + 3 * 1600);
    assert!(model.bound(10, 1, 3) >= model.cost(&usage));
    assert_eq!(model.output_cap(None), 50);
    assert_eq!(model.output_cap(Some(1_000)), 100);
    assert_eq!(model.unsupported(&Limits { seed: Some(1), ..Limits::default() }), Some("limits.seed"));
}

#[test]
fn each_capability_stands_for_its_fields() {
    use crate::domain::ResponseFormat::{Choices, JsonSchema, Regex};
    let none = Limits::default;
    let form = |format| Limits { format: Some(format), ..none() };
    let wishes = [
        ("sampling", Limits { temperature: Some(0.5), ..none() }, "limits.temperature"),
        ("sampling", Limits { top_p: Some(0.5), ..none() }, "limits.top_p"),
        ("stop", Limits { stop: vec!["x".to_owned()], ..none() }, "limits.stop"),
        ("seed", Limits { seed: Some(0), ..none() }, "limits.seed"),
        ("top-k", Limits { top_k: Some(1), ..none() }, "limits.top_k"),
        ("min-p", Limits { min_p: Some(0.5), ..none() }, "limits.min_p"),
        ("repetition-penalty", Limits { repetition_penalty: Some(2.0), ..none() }, "limits.repetition_penalty"),
        ("penalties", Limits { presence_penalty: Some(-1.0), ..none() }, "limits.presence_penalty"),
        ("penalties", Limits { frequency_penalty: Some(1.0), ..none() }, "limits.frequency_penalty"),
        ("logprobs", Limits { logprobs: Some(0), ..none() }, "limits.logprobs"),
        ("json-schema", form(JsonSchema("{}".to_owned())), "response_format.json_schema"),
        ("regex", form(Regex("a".to_owned())), "response_format.regex"),
        ("choice", form(Choices(vec!["a".to_owned()])), "response_format.choices"),
    ];
    let catalog = Catalog::parse("models.toml", GOOD).unwrap();
    let mut model = catalog.models().next().unwrap().clone();
    for (word, limits, field) in wishes {
        model.capabilities = Capabilities::default();
        assert_eq!(model.unsupported(&limits), Some(field));
        *model.capabilities.switch(word).unwrap() = true;
        assert_eq!(model.unsupported(&limits), None, "{word}");
    }
    model.capabilities = Capabilities::default();
    let neutral = Limits {
        temperature: Some(0.0),
        top_p: Some(1.0),
        min_p: Some(0.0),
        repetition_penalty: Some(1.0),
        presence_penalty: Some(0.0),
        frequency_penalty: Some(0.0),
        ..none()
    };
    assert_eq!(model.unsupported(&neutral), None);
}

#[test]
fn a_local_model_has_a_path_or_a_source() {
    let place = |lines: &str| {
        let text = format!(
            "[[models]]\nid = \"m\"\nkind = \"file\"\ncontext = 9\nmax_output = 3\ndefault_output = 2\n{lines}\n"
        );
        let catalog = Catalog::parse("models.toml", &text)?;
        Ok(catalog.models().next().map(|model| model.place.clone()).unwrap())
    };
    let problem = |lines: &str| -> (String, String) {
        let problems: Vec<Problem> = place(lines).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        (problems[0].key.clone(), format!("{} {}", problems[0].message, problems[0].suggestion))
    };
    assert_eq!(place("path = \"a.gguf\"").unwrap(), Place::File("a.gguf".into()));
    assert_eq!(place("source = \"hf:a/b@v1/c.gguf\"").unwrap(), Place::Hub("hf:a/b@v1/c.gguf".parse().unwrap()));
    assert!(problem("").1.contains("hf:owner/name"));
    assert!(problem("path = \"a\"\nsource = \"hf:a/b\"").1.contains("keep one"));
    let (key, message) = problem("source = \"a/b\"");
    assert!(key == "models[0].source" && message.contains("hf:owner/name[@revision][/file]"), "{key}: {message}");
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = GOOD.replace("\"0.40\"", "\"cheap\"").replace("target", "taget").replace("100\n", "-1\n");
    let problems = Catalog::parse("models.toml", &text).unwrap_err();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    for key in ["models[0].taget", "models[0].max_output", "models[0].price.input"] {
        assert!(keys.contains(&key), "{key} in {keys:?}");
    }
    assert!(problems.iter().any(|problem| problem.suggestion == "did you mean `target`?"));
}
