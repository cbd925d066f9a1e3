//! From facts to a decision: pure and total. Whatever the facts, the result is a decision that the constraints allow, or a
//! refusal that says why each candidate was out.

use super::Policy;
use super::ceilings::price_out;
use super::choose::{Lacking, Open};
use super::live::Standing;
use crate::domain::{
    Candidate, Constraints, Decision, ExcludedBy, ModelId, NanoUsd, Placement, PlacementConflict, Route,
};

/// What is known when a request is decided.
#[derive(Clone, Debug)]
pub struct Facts {
    /// All of the policy's models, small ones first, with scores, costs, predictions and what excludes them.
    pub candidates: Vec<Candidate>,
    /// Version of the scorer; empty where none was used.
    pub scorer_version: String,
    /// A number in [0, 1) made of request id and policy: decides exploration.
    pub draw: f64,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether the conversation was served remotely before, within the policy's `sticky_ttl`.
    pub went_remote: bool,
    /// What the tenant's budgets still allow; `None` is no limit.
    pub budget_left: Option<NanoUsd>,
    /// What the policy's cost ceiling still allows; `None` is no ceiling.
    pub allowance: Option<NanoUsd>,
    /// How far live checks let the certificates stand.
    pub standing: Standing,
}

impl Default for Facts {
    /// No candidate, no limit, no exploration.
    fn default() -> Self {
        Self {
            candidates: Vec::new(),
            scorer_version: String::new(),
            draw: 1.0,
            stream: false,
            went_remote: false,
            budget_left: None,
            allowance: None,
            standing: Standing::Holds,
        }
    }
}

/// Why a request can't be decided.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Client, key, policy or rule contradict each other.
    #[error(transparent)]
    Conflict(#[from] PlacementConflict),
    /// Nothing is left.
    #[error("{}", describe(.0))]
    NoCandidate(Vec<(ModelId, ExcludedBy)>),
    /// No model that placement allows runs where the request may be served.
    #[error("the request may be served {demand}, and no model that may serve it runs there: {}", describe(.excluded))]
    NoRegion {
        /// The field nearest to the client that demands it, such as `ask.regions`.
        field: String,
        /// The demand, in words.
        demand: String,
        /// Each candidate and why it is out.
        excluded: Vec<(ModelId, ExcludedBy)>,
    },
    /// Only large models may serve, and the policy's cost ceiling has no room for one.
    #[error("{}", describe(.0))]
    CostCeiling(Vec<(ModelId, ExcludedBy)>),
    /// Everything that may serve is predicted to be too late, and the policy refuses then.
    #[error("no model is predicted to answer in time: {}", describe(.0))]
    Late(Vec<(ModelId, ExcludedBy)>),
}

fn describe(excluded: &[(ModelId, ExcludedBy)]) -> String {
    let each: Vec<String> = excluded.iter().map(|(model, why)| format!("{model}: {why}")).collect();
    each.join("; ")
}

impl Policy {
    /// Decides. Candidates that the constraints forbid are excluded here, whatever the caller thought.
    ///
    /// # Errors
    /// No candidate is left.
    pub fn decide(&self, facts: &Facts, constraints: &Constraints) -> Result<Decision, Refusal> {
        self.decide_with(facts, constraints, self.threshold())
    }

    /// Decides with another threshold, as embedded tests and replay may.
    ///
    /// # Errors
    /// No candidate is left.
    pub fn decide_with(
        &self,
        facts: &Facts,
        constraints: &Constraints,
        threshold: Option<f64>,
    ) -> Result<Decision, Refusal> {
        let threshold = facts.standing.applied(threshold);
        let mut candidates: Vec<Candidate> =
            facts.candidates.iter().map(|candidate| constrained(candidate, constraints)).collect();
        let priced_out = price_out(&mut candidates, facts);
        let lacking = if priced_out { Lacking::Money } else { Lacking::Up };
        let chosen = self.choose_in_time(&mut candidates, lacking, facts, constraints, threshold)?;
        let Some(choice) = chosen else { return Err(refusal(&candidates, constraints, priced_out)) };
        let open = Open::of(&candidates, lacking);
        let large_models = || open.large.iter().map(|candidate| candidate.model.clone());
        let escalate_to = match choice.route {
            Route::Local | Route::Cascade if self.escalate => large_models().next(),
            _ => None,
        };
        let fallbacks = match choice.route {
            Route::Remote => large_models().filter(|model| *model != choice.model).collect(),
            _ => Vec::new(),
        };
        Ok(Decision {
            route: choice.route,
            model: choice.model,
            fallbacks,
            escalate_to,
            reason: choice.reason,
            threshold: choice.threshold,
            policy: self.reference.clone(),
            scorer_version: facts.scorer_version.clone(),
            propensity: choice.propensity,
            explored: choice.explored,
            arm: None,
            candidates,
        })
    }
}

/// Why nothing could be chosen, by what can be done about it.
fn refusal(candidates: &[Candidate], constraints: &Constraints, priced_out: bool) -> Refusal {
    let excluded: Vec<(ModelId, ExcludedBy)> =
        candidates.iter().filter_map(|c| Some((c.model.clone(), c.excluded_by.clone()?))).collect();
    let residency = &constraints.residency;
    let elsewhere = |candidate: &Candidate| {
        barred(candidate, constraints).is_some() || !residency.permits(candidate.region.as_deref())
    };
    if !residency.is_anywhere()
        && candidates.iter().all(elsewhere)
        && candidates.iter().any(|candidate| barred(candidate, constraints).is_none())
    {
        let field = residency.by().first().cloned().unwrap_or_default();
        return Refusal::NoRegion { field, demand: residency.describe(), excluded };
    }
    match priced_out {
        true => Refusal::CostCeiling(excluded),
        false => Refusal::NoCandidate(excluded),
    }
}

/// Why placement or a rule's model forbids a candidate, if they do.
fn barred(candidate: &Candidate, constraints: &Constraints) -> Option<String> {
    match (constraints.placement, candidate.route) {
        (Placement::LocalOnly, Route::Remote) | (Placement::RemoteOnly, Route::Local) => {
            Some(format!("placement {} ({})", constraints.placement.as_str(), constraints.placement_by))
        }
        _ => match (&constraints.model, &constraints.rule) {
            (Some(model), rule) if *model != candidate.model => {
                Some(format!("rule `{}` names {model}", rule.as_deref().unwrap_or("")))
            }
            _ => None,
        },
    }
}

fn constrained(candidate: &Candidate, constraints: &Constraints) -> Candidate {
    let residency = &constraints.residency;
    let elsewhere = || {
        let region = candidate.region.as_deref();
        let place = region.map_or_else(|| "it has no region".to_owned(), |region| format!("region {region}"));
        (!residency.permits(region)).then(|| format!("{REGION} {place}; allowed is {}", residency.describe()))
    };
    let mut candidate_now = candidate.clone();
    if let Some(why) = barred(candidate, constraints).or_else(elsewhere) {
        candidate_now.excluded_by = Some(ExcludedBy(why));
    }
    candidate_now
}

/// How an exclusion for the sake of residency begins.
const REGION: &str = "residency:";

/// Whether an exclusion is a policy's own word on a request, which another policy, or the same one later, decides anew.
pub fn is_decided_anew(excluded_by: &ExcludedBy) -> bool {
    let beginnings = ["placement ", "rule `", REGION, super::ceilings::LATE, ExcludedBy::WORST_CASE];
    beginnings.iter().any(|beginning| excluded_by.0.starts_with(beginning))
}
