//! The attempts of one request: first the decided model, then — only while nothing was shown — retries, fallbacks, the
//! escalation of a declined draft, or a way round a busy, broken or unaffordable model. Owns the request until it is booked.

use super::attempt::{AttemptEnd, attempt};
use super::reply::{FailureReport, GatewayError, GatewayErrorKind, ReplyEvent, Summary};
use super::{Admitted, Gateway, shadow};
use crate::backend::BackendError;
use crate::domain::{
    Candidate, Cost, Decision, EntryStatus, Finish, ModelId, NanoUsd, Placement, Reason, ReasonCode, Recording,
    RequestId, Route, Usage,
};
use crate::ledger::ShadowOf;
use crate::policy::OnExhausted;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Where the events of a run go. Closed means that the caller hung up.
pub type Events = mpsc::Sender<Result<ReplyEvent, GatewayError>>;

/// Shortest wait that is suggested to a caller where nothing better is known.
pub const RETRY_SOON: Duration = Duration::from_millis(500);

/// What all attempts of a request used.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Tokens.
    pub usage: Usage,
    /// Processor time of the local model, in seconds.
    pub cpu_seconds: f64,
    /// Money.
    pub cost: Cost,
    /// Attempts made.
    pub attempts: u32,
}

impl Default for Totals {
    fn default() -> Self {
        Self { usage: Usage::default(), cpu_seconds: 0.0, cost: Cost::FREE, attempts: 0 }
    }
}

/// One request under way.
pub struct Run {
    pub(super) gateway: Arc<Gateway>,
    pub(super) admitted: Admitted,
    pub(super) decision: Decision,
    pub(super) events: Events,
    pub(super) totals: Totals,
    pub(super) shown: bool,
    pub(super) first_byte: Option<Duration>,
    /// Pieces of text that the attempt under way has given.
    pub(super) chunks: u64,
    pub(super) answer: String,
    /// While somebody else is asked about a draft: what they say. Nothing of it is shown.
    pub(super) aside: Option<String>,
    /// The request whose answer this one shares.
    pub(super) cached_from: Option<RequestId>,
    /// A baseline that is known otherwise.
    pub(super) baseline: Option<NanoUsd>,
    /// What the tenant's record level keeps of the request, with what was decided first.
    pub(super) recording: Option<Recording>,
    /// Of a shadow run: whose answer it is compared with.
    pub(super) shadow: Option<ShadowOf>,
    /// Of a shadow run: what the large model answered.
    pub(super) by_large: String,
    tried: Vec<ModelId>,
}

impl Run {
    /// A run of `admitted`, decided as `decision`.
    pub(super) fn new(gateway: Arc<Gateway>, admitted: Admitted, decision: Decision, events: Events) -> Self {
        let level = gateway.records.get(&admitted.request.tenant).copied().unwrap_or_default();
        let recording = Recording::of(level, &admitted.request, &decision, admitted.policy.escalate);
        Self {
            gateway,
            admitted,
            decision,
            events,
            totals: Totals::default(),
            shown: false,
            first_byte: None,
            chunks: 0,
            answer: String::new(),
            aside: None,
            cached_from: None,
            baseline: None,
            recording,
            shadow: None,
            by_large: String::new(),
            tried: Vec::new(),
        }
    }

    /// Serves the request to its end and books it; the last event goes out after the booking.
    pub(super) async fn finish(mut self) {
        match self.serve().await {
            Ok(finish) => {
                let summary = self.summary(&finish);
                self.gateway.keep_answer(&self, &finish).await;
                self.gateway.record(&self, EntryStatus::Ok, Some(finish.reason), None);
                let _hung_up = self.events.send(Ok(ReplyEvent::Finished(Box::new(summary)))).await;
                shadow::note_look(&self);
                shadow::beside(&self);
            }
            Err(kind) => self.fail(kind).await,
        }
    }

    /// Books the request as failed and tells the caller.
    pub(super) async fn fail(&self, kind: GatewayErrorKind) {
        self.gateway.record(self, entry_status(&kind), None, Some(&kind));
        let error = GatewayError { kind, report: Some(Box::new(self.report())) };
        let _hung_up = self.events.send(Err(error)).await;
    }

