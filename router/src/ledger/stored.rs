//! The shapes that records have in the journal and in the store, and the way from and to domain values.

use super::outcome::StoredOutcome;
use super::recording::StoredRecording;
use super::{Attempt, AttemptEnded, AttemptStarted, Entry, Feedback, FeedbackSource, ShadowOf};
use crate::domain::{
    Arm, AttemptId, Candidate, Constraints, Cost, CostBasis, Decision, EntryStatus, ExcludedBy, FinishReason, ModelId,
    NanoUsd, Placement, PolicyRef, Predicted, Reason, ReasonCode, RequestId, Residency, Route, Score, TenantId, Usage,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A record of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// An attempt is about to start.
    Started(StoredStart),
    /// An attempt ended.
    Ended(StoredEnd),
    /// A request is finished.
    Entry(Box<StoredEntry>),
    /// Somebody judged.
    Feedback(StoredFeedback),
    /// Two answers were compared.
    Outcome(StoredOutcome),
}

/// See [`AttemptStarted`].
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredStart {
    pub attempt: String,
    pub request: String,
    pub tenant: String,
    pub model: String,
    pub route: String,
    pub number: u32,
    pub started_ms: i64,
    pub hold: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_policy: Option<String>,
}

/// See [`AttemptEnded`].
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredEnd {
    pub attempt: String,
    pub request: String,
    pub ended_ms: i64,
    pub status: String,
    pub cost: i64,
    pub basis: String,
    pub usage: StoredUsage,
    pub cpu_seconds: f64,
    pub latency_ms: f64,
    pub error: String,
    pub overrun: bool,
}

/// See [`Usage`].
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct StoredUsage {
    pub input: i64,
    pub output: i64,
    pub cached: i64,
    pub reasoning: i64,
}

/// See [`Feedback`].
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredFeedback {
    pub entry: String,
    pub source: String,
    pub value: f64,
    pub at_ms: i64,
}

/// See [`Entry`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredEntry {
    pub id: String,
    pub tenant: String,
    pub key_name: String,
    pub received_ms: i64,
    pub latency_ms: f64,
    pub first_byte_ms: Option<f64>,
    pub status: String,
    pub decision: Option<StoredDecision>,
    pub constraints: Option<StoredConstraints>,
    pub usage: StoredUsage,
    pub cpu_seconds: f64,
    pub cost: i64,
    pub basis: String,
    pub baseline: i64,
    pub baseline_method: String,
    pub finish_reason: Option<String>,
    pub error: String,
    pub cached_from: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub conversation_id: String,
    pub end_user_id: String,
    // Only in the journal; the store keeps it in a table of its own. Journals of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording: Option<StoredRecording>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_of: Option<String>,
}

/// See [`Decision`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredDecision {
    pub route: String,
    pub model: String,
    pub fallbacks: Vec<String>,
    pub escalate_to: Option<String>,
    pub candidates: Vec<StoredCandidate>,
    pub reason: String,
    pub detail: String,
    pub threshold: Option<f64>,
    pub policy: String,
    pub policy_hash: String,
    pub scorer: String,
    pub propensity: f64,
    pub explored: bool,
    // Entries of earlier versions have none of what follows, here and below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    #[serde(default)]
    pub candidate_arm: bool,
}

/// See [`Candidate`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredCandidate {
    pub model: String,
    pub route: String,
    pub score: Option<f64>,
    pub cost: i64,
    pub basis: String,
    pub excluded_by: Option<String>,
    #[serde(default)]
    pub worst_cost: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// See [`Constraints`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredConstraints {
    pub placement: String,
    pub placement_by: String,
    pub rule: Option<String>,
    pub model: Option<String>,
    pub cache_read: bool,
    pub cache_write: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub regions_by: String,
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// JSON has no word for what is not a number: such a record could not be read back.
fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}

fn duration(milliseconds: f64) -> Duration {
    Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default()
}

fn timestamp(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or_default()
}

pub fn basis(word: &str) -> CostBasis {
    [CostBasis::Reported, CostBasis::Estimated]
        .into_iter()
        .find(|basis| basis.as_str() == word)
        .unwrap_or(CostBasis::Bound)
}

impl From<Usage> for StoredUsage {
    fn from(usage: Usage) -> Self {
        let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
        Self {
            input: count(usage.input_tokens),
            output: count(usage.output_tokens),
            cached: count(usage.cached_input_tokens),
            reasoning: count(usage.reasoning_tokens),
        }
    }
}

impl From<StoredUsage> for Usage {
    fn from(stored: StoredUsage) -> Self {
        Self {
            input_tokens: stored.input.unsigned_abs(),
            output_tokens: stored.output.unsigned_abs(),
            cached_input_tokens: stored.cached.unsigned_abs(),
            reasoning_tokens: stored.reasoning.unsigned_abs(),
        }
    }
}

