//! In place of OTLP where the cargo feature `otlp` is off: says so to those who set an endpoint.

use super::TelemetryError;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::MeterProviderBuilder;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::Layer;

/// Never makes any.
pub fn exporters(
    endpoint: &str,
    _meters: MeterProviderBuilder,
    _resource: Resource,
) -> Result<(MeterProviderBuilder, SdkTracerProvider), TelemetryError> {
    let why = format!("{endpoint} can't be served: this build lacks the cargo feature `otlp`; leave the setting out");
    Err(TelemetryError::Otlp(why))
}

/// There is nothing to hand spans to.
pub fn layer<S: Subscriber>(_tracers: &SdkTracerProvider) -> Option<Box<dyn Layer<S> + Send + Sync>> {
    None
}