    async fn serve(&mut self) -> Result<Finish, GatewayErrorKind> {
        let mut model = self.decision.model.clone();
        let mut number = 1;
        loop {
            let end = attempt(self, &model, number).await;
            let next = match end {
                AttemptEnd::Complete(finish) => return Ok(finish),
                AttemptEnd::Declined => {
                    let why = format!("{} declined its draft; nothing of it was shown", self.decision.model);
                    self.escalate(ReasonCode::Declined, why).await?
                }
                AttemptEnd::Rejected(why) => {
                    let why = format!("the draft of {} is {why}; nothing of it was shown", self.decision.model);
                    self.escalate(ReasonCode::DraftRejected, why).await?
                }
                AttemptEnd::BudgetExhausted(kind) => self.without_money(kind).await?,
                AttemptEnd::JournalUnwritable(why) => {
                    self.without_money(GatewayErrorKind::JournalUnwritable(why)).await?
                }
                AttemptEnd::Cancelled => return Err(GatewayErrorKind::Cancelled),
                AttemptEnd::DeadlineExceeded => return Err(GatewayErrorKind::DeadlineExceeded(self.how_far())),
                AttemptEnd::Failed(BackendError::Unfinished { why, .. }) => {
                    return Err(GatewayErrorKind::Unfinished(why));
                }
                AttemptEnd::Failed(error) if self.shown => return Err(GatewayErrorKind::Cut(error.to_string())),
                AttemptEnd::Failed(error) => match self.retry_delay(&model, &error, number) {
                    Some(delay) => {
                        self.pause(delay).await?;
                        number += 1;
                        continue;
                    }
                    None => self.after_failure(&model, &error).await?,
                },
            };
            model = next;
            number = 1;
        }
    }

    fn how_far(&self) -> String {
        let how = if self.shown { "before the answer was complete" } else { "before the first byte" };
        how.to_owned()
    }

    /// How long to wait before the same remote model is tried again; `None` if it should not be.
    fn retry_delay(&self, model: &ModelId, error: &BackendError, number: u32) -> Option<Duration> {
        if !error.is_retryable() || self.route_of(model) != Route::Remote {
            return None;
        }
        let remaining =
            self.admitted.request.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.gateway.retry.next_delay(error, number, remaining, &mut rand::rng())
    }

    async fn pause(&self, delay: Duration) -> Result<(), GatewayErrorKind> {
        tokio::select! {
            biased;
            () = self.events.closed() => Err(GatewayErrorKind::Cancelled),
            () = tokio::time::sleep(delay) => Ok(()),
        }
    }

    /// The model to go on with after `model` failed for good and nothing was shown.
    async fn after_failure(&mut self, model: &ModelId, error: &BackendError) -> Result<ModelId, GatewayErrorKind> {
        self.tried.push(model.clone());
        if !error.may_fall_back() {
            return Err(error_kind(error));
        }
        if self.route_of(model) == Route::Local {
            let code = match error {
                BackendError::Overloaded { .. } => ReasonCode::LocalOverloaded,
                _ => ReasonCode::LocalUnavailable,
            };
            let spill = self.open_candidate(Route::Remote);
            return match spill {
                Some(next) => self.reroute(next, Route::Remote, code, format!("{model}: {error}")).await,
                None => Err(error_kind(error)),
            };
        }
        if let Some(next) = self.open_candidate(Route::Remote) {
            let detail = format!("{model}: {error}; {next} is the next in the policy's order");
            return self.reroute(next, self.decision.route, ReasonCode::RemoteUnavailable, detail).await;
        }
        match self.open_candidate(Route::Local).filter(|_| self.admitted.policy.local_when_remote_is_down) {
            Some(next) => {
                self.reroute(next, Route::Local, ReasonCode::RemoteUnavailable, format!("{model}: {error}")).await
            }
            None => Err(error_kind(error)),
        }
    }

    /// The large model to go on with after the small one declined or its draft was turned down.
    async fn escalate(&mut self, code: ReasonCode, why: String) -> Result<ModelId, GatewayErrorKind> {
        self.tried.push(self.decision.model.clone());
        match self.decision.escalate_to.clone().filter(|model| !self.tried.contains(model)) {
            Some(next) => self.reroute(next, Route::Cascade, code, why).await,
            None if self.decision.candidates.iter().any(Candidate::is_priced_out) => {
                let why = format!("{why}, and a large model may cost too much");
                Err(GatewayErrorKind::CostCeiling { why, retry_after: RETRY_SOON })
            }
            None => Err(GatewayErrorKind::Declined { by: self.admitted.constraints.placement_by.clone() }),
        }
    }

    /// The free model to go on with where no paid attempt is possible.
    async fn without_money(&mut self, kind: GatewayErrorKind) -> Result<ModelId, GatewayErrorKind> {
        let ceiling = matches!(kind, GatewayErrorKind::CostCeiling { .. });
        if self.admitted.policy.on_exhausted == OnExhausted::Reject && !ceiling {
            return Err(kind);
        }
        match self.open_candidate(Route::Local) {
            Some(next) => {
                self.decision.escalate_to = None;
                let code = if ceiling { ReasonCode::CostCeiling } else { ReasonCode::BudgetExhausted };
                self.reroute(next, Route::Local, code, kind.to_string()).await
            }
            None => Err(kind),
        }
    }

