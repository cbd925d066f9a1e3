//! Each task's metric, as the corpus's README defines it: the first of a task's metrics is the one it is judged by, the others
//! are told beside it. A task that the README does not name is judged by exact match.
//!
//! Every metric is kept as a few counts for each record, so that its value can be taken for any weighting of the records:
//! that is what a bootstrap needs. Nothing here knows of intervals.

use super::answer::Answer;
use super::compare::{items, normal, pairs, same, shared, structured};
use super::suite::Record;
use std::collections::HashMap;

/// The answer that hands a request on to another model.
pub const HANDOFF: &str = "HANDOFF";

/// The label of what belongs to none of the intents.
const OUT_OF_SCOPE: &str = "out_of_scope";

/// One metric of one task, over all its records.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name, such as `slot_f1`.
    pub metric: &'static str,
    form: Form,
    tallies: Vec<Tally>,
}

/// How counts become a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Σ hits ÷ records that count: accuracy, exact match, recall of one label.
    Mean,
    /// Σ hits ÷ Σ given.
    Precision,
    /// 2 Σ hits ÷ (Σ given + Σ expected): the harmonic mean of precision and recall over all records together.
    F1,
    /// The mean over the labels that are right somewhere of each label's F1.
    MacroF1,
}

/// What one record adds.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    hits: f64,
    given: f64,
    expected: f64,
    /// The right label, and the given one if it is one of the right ones somewhere.
    class: usize,
    given_class: Option<usize>,
    counts: bool,
}

impl Column {
    /// Records of the task.
    pub fn len(&self) -> usize {
        self.tallies.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.tallies.is_empty()
    }

    /// Records that count for it.
    pub fn n(&self) -> usize {
        self.tallies.iter().filter(|tally| tally.counts).count()
    }

    /// The value in [0, 1] where record `i` weighs `weights[i]`; `None` where it has none: nothing counts, or nothing was
    /// there to be found and nothing was given.
    pub fn value(&self, weights: &[f64]) -> Option<f64> {
        let rows = || self.tallies.iter().zip(weights).filter(|(tally, weight)| tally.counts && **weight > 0.0);
        let sum = |part: fn(&Tally) -> f64| rows().map(|(tally, weight)| part(tally) * weight).sum::<f64>();
        let ratio = |above: f64, below: f64| (below > 0.0).then(|| above / below);
        match self.form {
            Form::Mean => ratio(sum(|tally| tally.hits), rows().map(|(_, weight)| weight).sum()),
            Form::Precision => ratio(sum(|tally| tally.hits), sum(|tally| tally.given)),
            Form::F1 => ratio(2.0 * sum(|tally| tally.hits), sum(|tally| tally.given + tally.expected)),
            Form::MacroF1 => {
                let classes = self.tallies.iter().map(|tally| tally.class + 1).max().unwrap_or(0);
                let mut counts = vec![[0.0; 3]; classes];
                for (tally, weight) in rows() {
                    counts[tally.class][1] += weight;
                    if let Some(given) = tally.given_class {
                        counts[given][2] += weight;
                        counts[given][0] += if given == tally.class { *weight } else { 0.0 };
                    }
                }
                let right: Vec<_> = counts.iter().filter(|[_, expected, _]| *expected > 0.0).collect();
                let sum: f64 = right.iter().map(|[hits, expected, given]| 2.0 * hits / (expected + given)).sum();
                ratio(sum, right.len() as f64)
            }
        }
    }

    /// The value with every record weighing the same.
    pub fn plain(&self) -> Option<f64> {
        self.value(&vec![1.0; self.tallies.len()])
    }
}

