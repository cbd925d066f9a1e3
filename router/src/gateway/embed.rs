//! Sentence vectors: admitted, journalled and booked as any request is, and served in this process alone, whatever the placement.
//! No policy has a say, since there is nothing to choose; the key's demands on placement and region hold.

use super::Gateway;
use super::record::Outcome;
use super::reply::{FailureReport, GatewayError, GatewayErrorKind};
use super::run::{RETRY_SOON, Totals, entry_status};
use crate::domain::{
    AttemptId, Constraints, Cost, Decision, EntryStatus, ModelId, NanoUsd, Placement, PolicyRef, Reason, ReasonCode,
    Request, RequestId, Route, Usage,
};
use crate::encoders::{EncodersError, TextVector, Vectors, Wish};
use crate::ledger::{AttemptEnded, AttemptStarted};
use crate::models::ModelsError;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

/// Bytes of texts that the table reads in less time than handing them to another thread takes.
const AT_ONCE_BYTES: usize = 2 << 10;

/// A request for vectors. Of `request` who asks, demands and deadline count; it has no messages.
#[derive(Debug)]
pub struct EmbedCall {
    /// Who asks.
    pub request: Request,
    /// Name of the encoder; empty for the bundled table.
    pub model: String,
    /// What to make.
    pub wish: Wish,
}

/// Vectors and who made them.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// Names the request and its ledger entry.
    pub request_id: RequestId,
    /// The encoder.
    pub model: ModelId,
    /// Vectors of one version may be compared.
    pub version: String,
    /// One for each text.
    pub vectors: Vec<TextVector>,
}

/// A call that was let in.
struct Embedding {
    gateway: Arc<Gateway>,
    call: EmbedCall,
    received: Instant,
    received_at: jiff::Timestamp,
    constraints: Constraints,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Gateway {
    /// Makes vectors of texts. Booked to the end even if the future is dropped, which stops the work.
    pub async fn embed(self: &Arc<Self>, mut call: EmbedCall) -> Result<Embedded, GatewayError> {
        self.confine(&mut call.request);
        let permit = self.admit()?;
        let constraints = Constraints {
            placement: call.request.placement_floor,
            placement_by: "key".to_owned(),
            rule: None,
            model: None,
            residency: call.request.residency.clone(),
            cache_read: false,
            cache_write: false,
        };
        let stop = CancellationToken::new();
        let _hung_up = stop.clone().drop_guard();
        let embedding = Embedding {
            gateway: Arc::clone(self),
            call,
            received: Instant::now(),
            received_at: jiff::Timestamp::now(),
            constraints,
            stop,
            _permit: permit,
        };
        let (sender, receiver) = oneshot::channel();
        self.tracker.spawn(async move {
            let _gone = sender.send(embedding.run().await);
        });
        let lost = || GatewayErrorKind::Internal("the task of the request ended early".to_owned());
        receiver.await.unwrap_or_else(|_| Err(GatewayError { kind: lost(), report: None }))
    }
}

impl Embedding {
    async fn run(self) -> Result<Embedded, GatewayError> {
        let found = self.encoder().await;
        let vectors = match found {
            Ok(vectors) => vectors,
            Err(kind) => return Err(self.fail(kind, None, Totals::default())),
        };
        let decision = decision(vectors.name());
        let attempt = AttemptId::fresh();
        let request = &self.call.request;
        let started = AttemptStarted {
            attempt,
            request: request.id,
            tenant: request.tenant.clone(),
            model: vectors.name().clone(),
            route: Route::Local,
            number: 1,
            started_at: jiff::Timestamp::now(),
            hold: NanoUsd::ZERO,
            shadow: None,
        };
        if let Err(error) = self.gateway.ledger.attempt_started(&started) {
            tracing::warn!(%error, "a free attempt goes on although the journal can't be written");
        }
        let clock = Instant::now();
        let (made, processor) = self.make(&vectors).await;
        let tokens = made.as_ref().map_or(0, |made| made.iter().map(|vector| vector.tokens as u64).sum());
        let totals = Totals {
            usage: Usage { input_tokens: tokens, ..Usage::default() },
            cpu_seconds: processor.as_secs_f64(),
            cost: Cost::FREE,
            attempts: 1,
        };
        let status = made.as_ref().map_or_else(entry_status, |_| EntryStatus::Ok);
        let ended = AttemptEnded {
            attempt,
            request: request.id,
            ended_at: jiff::Timestamp::now(),
            status,
            cost: totals.cost,
            usage: totals.usage,
            cpu_seconds: totals.cpu_seconds,
            latency: clock.elapsed(),
            error: made.as_ref().map_or_else(|kind| kind.code(), |_| "").to_owned(),
            overrun: false,
        };
        if let Err(error) = self.gateway.ledger.attempt_ended(&ended) {
            tracing::error!(%error, attempt = %attempt, "the end of an attempt could not be journalled");
        }
        match made {
            Ok(made) => {
                self.book(status, Some(&decision), totals, "");
                let (request_id, model, version) = (request.id, vectors.name().clone(), vectors.version().to_owned());
                Ok(Embedded { request_id, model, version, vectors: made })
            }
            Err(kind) => Err(self.fail(kind, Some(decision), totals)),
        }
    }

