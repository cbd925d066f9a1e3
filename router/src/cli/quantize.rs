//! `sluice quantize`: weights in fewer bits as a GGUF file, and a report card of what that saved and did.

use crate::cli::eval::{config, forecast_words, read, source, suite};
use crate::cli::table::{self, Align, bytes};
use crate::judge::JudgeFile;
use crate::lab::card::{Card, Exam, Side};
use crate::score::PairScorer;
use anyhow::Context as _;
use clap::Args;
use local_worker::compress::{Calibration, Target, Weights, calibrate};
use local_worker::evaluate::{AskOptions, Probe};
use local_worker::{ModelSource, WorkerConfig};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `quantize`.
#[derive(Clone, Debug, Args)]
pub struct QuantizeArguments {
    /// A GGUF file or a folder with safetensors and `tokenizer.json`, of floating-point weights; or a model of the catalog.
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// The catalog to look a name up in; the one inside the binary if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// What matrices become: q8_0, q6_k, q5_k, q5_0, q4_k, q4_1 or q4_0; int8, which is q8_0 with calibration; f16 or f32 to
    /// widen.
    #[arg(long, value_name = "FORMAT")]
    pub to: Target,
    /// A text of some thousand tokens to calibrate on: channels of weights and inputs are scaled against each other before
    /// weights are quantised, which leaves what they compute as it was and loses less.
    #[arg(long, value_name = "FILE", required_if_eq("to", "int8"))]
    pub calibrate: Option<PathBuf>,
    /// What becomes of the result.
    #[command(flatten)]
    pub result: ResultArguments,
}

/// Where a changed model goes, and how what changed is told.
#[derive(Clone, Debug, Args)]
pub struct ResultArguments {
    /// Where the result goes.
    #[arg(long, value_name = "FILE.gguf")]
    pub out: PathBuf,
    /// Take a source whose weights are quantised already; what that lost stays lost.
    #[arg(long)]
    pub requantize: bool,
    /// What the report card measures.
    #[command(flatten)]
    pub exam: ExamArguments,
    /// Print the report card as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A source, what it and the result are compared on, and how they are run.
pub struct Compared {
    /// What is changed.
    pub before: ModelSource,
    exam: Exam,
    /// How both are run.
    pub config: WorkerConfig,
}

impl ResultArguments {
    /// Finds the source and reads what it is compared on, before anything is written.
    pub fn compared(&self, model: &str, catalog: Option<&Path>) -> anyhow::Result<Compared> {
        let exam = self.exam.exam()?;
        let before = source::find(model, catalog)?;
        refuse_same(&before, &self.out)?;
        Ok(Compared { before, exam, config: config(self.exam.threads) })
    }

