//! When two answers say the same. Letter case and white space don't count; lists and objects are compared as what they
//! hold, not as they are written.

use serde_json::Value;
use std::collections::HashMap;

/// A text with letters in lower case and each run of white space as one space, trimmed.
pub fn normal(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether two answers say the same: equal when [`normal`], or both JSON objects or lists that hold the same, strings and
/// names being taken as [`normal`]. A number or a truth value is compared as it is written.
pub fn same(given: &str, expected: &str) -> bool {
    if normal(given) == normal(expected) {
        return true;
    }
    let held = |text: &str| structured(text).map(normal_value);
    matches!((held(given), held(expected)), (Some(given), Some(expected)) if given == expected)
}

/// The JSON object or list that a text is.
pub fn structured(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().filter(|value: &Value| value.is_object() || value.is_array())
}

/// The entries of a JSON list, each as [`normal`] text; `None` if the text is no list.
pub fn items(text: &str) -> Option<Vec<String>> {
    match structured(text)? {
        Value::Array(entries) => Some(entries.into_iter().filter(|entry| !entry.is_null()).map(plain).collect()),
        _ => None,
    }
}

/// Names and values of a JSON object as [`normal`] text: a null says that there is none, a list that there are several.
/// `None` if the text is no object.
pub fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let Value::Object(fields) = structured(text)? else { return None };
    let mut pairs = Vec::new();
    for (name, value) in fields {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        let values = values.into_iter().filter(|value| !value.is_null());
        pairs.extend(values.map(|value| (normal(&name), plain(value))));
    }
    Some(pairs)
}

/// How many entries two lists share, each counted as often as both have it.
pub fn shared<T: std::hash::Hash + Eq>(given: &[T], expected: &[T]) -> usize {
    let mut left: HashMap<&T, usize> = HashMap::new();
    expected.iter().for_each(|entry| *left.entry(entry).or_default() += 1);
    let mut hits = 0;
    for entry in given {
        if let Some(left) = left.get_mut(entry).filter(|left| **left > 0) {
            *left -= 1;
            hits += 1;
        }
    }
    hits
}

/// A string as [`normal`] text, anything else as compact JSON.
fn plain(value: Value) -> String {
    match value {
        Value::String(text) => normal(&text),
        value => normal_value(value).to_string(),
    }
}

fn normal_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(normal(&text)),
        Value::Array(entries) => entries.into_iter().map(normal_value).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (normal(&name), normal_value(value))).collect(),
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_as_the_corpus_says() {
        assert!(same(" Transfer_Timing ", "transfer_timing"));
        assert!(same(r#"{"a": 1, "b": "x"}"#, r#"{"b":"x","a":1}"#));
        assert!(same(r#"{"b":"X  y","A":[1]}"#, r#"{"a":[1],"b":"x y"}"#));
        assert!(!same(r#"[1,2]"#, "[2,1]"));
        assert!(!same("1", "2"));
        assert!(!same("1.50", "1.5"), "numbers are text");
        assert!(!same("", "positive"));
    }

    #[test]
    fn pairs_leave_out_nulls_and_count_lists() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut found = pairs(r#"{"Date":null,"toy":["A","b",null],"n":3}"#).unwrap();
        found.sort();
        assert_eq!(found, [pair("n", "3"), pair("toy", "a"), pair("toy", "b")]);
        assert_eq!((pairs("[1]"), pairs("{\"a\":"), items("{}")), (None, None, None));
        assert_eq!(items(r#"["On Monday", "at 3"]"#).unwrap(), ["on monday", "at 3"]);
        assert_eq!(shared(&["a", "a", "b"], &["a", "b", "b", "c"]), 2);
    }
}
