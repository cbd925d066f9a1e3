//! The worker: one model, one owned thread, a bounded queue in front of it, and a stream of events for each request.
//!
//! The thread decodes up to [`WorkerConfig::max_sequences`] conversations together and looks at cancellation, deadlines and
//! newcomers between two steps, a step being one token for each running sequence plus at most one chunk of prompts. Tenants
//! take turns; keys and values stay within [`WorkerConfig::cache_bytes`], beginnings of prompts being kept there for those
//! who may find them. Nothing here blocks a caller: [`Worker::submit`] renders, tokenises and queues, or refuses at once.
//!
//! What an answer is worth, and who else could give it, is none of this module's business.

mod clock;
mod constrain;
mod fair;
mod front;
mod generation;
mod hold;
mod plan;
mod prefix;
mod queue;
mod rate;
mod request;
mod sample;
mod sequence;
mod source;
mod store;
mod thread;

pub use clock::processor_time;
pub use generation::{Generation, UsageMeter};
pub use request::{
    Alternative, CacheFormat, Constraint, Event, FinishReason, Finished, GenerateError, GenerateRequest, Health,
    LoadSnapshot, MAX_ALTERNATIVES, ModelInfo, ModelSource, SubmitError, TokenDetail, Usage, WorkerConfig,
};

pub use crate::template::ChatMessage;

pub(crate) use front::Front;
pub(crate) use source::{Loaded, load, read_model};
pub(crate) use thread::team;

use std::sync::{Arc, Mutex, PoisonError, mpsc as channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::model::LoadError;
use prefix::Tokens;
use queue::{Job, Shared};
use sample::Sampling;
use thread::Desk;

/// A handle on a running model; cheap to clone. When the last one is dropped, what was accepted is finished and the thread
/// ends.
#[derive(Debug, Clone)]
pub struct Worker(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.notify();
    }
}