/// All metrics of a task over its records and their answers; the first is the one it is judged by.
pub fn columns(task: &str, graded: &[(&Record, &Answer)]) -> Vec<Column> {
    let column = |metric, form, tally: &dyn Fn(&Record, &str) -> Tally| column(graded, metric, form, tally);
    let mean = |metric| column(metric, Form::Mean, &|record, given| right(same(given, &record.answer)));
    let label_f1 = |metric, label: &'static str| {
        column(metric, Form::F1, &|record, given| labelled(normal(given) == label, normal(&record.answer) == label))
    };
    let listed_f1 = |metric| column(metric, Form::F1, &|record, given| overlap(items(given), items(&record.answer)));
    let paired_f1 = |metric| column(metric, Form::F1, &|record, given| overlap(pairs(given), pairs(&record.answer)));
    match task {
        "clickbait" | "intent_candidates" | "intent_closed" | "intent_full_list" | "language_id" | "question_type"
        | "sentiment" | "topic" => vec![mean("accuracy")],
        "dialogue_act" => vec![mean("accuracy"), macro_f1(graded, |_| true)],
        "emotion" => vec![mean("accuracy"), macro_f1(graded, |record| record.labels.len() == 7)],
        "duplicate_question" | "same_intent" => vec![mean("accuracy"), label_f1("f1_yes", "yes")],
        "spam" => vec![label_f1("f1_spam", "spam"), mean("accuracy")],
        "slots_json" => vec![paired_f1("slot_f1"), mean("exact_match")],
        "ner_json" => vec![paired_f1("entity_f1"), mean("exact_match")],
        "datetime_spans" => vec![listed_f1("span_f1"), mean("exact_match")],
        "intent_multilabel" => vec![listed_f1("micro_f1"), mean("exact_match")],
        "fix_disfluency" => {
            vec![mean("exact_match"), column("word_f1", Form::Mean, &|record, given| words(given, &record.answer))]
        }
        "handoff" => {
            let recall = |record: &Record, given: &str| {
                let wanted = normal(&record.answer) == normal(HANDOFF);
                Tally { counts: wanted, ..right(normal(given) == normal(HANDOFF)) }
            };
            vec![column("handoff_recall", Form::Mean, &recall)]
        }
        "oos_detect" => scope(graded),
        _ => vec![mean("exact_match")],
    }
}

fn column(
    graded: &[(&Record, &Answer)],
    metric: &'static str,
    form: Form,
    tally: impl Fn(&Record, &str) -> Tally,
) -> Column {
    let tallies = graded.iter().map(|(record, answer)| tally(record, answer.said())).collect();
    Column { metric, form, tallies }
}

/// Accuracy on what belongs to an intent, and recall and precision of what belongs to none.
fn scope(graded: &[(&Record, &Answer)]) -> Vec<Column> {
    let outside = |text: &str| normal(text) == OUT_OF_SCOPE;
    vec![
        column(graded, "in_scope_accuracy", Form::Mean, |record, given| Tally {
            counts: !outside(&record.answer),
            ..right(same(given, &record.answer))
        }),
        column(graded, "oos_recall", Form::Mean, |record, given| Tally {
            counts: outside(&record.answer),
            ..right(outside(given))
        }),
        column(graded, "oos_precision", Form::Precision, |record, given| {
            labelled(outside(given), outside(&record.answer))
        }),
    ]
}

/// Whether the right answer of a record is a JSON object or list.
pub fn wants_json(record: &Record) -> bool {
    structured(&record.answer).is_some()
}

/// What is wrong with a record's right answer for the metric of its task: a suite with such a record can't be graded.
///
/// # Errors
/// It is no JSON where the metric compares what JSON holds.
pub fn check(record: &Record) -> Result<(), String> {
    let (sound, form) = match record.task.as_str() {
        "slots_json" | "ner_json" => (pairs(&record.answer).is_some(), "object"),
        "datetime_spans" | "intent_multilabel" => (items(&record.answer).is_some(), "list"),
        _ => (true, ""),
    };
    if sound { Ok(()) } else { Err(format!("answer of task {} is no JSON {form}", record.task)) }
}

fn right(is: bool) -> Tally {
    Tally { hits: f64::from(u8::from(is)), counts: true, ..Tally::default() }
}

