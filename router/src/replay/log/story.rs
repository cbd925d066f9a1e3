//! The line of a request that the ledger keeps.

use super::line::{LogCandidate, LogLine, LogMessage};
use crate::domain::{Candidate, Decision, Message, Route, Score};
use crate::ledger::Story;

/// The line of an entry; `None` where nothing was decided or nothing complete came of it, and of shadow runs: nobody asked
/// for those.
pub fn line_of(story: &Story) -> Option<LogLine> {
    let entry = &story.entry;
    if entry.shadow_of.is_some() {
        return None;
    }
    let decision = entry.decision.as_ref()?;
    let recording = entry.recording.as_ref();
    let first = recording.map(|recording| &recording.first);
    let cached = decision.route == Route::Cache;
    let model = first.map_or(&decision.model, |first| &first.model);
    let route = if cached { Route::Cache } else { first.map_or(decision.route, |first| first.route) };
    let open = |route: Route| decision.candidates.iter().filter(move |c| c.route == route && c.excluded_by.is_none());
    let other = match route {
        Route::Local | Route::Cascade => open(Route::Remote).next(),
        _ => open(Route::Local).reduce(|best, next| if next.score > best.score { next } else { best }),
    };
    let rest = 1.0 - decision.propensity;
    let alternatives = other.filter(|_| rest > 1e-9).map(|other| (other.model.to_string(), rest));
    let candidate = |candidate: &Candidate| LogCandidate {
        model: candidate.model.to_string(),
        route: candidate.route.as_str().to_owned(),
        score: candidate.score.map(Score::get),
        cost_nano_usd: candidate.expected_cost.amount.nanos(),
        excluded_by: candidate.excluded_by.as_ref().map(ToString::to_string),
        first_byte_ms: candidate.predicted.map(|predicted| predicted.first_byte.as_secs_f64() * 1e3),
        total_ms: candidate.predicted.map(|predicted| predicted.total.as_secs_f64() * 1e3),
    };
    // Several may judge: what was measured counts before a judge, a judge before a user.
    let quality = story.feedback.iter().min_by_key(|feedback| match feedback.source {
        crate::ledger::FeedbackSource::Metric => 0,
        crate::ledger::FeedbackSource::Judge => 1,
        crate::ledger::FeedbackSource::User => 2,
    });
    let message = |message: &Message| LogMessage { role: message.role.as_str().to_owned(), text: message.content() };
    Some(LogLine {
        id: entry.id.to_string(),
        at_ms: entry.received_at.as_millisecond(),
        tenant: entry.tenant.to_string(),
        conversation: entry.conversation_id.clone(),
        labels: entry.labels.clone(),
        experiment: decision.arm.as_ref().map(|arm| arm.experiment.clone()).unwrap_or_default(),
        arm: decision.arm.as_ref().map(|arm| arm.as_str().to_owned()).unwrap_or_default(),
        policy: decision.policy.name.clone(),
        policy_hash: decision.policy.hash.clone(),
        scorer: decision.scorer_version.clone(),
        level: recording.map_or("none", |recording| recording.level.as_str()).to_owned(),
        model: model.to_string(),
        route: route.as_str().to_owned(),
        escalates: first.is_some_and(|first| first.escalates),
        propensity: Some(decision.propensity),
        alternatives: alternatives.into_iter().collect(),
        candidates: decision.candidates.iter().map(candidate).collect(),
        placement: recording.map(|recording| recording.placement.as_str().to_owned()).unwrap_or_default(),
        placement_floor: recording.map(|recording| recording.placement_floor.as_str().to_owned()).unwrap_or_default(),
        regions: recording.and_then(|r| Some(r.residency.regions()?.iter().cloned().collect())),
        prompt_bytes: recording.map_or(0, |recording| recording.prompt_bytes),
        turns: recording.map_or(0, |recording| recording.turns),
        max_tokens: recording.and_then(|recording| recording.max_tokens),
        messages: recording.map(|recording| recording.messages.iter().map(message).collect()).unwrap_or_default(),
        cost_nano_usd: entry.cost.amount.nanos(),
        latency_ms: entry.latency.as_secs_f64() * 1e3,
        status: entry.status.as_str().to_owned(),
        ended_remote: ended_remote(decision),
        quality: quality.map(|feedback| feedback.value),
        sampling_probability: None,
    })
}

/// Whether the model of the decision that held at the end is a remote one.
fn ended_remote(decision: &Decision) -> bool {
    let model = decision.candidates.iter().find(|candidate| candidate.model == decision.model);
    decision.route != Route::Cache && model.is_some_and(|model| model.route == Route::Remote)
}
