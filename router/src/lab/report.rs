//! Scores of one model on one suite: each task by its metric, the mean over tasks, hand-offs, and whether JSON is JSON.
//!
//! Intervals are percentiles of a bootstrap over records with a fixed seed. Those of the macro average draw within each task,
//! because the tasks of a suite are chosen and not drawn.

use crate::evidence::bootstrap::{bootstrap, stratified};
use crate::evidence::estimate::Interval;
use local_worker::evaluate::compare::structured;
use local_worker::evaluate::{Answer, Column, Record, columns, wants_json};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Confidence of all intervals.
pub const CONFIDENCE: f64 = 0.95;
const SEED: u64 = 20_261_124;

/// The task whose right answer is to hand the request on.
const HANDOFF_TASK: &str = "handoff";

/// One metric of one task.
#[derive(Clone, Debug)]
pub struct Score {
    /// Its name.
    pub metric: &'static str,
    /// Records that count for it.
    pub n: usize,
    /// Value and interval in [0, 1]; `None` where it has no value.
    pub interval: Option<Interval>,
}

/// What became of one task.
#[derive(Clone, Debug)]
pub struct TaskReport {
    /// The task.
    pub task: String,
    /// Its records.
    pub n: usize,
    /// The metric it is judged by.
    pub score: Score,
    /// Its other metrics.
    pub others: Vec<Score>,
    /// The first metric by source, where there are several: records and value.
    pub sources: BTreeMap<String, (usize, Option<f64>)>,
    /// Answers that hand the request on.
    pub handed_off: usize,
    /// Records whose right answer is JSON and that were answered, and how many of the answers are JSON.
    pub json: (usize, usize),
    /// Prompts that don't fit the context: counted as wrong.
    pub too_long: usize,
    /// Answers that were cut off.
    pub cut: usize,
}

/// Scores of one model on one suite.
#[derive(Clone, Debug)]
pub struct Report {
    /// Each task, by name.
    pub tasks: Vec<TaskReport>,
    /// The mean over tasks of the metric each is judged by; tasks without a value are left out.
    pub macro_average: Option<Interval>,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Time from the first request to the last answer.
    pub time: Duration,
}

impl Report {
    /// Grades answers, one for each record in their order, that took `time` together.
    pub fn of(records: &[Record], answers: &[Answer], time: Duration) -> Self {
        let mut groups: BTreeMap<&str, Vec<(&Record, &Answer)>> = BTreeMap::new();
        for (record, answer) in records.iter().zip(answers) {
            groups.entry(&record.task).or_default().push((record, answer));
        }
        let (mut tasks, mut firsts) = (Vec::new(), Vec::new());
        for (task, graded) in &groups {
            let columns = columns(task, graded);
            tasks.extend(task_report(task, graded, &columns));
            firsts.extend(columns.into_iter().next().filter(|column| column.plain().is_some()));
        }
        let sum = |part: fn(&Answer) -> u32| answers.iter().map(|answer| u64::from(part(answer))).sum();
        Self {
            tasks,
            macro_average: macro_average(&firsts),
            output_tokens: sum(|answer| answer.output_tokens),
            prompt_tokens: sum(|answer| answer.prompt_tokens),
            time,
        }
    }

