//! `sluice demo`: the whole path, offline. The bundled model, a simulated large one on a loopback socket that speaks the
//! real protocol, thirty requests through the real gRPC client, and what came of them.

mod learn;
mod requests;

use super::ask::word;
use super::serve::wait_for_signal;
use super::simulate::shipped_prices;
use super::table::{self, Align, clip, money};
use crate::app::App;
use crate::domain::Placement;
use crate::settings::{Settings, Target};
use crate::simulate::{Simulator, SimulatorConfig};
use clap::Args;
use requests::{DemoRequest, REQUESTS, Shows};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Exit when the requests are done instead of staying up.
    #[arg(long)]
    pub once: bool,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// The demo of learning.
    #[command(flatten)]
    pub learning: learn::LearnArguments,
}

/// How fast the simulated large model answers: slow enough to see that a remote call takes time.
const FIRST_TOKEN: Duration = Duration::from_millis(120);
const TOKEN: Duration = Duration::from_millis(2);

/// What came of a request.
struct Outcome {
    text: String,
    finished: Option<v1::Finished>,
    refused: Option<String>,
}

/// Runs `demo`.
pub fn run(arguments: &DemoArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    if arguments.learning.learn {
        return learn::run(&arguments.learning, out);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(show(arguments, out))
}

async fn show(arguments: &DemoArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let answers = REQUESTS.iter().filter(|request| !request.answer.is_empty());
    let config = SimulatorConfig {
        answers: answers.map(|request| (request.prompt.to_owned(), request.answer.to_owned())).collect(),
        prices: shipped_prices()?,
        first_token_delay: FIRST_TOKEN,
        token_delay: TOKEN,
        ..SimulatorConfig::default()
    };
    let simulator = Simulator::start(config, &tasks, stop.clone()).await?;
    let folder = data_folder()?;
    let app = App::start(settings(arguments, &simulator, &folder)?).await?;
    writeln!(out, "gateway on {}; the large model is SIMULATED, on {}\n", app.url(), simulator.base_url())?;
    let mut client = Client::connect(&app.url(), None, None).await?;
    let mut outcomes = Vec::new();
    for request in REQUESTS {
        outcomes.push((request, ask(&mut client, request).await));
    }
    let honest = report(&mut client, &simulator, &outcomes, out).await?;
    if !arguments.once {
        let what = if cfg!(feature = "dashboard") { "the page" } else { "the gateway (this build has no page)" };
        writeln!(out, "\n{what} is at {}/ — Ctrl-C ends the demo", app.url())?;
        out.flush()?;
        wait_for_signal().await?;
    }
    drop(client);
    app.shutdown().await;
    stop.cancel();
    let _leftover = std::fs::remove_dir_all(&folder);
    Ok(if honest { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A fresh folder for the demo's ledger.
fn data_folder() -> std::io::Result<std::path::PathBuf> {
    let folder = std::env::temp_dir().join(format!("sluice-demo-{}", uuid::Uuid::now_v7()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn settings(arguments: &DemoArguments, simulator: &Simulator, folder: &std::path::Path) -> anyhow::Result<Settings> {
    let mut settings = Settings::from(None, HashMap::new(), &|_| None)?;
    settings.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port));
    settings.data_dir = folder.to_owned();
    settings.telemetry.filter = "warn".to_owned();
    settings.targets.insert("openai".to_owned(), Target::at(simulator.base_url()));
    Ok(settings)
}

async fn ask(client: &mut Client, request: &DemoRequest) -> Outcome {
    use v1::stream_complete_response::Event;
    let mut ask = sluice_proto::client::ask(request.prompt);
    ask.limits = Some(v1::Limits { temperature: Some(0.0), ..v1::Limits::default() });
    ask.placement = match request.placement {
        Placement::LocalOnly => v1::Placement::LocalOnly.into(),
        Placement::PreferLocal => v1::Placement::PreferLocal.into(),
        _ => v1::Placement::Auto.into(),
    };
    ask.labels.extend(request.label.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let mut outcome = Outcome { text: String::new(), finished: None, refused: None };
    let stream = client.gateway.stream_complete(v1::StreamCompleteRequest { ask: Some(ask) }).await;
    let mut events = match stream {
        Ok(response) => response.into_inner(),
        Err(status) => {
            outcome.refused = Some(status.message().to_owned());
            return outcome;
        }
    };
    loop {
        match events.message().await {
            Ok(Some(message)) => match message.event {
                Some(Event::Delta(v1::Delta { kind: Some(v1::delta::Kind::Text(text)), .. })) => {
                    outcome.text.push_str(&text)
                }
                Some(Event::Finished(finished)) => outcome.finished = Some(finished),
                _ => {}
            },
            Ok(None) => return outcome,
            Err(status) => {
                outcome.refused = Some(status.message().to_owned());
                return outcome;
            }
        }
    }
}

fn row(number: usize, request: &DemoRequest, outcome: &Outcome) -> Vec<String> {
    let right = match (request.shows, request.answer == outcome.text.trim()) {
        (Shows::Easy, true) => "right",
        (Shows::Easy, false) => "WRONG",
        _ => "",
    };
    let Some(finished) = &outcome.finished else {
        let why = outcome.refused.clone().unwrap_or_default();
        let reason = format!("refused: {why}");
        return vec![
            number.to_string(),
            clip(request.prompt, 44),
            "–".to_owned(),
            clip(&reason, 58),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ];
    };
    let decision = finished.decision.clone().unwrap_or_default();
    let score = decision.candidates.iter().find_map(|candidate| candidate.score);
    vec![
        number.to_string(),
        clip(request.prompt, 44),
        word(decision.route().as_str_name(), "ROUTE_"),
        clip(&decision.reason.unwrap_or_default().detail, 58),
        score.map(|score| format!("{score:.2}")).unwrap_or_default(),
        format!("{:.0}", finished.latency_ms),
        money(finished.cost.unwrap_or_default().nano_usd),
        clip(&outcome.text, 28),
        right.to_owned(),
    ]
}

async fn report(
    client: &mut Client,
    simulator: &Simulator,
    outcomes: &[(&DemoRequest, Outcome)],
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let header = [
        ("#", Align::Right),
        ("request", Align::Left),
        ("route", Align::Left),
        ("why", Align::Left),
        ("score", Align::Right),
        ("ms", Align::Right),
        ("cost", Align::Right),
        ("answer", Align::Left),
        ("", Align::Left),
    ];
    let rows: Vec<_> =
        outcomes.iter().enumerate().map(|(index, (request, outcome))| row(index + 1, request, outcome)).collect();
    table::print(out, &header, &rows)?;
    writeln!(out)?;
    let request = v1::SummarizeRequest { group_by: v1::GroupBy::Route.into(), ..v1::SummarizeRequest::default() };
    let summary = client.usage.summarize(request).await?.into_inner();
    table::print(
        out,
        &super::usage::SUMMARY_HEADER,
        &summary.rows.iter().map(super::usage::summary_row).collect::<Vec<_>>(),
    )?;
    let spent: i64 = summary.rows.iter().flat_map(|row| &row.cost).map(|cost| cost.nano_usd).sum();
    let saved: i64 = summary.rows.iter().map(|row| row.saved_nano_usd).sum();
    let bill = simulator.total().nanos();
    let finished =
        || outcomes.iter().filter_map(|(request, outcome)| Some((request, outcome, outcome.finished.as_ref()?)));
    let on = |route: v1::Route| {
        finished().filter(move |(_, _, end)| end.decision.as_ref().is_some_and(|d| d.route() == route))
    };
    let local_easy = on(v1::Route::Local).filter(|(request, _, _)| request.shows == Shows::Easy);
    let (mut local, mut right) = (0, 0);
    for (request, outcome, _) in local_easy {
        local += 1;
        right += usize::from(request.answer == outcome.text.trim());
    }
    let declined_shown = outcomes.iter().filter(|(_, outcome)| outcome.text.contains("HANDOFF")).count();
    writeln!(out, "\nspent        {} — the simulated model's own bill says {}", money(spent), money(bill))?;
    writeln!(out, "saved        {} (estimate: against sending everything to the large model)", money(saved))?;
    writeln!(
        out,
        "easy, local  {local} of {}, {right} of them right",
        outcomes.iter().filter(|(r, _)| r.shows == Shows::Easy).count()
    )?;
    let escalated = on(v1::Route::Cascade).count();
    writeln!(out, "declined drafts: {escalated} went on to the large model, {declined_shown} were shown")?;
    if spent != bill {
        writeln!(out, "THE LEDGER AND THE BILL DIFFER")?;
    }
    Ok(spent == bill && declined_shown == 0)
}
