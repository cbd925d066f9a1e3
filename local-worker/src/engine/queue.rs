//! What handles and the model's thread share: the bounded queue, health, and figures. One lock, held for moments.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;

use super::constrain::{Grammars, Guide};
use super::fair::Fair;
use super::front::Front;
use super::generation::UsageMeter;
use super::prefix::{Tenant, Tokens};
use super::rate::{Backlog, Rates};
use super::request::{Event, GenerateError, Health, ModelInfo, SubmitError, WorkerConfig};
use super::sample::Sampling;
use super::store::CacheReading;

/// An accepted request.
#[derive(Debug)]
pub(super) struct Job {
    /// The prompt.
    pub tokens: Tokens,
    /// Output tokens at most; the prompt and these fit the context.
    pub most: u32,
    /// Whether it is the context that sets `most`.
    pub context_bound: bool,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    /// Whether more than log-probability and margin is told of each token.
    pub detailed: bool,
    /// Keeps the answer to what was asked for.
    pub guide: Option<Guide>,
    pub deadline: Option<Instant>,
    /// Holds every event the request can have, so sending never waits.
    pub events: mpsc::Sender<Event>,
    pub meter: UsageMeter,
}

/// Ends a request without an answer.
pub(super) fn fail(job: Job, error: GenerateError) {
    job.meter.settle();
    let _gone = job.events.try_send(Event::Failed(error));
}

/// Shared by all handles and the thread.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: WorkerConfig,
    pub info: ModelInfo,
    pub front: Front,
    pub decline: Option<(String, usize)>,
    pub grammars: Grammars,
    /// Tokens that one request may have in the cache.
    pub positions: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// Behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub waiting: Fair<Job>,
    /// Requests that have a place, or had one and were set back.
    pub running: usize,
    /// What they still need.
    pub running_work: Backlog,
    pub rates: Rates,
    pub cache: CacheReading,
    pub health: Health,
    /// Nothing more is accepted.
    pub closing: bool,
    /// What is accepted is given up.
    pub abandoned: bool,
    /// The thread has ended.
    pub ended: bool,
    /// The thread is to panic, for tests.
    pub panic_wanted: bool,
}

impl Shared {
    pub fn new(
        config: WorkerConfig,
        info: ModelInfo,
        front: Front,
        decline: Option<(String, usize)>,
        (rates, positions): (Rates, usize),
    ) -> Self {
        let state = State {
            waiting: Fair::new(config.tenant_weights.clone()),
            running: 0,
            running_work: Backlog::default(),
            rates,
            cache: CacheReading::default(),
            health: Health::Ready,
            closing: false,
            abandoned: false,
            ended: false,
            panic_wanted: false,
        };
        Self {
            config,
            info,
            front,
            decline,
            grammars: Grammars::default(),
            positions,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// The state. A panic of the thread elsewhere can't leave it half changed, so a poisoned lock is taken all the same.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for a change.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for a change.
    pub fn wait<'guard>(&self, state: MutexGuard<'guard, State>) -> MutexGuard<'guard, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change until `end`; then `None`.
    pub fn wait_until<'guard>(
        &self,
        state: MutexGuard<'guard, State>,
        end: Instant,
    ) -> Option<MutexGuard<'guard, State>> {
        let left = end.checked_duration_since(Instant::now())?;
        Some(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Queues a request, if there is room and its deadline can be met.
    pub fn accept(&self, job: Job) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if state.closing {
            return Err(SubmitError::ShuttingDown);
        }
        match &state.health {
            Health::Ready => {}
            Health::Reloading => return Err(SubmitError::Unhealthy("it is loaded again after a panic".to_owned())),
            Health::Failed(reason) => return Err(SubmitError::Unhealthy(reason.clone())),
        }
        state.drop_stale();
        if !state.has_room(&job.tokens.tenant, &self.config) {
            return Err(SubmitError::QueueFull { capacity: self.config.queue_capacity });
        }
        if let Some(deadline) = job.deadline {
            let output = state.rates.expected_output(job.most, 0);
            let (backlog, places) = (state.backlog(&job.tokens.tenant), self.config.max_sequences);
            let predicted = state.rates.predict(backlog, places, job.tokens.ids.len() as f64, output);
            if Instant::now().checked_add(predicted).is_none_or(|end| end > deadline) {
                return Err(SubmitError::DeadlineUnreachable { predicted });
            }
        }
        let tenant = job.tokens.tenant.clone();
        state.waiting.push(&tenant, job);
        drop(state);
        self.notify();
        Ok(())
    }
}

impl State {
    /// Whether a tenant's request may wait. A queue filled by others still has room for a tenant with less than its share.
    pub fn has_room(&self, tenant: &Tenant, config: &WorkerConfig) -> bool {
        let capacity = config.queue_capacity + config.max_sequences.saturating_sub(self.running);
        let waiting = self.waiting.waiting();
        let own = self.waiting.waiting_of(tenant);
        let tenants = self.waiting.lines() + usize::from(own == 0);
        waiting < capacity || (waiting < 2 * capacity && tenants > 1 && own < capacity / tenants)
    }

    /// Work that goes before a new request of a tenant.
    pub fn backlog(&self, tenant: &Tenant) -> Backlog {
        let mut backlog = self.running_work;
        for job in self.waiting.before(tenant) {
            backlog.requests += 1;
            backlog.prompt += job.tokens.ids.len() as f64;
            backlog.output += self.rates.expected_output(job.most, 0);
        }
        backlog
    }

    /// Lets go of waiting requests that nobody wants any more or whose time is up.
    pub fn drop_stale(&mut self) {
        let now = Instant::now();
        let late = |job: &Job| job.deadline.is_some_and(|deadline| deadline <= now);
        for job in self.waiting.take_if(|job| job.meter.cancelled() || late(job)) {
            if job.meter.cancelled() {
                job.meter.settle();
            } else {
                fail(job, GenerateError::DeadlinePassed);
            }
        }
    }
}