    /// Writes weights in a format and tells what that did: `made` says what they are, `detail` how they came about.
    pub fn write(
        &self,
        compared: &Compared,
        (weights, to): (Weights, Target),
        (made, detail): (&str, Option<(&str, Value)>),
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        weights.convert(to)?.write(&self.out)?;
        let after = ModelSource::Path(self.out.clone());
        let card = Card::measure(&compared.before, &after, &compared.config, &compared.exam)?;
        let made = format!("{made} as {to}: {}", self.out.display());
        tell(&card, (&made, detail), self.json, out)?;
        Ok(())
    }
}

/// What models are compared on.
#[derive(Clone, Debug, Args)]
pub struct ExamArguments {
    /// Files of a suite for scores, changed answers and flipped decisions.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub suite: Vec<PathBuf>,
    /// Ask so many of the suite's records only.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Tokens of an answer at most.
    #[arg(long, value_name = "N", default_value_t = 192, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Hold answers to records that have `labels` to one of these labels, as a client's `choice` would; for models that were never
    /// taught to answer with nothing else.
    #[arg(long, requires = "suite")]
    pub choices: bool,
    /// A text for perplexity and top-1 agreement.
    #[arg(long, value_name = "FILE")]
    pub perplexity: Option<PathBuf>,
    /// Tokens of a window of the text.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    pub window: u32,
    /// The judge of drafts whose certified threshold decides where requests go; without one, declining and being cut off do.
    #[arg(long, value_name = "FILE.judge.toml", requires = "suite")]
    pub judge: Option<PathBuf>,
    /// Threads that the models compute on.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
}

impl ExamArguments {
    /// Reads everything that the measuring needs.
    pub fn exam(&self) -> anyhow::Result<Exam> {
        let text = self.perplexity.as_deref().map(read).transpose()?.map(|text| (text, self.window as usize));
        let records = suite(&self.suite, self.limit)?.unwrap_or_default();
        let judge = self.judge.as_deref().map(judge).transpose()?;
        let ask = AskOptions { max_tokens: self.max_tokens, choices: self.choices, ..AskOptions::default() };
        Ok(Exam { text, records, judge, ask })
    }
}

fn judge(file: &Path) -> anyhow::Result<(JudgeFile, PairScorer)> {
    let parsed = JudgeFile::parse(&read(file)?).with_context(|| file.display().to_string())?;
    let scorer = PairScorer::bundled()?.context("this build has no bundled scorer, which judges need")?;
    Ok((parsed, scorer))
}

/// Runs `quantize`.
pub fn run(arguments: &QuantizeArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let QuantizeArguments { model, catalog, to, result, .. } = arguments;
    let compared = result.compared(model, catalog.as_deref())?;
    let mut weights = Weights::read(&compared.before)?;
    if !result.requantize {
        weights.refuse_quantised()?;
    }
    let calibration = calibrated(arguments, &compared, &mut weights)?;
    let calibration = calibration.map(|calibration| {
        json!({
            "groups": calibration.groups, "scaled": calibration.scaled,
            "error_before": calibration.error_before, "error_after": calibration.error_after,
        })
    });
    result.write(&compared, (weights, *to), (model, calibration.map(|told| ("calibration", told))), out)?;
    Ok(ExitCode::SUCCESS)
}

/// Scales the channels of `weights` by what goes into their products on the calibration text.
fn calibrated(
    arguments: &QuantizeArguments,
    compared: &Compared,
    weights: &mut Weights,
) -> anyhow::Result<Option<Calibration>> {
    let Some(file) = &arguments.calibrate else {
        anyhow::ensure!(!arguments.to.wants_calibration(), "int8 needs a text to calibrate on: --calibrate FILE");
        return Ok(None);
    };
    let blocks = arguments.to.blocks();
    let blocks = blocks.with_context(|| format!("{} stays floating point: leave --calibrate out", arguments.to))?;
    let watch =
        Probe::open(&compared.before, &compared.config)?.watch(&read(file)?, arguments.result.exam.window as usize);
    Ok(Some(calibrate(weights, &watch.with_context(|| file.display().to_string())?, blocks)?))
}

/// The source is read while the result is written.
fn refuse_same(source: &ModelSource, out: &Path) -> anyhow::Result<()> {
    let ModelSource::Path(path) = source else { return Ok(()) };
    let same = path.canonicalize().ok().zip(out.canonicalize().ok()).is_some_and(|(path, out)| path == out);
    anyhow::ensure!(!same, "{} is the source itself; name another file with --out", out.display());
    Ok(())
}

/// Prints a report card under what was made, which may be told in more detail.
pub fn tell(
    card: &Card,
    (made, detail): (&str, Option<(&str, Value)>),
    as_json: bool,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    if as_json {
        let mut told = card.to_json();
        told["made"] = made.into();
        if let Some((name, detail)) = detail {
            told[name] = detail;
        }
        return writeln!(out, "{told}");
    }
    writeln!(out, "{made}")?;
    if let Some((name, Value::Object(detail))) = detail {
        let words: Vec<String> =
            detail.iter().map(|(key, value)| format!("{} {value}", key.replace('_', " "))).collect();
        writeln!(out, "{name}: {}", words.join(", "))?;
    }
    writeln!(out)?;
    let header =
        [("", Align::Left), ("before", Align::Right), ("after", Align::Right), ("after ÷ before", Align::Right)];
    table::print(out, &header, &rows(card))?;
    writeln!(out)?;
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    if let Some(agreement) = card.top1_agreement() {
        writeln!(out, "top-1 agreement: {}", percent(agreement))?;
    }
    if let Some(changed) = card.answers_changed() {
        writeln!(out, "answers that changed: {}", percent(changed))?;
    }
    if let Some(flips) = card.flips() {
        writeln!(
            out,
            "routing decisions that flip: {} of {} ({} now go remote, {} now stay local)",
            percent(flips.share()),
            flips.n,
            flips.to_remote,
            flips.to_local
        )?;
    }
    for (name, side) in [("before", &card.before), ("after", &card.after)] {
        for (what, forecast) in [("text", &side.text), ("right answers", &side.answers)] {
            if let Some(forecast) = forecast {
                writeln!(out, "{name}, perplexity of {what}: {}", forecast_words(forecast))?;
            }
        }
    }
    Ok(())
}

fn rows(card: &Card) -> Vec<Vec<String>> {
    let mut rows =
        vec![vec!["format".to_owned(), card.before.format.clone(), card.after.format.clone(), String::new()]];
    let mut row = |name: &str, show: &dyn Fn(f64) -> String, part: &dyn Fn(&Side) -> Option<f64>| {
        let Some((before, after)) = part(&card.before).zip(part(&card.after)) else { return };
        let ratio = if before > 0.0 { format!("{:.3}", after / before) } else { String::new() };
        rows.push(vec![name.to_owned(), show(before), show(after), ratio]);
    };
    let size = |count: f64| bytes(count as u64);
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    row("file", &size, &|side| Some(side.file_bytes as f64));
    row("weights in memory", &size, &|side| Some(side.resident_bytes as f64));
    row("tokens/s, one sequence", &|rate| format!("{rate:.0}"), &|side| Some(side.tokens_per_second));
    let perplexity = |value: f64| format!("{value:.3}");
    row("perplexity of text", &perplexity, &|side| Some(side.text.as_ref()?.perplexity()));
    row("perplexity of right answers", &perplexity, &|side| Some(side.answers.as_ref()?.perplexity()));
    row("macro average", &percent, &|side| Some(side.report.as_ref()?.macro_average?.value));
    let tasks = card.before.report.iter().flat_map(|report| &report.tasks);
    for task in tasks {
        row(&task.task, &percent, &|side| {
            let tasks = &side.report.as_ref()?.tasks;
            Some(tasks.iter().find(|other| other.task == task.task)?.score.interval?.value)
        });
    }
    rows
}

#[cfg(test)]
mod tests;