fn labelled(given: bool, expected: bool) -> Tally {
    let count = |is: bool| f64::from(u8::from(is));
    let (hits, given, expected) = (count(given && expected), count(given), count(expected));
    Tally { hits, given, expected, counts: true, ..Tally::default() }
}

/// What is no JSON of the right kind gives nothing.
fn overlap<T: std::hash::Hash + Eq>(given: Option<Vec<T>>, expected: Option<Vec<T>>) -> Tally {
    let (given, expected) = (given.unwrap_or_default(), expected.unwrap_or_default());
    Tally {
        hits: shared(&given, &expected) as f64,
        given: given.len() as f64,
        expected: expected.len() as f64,
        counts: true,
        ..Tally::default()
    }
}

/// F1 over the words of one answer.
fn words(given: &str, expected: &str) -> Tally {
    let split = |text: &str| normal(text).split(' ').map(str::to_owned).collect::<Vec<_>>();
    let (given, expected) = (split(given), split(expected));
    let hits = 2.0 * shared(&given, &expected) as f64 / (given.len() + expected.len()) as f64;
    Tally { hits, counts: true, ..Tally::default() }
}

/// One label is written in several ways (`thank_and_goodbye`, `THANK AND GOODBYE`); it is one class all the same. An answer that
/// is not written as asked for is wrong for accuracy, and so it is no label here.
fn macro_f1(graded: &[(&Record, &Answer)], counts: impl Fn(&Record) -> bool) -> Column {
    let class = |text: &str| normal(text).replace(['_', '-'], " ");
    let mut classes: HashMap<String, usize> = HashMap::new();
    for (record, _) in graded.iter().filter(|(record, _)| counts(record)) {
        let next = classes.len();
        classes.entry(class(&record.answer)).or_insert(next);
    }
    let tally = |(record, answer): &(&Record, &Answer)| {
        let expected = classes.get(&class(&record.answer)).copied().unwrap_or(0);
        let given = classes.get(&class(answer.said())).copied();
        let misspelt = given == Some(expected) && !same(answer.said(), &record.answer);
        Tally { class: expected, given_class: given.filter(|_| !misspelt), counts: counts(record), ..Tally::default() }
    };
    Column { metric: "macro_f1", form: Form::MacroF1, tallies: graded.iter().map(tally).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::suite::tests::record;

    /// Values of all metrics of a task for (right answer, given answer).
    fn values(task: &str, rows: &[(&str, &str)]) -> Vec<(&'static str, Option<f64>)> {
        let records: Vec<Record> = rows.iter().map(|(expected, _)| record(task, "p", expected)).collect();
        values_of(&records, rows)
    }

    fn values_of(records: &[Record], rows: &[(&str, &str)]) -> Vec<(&'static str, Option<f64>)> {
        let answers: Vec<Answer> = rows.iter().map(|(_, given)| Answer::of(given)).collect();
        let graded: Vec<(&Record, &Answer)> = records.iter().zip(&answers).collect();
        columns(&records[0].task, &graded).iter().map(|column| (column.metric, column.plain())).collect()
    }

    fn check_values(task: &str, rows: &[(&str, &str)], expected: &[(&'static str, f64)]) {
        let found = values(task, rows);
        assert_eq!(found.len(), expected.len(), "{task}: {found:?}");
        for ((name, value), (wanted, number)) in found.iter().zip(expected) {
            assert!(name == wanted && (value.unwrap() - number).abs() < 1e-12, "{task}: {found:?}");
        }
    }

    #[test]
    fn labels_and_texts() {
        check_values("unheard_of", &[("a b", "A  b"), ("x", "y")], &[("exact_match", 0.5)]);
        check_values("topic", &[("a", "A"), ("x", "HANDOFF")], &[("accuracy", 0.5)]);
        // Hits 1, given 2, expected 2.
        let rows = [("spam", "SPAM"), ("not spam", "spam"), ("SPAM", "not spam"), ("not_spam", "not_spam")];
        check_values("spam", &rows, &[("f1_spam", 0.5), ("accuracy", 0.5)]);
        let rows = [("yes", "yes"), ("no", "no"), ("yes", "no")];
        check_values("same_intent", &rows, &[("accuracy", 2.0 / 3.0), ("f1_yes", 2.0 / 3.0)]);
        let rows = [("the cat sat", "the cat"), ("one", "one")];
        check_values("fix_disfluency", &rows, &[("exact_match", 0.5), ("word_f1", (0.8 + 1.0) / 2.0)]);
        check_values("handoff", &[("HANDOFF", "handoff"), ("HANDOFF", "42")], &[("handoff_recall", 0.5)]);
        assert_eq!(values("spam", &[("not spam", "not spam")])[0], ("f1_spam", None), "nothing to be found");
    }

    #[test]
    fn pairs_spans_and_label_sets_are_counted_over_all_records_together() {
        let rows = [
            (r#"{"city":"Rome","date":null}"#, r#"{"city":"rome","date":"today"}"#),
            (r#"{"toy":["a","b"]}"#, r#"{"toy":"b"}"#),
            (r#"{"x":"1"}"#, r#"{"x":"1""#),
        ];
        // Hits 2, given 3 (what is no JSON gives nothing), expected 4.
        check_values("slots_json", &rows, &[("slot_f1", 4.0 / 7.0), ("exact_match", 0.0)]);
        let rows = [(r#"{"person":["Ada"]}"#, r#"{"person":["Ada","Bob"]}"#), ("{}", "{}")];
        check_values("ner_json", &rows, &[("entity_f1", 2.0 / 3.0), ("exact_match", 0.5)]);
        let rows = [(r#"["a","b"]"#, r#"["b","a"]"#), (r#"["c"]"#, "c")];
        check_values("intent_multilabel", &rows, &[("micro_f1", 0.8), ("exact_match", 0.0)]);
        check_values("datetime_spans", &rows[..1], &[("span_f1", 1.0), ("exact_match", 0.0)]);
        check_values("order_json", &[(r#"{"a":1,"b":[]}"#, r#"{"b":[],"a":1}"#)], &[("exact_match", 1.0)]);
        assert!(check(&record("slots_json", "p", "[1]")).unwrap_err().contains("no JSON object"));
        assert!(check(&record("datetime_spans", "p", "[]")).is_ok() && check(&record("topic", "p", "x")).is_ok());
    }

    #[test]
    fn scope_is_graded_apart() {
        let rows = [
            ("book", "book"),
            ("book", "out_of_scope"),
            ("in_scope", "HANDOFF"),
            ("out_of_scope", "OUT_OF_SCOPE"),
            ("out_of_scope", "book"),
        ];
        let expected = [("in_scope_accuracy", 1.0 / 3.0), ("oos_recall", 0.5), ("oos_precision", 0.5)];
        check_values("oos_detect", &rows, &expected);
    }

    #[test]
    fn classes_count_alike_however_they_are_spelt() {
        // thank: hits 1, given 1, expected 2; inform: hits 1, given 2, expected 1; a misspelt label is none.
        let rows =
            [("thank", "thank"), ("THANK", "inform"), ("inform", "inform"), ("end_call", "end call"), ("x", "HANDOFF")];
        let expected = [("accuracy", 0.4), ("macro_f1", (2.0 / 3.0 + 2.0 / 3.0 + 0.0 + 0.0) / 4.0)];
        check_values("dialogue_act", &rows, &expected);
        let seven: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        let rows = [("joy", "joy"), ("fear", "joy")];
        let mut records: Vec<Record> = rows.iter().map(|(answer, _)| record("emotion", "p", answer)).collect();
        records[0].labels = seven;
        assert_eq!(values_of(&records, &rows), [("accuracy", Some(0.5)), ("macro_f1", Some(1.0))]);
    }
}
