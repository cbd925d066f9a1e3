//! What is counted, as typed calls. Instruments are made once; a call costs a few hash look-ups.

use super::names;
use crate::domain::{Cost, EntryStatus, NanoUsd, Route, Usage};
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, MeterProvider as _, UpDownCounter};
use opentelemetry::{KeyValue, Value};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Most tenants that get a label of their own; the rest are `other`.
const MAX_TENANTS: usize = 200;

/// A finished request.
#[derive(Clone, Debug)]
pub struct RequestRecord<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// The route; `None` if none was decided.
    pub route: Option<Route>,
    /// Name of the policy.
    pub policy: &'a str,
    /// Code of the reason, or of the error.
    pub reason: &'a str,
    /// How it ended.
    pub status: EntryStatus,
    /// How long it took.
    pub latency: Duration,
    /// What it cost.
    pub cost: Cost,
    /// Baseline minus cost.
    pub saved: NanoUsd,
}

/// A finished attempt.
#[derive(Clone, Debug)]
pub struct AttemptRecord<'a> {
    /// `Local` or `Remote`.
    pub route: Route,
    /// Provider.
    pub provider: &'a str,
    /// Model asked for.
    pub model: &'a str,
    /// Model that says it answered; empty if none.
    pub response_model: &'a str,
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
}

/// All instruments; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Instruments>);

struct Instruments {
    requests: Counter<u64>,
    request_duration: Histogram<f64>,
    cost: Counter<u64>,
    saved: UpDownCounter<i64>,
    cpu: Counter<f64>,
    decision_duration: Histogram<f64>,
    score: Histogram<f64>,
    attempts: Counter<u64>,
    client_duration: Histogram<f64>,
    client_tokens: Histogram<u64>,
    client_first_chunk: Histogram<f64>,
    server_duration: Histogram<f64>,
    server_first_token: Histogram<f64>,
    rule_errors: Gauge<u64>,
    ledger_backlog: Gauge<u64>,
    local_up: Gauge<u64>,
    local_waiting: Gauge<u64>,
    local_running: Gauge<u64>,
    remote_up: Gauge<u64>,
    reload_failed: Gauge<u64>,
    certified: Gauge<u64>,
    budget_used: Gauge<f64>,
    tenants: Mutex<HashSet<String>>,
}

impl Metrics {
    /// Instruments that record nowhere, for tests and one-off commands.
    pub fn disabled() -> Self {
        Self::new(&opentelemetry::metrics::noop::NoopMeterProvider::new().meter("sluice"))
    }