    /// Tokens generated for each second of the whole suite, prompts being read in the same time.
    pub fn tokens_per_second(&self) -> f64 {
        self.output_tokens as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// Records of the task whose right answer is to hand on, and the share of them that was.
    pub fn handoff_recall(&self) -> Option<(usize, f64)> {
        let task = self.tasks.iter().find(|task| task.task == HANDOFF_TASK)?;
        Some((task.score.n, task.score.interval?.value))
    }

    /// Records of all other tasks, and the share of them that was handed on.
    pub fn false_handoffs(&self) -> Option<(usize, f64)> {
        let others = || self.tasks.iter().filter(|task| task.task != HANDOFF_TASK);
        let n: usize = others().map(|task| task.n).sum();
        let handed: usize = others().map(|task| task.handed_off).sum();
        (n > 0).then(|| (n, handed as f64 / n as f64))
    }

    /// Answers where JSON was asked for, and the share of them that is JSON.
    pub fn json_parses(&self) -> Option<(usize, f64)> {
        let n: usize = self.tasks.iter().map(|task| task.json.0).sum();
        let sound: usize = self.tasks.iter().map(|task| task.json.1).sum();
        (n > 0).then(|| (n, sound as f64 / n as f64))
    }

    /// Prompts that don't fit the context, and answers that were cut off.
    pub fn troubles(&self) -> (usize, usize) {
        let sum = |part: fn(&TaskReport) -> usize| self.tasks.iter().map(part).sum();
        (sum(|task| task.too_long), sum(|task| task.cut))
    }

    /// The report as JSON: `tasks` with `task`, `n`, `metric`, `value`, `ci`; `macro`; `tokens_per_s`; and more beside them.
    pub fn to_json(&self) -> Value {
        let share = |found: Option<(usize, f64)>| found.map(|(n, value)| json!({ "n": n, "value": value }));
        let (too_long, cut) = self.troubles();
        json!({
            "tasks": self.tasks.iter().map(TaskReport::to_json).collect::<Vec<_>>(),
            "macro": value_and_ci(self.macro_average),
            "tokens_per_s": self.tokens_per_second(),
            "n": self.tasks.iter().map(|task| task.n).sum::<usize>(),
            "handoff": { "recall": share(self.handoff_recall()), "false": share(self.false_handoffs()) },
            "json_parses": share(self.json_parses()),
            "too_long": too_long, "cut": cut,
            "output_tokens": self.output_tokens, "prompt_tokens": self.prompt_tokens,
            "seconds": self.time.as_secs_f64(),
        })
    }
}

impl TaskReport {
    fn to_json(&self) -> Value {
        let others: Vec<Value> = self
            .others
            .iter()
            .map(|score| {
                let mut value = value_and_ci(score.interval);
                value["metric"] = score.metric.into();
                value["n"] = score.n.into();
                value
            })
            .collect();
        let mut value = value_and_ci(self.score.interval);
        value["task"] = self.task.as_str().into();
        value["n"] = self.n.into();
        value["metric"] = self.score.metric.into();
        value["others"] = others.into();
        value["handed_off"] = self.handed_off.into();
        if self.json.0 > 0 {
            value["json_parses"] = json!({ "n": self.json.0, "value": self.json.1 as f64 / self.json.0 as f64 });
        }
        if !self.sources.is_empty() {
            let entry = |(source, (n, value)): (&String, &(usize, Option<f64>))| {
                (source.clone(), json!({ "n": n, "value": value }))
            };
            value["sources"] = Value::Object(self.sources.iter().map(entry).collect::<Map<_, _>>());
        }
        for (name, count) in [("too_long", self.too_long), ("cut", self.cut)] {
            if count > 0 {
                value[name] = count.into();
            }
        }
        value
    }
}

fn value_and_ci(interval: Option<Interval>) -> Value {
    json!({
        "value": interval.map(|interval| interval.value),
        "ci": interval.map(|interval| [interval.low, interval.high]),
    })
}

/// `None` for a task without metrics, which there is none of.
fn task_report(task: &str, graded: &[(&Record, &Answer)], columns: &[Column]) -> Option<TaskReport> {
    let rows: Vec<u64> = (0..graded.len() as u64).collect();
    let mut scores = columns.iter().map(|column| Score {
        metric: column.metric,
        n: column.n(),
        interval: bootstrap(&rows, CONFIDENCE, SEED, |weights| column.value(weights)),
    });
    let (first, score) = (columns.first()?, scores.next()?);
    let count =
        |is: &dyn Fn(&Record, &Answer) -> bool| graded.iter().filter(|(record, answer)| is(record, answer)).count();
    let json = |record: &Record, answer: &Answer| wants_json(record) && !answer.hands_off() && !answer.too_long;
    Some(TaskReport {
        task: task.to_owned(),
        n: graded.len(),
        score,
        others: scores.collect(),
        sources: by_source(graded, first),
        handed_off: count(&|_, answer| answer.hands_off()),
        json: (count(&json), count(&|record, answer| json(record, answer) && structured(&answer.text).is_some())),
        too_long: count(&|_, answer| answer.too_long),
        cut: count(&|_, answer| answer.trace.cut),
    })
}

fn by_source(graded: &[(&Record, &Answer)], column: &Column) -> BTreeMap<String, (usize, Option<f64>)> {
    let mut sources: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (at, (record, _)) in graded.iter().enumerate() {
        sources.entry(record.source.clone()).or_insert_with(|| vec![0.0; graded.len()])[at] = 1.0;
    }
    if sources.len() < 2 {
        return BTreeMap::new();
    }
    let value = |weights: &[f64]| (weights.iter().filter(|weight| **weight > 0.0).count(), column.value(weights));
    sources.iter().map(|(source, weights)| (source.clone(), value(weights))).collect()
}

fn macro_average(columns: &[Column]) -> Option<Interval> {
    let sizes: Vec<usize> = columns.iter().map(Column::len).collect();
    stratified(&sizes, CONFIDENCE, SEED, |weights| {
        let values: Vec<f64> =
            columns.iter().zip(weights).filter_map(|(column, weights)| column.value(weights)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(task: &str, source: &str, answer: &str) -> Record {
        let text = str::to_owned;
        Record {
            id: text("r"),
            task: text(task),
            source: text(source),
            licence: String::new(),
            prompt: text("p"),
            answer: text(answer),
            labels: Vec::new(),
        }
    }

    fn answer(text: &str) -> Answer {
        let declined = text == "HANDOFF";
        let text = if declined { String::new() } else { text.to_owned() };
        Answer { text, declined, output_tokens: 3, ..Answer::default() }
    }

    #[test]
    fn tasks_sources_hand_offs_and_json_are_told() {
        let rows = [
            ("topic", "a", "x", "x"),
            ("topic", "a", "x", "y"),
            ("topic", "b", "x", "HANDOFF"),
            ("handoff", "c", "HANDOFF", "HANDOFF"),
            ("handoff", "c", "HANDOFF", "7"),
            ("slots_json", "d", r#"{"a":"b"}"#, r#"{"a":"b"}"#),
            ("slots_json", "d", r#"{"a":"b"}"#, r#"{"a":"b"#),
            ("slots_json", "d", r#"{"a":"b"}"#, "HANDOFF"),
            ("spam", "e", "not spam", "not spam"),
        ];
        let records: Vec<Record> = rows.iter().map(|(task, source, right, _)| record(task, source, right)).collect();
        let mut answers: Vec<Answer> = rows.iter().map(|(_, _, _, given)| answer(given)).collect();
        answers[1].trace.cut = true;
        let report = Report::of(&records, &answers, Duration::from_secs(9));
        assert_eq!(report.tokens_per_second(), 3.0);
        assert_eq!((report.handoff_recall(), report.json_parses()), (Some((2, 0.5)), Some((2, 0.5))));
        let (n, share) = report.false_handoffs().unwrap();
        assert!(n == 7 && (share - 2.0 / 7.0).abs() < 1e-12);
        assert_eq!(report.troubles(), (0, 1));

        let told = report.to_json();
        let names: Vec<&str> = report.tasks.iter().map(|task| task.task.as_str()).collect();
        assert_eq!(names, ["handoff", "slots_json", "spam", "topic"]);
        let topic = &told["tasks"][3];
        assert_eq!((topic["n"].clone(), topic["metric"].clone()), (json!(3), json!("accuracy")));
        assert_eq!(topic["sources"], json!({ "a": { "n": 2, "value": 0.5 }, "b": { "n": 1, "value": 0.0 } }));
        let (value, low, high) = (&topic["value"], topic["ci"][0].as_f64().unwrap(), topic["ci"][1].as_f64().unwrap());
        assert!((value.as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12 && low == 0.0 && (0.5..=1.0).contains(&high));
        assert_eq!(told["tasks"][2]["value"], Value::Null, "no spam to be found: F1 has no value");
        // Hits 1, given 1, expected 3: F1 is 0.5. Spam is left out of the mean.
        let mean = (0.5 + 0.5 + 1.0 / 3.0) / 3.0;
        assert!((told["macro"]["value"].as_f64().unwrap() - mean).abs() < 1e-12, "{}", told["macro"]);
        assert_eq!(Report::of(&records, &answers, Duration::ZERO).to_json()["macro"], told["macro"], "a fixed seed");
    }
}
