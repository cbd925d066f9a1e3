//! Models that choose at random among what is allowed never write anything else than what was asked for.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::{Gguf, SLUICE_NANO};
use crate::testing::Script;

/// The bundled vocabulary: byte-level BPE, with tokens of several letters and parts of characters.
fn tokenizer() -> Tokenizer {
    let file = Gguf::parse("nano", SLUICE_NANO.unwrap()).unwrap();
    Tokenizer::load(&file, usize::MAX).unwrap()
}

/// Letters and a few words.
fn letters() -> Tokenizer {
    let bytes = Script { chains: &[&["a", "HAND", "OFF"]], ..Script::default() }.gguf();
    Tokenizer::load(&Gguf::parse("letters", &bytes).unwrap(), usize::MAX).unwrap()
}

/// Writes an answer with chance `draw`; None if it is not complete after `most` tokens.
fn write(
    guide: &mut Guide,
    tokenizer: &Tokenizer,
    draw: &mut impl FnMut(usize) -> usize,
    most: usize,
) -> Option<String> {
    let mut text = Vec::new();
    for at in 1..=most {
        let mask = guide.allowed().unwrap().words;
        let allowed: Vec<u32> =
            (0..tokenizer.len() as u32).filter(|id| mask[*id as usize / 32] & (1 << (id % 32)) != 0).collect();
        assert!(!allowed.is_empty(), "a dead end after {:?}", String::from_utf8_lossy(&text));
        // Ends and quotes are preferred, or random answers would be endless.
        let closing = |id: &&u32| tokenizer.ends(**id) || matches!(tokenizer.bytes(**id), b"\"" | b"}" | b"]" | b",");
        let closing: Vec<u32> = allowed.iter().filter(closing).copied().collect();
        let pool = if closing.is_empty() || draw(3) == 0 { &allowed } else { &closing };
        let token = pool[draw(pool.len())];
        if tokenizer.ends(token) {
            return Some(String::from_utf8(text).unwrap());
        }
        text.extend_from_slice(tokenizer.bytes(token));
        match guide.advance(token, at == most).unwrap() {
            Progress::Complete | Progress::Whole => return Some(String::from_utf8(text).unwrap()),
            Progress::Partial => {}
        }
    }
    None
}

fn random(seed: u64) -> impl FnMut(usize) -> usize {
    use rand::{Rng as _, SeedableRng as _};
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    move |below| random.random_range(0..below)
}

/// Answers of a random model to `constraint`; at least one of them complete.
fn answers(grammars: &Grammars, tokenizer: &Tokenizer, constraint: &Constraint, count: u64) -> Vec<String> {
    let answer = |seed| {
        let mut guide = grammars.guide(tokenizer, constraint, None).unwrap();
        write(&mut guide, tokenizer, &mut random(seed), 300)
    };
    let answers: Vec<String> = (0..count).filter_map(answer).collect();
    assert!(!answers.is_empty(), "no answer to {constraint:?} was complete");
    answers
}

#[test]
fn choices_are_kept_to_whatever_they_are_made_of() {
    let choices = [
        "yes",
        "no",
        "yes, but",
        "a|b",
        "(.*)\\d",
        "d\u{e9}j\u{e0} vu \u{1f600}",
        "two\nlines\tof",
        "/ \"q\" <#>",
        "$5 ~^",
    ];
    let constraint = Constraint::Choices(choices.iter().map(|choice| (*choice).to_owned()).collect());
    for tokenizer in [tokenizer(), letters()] {
        let answers = answers(&Grammars::default(), &tokenizer, &constraint, 120);
        assert!(answers.iter().all(|answer| choices.contains(&answer.as_str())), "{answers:?}");
        assert_eq!(choices.iter().filter(|choice| !answers.iter().any(|answer| answer == *choice)).count(), 0);
    }
}

