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
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

/// Time between keep-alive pings to a silent client, and how long its answer may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Longest time from a connection to its first byte and the end of its TLS handshake: silence must not cost us sockets.
const OPENING: Duration = Duration::from_secs(10);

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

/// All routes of the port. What nobody knows is answered in the caller's own protocol.
pub fn with_grpc(grpc: Routes, plain: Router) -> Router {
    grpc.into_axum_router().merge(plain).fallback(unknown)
}

async fn unknown(headers: HeaderMap) -> axum::response::Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind.starts_with("application/grpc") {
        return tonic::Status::unimplemented("no such service; reflection lists those there are").into_http();
    }
    (StatusCode::NOT_FOUND, "there is no such page\n").into_response()
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
    let stopping = CancellationToken::new();
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
        let stopping = stopping.clone();
        connections.spawn(async move {
            let Some(Some(stream)) = stopping.run_until_cancelled_owned(open(socket, tls)).await else { return };
            let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    stopping.cancel();
    drop(listener);
    // A client that ignores GOAWAY would hold us up for ever.
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end of `shutdown_grace`");
    }
}

/// A connection on which something was said and, with TLS, agreed on.
async fn open(socket: TcpStream, tls: Option<TlsAcceptor>) -> Option<Either<TcpStream, TlsStream<TcpStream>>> {
    let opening = async {
        match tls {
            None => socket.readable().await.map(|()| Either::Left(socket)),
            Some(tls) => tls.accept(socket).await.map(Either::Right),
        }
    };
    match tokio::time::timeout(OPENING, opening).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a connection could not be opened");
            None
        }
        Err(_) => None,
    }
}
