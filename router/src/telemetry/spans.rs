//! Spans of one call: the call, its request, its attempts. Names and attributes follow the GenAI conventions.
//!
//! Call and attempt spans have a target of their own that log lines leave out: without OTLP they cost nothing. No span
//! ever carries text of a prompt or an answer.

use super::AttemptRecord;
use super::names::CHAT;
use crate::domain::{Decision, EntryStatus, FinishReason, Limits, Request, Route};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::{Empty, display};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Target of the spans that only OTLP is to see: the word in the macros below.
pub(super) const TARGET: &str = "sluice::trace";

/// The caller's trace, as its headers say.
struct Caller<'a> {
    traceparent: &'a str,
    tracestate: &'a str,
}

impl Extractor for Caller<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(self.traceparent),
            "tracestate" => Some(self.tracestate),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// The span of a call at the edge, such as `sluice.v1.GatewayService/Complete`; a child of the caller's own span where W3C
/// headers (empty if absent) name one. Headers that can't be read start a trace of our own.
pub fn call_span(method: &'static str, traceparent: &str, tracestate: &str) -> Span {
    let span = info_span!(
        target: "sluice::trace", "call",
        otel.name = method, otel.kind = "server", rpc.system = "grpc", rpc.method = method,
    );
    if !traceparent.is_empty() && !span.is_disabled() {
        let parent = TraceContextPropagator::new().extract(&Caller { traceparent, tracestate });
        let _exported_without = span.set_parent(parent);
    }
    span
}

/// The span of a request from its decision to its end. Log lines within name it.
pub fn request_span(request: &Request, decision: &Decision) -> Span {
    info_span!(
        "request",
        request = %request.id,
        tenant = request.tenant.as_str(),
        policy = decision.policy.name.as_str(),
        route = decision.route.as_str(),
        reason = decision.reason.code.as_str(),
    )
}

/// An attempt that is about to be made.
pub struct AttemptAsked<'a> {
    /// `Local` or `Remote`.
    pub route: Route,
    /// Provider.
    pub provider: &'a str,
    /// Model asked for.
    pub model: &'a str,
    /// Whether the client sees the answer as it is made.
    pub stream: bool,
    /// Limits and sampling that were asked for.
    pub limits: &'a Limits,
    /// Most tokens to generate.
    pub max_output_tokens: u32,
}

/// The span of an attempt: `chat MODEL`, `CLIENT` of a remote model, `INTERNAL` of one in this process.
pub fn attempt_span(asked: &AttemptAsked<'_>) -> Span {
    info_span!(
        target: "sluice::trace", "attempt",
        otel.name = format!("{CHAT} {}", asked.model),
        otel.kind = if asked.route == Route::Local { "internal" } else { "client" },
        otel.status_code = Empty,
        gen_ai.operation.name = CHAT,
        gen_ai.provider.name = asked.provider,
        gen_ai.request.model = asked.model,
        gen_ai.request.stream = asked.stream,
        gen_ai.request.max_tokens = i64::from(asked.max_output_tokens),
        gen_ai.request.temperature = asked.limits.temperature.map(f64::from),
        gen_ai.request.top_p = asked.limits.top_p.map(f64::from),
        gen_ai.request.seed = asked.limits.seed.map(u64::cast_signed),
        gen_ai.response.model = Empty,
        gen_ai.response.finish_reasons = Empty,
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        gen_ai.usage.cache_read.input_tokens = Empty,
        gen_ai.usage.reasoning.output_tokens = Empty,
        error.type = Empty,
        sluice.attempt.status = Empty,
    )
}

/// Writes into the current span, that of the attempt, how it ended.
pub fn attempt_ended(record: &AttemptRecord<'_>, finish: Option<FinishReason>) {
    let span = Span::current();
    span.record("sluice.attempt.status", record.status.as_str());
    span.record("gen_ai.usage.input_tokens", integer(record.usage.input_tokens));
    span.record("gen_ai.usage.output_tokens", integer(record.usage.output_tokens));
    span.record("gen_ai.usage.cache_read.input_tokens", integer(record.usage.cached_input_tokens));
    span.record("gen_ai.usage.reasoning.output_tokens", integer(record.usage.reasoning_tokens));
    if !record.response_model.is_empty() {
        span.record("gen_ai.response.model", record.response_model);
    }
    if let Some(finish) = finish {
        span.record("gen_ai.response.finish_reasons", display(finish.as_str()));
    }
    if !record.error.is_empty() {
        span.record("error.type", record.error);
    }
    if matches!(record.status, EntryStatus::Failed | EntryStatus::Cut | EntryStatus::DeadlineExceeded) {
        span.record("otel.status_code", "ERROR");
    }
}

/// Exporters know signed integers only; unsigned ones would go out as text.
fn integer(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}
