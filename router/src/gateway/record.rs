//! What stays of a request: its ledger entry, its answer in the cache, its baseline.

use super::attempt::estimated_tokens;
use super::reply::{FailureReport, GatewayError, GatewayErrorKind, Reply, ReplyEvent, Summary};
use super::run::{Run, Totals, entry_status};
use super::{Admitted, Gateway};
use crate::budget::BudgetLimits;
use crate::cache::{CacheKey, CachedAnswer, Hit, KeyParts, cacheable, may_look_up};
use crate::domain::{
    Constraints, Cost, CostBasis, Decision, EntryStatus, Finish, FinishReason, NanoUsd, Reason, ReasonCode, Recording,
    Request, RequestId, Route, TenantId, Usage,
};
use crate::ledger::Entry;
use crate::policy::Policy;
use crate::telemetry::RequestRecord;
use jiff::Timestamp;
use std::time::{Duration, Instant};

/// An entry to be written, beside what its request says.
pub(super) struct Outcome<'a> {
    pub received_at: Timestamp,
    pub latency: Duration,
    pub first_byte: Option<Duration>,
    pub status: EntryStatus,
    pub decision: Option<&'a Decision>,
    pub constraints: Option<&'a Constraints>,
    pub totals: Totals,
    pub baseline: NanoUsd,
    pub finish_reason: Option<FinishReason>,
    pub error: &'a str,
    pub cached_from: Option<RequestId>,
    pub recording: Option<Recording>,
    pub shadow_of: Option<RequestId>,
}

impl Gateway {
    /// Limits of a tenant under a policy: a policy may only tighten.
    pub fn budget_limits(&self, tenant: &TenantId, policy: &Policy) -> BudgetLimits {
        self.tenant_limits.get(tenant).copied().unwrap_or(self.default_limits).tightest(policy.budget)
    }

    /// What the first large model would have cost: its own bill if it served, else an estimate from bytes.
    pub(super) fn baseline(
        &self,
        admitted: &Admitted,
        decision: &Decision,
        totals: &Totals,
        answer_bytes: u64,
    ) -> Cost {
        let first = admitted.policy.large.first();
        let Some(model) = first.and_then(|model| admitted.snapshot.catalog().get(model)) else {
            return Cost { amount: NanoUsd::ZERO, basis: CostBasis::Estimated };
        };
        if decision.model == model.id && totals.attempts == 1 && decision.route == Route::Remote {
            return Cost { amount: totals.cost.amount, basis: CostBasis::Estimated };
        }
        let usage = Usage {
            input_tokens: estimated_tokens(admitted.request.prompt_bytes() as u64),
            output_tokens: estimated_tokens(answer_bytes),
            ..Usage::default()
        };
        let reported = decision.model == model.id && decision.route == Route::Cascade;
        let amount = if reported { totals.cost.amount } else { model.cost(&usage) };
        Cost { amount, basis: CostBasis::Estimated }
    }

    /// The cache key of a request that may be looked up.
    pub(super) fn cache_key(&self, request: &Request, policy: &Policy, constraints: &Constraints) -> Option<CacheKey> {
        let settings = policy.exact_cache?;
        let allowed = (constraints.cache_read || constraints.cache_write)
            && may_look_up(&request.limits, settings.any_temperature);
        allowed.then(|| {
            CacheKey::new(&KeyParts {
                tenant: &request.tenant,
                constraints,
                messages: &request.messages,
                limits: &request.limits,
                policy: &policy.reference,
            })
        })
    }

    /// Answers from the cache, if the same was answered before.
    pub(super) async fn answer_from_cache(&self, admitted: &Admitted) -> Option<Reply> {
        if !admitted.constraints.cache_read {
            return None;
        }
        let hit = self.cache.lookup(admitted.cache_key.as_ref()?).await?;
        Some(self.hit(admitted, &hit))
    }

