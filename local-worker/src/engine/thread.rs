//! The model's thread: takes requests from the queue, runs step after step over all that have a place, and brings the model
//! back if a step panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::clock::ThreadClock;
use super::queue::{Shared, fail};
use super::rate::{Backlog, Rates};
use super::request::{GenerateError, Health, ModelSource, WorkerConfig};
use super::sample::{Choice, SampleScratch};
use super::sequence::Sequence;
use super::source;
use crate::kernels::Team;
use crate::model::{Cache, Llama, Row, Scratch};

/// Rows and steps by which speed is measured before the first request.
const WARM_UP: (usize, usize) = (32, 4);

/// The model and the requests on it. Requests stay outside of what a panic can tear.
#[derive(Debug)]
pub(super) struct Desk {
    engine: Option<Engine>,
    places: Vec<Option<Sequence>>,
    rows: Vec<Row>,
    choices: Vec<Option<Result<Choice, GenerateError>>>,
}

/// The threads that share products; none for one thread, or where the system gives no more.
fn team(threads: usize) -> Option<Arc<Team>> {
    let made = (threads > 1).then(|| Team::new("model helper", threads))?;
    made.inspect_err(|error| tracing::warn!(%error, threads, "no helper threads: the model runs on one"))
        .ok()
        .map(Arc::new)
}

/// What runs the model.
#[derive(Debug)]
struct Engine {
    model: Llama,
    cache: Cache,
    scratch: Scratch,
    samples: SampleScratch,
}

impl Engine {
    fn new(model: Llama, config: &WorkerConfig) -> Self {
        let shape = model.shape();
        let cache = Cache::new(config.max_sequences, shape.layers, shape.key_heads, shape.head);
        Self { model, cache, scratch: Scratch::shared_by(team(config.threads)), samples: SampleScratch::default() }
    }

    /// Measures speed with an empty worker, and lets the processor see the weights once.
    fn warm_up(&mut self, context: usize) -> Rates {
        let mut rates = Rates::default();
        let (prompt, steps) = (WARM_UP.0.min(context), WARM_UP.1.min(context));
        let row = |position| Row { slot: 0, position, token: position as u32, wants_logits: true };
        let prompt: Vec<Row> = (0..prompt).map(|at| Row { wants_logits: false, ..row(at) }).collect();
        let started = Instant::now();
        self.model.step(&mut self.cache, &mut self.scratch, &prompt);
        rates.observe_step(prompt.len(), 0, started.elapsed().as_secs_f64());
        for position in 0..steps {
            let started = Instant::now();
            self.model.step(&mut self.cache, &mut self.scratch, &[row(position)]);
            rates.observe_step(0, 1, started.elapsed().as_secs_f64());
        }
        self.cache.clear(0);
        rates
    }
}

