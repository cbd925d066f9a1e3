//! From facts to a decision: pure and total. Whatever the facts, the result is a decision that the constraints allow, or a
//! refusal that says why each candidate was out.

use super::{CertificateState, Policy, StreamWins};
use crate::domain::{
    Candidate, Constraints, Decision, ExcludedBy, ModelId, Placement, PlacementConflict, Reason, ReasonCode, Route,
    Score,
};

/// What is known when a request is decided.
#[derive(Clone, Debug)]
pub struct Facts {
    /// All of the policy's models, small ones first, with scores, expected costs and what excludes them.
    pub candidates: Vec<Candidate>,
    /// Version of the scorer; empty where none was used.
    pub scorer_version: String,
    /// A number in [0, 1) made of request id and policy: decides exploration.
    pub draw: f64,
    /// Whether the answer is streamed.
    pub stream: bool,
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
}

fn describe(excluded: &[(ModelId, ExcludedBy)]) -> String {
    let each: Vec<String> = excluded.iter().map(|(model, why)| format!("{model}: {why}")).collect();
    each.join("; ")
}

/// What was chosen, before it becomes a decision.
struct Choice {
    model: ModelId,
    route: Route,
    reason: Reason,
    threshold: Option<f64>,
    propensity: f64,
    explored: bool,
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
        let candidates: Vec<Candidate> =
            facts.candidates.iter().map(|candidate| constrained(candidate, constraints)).collect();
        let open = |route: Route| -> Vec<&Candidate> {
            candidates.iter().filter(|c| c.route == route && c.excluded_by.is_none()).collect()
        };
        let (small, large) = (open(Route::Local), open(Route::Remote));
        let choice = self.choose(&small, &large, facts, constraints, threshold).ok_or_else(|| {
            let excluded = candidates.iter().filter_map(|c| Some((c.model.clone(), c.excluded_by.clone()?)));
            Refusal::NoCandidate(excluded.collect())
        })?;
        let large_models = || large.iter().map(|candidate| candidate.model.clone());
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
            candidates,
        })
    }

    fn choose(
        &self,
        small: &[&Candidate],
        large: &[&Candidate],
        facts: &Facts,
        constraints: &Constraints,
        threshold: Option<f64>,
    ) -> Option<Choice> {
        let certain = |candidate: &Candidate, code: ReasonCode, detail: String| Choice {
            model: candidate.model.clone(),
            route: candidate.route,
            reason: Reason::new(code, detail),
            threshold: None,
            propensity: 1.0,
            explored: false,
        };
        let placed = |candidate: &Candidate| {
            let by_rule = constraints.placement_by.starts_with("rule");
            let code = if by_rule { ReasonCode::Rule } else { ReasonCode::Placement };
            let detail = format!("placement {} by {}", constraints.placement.as_str(), constraints.placement_by);
            certain(candidate, code, detail)
        };
        if let Some(model) = &constraints.model {
            let named = small.iter().chain(large).find(|candidate| candidate.model == *model);
            let detail = format!("rule `{}` names {model}", constraints.rule.as_deref().unwrap_or(""));
            return named.map(|candidate| certain(candidate, ReasonCode::Rule, detail));
        }
        let best_small = best(small);
        match constraints.placement {
            Placement::LocalOnly => return best_small.map(placed),
            Placement::RemoteOnly => return large.first().map(|candidate| placed(candidate)),
            Placement::PreferLocal if best_small.is_some() => return best_small.map(placed),
            Placement::PreferRemote if !large.is_empty() => return large.first().map(|candidate| placed(candidate)),
            _ => {}
        }
        let certified: Vec<&Candidate> =
            small.iter().copied().filter(|candidate| self.is_certified_for(&candidate.model)).collect();
        let scored = best(&certified);
        if large.is_empty()
            && let (Some(small), Some(threshold)) = (scored, threshold)
            && small.score.is_some_and(|score| score.get() >= threshold)
        {
            // Good enough by the score needs no large model to be up.
            return Some(reaches(small, threshold));
        }
        let Some(large) = large.first() else {
            // A large model that is merely down does not make a small one good enough, unless the policy says so.
            let allowed = self.local_when_remote_is_down || self.large.is_empty();
            let (code, detail) = match self.large.is_empty() {
                true => (ReasonCode::OnlyCandidate, "the policy has no large model".to_owned()),
                false => (ReasonCode::RemoteUnavailable, "no large model is available".to_owned()),
            };
            return best_small.filter(|_| allowed).map(|small| certain(small, code, detail));
        };
        let open_small = small;
        let Some(small) = best_small else {
            return Some(certain(large, ReasonCode::OnlyCandidate, "no small model can serve this request".to_owned()));
        };
        let judged = self.judged_at().filter(|_| !(facts.stream && self.stream_wins == StreamWins::FirstByte));
        let drafting = judged.and_then(|(file, threshold)| {
            let drafting = open_small.iter().find(|candidate| candidate.model.as_str() == file.judge.small)?;
            Some((*drafting, threshold))
        });
        if let Some((drafting, threshold)) = drafting {
            return Some(self.by_draft(drafting, large, threshold));
        }
        Some(self.by_score(scored.unwrap_or(small), large, facts.draw, threshold.filter(|_| scored.is_some())))
    }

    /// Whether the threshold speaks for this small model: a certificate holds for the one it was solved for.
    fn is_certified_for(&self, small: &ModelId) -> bool {
        match self.certificate() {
            CertificateState::Valid(certificate) => certificate.small == small.as_str(),
            _ => true,
        }
    }

    fn by_score(&self, small: &Candidate, large: &Candidate, draw: f64, threshold: Option<f64>) -> Choice {
        let reason = match (small.score.map(Score::get), threshold) {
            (_, None) => self.without_threshold(),
            (None, _) => {
                let detail = format!("there is no score for {}: the safe side", small.model);
                Reason::new(ReasonCode::NoScore, detail)
            }
            (Some(score), Some(threshold)) if score >= threshold => return reaches(small, threshold),
            (Some(score), Some(threshold)) => {
                let detail = format!("score {score:.3} is below the threshold {threshold:.3}");
                Reason::new(ReasonCode::ScoreBelowThreshold, detail)
            }
        };
        let explored = draw < self.exploration;
        let reason = match explored {
            true => Reason::new(ReasonCode::Explored, format!("tried locally to learn; else: {}", reason.detail)),
            false => reason,
        };
        let chosen = if explored { small } else { large };
        let propensity = if explored { self.exploration } else { 1.0 - self.exploration };
        Choice { model: chosen.model.clone(), route: chosen.route, reason, threshold, propensity, explored }
    }

    /// A draft that the judge will look at, unless the prompt alone says that it is not worth trying.
    fn by_draft(&self, small: &Candidate, large: &Candidate, threshold: f64) -> Choice {
        let score = small.score.map(Score::get).filter(|score| *score < self.draft_above);
        let (chosen, route, reason) = match score {
            Some(score) => {
                let detail = format!("score {score:.3} is below {:.3}, from which a draft is tried", self.draft_above);
                (large, large.route, Reason::new(ReasonCode::ScoreBelowThreshold, detail))
            }
            None => {
                let detail = format!("a draft of {} is shown if it is judged {threshold:.3} or better", small.model);
                (small, Route::Cascade, Reason::new(ReasonCode::Draft, detail))
            }
        };
        let threshold = Some(threshold);
        Choice { model: chosen.model.clone(), route, reason, threshold, propensity: 1.0, explored: false }
    }

    fn without_threshold(&self) -> Reason {
        let detail = match self.certificate() {
            CertificateState::Valid(certificate) if certificate.threshold.is_some() => {
                format!("the certificate speaks for {} only, which can't serve this request", certificate.small)
            }
            CertificateState::Valid(certificate) => match certificate.needed {
                Some(needed) => {
                    format!("the evidence allows no threshold yet; about {needed} more outcomes are needed")
                }
                None => "the evidence allows no threshold".to_owned(),
            },
            other => format!("certificate {}", other.describe()),
        };
        Reason::new(ReasonCode::NoCertificate, detail)
    }
}