impl From<&Decision> for StoredDecision {
    fn from(decision: &Decision) -> Self {
        let candidate = |candidate: &Candidate| StoredCandidate {
            model: candidate.model.to_string(),
            route: candidate.route.as_str().to_owned(),
            score: candidate.score.map(Score::get),
            cost: candidate.expected_cost.amount.nanos(),
            basis: candidate.expected_cost.basis.as_str().to_owned(),
            excluded_by: candidate.excluded_by.as_ref().map(ToString::to_string),
            worst_cost: candidate.worst_cost.nanos(),
            first_byte_ms: candidate.predicted.map(|predicted| milliseconds(predicted.first_byte)),
            total_ms: candidate.predicted.map(|predicted| milliseconds(predicted.total)),
            region: candidate.region.clone(),
        };
        Self {
            route: decision.route.as_str().to_owned(),
            model: decision.model.to_string(),
            fallbacks: decision.fallbacks.iter().map(ToString::to_string).collect(),
            escalate_to: decision.escalate_to.as_ref().map(ToString::to_string),
            candidates: decision.candidates.iter().map(candidate).collect(),
            reason: decision.reason.code.as_str().to_owned(),
            detail: decision.reason.detail.clone(),
            threshold: decision.threshold,
            policy: decision.policy.name.clone(),
            policy_hash: decision.policy.hash.clone(),
            scorer: decision.scorer_version.clone(),
            propensity: decision.propensity,
            explored: decision.explored,
            experiment: decision.arm.as_ref().map(|arm| arm.experiment.clone()),
            candidate_arm: decision.arm.as_ref().is_some_and(|arm| arm.candidate),
        }
    }
}

impl StoredDecision {
    /// The decision; `None` if a word in it is unknown to this build.
    pub fn decision(self) -> Option<Decision> {
        let candidate = |stored: StoredCandidate| {
            Some(Candidate {
                model: ModelId::new(stored.model),
                route: Route::parse(&stored.route)?,
                score: stored.score.and_then(|score| Score::new(score).ok()),
                expected_cost: Cost { amount: NanoUsd::new(stored.cost), basis: basis(&stored.basis) },
                worst_cost: NanoUsd::new(stored.worst_cost),
                predicted: stored
                    .first_byte_ms
                    .zip(stored.total_ms)
                    .map(|(first_byte, total)| Predicted { first_byte: duration(first_byte), total: duration(total) }),
                region: stored.region,
                excluded_by: stored.excluded_by.map(ExcludedBy),
            })
        };
        let code = ReasonCode::ALL.into_iter().find(|code| code.as_str() == self.reason)?;
        Some(Decision {
            route: Route::parse(&self.route)?,
            model: ModelId::new(self.model),
            fallbacks: self.fallbacks.into_iter().map(ModelId::new).collect(),
            escalate_to: self.escalate_to.map(ModelId::new),
            candidates: self.candidates.into_iter().map(candidate).collect::<Option<_>>()?,
            reason: Reason::new(code, self.detail),
            threshold: self.threshold,
            policy: PolicyRef { name: self.policy, hash: self.policy_hash },
            scorer_version: self.scorer,
            propensity: self.propensity,
            explored: self.explored,
            arm: self.experiment.map(|experiment| Arm { experiment, candidate: self.candidate_arm }),
        })
    }
}

impl StoredConstraints {
    fn constraints(self) -> Option<Constraints> {
        Some(Constraints {
            placement: Placement::parse(&self.placement)?,
            placement_by: self.placement_by,
            rule: self.rule,
            model: self.model.map(ModelId::new),
            residency: self
                .regions
                .map_or_else(Residency::anywhere, |regions| Residency::only(self.regions_by, regions)),
            cache_read: self.cache_read,
            cache_write: self.cache_write,
        })
    }
}

impl Record {
    /// The record of a start.
    pub fn started(started: &AttemptStarted) -> Self {
        Self::Started(StoredStart {
            attempt: started.attempt.to_string(),
            request: started.request.to_string(),
            tenant: started.tenant.to_string(),
            model: started.model.to_string(),
            route: started.route.as_str().to_owned(),
            number: started.number,
            started_ms: started.started_at.as_millisecond(),
            hold: started.hold.nanos(),
            shadow_of: started.shadow.as_ref().map(|shadow| shadow.entry.to_string()),
            shadow_policy: started.shadow.as_ref().map(|shadow| shadow.policy.clone()),
        })
    }

    /// The record of an end.
    pub fn ended(ended: &AttemptEnded) -> Self {
        Self::Ended(StoredEnd {
            attempt: ended.attempt.to_string(),
            request: ended.request.to_string(),
            ended_ms: ended.ended_at.as_millisecond(),
            status: ended.status.as_str().to_owned(),
            cost: ended.cost.amount.nanos(),
            basis: ended.cost.basis.as_str().to_owned(),
            usage: ended.usage.into(),
            cpu_seconds: finite(ended.cpu_seconds),
            latency_ms: milliseconds(ended.latency),
            error: ended.error.clone(),
            overrun: ended.overrun,
        })
    }