    /// The first candidate on `route` that nothing excludes and that was not tried.
    fn open_candidate(&self, route: Route) -> Option<ModelId> {
        let forbidden = match route {
            Route::Remote => Placement::LocalOnly,
            _ => Placement::RemoteOnly,
        };
        if self.admitted.constraints.placement == forbidden {
            return None;
        }
        let mut candidates = self.decision.candidates.iter();
        let open = candidates.find(|candidate| {
            candidate.route == route && candidate.excluded_by.is_none() && !self.tried.contains(&candidate.model)
        });
        open.map(|candidate| candidate.model.clone())
    }

    async fn reroute(
        &mut self,
        model: ModelId,
        route: Route,
        code: ReasonCode,
        detail: String,
    ) -> Result<ModelId, GatewayErrorKind> {
        self.decision.route = route;
        self.decision.model = model.clone();
        self.decision.reason = Reason::new(code, detail);
        let event = Ok(ReplyEvent::Rerouted(Box::new(self.decision.clone())));
        self.events.send(event).await.map_err(|_| GatewayErrorKind::Cancelled)?;
        Ok(model)
    }

    /// Whether a large model gave what was shown.
    pub(super) fn ended_remote(&self) -> bool {
        self.cached_from.is_none() && self.route_of(&self.decision.model) == Route::Remote
    }

    pub(super) fn route_of(&self, model: &ModelId) -> Route {
        self.gateway.backends.get(model).map_or(Route::Remote, |backend| backend.route())
    }

    /// What the request came to.
    pub(super) fn summary(&self, finish: &Finish) -> Summary {
        let baseline = self.gateway.baseline(&self.admitted, &self.decision, &self.totals, self.answer.len() as u64);
        Summary {
            usage: self.totals.usage,
            cpu_seconds: self.totals.cpu_seconds,
            cost: self.totals.cost,
            finish_reason: finish.reason,
            max_tokens: finish.max_tokens.unwrap_or(0),
            decision: self.decision.clone(),
            constraints: self.admitted.constraints.clone(),
            saved: baseline.amount - self.totals.cost.amount,
            baseline,
            response_model: finish.response_model.clone(),
            latency: self.admitted.received.elapsed(),
        }
    }

    /// What the request used although it failed.
    fn report(&self) -> FailureReport {
        FailureReport {
            request_id: self.admitted.request.id,
            usage: self.totals.usage,
            cost: self.totals.cost,
            decision: Some(Box::new(self.decision.clone())),
            constraints: Some(Box::new(self.admitted.constraints.clone())),
        }
    }
}

/// A backend's error as the caller sees it, where nothing was shown.
fn error_kind(error: &BackendError) -> GatewayErrorKind {
    let retry_after = error.retry_after().unwrap_or(RETRY_SOON);
    match error {
        BackendError::Overloaded { why, .. } => GatewayErrorKind::Overloaded { what: why.clone(), retry_after },
        BackendError::Rejected { .. } => GatewayErrorKind::UpstreamRejected(error.to_string()),
        BackendError::PromptTooLong(why) => GatewayErrorKind::PromptTooLong(why.clone()),
        BackendError::Unsupported { field, why } => {
            GatewayErrorKind::Unsupported { field: field.clone(), why: why.clone() }
        }
        BackendError::Unfinished { why, .. } => GatewayErrorKind::Unfinished(why.clone()),
        BackendError::DeadlineExceeded { .. } => GatewayErrorKind::DeadlineExceeded("before the first byte".to_owned()),
        _ => GatewayErrorKind::Unavailable { what: error.to_string(), retry_after },
    }
}

pub(super) fn entry_status(kind: &GatewayErrorKind) -> EntryStatus {
    match kind {
        GatewayErrorKind::Cut(_) | GatewayErrorKind::Unfinished(_) => EntryStatus::Cut,
        GatewayErrorKind::Cancelled => EntryStatus::Cancelled,
        GatewayErrorKind::DeadlineExceeded(_) => EntryStatus::DeadlineExceeded,
        GatewayErrorKind::Declined { .. } => EntryStatus::Declined,
        GatewayErrorKind::BudgetExhausted { .. }
        | GatewayErrorKind::Overloaded { .. }
        | GatewayErrorKind::JournalUnwritable(_)
        | GatewayErrorKind::NoCandidate(_)
        | GatewayErrorKind::NoRegion { .. }
        | GatewayErrorKind::CostCeiling { .. }
        | GatewayErrorKind::Late { .. }
        | GatewayErrorKind::PlacementConflict(_)
        | GatewayErrorKind::UnknownPolicy { .. }
        | GatewayErrorKind::Unsupported { .. }
        | GatewayErrorKind::Invalid { .. }
        | GatewayErrorKind::ShuttingDown => EntryStatus::Refused,
        _ => EntryStatus::Failed,
    }
}
