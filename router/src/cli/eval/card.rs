//! `sluice eval card`: two local models side by side, on the report card of `quantize` and `prune`.

use super::{config, source};
use crate::cli::quantize::{ExamArguments, tell};
use crate::lab::card::Card;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `eval card`.
#[derive(Clone, Debug, Args)]
pub struct CardArguments {
    /// A GGUF file, a folder, or a model of the catalog.
    #[arg(long, value_name = "MODEL")]
    pub before: String,
    /// What it is held against: what came of it by pruning and healing, say. Top-1 agreement compares token by token,
    /// so it wants the same vocabulary.
    #[arg(long, value_name = "MODEL")]
    pub after: String,
    /// The catalog to look names up in; the one inside the binary if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// What the report card measures.
    #[command(flatten)]
    pub exam: ExamArguments,
    /// Print the report card as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs `eval card`.
pub fn run(arguments: &CardArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let CardArguments { before, after, catalog, exam, json } = arguments;
    let measured = exam.exam()?;
    let find = |name: &str| source::find(name, catalog.as_deref());
    let card = Card::measure(&find(before)?, &find(after)?, &config(exam.threads), &measured)?;
    tell(&card, (&format!("{after} beside {before}"), None), *json, out)?;
    Ok(ExitCode::SUCCESS)
}
