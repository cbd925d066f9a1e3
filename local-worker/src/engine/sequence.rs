//! One running request: how far its prompt has been read, what it has written, and when it ends.

use std::time::Instant;

use super::constrain::{Guide, Progress};
use super::hold::Hold;
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
    /// Prompt tokens that were rows of a step.
    read: usize,
    /// Output tokens so far.
    written: u32,
    /// The newest token, once the prompt is read.
    latest: Option<u32>,
    /// Rows of the step under way.
    rows: usize,
}

impl Sequence {
    /// Takes a place and says so.
    pub fn start(mut job: Job, decline: Option<(String, usize)>) -> Self {
        let sampler = Sampler::new(job.sampling.clone(), &job.prompt);
        let guide = job.guide.take();
        let hold = Hold::new(std::mem::take(&mut job.stop), decline);
        let sequence = Self { sampler, guide, hold, read: 0, written: 0, latest: None, rows: 0, job };
        sequence.send(Event::Started { prompt_tokens: sequence.job.prompt.len() as u32 });
        sequence
    }

    /// Whether nobody wants it any more.
    pub fn cancelled(&self) -> bool {
        self.job.meter.cancelled()
    }

    /// Whether its time is up.
    pub fn overdue(&self, now: Instant) -> bool {
        self.job.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether its prompt has been read.
    pub fn writing(&self) -> bool {
        self.latest.is_some()
    }

    /// Adds its rows of the next step: the newest token, or up to `room` tokens of its prompt. Returns how many.
    pub fn add_rows(&mut self, slot: usize, room: usize, rows: &mut Vec<Row>) -> usize {
        let length = self.job.prompt.len();
        self.rows = if let Some(token) = self.latest {
            rows.push(Row { slot, position: length + self.written as usize - 1, token, wants_logits: true });
            1
        } else {
            let until = length.min(self.read + room);
            for position in self.read..until {
                let wants_logits = position + 1 == length;
                rows.push(Row { slot, position, token: self.job.prompt[position], wants_logits });
            }
            until - self.read
        };
        self.rows
    }

    /// Rows of the step under way; takes note that they are done. Returns whether it asked for logits.
    pub fn take_rows(&mut self) -> (usize, bool) {
        let rows = std::mem::take(&mut self.rows);
        if self.latest.is_none() {
            self.read += rows;
            self.job.meter.add(rows as u32, 0, 0);
        }
        (rows, rows > 0 && self.read == self.job.prompt.len())
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
        self.latest = Some(choice.id);
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
        let released = self.hold.push(choice, detail, bytes, complete || full);
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
        backlog.prompt += (self.job.prompt.len() - self.read) as f64;
        backlog.output += rates.expected_output(self.job.most, self.written);
    }

    /// The channel holds every event a request can have; it is closed only if the caller has gone, and then the next look at
    /// cancellation ends this sequence.
    fn send(&self, event: Event) {
        let _gone = self.job.events.try_send(event);
    }
}
