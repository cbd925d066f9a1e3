//! The body of one answer, read under its clock and caps and turned into chunks. Dropping it closes the connection.

use super::sse::SseParser;
use super::{Clock, estimated_usage, openai};
use crate::backend::resilience::Permit;
use crate::backend::{AnswerStream, BackendError, UsageProbe};
use crate::domain::{Chunk, Finish};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// After `[DONE]` the body's own end is waited for this long: read to its end, the connection can be used again.
const LINGER: Duration = Duration::from_millis(20);

/// What it takes to read an answer.
pub(super) struct Task {
    /// The pieces of the body; an error is a broken connection.
    pub(super) body: BoxStream<'static, Result<Bytes, ()>>,
    pub(super) clock: Clock,
    pub(super) permit: Permit,
    pub(super) estimated_prompt: u64,
    pub(super) probe: UsageProbe,
    /// Most bytes of body.
    pub(super) max_bytes: usize,
}

/// An answer being read.
pub(super) struct Reading {
    body: BoxStream<'static, Result<Bytes, ()>>,
    clock: Clock,
    /// Taken when the end is reported to the breaker.
    permit: Option<Permit>,
    estimated_prompt: u64,
    probe: UsageProbe,
    bytes_left: usize,
    begun: bool,
    chunks: u64,
    text_bytes: u64,
    decoder: openai::Decoder,
    events: VecDeque<String>,
}

impl Reading {
    pub(super) fn new(task: Task) -> Self {
        Self {
            body: task.body,
            clock: task.clock,
            permit: Some(task.permit),
            estimated_prompt: task.estimated_prompt,
            probe: task.probe,
            bytes_left: task.max_bytes,
            begun: false,
            chunks: 0,
            text_bytes: 0,
            decoder: openai::Decoder::default(),
            events: VecDeque::new(),
        }
    }

    /// Reads the body as events.
    pub(super) fn events(self) -> AnswerStream {
        let state = Some((self, SseParser::default()));
        Box::pin(unfold(state, |state| async move {
            let (mut reading, mut parser) = state?;
            match reading.next_chunk(&mut parser).await {
                Ok(chunk @ Chunk::Text { .. }) => Some((Ok(chunk), Some((reading, parser)))),
                Ok(end) => Some((Ok(end), None)),
                Err(error) => Some((Err(reading.failed(error)), None)),
            }
        }))
    }

    /// Reads the body as one JSON document.
    pub(super) async fn whole(mut self) -> Result<(String, Finish), BackendError> {
        match self.read_whole().await {
            Ok(text) => {
                self.note_text(&text);
                Ok((text, self.complete()))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn read_whole(&mut self) -> Result<String, BackendError> {
        let mut body = Vec::new();
        while let Some(piece) = self.next_piece().await? {
            body.extend_from_slice(&piece);
        }
        self.decoder.body(&body)
    }

    async fn next_chunk(&mut self, parser: &mut SseParser) -> Result<Chunk, BackendError> {
        loop {
            while let Some(data) = self.events.pop_front() {
                let step = self.decoder.event(&data)?;
                self.note_usage();
                match step {
                    openai::Step::Nothing => {}
                    openai::Step::Text(text) => {
                        self.note_text(&text);
                        return Ok(Chunk::Text { text, logprobs: self.decoder.take_logprobs() });
                    }
                    openai::Step::Done => {
                        let _end_or_not = timeout(LINGER, self.body.next()).await;
                        return Ok(Chunk::End(self.complete()));
                    }
                }
            }
            match self.next_piece().await? {
                Some(piece) => {
                    let mut events = Vec::new();
                    let parsed = parser.push(&piece, &mut events);
                    self.events.extend(events);
                    parsed.map_err(|error| openai::protocol(&error.to_string()))?;
                }
                None => {
                    let last = std::mem::take(parser).unfinished();
                    return match last.as_deref().map(str::trim) {
                        Some("[DONE]") => match self.decoder.event("[DONE]")? {
                            openai::Step::Done => Ok(Chunk::End(self.complete())),
                            _ => Err(self.decoder.cut("the stream ended without its end marker")),
                        },
                        _ => Err(self.decoder.cut("the stream ended without its end marker")),
                    };
                }
            }
        }
    }

    /// The next piece of the body, `None` at its proper end.
    async fn next_piece(&mut self) -> Result<Option<Bytes>, BackendError> {
        let (limit, passed) = if self.begun { self.clock.next_piece() } else { self.clock.first_byte() };
        // A server that always has bytes ready would never let the timer fire.
        if limit <= Instant::now() {
            return Err(passed);
        }
        match timeout_at(limit, self.body.next()).await {
            Err(_) => Err(passed),
            Ok(None) => Ok(None),
            Ok(Some(Err(()))) => Err(self.decoder.cut("the connection broke off")),
            Ok(Some(Ok(piece))) => {
                self.begun = true;
                self.bytes_left = self
                    .bytes_left
                    .checked_sub(piece.len())
                    .ok_or_else(|| openai::protocol("a body larger than the target's cap"))?;
                Ok(Some(piece))
            }
        }
    }

    fn note_text(&mut self, text: &str) {
        self.chunks += 1;
        self.text_bytes += text.len() as u64;
        let (chunks, text_bytes) = (self.chunks, self.text_bytes);
        let usage = self.decoder.usage();
        let usage = usage.unwrap_or_else(|| estimated_usage(self.estimated_prompt, chunks, text_bytes));
        self.probe.update(|reading| {
            reading.text_bytes = text_bytes;
            reading.usage = usage;
        });
    }

    fn note_usage(&self) {
        if let Some(usage) = self.decoder.usage() {
            self.probe.update(|reading| {
                reading.usage = usage;
                reading.reported = self.decoder.has_finish_reason();
            });
        }
    }

    /// The answer is complete.
    fn complete(&mut self) -> Finish {
        self.note_usage();
        self.probe.update(|reading| reading.settled = true);
        if let Some(permit) = self.permit.take() {
            permit.succeeded();
        }
        self.decoder.finish(estimated_usage(self.estimated_prompt, self.chunks, self.text_bytes))
    }

    /// The answer failed.
    fn failed(mut self, error: BackendError) -> BackendError {
        self.note_usage();
        let error = error.with_usage(self.decoder.usage());
        if let Some(permit) = self.permit.take() {
            permit.failed(&error);
        }
        error
    }
}
