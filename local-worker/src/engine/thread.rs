//! The model's thread: takes requests from the queue, runs step after step over all that have a place, and brings the model
//! back if a step panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::clock::ThreadClock;
use super::fair;
use super::queue::{Shared, State, fail};
use super::rate::{Backlog, Rates};
use super::request::{GenerateError, Health, ModelSource, WorkerConfig};
use super::sample::{Choice, SampleScratch};
use super::sequence::Sequence;
use super::source;
use super::store::{CacheReading, Store};
use crate::kernels::Team;
use crate::model::{CacheShape, Decoder, LoadError, Row, Scratch};

/// Rows and steps by which speed is measured before the first request.
const WARM_UP: (usize, usize) = (16, 2);

/// The model and the requests on it. Requests stay outside of what a panic can tear.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) engine: Option<Engine>,
    pub(super) places: Vec<Option<Sequence>>,
    /// Sequences whose place in the cache was needed for older ones; the oldest first.
    pub(super) parked: Vec<Sequence>,
    pub(super) rows: Vec<Row>,
    /// The places that have rows in this step, in the order of these.
    pub(super) order: Vec<usize>,
    /// Prompt tokens spared and sequences set back since the state last heard of it.
    pub(super) spared: u64,
    pub(super) preempted: u64,
    /// Sequences that ever got a place.
    started: u64,
    /// Steps so far.
    pub(super) steps: usize,
    choices: Vec<(usize, Result<Choice, GenerateError>)>,
}

/// The threads that share products; none for one thread, or where the system gives no more.
pub(crate) fn team(threads: usize) -> Option<Arc<Team>> {
    let made = (threads > 1).then(|| Team::new("model helper", threads))?;
    made.inspect_err(|error| tracing::warn!(%error, threads, "no helper threads: the model runs on one"))
        .ok()
        .map(Arc::new)
}

/// What runs the model.
#[derive(Debug)]
pub(super) struct Engine {
    model: Decoder,
    pub(super) store: Store,
    scratch: Scratch,
    samples: SampleScratch,
}

impl Engine {
    fn new(model: Decoder, config: &WorkerConfig) -> Result<Self, LoadError> {
        let shape = model.shape();
        let (layers, key_heads, head) = (shape.layers, shape.key_heads, shape.head);
        let store = Store::new(CacheShape { layers, key_heads, head, format: config.cache_format }, config)?;
        Ok(Self { model, store, scratch: Scratch::shared_by(team(config.threads)), samples: SampleScratch::default() })
    }

    /// Measures speed with an empty worker, and lets the processor see the weights once.
    fn warm_up(&mut self, context: usize) -> Rates {
        let mut rates = Rates::default();
        let (prompt, steps) = (WARM_UP.0.min(context), WARM_UP.1.min(context));
        let row = |position| Row { slot: 0, position, token: position as u32, wants_logits: true };
        let prompt: Vec<Row> = (0..prompt).map(|at| Row { wants_logits: false, ..row(at) }).collect();
        let cache = &mut self.store.cache;
        let started = Instant::now();
        self.model.step(cache, &mut self.scratch, &prompt);
        rates.observe_step(prompt.len(), 0, started.elapsed().as_secs_f64());
        for position in 0..steps {
            let started = Instant::now();
            self.model.step(cache, &mut self.scratch, &[row(position)]);
            rates.observe_step(0, 1, started.elapsed().as_secs_f64());
        }
        cache.clear(0);
        rates
    }
}

impl Desk {
    /// A desk for a model just loaded, and how fast it is.
    ///
    /// # Errors
    /// The cache's budget holds nothing.
    pub fn new(model: Decoder, config: &WorkerConfig, context: usize) -> Result<(Self, Rates), LoadError> {
        let mut engine = Engine::new(model, config)?;
        let rates = engine.warm_up(context);
        let places = (0..config.max_sequences).map(|_| None).collect();
        let desk = Self {
            engine: Some(engine),
            places,
            parked: Vec::new(),
            rows: Vec::new(),
            order: Vec::new(),
            spared: 0,
            preempted: 0,
            started: 0,
            steps: 0,
            choices: Vec::new(),
        };
        Ok((desk, rates))
    }

    /// Tokens that one sequence may have in the cache.
    pub fn positions(&self) -> usize {
        self.engine.as_ref().map_or(0, |engine| engine.store.positions())
    }

    /// What the cache holds.
    pub fn reading(&self) -> CacheReading {
        self.engine.as_ref().map_or_else(CacheReading::default, |engine| engine.store.reading())
    }

