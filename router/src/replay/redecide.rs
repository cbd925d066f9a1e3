//! What a policy would choose for a recorded request, with what probability: the policy's own `constrain` and `decide` on
//! the facts that were recorded.

use super::log::{Action, Logged};
use crate::catalog::{Catalog, Model};
use crate::domain::{Candidate, Constraints, Cost, CostBasis, Decision, ModelId, Reason, Request, Route, Score, Usage};
use crate::policy::{Facts, Policy};
use crate::score::Scorers;
use std::collections::BTreeMap;

/// Tokens of an answer that costs are expected for, as the gateway expects them.
const EXPECTED_OUTPUT_TOKENS: u32 = 256;

/// A policy with what it needs to decide.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The policy, with its certificate.
    pub policy: &'a Policy,
    /// Models and prices.
    pub catalog: &'a Catalog,
    /// The scorers that would be in use.
    pub scorers: &'a Scorers,
}

/// Why a request can't be decided again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unusable {
    /// The cache answered: no route was taken.
    Cached,
    /// Recorded at level `none`.
    NotRecorded,
    /// A rule reads the prompt, which was not recorded.
    RuleReadsText,
    /// The scorer in use is not the one that scored it, and there is no text to score.
    NoTextToScore,
    /// The policy would refuse it.
    Refused,
}

impl Unusable {
    /// In words, with the mend.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Cached => "answered by the cache: left as they are",
            Self::NotRecorded => "recorded at level none: set `tenants.NAME.record`",
            Self::RuleReadsText => "a rule reads the prompt, which was not recorded: record text",
            Self::NoTextToScore => "scored by another scorer and without text to score again: record text",
            Self::Refused => "the policy would refuse them",
        }
    }
}

/// What a target knows of a request before it decides.
pub struct Prepared {
    facts: Facts,
    constraints: Constraints,
}

impl Prepared {
    /// The most that an attempt at any of the large models can cost, USD.
    pub fn worst_usd(&self) -> f64 {
        self.facts.candidates.iter().map(|candidate| candidate.worst_cost.as_usd()).fold(0.0, f64::max)
    }

    /// What a model is expected to cost by its prices, USD.
    pub fn expected_usd(&self, model: &ModelId) -> Option<f64> {
        let found = self.facts.candidates.iter().find(|candidate| candidate.model == *model);
        found.map(|candidate| candidate.expected_cost.amount.as_usd())
    }
}

/// One way a target may go.
#[derive(Clone, Debug)]
pub struct Way {
    /// The choice.
    pub action: Action,
    /// Whether it is local.
    pub local: bool,
    /// Its probability.
    pub probability: f64,
    /// Why.
    pub reason: Reason,
}

/// What a target would do with a request.
#[derive(Clone, Debug)]
pub struct Redecision {
    /// All ways, the likeliest first; probabilities sum to 1.
    pub ways: Vec<Way>,
    /// Score of the best small candidate.
    pub score: Option<f64>,
    /// Expected cost in USD of each model.
    pub expected_costs: BTreeMap<ModelId, f64>,
}

impl Target<'_> {
    /// Gathers constraints and scores.
    ///
    /// # Errors
    /// Too little was recorded.
    pub fn prepare(&self, row: &Logged) -> Result<Prepared, Unusable> {
        if row.action.is_none() {
            return Err(Unusable::Cached);
        }
        let request = row.request.as_ref().ok_or(Unusable::NotRecorded)?;
        if self.policy.reads_prompt() && !row.has_text {
            return Err(Unusable::RuleReadsText);
        }
        let constraints = self.policy.constrain(request).map_err(|_| Unusable::Refused)?;
        let models = self.policy.small.iter().chain(&self.policy.large).filter_map(|model| self.catalog.get(model));
        let candidates = models.map(|model| self.candidate(row, request, model)).collect::<Result<Vec<_>, _>>()?;
        // Replay asks for all ways; no single draw is made.
        Ok(Prepared {
            facts: Facts { candidates, went_remote: row.is_sticky(self.policy.sticky), ..Facts::default() },
            constraints,
        })
    }

    fn candidate(&self, row: &Logged, request: &Request, model: &Model) -> Result<Candidate, Unusable> {
        let recorded = row.candidates.iter().find(|candidate| candidate.model == model.id);
        let expected = Usage {
            input_tokens: (request.prompt_bytes() as u64).div_ceil(4),
            output_tokens: u64::from(model.output_cap(request.limits.max_tokens).min(EXPECTED_OUTPUT_TOKENS)),
            ..Usage::default()
        };
        let score = match model.route() {
            Route::Local => self.score(row, request, model, recorded.and_then(|candidate| candidate.score))?,
            _ => None,
        };
        Ok(Candidate {
            score,
            expected_cost: Cost { amount: model.cost(&expected), basis: CostBasis::Estimated },
            worst_cost: model.bound(
                request.prompt_bytes() as u64,
                request.messages.len() as u64,
                model.output_cap(request.limits.max_tokens),
            ),
            predicted: recorded.and_then(|candidate| candidate.predicted),
            region: model.region.clone(),
            excluded_by: recorded.and_then(|candidate| candidate.excluded_by.clone()),
            ..Candidate::new(model.id.clone(), model.route())
        })
    }

    fn score(
        &self,
        row: &Logged,
        request: &Request,
        model: &Model,
        recorded: Option<Score>,
    ) -> Result<Option<Score>, Unusable> {
        let Some(scorer) = self.policy.scorer(&model.id, self.scorers, self.catalog) else { return Ok(recorded) };
        if scorer.version() == row.scorer && recorded.is_some() {
            return Ok(recorded);
        }
        match row.has_text {
            true => Ok(scorer.score(&request.messages).ok()),
            false => Err(Unusable::NoTextToScore),
        }
    }

    /// What the target would do at its own threshold.
    ///
    /// # Errors
    /// The policy would refuse.
    pub fn redecide(&self, prepared: &Prepared) -> Result<Redecision, Unusable> {
        self.redecide_at(prepared, self.policy.threshold())
    }

    /// What the target would do at another threshold.
    ///
    /// # Errors
    /// The policy would refuse.
    pub fn redecide_at(&self, prepared: &Prepared, threshold: Option<f64>) -> Result<Redecision, Unusable> {
        let decide = |draw: f64| {
            let facts = Facts { draw, ..prepared.facts.clone() };
            self.policy.decide_with(&facts, &prepared.constraints, threshold).map_err(|_| Unusable::Refused)
        };
        let usual = decide(1.0)?;
        let mut ways = vec![self.way(&usual)];
        if usual.propensity < 1.0 {
            ways.push(self.way(&decide(0.0)?));
        }
        ways.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        let candidates = &prepared.facts.candidates;
        let costs = candidates.iter().map(|c| (c.model.clone(), c.expected_cost.amount.as_usd()));
        let scores = candidates.iter().filter_map(|candidate| candidate.score).map(Score::get);
        Ok(Redecision { ways, score: scores.reduce(f64::max), expected_costs: costs.collect() })
    }

    fn way(&self, decision: &Decision) -> Way {
        // A draft under judgement is made here, wherever it may go then.
        let local = matches!(decision.route, Route::Local | Route::Cascade);
        let escalates = local && decision.escalate_to.is_some();
        let judged = decision.route == Route::Cascade;
        Way {
            action: Action { model: decision.model.clone(), escalates, judged },
            local,
            probability: decision.propensity,
            reason: decision.reason.clone(),
        }
    }
}
