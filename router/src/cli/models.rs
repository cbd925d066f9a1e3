//! `sluice models`: the catalog, or what a model file holds.

use super::table::{self, Align};
use crate::catalog::{Catalog, Model, Place};
use anyhow::Context as _;
use clap::Args;
use local_worker::{ModelSource, Worker, WorkerConfig};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `models`.
#[derive(Debug, Args)]
pub struct ModelsArguments {
    /// Catalog file; the one inside the binary if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Load this GGUF file and say what it is.
    #[arg(long, value_name = "FILE.gguf")]
    pub inspect: Option<PathBuf>,
}

/// Runs `models`.
pub fn run(arguments: &ModelsArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    if let Some(file) = &arguments.inspect {
        return inspect(file, out);
    }
    let (name, text) = match &arguments.catalog {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
            (file.display().to_string(), text)
        }
        None => ("models.toml".to_owned(), include_str!("../../../policies/models.toml").to_owned()),
    };
    let catalog = match Catalog::parse(&name, &text) {
        Ok(catalog) => catalog,
        Err(problems) => {
            super::policy::print_problems(&text, &problems, out)?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let header = [
        ("model", Align::Left),
        ("runs", Align::Left),
        ("context", Align::Right),
        ("USD per million tokens: input", Align::Right),
        ("cached", Align::Right),
        ("output", Align::Right),
        ("price of", Align::Left),
    ];
    table::print(out, &header, &catalog.models().map(row).collect::<Vec<_>>())?;
    Ok(ExitCode::SUCCESS)
}

fn row(model: &Model) -> Vec<String> {
    let place = match &model.place {
        Place::Bundled => "in process, bundled".to_owned(),
        Place::File(path) => format!("in process, {}", path.display()),
        Place::Hub(reference) => format!("in process, {reference}"),
        Place::Remote { target, upstream } => format!("{target}: {upstream}"),
    };
    let dollars = |picos: u64| format!("{:.4}", picos as f64 / 1e6);
    let price = &model.price;
    vec![
        model.id.to_string(),
        place,
        model.context.to_string(),
        dollars(price.input.picos()),
        dollars(price.cached_input.picos()),
        dollars(price.output.picos()),
        price.date.clone(),
    ]
}

fn inspect(file: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let name = file.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let worker = Worker::start(&name, ModelSource::Path(file.to_owned()), WorkerConfig::default())?;
    let info = worker.info();
    writeln!(out, "file          {} ({} bytes)", file.display(), info.file_bytes)?;
    writeln!(out, "parameters    {}", info.parameters)?;
    writeln!(out, "quantization  {}", info.quantization)?;
    writeln!(out, "context       {}", info.context_length)?;
    writeln!(out, "resident      {} bytes", info.resident_bytes)?;
    writeln!(out, "loaded in     {:.0} ms", info.load_seconds * 1e3)?;
    writeln!(out, "chat template {}", if info.has_chat_template { "yes" } else { "no" })?;
    writeln!(out, "declines with {}", info.decline_text.as_deref().unwrap_or("nothing"))?;
    worker.shutdown(Duration::from_secs(5));
    Ok(ExitCode::SUCCESS)
}