    /// Serves until told to end.
    pub fn serve(mut self, shared: &Arc<Shared>, source: &ModelSource) {
        while catch_unwind(AssertUnwindSafe(|| self.work(shared))).is_err() {
            self.engine = None;
            self.fail_running(shared, &GenerateError::WorkerPanicked);
            shared.lock().health = Health::Reloading;
            tracing::error!(model = shared.info.name, "the model's thread panicked; loading the model again");
            if let Err(reason) = self.reload(shared, source) {
                tracing::error!(model = shared.info.name, reason, "the model could not be loaded again");
                shared.lock().health = Health::Failed(reason);
                break;
            }
            shared.lock().health = Health::Ready;
        }
        self.fail_running(shared, &GenerateError::ShutDown);
        let mut state = shared.lock();
        state.ended = true;
        let error = if state.closing { GenerateError::ShutDown } else { GenerateError::WorkerPanicked };
        state.waiting.take_if(|_| true).into_iter().for_each(|job| fail(job, error.clone()));
        drop(state);
        shared.notify();
    }

    fn reload(&mut self, shared: &Shared, source: &ModelSource) -> Result<(), String> {
        let config = &shared.config;
        let load = || {
            let loaded = source::load(&shared.info.name, source, config).map_err(|error| error.to_string())?;
            if loaded.info.file_blake3 != shared.info.file_blake3 {
                return Err("the model's file has changed since it was loaded; restart to take the new one".to_owned());
            }
            let context = shared.info.context_length as usize;
            Desk::new(loaded.model, config, context).map_err(|error| error.to_string())
        };
        let (desk, rates) =
            catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| Err("loading panicked".to_owned()))?;
        *self = desk;
        shared.lock().rates = rates;
        Ok(())
    }

    fn work(&mut self, shared: &Shared) {
        while self.turn(shared) {}
    }

    /// One look at the queue and at who has gone, and one step. False at the end.
    pub(super) fn turn(&mut self, shared: &Shared) -> bool {
        if !self.admit(shared) {
            return false;
        }
        self.let_go(shared);
        self.plan(shared.config.prefill_chunk);
        if !self.rows.is_empty() {
            self.step(shared);
        }
        true
    }

    /// Gives free places to those that wait, and waits while there is nothing to do. False at the end.
    fn admit(&mut self, shared: &Shared) -> bool {
        let mut state = shared.lock();
        loop {
            if state.panic_wanted {
                state.panic_wanted = false;
                drop(state);
                return inject_panic();
            }
            if state.abandoned {
                return false;
            }
            state.drop_stale();
            self.seat(&mut state, shared);
            let mut work = Backlog::default();
            self.running().for_each(|sequence| sequence.add_backlog(&state.rates, &mut work));
            state.running = self.running().count();
            state.running_work = work;
            self.tell_cache(&mut state);
            if state.running > 0 {
                return true;
            }
            if state.closing {
                return false;
            }
            state = shared.wait(state);
        }
    }

    /// Gives free places to those that were set back, then to those whose turn it is, as long as the cache has room.
    fn seat(&mut self, state: &mut State, shared: &Shared) {
        while let Some(slot) = self.places.iter().position(Option::is_none) {
            if !self.parked.is_empty() {
                if !self.fits(self.parked[0].tokens()) {
                    return;
                }
                self.places[slot] = Some(self.parked.remove(0));
                continue;
            }
            let Some((tenant, job)) = state.waiting.first() else { return };
            if !self.fits(&job.tokens) {
                return;
            }
            let (tenant, prompt) = (tenant.clone(), job.tokens.ids.len() as f64);
            let Some(job) = state.waiting.pop() else { return };
            state.waiting.charge(&tenant, prompt);
            self.started += 1;
            self.places[slot] = Some(Sequence::start(job, shared.decline.clone(), self.started));
        }
    }

    /// All that have a place or were set back.
    fn running(&self) -> impl Iterator<Item = &Sequence> {
        self.places.iter().flatten().chain(&self.parked)
    }

    /// Brings what is known of the cache up to date.
    fn tell_cache(&mut self, state: &mut State) {
        if let Some(engine) = &self.engine {
            let (hit_tokens, preemptions) =
                (state.cache.hit_tokens + self.spared, state.cache.preemptions + self.preempted);
            state.cache = CacheReading { hit_tokens, preemptions, ..engine.store.reading() };
            (self.spared, self.preempted) = (0, 0);
        }
    }

    /// Ends sequences that nobody wants or whose time is up.
    fn let_go(&mut self, shared: &Shared) {
        let now = Instant::now();
        let over = |sequence: &Sequence| sequence.cancelled() || sequence.overdue(now);
        let tell = |sequence: Sequence| match sequence.cancelled() {
            true => sequence.forget(),
            false => sequence.fail(GenerateError::DeadlinePassed),
        };
        for slot in 0..self.places.len() {
            if self.places[slot].as_ref().is_some_and(over) {
                self.free(slot, shared, None, tell);
            }
        }
        while let Some(at) = self.parked.iter().position(over) {
            self.free_parked(at, shared, tell);
        }
    }

    /// Clears a place, then tells its request: whoever hears of the end finds the place free.
    fn free(&mut self, slot: usize, shared: &Shared, answer: Option<u32>, tell: impl FnOnce(Sequence)) {
        let Some(sequence) = self.places[slot].take() else { return };
        if let Some(engine) = &mut self.engine {
            engine.store.clear(slot, &sequence);
        }
        self.part(sequence, shared, answer, tell);
    }

    fn free_parked(&mut self, at: usize, shared: &Shared, tell: impl FnOnce(Sequence)) {
        let sequence = self.parked.remove(at);
        self.part(sequence, shared, None, tell);
    }

    fn part(&mut self, sequence: Sequence, shared: &Shared, answer: Option<u32>, tell: impl FnOnce(Sequence)) {
        let mut state = shared.lock();
        state.running = self.running().count();
        state.waiting.end(sequence.tenant());
        self.tell_cache(&mut state);
        if let Some(output) = answer {
            state.rates.observe_answer(output);
        }
        drop(state);
        tell(sequence);
    }

    fn step(&mut self, shared: &Shared) {
        let Some(engine) = &mut self.engine else { return };
        let (clock, started) = (ThreadClock::start(), Instant::now());
        let logits = engine.model.step(&mut engine.store.cache, &mut engine.scratch, &self.rows);
        let vocabulary = engine.model.shape().vocabulary;
        let mut logits = logits.chunks_exact(vocabulary);
        let (mut prompt_rows, mut output_rows) = (0, 0);
        let mut shares = Vec::with_capacity(self.order.len());
        self.choices.clear();
        for slot in &self.order {
            let Some(sequence) = &mut self.places[*slot] else { continue };
            let writing = sequence.writing();
            let (rows, asked) = sequence.take_rows();
            shares.push(rows);
            *(if writing { &mut output_rows } else { &mut prompt_rows }) += rows;
            if asked && let Some(logits) = logits.next() {
                let known = &logits[..shared.front.tokenizer.len().min(vocabulary)];
                self.choices.push((*slot, sequence.choose(engine.model.level(), known, &mut engine.samples)));
            }
            engine.store.index(*slot, sequence);
        }
        let nanos = clock.nanos();
        let mut state = shared.lock();
        state.rates.observe_step(prompt_rows, output_rows, started.elapsed().as_secs_f64());
        for (slot, share) in self.order.iter().zip(shares) {
            if let Some(sequence) = &self.places[*slot] {
                sequence.add_time(nanos * share as u64 / self.rows.len() as u64);
                if sequence.written() > 0 {
                    state.waiting.charge(sequence.tenant(), fair::OUTPUT);
                }
            }
        }
        self.tell_cache(&mut state);
        drop(state);
        self.hand_out(shared);
    }

    /// Passes the chosen tokens on and ends what is over.
    fn hand_out(&mut self, shared: &Shared) {
        for (slot, choice) in std::mem::take(&mut self.choices) {
            let Some(sequence) = &mut self.places[slot] else { continue };
            match choice.and_then(|choice| sequence.accept(choice, &shared.front.tokenizer)) {
                Ok(None) => {}
                Ok(Some(reason)) => {
                    let written = sequence.written();
                    self.free(slot, shared, Some(written), |sequence| sequence.finish(reason));
                }
                Err(error) => self.free(slot, shared, None, |sequence| sequence.fail(error)),
            }
        }
    }

    fn fail_running(&mut self, shared: &Shared, error: &GenerateError) {
        for slot in 0..self.places.len() {
            self.free(slot, shared, None, |sequence| sequence.fail(error.clone()));
        }
        while !self.parked.is_empty() {
            self.free_parked(0, shared, |sequence| sequence.fail(error.clone()));
        }
    }
}

/// What [`super::Worker::inject_panic`] asks for.
#[allow(clippy::panic, reason = "tests must see what follows a panic of the model's thread")]
fn inject_panic() -> bool {
    panic!("a panic was asked for");
}