impl Worker {
    /// Loads a model on a thread of its own, called `name`, and returns when it can answer.
    ///
    /// # Errors
    /// The file is missing, malformed or of a kind this build can't run, or a setting is out of range.
    pub fn start(name: &str, source: ModelSource, config: WorkerConfig) -> Result<Self, LoadError> {
        check_config(&config)?;
        let (report, reported) = channel::sync_channel(1);
        let thread_name = name.to_owned();
        let body = move || match source::load(&thread_name, &source, &config) {
            Err(error) => drop(report.send(Err(error))),
            Ok(loaded) => {
                let started = Instant::now();
                let (desk, rates) = match Desk::new(loaded.model, &config, loaded.info.context_length as usize) {
                    Ok(ready) => ready,
                    Err(error) => return drop(report.send(Err(error))),
                };
                let mut info = loaded.info;
                info.load_seconds += started.elapsed().as_secs_f64();
                let shared =
                    Arc::new(Shared::new(config, info, loaded.front, loaded.decline, (rates, desk.positions())));
                shared.lock().cache = desk.reading();
                if report.send(Ok(shared.clone())).is_ok() {
                    desk.serve(&shared, &source);
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread.map_err(|error| LoadError::Thread(error.to_string()))?;
        let shared = reported.recv().map_err(|_| LoadError::Thread("it panicked while loading".to_owned()))??;
        Ok(Self(Arc::new(Handle { shared, thread: Mutex::new(Some(thread)) })))
    }

    /// What the model is.
    pub fn info(&self) -> ModelInfo {
        self.0.shared.info.clone()
    }

    /// Queues a request, or refuses it at once. Takes the rendering and tokenising of the conversation on the caller's
    /// thread, about half a microsecond a byte up to the model's context, and of compiling its constraint where it is new;
    /// never waits for the model.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation, SubmitError> {
        check_request(&request)?;
        let shared = &self.0.shared;
        let context = shared.info.context_length as usize;
        let tokens = self.tokens(&request, context)?;
        let (prompt, positions) = (tokens.ids.len(), shared.positions);
        let left = (context - prompt) as u32;
        // The last token of an answer is never read.
        let fits = (positions + 1).saturating_sub(prompt);
        let most = request.max_tokens.map_or(left.min(u32::try_from(fits).unwrap_or(left)), |most| most.min(left));
        if most as usize > fits || fits == 0 {
            return Err(SubmitError::CacheTooSmall { tokens: prompt + most as usize, positions });
        }
        let guide = match &request.constraint {
            Some(constraint) => {
                let decline = shared.decline.as_ref().map(|(text, _)| text.as_str());
                Some(shared.grammars.guide(&shared.front.tokenizer, constraint, decline)?)
            }
            None => None,
        };
        // Each output token is one event, and there are a first and a last one.
        let (events, receiver) = mpsc::channel(most as usize + 2);
        let meter = UsageMeter::default();
        shared.accept(Job {
            tokens,
            most,
            context_bound: request.max_tokens.is_none_or(|wanted| wanted > left),
            sampling: Sampling::from(&request),
            stop: request.stop,
            detailed: request.logprobs.is_some(),
            guide,
            deadline: request.deadline,
            events,
            meter: meter.clone(),
        })?;
        Ok(Generation::new(receiver, meter))
    }

    /// The prompt of a request, and how much of it is shared: as far as the marked messages alone would read the same.
    fn tokens(&self, request: &GenerateRequest, context: usize) -> Result<Tokens, SubmitError> {
        let front = &self.0.shared.front;
        let ids = front.encode(&request.messages, context)?;
        let marked = &request.messages[..request.shared_messages.min(request.messages.len())];
        let shared = if marked.is_empty() { Vec::new() } else { front.encode(marked, context).unwrap_or_default() };
        let shared = ids.iter().zip(&shared).take_while(|(token, other)| token == other).count();
        Ok(Tokens { ids, tenant: request.tenant.as_deref().map(Arc::from), shared })
    }

    /// Whether the worker can answer.
    pub fn health(&self) -> Health {
        self.0.shared.lock().health.clone()
    }

    /// How busy it is, and how fast it has been lately.
    pub fn load(&self) -> LoadSnapshot {
        let state = self.0.shared.lock();
        let newcomer = Some(Arc::from("\u{0}"));
        LoadSnapshot {
            waiting: state.waiting.waiting(),
            running: state.running,
            prefill_tokens_per_second: state.rates.prefill,
            decode_tokens_per_second: state.rates.decode,
            full: !state.has_room(&newcomer, &self.0.shared.config),
            cache_used_bytes: state.cache.used_bytes,
            cache_kept_bytes: state.cache.kept_bytes,
            cache_free_bytes: state.cache.free_bytes,
            prefix_hit_tokens: state.cache.hit_tokens,
            preemptions: state.cache.preemptions,
        }
    }

    /// Predicted time from now to the end of an answer, were it submitted now: the work waiting and running, this prompt,
    /// and as many output tokens as answers have had lately, at most `max_tokens`.
    pub fn predicted_wait(&self, prompt_tokens: u32, max_tokens: u32) -> Duration {
        let state = self.0.shared.lock();
        let output = state.rates.expected_output(max_tokens, 0);
        state.rates.predict(state.backlog(&None), self.0.shared.config.max_sequences, f64::from(prompt_tokens), output)
    }

    /// Tokens a conversation takes as a prompt, the template's own included.
    ///
    /// # Errors
    /// The template refuses the conversation, or it can't fit the context.
    pub fn count_prompt_tokens(&self, messages: &[ChatMessage]) -> Result<u32, SubmitError> {
        let shared = &self.0.shared;
        Ok(shared.front.encode(messages, shared.info.context_length as usize)?.len() as u32)
    }

    /// Accepts nothing more, finishes what is queued and running, and joins the thread; what is not finished after `timeout`
    /// fails with [`GenerateError::ShutDown`]. Returns whether everything was finished. Blocks, after `timeout` for one
    /// more step at most.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        let shared = &self.0.shared;
        let now = Instant::now();
        let end = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86_400));
        let mut state = shared.lock();
        state.closing = true;
        shared.notify();
        let mut finished = true;
        while !state.ended {
            state = match shared.wait_until(state, end) {
                Some(state) => state,
                None => {
                    finished = false;
                    break;
                }
            };
        }
        if !finished {
            shared.lock().abandoned = true;
            shared.notify();
        }
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        finished & thread.is_none_or(|thread| thread.join().is_ok())
    }

    /// Makes the model's thread panic before its next step, for tests of what follows.
    #[doc(hidden)]
    pub fn inject_panic(&self) {
        self.0.shared.lock().panic_wanted = true;
        self.0.shared.notify();
    }
}

