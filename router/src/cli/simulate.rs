//! `sluice simulate`: the simulated large model as a server of its own, for trying policies and for tests.

use super::serve::wait_for_signal;
use crate::catalog::{Catalog, Model};
use crate::domain::ModelId;
use crate::simulate::{Prices, Simulator, SimulatorConfig};
use clap::Args;
use std::io::Write;
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
    let config = SimulatorConfig {
        prices: shipped_prices()?,
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
