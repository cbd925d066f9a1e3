//! Many random requests at one worker: arrivals in bursts, several tenants, shared beginnings, cancels at any moment. Every
//! token that comes out is compared with what the same prompt gives when it runs alone.

use std::collections::HashMap;

use super::Script;
use crate::engine::{
    ChatMessage, Event, FinishReason, GenerateError, GenerateRequest, Generation, LoadSnapshot, ModelSource,
    SubmitError, Worker, WorkerConfig,
};

/// Tokens of an answer at most.
const MOST: u32 = 24;
/// Requests under way at most, those answered but not read among them: without a bound their answers pile up, and what is
/// measured is the memory of whoever does not read.
const MOST_OPEN: usize = 100;
/// Prompts that are asked.
const PROMPTS: usize = 60;
/// Beginnings that prompts share.
const BEGINNINGS: usize = 4;
const TENANTS: [Option<&str>; 4] = [None, Some("a"), Some("b"), Some("c")];

/// A model whose every token depends on all before it.
pub const MODEL: Script<'static> = Script { chains: &[], decline: None, context: 256, template: None, seed: Some(11) };

/// What became of the requests.
#[derive(Debug, Default, PartialEq)]
pub struct Soaked {
    /// Answers that came to their end.
    pub complete: usize,
    /// Requests that were dropped before.
    pub cancelled: usize,
    /// Tokens compared.
    pub tokens: usize,
    /// Prompt tokens that had not to be computed.
    pub cached: usize,
    /// What the worker says of itself when all are gone.
    pub after: LoadSnapshot,
}

/// A repeatable source of chance.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound
    }
}

/// One token as it came out; the log-probability to the bit.
type Told = (u32, u32);

/// A request under way.
struct Open {
    prompt: usize,
    /// Events after which it is dropped.
    patience: Option<usize>,
    generation: Generation,
    told: Vec<Told>,
}

/// Prompts and what they are answered alone.
pub struct Book {
    prompts: Vec<String>,
    answers: HashMap<usize, Vec<Told>>,
    alone: Worker,
}

impl Book {
    /// For a model file; a worker of its own answers one at a time, and finds nothing computed before.
    ///
    /// # Errors
    /// The worker can't start.
    pub fn new(source: ModelSource, config: &WorkerConfig, dice: &mut Dice) -> Result<Self, String> {
        let config = WorkerConfig {
            max_sequences: 1,
            prefill_chunk: 1024,
            cache_bytes: 64 << 20,
            cache_format: config.cache_format,
            ..WorkerConfig::default()
        };
        let alone = Worker::start("alone", source, config).map_err(|error| error.to_string())?;
        let mut letters = |count: usize| (0..count).map(|_| (b'a' + dice.below(26) as u8) as char).collect::<String>();
        let beginnings: Vec<String> = (0..BEGINNINGS).map(|at| letters(at * 33)).collect();
        let prompts = (0..PROMPTS).map(|at| beginnings[at % BEGINNINGS].clone() + &letters(1 + at)).collect();
        Ok(Self { prompts, answers: HashMap::new(), alone })
    }

    fn request(&self, prompt: usize, tenant: Option<String>) -> GenerateRequest {
        let message = ChatMessage { role: "user".to_owned(), content: self.prompts[prompt].clone() };
        GenerateRequest { max_tokens: Some(MOST), tenant, ..GenerateRequest::greedy(vec![message]) }
    }

    fn answer(&mut self, prompt: usize) -> Result<Vec<Told>, String> {
        if let Some(answer) = self.answers.get(&prompt) {
            return Ok(answer.clone());
        }
        // A tenant for each prompt: nothing is found computed.
        let request = self.request(prompt, Some(format!("alone {prompt}")));
        let mut open = Open {
            prompt,
            patience: None,
            generation: self.alone.submit(request).map_err(|error| error.to_string())?,
            told: Vec::new(),
        };
        while open.read()?.is_none() {}
        self.answers.insert(prompt, open.told.clone());
        Ok(open.told)
    }
}

impl Open {
    /// Waits for an event; says how the answer ended, if it did.
    fn read(&mut self) -> Result<Option<FinishReason>, String> {
        match self.generation.blocking_next() {
            Some(Event::Started { .. }) => Ok(None),
            Some(Event::Token { id, logprob, .. }) => {
                self.told.push((id, logprob.to_bits()));
                Ok(None)
            }
            Some(Event::Finished(finished)) => Ok(Some(finished.reason)),
            Some(Event::Failed(error)) => Err(failed(&error)),
            None => Err("a stream ended without its last event".to_owned()),
        }
    }
}

fn failed(error: &GenerateError) -> String {
    format!("a request failed: {error}")
}

/// Sends `requests` requests to `worker`, drops three of ten, and compares the rest with the book.
///
/// # Errors
/// A request was lost, or answered with other tokens than alone.
pub fn soak(worker: &Worker, book: &mut Book, requests: usize, dice: &mut Dice) -> Result<Soaked, String> {
    let mut soaked = Soaked::default();
    let mut open: Vec<Open> = Vec::new();
    let mut sent = 0;
    while sent < requests || !open.is_empty() {
        for _ in 0..dice.below(12) {
            let prompt = dice.below(PROMPTS);
            let tenant = TENANTS[dice.below(TENANTS.len())].map(str::to_owned);
            let patience = (dice.below(10) < 3).then(|| dice.below(MOST as usize / 2));
            if sent == requests || open.len() == MOST_OPEN {
                break;
            }
            match worker.submit(book.request(prompt, tenant)) {
                Ok(generation) => open.push(Open { prompt, patience, generation, told: Vec::new() }),
                Err(SubmitError::QueueFull { .. }) => break,
                Err(error) => return Err(error.to_string()),
            }
            sent += 1;
        }
        for _ in 0..dice.below(6).max(usize::from(sent == requests)) {
            if open.is_empty() {
                break;
            }
            let one = open.swap_remove(dice.below(open.len()));
            end(one, book, &mut soaked)?;
        }
    }
    soaked.after = settled(worker);
    Ok(soaked)
}

/// Reads one to its end, or until patience is lost.
fn end(mut one: Open, book: &mut Book, soaked: &mut Soaked) -> Result<(), String> {
    let expected = book.answer(one.prompt)?;
    let mut reason = None;
    let mut events = 0;
    while reason.is_none() && one.patience.is_none_or(|patience| events < patience) {
        reason = one.read()?;
        events += 1;
    }
    let whole = reason.is_some();
    if (whole && one.told != expected) || !expected.starts_with(&one.told) {
        return Err(format!("prompt {} was answered {:?}, alone {expected:?}", one.prompt, one.told));
    }
    soaked.tokens += one.told.len();
    soaked.cached += one.generation.usage().cached_prompt_tokens as usize;
    *(if whole { &mut soaked.complete } else { &mut soaked.cancelled }) += 1;
    Ok(())
}

/// The worker's own figures once it has nothing to do, or after ten seconds.
fn settled(worker: &Worker) -> LoadSnapshot {
    for _ in 0..1000 {
        let load = worker.load();
        if load.running == 0 && load.waiting == 0 {
            return load;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    worker.load()
}
