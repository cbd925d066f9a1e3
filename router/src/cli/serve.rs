//! `sluice serve`: run the gateway until SIGINT or SIGTERM.

use crate::app::App;
use crate::domain::RecordLevel;
use crate::settings::Settings;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Settings file; `SLUICE_*` variables override it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs `serve`.
pub fn run(arguments: &ServeArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let settings = Settings::load(arguments.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let app = App::start(settings.clone()).await?;
        greet(&app, &settings, started, out)?;
        wait_for_signal().await?;
        // Whoever read our output may be gone; that must not keep us from an orderly end.
        let _unread =
            writeln!(out, "stopping: requests under way finish, the ledger is flushed").and_then(|()| out.flush());
        app.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}

fn greet(app: &App, settings: &Settings, started: Instant, out: &mut dyn Write) -> anyhow::Result<()> {
    if settings.keys_file.is_none() {
        writeln!(
            out,
            "no keys_file: anyone on this machine may call, as tenant `local`; only loopback is listened on"
        )?;
    }
    for (id, worker) in app.workers() {
        let info = worker.info();
        let mebibytes = info.resident_bytes as f64 / f64::from(1 << 20);
        writeln!(out, "model {id}: {} parameters, {}, {mebibytes:.1} MiB", info.parameters, info.quantization)?;
    }
    let recovery = app.recovery();
    if recovery.replayed + recovery.interrupted > 0 || !recovery.torn.is_empty() {
        let (replayed, interrupted) = (recovery.replayed, recovery.interrupted);
        writeln!(
            out,
            "recovered: {replayed} records from the journal, {interrupted} interrupted attempts booked at their hold"
        )?;
        for torn in &recovery.torn {
            writeln!(out, "recovered: a torn end of the journal is in {}", torn.display())?;
        }
    }
    for policy in app.services().registry.snapshot().policies() {
        let threshold =
            policy.threshold().map_or("all remote".to_owned(), |threshold| format!("local from score {threshold:.3}"));
        let judge = policy.judge().describe().map_or_else(String::new, |judge| format!("; {judge}"));
        writeln!(out, "policy {}@{}: {threshold}{judge}", policy.reference.name, policy.reference.hash)?;
        if policy.shadow.is_some() && settings.records.values().all(|level| *level == RecordLevel::None) {
            writeln!(
                out,
                "policy {}: [shadow] compares nothing, as no tenant is recorded; set tenants.NAME.record to \"features\" or \"text\"",
                policy.reference.name
            )?;
        }
    }
    writeln!(out, "READY {} in {:.0} ms", app.url(), started.elapsed().as_secs_f64() * 1e3)?;
    out.flush()?;
    Ok(())
}

/// Waits for SIGINT or SIGTERM.
pub async fn wait_for_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
