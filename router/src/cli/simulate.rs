//! `sluice simulate`: the simulated large model as a server of its own, for trying policies and for tests.

use super::serve::wait_for_signal;
use crate::catalog::{Catalog, Model};
use crate::domain::ModelId;
use crate::simulate::{Prices, Simulator, SimulatorConfig};
use clap::Args;
use local_worker::evaluate::read_suite;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub struct SimulateArguments {
    /// Time to the first token, milliseconds.
    #[arg(long, default_value_t = 0)]
    pub first_token_ms: u64,
    /// Time between tokens, milliseconds.
    #[arg(long, default_value_t = 0)]
    pub token_ms: u64,
    /// What it answers: JSON lines with id, task, prompt and answer, gzipped or not; to any other prompt it makes something up.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub answers: Vec<PathBuf>,
}

/// Prices of a catalog model, for the simulator.
pub fn prices_of(model: &Model) -> Prices {
    Prices { input: model.price.input, cached_input: model.price.cached_input, output: model.price.output }
}

/// The prices that the simulator charges: those of the first large model of the shipped policies.
pub fn shipped_prices() -> anyhow::Result<Prices> {
    let catalog = Catalog::parse("models.toml", include_str!("../../../policies/models.toml"));
    let catalog =
        catalog.map_err(|problems| anyhow::anyhow!("the catalog inside the binary has problems: {problems:?}"))?;
    let model = catalog.get(&ModelId::new("openai/gpt-4.1-mini"));
    Ok(model.map(prices_of).unwrap_or_default())
}

/// Runs `simulate`.
pub fn run(arguments: &SimulateArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let known = match arguments.answers.is_empty() {
        true => Vec::new(),
        false => read_suite(&arguments.answers)?,
    };
    let config = SimulatorConfig {
        prices: shipped_prices()?,
        answers: known.into_iter().map(|record| (record.prompt.trim().to_owned(), record.answer)).collect(),
        first_token_delay: Duration::from_millis(arguments.first_token_ms),
        token_delay: Duration::from_millis(arguments.token_ms),
        ..SimulatorConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let simulator = Simulator::start(config, &tasks, stop.clone()).await?;
        writeln!(out, "simulated large model at {}", simulator.base_url())?;
        out.flush()?;
        wait_for_signal().await?;
        stop.cancel();
        Ok(ExitCode::SUCCESS)
    })
}
