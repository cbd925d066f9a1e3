//! What is known of a request when it is decided: scores, expected costs, and what excludes a candidate right now.

use super::attempt::estimated_tokens;
use super::reply::GatewayErrorKind;
use super::run::RETRY_SOON;
use super::{Admitted, Gateway};
use crate::backend::Availability;
use crate::budget::WindowStatus;
use crate::catalog::Model;
use crate::domain::{
    Candidate, Cost, CostBasis, Decision, ExcludedBy, ModelId, NanoUsd, Placement, Predicted, RequestId, Route, Usage,
};
use crate::evidence::certificate::ANY_LARGE;
use crate::policy::{Facts, Objective, Policy, Refusal, Snapshot};
use crate::score::own::Scoring;
use crate::score::{Pair, PairScorer, ScoreError};
use std::sync::Arc;
use std::time::Instant;

/// Tokens of an answer that costs are expected for where the client gives no smaller limit.
const EXPECTED_OUTPUT_TOKENS: u32 = 256;
/// How an exclusion for lack of context begins.
const CONTEXT: &str = "context of";
/// Reasons of a score that Explain names.
const STRONGEST: usize = 6;

impl From<Refusal> for GatewayErrorKind {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict(conflict) => Self::PlacementConflict(conflict.to_string()),
            Refusal::NoCandidate(_) => Self::NoCandidate(refusal.to_string()),
            Refusal::NoRegion { ref field, .. } => Self::NoRegion { field: field.clone(), why: refusal.to_string() },
            Refusal::CostCeiling(_) => Self::CostCeiling { why: refusal.to_string(), retry_after: RETRY_SOON },
            Refusal::Late(_) => Self::Late { why: refusal.to_string(), retry_after: RETRY_SOON },
        }
    }
}

impl Gateway {
    /// Scores the small candidates and decides.
    pub(super) fn decide(&self, admitted: &Admitted) -> Result<Decision, GatewayErrorKind> {
        let mut scorer_version = String::new();
        let policy = &admitted.policy;
        let mut candidates = Vec::new();
        for model in policy.small.iter().chain(&policy.large) {
            let Some(entry) = admitted.snapshot.catalog().get(model) else { continue };
            let mut candidate = self.candidate(admitted, entry);
            if candidate.route == Route::Local
                && candidate.excluded_by.is_none()
                && let Some(scorer) = self.scorer(&admitted.snapshot, policy, model)
            {
                match self.scoring(admitted, &scorer, model) {
                    Ok(scoring) => {
                        // What was solved for the fitted scorer says nothing about raised scores.
                        let free = matches!(policy.objective, Objective::FixedThreshold(_));
                        let score = if free { scoring.learnt() } else { scoring.proven() };
                        self.metrics.score(model.as_str(), score.get());
                        candidate.score = Some(score);
                        scorer_version = scorer.version().to_owned();
                    }
                    Err(error) => tracing::warn!(%error, %model, "no score: the safe side"),
                }
            }
            candidates.push(candidate);
        }
        self.report_unsupported(admitted, &candidates)?;
        let draw = draw(admitted.request.id, &policy.reference.hash);
        let facts = Facts {
            candidates,
            scorer_version,
            draw,
            stream: admitted.request.stream,
            went_remote: self.went_remote(admitted),
            budget_left: self.budget_left(admitted),
            standing: self.live.standing(policy),
            allowance: self.allowance(policy),
        };
        let decided = policy.decide(&facts, &admitted.constraints);
        let decision = decided.map_err(|refusal| self.refusal(admitted, refusal))?;
        Ok(Decision { arm: admitted.arm.clone(), ..decision })
    }

    /// A refusal as the caller sees it: where a model that may serve is only down for now, another try is worth it.
    fn refusal(&self, admitted: &Admitted, refusal: Refusal) -> GatewayErrorKind {
        let Refusal::NoCandidate(excluded) = &refusal else { return refusal.into() };
        for (model, why) in excluded {
            let availability = self.backends.get(model).map(|backend| backend.availability());
            if let Some(Availability::Unavailable { why: down, retry_after }) = availability
                && down == why.0
            {
                let retry_after = retry_after.unwrap_or(RETRY_SOON);
                return GatewayErrorKind::Unavailable { what: refusal.to_string(), retry_after };
            }
        }
        let too_long = excluded.iter().all(|(model, why)| {
            let remote_barred = admitted.constraints.placement == Placement::LocalOnly;
            why.0.starts_with(CONTEXT) || (remote_barred && !self.is_local(model))
        });
        if too_long {
            return GatewayErrorKind::PromptTooLong(refusal.to_string());
        }
        refusal.into()
    }

    fn is_local(&self, model: &ModelId) -> bool {
        self.backends.get(model).is_some_and(|backend| backend.route() == Route::Local)
    }

    /// The scorer of a policy's small model.
    pub(super) fn scorer(&self, snapshot: &Snapshot, policy: &Policy, small: &ModelId) -> Option<Arc<PairScorer>> {
        policy.scorer(small, &self.scorers, snapshot.catalog())
    }

    /// A small model's score, and what the tenant's own outcomes make of it.
    fn scoring(&self, admitted: &Admitted, scorer: &PairScorer, small: &ModelId) -> Result<Scoring, ScoreError> {
        let large = admitted.policy.large.first().map_or(ANY_LARGE, ModelId::as_str);
        let request = &admitted.request;
        let pair = Pair::new(small.as_str(), large);
        let score = || self.scorers.scoring(scorer, request.tenant.as_str(), &pair, &request.messages);
        if scorer.is_slow(&request.messages) { apart(score) } else { score() }
    }