    /// The record of a finished request.
    pub fn entry(entry: &Entry) -> Self {
        let constraints = |constraints: &Constraints| StoredConstraints {
            placement: constraints.placement.as_str().to_owned(),
            placement_by: constraints.placement_by.clone(),
            rule: constraints.rule.clone(),
            model: constraints.model.as_ref().map(ToString::to_string),
            cache_read: constraints.cache_read,
            cache_write: constraints.cache_write,
            regions: constraints.residency.regions().map(|regions| regions.iter().cloned().collect()),
            regions_by: constraints.residency.by().join(", "),
        };
        Self::Entry(Box::new(StoredEntry {
            id: entry.id.to_string(),
            tenant: entry.tenant.to_string(),
            key_name: entry.key_name.clone(),
            received_ms: entry.received_at.as_millisecond(),
            latency_ms: milliseconds(entry.latency),
            first_byte_ms: entry.first_byte.map(milliseconds),
            status: entry.status.as_str().to_owned(),
            decision: entry.decision.as_ref().map(StoredDecision::from),
            constraints: entry.constraints.as_ref().map(constraints),
            usage: entry.usage.into(),
            cpu_seconds: finite(entry.cpu_seconds),
            cost: entry.cost.amount.nanos(),
            basis: entry.cost.basis.as_str().to_owned(),
            baseline: entry.baseline.nanos(),
            baseline_method: entry.baseline_method.clone(),
            finish_reason: entry.finish_reason.map(|reason| reason.as_str().to_owned()),
            error: entry.error.clone(),
            cached_from: entry.cached_from.map(|id| id.to_string()),
            labels: entry.labels.clone(),
            conversation_id: entry.conversation_id.clone(),
            end_user_id: entry.end_user_id.clone(),
            recording: entry.recording.as_ref().map(StoredRecording::from),
            shadow_of: entry.shadow_of.map(|id| id.to_string()),
        }))
    }

    /// The record of feedback.
    pub fn feedback(feedback: &Feedback) -> Self {
        Self::Feedback(StoredFeedback {
            entry: feedback.entry.to_string(),
            source: feedback.source.as_str().to_owned(),
            value: feedback.value,
            at_ms: feedback.at.as_millisecond(),
        })
    }
}

impl StoredEntry {
    /// The entry; `None` if a word in it is unknown to this build.
    pub fn entry(self) -> Option<Entry> {
        Some(Entry {
            id: RequestId::parse(&self.id)?,
            tenant: TenantId::new(self.tenant),
            key_name: self.key_name,
            received_at: timestamp(self.received_ms),
            latency: duration(self.latency_ms),
            first_byte: self.first_byte_ms.map(duration),
            status: EntryStatus::parse(&self.status)?,
            decision: self.decision.and_then(StoredDecision::decision),
            constraints: self.constraints.and_then(StoredConstraints::constraints),
            usage: self.usage.into(),
            cpu_seconds: self.cpu_seconds,
            cost: Cost { amount: NanoUsd::new(self.cost), basis: basis(&self.basis) },
            baseline: NanoUsd::new(self.baseline),
            baseline_method: self.baseline_method,
            finish_reason: self.finish_reason.as_deref().and_then(FinishReason::parse),
            error: self.error,
            cached_from: self.cached_from.as_deref().and_then(RequestId::parse),
            labels: self.labels,
            conversation_id: self.conversation_id,
            end_user_id: self.end_user_id,
            recording: self.recording.and_then(StoredRecording::recording),
            shadow_of: self.shadow_of.as_deref().and_then(RequestId::parse),
        })
    }
}

impl StoredFeedback {
    /// The feedback; `None` if a word in it is unknown to this build.
    pub fn feedback(&self) -> Option<Feedback> {
        Some(Feedback {
            entry: RequestId::parse(&self.entry)?,
            source: FeedbackSource::parse(&self.source)?,
            value: self.value,
            at: timestamp(self.at_ms),
        })
    }
}

/// An attempt of its start and, if it ended, its end; `None` if a word is unknown to this build.
pub fn attempt(start: StoredStart, end: Option<StoredEnd>) -> Option<Attempt> {
    let (id, request) = (AttemptId::parse(&start.attempt)?, RequestId::parse(&start.request)?);
    let started = AttemptStarted {
        attempt: id,
        request,
        tenant: TenantId::new(start.tenant),
        model: ModelId::new(start.model),
        route: Route::parse(&start.route)?,
        number: start.number,
        started_at: timestamp(start.started_ms),
        hold: NanoUsd::new(start.hold),
        shadow: start
            .shadow_of
            .as_deref()
            .and_then(RequestId::parse)
            .zip(start.shadow_policy)
            .map(|(entry, policy)| ShadowOf { entry, policy }),
    };
    let ended = match end {
        Some(end) => Some(AttemptEnded {
            attempt: id,
            request,
            ended_at: timestamp(end.ended_ms),
            status: EntryStatus::parse(&end.status)?,
            cost: Cost { amount: NanoUsd::new(end.cost), basis: basis(&end.basis) },
            usage: end.usage.into(),
            cpu_seconds: end.cpu_seconds,
            latency: duration(end.latency_ms),
            error: end.error,
            overrun: end.overrun,
        }),
        None => None,
    };
    Some(Attempt { started, ended })
}