/// A small candidate whose score reaches the threshold serves for certain: exploration only moves what is remote-bound.
fn reaches(small: &Candidate, threshold: f64) -> Choice {
    let score = small.score.map_or(0.0, Score::get);
    let detail = format!("score {score:.3} reaches the threshold {threshold:.3}");
    Choice {
        model: small.model.clone(),
        route: small.route,
        reason: Reason::new(ReasonCode::ScoreAboveThreshold, detail),
        threshold: Some(threshold),
        propensity: 1.0,
        explored: false,
    }
}

/// The small candidate with the highest score; the first where scores are equal or absent.
fn best<'c>(candidates: &[&'c Candidate]) -> Option<&'c Candidate> {
    let score = |candidate: &Candidate| candidate.score.map_or(-1.0, Score::get);
    candidates.iter().copied().reduce(|best, next| if score(next) > score(best) { next } else { best })
}

fn constrained(candidate: &Candidate, constraints: &Constraints) -> Candidate {
    let barred = match (constraints.placement, candidate.route) {
        (Placement::LocalOnly, Route::Remote) | (Placement::RemoteOnly, Route::Local) => {
            Some(format!("placement {} ({})", constraints.placement.as_str(), constraints.placement_by))
        }
        _ => match (&constraints.model, &constraints.rule) {
            (Some(model), rule) if *model != candidate.model => {
                Some(format!("rule `{}` names {model}", rule.as_deref().unwrap_or("")))
            }
            _ => None,
        },
    };
    let mut candidate = candidate.clone();
    if let Some(why) = barred {
        candidate.excluded_by = Some(ExcludedBy(why));
    }
    candidate
}
