//! What is counted, as typed calls. Instruments are made once; a call costs a few hash look-ups.

use super::names::{self, Metric, attribute};
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
    /// Pieces of text that it gave.
    pub chunks: u64,
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
    baseline: Counter<u64>,
    saved: UpDownCounter<i64>,
    cpu: Counter<f64>,
    decision_duration: Histogram<f64>,
    score: Histogram<f64>,
    attempts: Counter<u64>,
    client_duration: Histogram<f64>,
    client_tokens: Histogram<u64>,
    client_first_chunk: Histogram<f64>,
    client_per_chunk: Histogram<f64>,
    server_duration: Histogram<f64>,
    server_first_token: Histogram<f64>,
    server_per_token: Histogram<f64>,
    rule_errors: Gauge<u64>,
    ledger_backlog: Gauge<u64>,
    local_up: Gauge<u64>,
    local_waiting: Gauge<u64>,
    local_running: Gauge<u64>,
    remote_up: Gauge<u64>,
    reload_failed: Gauge<u64>,
    certified: Gauge<u64>,
    budget_used: Gauge<f64>,
    shadow_runs: Counter<u64>,
    second_opinions: Counter<u64>,
    live_graded: Gauge<u64>,
    live_quality: Gauge<f64>,
    live_calibration: Gauge<f64>,
    live_drift: Gauge<f64>,
    live_breach: Gauge<u64>,
    learn_outcomes: Gauge<u64>,
    learn_scorers: Gauge<u64>,
    learn_local: Gauge<f64>,
    tenants: Mutex<HashSet<String>>,
}

impl Metrics {
    /// Instruments that record nowhere, for tests and one-off commands.
    pub fn disabled() -> Self {
        Self::new(&opentelemetry::metrics::noop::NoopMeterProvider::new().meter("sluice"))
    }