#[test]
fn expressions_match_from_beginning_to_end() {
    type Check = fn(&str) -> bool;
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let date: Check = |text| {
        let parts: Vec<&str> = text.split('-').collect();
        parts.len() == 3
            && parts.iter().zip([4, 2, 2]).all(|(part, count)| part.len() == count && part.parse::<u32>().is_ok())
    };
    assert!(digits("42", 2));
    let cases: [(&str, Check); 5] = [
        (r"\d{4}-\d{2}-\d{2}", date),
        (r"^(?:AB|CD)+$", |text| {
            !text.is_empty() && text.as_bytes().chunks(2).all(|pair| pair == b"AB" || pair == b"CD")
        }),
        (r"[a-c]{2,4}\$", |text| (3..=5).contains(&text.len()) && text.ends_with('$')),
        (r"[\u{1f600}-\u{1f64f}]{3}", |text| text.chars().count() == 3 && text.chars().all(|c| c >= '\u{1f600}')),
        (r"x/y|\\", |text| text == "x/y" || text == "\\"),
    ];
    let (tokenizer, grammars) = (tokenizer(), Grammars::default());
    for (pattern, matches) in cases {
        for answer in answers(&grammars, &tokenizer, &Constraint::Regex(pattern.to_owned()), 30) {
            assert!(matches(&answer), "{answer:?} for {pattern}");
        }
    }
}

/// Whether `value` is what `schema`, of the few keywords made below, describes.
fn valid(schema: &Value, value: &Value) -> bool {
    if let Some(allowed) = schema.get("enum") {
        return allowed.as_array().unwrap().contains(value);
    }
    match (schema["type"].as_str().unwrap(), value) {
        ("null", Value::Null) | ("boolean", Value::Bool(_)) => true,
        ("integer", Value::Number(number)) => {
            // What is read as a float is `-0`, which JSON has as an integer.
            let whole = number.as_i64().or_else(|| (number.as_f64() == Some(0.0)).then_some(0));
            whole.is_some_and(|number| (schema["minimum"].as_i64().unwrap()..=100).contains(&number))
        }
        ("string", Value::String(text)) => text.chars().count() as u64 <= schema["maxLength"].as_u64().unwrap(),
        ("array", Value::Array(items)) => items.len() <= 3 && items.iter().all(|item| valid(&schema["items"], item)),
        ("object", Value::Object(fields)) => {
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            required.iter().all(|name| fields.contains_key(name.as_str().unwrap()))
                && fields.iter().all(|(name, field)| properties.get(name).is_some_and(|schema| valid(schema, field)))
        }
        _ => false,
    }
}

fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({ "type": "null" })),
        Just(json!({ "type": "boolean" })),
        (-50i64..50).prop_map(|least| json!({ "type": "integer", "minimum": least, "maximum": 100 })),
        (0u64..12).prop_map(|most| json!({ "type": "string", "maxLength": most })),
        prop::collection::vec("[a-z\u{e9}\" ]{0,6}", 1..4).prop_map(|texts| json!({ "enum": texts })),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let fields = prop::collection::btree_map("[a-z_]{1,6}", (inner.clone(), any::<bool>()), 0..4);
        prop_oneof![
            inner.prop_map(|items| json!({ "type": "array", "items": items, "maxItems": 3 })),
            fields.prop_map(|fields| {
                let required: Vec<&String> = fields.iter().filter(|(_, (_, must))| *must).map(|(name, _)| name).collect();
                let properties: serde_json::Map<String, Value> =
                    fields.iter().map(|(name, (schema, _))| (name.clone(), schema.clone())).collect();
                json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
            }),
        ]
    })
}

