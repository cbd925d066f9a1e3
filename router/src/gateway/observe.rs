//! What telemetry hears of attempts and requests.

use super::run::Run;
use super::{Admitted, Gateway};
use crate::catalog::Model;
use crate::domain::{Decision, EntryStatus, FinishReason, Route, Usage};
use crate::telemetry::{AttemptRecord, spans};
use std::time::Duration;
use tracing::Span;

/// A finished attempt.
pub struct Observed<'a> {
    /// The model asked for.
    pub model: &'a Model,
    /// `Local` or `Remote`.
    pub route: Route,
    /// How it ended.
    pub status: EntryStatus,
    /// Why it failed; empty if it did not.
    pub error: &'a str,
    /// How long it took.
    pub latency: Duration,
    /// Time to the first chunk.
    pub first_chunk: Option<Duration>,
    /// Pieces of text that it gave.
    pub chunks: u64,
    /// Tokens.
    pub usage: Usage,
    /// Processor time, seconds.
    pub cpu_seconds: f64,
    /// The model's own name for itself.
    pub response_model: &'a str,
    /// Why a complete answer ended.
    pub finish: Option<FinishReason>,
}

/// The span of a request from its decision on.
pub(super) fn request_span(admitted: &Admitted, decision: &Decision) -> Span {
    spans::request_span(&admitted.request, decision)
}

/// The span of one attempt of a run.
pub(super) fn attempt_span(run: &Run, model: &Model, route: Route, max_output_tokens: u32) -> Span {
    let request = &run.admitted.request;
    spans::attempt_span(&spans::AttemptAsked {
        route,
        provider: model.provider(),
        model: model.id.as_str(),
        stream: request.stream,
        limits: &request.limits,
        max_output_tokens,
    })
}

impl Gateway {
    /// Counts an attempt and writes its end into its span, which is the current one.
    pub(super) fn observe_attempt(&self, observed: &Observed<'_>) {
        let record = AttemptRecord {
            route: observed.route,
            provider: observed.model.provider(),
            model: observed.model.id.as_str(),
            response_model: observed.response_model,
            status: observed.status,
            error: observed.error,
            latency: observed.latency,
            first_chunk: observed.first_chunk,
            chunks: observed.chunks,
            usage: observed.usage,
            cpu_seconds: observed.cpu_seconds,
        };
        self.metrics.attempt_finished(&record);
        spans::attempt_ended(&record, observed.finish);
    }
}
