//! One listener for everything: gRPC, `/healthz`, `/metrics`, the page. TLS where settings say so.

use super::auth::{KeyRole, Keys};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// Time between keep-alive pings to a silent client, and how long its answer may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Longest time a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Renders all metrics in Prometheus's text form.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

#[derive(Clone)]
struct Plain {
    keys: Arc<Keys>,
    render: RenderMetrics,
}

/// Routes beside gRPC.
pub fn routes(keys: Arc<Keys>, render: RenderMetrics, page: Router) -> Router {
    let plain = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .with_state(Plain { keys, render });
    plain.merge(page)
}

/// Metrics name tenants, so they need a key that may see all of them.
async fn metrics(State(plain): State<Plain>, headers: HeaderMap) -> axum::response::Response {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match plain.keys.caller(authorization) {
        Some(caller) if caller.may(KeyRole::UsageAll) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
            (kind, (plain.render)()).into_response()
        }
        Some(_) => (StatusCode::FORBIDDEN, "the key lacks the role usage-all\n").into_response(),
        None => (StatusCode::UNAUTHORIZED, "a key is needed: Authorization: Bearer KEY\n").into_response(),
    }
}

/// Serves until `stop` ends, then lets open calls finish for at most `grace`.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    tls: Option<TlsAcceptor>,
    connections: TaskTracker,
    stop: impl Future<Output = ()>,
    grace: Duration,
) {
    let graceful = GracefulShutdown::new();
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .adaptive_window(true);
    builder.http1().timer(TokioTimer::new());
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Out of file descriptors, say: wait a moment instead of spinning.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _slower_without = socket.set_nodelay(true);
        let (builder, routes, watcher, tls) = (builder.clone(), routes.clone(), graceful.watcher(), tls.clone());
        connections.spawn(async move {
            let service = TowerToHyperService::new(routes);
            let outcome = match tls {
                None => watcher.watch(builder.serve_connection(TokioIo::new(socket), service).into_owned()).await,
                Some(tls) => match handshake(&tls, socket).await {
                    Some(stream) => {
                        watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned()).await
                    }
                    None => return,
                },
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    // A client that ignores GOAWAY would hold us up for ever.
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end of `shutdown_grace`");
    }
}

async fn handshake(tls: &TlsAcceptor, socket: TcpStream) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    match tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}
