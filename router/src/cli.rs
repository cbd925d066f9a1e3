//! The command line: one file per verb. Verbs print to the writer they are given; errors go to `main`.
//!
//! Client verbs (`ask`, `embed`, `explain`, `feedback`, `usage`) speak gRPC to a running gateway through the same small client that Rust
//! users have; the others run in this process.

pub mod ask;
pub mod connection;
pub mod demo;
#[cfg(feature = "lab")]
pub mod distill;
pub mod embed;
pub mod eval;
pub mod explain;
pub mod feedback;
#[cfg(feature = "lab")]
pub mod flywheel;
pub mod models;
pub mod policy;
#[cfg(feature = "lab")]
pub mod prune;
pub mod quantize;
pub mod replay;
pub mod serve;
pub mod simulate;
pub mod table;
pub mod train;
pub mod tune;
pub mod usage;

use crate::evidence::outcome::Outcomes;
use crate::learn::recorded::{self, Having};
use crate::ledger::Archive;
use clap::{Parser, Subcommand};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Sluice: one endpoint in front of a small model in this process and large remote ones.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the gateway.
    Serve(serve::ServeArguments),
    /// Show it all, offline: bundled small model, simulated large model, thirty requests, what was saved.
    Demo(demo::DemoArguments),
    /// Run the simulated large model as a server of its own.
    Simulate(simulate::SimulateArguments),
    /// Send one request and stream the answer.
    Ask(ask::AskArguments),
    /// Make sentence vectors of texts, and tell how near they are to each other.
    Embed(embed::EmbedArguments),
    /// Tell how a request would be, or an entry was, decided.
    Explain(explain::ExplainArguments),
    /// Tell how good a served answer was.
    Feedback(feedback::FeedbackArguments),
    /// Sum up usage and cost, or list entries.
    Usage(usage::UsageArguments),
    /// Work with policy files.
    #[command(subcommand)]
    Policy(policy::PolicyVerb),
    /// List the catalog, or list, fetch, load, unload and look into local models.
    Models(models::ModelsArguments),
    /// Decide recorded traffic again by a policy: cost, quality, latency, share local.
    Replay(replay::ReplayArguments),
    /// Fit a scorer from recorded outcomes and solve thresholds.
    #[command(subcommand)]
    Train(train::TrainVerb),
    /// Measure a local model, scorers of prompts, or what looking at drafts is worth.
    #[command(subcommand)]
    Eval(eval::EvalVerb),
    /// Write a local model's weights in fewer bits, with a report card.
    Quantize(quantize::QuantizeArguments),
    /// Drop weights, layers, heads, neurons or tokens of a local model, with a report card.
    #[cfg(feature = "lab")]
    Prune(prune::PruneArguments),
    /// Train a student on what a teacher says.
    #[cfg(feature = "lab")]
    Distill(distill::DistillArguments),
    /// From recorded traffic to a better small model: train, compress, measure, try beside the one that serves, promote.
    #[cfg(feature = "lab")]
    Flywheel(Box<flywheel::FlywheelArguments>),
    /// From recorded traffic to a better small model; this binary was built without.
    #[cfg(not(feature = "lab"))]
    Flywheel(train::NoLab),
    /// Drop parts of a local model; this binary was built without.
    #[cfg(not(feature = "lab"))]
    Prune(train::NoLab),
    /// Train a student on what a teacher says; this binary was built without.
    #[cfg(not(feature = "lab"))]
    Distill(train::NoLab),
    /// Solve how much may stay local from recorded outcomes, and show what was promised and what came true.
    Tune(tune::TuneArguments),
}

/// Runs one verb; the exit code says whether what was asked for holds (a policy that has problems is a 1).
pub fn run(arguments: Arguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match arguments.verb {
        Verb::Serve(arguments) => serve::run(&arguments, out),
        Verb::Demo(arguments) => demo::run(&arguments, out),
        Verb::Simulate(arguments) => simulate::run(&arguments, out),
        Verb::Ask(arguments) => ask::run(arguments, out),
        Verb::Embed(arguments) => embed::run(arguments, out),
        Verb::Explain(arguments) => explain::run(arguments, out),
        Verb::Feedback(arguments) => feedback::run(arguments, out),
        Verb::Usage(arguments) => usage::run(&arguments, out),
        Verb::Policy(verb) => policy::run(&verb, out),
        Verb::Models(arguments) => models::run(&arguments, out),
        Verb::Replay(arguments) => replay::run(&arguments, out),
        Verb::Train(verb) => train::run(&verb, out),
        Verb::Eval(verb) => eval::run(&verb, out),
        Verb::Quantize(arguments) => quantize::run(&arguments, out),
        #[cfg(feature = "lab")]
        Verb::Prune(arguments) => prune::run(&arguments, out),
        #[cfg(feature = "lab")]
        Verb::Distill(arguments) => distill::run(&arguments, out),
        #[cfg(feature = "lab")]
        Verb::Flywheel(arguments) => flywheel::run(&arguments, out),
        #[cfg(not(feature = "lab"))]
        Verb::Prune(_) | Verb::Distill(_) | Verb::Flywheel(_) => train::no_lab(),
        Verb::Tune(arguments) => tune::run(&arguments, out),
    }
}

/// Outcomes out of files and, if a folder is named, out of the ledger in it; with what to know about the latter.
fn outcomes_of(
    files: &[PathBuf],
    ledger: Option<&Path>,
    wanted: &recorded::Wanted,
) -> anyhow::Result<(Outcomes, Vec<String>)> {
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let mut outcomes = match paths.is_empty() {
        true => Outcomes { rows: Vec::new(), hash: String::new(), notes: Vec::new() },
        false => Outcomes::read(&paths)?,
    };
    let Some(folder) = ledger else { return Ok((outcomes, Vec::new())) };
    let found = client_runtime()?.block_on(async {
        let archive = Archive::open(folder).await?;
        recorded::read(&archive, wanted).await
    })?;
    let lacking = match wanted.having {
        Having::Text => "a recorded prompt",
        _ => "a score by the latest scorer",
    };
    let notes = vec![format!(
        "{} outcomes of {} ({} of them feedback); {} more lack {lacking}",
        found.outcomes.rows.len(),
        folder.display(),
        found.feedback,
        found.unusable
    )];
    if found.outcomes.rows.is_empty() && outcomes.rows.is_empty() {
        anyhow::bail!(
            "no outcomes to use: {}; let policies make shadow runs, and record text to train on",
            notes.join("; ")
        );
    }
    outcomes.hash = match outcomes.hash.is_empty() {
        true => found.outcomes.hash,
        false => blake3::hash(format!("{}{}", outcomes.hash, found.outcomes.hash).as_bytes())
            .to_hex()
            .chars()
            .take(16)
            .collect(),
    };
    outcomes.rows.extend(found.outcomes.rows);
    Ok((outcomes, notes))
}

/// A runtime for client verbs.
fn client_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
