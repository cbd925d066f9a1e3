//! One running request: how far its tokens have been read, what it has written, and when it ends.
//!
//! Prompt and answer are one list of tokens, and reading is bringing it into the cache. A sequence that was set back forgets
//! how far it had read, not what it wrote, and so goes on where it was.

use std::time::Instant;

use super::constrain::{Guide, Progress};
use super::hold::Hold;
use super::prefix::{Key, Tenant, Tokens};
use super::queue::{Job, fail};
use super::rate::{Backlog, Rates};
use super::request::{Alternative, Event, FinishReason, Finished, GenerateError, TokenDetail};
use super::sample::{Choice, NoChoice, SampleScratch, Sampler};
use crate::kernels::Level;
use crate::model::Row;
use crate::tokenizer::Tokenizer;

/// A request that has a place.
#[derive(Debug)]
pub(super) struct Sequence {
    job: Job,
    sampler: Sampler,
    guide: Option<Guide>,
    hold: Hold,
    /// Which of all that ever got a place this is.
    age: u64,
    tokens: Tokens,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens that are in the cache.
    read: usize,
    /// Tokens of the prompt that the meter knows of.
    booked: usize,
    /// Entries of the index for the first blocks.
    chain: Vec<u64>,
    /// Output tokens so far.
    written: u32,
    /// Rows of the step under way.
    rows: usize,
    /// No token has added to the text yet.
    unspoken: bool,
}

impl Sequence {
    /// Takes a place and says so.
    pub fn start(mut job: Job, decline: Option<(String, usize)>, age: u64) -> Self {
        let tokens = std::mem::take(&mut job.tokens);
        let sampler = Sampler::new(job.sampling.clone(), &tokens.ids);
        let guide = job.guide.take();
        let hold = Hold::new(std::mem::take(&mut job.stop), decline);
        let prompt = tokens.ids.len();
        let (chain, read, booked, written, rows, unspoken) = (Vec::new(), 0, 0, 0, 0, true);
        let sequence =
            Self { job, sampler, guide, hold, age, tokens, prompt, read, booked, chain, written, rows, unspoken };
        sequence.send(Event::Started { prompt_tokens: prompt as u32 });
        sequence
    }

    /// Its number among all that ever got a place.
    pub fn age(&self) -> u64 {
        self.age
    }

    /// Prompt and answer so far.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// On whose behalf it runs.
    pub fn tenant(&self) -> &Tenant {
        &self.tokens.tenant
    }

    /// Tokens that are in the cache.
    pub fn read(&self) -> usize {
        self.read
    }

    /// Tokens that are not.
    pub fn left(&self) -> usize {
        self.tokens.ids.len() - self.read
    }

    /// Entries of the index for its first blocks.
    pub fn chain(&self) -> &[u64] {
        &self.chain
    }

    /// The key of the first block that has no entry, if its tokens are known.
    pub fn next_key(&self) -> Option<Key> {
        self.tokens.key(self.chain.len(), self.chain.last().copied().unwrap_or(0))
    }

    /// Its next block has an entry.
    pub fn indexed(&mut self, entry: u64) {
        self.chain.push(entry);
    }

    /// Its next block was there already. Returns how many tokens of the prompt that spared.
    pub fn adopted(&mut self, entry: u64, positions: usize) -> usize {
        self.chain.push(entry);
        self.read += positions;
        let spared = self.book();
        self.job.meter.add_cached(spared as u32);
        spared
    }

    /// Its place in the cache was taken away.
    pub fn set_back(&mut self) {
        self.read = 0;
        self.chain.clear();
    }

    /// Tells the meter how far the prompt has been read; what is read again counts once. Returns what was new.
    fn book(&mut self) -> usize {
        let now = self.read.min(self.prompt).max(self.booked);
        let new = now - self.booked;
        self.booked = now;
        self.job.meter.add(new as u32, 0, 0);
        new
    }

    /// Whether nobody wants it any more.
    pub fn cancelled(&self) -> bool {
        self.job.meter.cancelled()
    }

