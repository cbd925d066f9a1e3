//! Logs to the terminal, metrics to Prometheus and, where an endpoint is set, traces and metrics by OTLP.

use super::{Metrics, otlp, spans};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::{Encoder as _, Registry, TextEncoder};
use std::time::Duration;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// One JSON object a line.
    Json,
}

/// What to set up.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Form of log lines.
    pub format: LogFormat,
    /// Filter of log lines, such as `info` or `router=debug,warn`.
    pub filter: String,
    /// OTLP endpoint (gRPC), such as `http://127.0.0.1:4317`; none sends nothing.
    pub otlp_endpoint: Option<String>,
}

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter can't be read.
    #[error("telemetry.log_filter: {0}; write it like `info` or `router=debug,warn`")]
    Filter(String),
    /// An exporter can't be made.
    #[error("telemetry.otlp_endpoint: {0}")]
    Otlp(String),
    /// The Prometheus exporter can't be made.
    #[error("the Prometheus exporter can't be made: {0}")]
    Prometheus(String),
}

/// Running telemetry.
pub struct Telemetry {
    registry: Registry,
    meters: SdkMeterProvider,
    tracers: Option<SdkTracerProvider>,
    metrics: Metrics,
}

impl Telemetry {
    /// Sets up metrics and, unless another is installed already, the log subscriber. Must run inside the runtime.
    ///
    /// # Errors
    /// A filter that can't be read, or an exporter that can't be made.
    pub fn start(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let resource = Resource::builder().with_service_name("sluice").build();
        let registry = Registry::new();
        let exporter =
            opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false).build();
        let exporter = exporter.map_err(|error| TelemetryError::Prometheus(error.to_string()))?;
        let mut meters = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(exporter);
        let mut tracers = None;
        if let Some(endpoint) = &config.otlp_endpoint {
            let made;
            (meters, made) = otlp::exporters(endpoint, meters, resource)?;
            tracers = Some(made);
        }
        let meters = meters.build();
        install_logs(config, tracers.as_ref())?;
        let metrics = Metrics::new(&meters.meter("sluice"));
        Ok(Self { registry, meters, tracers, metrics })
    }

    /// The instruments.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// All metrics in Prometheus's text form.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("# {error}\n"),
        }
    }

    /// Sends what is left; gives up after `patience`. Blocks, so it runs off the executor.
    pub async fn shutdown(self, patience: Duration) {
        let work = tokio::task::spawn_blocking(move || {
            if let Some(tracers) = self.tracers {
                let _unsent = tracers.shutdown();
            }
            let _unsent = self.meters.shutdown();
        });
        let _gave_up = tokio::time::timeout(patience, work).await;
    }
}

fn install_logs(config: &TelemetryConfig, tracers: Option<&SdkTracerProvider>) -> Result<(), TelemetryError> {
    let wrong = |error: &dyn std::fmt::Display| TelemetryError::Filter(error.to_string());
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| wrong(&error))?;
    let unseen = format!("{}=off", spans::TARGET).parse().map_err(|error| wrong(&error))?;
    let filter = filter.add_directive(unseen);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Pretty => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let spans = tracers.and_then(otlp::layer);
    // A second gateway in one process, as in tests, keeps the first one's logs.
    let _already_installed = tracing_subscriber::registry().with(spans).with(lines.with_filter(filter)).try_init();
    Ok(())
}