impl Desk {
    /// A desk for a model just loaded, and how fast it is.
    pub fn new(model: Llama, config: &WorkerConfig, context: usize) -> (Self, Rates) {
        let mut engine = Engine::new(model, config);
        let rates = engine.warm_up(context);
        let places = (0..config.max_sequences).map(|_| None).collect();
        (Self { engine: Some(engine), places, rows: Vec::new(), choices: Vec::new() }, rates)
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
        state.waiting.drain(..).for_each(|job| fail(job, error.clone()));
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
            Ok(Desk::new(loaded.model, config, shared.info.context_length as usize))
        };
        let (desk, rates) =
            catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| Err("loading panicked".to_owned()))?;
        *self = desk;
        shared.lock().rates = rates;
        Ok(())
    }

    fn work(&mut self, shared: &Shared) {
        while self.admit(shared) {
            self.let_go(shared);
            self.collect_rows(shared.config.prefill_chunk);
            if !self.rows.is_empty() {
                self.step(shared);
            }
        }
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
            for place in self.places.iter_mut().filter(|place| place.is_none()) {
                let Some(job) = state.waiting.pop_front() else { break };
                *place = Some(Sequence::start(job, shared.decline.clone()));
            }
            let running = self.places.iter().flatten().count();
            let mut work = Backlog::default();
            self.places.iter().flatten().for_each(|sequence| sequence.add_backlog(&state.rates, &mut work));
            state.running = running;
            state.running_work = work;
            if running > 0 {
                return true;
            }
            if state.closing {
                return false;
            }
            state = shared.wait(state);
        }
    }

    /// Ends sequences that nobody wants or whose time is up.
    fn let_go(&mut self, shared: &Shared) {
        let now = Instant::now();
        for slot in 0..self.places.len() {
            let Some(sequence) = &self.places[slot] else { continue };
            if sequence.cancelled() {
                self.free(slot, shared, None, Sequence::forget);
            } else if sequence.overdue(now) {
                self.free(slot, shared, None, |sequence| sequence.fail(GenerateError::DeadlinePassed));
            }
        }
    }

    /// Clears a place, then tells its request: whoever hears of the end finds the place free.
    fn free(&mut self, slot: usize, shared: &Shared, answer: Option<u32>, tell: impl FnOnce(Sequence)) {
        let Some(sequence) = self.places[slot].take() else { return };
        if let Some(engine) = &mut self.engine {
            engine.cache.clear(slot);
        }
        let mut state = shared.lock();
        state.running = self.places.iter().flatten().count();
        if let Some(output) = answer {
            state.rates.observe_answer(output);
        }
        drop(state);
        tell(sequence);
    }

    /// One row for each that writes, and up to `chunk` rows of prompts.
    fn collect_rows(&mut self, chunk: usize) {
        self.rows.clear();
        let mut room = chunk;
        for (slot, place) in self.places.iter_mut().enumerate() {
            let Some(sequence) = place else { continue };
            if sequence.writing() {
                sequence.add_rows(slot, 1, &mut self.rows);
            } else {
                room -= sequence.add_rows(slot, room, &mut self.rows);
            }
        }
    }

    fn step(&mut self, shared: &Shared) {
        let Some(engine) = &mut self.engine else { return };
        let (clock, started) = (ThreadClock::start(), Instant::now());
        let logits = engine.model.step(&mut engine.cache, &mut engine.scratch, &self.rows);
        let vocabulary = engine.model.shape().vocabulary;
        let mut logits = logits.chunks_exact(vocabulary);
        let (mut prompt_rows, mut output_rows) = (0, 0);
        let mut shares = vec![0; self.places.len()];
        self.choices.clear();
        for (place, share) in self.places.iter_mut().zip(&mut shares) {
            self.choices.push(None);
            let Some(sequence) = place else { continue };
            let writing = sequence.writing();
            let (rows, asked) = sequence.take_rows();
            *share = rows;
            *(if writing { &mut output_rows } else { &mut prompt_rows }) += rows;
            if asked && let (Some(logits), Some(choice)) = (logits.next(), self.choices.last_mut()) {
                let known = &logits[..shared.front.tokenizer.len().min(vocabulary)];
                *choice = Some(sequence.choose(engine.model.level(), known, &mut engine.samples));
            }
        }
        let nanos = clock.nanos();
        shared.lock().rates.observe_step(prompt_rows, output_rows, started.elapsed().as_secs_f64());
        for (place, share) in self.places.iter().zip(shares) {
            if let Some(sequence) = place {
                sequence.add_time(nanos * share as u64 / self.rows.len() as u64);
            }
        }
        self.hand_out(shared);
    }

    /// Passes the chosen tokens on and ends what is over.
    fn hand_out(&mut self, shared: &Shared) {
        for slot in 0..self.places.len() {
            let (Some(sequence), Some(choice)) = (&mut self.places[slot], self.choices[slot].take()) else { continue };
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
    }
}

/// What [`super::Worker::inject_panic`] asks for.
#[allow(clippy::panic, reason = "tests must see what follows a panic of the model's thread")]
fn inject_panic() -> bool {
    panic!("a panic was asked for");
}