    /// Whether its time is up.
    pub fn overdue(&self, now: Instant) -> bool {
        self.job.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether its next row brings a token of the answer.
    pub fn writing(&self) -> bool {
        self.written > 0 && self.left() == 1
    }

    /// Adds its rows of the next step, `count` at most.
    pub fn add_rows(&mut self, slot: usize, count: usize, rows: &mut Vec<Row>) {
        let length = self.tokens.ids.len();
        let until = length.min(self.read + count);
        for position in self.read..until {
            let wants_logits = position + 1 == length;
            rows.push(Row { slot, position, token: self.tokens.ids[position], wants_logits });
        }
        self.rows = until - self.read;
    }

    /// Rows of the step under way; takes note that they are done. Returns whether it asked for logits.
    pub fn take_rows(&mut self) -> (usize, bool) {
        let rows = std::mem::take(&mut self.rows);
        self.read += rows;
        self.book();
        (rows, rows > 0 && self.left() == 0)
    }

    /// Chooses its next token.
    ///
    /// # Errors
    /// There is none to choose.
    pub fn choose(
        &mut self,
        level: Level,
        logits: &[f32],
        scratch: &mut SampleScratch,
    ) -> Result<Choice, GenerateError> {
        let allowed = match &mut self.guide {
            Some(guide) => Some(guide.allowed().map_err(GenerateError::Constraint)?),
            None => None,
        };
        self.sampler.choose(level, logits, allowed, scratch).map_err(|no| match no {
            NoChoice::NotANumber => GenerateError::NotANumber(self.written),
            NoChoice::NothingAllowed => GenerateError::Constraint("no token of the vocabulary continues it".to_owned()),
        })
    }

    /// Books processor time.
    pub fn add_time(&self, nanos: u64) {
        self.job.meter.add(0, 0, nanos);
    }

    /// Takes a chosen token, passes on what is certain, and says how the answer ended if it did.
    ///
    /// # Errors
    /// The answer can't become what its constraint asks for.
    pub fn accept(&mut self, choice: Choice, tokenizer: &Tokenizer) -> Result<Option<FinishReason>, GenerateError> {
        self.written += 1;
        self.tokens.ids.push(choice.id);
        self.job.meter.add(0, 1, 0);
        let ended = tokenizer.ends(choice.id);
        let full = self.written >= self.job.most;
        let progress = match &mut self.guide {
            Some(guide) if !ended => guide.advance(choice.id, full).map_err(GenerateError::Constraint)?,
            _ => Progress::Whole,
        };
        let complete = ended || (self.guide.is_some() && progress == Progress::Complete);
        let bytes = if ended { &[] } else { tokenizer.bytes(choice.id) };
        let detail = self.job.detailed.then(|| self.detail(bytes, tokenizer));
        let text = self.text_of(bytes, tokenizer);
        let released = self.hold.push(choice, detail, text, complete || full);
        let unfinished = full && !complete && progress == Progress::Partial && released.over.is_none();
        if unfinished {
            return Err(GenerateError::Unfinished(self.written));
        }
        for event in released.events {
            self.send(event);
        }
        let limit = if self.job.context_bound { FinishReason::Context } else { FinishReason::Length };
        Ok(released.over.or(if complete { Some(FinishReason::Stop) } else { full.then_some(limit) }))
    }

    /// What a token adds to the text: its bytes, but for a first space that is the vocabulary's and not the answer's.
    fn text_of<'bytes>(&mut self, bytes: &'bytes [u8], tokenizer: &Tokenizer) -> &'bytes [u8] {
        let first = self.unspoken && self.guide.is_none() && tokenizer.drops_first_space();
        self.unspoken &= bytes.is_empty();
        bytes.strip_prefix(b" ").filter(|_| first).unwrap_or(bytes)
    }

    fn detail(&self, bytes: &[u8], tokenizer: &Tokenizer) -> Box<TokenDetail> {
        let alternative = |(id, logprob): &(u32, f32)| Alternative {
            id: *id,
            bytes: tokenizer.bytes(*id).to_vec(),
            logprob: *logprob,
        };
        let alternatives = self.sampler.alternatives().iter().map(alternative).collect();
        Box::new(TokenDetail { bytes: bytes.to_vec(), alternatives })
    }

    /// Output tokens so far.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// The last event of an answer.
    pub fn finish(self, reason: FinishReason) {
        let usage = self.job.meter.usage();
        self.send(Event::Finished(Finished {
            reason,
            prompt_tokens: usage.prompt_tokens,
            cached_prompt_tokens: usage.cached_prompt_tokens,
            output_tokens: usage.output_tokens,
            max_tokens: self.job.most,
            cpu_seconds: usage.cpu_seconds,
        }));
        self.job.meter.settle();
    }

    /// The last event of a request without a (whole) answer.
    pub fn fail(self, error: GenerateError) {
        fail(self.job, error);
    }

    /// Lets go of a request nobody wants any more.
    pub fn forget(self) {
        self.job.meter.settle();
    }

    /// What it still needs.
    pub fn add_backlog(&self, rates: &Rates, backlog: &mut Backlog) {
        backlog.requests += 1;
        backlog.prompt += if self.writing() { 0.0 } else { self.left() as f64 };
        backlog.output += rates.expected_output(self.job.most, self.written);
    }

    /// The channel holds every event a request can have; it is closed only if the caller has gone, and then the next look at
    /// cancellation ends this sequence.
    fn send(&self, event: Event) {
        let _gone = self.job.events.try_send(event);
    }
}
