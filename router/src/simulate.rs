//! A simulated large model: a server on a loopback socket that speaks the real OpenAI chat protocol, streaming and unary,
//! answers from a table, counts tokens, keeps its own bill, and fails on command. `sluice demo`, the integration tests and
//! the benches run against it, so that nobody needs a key or a network to see the whole path work.
//!
//! It says what it is: every response carries `x-sluice-simulated: true` and a model name that begins with `simulated`, and an
//! answer that is not in its table says so in its first words. Its tokens are [`tokens`], not any vendor's.
//!
//! It knows nothing of the gateway: what the two agree on goes over HTTP, and its bill is kept apart so that the gateway's
//! ledger can be checked against it.

mod bill;
mod fault;
mod protocol;
mod respond;

pub use bill::{BillRow, Ending, Prices, SeenRequest};
pub use fault::{Fault, UsageForm};
pub use protocol::tokens;

use crate::domain::NanoUsd;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use bill::Books;
use fault::Faults;
use secrecy::{ExposeSecret, SecretString};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Name of the header that every response carries.
pub const SIMULATED_HEADER: &str = "x-sluice-simulated";

/// The model name that [`Simulator`] goes by where a caller has no other wish.
pub const SIMULATED_MODEL: &str = "simulated-large";

/// Largest request body that is read: 32 MiB.
const MAX_REQUEST_BYTES: usize = 32 << 20;

/// How a simulated large model behaves.
#[derive(Clone, Debug, Default)]
pub struct SimulatorConfig {
    /// Answers by the last user message, compared without surrounding white space.
    pub answers: HashMap<String, String>,
    /// What it charges.
    pub prices: Prices,
    /// The key callers must present as a bearer token; `None` takes any or none.
    pub key: Option<SecretString>,
    /// Time to the first token.
    pub first_token_delay: Duration,
    /// Time between two tokens.
    pub token_delay: Duration,
}

/// A running simulated large model; it stops when its cancellation token fires. Clones are the same server.
#[derive(Clone)]
pub struct Simulator {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What the server's handlers share.
struct Shared {
    config: SimulatorConfig,
    books: Books,
    faults: Faults,
    connections: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Simulator {
    /// Binds a free loopback port and serves until `stop` fires.
    ///
    /// # Errors
    /// No loopback port can be bound.
    pub async fn start(config: SimulatorConfig, tasks: &TaskTracker, stop: CancellationToken) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        // Without this a small chunk waits for the acknowledgement of the one before it.
        let connections = Arc::new(AtomicU64::new(0));
        let counted = connections.clone();
        let listener = listener.tap_io(move |socket| {
            counted.fetch_add(1, Ordering::Relaxed);
            drop(socket.set_nodelay(true));
        });
        let books = Books::new(config.prices);
        let shared = Arc::new(Shared { config, books, faults: Faults::default(), connections, stop: stop.clone() });
        let routes = axum::Router::new()
            .route("/v1/chat/completions", post(respond::chat_completions))
            .route("/bill", get(show_bill))
            .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
            .with_state(shared.clone());
        tasks.spawn(async move {
            let serving = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "the simulated large model stopped");
            }
        });
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL that a client of the protocol is given: `http://127.0.0.1:PORT/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Connections that were opened to it.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Every request that arrived, oldest first, refused ones included.
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.shared.books.requests()
    }

    /// Every request that costs something, oldest first.
    pub fn bill(&self) -> Vec<BillRow> {
        self.shared.books.rows()
    }

    /// The sum of the bill.
    pub fn total(&self) -> NanoUsd {
        self.bill().iter().map(|row| row.cost).sum()
    }

    /// The next request that arrives behaves like this, the one after the next call like that, and so on.
    pub fn script(&self, faults: impl Into<Vec<Fault>>) {
        self.shared.faults.script(faults.into());
    }

    /// Every request that has no script of its own behaves like this from now on; an empty list ends it.
    pub fn always(&self, faults: impl Into<Vec<Fault>>) {
        self.shared.faults.always(faults.into());
    }
}

impl Shared {
    /// Whether the caller's key is the right one.
    fn knows(&self, headers: &http::HeaderMap) -> bool {
        let Some(key) = &self.config.key else { return true };
        let offered = headers.get(http::header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let offered = offered.strip_prefix(b"Bearer ").unwrap_or_default();
        offered.ct_eq(key.expose_secret().as_bytes()).into()
    }
}

/// The bill and the requests as JSON, for programs that run in another process.
async fn show_bill(State(shared): State<Arc<Shared>>) -> Response {
    let headers = [(SIMULATED_HEADER, "true")];
    (headers, axum::Json(shared.books.to_json())).into_response()
}

#[cfg(test)]
mod tests;
