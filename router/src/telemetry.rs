//! Metrics by name, one instrument set for Prometheus and OTLP. Knows only domain words.

mod metrics;
mod names;
mod setup;
pub mod spans;

pub use metrics::{AttemptRecord, Metrics, RequestRecord};
pub use setup::{LogFormat, Telemetry, TelemetryConfig, TelemetryError};