fn check_config(config: &WorkerConfig) -> Result<(), LoadError> {
    let wrong = |setting, problem: String| Err(LoadError::Config { setting, problem });
    match config {
        WorkerConfig { threads, .. } if !(1..=64).contains(threads) => {
            wrong("threads", format!("is {threads}; it must be between 1 and 64"))
        }
        WorkerConfig { max_sequences, .. } if !(1..=1024).contains(max_sequences) => {
            wrong("max_sequences", format!("is {max_sequences}; it must be between 1 and 1024"))
        }
        WorkerConfig { prefill_chunk, .. } if !(1..=65_536).contains(prefill_chunk) => {
            wrong("prefill_chunk", format!("is {prefill_chunk}; it must be between 1 and 65536"))
        }
        WorkerConfig { context_limit: Some(limit), .. } if *limit < 2 => {
            wrong("context_limit", format!("is {limit}; a prompt and an answer need at least 2"))
        }
        _ => Ok(()),
    }
}

fn check_request(request: &GenerateRequest) -> Result<(), SubmitError> {
    let wrong = |field, problem: String| Err(SubmitError::Invalid { field, problem });
    if request.messages.is_empty() {
        return wrong("messages", "are empty; there must be at least one".to_owned());
    }
    if request.max_tokens == Some(0) {
        return wrong("max_tokens", "is 0; it must be at least 1".to_owned());
    }
    for (field, value, range, good) in ranges(request) {
        if !good {
            return wrong(field, format!("is {value}; it must be {range}"));
        }
    }
    if let Some(count) = request.logprobs.filter(|count| *count > MAX_ALTERNATIVES) {
        return wrong("logprobs", format!("is {count}; it must be at most {MAX_ALTERNATIVES}"));
    }
    if request.constraint.is_some() && !request.stop.is_empty() {
        return wrong(
            "stop",
            "can't be combined with a constraint, which it would cut short; leave one out".to_owned(),
        );
    }
    if request.stop.iter().any(String::is_empty) {
        return wrong("stop", "has an empty text; leave it out".to_owned());
    }
    Ok(())
}

/// Fields that are numbers: name, value, range, and whether it is kept.
fn ranges(request: &GenerateRequest) -> [(&'static str, f32, &'static str, bool); 6] {
    let penalty = |field, value: f32| (field, value, "within -2 and 2", (-2.0..=2.0).contains(&value));
    let (temperature, top_p, min_p) = (request.temperature, request.top_p, request.min_p);
    let repetition = request.repetition_penalty;
    let hot = temperature.is_finite() && temperature >= 0.0;
    [
        ("temperature", temperature, "finite and at least 0", hot),
        ("top_p", top_p, "above 0 and at most 1", top_p > 0.0 && top_p <= 1.0),
        ("min_p", min_p, "within 0 and 1", (0.0..=1.0).contains(&min_p)),
        ("repetition_penalty", repetition, "above 0 and at most 10", repetition > 0.0 && repetition <= 10.0),
        penalty("presence_penalty", request.presence_penalty),
        penalty("frequency_penalty", request.frequency_penalty),
    ]
}

#[cfg(test)]
mod tests;