    fn hit(&self, admitted: &Admitted, hit: &Hit) -> Reply {
        let answer = &hit.answer;
        let detail = format!("entry {} answered the same request {} s ago", answer.entry_id, hit.age.as_secs());
        let decision = self.repeated(admitted, answer, Reason::new(ReasonCode::CacheHit, detail));
        let totals = Totals { usage: answer.finish.usage, ..Totals::default() };
        let baseline = match answer.route {
            Route::Local => self.baseline(admitted, &decision, &totals, answer.text.len() as u64),
            _ => Cost { amount: answer.cost.amount, basis: CostBasis::Estimated },
        };
        let latency = admitted.received.elapsed();
        self.write(
            &admitted.request,
            Outcome {
                received_at: admitted.received_at,
                latency,
                first_byte: Some(latency),
                status: EntryStatus::Ok,
                decision: Some(&decision),
                constraints: Some(&admitted.constraints),
                // Nothing was used: tokens of a repeated answer are not counted again.
                totals: Totals::default(),
                baseline: baseline.amount,
                finish_reason: Some(answer.finish.reason),
                error: "",
                cached_from: Some(answer.entry_id),
                recording: None,
                shadow_of: None,
            },
        );
        let summary = Summary {
            usage: Usage::default(),
            cpu_seconds: 0.0,
            cost: Cost::FREE,
            finish_reason: answer.finish.reason,
            max_tokens: answer.finish.max_tokens.unwrap_or(0),
            decision: decision.clone(),
            constraints: admitted.constraints.clone(),
            saved: baseline.amount,
            baseline,
            response_model: answer.finish.response_model.clone(),
            latency,
        };
        let text =
            (!answer.text.is_empty()).then(|| Ok(ReplyEvent::Text { text: answer.text.clone(), logprobs: Vec::new() }));
        let events = text.into_iter().chain([Ok(ReplyEvent::Finished(Box::new(summary)))]);
        Reply {
            request_id: admitted.request.id,
            decision,
            constraints: admitted.constraints.clone(),
            events: Box::pin(futures_util::stream::iter(events)),
        }
    }

    fn repeated(&self, admitted: &Admitted, answer: &CachedAnswer, reason: Reason) -> Decision {
        Decision {
            route: Route::Cache,
            model: answer.model.clone(),
            fallbacks: Vec::new(),
            escalate_to: None,
            candidates: Vec::new(),
            reason,
            threshold: None,
            policy: admitted.policy.reference.clone(),
            scorer_version: String::new(),
            propensity: 1.0,
            explored: false,
            arm: admitted.arm.clone(),
        }
    }

    /// Keeps a complete answer for the next who asks the same.
    pub(super) async fn keep_answer(&self, run: &Run, finish: &Finish) {
        let admitted = &run.admitted;
        let (Some(key), Some(settings)) = (admitted.cache_key, admitted.policy.exact_cache) else { return };
        if !admitted.constraints.cache_write || !cacheable(&admitted.request.limits, settings.any_temperature, finish) {
            return;
        }
        let answer = CachedAnswer {
            text: run.answer.clone(),
            finish: finish.clone(),
            entry_id: admitted.request.id,
            model: run.decision.model.clone(),
            route: run.decision.route,
            cost: run.totals.cost,
        };
        self.cache.store(key, answer, settings.ttl).await;
    }

