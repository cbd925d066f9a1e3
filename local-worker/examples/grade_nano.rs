//! Grades a model on corpus files and writes what became of each record as routing outcomes, with the drafts and how sure the
//! model was of them:
//! `grade_nano MODEL.gguf RECIPE.json OUTCOMES.jsonl CORPUS.jsonl.gz…`. Of a corpus file named `train…` only the served
//! records that the recipe held out are graded. Prints scores by task and source as Markdown.
#![allow(clippy::print_stdout, reason = "an example that prints scores")]

use local_worker::evaluate::{Answer, AskOptions, Record, ask, read_suite};
use local_worker::train::corpus::hash_share;
use local_worker::train::recipe::Recipe;
use local_worker::{ModelSource, Worker, WorkerConfig};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, recipe, outcomes, files @ ..] = arguments.as_slice() else {
        return Err("usage: grade_nano MODEL.gguf RECIPE.json OUTCOMES.jsonl CORPUS.jsonl.gz…".into());
    };
    let recipe = Recipe::read(recipe.as_ref())?;
    let mut records: Vec<Record> = Vec::new();
    for file in files {
        let path = PathBuf::from(file);
        let training = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("train"));
        let mut found = read_suite(std::slice::from_ref(&path))?;
        if training {
            found.retain(|record| {
                hash_share(&record.prompt) < recipe.holdout_share && recipe.served_tasks.contains(&record.task)
            });
        }
        records.extend(found);
    }
    let config = WorkerConfig { queue_capacity: 64, max_sequences: 16, ..WorkerConfig::default() };
    let worker = Worker::start("sluice-nano", ModelSource::Path(model.into()), config)?;
    let options = AskOptions { max_tokens: 64, likeliest: Some(5), ..AskOptions::default() };
    let (answers, time) = ask(&worker, &records, &options, &mut |_| {})?;
    let mut out = std::io::BufWriter::new(std::fs::File::create(outcomes)?);
    for (record, answer) in records.iter().zip(&answers) {
        let quality = u8::from(answer.right(record) && !answer.declined);
        let cluster = blake3::hash(record.prompt.to_lowercase().as_bytes()).to_hex();
        let row = serde_json::json!({
            "id": record.id, "source": record.source, "domain": record.task, "prompt": record.prompt,
            "weak_model": "sluice-nano", "strong_model": "*", "weak_quality": quality, "strong_quality": 1,
            "cluster": &cluster[..16], "split": "dev",
            "draft": {
                "text": answer.text, "logprobs": answer.trace.logprobs, "margins": answer.trace.margins,
                "likeliest": answer.trace.likeliest, "cut": answer.trace.cut, "declined": answer.declined,
            },
        });
        writeln!(out, "{row}")?;
    }
    out.flush()?;
    println!("{} records in {:.0} s\n", records.len(), time.as_secs_f64());
    println!("| task | source | n | right | declined |\n| --- | --- | ---: | ---: | ---: |");
    for (key, rows) in by_task_and_source(&records, &answers) {
        let share = |is: fn(&(&Record, &Answer)) -> bool| {
            100.0 * rows.iter().filter(|row| is(row)).count() as f64 / rows.len() as f64
        };
        let (right, declined) = (share(|(record, answer)| answer.right(record)), share(|(_, answer)| answer.declined));
        println!("| {key} | {} | {right:.1} % | {declined:.1} % |", rows.len());
    }
    Ok(())
}

fn by_task_and_source<'a>(
    records: &'a [Record],
    answers: &'a [Answer],
) -> BTreeMap<String, Vec<(&'a Record, &'a Answer)>> {
    let mut groups: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for (record, answer) in records.iter().zip(answers) {
        groups.entry(format!("{} | {}", record.task, record.source)).or_default().push((record, answer));
    }
    groups
}
