//! One request, start to end: constrain → cache → score → decide → hold, journal, attempt → book → record.
//!
//! The gateway speaks domain words only; protocols live in `edge`, implementations are handed in by `app`. A request
//! sees one snapshot of policies, certificates and prices from start to end.

mod attempt;
mod conversations;
mod draft;
mod embed;
mod experiment;
mod facts;
mod feedback;
mod follow;
mod hold;
mod observe;
mod record;
mod reply;
mod run;
mod second;
mod shadow;

pub use embed::{EmbedCall, Embedded};
pub use reply::{
    BudgetWindow, Explanation, FailureReport, GatewayError, GatewayErrorKind, Reply, ReplyEvent, ReplyStream, Summary,
};

use crate::backend::resilience::RetryPolicy;
use crate::backend::{Availability, Backends};
use crate::budget::allowance::Allowances;
use crate::budget::{BudgetLimits, Budgets};
use crate::cache::{CacheKey, ExactCache, Flights};
use crate::domain::{Arm, Constraints, Decision, Message, ModelId, RecordLevel, Request, Residency, Route, TenantId};
use crate::encoders::Encoders;
use crate::latency::Latencies;
use crate::learn::{Learning, Live};
use crate::ledger::Ledger;
use crate::policy::live::Standing;
use crate::policy::{Policy, Registry, Snapshot};
use crate::score::Scorers;
use crate::telemetry::Metrics;
use conversations::Conversations;
use follow::FlightItem;
use run::{RETRY_SOON, Run};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Events that may wait between a backend and a slow reader before the backend is slowed down.
const EVENT_QUEUE: usize = 64;

/// Between two looks whether anything is under way.
const A_MOMENT: Duration = Duration::from_millis(1);

/// Calls that make vectors on threads of their own at the same time.
const EMBED_TOGETHER: usize = 2;

/// What the gateway is built of.
pub struct Parts {
    /// Policies, certificates and prices, swapped as one.
    pub registry: Arc<Registry>,
    /// Everything that can write answers, by model.
    pub backends: Arc<Backends>,
    /// What makes vectors of texts.
    pub encoders: Arc<Encoders>,
    /// Calibrated scorers by pair.
    pub scorers: Arc<Scorers>,
    /// Complete answers.
    pub cache: ExactCache,
    /// Money.
    pub budgets: Arc<Budgets>,
    /// Money of shadow runs, by policy in place of tenant.
    pub shadow_budgets: Arc<Budgets>,
    /// What policies with a ceiling on the mean cost may spend.
    pub allowances: Arc<Allowances>,
    /// Limits of tenants, from settings; `default_limits` for the others.
    pub tenant_limits: HashMap<TenantId, BudgetLimits>,
    /// What is kept of tenants' requests, from settings; nothing of the others'.
    pub records: HashMap<TenantId, RecordLevel>,
    /// Where tenants' requests may be served, from settings; anywhere for the others.
    pub residencies: HashMap<TenantId, Residency>,
    /// Limits of tenants that settings don't name.
    pub default_limits: BudgetLimits,
    /// Record of what happened.
    pub ledger: Arc<Ledger>,
    /// Whether certificates still stand.
    pub live: Arc<Live>,
    /// What is learnt of outcomes.
    pub learning: Arc<Learning>,
    /// Metrics.
    pub metrics: Metrics,
    /// Which remote attempts are worth repeating, and when.
    pub retry: RetryPolicy,
    /// Most requests under way at once.
    pub max_concurrent: usize,
    /// Owns the tasks of requests under way.
    pub tracker: TaskTracker,
    /// Cancelled when no new request is to be taken.
    pub stopping: CancellationToken,
}

/// The gateway.
pub struct Gateway {
    registry: Arc<Registry>,
    backends: Arc<Backends>,
    encoders: Arc<Encoders>,
    /// Calls that make vectors on threads of their own.
    embedding: Arc<Semaphore>,
    scorers: Arc<Scorers>,
    cache: ExactCache,
    flights: Flights<CacheKey, FlightItem>,
    budgets: Arc<Budgets>,
    shadow_budgets: Arc<Budgets>,
    /// Shadow runs under way.
    shadows: Arc<Semaphore>,
    tenant_limits: HashMap<TenantId, BudgetLimits>,
    records: HashMap<TenantId, RecordLevel>,
    residencies: HashMap<TenantId, Residency>,
    conversations: Conversations,
    latencies: Latencies,
    allowances: Arc<Allowances>,
    default_limits: BudgetLimits,
    ledger: Arc<Ledger>,
    live: Arc<Live>,
    learning: Arc<Learning>,
    metrics: Metrics,
    retry: RetryPolicy,
    admission: Arc<Semaphore>,
    max_concurrent: usize,
    tracker: TaskTracker,
    stopping: CancellationToken,
}

