//! A second opinion on a draft that the judge can't decide on alone: the same model is asked once more, not greedily, or
//! another small one. It is an attempt like any other — journalled, booked, ended by a hang-up or the deadline — but nobody is
//! shown what it says: only whether it agrees is looked at.

use super::attempt::{AttemptEnd, attempt};
use super::draft::Kept;
use super::run::Run;
use crate::domain::ModelId;
use crate::evidence::grading::agree;
use crate::judge::SECOND_TEMPERATURE;
use crate::policy::Second;

/// What somebody else said of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The same.
    Agrees,
    /// Something else.
    Differs,
    /// Nothing: nobody was asked, or no answer came.
    Nothing,
}

impl Said {
    /// As the judge takes it.
    pub fn agrees(self) -> Option<f64> {
        match self {
            Self::Agrees => Some(1.0),
            Self::Differs => Some(0.0),
            Self::Nothing => None,
        }
    }

    /// As reasons tell it; empty for nothing.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Agrees => "; a second opinion agrees",
            Self::Differs => "; a second opinion differs",
            Self::Nothing => "",
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Differs => "differs",
            Self::Nothing => "nothing",
        }
    }
}

/// Asks whom the policy names about a draft of `drafted_by`.
///
/// # Errors
/// The caller hung up or the deadline passed meanwhile: the request ends so.
pub async fn ask(run: &mut Run, kept: &Kept, drafted_by: &ModelId) -> Result<Said, AttemptEnd> {
    let Some(second) = run.admitted.policy.second.clone() else { return Ok(Said::Nothing) };
    let (model, number) = match &second {
        Second::Sample => (drafted_by.clone(), 2),
        Second::Model(model) => (model.clone(), 1),
    };
    let said = if is_permitted(run, &model) { opinion(run, kept, &model, number).await? } else { Said::Nothing };
    run.gateway.metrics.second_opinion(&run.admitted.policy.reference.name, said.as_str());
    Ok(said)
}

/// Residency binds whoever is asked as it binds who serves.
fn is_permitted(run: &Run, model: &ModelId) -> bool {
    let entry = run.admitted.snapshot.catalog().get(model);
    entry.is_some_and(|entry| run.admitted.constraints.residency.permits(entry.region.as_deref()))
}

async fn opinion(run: &mut Run, kept: &Kept, model: &ModelId, number: u32) -> Result<Said, AttemptEnd> {
    let asked = run.admitted.request.limits.clone();
    let limits = &mut run.admitted.request.limits;
    limits.logprobs = None;
    if number > 1 {
        // Greedily, or from the same seed, the same model would only repeat itself.
        limits.temperature = Some(limits.temperature.unwrap_or(0.0).max(SECOND_TEMPERATURE));
        limits.seed = limits.seed.map(|seed| seed.wrapping_add(1));
    }
    run.aside = Some(String::new());
    // An attempt within an attempt: its future has to have a size.
    let end = Box::pin(attempt(run, model, number)).await;
    run.admitted.request.limits = asked;
    let text = run.aside.take().unwrap_or_default();
    match end {
        AttemptEnd::Complete(_) if agree(kept.text(), &text) => Ok(Said::Agrees),
        AttemptEnd::Complete(_) | AttemptEnd::Declined => Ok(Said::Differs),
        end @ (AttemptEnd::Cancelled | AttemptEnd::DeadlineExceeded) => Err(end),
        _ => Ok(Said::Nothing),
    }
}
