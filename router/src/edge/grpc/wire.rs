//! From domain values to wire messages.

use crate::domain::{
    Candidate, Constraints, Cost, CostBasis, Decision, FinishReason, Placement, Route, Score, TokenAlternative,
    TokenLogprob, Usage,
};
use crate::gateway::{FailureReport, Summary};
use crate::ledger::{self, Story};
use sluice_proto::v1;
use std::time::Duration;

fn count(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A cost.
pub fn cost(cost: Cost) -> v1::Cost {
    let basis = match cost.basis {
        CostBasis::Reported => v1::CostBasis::Reported,
        CostBasis::Estimated => v1::CostBasis::Estimated,
        CostBasis::Bound => v1::CostBasis::Bound,
    };
    v1::Cost { nano_usd: cost.amount.nanos(), basis: basis.into() }
}

/// Tokens and processor time.
pub fn usage(usage: Usage, cpu_seconds: f64) -> v1::Usage {
    v1::Usage {
        input_tokens: count(usage.input_tokens),
        output_tokens: count(usage.output_tokens),
        cached_input_tokens: count(usage.cached_input_tokens),
        reasoning_tokens: count(usage.reasoning_tokens),
        cpu_seconds,
    }
}

/// A route.
pub fn route(route: Route) -> v1::Route {
    match route {
        Route::Cache => v1::Route::Cache,
        Route::Local => v1::Route::Local,
        Route::Remote => v1::Route::Remote,
        Route::Cascade => v1::Route::Cascade,
    }
}

fn placement(placement: Placement) -> v1::Placement {
    match placement {
        Placement::Auto => v1::Placement::Auto,
        Placement::LocalOnly => v1::Placement::LocalOnly,
        Placement::PreferLocal => v1::Placement::PreferLocal,
        Placement::PreferRemote => v1::Placement::PreferRemote,
        Placement::RemoteOnly => v1::Placement::RemoteOnly,
    }
}

/// Why an answer ended.
pub fn finish_reason(reason: FinishReason) -> v1::FinishReason {
    match reason {
        FinishReason::Stop => v1::FinishReason::Stop,
        FinishReason::Length => v1::FinishReason::Length,
        FinishReason::Context => v1::FinishReason::Context,
        FinishReason::ToolCalls => v1::FinishReason::ToolCalls,
        FinishReason::Declined => v1::FinishReason::Declined,
        FinishReason::Filtered => v1::FinishReason::Filtered,
    }
}

fn candidate(candidate: &Candidate) -> v1::Candidate {
    v1::Candidate {
        model: candidate.model.to_string(),
        route: route(candidate.route).into(),
        score: candidate.score.map(Score::get),
        expected_cost: Some(cost(candidate.expected_cost)),
        excluded_by: candidate.excluded_by.as_ref().map(ToString::to_string).unwrap_or_default(),
        worst_nano_usd: candidate.worst_cost.nanos(),
        predicted_first_byte_ms: candidate.predicted.map(|predicted| milliseconds(predicted.first_byte)),
        predicted_total_ms: candidate.predicted.map(|predicted| milliseconds(predicted.total)),
        region: candidate.region.clone().unwrap_or_default(),
    }
}

/// A decision with what constrained it.
pub fn decision(decision: &Decision, constraints: Option<&Constraints>) -> v1::Decision {
    v1::Decision {
        route: route(decision.route).into(),
        model: decision.model.to_string(),
        candidates: decision.candidates.iter().map(candidate).collect(),
        threshold: decision.threshold,
        reason: Some(v1::Reason {
            code: decision.reason.code.as_str().to_owned(),
            detail: decision.reason.detail.clone(),
            strongest: Vec::new(),
        }),
        policy_name: decision.policy.name.clone(),
        policy_hash: decision.policy.hash.clone(),
        scorer_version: decision.scorer_version.clone(),
        propensity: decision.propensity,
        explored: decision.explored,
        rule: constraints.and_then(|constraints| constraints.rule.clone()).unwrap_or_default(),
        placement: constraints
            .map_or(v1::Placement::Unspecified, |constraints| placement(constraints.placement))
            .into(),
        placement_by: constraints.map(|constraints| constraints.placement_by.clone()).unwrap_or_default(),
        experiment: decision.arm.as_ref().map(|arm| arm.experiment.clone()).unwrap_or_default(),
        arm: decision.arm.as_ref().map(|arm| arm.as_str().to_owned()).unwrap_or_default(),
        residency: constraints
            .filter(|constraints| !constraints.residency.is_anywhere())
            .map(|constraints| constraints.residency.describe())
            .unwrap_or_default(),
    }
}

/// Tokens of an answer.
pub fn logprobs(tokens: Vec<TokenLogprob>) -> Vec<v1::TokenLogprob> {
    let alternative = |other: TokenAlternative| v1::TokenAlternative { token: other.bytes, logprob: other.logprob };
    let token = |token: TokenLogprob| v1::TokenLogprob {
        token: token.bytes,
        logprob: token.logprob,
        margin: token.margin,
        alternatives: token.alternatives.into_iter().map(alternative).collect(),
    };
    tokens.into_iter().map(token).collect()
}

/// The last message of a complete answer.
pub fn finished(summary: &Summary) -> v1::Finished {
    v1::Finished {
        usage: Some(usage(summary.usage, summary.cpu_seconds)),
        cost: Some(cost(summary.cost)),
        finish_reason: finish_reason(summary.finish_reason).into(),
        decision: Some(decision(&summary.decision, Some(&summary.constraints))),
        baseline: Some(cost(summary.baseline)),
        saved_nano_usd: summary.saved.nanos(),
        response_model: summary.response_model.clone(),
        latency_ms: milliseconds(summary.latency),
        max_tokens: i32::try_from(summary.max_tokens).unwrap_or(i32::MAX),
    }
}

/// What a failed request used.
pub fn failure_report(report: &FailureReport) -> v1::FailureReport {
    v1::FailureReport {
        request_id: report.request_id.to_string(),
        usage: Some(usage(report.usage, 0.0)),
        cost: Some(cost(report.cost)),
        decision: report.decision.as_ref().map(|made| decision(made, report.constraints.as_deref())),
    }
}

fn attempt(attempt: &ledger::Attempt) -> v1::Attempt {
    let started = &attempt.started;
    let mut wire = v1::Attempt {
        id: started.attempt.to_string(),
        model: started.model.to_string(),
        route: route(started.route).into(),
        hold_nano_usd: started.hold.nanos(),
        started_unix_ms: started.started_at.as_millisecond(),
        ..v1::Attempt::default()
    };
    if let Some(ended) = &attempt.ended {
        wire.status = ended.status.as_str().to_owned();
        wire.usage = Some(usage(ended.usage, ended.cpu_seconds));
        wire.cost = Some(cost(ended.cost));
        wire.latency_ms = milliseconds(ended.latency);
        wire.error.clone_from(&ended.error);
        wire.overrun = ended.overrun;
    }
    wire
}

/// Who judged.
pub fn feedback_source(source: ledger::FeedbackSource) -> v1::FeedbackSource {
    match source {
        ledger::FeedbackSource::User => v1::FeedbackSource::User,
        ledger::FeedbackSource::Judge => v1::FeedbackSource::Judge,
        ledger::FeedbackSource::Metric => v1::FeedbackSource::Metric,
    }
}

/// An entry with attempts and feedback.
pub fn entry(story: &Story) -> v1::Entry {
    let entry = &story.entry;
    let feedback =
        |given: &ledger::Feedback| v1::Feedback { source: feedback_source(given.source).into(), value: given.value };
    v1::Entry {
        id: entry.id.to_string(),
        tenant: entry.tenant.to_string(),
        received_unix_ms: entry.received_at.as_millisecond(),
        status: entry.status.as_str().to_owned(),
        decision: entry.decision.as_ref().map(|made| decision(made, entry.constraints.as_ref())),
        usage: Some(usage(entry.usage, entry.cpu_seconds)),
        cost: Some(cost(entry.cost)),
        baseline: Some(v1::Cost { nano_usd: entry.baseline.nanos(), basis: v1::CostBasis::Estimated.into() }),
        saved_nano_usd: saved(entry),
        latency_ms: milliseconds(entry.latency),
        first_byte_ms: entry.first_byte.map_or(0.0, milliseconds),
        finish_reason: entry.finish_reason.map_or(v1::FinishReason::Unspecified, finish_reason).into(),
        attempts: story.attempts.iter().map(attempt).collect(),
        feedback: story.feedback.iter().map(feedback).collect(),
        labels: entry.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        conversation_id: entry.conversation_id.clone(),
        error: entry.error.clone(),
        cached_from: entry.cached_from.map(|id| id.to_string()).unwrap_or_default(),
        baseline_method: entry.baseline_method.clone(),
        shadow_of: entry.shadow_of.map(|id| id.to_string()).unwrap_or_default(),
    }
}

/// Baseline minus cost of a request that was answered, nano-USD; nothing is saved by failing.
pub fn saved(entry: &ledger::Entry) -> i64 {
    match entry.status {
        crate::domain::EntryStatus::Ok => (entry.baseline - entry.cost.amount).nanos(),
        _ => 0,
    }
}
