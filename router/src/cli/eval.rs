//! `sluice eval model`: a local model's answers to a suite, graded task by task, and how well it foretells text.

pub mod card;
pub mod cascade;
mod drafts;
#[cfg(feature = "lab")]
pub mod performer;
pub mod routing;
pub mod source;
pub mod student;

use crate::cli::table::{self, Align};
use crate::evidence::estimate::Interval;
use crate::lab::Report;
use crate::lab::card::forecast_json;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use local_worker::evaluate::suite::sample;
use local_worker::evaluate::{Answer, AskOptions, Forecast, Probe, Record, ask, read_suite};
use local_worker::{ModelSource, Worker, WorkerConfig};
use serde_json::{Value, json};
use std::io::{IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum EvalVerb {
    /// A local model on a suite of questions, by each task's metric, and on text.
    Model(ModelArguments),
    /// Two local models side by side: size, speed, what they foretell, answer and have routed elsewhere.
    Card(card::CardArguments),
    /// Scorers on recorded outcomes that they were not fitted on, beside simple rules.
    Routing(routing::RoutingArguments),
    /// What it is worth that a big scorer teaches the one that decides in microseconds.
    Student(student::StudentArguments),
    /// How much better looking at drafts orders requests than looking at prompts, on recorded drafts or answers.
    Cascade(cascade::CascadeArguments),
    /// An encoder for long prompts with two kinds of attention beside n-grams: quality, time, memory, approximation.
    #[cfg(feature = "lab")]
    Performer(performer::PerformerArguments),
    /// An encoder for long prompts; this binary was built without: `cargo build --release -p router --features lab`.
    #[cfg(not(feature = "lab"))]
    Performer(crate::cli::train::NoLab),
}

/// Arguments of `eval model`.
#[derive(Clone, Debug, Args)]
pub struct ModelArguments {
    /// A GGUF file, a folder, or a model of the catalog, such as `sluice-nano`.
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// The catalog to look a name up in; the one inside the binary if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Files of the suite: JSON lines with id, task, prompt and answer, gzipped or not.
    #[arg(long, num_args = 1.., value_name = "FILE", required_unless_present = "perplexity")]
    pub suite: Vec<PathBuf>,
    /// Ask so many of the records only: those whose ids hash lowest, the same ones each time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Tokens of an answer at most.
    #[arg(long, value_name = "N", default_value_t = 192, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Hold answers to records that have `labels` to one of these labels, as a client's `choice` would.
    #[arg(long, requires = "suite")]
    pub choices: bool,
    /// Also the perplexity of this text.
    #[arg(long, value_name = "FILE")]
    pub perplexity: Option<PathBuf>,
    /// Also the perplexity of the suite's right answers, each after its prompt.
    #[arg(long, requires = "suite")]
    pub answer_perplexity: bool,
    /// Tokens of a window of the text for `--perplexity`.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    pub window: u32,
    /// Threads that the model computes on.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Write each record with the answer it was given, as JSON lines.
    #[arg(long, value_name = "FILE.jsonl", requires = "suite")]
    pub answers: Option<PathBuf>,
    /// Recorded drafts, and which records are asked.
    #[command(flatten)]
    pub drafts: drafts::DraftArguments,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl ModelArguments {
    /// How records are asked at a temperature.
    fn asking(&self, temperature: f32) -> AskOptions {
        let Self { max_tokens, choices, .. } = *self;
        AskOptions { max_tokens, likeliest: Some(5), temperature, choices, ..AskOptions::default() }
    }
}

/// Runs `eval`.
pub fn run(verb: &EvalVerb, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match verb {
        EvalVerb::Model(arguments) => model(arguments, out),
        EvalVerb::Card(arguments) => card::run(arguments, out),
        EvalVerb::Routing(arguments) => routing::run(arguments, out),
        EvalVerb::Student(arguments) => student::run(arguments, out),
        EvalVerb::Cascade(arguments) => cascade::run(arguments, out),
        #[cfg(feature = "lab")]
        EvalVerb::Performer(arguments) => performer::run(arguments, out),
        #[cfg(not(feature = "lab"))]
        EvalVerb::Performer(_) => crate::cli::train::no_lab(),
    }
}

fn model(arguments: &ModelArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    // Everything that can be wrong with the input is found before the model is asked.
    let records = suite(&arguments.suite, None)?;
    let records = records.map(|records| arguments.drafts.choose(records)).transpose()?;
    let records = records.map(|records| limited(records, arguments.limit));
    let text = arguments.perplexity.as_deref().map(read).transpose()?;
    let source = source::find(&arguments.model, arguments.catalog.as_deref())?;
    let config = config(arguments.threads);
    let second = arguments.drafts.second(arguments)?;
    refuse_inputs(arguments)?;
    // What was measured is told even where there is no room for the answers.
    let mut unwritten = Vec::new();
    let report = match &records {
        Some(records) => {
            let (answers, time) = answers(&source, &config, records, arguments.asking(0.0))?;
            if let Some(file) = &arguments.answers {
                unwritten.push((file, write_answers(file, records, &answers)));
            }
            if let Some(file) = &arguments.drafts.drafts {
                let asked = match &second {
                    Some((source, temperature)) => {
                        Some(self::answers(source, &config, records, arguments.asking(*temperature))?.0)
                    }
                    None => None,
                };
                let written = arguments.drafts.write(file, &arguments.model, records, &answers, asked.as_deref());
                unwritten.push((file, written));
            }
            Some(Report::of(records, &answers, time))
        }
        None => None,
    };
    let (text, of_answers) = forecasts(arguments, &source, &config, text.as_deref(), records.as_deref())?;
    let forecasts = (text.as_ref(), of_answers.as_ref());
    tell(arguments, report.as_ref(), forecasts, out)?;
    for (file, written) in unwritten {
        written.with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(
    arguments: &ModelArguments,
    report: Option<&Report>,
    (text, of_answers): (Option<&Forecast>, Option<&Forecast>),
    out: &mut dyn Write,
) -> std::io::Result<()> {
    if arguments.json {
        let mut told = report.map_or_else(no_tasks, Report::to_json);
        told["model"] = arguments.model.as_str().into();
        for (name, forecast) in [("perplexity", text), ("answer_perplexity", of_answers)] {
            if let Some(forecast) = forecast {
                told[name] = forecast_json(forecast);
            }
        }
        return writeln!(out, "{told}");
    }
    if let Some(report) = report {
        show(report, out)?;
    }
    for (name, forecast) in [("text", text), ("right answers", of_answers)] {
        if let Some(forecast) = forecast {
            writeln!(out, "perplexity of {name}: {}", forecast_words(forecast))?;
        }
    }
    Ok(())
}

/// What is written must not be what is read, nor one the other.
fn refuse_inputs(arguments: &ModelArguments) -> anyhow::Result<()> {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let read = arguments.suite.iter().chain(&arguments.perplexity).chain(&arguments.catalog).map(|path| whole(path));
    let mut taken: Vec<PathBuf> = read.chain([whole(Path::new(&arguments.model))]).collect();
    for (option, file) in [("--answers", &arguments.answers), ("--drafts", &arguments.drafts.drafts)] {
        let Some(file) = file else { continue };
        let path = whole(file);
        anyhow::ensure!(
            !taken.contains(&path),
            "{option}: {} is read or written too; name another file",
            file.display()
        );
        taken.push(path);
    }
    Ok(())
}

/// The records of a suite, so many of them; `None` without files.
pub fn suite(files: &[PathBuf], limit: Option<u64>) -> anyhow::Result<Option<Vec<Record>>> {
    if files.is_empty() {
        return Ok(None);
    }
    Ok(Some(limited(read_suite(files)?, limit)))
}

fn limited(records: Vec<Record>, limit: Option<u64>) -> Vec<Record> {
    sample(records, limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)))
}

/// How models are run that are measured: with more sequences together than `serve` has by default, as nobody waits.
pub fn config(threads: usize) -> WorkerConfig {
    WorkerConfig { queue_capacity: 64, max_sequences: 16, threads, ..WorkerConfig::default() }
}

/// Answers to all records, with their progress on a terminal.
pub fn answers(
    source: &ModelSource,
    config: &WorkerConfig,
    records: &[Record],
    options: AskOptions,
) -> anyhow::Result<(Vec<Answer>, Duration)> {
    let worker = Worker::start("measured", source.clone(), config.clone())?;
    let (visible, all) = (std::io::stderr().is_terminal(), records.len());
    // A terminal that went away is no reason to stop.
    let mut tell = |done: usize| {
        if visible && (done.is_multiple_of(50) || done == all) {
            let _gone = write!(std::io::stderr(), "\r\x1b[K{done} of {all} answers");
        }
    };
    let answered = ask(&worker, records, &options, &mut tell);
    if visible {
        let _gone = write!(std::io::stderr(), "\r\x1b[K");
    }
    Ok(answered?)
}

fn forecasts(
    arguments: &ModelArguments,
    source: &ModelSource,
    config: &WorkerConfig,
    text: Option<&str>,
    records: Option<&[Record]>,
) -> anyhow::Result<(Option<Forecast>, Option<Forecast>)> {
    let records = records.filter(|_| arguments.answer_perplexity);
    if text.is_none() && records.is_none() {
        return Ok((None, None));
    }
    let mut probe = Probe::open(source, config)?;
    let named = |error| match &arguments.perplexity {
        Some(file) => anyhow::Error::new(error).context(file.display().to_string()),
        None => anyhow::Error::new(error),
    };
    let text = text.map(|text| probe.text(text, arguments.window as usize)).transpose().map_err(named)?;
    Ok((text, records.map(|records| probe.answers(records)).transpose()?))
}

fn no_tasks() -> Value {
    json!({ "tasks": [], "macro": { "value": null, "ci": null }, "tokens_per_s": null })
}

/// A forecast in words.
pub fn forecast_words(forecast: &Forecast) -> String {
    let left_out = match forecast.left_out {
        0 => String::new(),
        records => format!("; {records} records left out that don't fit the context"),
    };
    if forecast.tokens == 0 {
        return format!("nothing was scored{left_out}");
    }
    let (perplexity, bits) = (forecast.perplexity(), forecast.bits_per_byte());
    format!("{perplexity:.3} over {} tokens ({bits:.3} bits per byte){left_out}", forecast.tokens)
}

/// A share and its interval in percent: `48.0 (42.1–53.3)`.
fn percent(interval: Option<Interval>) -> (String, String) {
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    match interval {
        Some(Interval { value, low, high }) => (percent(value), format!("{}–{}", percent(low), percent(high))),
        None => ("–".to_owned(), "–".to_owned()),
    }
}

fn show(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    let header = [
        ("task", Align::Left),
        ("n", Align::Right),
        ("metric", Align::Left),
        ("%", Align::Right),
        ("95 %", Align::Left),
        ("handed off %", Align::Right),
        ("also", Align::Left),
    ];
    let share = |count: usize, of: usize| format!("{:.1}", 100.0 * count as f64 / of as f64);
    let rows: Vec<Vec<String>> = report
        .tasks
        .iter()
        .map(|task| {
            let (value, interval) = percent(task.score.interval);
            let mut also: Vec<String> =
                task.others.iter().map(|score| format!("{} {}", score.metric, percent(score.interval).0)).collect();
            if task.json.0 > 0 {
                also.push(format!("JSON {}", share(task.json.1, task.json.0)));
            }
            also.extend(task.sources.iter().map(|(source, (_, value))| {
                format!("{source} {}", value.map_or("–".to_owned(), |value| format!("{:.1}", value * 100.0)))
            }));
            let handed_off = share(task.handed_off, task.n);
            let (n, metric) = (task.n.to_string(), task.score.metric.to_owned());
            vec![task.task.clone(), n, metric, value, interval, handed_off, also.join(", ")]
        })
        .collect();
    table::print(out, &header, &rows)?;
    let (value, interval) = percent(report.macro_average);
    let valued = report.tasks.iter().filter(|task| task.score.interval.is_some()).count();
    writeln!(out, "macro average over {valued} tasks: {value} % ({interval})")?;
    let told = |found: Option<(usize, f64)>| match found {
        Some((n, share)) => format!("{:.1} % of {n}", share * 100.0),
        None => "–".to_owned(),
    };
    let (recall, handed, json) = (report.handoff_recall(), report.false_handoffs(), report.json_parses());
    writeln!(out, "handed off: {} that should be, {} of other tasks", told(recall), told(handed))?;
    writeln!(out, "JSON that parses, where JSON was asked for: {}", told(json))?;
    let (too_long, cut) = report.troubles();
    writeln!(out, "{too_long} prompts longer than the context (counted as wrong), {cut} answers cut off")?;
    let (tokens, seconds) = (report.output_tokens, report.time.as_secs_f64());
    writeln!(out, "{tokens} tokens in {seconds:.1} s: {:.0} tokens/s", report.tokens_per_second())
}

fn write_answers(file: &Path, records: &[Record], answers: &[Answer]) -> std::io::Result<()> {
    local_worker::files::write(file, |out| {
        for (record, answer) in records.iter().zip(answers) {
            let row = json!({
                "id": record.id, "task": record.task, "source": record.source, "prompt": record.prompt,
                "answer": record.answer, "given": answer.said(), "right": answer.right(record),
                "declined": answer.declined, "cut": answer.trace.cut, "too_long": answer.too_long,
            });
            writeln!(out, "{row}")?;
        }
        Ok(())
    })
}

/// A text file, with its name in the error.
pub fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests;
