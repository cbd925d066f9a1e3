//! `sluice models`: the catalog with its prices, the models of a running gateway, what a file holds, downloads.

mod bar;
mod gateway;
mod inspect;
mod pull;

use super::connection::Connection;
use super::table::{self, Align};
use crate::catalog::{Catalog, Model, Place};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `models`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ModelsArguments {
    /// What to do; the catalog with its prices if absent.
    #[command(subcommand)]
    pub verb: Option<ModelsVerb>,
    /// Catalog file; the one inside the binary if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
}

/// What to do with models.
#[derive(Debug, Subcommand)]
pub enum ModelsVerb {
    /// List the models of a running gateway with state and memory.
    List(ListArguments),
    /// Fetch a model: by its name through a gateway, or as hf:owner/name into the cache folder without one.
    Pull(PullArguments),
    /// Load a model in a running gateway, or swap it for what was pulled.
    Load(NameArguments),
    /// Unload a model in a running gateway; requests under way finish.
    Unload(NameArguments),
    /// Tell what a file or folder holds, or a model of a running gateway.
    Inspect(NameArguments),
}

/// Arguments of `models list`.
#[derive(Debug, Args)]
pub struct ListArguments {
    /// Where the gateway is.
    #[command(flatten)]
    pub connection: Connection,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `models pull`.
#[derive(Debug, Args)]
pub struct PullArguments {
    /// Name in the gateway's catalog; or hf:owner/name with @revision and /file as need be.
    pub model: String,
    /// Where the gateway is.
    #[command(flatten)]
    pub connection: Connection,
    /// Settings file for the cache folder, endpoint and token, without a gateway; `SLUICE_HUB__*` variables override it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON, a line for each step.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of verbs about one model.
#[derive(Debug, Args)]
pub struct NameArguments {
    /// Name in the gateway's catalog; for `inspect` also a file or folder here.
    pub model: String,
    /// Where the gateway is.
    #[command(flatten)]
    pub connection: Connection,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs `models`.
pub fn run(arguments: &ModelsArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let runtime = super::client_runtime()?;
    match &arguments.verb {
        None => return catalog(arguments, out),
        Some(ModelsVerb::List(arguments)) => runtime.block_on(gateway::list(arguments, out))?,
        Some(ModelsVerb::Load(arguments)) => runtime.block_on(gateway::load(arguments, out))?,
        Some(ModelsVerb::Unload(arguments)) => runtime.block_on(gateway::unload(arguments, out))?,
        Some(ModelsVerb::Pull(arguments)) if arguments.model.starts_with("hf:") => {
            runtime.block_on(pull::into_cache(arguments, out))?;
        }
        Some(ModelsVerb::Pull(arguments)) => runtime.block_on(gateway::pull(arguments, out))?,
        Some(ModelsVerb::Inspect(arguments)) => match PathBuf::from(&arguments.model) {
            // A file that is meant and missing is told by its name, not looked for in a gateway.
            path if path.exists() || path.is_absolute() || path.extension().is_some_and(|end| end == "gguf") => {
                inspect::file(&path, arguments.json, out)?;
            }
            _ => runtime.block_on(gateway::inspect(arguments, out))?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn catalog(arguments: &ModelsArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
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
