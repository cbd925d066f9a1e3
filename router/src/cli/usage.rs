//! `sluice usage`: what was used and spent, summed up or entry by entry.

use super::ask::word;
use super::connection::{Connection, describe};
use super::table::{self, Align, clip, money};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::io::Write;
use std::process::ExitCode;

/// What to group by.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Group {
    /// One line in all.
    None,
    /// By tenant.
    Tenant,
    /// By route.
    Route,
    /// By model.
    Model,
    /// By policy.
    Policy,
    /// By the value of the label given with --label-key.
    Label,
}

/// Arguments of `usage`.
#[derive(Debug, Args)]
pub struct UsageArguments {
    /// Where the gateway is.
    #[command(flatten)]
    pub connection: Connection,
    /// What to group by.
    #[arg(long, value_enum, default_value = "route")]
    pub by: Group,
    /// The label's key for `--by label`.
    #[arg(long, default_value = "", required_if_eq("by", "label"))]
    pub label_key: String,
    /// How far back to look, in hours.
    #[arg(long, default_value_t = 24)]
    pub hours: u32,
    /// Only this tenant.
    #[arg(long, default_value = "")]
    pub tenant: String,
    /// List the latest entries, at most so many, instead of sums.
    #[arg(long, value_name = "COUNT")]
    pub entries: Option<i32>,
}

/// Runs `usage`.
pub fn run(arguments: &UsageArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    super::client_runtime()?.block_on(async {
        let mut client = arguments.connection.open().await?;
        let now = jiff::Timestamp::now().as_millisecond();
        let from = now.saturating_sub(i64::from(arguments.hours) * 3_600_000);
        match arguments.entries {
            Some(count) => entries(&mut client, arguments, from, count, out).await?,
            None => summary(&mut client, arguments, from, out).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The columns of [`summary_row`].
pub const SUMMARY_HEADER: [(&str, Align); 10] = [
    ("group", Align::Left),
    ("requests", Align::Right),
    ("ok", Align::Right),
    ("cache", Align::Right),
    ("in + out tokens", Align::Right),
    ("cost", Align::Right),
    ("saved (est.)", Align::Right),
    ("cpu s", Align::Right),
    ("p50 ms", Align::Right),
    ("p99 ms", Align::Right),
];

/// One row of sums as cells.
pub fn summary_row(row: &v1::SummaryRow) -> Vec<String> {
    let usage = row.usage.unwrap_or_default();
    vec![
        if row.group.is_empty() { "all".to_owned() } else { row.group.clone() },
        row.requests.to_string(),
        row.by_status.get("ok").copied().unwrap_or(0).to_string(),
        row.cache_hits.to_string(),
        format!("{} + {}", usage.input_tokens, usage.output_tokens),
        money(row.cost.iter().map(|cost| cost.nano_usd).sum()),
        money(row.saved_nano_usd),
        format!("{:.2}", usage.cpu_seconds),
        format!("{:.1}", row.latency_p50_ms),
        format!("{:.1}", row.latency_p99_ms),
    ]
}

async fn summary(
    client: &mut Client,
    arguments: &UsageArguments,
    from: i64,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let group_by = match arguments.by {
        Group::None => v1::GroupBy::Unspecified,
        Group::Tenant => v1::GroupBy::Tenant,
        Group::Route => v1::GroupBy::Route,
        Group::Model => v1::GroupBy::Model,
        Group::Policy => v1::GroupBy::Policy,
        Group::Label => v1::GroupBy::Label,
    };
    let request = v1::SummarizeRequest {
        from_unix_ms: from,
        group_by: group_by.into(),
        label_key: arguments.label_key.clone(),
        tenant: arguments.tenant.clone(),
        ..v1::SummarizeRequest::default()
    };
    let response = client.usage.summarize(request).await.map_err(|status| describe(&status))?.into_inner();
    table::print(out, &SUMMARY_HEADER, &response.rows.iter().map(summary_row).collect::<Vec<_>>())?;
    let shadows: i64 = response.rows.iter().map(|row| row.shadow_runs).sum();
    if shadows > 0 {
        let cost = money(response.rows.iter().map(|row| row.shadow_nano_usd).sum());
        writeln!(out, "{shadows} shadow runs, which are no requests, for {cost} of the cost")?;
    }
    for budget in &response.budgets {
        writeln!(
            out,
            "budget of {} per {}: {} of {} spent, {} held",
            budget.tenant,
            budget.window,
            money(budget.spent_nano_usd),
            money(budget.limit_nano_usd),
            money(budget.held_nano_usd)
        )?;
    }
    Ok(())
}

async fn entries(
    client: &mut Client,
    arguments: &UsageArguments,
    from: i64,
    count: i32,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let request = v1::ListEntriesRequest {
        from_unix_ms: from,
        tenant: arguments.tenant.clone(),
        page_size: count,
        ..v1::ListEntriesRequest::default()
    };
    let response = client.usage.list_entries(request).await.map_err(|status| describe(&status))?.into_inner();
    let mut rows = Vec::new();
    for entry in &response.entries {
        let decision = entry.decision.clone().unwrap_or_default();
        let time = jiff::Timestamp::from_millisecond(entry.received_unix_ms).context("the server sent an odd time")?;
        rows.push(vec![
            time.strftime("%F %T").to_string(),
            entry.id.clone(),
            entry.status.clone(),
            word(decision.route().as_str_name(), "ROUTE_"),
            decision.model.clone(),
            clip(&decision.reason.unwrap_or_default().code, 24),
            money(entry.cost.unwrap_or_default().nano_usd),
            format!("{:.0}", entry.latency_ms),
        ]);
    }
    let header = [
        ("time (UTC)", Align::Left),
        ("entry", Align::Left),
        ("status", Align::Left),
        ("route", Align::Left),
        ("model", Align::Left),
        ("reason", Align::Left),
        ("cost", Align::Right),
        ("ms", Align::Right),
    ];
    table::print(out, &header, &rows)?;
    Ok(())
}
