//! Traces and metrics by OTLP (cargo feature `otlp`).

use super::TelemetryError;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::MeterProviderBuilder;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

/// Libraries whose own spans would make the exporter feed itself.
const NOT_EXPORTED: &str = "info,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,reqwest=off,opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off";

/// Adds an exporter of metrics, and makes one of spans.
pub fn exporters(
    endpoint: &str,
    meters: MeterProviderBuilder,
    resource: Resource,
) -> Result<(MeterProviderBuilder, SdkTracerProvider), TelemetryError> {
    let failed = |error: &dyn std::fmt::Display| TelemetryError::Otlp(error.to_string());
    let metrics = MetricExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let meters = meters.with_periodic_exporter(metrics.map_err(|error| failed(&error))?);
    let spans = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let spans = spans.map_err(|error| failed(&error))?;
    Ok((meters, SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(spans).build()))
}

/// What hands spans to the exporter.
pub fn layer<S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync>(
    tracers: &SdkTracerProvider,
) -> Option<Box<dyn Layer<S> + Send + Sync>> {
    let exported = EnvFilter::new(NOT_EXPORTED);
    Some(tracing_opentelemetry::layer().with_tracer(tracers.tracer("sluice")).with_filter(exported).boxed())
}