    /// Instruments of a meter.
    pub fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, bounds: &[f64], what: &'static str| {
            meter.f64_histogram(name).with_unit("s").with_boundaries(bounds.to_vec()).with_description(what).build()
        };
        let count = |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
        let gauge = |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        Self(Arc::new(Instruments {
            requests: count(names::REQUESTS, "Requests by tenant, route, policy, reason and status"),
            request_duration: seconds(names::REQUEST_DURATION, &names::SECONDS, "Time of a whole request"),
            cost: count(names::COST, "Money spent, in nano-USD"),
            saved: meter
                .i64_up_down_counter(names::SAVED)
                .with_description("All-remote baseline minus cost, in nano-USD: an estimate")
                .build(),
            cpu: meter
                .f64_counter(names::CPU)
                .with_unit("s")
                .with_description("Processor time of local models")
                .build(),
            decision_duration: seconds(
                names::DECISION_DURATION,
                &names::DECISION_SECONDS,
                "Time from arrival to decision",
            ),
            score: meter
                .f64_histogram(names::SCORE)
                .with_boundaries(names::TENTHS.to_vec())
                .with_description("Calibrated probability that a small model's answer is as good")
                .build(),
            attempts: count(names::ATTEMPTS, "Calls to backends by model and how they ended"),
            client_duration: seconds(names::CLIENT_DURATION, &names::SECONDS, "Time of a remote model's whole answer"),
            client_tokens: meter
                .u64_histogram(names::CLIENT_TOKENS)
                .with_unit("{token}")
                .with_boundaries(names::TOKENS.to_vec())
                .with_description("Tokens of an attempt")
                .build(),
            client_first_chunk: seconds(
                names::CLIENT_FIRST_CHUNK,
                &names::SECONDS,
                "Time to a remote model's first chunk",
            ),
            server_duration: seconds(names::SERVER_DURATION, &names::SECONDS, "Time of the local model's whole answer"),
            server_first_token: seconds(
                names::SERVER_FIRST_TOKEN,
                &names::SECONDS,
                "Time to the local model's first token",
            ),
            rule_errors: gauge(names::RULE_ERRORS, "Evaluation errors of a rule since its policy was loaded"),
            ledger_backlog: meter
                .u64_gauge(names::LEDGER_BACKLOG)
                .with_unit("By")
                .with_description("Journal bytes that the store has not taken")
                .build(),
            local_up: gauge(names::LOCAL_UP, "1 while a local model can serve"),
            local_waiting: gauge(names::LOCAL_WAITING, "Requests in a local model's queue"),
            local_running: gauge(names::LOCAL_RUNNING, "Requests that a local model decodes"),
            remote_up: gauge(names::REMOTE_UP, "1 while a remote model can be called, 0 while its breaker is open"),
            reload_failed: gauge(names::POLICY_RELOAD_FAILED, "1 if the last reload of policies failed"),
            certified: gauge(names::POLICY_CERTIFIED, "1 if a policy has a usable threshold"),
            budget_used: meter
                .f64_gauge(names::BUDGET_USED)
                .with_description("Share of a budget's limit that is spent or held")
                .build(),
            tenants: Mutex::default(),
        }))
    }

    fn tenant(&self, tenant: &str) -> Value {
        let mut known = self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(tenant) {
            return tenant.to_owned().into();
        }
        if known.len() >= MAX_TENANTS {
            return "other".into();
        }
        known.insert(tenant.to_owned());
        tenant.to_owned().into()
    }

    /// Counts a finished request.
    pub fn request_finished(&self, record: &RequestRecord<'_>) {
        let route = record.route.map_or("none", Route::as_str);
        let tenant = self.tenant(record.tenant);
        let policy = record.policy.to_owned();
        let attributes = [
            KeyValue::new("tenant", tenant.clone()),
            KeyValue::new("route", route),
            KeyValue::new("policy", policy.clone()),
            KeyValue::new("reason", record.reason.to_owned()),
            KeyValue::new("status", record.status.as_str()),
        ];
        self.0.requests.add(1, &attributes);
        let by_route = [KeyValue::new("route", route), KeyValue::new("status", record.status.as_str())];
        self.0.request_duration.record(record.latency.as_secs_f64(), &by_route);
        let of = [KeyValue::new("tenant", tenant), KeyValue::new("route", route), KeyValue::new("policy", policy)];
        self.0.saved.add(record.saved.nanos(), &of);
        let mut with_basis = of.to_vec();
        with_basis.push(KeyValue::new("basis", record.cost.basis.as_str()));
        self.0.cost.add(record.cost.amount.nanos().unsigned_abs(), &with_basis);
    }

    /// Counts a finished attempt.
    pub fn attempt_finished(&self, record: &AttemptRecord<'_>) {
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", "chat"),
            KeyValue::new("gen_ai.provider.name", record.provider.to_owned()),
            KeyValue::new("gen_ai.request.model", record.model.to_owned()),
        ];
        let mut ended = attributes.clone();
        ended.push(KeyValue::new("status", record.status.as_str()));
        self.0.attempts.add(1, &ended);
        if !record.response_model.is_empty() {
            attributes.push(KeyValue::new("gen_ai.response.model", record.response_model.to_owned()));
        }
        if !record.error.is_empty() {
            attributes.push(KeyValue::new("error.type", record.error.to_owned()));
        }
        let (duration, first) = match record.route {
            Route::Local => (&self.0.server_duration, &self.0.server_first_token),
            _ => (&self.0.client_duration, &self.0.client_first_chunk),
        };
        duration.record(record.latency.as_secs_f64(), &attributes);
        if let Some(first_chunk) = record.first_chunk {
            first.record(first_chunk.as_secs_f64(), &attributes);
        }
        self.0.cpu.add(record.cpu_seconds, &[KeyValue::new("model", record.model.to_owned())]);
        for (kind, tokens) in [("input", record.usage.input_tokens), ("output", record.usage.output_tokens)] {
            let mut of_kind = attributes.clone();
            of_kind.push(KeyValue::new("gen_ai.token.type", kind));
            self.0.client_tokens.record(tokens, &of_kind);
        }
    }

    /// Notes how long a decision took, from the request's arrival.
    pub fn decision_made(&self, took: Duration) {
        self.0.decision_duration.record(took.as_secs_f64(), &[]);
    }

    /// Notes a score.
    pub fn score(&self, model: &str, score: f64) {
        self.0.score.record(score, &[KeyValue::new("model", model.to_owned())]);
    }

    /// Evaluation errors of a rule so far.
    pub fn rule_errors(&self, policy: &str, rule: &str, errors: u64) {
        let of = [KeyValue::new("policy", policy.to_owned()), KeyValue::new("rule", rule.to_owned())];
        self.0.rule_errors.record(errors, &of);
    }

    /// Journal bytes that the store has not taken.
    pub fn ledger_backlog(&self, bytes: u64) {
        self.0.ledger_backlog.record(bytes, &[]);
    }

    /// State of a local model.
    pub fn local_model(&self, model: &str, up: bool, waiting: u64, running: u64) {
        let of = [KeyValue::new("model", model.to_owned())];
        self.0.local_up.record(u64::from(up), &of);
        self.0.local_waiting.record(waiting, &of);
        self.0.local_running.record(running, &of);
    }

    /// State of a remote model.
    pub fn remote_model(&self, model: &str, up: bool) {
        self.0.remote_up.record(u64::from(up), &[KeyValue::new("model", model.to_owned())]);
    }

    /// State of the policies: whether the last reload failed.
    pub fn policies(&self, reload_failed: bool) {
        self.0.reload_failed.record(u64::from(reload_failed), &[]);
    }

    /// Whether a policy has a usable threshold.
    pub fn policy_certified(&self, policy: &str, certified: bool) {
        self.0.certified.record(u64::from(certified), &[KeyValue::new("policy", policy.to_owned())]);
    }

    /// Share of a budget that is spent or held.
    pub fn budget_used(&self, tenant: &str, window: &'static str, share: f64) {
        let of = [KeyValue::new("tenant", self.tenant(tenant)), KeyValue::new("window", window)];
        self.0.budget_used.record(share, &of);
    }
}
