//! `sluice models inspect`: what a model's file says, in one form for files here and models of a gateway.

use crate::cli::table::{bytes, count};
use local_worker::model::Inspection;
use serde_json::{Value, json};
use sluice_proto::v1;
use std::io::Write;
use std::path::Path;

/// Names and values, in order; numbers for JSON, words for people.
type Facts = Vec<(&'static str, Value, String)>;

/// Tells what a file or folder holds; weights are not loaded.
pub fn file(path: &Path, as_json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let told = Inspection::of(path)?;
    let mut facts = vec![text("path", path.display().to_string())];
    facts.extend(of_file(&v1::ModelDetails {
        architecture: told.architecture,
        parameters: i64::try_from(told.parameters).unwrap_or(i64::MAX),
        quantization: told.quantization,
        context: i32::try_from(told.context).unwrap_or(i32::MAX),
        file_bytes: i64::try_from(told.file_bytes).unwrap_or(i64::MAX),
        has_chat_template: told.has_chat_template,
        decline_text: told.decline_text.unwrap_or_default(),
        file_blake3: told.file_blake3,
        ..v1::ModelDetails::default()
    }));
    facts.push(text("license", told.license.unwrap_or_default()));
    facts.push(text("problem", told.problem.unwrap_or_default()));
    print(&facts, as_json, out)
}

/// Tells what a gateway knows of a model.
pub fn answer(told: &v1::GetModelResponse, as_json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let status = told.status.clone().unwrap_or_default();
    let mut facts = vec![
        text("name", status.name.clone()),
        text("source", status.source.clone()),
        text("state", super::gateway::state(&status).to_owned()),
    ];
    let size = |name, number: i64| {
        (name, json!(number), if number > 0 { bytes(number.unsigned_abs()) } else { String::new() })
    };
    facts.push(size("memory_bytes", status.memory_bytes));
    if let Some(details) = &told.details {
        facts.push(text("path", details.path.clone()));
        facts.push(text("commit", details.commit.clone()));
        facts.extend(of_file(details));
        facts.push(size("weight_bytes", details.weight_bytes));
        for (name, seconds) in [("load_seconds", details.load_seconds), ("pack_seconds", details.pack_seconds)] {
            let words = if seconds > 0.0 { format!("{:.0} ms", seconds * 1e3) } else { String::new() };
            facts.push((name, json!(seconds), words));
        }
        facts.push(text("kernels", details.kernels.clone()));
    }
    facts.push(text("license", status.license));
    facts.push(text("problem", status.problem));
    print(&facts, as_json, out)
}

fn text(name: &'static str, value: String) -> (&'static str, Value, String) {
    (name, json!(value), value)
}

fn of_file(details: &v1::ModelDetails) -> Facts {
    let template = if details.has_chat_template { "yes" } else { "no: a plain form is used" };
    vec![
        text("architecture", details.architecture.clone()),
        ("parameters", json!(details.parameters), count(details.parameters.unsigned_abs())),
        text("quantization", details.quantization.clone()),
        ("context", json!(details.context), format!("{} tokens", details.context)),
        ("file_bytes", json!(details.file_bytes), bytes(details.file_bytes.unsigned_abs())),
        ("has_chat_template", json!(details.has_chat_template), template.to_owned()),
        text("decline_text", details.decline_text.clone()),
        text("file_blake3", details.file_blake3.clone()),
    ]
}

/// All facts as JSON; for people only those that say something.
fn print(facts: &Facts, as_json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    if as_json {
        let object: serde_json::Map<String, Value> =
            facts.iter().map(|(name, value, _)| ((*name).to_owned(), value.clone())).collect();
        writeln!(out, "{}", Value::Object(object))?;
        return Ok(());
    }
    for (name, _, words) in facts.iter().filter(|(_, _, words)| !words.is_empty()) {
        let name = name.trim_start_matches("has_").trim_end_matches("_bytes").replace('_', " ");
        writeln!(out, "{name:<14} {words}")?;
    }
    Ok(())
}