/// What decides a request: the snapshot it keeps, the policy, and the side of an experiment.
type Decider = (Arc<Snapshot>, Arc<Policy>, Option<Arm>);

/// A request that was let in, with the snapshot that it keeps to its end.
pub(crate) struct Admitted {
    request: Request,
    messages: Arc<[Message]>,
    snapshot: Arc<Snapshot>,
    policy: Arc<Policy>,
    /// Its side of an experiment; `policy` is the one that decides it there.
    arm: Option<Arm>,
    constraints: Constraints,
    received: Instant,
    received_at: jiff::Timestamp,
    cache_key: Option<CacheKey>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Gateway {
    /// Builds the gateway.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            registry: parts.registry,
            backends: parts.backends,
            encoders: parts.encoders,
            embedding: Arc::new(Semaphore::new(EMBED_TOGETHER)),
            scorers: parts.scorers,
            cache: parts.cache,
            flights: Flights::new(parts.tracker.clone()),
            budgets: parts.budgets,
            shadow_budgets: parts.shadow_budgets,
            shadows: Arc::new(Semaphore::new(shadow::AT_ONCE)),
            tenant_limits: parts.tenant_limits,
            records: parts.records,
            residencies: parts.residencies,
            conversations: Conversations::default(),
            latencies: Latencies::default(),
            allowances: parts.allowances,
            default_limits: parts.default_limits,
            ledger: parts.ledger,
            live: parts.live,
            learning: parts.learning,
            metrics: parts.metrics,
            retry: parts.retry,
            admission: Arc::new(Semaphore::new(parts.max_concurrent)),
            max_concurrent: parts.max_concurrent,
            tracker: parts.tracker,
            stopping: parts.stopping,
        })
    }

    /// Serves a request: decides it now, then answers through the reply's events.
    pub async fn handle(self: &Arc<Self>, mut request: Request) -> Result<Reply, GatewayError> {
        self.confine(&mut request);
        let received_at = jiff::Timestamp::now();
        let received = Instant::now();
        let permit = self.admit()?;
        let refused = |kind: GatewayErrorKind| self.refused(&request, received, received_at, kind, None);
        let (snapshot, policy, arm) = self.policy(&request).map_err(&refused)?;
        let constraints = policy.constrain(&request).map_err(|refusal| refused(refusal.into()))?;
        let messages: Arc<[Message]> = request.messages.clone().into();
        let cache_key = self.cache_key(&request, &policy, &constraints);
        let admitted = Admitted {
            request,
            messages,
            snapshot,
            policy,
            arm,
            constraints,
            received,
            received_at,
            cache_key,
            _permit: Some(permit),
        };
        if let Some(reply) = self.answer_from_cache(&admitted).await {
            self.earn(&admitted.policy);
            return Ok(reply);
        }
        let decided = self.decide(&admitted);
        self.metrics.decision_made(received.elapsed());
        let decision = match decided {
            Ok(decision) => decision,
            Err(kind) => {
                let Admitted { request, constraints, .. } = &admitted;
                return Err(self.refused(request, received, received_at, kind, Some(constraints)));
            }
        };
        self.earn(&admitted.policy);
        Ok(self.start_or_join(admitted, decision))
    }

    /// Tells how a request would be decided; nothing is served, held or recorded.
    pub fn explain(&self, request: &Request) -> Result<Explanation, GatewayError> {
        let mut request = request.clone();
        self.confine(&mut request);
        let plain = |kind: GatewayErrorKind| GatewayError { kind, report: None };
        let (snapshot, policy, arm) = self.policy(&request).map_err(plain)?;
        let constraints = policy.constrain(&request).map_err(|refusal| plain(refusal.into()))?;
        let admitted = Admitted {
            messages: request.messages.clone().into(),
            request,
            snapshot,
            policy,
            arm,
            constraints,
            received: Instant::now(),
            received_at: jiff::Timestamp::now(),
            cache_key: None,
            _permit: None,
        };
        let decision = self.decide(&admitted).map_err(plain)?;
        Ok(Explanation {
            strongest: self.strongest(&admitted),
            certificate: self.certificate_as_it_stands(&admitted.policy),
            constraints: admitted.constraints,
            decision,
        })
    }

    /// The state of a policy's certificate, with what live checks made of it.
    pub fn certificate_as_it_stands(&self, policy: &Policy) -> String {
        let judge = policy.judge().describe().map_or_else(String::new, |judge| format!("; {judge}"));
        let certificate = match self.learning.told(policy) {
            Some(told) => format!("{}; {told}{judge}", policy.certificate().describe()),
            None => format!("{}{judge}", policy.certificate().describe()),
        };
        match self.live.standing(policy) {
            Standing::Holds => certificate,
            Standing::Tightened(by) => format!("{certificate}; live checks raised its threshold by {by:.3}"),
            Standing::Withdrawn(why) => format!("withdrawn by live checks: {why}"),
        }
    }

    /// The figures of live checks.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// What is learnt of outcomes.
    pub fn learning(&self) -> &Learning {
        &self.learning
    }

    /// Waits until no request and no shadow run is under way: for demos and tests, which want one after the other.
    pub async fn at_rest(&self) {
        let busy = || {
            self.admission.available_permits() < self.max_concurrent
                || self.shadows.available_permits() < shadow::AT_ONCE
        };
        while busy() {
            tokio::time::sleep(A_MOMENT).await;
        }
    }

    /// The remote models and whether they can be called.
    pub fn remote_availability(&self) -> Vec<(ModelId, bool)> {
        let all = self.backends.all();
        let remote = all.iter().filter(|(_, backend)| backend.route() == Route::Remote);
        remote.map(|(id, backend)| (id.clone(), backend.availability() == Availability::Ready)).collect()
    }

    /// How much of a tenant's budgets under the default policy is spent or held, by window.
    pub fn budget_use(&self, tenant: &TenantId) -> Vec<(&'static str, f64)> {
        let Some(policy) = self.registry.snapshot().policy(None) else { return Vec::new() };
        let limits = self.budget_limits(tenant, &policy);
        let of = |status: crate::budget::WindowStatus| {
            let limit = limits.of(status.window)?.as_usd();
            Some((status.window.as_str(), (status.spent + status.held).as_usd() / limit.max(1e-9)))
        };
        self.budgets.status(tenant).into_iter().filter_map(of).collect()
    }

    fn admit(&self) -> Result<OwnedSemaphorePermit, GatewayError> {
        if self.stopping.is_cancelled() {
            return Err(GatewayError { kind: GatewayErrorKind::ShuttingDown, report: None });
        }
        Arc::clone(&self.admission).try_acquire_owned().map_err(|_| {
            let what = "as many requests as `limits.max_concurrent_requests` allows are under way".to_owned();
            GatewayError { kind: GatewayErrorKind::Overloaded { what, retry_after: RETRY_SOON }, report: None }
        })
    }

    /// Adds where the tenant's requests may be served.
    fn confine(&self, request: &mut Request) {
        if let Some(residency) = self.residencies.get(&request.tenant) {
            request.residency = request.residency.clone().and(residency);
        }
    }

    fn policy(&self, request: &Request) -> Result<Decider, GatewayErrorKind> {
        let snapshot = self.registry.snapshot();
        match snapshot.policy(request.policy.as_deref()) {
            Some(policy) => {
                let (policy, arm) = experiment::decider(policy, &snapshot, request);
                // What was learnt speaks of those whose text may be learnt from.
                let recorded = self.records.get(&request.tenant).copied().unwrap_or_default();
                let policy = if recorded == RecordLevel::Text { policy } else { snapshot.unlearnt(&policy) };
                Ok((snapshot, policy, arm))
            }
            None => Err(GatewayErrorKind::UnknownPolicy {
                name: request.policy.clone().unwrap_or_default(),
                known: snapshot.names().join(", "),
            }),
        }
    }

    /// Starts the task that owns the request from here on.
    fn start(self: &Arc<Self>, admitted: Admitted, decision: Decision) -> Reply {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let reply = Reply {
            request_id: admitted.request.id,
            decision: decision.clone(),
            constraints: admitted.constraints.clone(),
            events: Box::pin(ReceiverStream::new(receiver)),
        };
        let span = observe::request_span(&admitted, &decision);
        let run = Run::new(Arc::clone(self), admitted, decision, events);
        self.tracker.spawn(run.finish().instrument(span));
        reply
    }
}
