//! Ceilings on latency and cost, as far as one request is concerned: who is predicted to miss them, and who serves then.
//!
//! A ceiling on latency never buys speed with quality that was promised: a small model that the threshold would not let
//! serve does not serve because the large one is late, unless `when_late = "fastest"` says so.

use super::choose::{Choice, Lacking, Open};
use super::{Facts, Policy, Refusal};
use crate::domain::{Candidate, Constraints, ExcludedBy, NanoUsd, Predicted, Reason, ReasonCode, Route};
use std::time::Duration;

/// How an exclusion for a latency ceiling begins.
pub const LATE: &str = "predicted to";

/// Ceilings on latency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyCeilings {
    /// Of the whole answer, at the 95th percentile.
    pub total: Option<Duration>,
    /// Of the first byte of a streamed answer, at the 95th percentile.
    pub first_byte: Option<Duration>,
    /// What serves where nothing is predicted to be in time.
    pub when_late: WhenLate,
}

/// What serves where nothing that may serve is predicted to be in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenLate {
    /// What would serve without the ceiling.
    #[default]
    Quality,
    /// Whatever is predicted to be fastest.
    Fastest,
    /// Nothing: the request is refused.
    Refuse,
}

impl LatencyCeilings {
    /// What a prediction misses, in words; `None` if nothing.
    fn missed(&self, predicted: Predicted, stream: bool) -> Option<String> {
        let over = |what: &str, time: Duration, key: &str, ceiling: Option<Duration>| {
            let ceiling = ceiling.filter(|ceiling| time > *ceiling)?;
            Some(format!("{LATE} {what} {}, over {key} {}", seconds(time), seconds(ceiling)))
        };
        over("take", predicted.total, "max_latency", self.total).or_else(|| {
            let ceiling = self.first_byte.filter(|_| stream);
            over("show its first byte after", predicted.first_byte, "max_first_byte", ceiling)
        })
    }

    /// Whether a draft that is kept back until it is judged — after another small model was asked, which takes as long as
    /// `second` says — and may then have to be escalated, would be in time even so.
    pub fn allow_draft(&self, small: &Candidate, second: Option<Predicted>, large: &Candidate, stream: bool) -> bool {
        let (Some(draft), Some(after)) = (small.predicted, large.predicted) else { return true };
        let before = draft.total + second.map_or(Duration::ZERO, |second| second.total);
        let all = Predicted { first_byte: before + after.first_byte, total: before + after.total };
        self.missed(all, stream).is_none()
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Excludes large models whose worst case money does not allow: under a budget only where another one fits, because the
/// hold has the last word there; under a cost ceiling all of them. Yields whether the ceiling left no large model.
pub fn price_out(candidates: &mut [Candidate], facts: &Facts) -> bool {
    let open = |candidate: &Candidate| candidate.route == Route::Remote && candidate.excluded_by.is_none();
    let mut exclude = |left: Option<NanoUsd>, what: &str, all: bool| {
        let Some(left) = left else { return false };
        let fits = candidates.iter().any(|candidate| open(candidate) && candidate.worst_cost <= left);
        let mut any = false;
        for candidate in candidates.iter_mut().filter(|candidate| open(candidate) && candidate.worst_cost > left) {
            if fits || all {
                let why = format!(
                    "{} {} is more than the {left} that {what} leaves",
                    ExcludedBy::WORST_CASE,
                    candidate.worst_cost
                );
                candidate.excluded_by = Some(ExcludedBy(why));
                any = true;
            }
        }
        any && !fits
    };
    exclude(facts.budget_left, "the budget", false);
    exclude(facts.allowance, "max_cost", true)
}

impl Policy {
    /// Chooses among candidates that are predicted to be in time; excludes the others in `candidates` where that decided.
    ///
    /// # Errors
    /// Nothing is in time, and the policy refuses then.
    pub(super) fn choose_in_time(
        &self,
        candidates: &mut Vec<Candidate>,
        lacking: Lacking,
        facts: &Facts,
        constraints: &Constraints,
        threshold: Option<f64>,
    ) -> Result<Option<Choice>, Refusal> {
        let usual = self.choose(&Open::of(candidates, lacking), facts, constraints, threshold);
        let missed = |candidate: &Candidate| {
            let predicted = candidate.predicted.filter(|_| candidate.excluded_by.is_none())?;
            self.latency.missed(predicted, facts.stream)
        };
        if !candidates.iter().any(|candidate| missed(candidate).is_some()) {
            return Ok(usual);
        }
        let in_time: Vec<Candidate> = candidates
            .iter()
            .map(|candidate| match missed(candidate) {
                Some(why) => Candidate { excluded_by: Some(ExcludedBy(why)), ..candidate.clone() },
                None => candidate.clone(),
            })
            .collect();
        let had_large = !Open::of(candidates, lacking).large.is_empty();
        let lacking = if had_large { Lacking::Time } else { lacking };
        if let Some(mut choice) = self.choose(&Open::of(&in_time, lacking), facts, constraints, threshold) {
            match usual {
                Some(usual) if usual.model == choice.model && usual.route == choice.route => choice = usual,
                usual => {
                    let passed_over = usual.and_then(|usual| {
                        let candidate = candidates.iter().find(|candidate| candidate.model == usual.model)?;
                        Some(format!("{} is {}", usual.model, missed(candidate)?))
                    });
                    if let Some(why) = passed_over {
                        let detail = format!("{why}; among the others: {}", choice.reason.detail);
                        choice.reason = Reason::new(ReasonCode::LatencyCeiling, detail);
                    }
                }
            }
            *candidates = in_time;
            return Ok(Some(choice));
        }
        match self.latency.when_late {
            WhenLate::Quality => Ok(usual.map(|choice| {
                let detail =
                    format!("nothing that may serve is predicted to be in time; else: {}", choice.reason.detail);
                Choice { reason: Reason::new(ReasonCode::Late, detail), ..choice }
            })),
            WhenLate::Fastest => {
                let open = candidates.iter().filter(|candidate| candidate.excluded_by.is_none());
                let timed = open.filter_map(|candidate| Some((candidate.predicted?.total, candidate)));
                let fastest = timed.min_by_key(|(total, _)| *total);
                Ok(fastest.map(|(total, candidate)| {
                    let detail = format!(
                        "nothing that may serve is predicted to be in time; the fastest takes {}",
                        seconds(total)
                    );
                    Choice::certain(candidate, ReasonCode::Late, detail)
                }))
            }
            WhenLate::Refuse => {
                let late = in_time.into_iter().filter_map(|c| Some((c.model, c.excluded_by?)));
                Err(Refusal::Late(late.collect()))
            }
        }
    }
}
