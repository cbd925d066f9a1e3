//! kill -9 under load, again and again: every attempt that reached the upstream has exactly one row in the ledger and the
//! other way round, interrupted ones are booked, and the next start needs no hand.

use crate::support::{complete, remote, serve, simulator};
use router::simulate::{Fault, Simulator};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Child;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const ROUNDS: u64 = 20;
const CLIENTS: u64 = 6;

struct Gateway {
    child: Child,
    address: String,
}

impl Gateway {
    fn start(folder: &Path, simulator: &Simulator) -> Self {
        let config = folder.join("sluice.toml");
        let data = folder.join("data");
        let url = simulator.base_url();
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata_dir = \"{}\"\n[targets.openai]\nbase_url = \"{url}\"\nmax_retries = 1\n\
             [telemetry]\nlog_filter = \"error\"\n",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let (child, address) = serve(|command| command.arg("--config").arg(&config));
        Self { child, address }
    }

    /// As the system does it when memory runs out: no goodbye.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Asks without end until the gateway is gone.
async fn load(address: String, round: u64, client: u64) {
    let Ok(mut connection) = Client::connect(&address, None, None).await else { return };
    for number in 0.. {
        if complete(&mut connection, remote(&format!("round {round} client {client} question {number}"))).await.is_err()
        {
            return;
        }
    }
}

async fn all_entries(client: &mut Client) -> Vec<v1::Entry> {
    let mut entries = Vec::new();
    let mut request = v1::ListEntriesRequest { page_size: 500, ..v1::ListEntriesRequest::default() };
    loop {
        let page = client.usage.list_entries(request.clone()).await.unwrap().into_inner();
        entries.extend(page.entries);
        if page.next_page_token.is_empty() {
            return entries;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_by_twenty_kills() {
    let folder = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let simulator = simulator(&stop, &[]).await;
    simulator.always([Fault::DelayTokens(Duration::from_millis(2))]);
    for round in 0..ROUNDS {
        let gateway = Gateway::start(folder.path(), &simulator);
        let address = gateway.address.clone();
        let clients = (0..CLIENTS).map(|client| load(address.clone(), round, client));
        let clients = tokio::task::JoinSet::from_iter(clients);
        tokio::time::sleep(Duration::from_millis(100 + 17 * round)).await;
        gateway.kill();
        clients.join_all().await;
    }
    let gateway = Gateway::start(folder.path(), &simulator);
    let mut client = Client::connect(&gateway.address, None, None).await.unwrap();
    let entries = all_entries(&mut client).await;
    let attempts: Vec<&v1::Attempt> = entries.iter().flat_map(|entry| &entry.attempts).collect();
    let booked: BTreeSet<&str> = attempts.iter().map(|attempt| attempt.id.as_str()).collect();
    assert_eq!(booked.len(), attempts.len(), "one row an attempt");
    let seen: BTreeSet<String> = simulator.requests().into_iter().map(|request| request.attempt).collect();
    let unbooked: Vec<&String> = seen.iter().filter(|id| !booked.contains(id.as_str())).collect();
    assert!(unbooked.is_empty(), "reached the upstream without a row: {unbooked:?}");
    // A row without a call is one that was killed between the journal and the socket: booked, at its hold.
    for attempt in attempts.iter().filter(|attempt| !seen.contains(&attempt.id)) {
        assert_eq!(attempt.status, "interrupted", "never reached the upstream: {attempt:?}");
    }
    let interrupted: Vec<_> = attempts.iter().filter(|attempt| attempt.status == "interrupted").collect();
    assert!(!interrupted.is_empty(), "kills under load interrupt something");
    for attempt in &interrupted {
        let cost = attempt.cost.unwrap();
        assert_eq!((cost.nano_usd, cost.basis()), (attempt.hold_nano_usd, v1::CostBasis::Bound));
    }
    let bill: i64 = simulator.total().nanos();
    let spent: i64 = entries.iter().map(|entry| entry.cost.unwrap().nano_usd).sum();
    assert!(spent >= bill, "booked {spent}, billed {bill}: never less than the truth");
    assert!(attempts.iter().all(|attempt| !attempt.status.is_empty()), "nothing is left open");
    let whole: i64 =
        attempts.iter().filter(|attempt| attempt.status == "ok").map(|attempt| attempt.cost.unwrap().nano_usd).sum();
    assert!(whole > 0 && entries.len() > ROUNDS as usize);
    drop(client);
    gateway.kill();
    stop.cancel();
}
