//! The choice among candidates that nothing excludes: what a rule or placement says, then where the conversation stands,
//! then scores and costs.

use super::live::Standing;
use super::{CertificateState, Facts, Objective, Policy, Second, StreamWins};
use crate::domain::{Candidate, Constraints, ModelId, Placement, Predicted, Reason, ReasonCode, Route, Score};

/// What was chosen, before it becomes a decision.
#[derive(Debug)]
pub(super) struct Choice {
    pub model: ModelId,
    pub route: Route,
    pub reason: Reason,
    pub threshold: Option<f64>,
    pub propensity: f64,
    pub explored: bool,
}

impl Choice {
    /// A choice that no threshold and no draw made.
    pub fn certain(candidate: &Candidate, code: ReasonCode, detail: impl Into<String>) -> Self {
        Self {
            model: candidate.model.clone(),
            route: candidate.route,
            reason: Reason::new(code, detail),
            threshold: None,
            propensity: 1.0,
            explored: false,
        }
    }
}

/// What large models lack where none is open although the policy has some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lacking {
    /// They are not up, or can't serve the request.
    Up,
    /// The cost ceiling leaves no room for them.
    Money,
    /// They are predicted to be late.
    Time,
}

/// Candidates that nothing excludes, in order of preference.
pub(super) struct Open<'c> {
    pub small: Vec<&'c Candidate>,
    pub large: Vec<&'c Candidate>,
    lacking: Lacking,
}

impl<'c> Open<'c> {
    /// Those of `candidates`; `lacking` says what the large ones lack, if none is open.
    pub fn of(candidates: &'c [Candidate], lacking: Lacking) -> Self {
        let open = |route: Route| -> Vec<&Candidate> {
            candidates.iter().filter(|c| c.route == route && c.excluded_by.is_none()).collect()
        };
        Self { small: open(Route::Local), large: open(Route::Remote), lacking }
    }
}

impl Policy {
    /// Chooses; `None` if nothing open may serve.
    pub(super) fn choose(
        &self,
        open: &Open<'_>,
        facts: &Facts,
        constraints: &Constraints,
        threshold: Option<f64>,
    ) -> Option<Choice> {
        let placed = |candidate: &Candidate| {
            let by_rule = constraints.placement_by.starts_with("rule");
            let code = if by_rule { ReasonCode::Rule } else { ReasonCode::Placement };
            let detail = format!("placement {} by {}", constraints.placement.as_str(), constraints.placement_by);
            Choice::certain(candidate, code, detail)
        };
        if let Some(model) = &constraints.model {
            let named = open.small.iter().chain(&open.large).find(|candidate| candidate.model == *model);
            let detail = format!("rule `{}` names {model}", constraints.rule.as_deref().unwrap_or(""));
            return named.map(|candidate| Choice::certain(candidate, ReasonCode::Rule, detail));
        }
        let (best_small, first_large) = (best(&open.small), open.large.first());
        match constraints.placement {
            Placement::LocalOnly => return best_small.map(placed),
            Placement::RemoteOnly => return first_large.map(|candidate| placed(candidate)),
            Placement::PreferLocal if best_small.is_some() => return best_small.map(placed),
            Placement::PreferRemote if first_large.is_some() => return first_large.map(|candidate| placed(candidate)),
            _ => {}
        }
        if let (true, None, Some(small)) = (self.is_safe_locally(), threshold, best_small) {
            return Some(safe_for_money(small, &self.without_threshold(&facts.standing)));
        }
        let certified: Vec<&Candidate> =
            open.small.iter().copied().filter(|candidate| self.is_certified_for(&candidate.model)).collect();
        let reaching = threshold.and_then(|threshold| Some((cheapest_reaching(&certified, threshold)?, threshold)));
        let Some(large) = first_large else {
            // Good enough by the score needs no large model to be up.
            return reaching
                .map(|(small, threshold)| reaches(small, threshold))
                .or_else(|| self.without_large(best_small?, open.lacking));
        };
        if self.sticky.is_some() && facts.went_remote {
            let detail = "the conversation went remote before and stays there".to_owned();
            return Some(Choice::certain(large, ReasonCode::Sticky, detail));
        }
        let Some(small) = best_small else {
            let detail = "no small model can serve this request".to_owned();
            return Some(Choice::certain(large, ReasonCode::OnlyCandidate, detail));
        };
        if let Some((drafting, threshold)) = self.drafting(open, large, facts) {
            return Some(self.by_draft(drafting, large, threshold));
        }
        if let Some((small, threshold)) = reaching {
            return Some(reaches(small, threshold));
        }
        let scored = best(&certified);
        let threshold = threshold.filter(|_| scored.is_some());
        Some(self.by_score(scored.unwrap_or(small), large, facts, threshold))
    }

    /// A small model where no large one is open, if the policy lets it serve then. One that is merely down or late does not
    /// make a small one good enough, unless the policy says so; money that must not be spent does.
    fn without_large(&self, small: &Candidate, lacking: Lacking) -> Option<Choice> {
        if self.large.is_empty() {
            return Some(Choice::certain(small, ReasonCode::OnlyCandidate, "the policy has no large model"));
        }
        match lacking {
            Lacking::Money => {
                let detail = "max_cost leaves no room for the worst case of a large model";
                Some(Choice::certain(small, ReasonCode::CostCeiling, detail))
            }
            Lacking::Up if self.local_when_remote_is_down => {
                Some(Choice::certain(small, ReasonCode::RemoteUnavailable, "no large model is available"))
            }
            Lacking::Up | Lacking::Time => None,
        }
    }

