//! `sluice explain`: how a request would be decided, or how an entry of the ledger was.

use super::ask::{AskOptions, prompt_text, word};
use super::connection::{Connection, describe};
use super::table::{self, Align, money};
use clap::Args;
use sluice_proto::v1;
use std::io::Write;
use std::process::ExitCode;

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("subject").required(true).args(["prompt", "entry"]))]
pub struct ExplainArguments {
    /// The prompt; `-` reads it from standard input.
    pub prompt: Option<String>,
    /// Id of a ledger entry instead of a prompt.
    #[arg(long)]
    pub entry: Option<String>,
    /// Where the gateway is.
    #[command(flatten)]
    pub connection: Connection,
    /// The rest of the ask.
    #[command(flatten)]
    pub options: AskOptions,
}

/// Runs `explain`.
pub fn run(arguments: ExplainArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    super::client_runtime()?.block_on(explain(arguments, out))
}

async fn explain(arguments: ExplainArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    use v1::explain_request::Subject;
    let subject = match (arguments.entry, arguments.prompt) {
        (Some(entry), _) => Subject::EntryId(entry),
        (None, prompt) => Subject::Ask(arguments.options.ask(prompt_text(prompt.unwrap_or_default())?)?),
    };
    let mut client = arguments.connection.open().await?;
    let request = v1::ExplainRequest { subject: Some(subject) };
    let response = client.gateway.explain(request).await.map_err(|status| describe(&status))?.into_inner();
    if let Some(decision) = &response.decision {
        print_decision(out, decision)?;
    }
    if !response.certificate.is_empty() {
        writeln!(out, "certificate  {}", response.certificate)?;
    }
    if let Some(entry) = &response.entry {
        print_entry(out, entry)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A decision on one line.
pub fn decision_line(decision: &v1::Decision) -> String {
    let reason = decision.reason.clone().unwrap_or_default();
    format!(
        "{} {} by {}@{}: {}",
        word(decision.route().as_str_name(), "ROUTE_"),
        decision.model,
        decision.policy_name,
        decision.policy_hash,
        if reason.detail.is_empty() { reason.code } else { reason.detail },
    )
}

fn print_decision(out: &mut dyn Write, decision: &v1::Decision) -> anyhow::Result<()> {
    let reason = decision.reason.clone().unwrap_or_default();
    writeln!(out, "route        {} {}", word(decision.route().as_str_name(), "ROUTE_"), decision.model)?;
    writeln!(out, "reason       {}: {}", reason.code, reason.detail)?;
    match decision.threshold {
        Some(threshold) => writeln!(out, "threshold    {threshold:.4}")?,
        None => writeln!(out, "threshold    none")?,
    }
    writeln!(out, "policy       {}@{}", decision.policy_name, decision.policy_hash)?;
    writeln!(
        out,
        "placement    {} ({})",
        word(decision.placement().as_str_name(), "PLACEMENT_").replace('_', "-"),
        decision.placement_by
    )?;
    if !decision.residency.is_empty() {
        writeln!(out, "residency    {}", decision.residency)?;
    }
    if !decision.experiment.is_empty() {
        writeln!(out, "experiment   {}: {}", decision.experiment, decision.arm)?;
    }
    if !decision.rule.is_empty() {
        writeln!(out, "rule         {}", decision.rule)?;
    }
    writeln!(
        out,
        "scorer       {}",
        if decision.scorer_version.is_empty() { "none" } else { &decision.scorer_version }
    )?;
    writeln!(out, "propensity   {}{}", decision.propensity, if decision.explored { " (explored)" } else { "" })?;
    for (index, feature) in reason.strongest.iter().enumerate() {
        writeln!(out, "{:<12} {feature}", if index == 0 { "strongest" } else { "" })?;
    }
    let rows: Vec<Vec<String>> = decision
        .candidates
        .iter()
        .map(|candidate| {
            vec![
                candidate.model.clone(),
                word(candidate.route().as_str_name(), "ROUTE_"),
                candidate.score.map_or("–".to_owned(), |score| format!("{score:.3}")),
                money(candidate.expected_cost.unwrap_or_default().nano_usd),
                money(candidate.worst_nano_usd),
                candidate.predicted_total_ms.map_or("–".to_owned(), |ms| format!("{ms:.0} ms")),
                candidate.region.clone(),
                candidate.excluded_by.clone(),
            ]
        })
        .collect();
    let header = [
        ("candidate", Align::Left),
        ("runs", Align::Left),
        ("score", Align::Right),
        ("expected cost", Align::Right),
        ("worst cost", Align::Right),
        ("95 % within", Align::Right),
        ("region", Align::Left),
        ("excluded by", Align::Left),
    ];
    table::print(out, &header, &rows)?;
    Ok(())
}

fn print_entry(out: &mut dyn Write, entry: &v1::Entry) -> anyhow::Result<()> {
    let cost = entry.cost.unwrap_or_default();
    writeln!(out, "entry        {} of tenant {}: {} {}", entry.id, entry.tenant, entry.status, entry.error)?;
    writeln!(
        out,
        "cost         {} ({}), saved {} (estimate, {})",
        money(cost.nano_usd),
        word(cost.basis().as_str_name(), "COST_BASIS_"),
        money(entry.saved_nano_usd),
        entry.baseline_method
    )?;
    writeln!(out, "latency      {:.0} ms, first byte {:.0} ms", entry.latency_ms, entry.first_byte_ms)?;
    for attempt in &entry.attempts {
        writeln!(
            out,
            "attempt      {} {} {} {} {}",
            attempt.id,
            attempt.model,
            attempt.status,
            money(attempt.cost.unwrap_or_default().nano_usd),
            attempt.error
        )?;
    }
    for feedback in &entry.feedback {
        writeln!(out, "feedback     {} {}", word(feedback.source().as_str_name(), "FEEDBACK_SOURCE_"), feedback.value)?;
    }
    Ok(())
}
