//! Grades a model on corpus files and writes what became of each record as routing outcomes, with the drafts and how sure the
//! model was of them:
//! `grade_nano MODEL.gguf RECIPE.json OUTCOMES.jsonl CORPUS.jsonl.gz…`. Of a corpus file named `train…` only the served
//! records that the recipe held out are graded. Prints scores by task and source as Markdown.
#![allow(clippy::print_stdout, reason = "an example that prints scores")]

use local_worker::train::corpus::{Record, hash_share, read};
use local_worker::train::evaluate::{TaskScore, grade, scores};
use local_worker::train::recipe::Recipe;
use local_worker::{ModelSource, Worker, WorkerConfig};
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
        let mut found = read(&path, &[])?;
        if training {
            found.retain(|record| {
                hash_share(&record.prompt) < recipe.holdout_share && recipe.served_tasks.contains(&record.task)
            });
        }
        records.extend(found);
    }
    let config = WorkerConfig { queue_capacity: 64, max_sequences: 16, ..WorkerConfig::default() };
    let worker = Worker::start("sluice-nano", ModelSource::Path(model.into()), config)?;
    let started = std::time::Instant::now();
    let graded = grade(&worker, &records, 48, "handoff")?;
    let mut out = std::io::BufWriter::new(std::fs::File::create(outcomes)?);
    for (record, graded) in records.iter().zip(&graded) {
        let quality = u8::from(graded.right && !graded.declined);
        let cluster = blake3::hash(record.prompt.to_lowercase().as_bytes()).to_hex();
        let row = serde_json::json!({
            "id": record.id, "source": record.source, "domain": record.task, "prompt": record.prompt,
            "weak_model": "sluice-nano", "strong_model": "*", "weak_quality": quality, "strong_quality": 1,
            "cluster": &cluster[..16], "split": "dev",
            "draft": {
                "text": graded.text, "logprobs": graded.trace.logprobs, "margins": graded.trace.margins,
                "likeliest": graded.trace.likeliest, "cut": graded.trace.cut, "declined": graded.declined,
            },
        });
        writeln!(out, "{row}")?;
    }
    out.flush()?;
    println!("{} records in {:.0} s\n", records.len(), started.elapsed().as_secs_f64());
    println!("| task | source | n | right | declined |\n| --- | --- | ---: | ---: | ---: |");
    for (key, TaskScore { n, right, declined }) in
        scores(&records, &graded, |record| format!("{} | {}", record.task, record.source))
    {
        let share = |count: usize| 100.0 * count as f64 / n as f64;
        println!("| {key} | {n} | {:.1} % | {:.1} % |", share(right), share(declined));
    }
    Ok(())
}