    /// The small model whose draft the judge would look at, and what the draft must reach.
    fn drafting<'c>(&self, open: &Open<'c>, large: &Candidate, facts: &Facts) -> Option<(&'c Candidate, f64)> {
        let (file, threshold) =
            self.judged_at().filter(|_| !(facts.stream && self.stream_wins == StreamWins::FirstByte))?;
        let threshold = facts.standing.applied(Some(threshold))?;
        let drafting = open.small.iter().find(|candidate| candidate.model.as_str() == file.judge.small)?;
        let second = self.predicted_second(drafting, facts);
        self.latency.allow_draft(drafting, second, large, facts.stream).then_some((*drafting, threshold))
    }

    /// How long asking another about a draft is predicted to take, at most; `None` where nobody is asked or nothing is known.
    fn predicted_second(&self, drafting: &Candidate, facts: &Facts) -> Option<Predicted> {
        match self.second.as_ref()? {
            Second::Sample => drafting.predicted,
            Second::Model(model) => facts.candidates.iter().find(|candidate| candidate.model == *model)?.predicted,
        }
    }

    /// Whether the threshold speaks for this small model: a certificate holds for the one it was solved for.
    fn is_certified_for(&self, small: &ModelId) -> bool {
        self.certificate().small().is_none_or(|certified| certified == small.as_str())
    }

    /// Whether the safe side is the small model: where money, not quality, is what must be kept.
    fn is_safe_locally(&self) -> bool {
        matches!(self.objective, Objective::MaxQuality(_))
    }

    /// No small model reaches the threshold, or there is none to reach.
    fn by_score(&self, small: &Candidate, large: &Candidate, facts: &Facts, threshold: Option<f64>) -> Choice {
        let reason = match (small.score.map(Score::get), threshold) {
            (_, None) => self.without_threshold(&facts.standing),
            (None, _) => {
                let detail = format!("there is no score for {}: the safe side", small.model);
                Reason::new(ReasonCode::NoScore, detail)
            }
            (Some(score), Some(threshold)) => {
                let detail = format!("score {score:.3} is below the threshold {threshold:.3}");
                Reason::new(ReasonCode::ScoreBelowThreshold, detail)
            }
        };
        if self.is_safe_locally() && reason.code != ReasonCode::ScoreBelowThreshold {
            return Choice { threshold, ..safe_for_money(small, &reason) };
        }
        // What was withdrawn is not tried either.
        let exploration = if matches!(facts.standing, Standing::Withdrawn(_)) { 0.0 } else { self.exploration };
        let explored = facts.draw < exploration;
        let reason = match explored {
            true => Reason::new(ReasonCode::Explored, format!("tried locally to learn; else: {}", reason.detail)),
            false => reason,
        };
        let chosen = if explored { small } else { large };
        let propensity = if explored { exploration } else { 1.0 - exploration };
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

    fn without_threshold(&self, standing: &Standing) -> Reason {
        match standing {
            Standing::Withdrawn(why) => return Reason::new(ReasonCode::Breach, why.clone()),
            Standing::Tightened(by) if self.threshold().is_some() => {
                let detail = format!("live checks raised the threshold by {by:.3}, past what a score can reach");
                return Reason::new(ReasonCode::Breach, detail);
            }
            _ => {}
        }
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
            CertificateState::Spending(certificate) if certificate.threshold.is_some() => {
                format!("the certificate speaks for {} only, which can't serve this request", certificate.small)
            }
            CertificateState::Spending(_) => "the evidence allows no threshold yet: record more requests".to_owned(),
            // What does not match says itself that it is a certificate.
            CertificateState::Mismatched(why) => why.clone(),
            other => format!("certificate {}", other.describe()),
        };
        Reason::new(ReasonCode::NoCertificate, detail)
    }
}

/// A small candidate where nothing allows to spend.
fn safe_for_money(small: &Candidate, reason: &Reason) -> Choice {
    Choice::certain(small, reason.code, format!("{}: the side that is safe for money", reason.detail))
}

/// A small candidate whose score reaches the threshold serves for certain: exploration only moves what is remote-bound.
fn reaches(small: &Candidate, threshold: f64) -> Choice {
    let score = small.score.map_or(0.0, Score::get);
    let detail = format!("score {score:.3} reaches the threshold {threshold:.3}");
    Choice { threshold: Some(threshold), ..Choice::certain(small, ReasonCode::ScoreAboveThreshold, detail) }
}

/// The small candidate with the highest score; the first where scores are equal or absent.
fn best<'c>(candidates: &[&'c Candidate]) -> Option<&'c Candidate> {
    let score = |candidate: &Candidate| candidate.score.map_or(-1.0, Score::get);
    candidates.iter().copied().reduce(|best, next| if score(next) > score(best) { next } else { best })
}

/// Of the candidates whose score reaches the threshold the one that is expected to cost least; of equals the one with the
/// highest score, then the first.
fn cheapest_reaching<'c>(candidates: &[&'c Candidate], threshold: f64) -> Option<&'c Candidate> {
    let reaching = candidates.iter().copied().filter(|c| c.score.is_some_and(|score| score.get() >= threshold));
    reaching.reduce(|best, next| {
        let cheaper = next.expected_cost.amount < best.expected_cost.amount;
        let as_cheap = next.expected_cost.amount == best.expected_cost.amount;
        if cheaper || (as_cheap && next.score > best.score) { next } else { best }
    })
}
