//! What telemetry hears of attempts and requests.

use super::Gateway;
use crate::catalog::Model;
use crate::domain::{EntryStatus, Route, Usage};
use crate::telemetry::AttemptRecord;
use std::time::Duration;

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
    /// Tokens.
    pub usage: Usage,
    /// Processor time, seconds.
    pub cpu_seconds: f64,
    /// The model's own name for itself.
    pub response_model: &'a str,
}

impl Gateway {
    /// Counts an attempt.
    pub(super) fn observe_attempt(&self, observed: &Observed<'_>) {
        self.metrics.attempt_finished(&AttemptRecord {
            route: observed.route,
            provider: observed.model.provider(),
            model: observed.model.id.as_str(),
            response_model: observed.response_model,
            status: observed.status,
            error: observed.error,
            latency: observed.latency,
            first_chunk: observed.first_chunk,
            usage: observed.usage,
            cpu_seconds: observed.cpu_seconds,
        });
    }
}