    /// Whether the request's conversation went remote lately, as far as the policy cares.
    fn went_remote(&self, admitted: &Admitted) -> bool {
        let Admitted { request, policy, received, .. } = admitted;
        policy.sticky.is_some_and(|time_to_live| {
            self.conversations.is_remote(&request.tenant, &request.conversation_id, time_to_live, *received)
        })
    }

    /// What the tenant's budgets still allow under the policy; `None` is no limit.
    fn budget_left(&self, admitted: &Admitted) -> Option<NanoUsd> {
        let tenant = &admitted.request.tenant;
        let limits = self.budget_limits(tenant, &admitted.policy);
        let left = |status: WindowStatus| Some(limits.of(status.window)? - status.spent - status.held);
        self.budgets.status(tenant).into_iter().filter_map(left).min()
    }

    /// What moved the score of the first small model most, in words.
    pub(super) fn strongest(&self, admitted: &Admitted) -> Vec<String> {
        let small = admitted.policy.small.first();
        let Some((small, scorer)) =
            small.and_then(|small| Some((small, self.scorer(&admitted.snapshot, &admitted.policy, small)?)))
        else {
            return Vec::new();
        };
        let messages = &admitted.request.messages;
        let reasons = scorer.reasons(messages, STRONGEST);
        let read_by = scorer.read_by(messages);
        let mut told: Vec<String> = read_by.into_iter().collect();
        told.extend(reasons.iter().map(|reason| format!("{} ({:+.2})", reason.what, reason.push)));
        let drawn_down = scorer.drawn_down(messages);
        if drawn_down > 0.005 {
            told.push(format!("little like it was seen: the score is drawn down by {drawn_down:.2}"));
        }
        let own = self.scoring(admitted, &scorer, small).ok().and_then(|scoring| Some((scoring.fitted, scoring.own?)));
        if let Some((fitted, own)) = own {
            told.push(format!(
                "own outcomes: the small model sufficed for {} of {} prompts near, {:.2} becomes {:.2}",
                own.sufficed,
                own.near,
                fitted.get(),
                own.score.get()
            ));
        }
        told
    }

    fn candidate(&self, admitted: &Admitted, model: &Model) -> Candidate {
        let request = &admitted.request;
        let expected = Usage {
            input_tokens: estimated_tokens(request.prompt_bytes() as u64),
            output_tokens: u64::from(model.output_cap(request.limits.max_tokens).min(EXPECTED_OUTPUT_TOKENS)),
            ..Usage::default()
        };
        let output = model.output_cap(request.limits.max_tokens);
        Candidate {
            expected_cost: Cost { amount: model.cost(&expected), basis: CostBasis::Estimated },
            worst_cost: model.bound(request.prompt_bytes() as u64, request.messages.len() as u64, output),
            predicted: self.predicted(admitted, model, output),
            region: model.region.clone(),
            excluded_by: self.excluded(admitted, model).map(ExcludedBy),
            ..Candidate::new(model.id.clone(), model.route())
        }
    }

    /// How long an answer of at most `most_tokens` tokens is predicted to take.
    fn predicted(&self, admitted: &Admitted, model: &Model, most_tokens: u32) -> Option<Predicted> {
        let prompt = estimated_tokens(admitted.request.prompt_bytes() as u64);
        let prompt = u32::try_from(prompt).unwrap_or(u32::MAX);
        let own = self.backends.get(&model.id).and_then(|backend| backend.expects(prompt, most_tokens));
        self.latencies.predict(&model.id, most_tokens, own, Instant::now())
    }

    fn excluded(&self, admitted: &Admitted, model: &Model) -> Option<String> {
        let request = &admitted.request;
        let Some(backend) = self.backends.get(&model.id) else {
            return Some("not set up in this process: see `targets` and `local` in the settings".to_owned());
        };
        if let Some(field) = model.unsupported(&request.limits) {
            return Some(format!("can't honour {field}"));
        }
        // A floor of the true number: even at eight bytes a token the prompt would not fit.
        let least = request.prompt_bytes() as u64 / 8;
        if least > u64::from(model.context) {
            return Some(format!("{CONTEXT} {} is smaller than the prompt", model.context));
        }
        match backend.availability() {
            Availability::Ready => None,
            Availability::Unavailable { why, .. } => Some(why),
        }
    }

    /// A field that no candidate can honour where the request may be served is refused by name.
    fn report_unsupported(&self, admitted: &Admitted, candidates: &[Candidate]) -> Result<(), GatewayErrorKind> {
        let limits = &admitted.request.limits;
        let catalog = admitted.snapshot.catalog();
        let field_of =
            |candidate: &Candidate| catalog.get(&candidate.model).and_then(|model| model.unsupported(limits));
        let constraints = &admitted.constraints;
        let may_serve = |candidate: &&Candidate| {
            let placed = match (constraints.placement, candidate.route) {
                (Placement::LocalOnly, route) => route == Route::Local,
                (Placement::RemoteOnly, route) => route == Route::Remote,
                _ => true,
            };
            placed && constraints.model.as_ref().is_none_or(|model| *model == candidate.model)
        };
        let fields: Option<Vec<&str>> = candidates.iter().filter(may_serve).map(field_of).collect();
        match fields.as_deref() {
            Some([field, ..]) => Err(GatewayErrorKind::Unsupported {
                field: (*field).to_owned(),
                why: "no model that may serve the request can".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// Does what takes milliseconds while other tasks of this thread go on elsewhere, where there is an elsewhere.
fn apart<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// A number in [0, 1) that request and policy determine.
fn draw(request: RequestId, policy_hash: &str) -> f64 {
    let mut hasher = blake3::Hasher::new_derive_key("sluice exploration v1");
    hasher.update(request.0.as_bytes());
    hasher.update(policy_hash.as_bytes());
    let mut first = [0_u8; 8];
    hasher.finalize_xof().fill(&mut first);
    (u64::from_le_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
}