    /// Instruments of a meter.
    pub fn new(meter: &Meter) -> Self {
        let histogram = |metric: Metric, bounds: &[f64]| {
            let builder = meter.f64_histogram(metric.name).with_boundaries(bounds.to_vec());
            builder.with_unit(metric.unit).with_description(metric.what).build()
        };
        let seconds = |metric: Metric| histogram(metric, &names::SECONDS);
        let count = |Metric { name, unit, what }: Metric| {
            meter.u64_counter(name).with_unit(unit).with_description(what).build()
        };
        let gauge =
            |Metric { name, unit, what }: Metric| meter.u64_gauge(name).with_unit(unit).with_description(what).build();
        let share =
            |Metric { name, unit, what }: Metric| meter.f64_gauge(name).with_unit(unit).with_description(what).build();
        let Metric { name, unit, what } = names::CLIENT_TOKENS;
        let client_tokens = meter.u64_histogram(name).with_boundaries(names::TOKENS.to_vec());
        let client_tokens = client_tokens.with_unit(unit).with_description(what).build();
        Self(Arc::new(Instruments {
            requests: count(names::REQUESTS),
            request_duration: seconds(names::REQUEST_DURATION),
            cost: count(names::COST),
            baseline: count(names::BASELINE),
            saved: meter.i64_up_down_counter(names::SAVED.name).with_description(names::SAVED.what).build(),
            cpu: meter.f64_counter(names::CPU.name).with_unit("s").with_description(names::CPU.what).build(),
            decision_duration: histogram(names::DECISION_DURATION, &names::DECISION_SECONDS),
            score: histogram(names::SCORE, &names::TENTHS),
            attempts: count(names::ATTEMPTS),
            client_duration: seconds(names::CLIENT_DURATION),
            client_tokens,
            client_first_chunk: seconds(names::CLIENT_FIRST_CHUNK),
            client_per_chunk: histogram(names::CLIENT_PER_CHUNK, &names::TOKEN_SECONDS),
            server_duration: seconds(names::SERVER_DURATION),
            server_first_token: seconds(names::SERVER_FIRST_TOKEN),
            server_per_token: histogram(names::SERVER_PER_TOKEN, &names::TOKEN_SECONDS),
            rule_errors: gauge(names::RULE_ERRORS),
            ledger_backlog: gauge(names::LEDGER_BACKLOG),
            local_up: gauge(names::LOCAL_UP),
            local_waiting: gauge(names::LOCAL_WAITING),
            local_running: gauge(names::LOCAL_RUNNING),
            remote_up: gauge(names::REMOTE_UP),
            reload_failed: gauge(names::POLICY_RELOAD_FAILED),
            certified: gauge(names::POLICY_CERTIFIED),
            budget_used: meter.f64_gauge(names::BUDGET_USED.name).with_description(names::BUDGET_USED.what).build(),
            shadow_runs: count(names::SHADOW_RUNS),
            second_opinions: count(names::SECOND_OPINIONS),
            live_graded: gauge(names::LIVE_GRADED),
            live_quality: share(names::LIVE_QUALITY),
            live_calibration: share(names::LIVE_CALIBRATION),
            live_drift: share(names::LIVE_DRIFT),
            live_breach: gauge(names::LIVE_BREACH),
            learn_outcomes: gauge(names::LEARN_OUTCOMES),
            learn_scorers: gauge(names::LEARN_SCORERS),
            learn_local: share(names::LEARN_LOCAL),
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
        self.0.baseline.add((record.saved + record.cost.amount).nanos().unsigned_abs(), &of);
        let mut with_basis = of.to_vec();
        with_basis.push(KeyValue::new("basis", record.cost.basis.as_str()));
        self.0.cost.add(record.cost.amount.nanos().unsigned_abs(), &with_basis);
    }

    /// Counts a finished attempt.
    pub fn attempt_finished(&self, record: &AttemptRecord<'_>) {
        let mut attributes = vec![
            KeyValue::new(attribute::OPERATION, names::CHAT),
            KeyValue::new(attribute::PROVIDER, record.provider.to_owned()),
            KeyValue::new(attribute::REQUEST_MODEL, record.model.to_owned()),
        ];
        let mut ended = attributes.clone();
        ended.push(KeyValue::new("status", record.status.as_str()));
        self.0.attempts.add(1, &ended);
        if !record.response_model.is_empty() {
            attributes.push(KeyValue::new(attribute::RESPONSE_MODEL, record.response_model.to_owned()));
        }
        if !record.error.is_empty() {
            attributes.push(KeyValue::new(attribute::ERROR, record.error.to_owned()));
        }
        let instruments = &self.0;
        let (duration, first, each, pieces) = match record.route {
            Route::Local => {
                instruments.cpu.add(record.cpu_seconds, &[KeyValue::new("model", record.model.to_owned())]);
                let tokens = record.usage.output_tokens;
                (&instruments.server_duration, &instruments.server_first_token, &instruments.server_per_token, tokens)
            }
            _ => {
                let first = &instruments.client_first_chunk;
                (&instruments.client_duration, first, &instruments.client_per_chunk, record.chunks)
            }
        };
        duration.record(record.latency.as_secs_f64(), &attributes);
        if let Some(first_chunk) = record.first_chunk {
            first.record(first_chunk.as_secs_f64(), &attributes);
            if let later @ 1.. = pieces.saturating_sub(1) {
                let rest = record.latency.saturating_sub(first_chunk);
                each.record(rest.as_secs_f64() / later as f64, &attributes);
            }
        }
        for (kind, tokens) in [("input", record.usage.input_tokens), ("output", record.usage.output_tokens)] {
            let mut of_kind = attributes.clone();
            of_kind.push(KeyValue::new(attribute::TOKEN_TYPE, kind));
            self.0.client_tokens.record(tokens, &of_kind);
        }
    }

    /// Adds what a shadow run cost: nobody was served, so it counts among money only.
    pub fn shadow_spent(&self, tenant: &str, policy: &str, cost: Cost) {
        let of = [
            KeyValue::new("tenant", self.tenant(tenant)),
            KeyValue::new("route", "shadow"),
            KeyValue::new("policy", policy.to_owned()),
        ];
        self.0.saved.add(-cost.amount.nanos(), &of);
        let mut with_basis = of.to_vec();
        with_basis.push(KeyValue::new("basis", cost.basis.as_str()));
        self.0.cost.add(cost.amount.nanos().unsigned_abs(), &with_basis);
    }

    /// Counts a shadow run: which side was `asked`, and how it `ended`.
    pub fn shadow_run(&self, policy: &str, asked: Route, ended: &'static str) {
        let of = [
            KeyValue::new("policy", policy.to_owned()),
            KeyValue::new("asked", asked.as_str()),
            KeyValue::new("ended", ended),
        ];
        self.0.shadow_runs.add(1, &of);
    }

    /// Counts a second opinion on a draft: that it `agrees`, `differs`, or that `nothing` was said.
    pub fn second_opinion(&self, policy: &str, said: &'static str) {
        let of = [KeyValue::new("policy", policy.to_owned()), KeyValue::new("said", said)];
        self.0.second_opinions.add(1, &of);
    }

    /// Graded requests of a policy.
    pub fn live_graded(&self, policy: &str, graded: u64) {
        self.0.live_graded.record(graded, &[KeyValue::new("policy", policy.to_owned())]);
    }

    /// A share of quality: `promised`, `kept`, `low` or `high`.
    pub fn live_quality(&self, policy: &str, end: &'static str, share: f64) {
        let of = [KeyValue::new("policy", policy.to_owned()), KeyValue::new("end", end)];
        self.0.live_quality.record(share, &of);
    }

    /// Calibration error of a policy's scores.
    pub fn live_calibration(&self, policy: &str, error: f64) {
        self.0.live_calibration.record(error, &[KeyValue::new("policy", policy.to_owned())]);
    }

    /// How far a feature of requests has shifted.
    pub fn live_drift(&self, policy: &str, feature: &'static str, shift: f64) {
        let of = [KeyValue::new("policy", policy.to_owned()), KeyValue::new("of", feature)];
        self.0.live_drift.record(shift, &of);
    }

    /// Outcomes that a policy's learning took in, by what they were used for.
    pub fn learnt_outcomes(&self, policy: &str, used_for: &'static str, count: u64) {
        let of = [KeyValue::new("policy", policy.to_owned()), KeyValue::new("used_for", used_for)];
        self.0.learn_outcomes.record(count, &of);
    }

    /// Scorers that were tested for a policy while it served, and what the certificate in force lets stay local.
    pub fn learnt(&self, policy: &str, scorers: u64, local_share: f64) {
        let of = [KeyValue::new("policy", policy.to_owned())];
        self.0.learn_scorers.record(scorers, &of);
        self.0.learn_local.record(local_share, &of);
    }

    /// Whether live checks of a policy gave way: of its `quality` or of `drift`.
    pub fn live_breach(&self, policy: &str, of: &'static str, breached: bool) {
        let labels = [KeyValue::new("policy", policy.to_owned()), KeyValue::new("of", of)];
        self.0.live_breach.record(u64::from(breached), &labels);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::CostBasis;
    use crate::telemetry::{LogFormat, Telemetry, TelemetryConfig};

    fn telemetry() -> Telemetry {
        let config = TelemetryConfig { format: LogFormat::Json, filter: "error".to_owned(), otlp_endpoint: None };
        Telemetry::start(&config).unwrap()
    }

    fn request(tenant: &str, cost: i64, saved: i64) -> RequestRecord<'_> {
        RequestRecord {
            tenant,
            route: Some(Route::Remote),
            policy: "balanced",
            reason: "score_below_threshold",
            status: EntryStatus::Ok,
            latency: Duration::from_millis(20),
            cost: Cost { amount: NanoUsd::new(cost), basis: CostBasis::Reported },
            saved: NanoUsd::new(saved),
        }
    }

    fn attempt(route: Route, error: &str) -> AttemptRecord<'_> {
        AttemptRecord {
            route,
            provider: "openai",
            model: "openai/large",
            response_model: "large-2026",
            status: EntryStatus::Ok,
            error,
            latency: Duration::from_millis(110),
            first_chunk: Some(Duration::from_millis(10)),
            chunks: 5,
            usage: Usage { input_tokens: 30, output_tokens: 11, ..Usage::default() },
            cpu_seconds: 0.25,
        }
    }

    fn everything(metrics: &Metrics) {
        metrics.request_finished(&request("acme", 700, 300));
        metrics.attempt_finished(&attempt(Route::Remote, ""));
        metrics.attempt_finished(&attempt(Route::Local, "overloaded"));
        metrics.decision_made(Duration::from_micros(80));
        metrics.score("small", 0.75);
        metrics.rule_errors("balanced", "a rule", 2);
        metrics.ledger_backlog(9);
        metrics.local_model("small", true, 1, 2);
        metrics.remote_model("openai/large", false);
        metrics.policies(true);
        metrics.policy_certified("balanced", true);
        metrics.budget_used("acme", "day", 0.5);
        metrics.live_graded("balanced", 12);
        metrics.live_quality("balanced", "promised", 0.95);
        metrics.live_calibration("balanced", 0.02);
        metrics.live_drift("balanced", "bytes", 0.1);
        metrics.live_breach("balanced", "quality", true);
        metrics.learnt_outcomes("balanced", "fit", 60);
        metrics.learnt("balanced", 1, 0.2);
        metrics.shadow_run("balanced", Route::Remote, "graded");
        metrics.second_opinion("balanced", "differs");
        metrics.shadow_spent("acme", "balanced", Cost { amount: NanoUsd::new(40), basis: CostBasis::Reported });
    }

    /// Every metric of the table is exposed under the name that dashboards rely on.
    #[test]
    fn every_metric_is_exposed() {
        let telemetry = telemetry();
        everything(&telemetry.metrics());
        let text = telemetry.render();
        for metric in names::ALL {
            let exposed = metric.name.replace('.', "_");
            let unit = match metric.unit {
                "s" => "_seconds",
                "By" => "_bytes",
                _ => "",
            };
            let there = text.lines().any(|line| line.starts_with(&format!("# TYPE {exposed}{unit}")));
            assert!(there, "{exposed}{unit} is not in\n{text}");
            assert!(text.contains(metric.what), "{} has its description", metric.name);
        }
    }

    #[test]
    fn figures_and_labels_are_right() {
        let telemetry = telemetry();
        everything(&telemetry.metrics());
        let text = telemetry.render();
        let check = |start: &str, end: &str| {
            let there = text.lines().any(|line| line.starts_with(start) && line.ends_with(end));
            assert!(there, "{start}…{end} is not in\n{text}");
        };
        check(
            "sluice_cost_nano_usd_total{basis=\"reported\",policy=\"balanced\",route=\"remote\",tenant=\"acme\"}",
            " 700",
        );
        check("sluice_baseline_nano_usd_total{", " 1000");
        check("sluice_saved_nano_usd{", " 300");
        check("sluice_cost_nano_usd_total{basis=\"reported\",policy=\"balanced\",route=\"shadow\"", " 40");
        check("sluice_remote_up{model=\"openai/large\"}", " 0");
        check("sluice_policy_reload_failed", " 1");
        check("sluice_ledger_backlog_bytes", " 9");
        check("gen_ai_client_operation_duration_seconds_count{", " 1");
        check("gen_ai_client_operation_time_to_first_chunk_seconds_sum{", " 0.01");
        // Four chunks, or ten tokens, after the first in 100 ms.
        check("gen_ai_client_operation_time_per_output_chunk_seconds_sum{", " 0.025");
        check("gen_ai_server_time_per_output_token_seconds_sum{", " 0.01");
        let failed = text.lines().find(|line| line.starts_with("gen_ai_server_request_duration_seconds_count"));
        assert!(failed.unwrap().contains("error_type=\"overloaded\""), "{failed:?}");
    }

    #[test]
    fn tenants_past_the_cap_share_a_label() {
        let telemetry = telemetry();
        let metrics = telemetry.metrics();
        for number in 0..MAX_TENANTS + 50 {
            metrics.request_finished(&request(&format!("tenant-{number}"), 1, 0));
        }
        let text = telemetry.render();
        let series = text.lines().filter(|line| line.starts_with("sluice_requests_total{"));
        assert_eq!(series.clone().count(), MAX_TENANTS + 1);
        let other = series.filter(|line| line.contains("tenant=\"other\"")).collect::<Vec<_>>();
        assert!(other.len() == 1 && other[0].ends_with(" 50"), "{other:?}");
    }

    #[test]
    fn disabled_metrics_take_everything() {
        everything(&Metrics::disabled());
    }
}
