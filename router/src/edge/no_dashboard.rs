//! In place of the page where the cargo feature `dashboard` is off: says so.

use super::grpc::Services;
use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

/// Routes of the page.
pub fn routes(_services: Services) -> Router {
    Router::new().route("/", get(absent)).route("/api/{*rest}", get(absent))
}

async fn absent() -> Response {
    let message = "this build has no page: it lacks the cargo feature `dashboard`; use `sluice usage` or gRPC\n";
    (StatusCode::NOT_IMPLEMENTED, message).into_response()
}