#[test]
fn random_models_write_what_random_schemas_describe() {
    let (tokenizer, grammars) = (tokenizer(), Grammars::default());
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(schema in schemas(), seed in any::<u64>())| {
        let constraint = Constraint::JsonSchema(schema.to_string());
        let mut guide = grammars.guide(&tokenizer, &constraint, None).unwrap();
        if let Some(text) = write(&mut guide, &tokenizer, &mut random(seed), 200) {
            let value: Value = serde_json::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?;
            prop_assert!(valid(&schema, &value), "{text} for {schema}");
        }
    });
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let (tokenizer, grammars) = (tokenizer(), Grammars::default());
    let check = |constraint: Constraint, named: &str, says: &str| {
        let error = grammars.guide(&tokenizer, &constraint, None).map(drop).unwrap_err();
        let SubmitError::Invalid { field, problem } = error else { panic!("{error}") };
        assert_eq!(field, named, "{problem}");
        assert!(problem.contains(says) && problem.len() <= LONGEST_PROBLEM, "{problem} should say {says}");
    };
    let schema = |schema: &str| Constraint::JsonSchema(schema.to_owned());
    check(schema("{"), "json_schema", "is no JSON");
    check(schema("7"), "json_schema", "must be a JSON object");
    check(schema("false"), "json_schema", "nothing satisfies");
    check(schema(r#"{"type":"string","minLength":5,"maxLength":2}"#), "json_schema", "is refused by");
    check(schema(r#"{"type":"integer","minimum":5,"maximum":4}"#), "json_schema", "is refused by");
    check(schema(r#"{"type":"object","properties":{"a":false},"required":["a"]}"#), "json_schema", "is refused by");
    check(schema(r#"{"oneOf":[{"type":"string"},{"minLength":3}]}"#), "json_schema", "oneOf");
    check(schema(r#"{"type":"array","uniqueItems":true}"#), "json_schema", "uniqueItems");
    check(schema(r#"{"type":"string","format":"no-such"}"#), "json_schema", "no-such");
    check(schema(r##"{"$ref":"#/$defs/absent"}"##), "json_schema", "is refused by");
    check(schema(r#"{"not":{},"x-guidance":{"lenient":true}}"#), "json_schema", "not");
    check(schema(&format!("{{\"const\":\"{}\"}}", "x".repeat(LONGEST))), "json_schema", "at most 65536");
    let regex = |pattern: &str| Constraint::Regex(pattern.to_owned());
    check(regex("(a"), "regex", "is refused by");
    check(regex("a(?=b)"), "regex", "is refused by");
    check(regex(&"a".repeat(LONGEST_REGEX + 1)), "regex", "at most 4096");
    check(Constraint::Choices(vec![]), "choices", "has 0 texts");
    check(Constraint::Choices(vec![String::new()]), "choices", "not empty");
    check(Constraint::Choices(vec!["x".to_owned(); MOST_CHOICES + 1]), "choices", "1 to 512");
}

#[test]
fn compiled_constraints_are_kept_up_to_a_number() {
    let (tokenizer, grammars) = (letters(), Grammars::default());
    let constraint = |number: usize| Constraint::Choices(vec![format!("choice {number}")]);
    let compiled = |number: usize| grammars.compiled(&tokenizer, &constraint(number)).unwrap();
    let first = compiled(0);
    for number in 1..KEPT {
        compiled(number);
        assert!(Arc::ptr_eq(&first, &compiled(0)));
    }
    compiled(KEPT);
    assert!(Arc::ptr_eq(&first, &compiled(0)), "used last, so kept");
    assert_eq!(grammars.kept.lock().unwrap().compiled.len(), KEPT);
    assert!(!grammars.kept.lock().unwrap().compiled.contains_key(&constraint(1)), "used longest ago");
}

#[test]
fn a_decline_is_allowed_at_the_beginning_and_nowhere_else() {
    let (tokenizer, grammars) = (letters(), Grammars::default());
    let decline = tokenizer.encode("HAND").unwrap();
    let guide = |choices: &[&str]| {
        let choices = choices.iter().map(|choice| (*choice).to_owned()).collect();
        grammars.guide(&tokenizer, &Constraint::Choices(choices), Some("HAND")).unwrap()
    };
    let allowed = |guide: &mut Guide| -> (Vec<String>, Option<u32>) {
        let allowed = guide.allowed().unwrap();
        let has = |id: &u32| allowed.words[*id as usize / 32] & (1 << (id % 32)) != 0;
        let ids = (0..tokenizer.len() as u32).filter(has);
        let texts = ids.map(|id| String::from_utf8_lossy(tokenizer.bytes(id)).into_owned());
        (texts.collect(), allowed.or_likeliest)
    };
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(decline.len(), 4, "letter by letter");
    let mut only = guide(&["yes"]);
    assert_eq!(allowed(&mut only), (texts(&["y"]), Some(decline[0])));
    assert_eq!(only.advance(decline[0], false), Ok(Progress::Partial));
    for id in &decline[1..] {
        assert_eq!(allowed(&mut only), (vec![String::from_utf8_lossy(tokenizer.bytes(*id)).into_owned()], None));
        assert_eq!(only.advance(*id, true), Ok(Progress::Partial), "a decline is never what was asked for");
    }
    assert_eq!(allowed(&mut only), (vec![], None));
    let mut both = guide(&["HAVE"]);
    both.advance(decline[0], false).unwrap();
    assert_eq!(allowed(&mut both), (texts(&["A"]), Some(decline[1])));
    both.advance(decline[1], false).unwrap();
    assert_eq!(allowed(&mut both), (texts(&["V"]), Some(decline[2])));
    both.advance(tokenizer.encode("V").unwrap()[0], false).unwrap();
    assert_eq!(allowed(&mut both), (texts(&["E"]), None));
    assert_eq!(both.advance(tokenizer.encode("E").unwrap()[0], false), Ok(Progress::Complete));
    assert!(both.allowed().is_err());
}
