//! Wire ↔ domain: the only place that knows protocols. One port carries gRPC, health, reflection, metrics and the page.

pub mod auth;
#[cfg_attr(not(feature = "dashboard"), path = "edge/no_dashboard.rs")]
pub mod dashboard;
pub mod grpc;
pub mod http;
mod status;