    /// The encoder, if this caller may use it.
    async fn encoder(&self) -> Result<Arc<Vectors>, GatewayErrorKind> {
        let request = &self.call.request;
        if self.constraints.placement == Placement::RemoteOnly {
            let why = "the key demands placement `remote-only`, and vectors are made in this process only";
            return Err(GatewayErrorKind::PlacementConflict(why.to_owned()));
        }
        let snapshot = self.gateway.registry.snapshot();
        let catalog = snapshot.catalog();
        let found = self.gateway.encoders.get(catalog, &self.call.model);
        let waited = self.until_wanted(found).await?;
        let vectors = waited.map_err(|error| kind_of(error, &self.call.model))?;
        let region = catalog.encoder(vectors.name()).and_then(|encoder| encoder.region);
        if !request.residency.permits(region.as_deref()) {
            let field = request.residency.by().first().cloned().unwrap_or_default();
            let (demand, place) = (request.residency.describe(), region.unwrap_or("no region".to_owned()));
            let why = format!("`{}` runs in {place} by the catalog; allowed is {demand}", vectors.name());
            return Err(GatewayErrorKind::NoRegion { field, why });
        }
        Ok(vectors)
    }

    /// The vectors, and the processor time that they took.
    async fn make(&self, vectors: &Arc<Vectors>) -> (Result<Vec<TextVector>, GatewayErrorKind>, Duration) {
        let bytes: usize = self.call.wish.texts.iter().map(String::len).sum();
        if bytes <= AT_ONCE_BYTES && vectors.is_table() {
            let (made, took) = local_worker::processor_time(|| vectors.make(&self.call.wish, &|| true));
            return (made.map_err(|error| kind_of(error, &self.call.model)), took);
        }
        // Few at a time: they take whole cores, which the rest of the gateway needs.
        let Ok(Ok(core)) = self.until_wanted(Arc::clone(&self.gateway.embedding).acquire_owned()).await else {
            return (Err(self.given_up()), Duration::ZERO);
        };
        let (vectors, wish, stop) = (Arc::clone(vectors), self.call.wish.clone(), self.stop.clone());
        let deadline = self.call.request.deadline;
        let work = tokio::task::spawn_blocking(move || {
            let _core = core;
            let wanted = || !stop.is_cancelled() && deadline.is_none_or(|deadline| Instant::now() < deadline);
            local_worker::processor_time(|| vectors.make(&wish, &wanted))
        });
        match work.await {
            Ok((Err(EncodersError::Stopped), took)) => (Err(self.given_up()), took),
            Ok((made, took)) => (made.map_err(|error| kind_of(error, &self.call.model)), took),
            Err(_) => (Err(GatewayErrorKind::Internal("making vectors panicked".to_owned())), Duration::ZERO),
        }
    }

    /// Waits, unless the caller hangs up or the deadline passes.
    async fn until_wanted<T>(&self, work: impl Future<Output = T>) -> Result<T, GatewayErrorKind> {
        let deadline = async {
            match self.call.request.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(self.given_up()),
            () = deadline => Err(self.given_up()),
            done = work => Ok(done),
        }
    }

    fn given_up(&self) -> GatewayErrorKind {
        match self.stop.is_cancelled() {
            true => GatewayErrorKind::Cancelled,
            false => GatewayErrorKind::DeadlineExceeded("before the vectors were made".to_owned()),
        }
    }

    fn fail(&self, kind: GatewayErrorKind, decision: Option<Decision>, totals: Totals) -> GatewayError {
        self.book(entry_status(&kind), decision.as_ref(), totals, kind.code());
        let report = FailureReport {
            request_id: self.call.request.id,
            usage: totals.usage,
            cost: totals.cost,
            decision: decision.map(Box::new),
            constraints: Some(Box::new(self.constraints.clone())),
        };
        GatewayError { kind, report: Some(Box::new(report)) }
    }

    fn book(&self, status: EntryStatus, decision: Option<&Decision>, totals: Totals, error: &str) {
        self.gateway.write(
            &self.call.request,
            Outcome {
                received_at: self.received_at,
                latency: self.received.elapsed(),
                first_byte: None,
                status,
                decision,
                constraints: Some(&self.constraints),
                totals,
                // No large model writes vectors, so nothing was saved.
                baseline: NanoUsd::ZERO,
                finish_reason: None,
                error,
                cached_from: None,
                recording: None,
                shadow_of: None,
            },
        );
    }
}

/// There was nothing to decide.
fn decision(model: &ModelId) -> Decision {
    Decision {
        route: Route::Local,
        model: model.clone(),
        fallbacks: Vec::new(),
        escalate_to: None,
        candidates: Vec::new(),
        reason: Reason::new(ReasonCode::OnlyCandidate, "sentence vectors are made in this process only"),
        threshold: None,
        policy: PolicyRef { name: String::new(), hash: String::new() },
        scorer_version: String::new(),
        propensity: 1.0,
        explored: false,
        arm: None,
    }
}

fn kind_of(error: EncodersError, model: &str) -> GatewayErrorKind {
    let field = |field: String, why: String| GatewayErrorKind::Invalid { field, why };
    match error {
        EncodersError::Unknown { .. } => field("model".to_owned(), error.to_string()),
        EncodersError::TooLong { at, .. } | EncodersError::Text { at, .. } => {
            field(format!("texts[{at}]"), error.to_string())
        }
        EncodersError::Dimensions(_) => field("dimensions".to_owned(), error.to_string()),
        EncodersError::Memory(ModelsError::NoRoom { .. }) => {
            GatewayErrorKind::Overloaded { what: error.to_string(), retry_after: RETRY_SOON }
        }
        EncodersError::Unusable { .. } => {
            // The folder's place is for the log.
            tracing::warn!(encoder = model, %error, "an encoder can't be used");
            GatewayErrorKind::NoCandidate(format!("encoder `{model}` can't be loaded; see the gateway's log"))
        }
        EncodersError::Memory(_) => GatewayErrorKind::NoCandidate(error.to_string()),
        EncodersError::Stopped => GatewayErrorKind::Cancelled,
    }
}
