//! A whole gateway with a simulated large model behind it, in this process, for one test.

use clap::Parser as _;
use router::app::App;
use router::cli::simulate::shipped_prices;
use router::cli::{Arguments, run};
use router::domain::NanoUsd;
use router::evidence::certificate::{Certificate, Method};
use router::policy::Policy;
use router::settings::{Settings, Target};
use router::simulate::{Simulator, SimulatorConfig};
use sha2::{Digest as _, Sha256};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// `sluice serve` as a process of its own, with nothing in its environment but what `change` adds; and its address.
pub fn serve(change: impl FnOnce(&mut Command) -> &mut Command) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    // Settings refuse `SLUICE_*` variables that they don't know, and the test command has some of its own.
    command.arg("serve").env_clear().stdout(Stdio::piped());
    let mut child = change(&mut command).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map(Result::unwrap).find(|line| line.starts_with("READY "));
    let address = ready.expect("it gets ready without a hand").split(' ').nth(1).unwrap().to_owned();
    (child, address)
}

/// A certificate for a policy of this text, on `sluice-nano` and any large model.
pub fn certificate(policy: &str, text: &str, scorer_version: &str, threshold: Option<f64>) -> Certificate {
    Certificate {
        policy: policy.to_owned(),
        policy_hash: Policy::hash(text),
        scorer_version: scorer_version.to_owned(),
        evidence_hash: "0123456789abcdef".to_owned(),
        small: "sluice-nano".to_owned(),
        large: "*".to_owned(),
        threshold,
        n: 1_000,
        bound: -0.01,
        confidence: 0.9,
        target: 0.9,
        local_share: 1.0,
        needed: None,
        method: Method::Betting,
        date: "2026-11-27".to_owned(),
        reference: None,
    }
}

/// A running gateway and all that belongs to it.
pub struct House {
    pub app: App,
    pub simulator: Simulator,
    pub client: Client,
    pub folder: tempfile::TempDir,
    stop: CancellationToken,
}

/// Settings for a test: a free port, a folder of its own, the simulator as target `openai`.
pub fn settings(folder: &tempfile::TempDir, simulator: &Simulator) -> Settings {
    let mut settings = Settings::from(None, HashMap::new(), &|_| None).unwrap();
    settings.listen = "127.0.0.1:0".parse().unwrap();
    settings.data_dir = folder.path().join("data");
    settings.telemetry.filter = "error".to_owned();
    settings.shutdown_grace = Duration::from_secs(10);
    settings.targets.insert("openai".to_owned(), Target::at(simulator.base_url()));
    settings
}

/// A simulator that answers at once, with these answers where it is asked these questions.
pub async fn simulator(stop: &CancellationToken, answers: &[(&str, &str)]) -> Simulator {
    let answers = answers.iter().map(|(question, answer)| ((*question).to_owned(), (*answer).to_owned())).collect();
    let config = SimulatorConfig { prices: shipped_prices().unwrap(), answers, ..SimulatorConfig::default() };
    Simulator::start(config, &TaskTracker::new(), stop.clone()).await.unwrap()
}

impl House {
    /// Builds one with changed settings.
    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::knowing(&[], change).await
    }

    /// Builds one whose large model knows these answers.
    pub async fn knowing(answers: &[(&str, &str)], change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let simulator = simulator(&stop, answers).await;
        let mut settings = settings(&folder, &simulator);
        change(&mut settings);
        let pem = settings.tls.as_ref().map(|tls| std::fs::read_to_string(&tls.certificate).unwrap());
        let app = App::start(settings).await.unwrap();
        let client = Client::connect(&app.url(), None, pem.as_deref()).await.unwrap();
        Self { app, simulator, client, folder, stop }
    }

    /// Builds one.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// Shuts it down, and checks that the ledger's costs are the simulator's bill.
    pub async fn close(mut self) {
        let request = v1::SummarizeRequest::default();
        let rows = self.client.usage.summarize(request).await.unwrap().into_inner().rows;
        let spent: i64 = rows.iter().flat_map(|row| &row.cost).map(|cost| cost.nano_usd).sum();
        assert_eq!(NanoUsd::new(spent), self.simulator.total(), "the ledger and the bill differ");
        drop(self.client);
        self.app.shutdown().await;
        self.stop.cancel();
    }
}

/// What the bundled model answers to every [`easy`] question.
pub const EASY_ANSWER: &str = "not_spam";

/// A question that the bundled model answers right, another one for each number.
pub fn easy(number: usize) -> String {
    format!("category? [spam, not_spam] See you at the station at {number}.")
}

/// An ask at temperature 0 that must be served remotely.
pub fn remote(prompt: &str) -> v1::Ask {
    let mut ask = sluice_proto::client::ask(prompt);
    ask.placement = v1::Placement::RemoteOnly.into();
    ask.limits = Some(v1::Limits { temperature: Some(0.0), ..v1::Limits::default() });
    ask
}

/// An ask that must be served in this process.
pub fn local(prompt: &str) -> v1::Ask {
    let mut ask = sluice_proto::client::ask(prompt);
    ask.placement = v1::Placement::LocalOnly.into();
    ask
}

/// Asks for one whole answer.
pub async fn complete(client: &mut Client, ask: v1::Ask) -> Result<v1::CompleteResponse, tonic::Status> {
    Ok(client.gateway.complete(v1::CompleteRequest { ask: Some(ask) }).await?.into_inner())
}

/// Keys of two tenants, each key named after its role.
const KEYS: [(&str, &str, &str); 5] = [
    ("serve", "acme", "[\"serve\"]"),
    ("own", "acme", "[\"usage-own\"]"),
    ("all", "watch", "[\"usage-all\"]"),
    ("admin", "house", "[\"admin\"]"),
    ("other", "other", "[\"serve\", \"usage-own\"]"),
];

fn keys_file() -> String {
    let of = |(name, tenant, roles): &(&str, &str, &str)| {
        let sha256: String = Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\ntenant = \"{tenant}\"\nroles = {roles}\n")
    };
    KEYS.iter().map(of).collect()
}

/// A gateway with the keys above, and the folder of their file.
pub async fn guarded() -> (House, tempfile::TempDir) {
    guarded_with(|_| {}).await
}

/// The same with changed settings.
pub async fn guarded_with(change: impl FnOnce(&mut Settings)) -> (House, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    std::fs::write(&path, keys_file()).unwrap();
    let guard = |settings: &mut Settings| {
        settings.keys_file = Some(path);
        change(settings);
    };
    (House::with(guard).await, folder)
}

/// Runs a verb that brings its own runtime.
pub fn sluice(words: &[&str]) -> Result<String, String> {
    let words = ["sluice"].iter().chain(words).map(|word| (*word).to_owned());
    let arguments = Arguments::try_parse_from(words).unwrap();
    let thread = std::thread::spawn(move || {
        let mut out = Vec::new();
        run(arguments, &mut out).map_err(|error| format!("{error:#}")).map(|_| String::from_utf8(out).unwrap())
    });
    thread.join().unwrap()
}
