//! Metrics by name, one instrument set for Prometheus and OTLP. Knows only domain words.

mod metrics;
mod names;
#[cfg_attr(not(feature = "otlp"), path = "telemetry/no_otlp.rs")]
mod otlp;
mod setup;
pub mod spans;

pub use metrics::{AttemptRecord, Metrics, RequestRecord};
pub use setup::{LogFormat, Telemetry, TelemetryConfig, TelemetryError};
