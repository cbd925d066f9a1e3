//! `sluice feedback`: how good a served answer was, told to the ledger.

use super::ask::word;
use super::connection::{Connection, describe};
use clap::{Args, ValueEnum};
use sluice_proto::v1;
use std::io::Write;
use std::process::ExitCode;

/// Who judges.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum By {
    /// A person.
    #[default]
    User,
    /// A model used as a judge.
    Judge,
    /// A measured outcome, such as a test that passed.
    Metric,
}

/// Arguments of `feedback`.
#[derive(Debug, Args)]
pub struct FeedbackArguments {
    /// Id of the ledger entry: what `sluice ask` prints first, and `sluice usage --entries` lists.
    pub entry: String,
    /// 0 (useless) to 1 (perfect).
    pub value: f64,
    /// Who judges.
    #[arg(long, value_enum, default_value_t)]
    pub by: By,
    /// Where the gateway is.
    #[command(flatten)]
    pub connection: Connection,
}

/// Runs `feedback`.
pub fn run(arguments: FeedbackArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    super::client_runtime()?.block_on(submit(arguments, out))
}

async fn submit(arguments: FeedbackArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut client = arguments.connection.open().await?;
    let source = match arguments.by {
        By::User => v1::FeedbackSource::User,
        By::Judge => v1::FeedbackSource::Judge,
        By::Metric => v1::FeedbackSource::Metric,
    };
    let request =
        v1::SubmitFeedbackRequest { entry_id: arguments.entry, source: source.into(), value: Some(arguments.value) };
    let told = client.gateway.submit_feedback(request).await.map_err(|status| describe(&status))?.into_inner();
    writeln!(out, "{}", word(told.outcome().as_str_name(), "FEEDBACK_OUTCOME_"))?;
    Ok(ExitCode::SUCCESS)
}