    /// Writes the entry of a request that ran.
    pub(super) fn record(
        &self,
        run: &Run,
        status: EntryStatus,
        reason: Option<FinishReason>,
        error: Option<&GatewayErrorKind>,
    ) {
        let admitted = &run.admitted;
        if status == EntryStatus::Ok && admitted.policy.sticky.is_some() && run.ended_remote() && run.shadow.is_none() {
            let Request { tenant, conversation_id, .. } = &admitted.request;
            self.conversations.went_remote(tenant, conversation_id, Instant::now());
        }
        let baseline = match status {
            // Nobody would have paid for a comparison.
            EntryStatus::Ok if run.shadow.is_some() => NanoUsd::ZERO,
            EntryStatus::Ok => run
                .baseline
                .unwrap_or_else(|| self.baseline(admitted, &run.decision, &run.totals, run.answer.len() as u64).amount),
            _ => NanoUsd::ZERO,
        };
        let whole = status == EntryStatus::Ok && reason == Some(FinishReason::Stop) && run.ended_remote();
        let answered = |recording: Recording| if whole { recording.answered(&run.answer) } else { recording };
        self.write(
            &admitted.request,
            Outcome {
                received_at: admitted.received_at,
                latency: admitted.received.elapsed(),
                first_byte: run.first_byte,
                status,
                decision: Some(&run.decision),
                constraints: Some(&admitted.constraints),
                totals: run.totals,
                baseline,
                finish_reason: reason,
                error: error.map_or("", GatewayErrorKind::code),
                cached_from: run.cached_from,
                recording: run.recording.clone().map(answered),
                shadow_of: run.shadow.as_ref().map(|shadow| shadow.entry),
            },
        );
    }

    /// Writes the entry of a request that was refused before anything was attempted, and makes its error.
    pub(super) fn refused(
        &self,
        request: &Request,
        received: Instant,
        received_at: Timestamp,
        kind: GatewayErrorKind,
        constraints: Option<&Constraints>,
    ) -> GatewayError {
        self.write(
            request,
            Outcome {
                received_at,
                latency: received.elapsed(),
                first_byte: None,
                status: entry_status(&kind),
                decision: None,
                constraints,
                totals: Totals::default(),
                baseline: NanoUsd::ZERO,
                finish_reason: None,
                error: kind.code(),
                cached_from: None,
                recording: None,
                shadow_of: None,
            },
        );
        let report = FailureReport {
            request_id: request.id,
            usage: Usage::default(),
            cost: Cost::FREE,
            decision: None,
            constraints: constraints.cloned().map(Box::new),
        };
        GatewayError { kind, report: Some(Box::new(report)) }
    }

    pub(super) fn write(&self, request: &Request, outcome: Outcome<'_>) {
        let Outcome { decision, totals, baseline, .. } = &outcome;
        let policy = decision.map_or("", |decision| &decision.policy.name);
        if outcome.shadow_of.is_some() {
            self.metrics.shadow_spent(request.tenant.as_str(), policy, totals.cost);
        } else {
            self.metrics.request_finished(&RequestRecord {
                tenant: request.tenant.as_str(),
                route: decision.map(|decision| decision.route),
                policy,
                reason: decision.map_or(outcome.error, |decision| decision.reason.code.as_str()),
                status: outcome.status,
                latency: outcome.latency,
                cost: totals.cost,
                saved: if outcome.status == EntryStatus::Ok { *baseline - totals.cost.amount } else { NanoUsd::ZERO },
            });
        }
        let entry = Entry {
            id: request.id,
            tenant: request.tenant.clone(),
            key_name: request.key_name.clone(),
            received_at: outcome.received_at,
            latency: outcome.latency,
            first_byte: outcome.first_byte,
            status: outcome.status,
            decision: outcome.decision.cloned(),
            constraints: outcome.constraints.cloned(),
            usage: totals.usage,
            cpu_seconds: totals.cpu_seconds,
            cost: totals.cost,
            baseline: *baseline,
            baseline_method: "large model's price on prompt and answer; tokens as billed, else bytes / 4".to_owned(),
            finish_reason: outcome.finish_reason,
            error: outcome.error.to_owned(),
            cached_from: outcome.cached_from,
            labels: request.labels.clone(),
            conversation_id: request.conversation_id.clone(),
            end_user_id: request.end_user_id.clone(),
            recording: outcome.recording,
            shadow_of: outcome.shadow_of,
        };
        if let Err(error) = self.ledger.entry(&entry) {
            tracing::error!(%error, entry = %request.id, "an entry could not be journalled; its attempts are");
        }
    }
}
