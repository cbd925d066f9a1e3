//! One attempt at one backend, metered: money is held, the journal knows of it before the backend does, tokens are
//! counted as they flow, and whatever ends it — its end, an error, a hang-up, a deadline — is booked exactly once.

use super::draft::{ALTERNATIVES, Kept};
use super::hold::{Held, hold};
use super::observe::{self, Observed};
use super::reply::{GatewayErrorKind, ReplyEvent};
use super::run::Run;
use super::second::{self, Said};
use crate::backend::{AnswerStream, Backend, BackendCall, BackendError, ProbeReading, UsageProbe};
use crate::catalog::Model;
use crate::domain::{
    AttemptId, Chunk, Cost, CostBasis, EntryStatus, Finish, FinishReason, ModelId, NanoUsd, Reason, ResponseFormat,
    Route, TokenLogprob, Usage,
};
use crate::latency::Seen;
use crate::ledger::{AttemptEnded, AttemptStarted};
use futures_util::StreamExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::Instrument as _;

/// Bytes of text that make up about one token of English: the estimate where nobody counted.
pub const BYTES_PER_TOKEN: u64 = 4;

/// Tokens that `bytes` bytes of text make up, estimated.
pub fn estimated_tokens(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

/// How an attempt ended, by what the run may do next.
pub enum AttemptEnd {
    /// A complete answer, shown in full.
    Complete(Finish),
    /// The small model declined; nothing was shown.
    Declined,
    /// The judge turned the draft down, for this reason; nothing was shown.
    Rejected(String),
    /// The budget has no room for it; nothing was sent.
    BudgetExhausted(GatewayErrorKind),
    /// The journal can't be written; nothing was sent.
    JournalUnwritable(String),
    /// The backend failed.
    Failed(BackendError),
    /// The caller hung up.
    Cancelled,
    /// The caller's deadline passed.
    DeadlineExceeded,
}

/// What is being attempted.
struct Target {
    backend: Arc<dyn Backend>,
    model: Model,
    max_output_tokens: u32,
    bound: NanoUsd,
}

/// Makes one attempt at `model` for `run`, the `number`-th at this model.
pub async fn attempt(run: &mut Run, model: &ModelId, number: u32) -> AttemptEnd {
    let target = match target(run, model) {
        Ok(target) => target,
        Err(error) => return AttemptEnd::Failed(error),
    };
    let id = AttemptId::fresh();
    let hold = match hold(run, id, target.bound) {
        Ok(hold) => hold,
        Err(kind) => return AttemptEnd::BudgetExhausted(kind),
    };
    let started = AttemptStarted {
        attempt: id,
        request: run.admitted.request.id,
        tenant: run.admitted.request.tenant.clone(),
        model: model.clone(),
        route: target.backend.route(),
        number,
        started_at: jiff::Timestamp::now(),
        hold: target.bound,
        shadow: run.shadow.clone(),
    };
    if let Err(error) = run.gateway.ledger.attempt_started(&started) {
        if target.bound > NanoUsd::ZERO {
            hold.into_iter().for_each(Held::refund);
            return AttemptEnd::JournalUnwritable(error.to_string());
        }
        tracing::warn!(%error, "a free attempt goes on although the journal can't be written");
    }
    run.totals.attempts += 1;
    let probe = UsageProbe::default();
    let clock = Instant::now();
    let first_before = run.first_byte;
    let began = run.admitted.received.elapsed();
    run.chunks = 0;
    let span = observe::attempt_span(run, &target.model, target.backend.route(), target.max_output_tokens);
    let driven = drive(run, &target, id, &probe).instrument(span.clone()).await;
    // Whoever else is asked about a draft is an attempt of its own, with a time of its own.
    let (reading, latency, chunks) = (probe.reading(), clock.elapsed(), run.chunks);
    let end = match driven {
        Driven::Ended(end) => end,
        Driven::Drafted(kept, finish) => settle(run, &target, *kept, finish).await,
    };
    run.chunks = run.chunks.max(chunks);
    let first_byte = run.first_byte.filter(|_| first_before.is_none());
    let first_chunk = first_byte.map(|first_byte| first_byte.saturating_sub(began).min(latency));
    let measured = Measured { reading, latency, first_chunk };
    span.in_scope(|| book(run, &target, id, hold, &end, &measured));
    end
}

/// How a call went: to an end, or to a finished draft that was not judged yet.
enum Driven {
    Ended(AttemptEnd),
    Drafted(Box<Kept>, Finish),
}

impl From<AttemptEnd> for Driven {
    fn from(end: AttemptEnd) -> Self {
        Self::Ended(end)
    }
}

fn target(run: &Run, model: &ModelId) -> Result<Target, BackendError> {
    let missing = || BackendError::Unavailable {
        why: format!("model `{model}` is not loaded in this process"),
        retry_after: None,
        sent: false,
    };
    let backend = run.gateway.backends.get(model).ok_or_else(missing)?;
    let entry = run.admitted.snapshot.catalog().get(model).cloned().ok_or_else(missing)?;
    let max_output_tokens = entry.output_cap(run.admitted.request.limits.max_tokens);
    let request = &run.admitted.request;
    let bound = entry.bound(request.prompt_bytes() as u64, request.messages.len() as u64, max_output_tokens);
    Ok(Target { backend, model: entry, max_output_tokens, bound })
}

/// Calls the backend and passes its text on until something ends it.
async fn drive(run: &mut Run, target: &Target, id: AttemptId, probe: &UsageProbe) -> Driven {
    let request = &run.admitted.request;
    let mut kept = Kept::of(run, &target.model.id, target.backend.route());
    let mut limits = request.limits.clone();
    if kept.is_some() {
        limits.logprobs = limits.logprobs.max(Some(ALTERNATIVES));
    }
    let call = BackendCall {
        attempt: id,
        tenant: request.tenant.clone(),
        messages: Arc::clone(&run.admitted.messages),
        limits,
        max_output_tokens: target.max_output_tokens,
        deadline: request.deadline,
        end_user_id: request.end_user_id.clone(),
        probe: probe.clone(),
    };
    let deadline = sleep_until(request.deadline);
    tokio::pin!(deadline);
    let backend = Arc::clone(&target.backend);
    let hung_up = run.events.clone();
    let opened = tokio::select! {
        biased;
        () = hung_up.closed() => return AttemptEnd::Cancelled.into(),
        () = &mut deadline => return AttemptEnd::DeadlineExceeded.into(),
        opened = backend.generate(call) => opened,
    };
    let mut stream: AnswerStream = match opened {
        Ok(stream) => stream,
        Err(error) => return failed(error).into(),
    };
    loop {
        let chunk = tokio::select! {
            biased;
            () = hung_up.closed() => return AttemptEnd::Cancelled.into(),
            () = &mut deadline => return AttemptEnd::DeadlineExceeded.into(),
            chunk = stream.next() => chunk,
        };
        match chunk {
            Some(Ok(Chunk::Text { text, logprobs })) => match &mut kept {
                Some(kept) => {
                    if let Some(hopeless) = kept.push(&run.admitted, &text, logprobs) {
                        return AttemptEnd::Rejected(hopeless).into();
                    }
                }
                None => {
                    if let Err(end) = show(run, text, logprobs).await {
                        return end.into();
                    }
                }
            },
            Some(Ok(Chunk::End(finish))) if finish.reason == FinishReason::Declined && !run.shown => {
                return AttemptEnd::Declined.into();
            }
            Some(Ok(Chunk::End(finish))) => {
                return match kept {
                    Some(kept) => Driven::Drafted(Box::new(kept), finish),
                    None => complete(run, target, finish).into(),
                };
            }
            Some(Err(error)) => return failed(error).into(),
            None => {
                let why = "the stream ended without its end marker".to_owned();
                return AttemptEnd::Failed(BackendError::Cut { why, usage: None }).into();
            }
        }
    }
}

/// What becomes of a finished draft: it is shown if the judge lets it out, perhaps after somebody else was asked.
async fn settle(run: &mut Run, target: &Target, kept: Kept, finish: Finish) -> AttemptEnd {
    let said = match kept.is_undecided(&run.admitted, finish.reason) {
        true => match second::ask(run, &kept, &target.model.id).await {
            Ok(said) => said,
            Err(end) => return end,
        },
        false => Said::Nothing,
    };
    match kept.judge(&run.admitted, finish.reason, said) {
        Ok(reason) => match accept(run, reason, kept).await {
            Ok(()) => complete(run, target, finish),
            Err(end) => end,
        },
        Err(why) => AttemptEnd::Rejected(why),
    }
}

/// Passes a piece of the answer on; the deadline ends the wait for a slow reader.
async fn show(run: &mut Run, text: String, mut logprobs: Vec<TokenLogprob>) -> Result<(), AttemptEnd> {
    if let Some(aside) = &mut run.aside {
        aside.push_str(&text);
        return Ok(());
    }
    run.first_byte.get_or_insert_with(|| run.admitted.received.elapsed());
    run.shown = true;
    run.chunks += 1;
    run.answer.push_str(&text);
    match run.admitted.request.limits.logprobs {
        None => logprobs.clear(),
        // A judged draft was asked for more than the caller was.
        Some(asked) => logprobs.iter_mut().for_each(|token| token.alternatives.truncate(asked as usize)),
    }
    let sent = tokio::select! {
        biased;
        () = sleep_until(run.admitted.request.deadline) => return Err(AttemptEnd::DeadlineExceeded),
        sent = run.events.send(Ok(ReplyEvent::Text { text, logprobs })) => sent,
    };
    sent.map_err(|_| AttemptEnd::Cancelled)
}

/// Shows a draft that the judge let out.
async fn accept(run: &mut Run, reason: Reason, kept: Kept) -> Result<(), AttemptEnd> {
    run.decision.reason = reason;
    let told = run.events.send(Ok(ReplyEvent::Rerouted(Box::new(run.decision.clone())))).await;
    told.map_err(|_| AttemptEnd::Cancelled)?;
    let (text, logprobs) = kept.release();
    show(run, text, logprobs).await
}

/// The end of an answer that the backend calls complete. One that was asked to have a form and was cut off by a limit is not,
/// and what a remote model calls JSON is looked at: the local engine sees to it by itself.
fn complete(run: &Run, target: &Target, mut finish: Finish) -> AttemptEnd {
    finish.max_tokens.get_or_insert(target.max_output_tokens);
    let format = run.admitted.request.limits.format.as_ref().filter(|_| target.backend.route() == Route::Remote);
    let is_json = || serde_json::from_str::<serde::de::IgnoredAny>(&run.answer).is_ok();
    let why = match (format, finish.reason) {
        (None, _) => return AttemptEnd::Complete(finish),
        (Some(_), FinishReason::Length | FinishReason::Context) => {
            format!("it had {} tokens, the most it may have", target.max_output_tokens)
        }
        (Some(_), FinishReason::Filtered) => "the upstream withheld the rest".to_owned(),
        (Some(ResponseFormat::JsonSchema(_)), _) if !is_json() => "the upstream's answer is no JSON".to_owned(),
        (Some(ResponseFormat::Choices(choices)), _) if !choices.contains(&run.answer) => {
            "the upstream's answer is none of the choices".to_owned()
        }
        (Some(_), _) => return AttemptEnd::Complete(finish),
    };
    AttemptEnd::Failed(BackendError::Unfinished { why, usage: finish.usage_reported.then_some(finish.usage) })
}

fn failed(error: BackendError) -> AttemptEnd {
    match error {
        BackendError::DeadlineExceeded { .. } => AttemptEnd::DeadlineExceeded,
        error => AttemptEnd::Failed(error),
    }
}

/// Ends at the deadline; never without one.
pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

struct Measured {
    reading: ProbeReading,
    latency: Duration,
    first_chunk: Option<Duration>,
}

/// Settles the hold, writes the end into the journal, adds to the request's totals, records metrics.
fn book(run: &mut Run, target: &Target, id: AttemptId, hold: Option<Held>, end: &AttemptEnd, measured: &Measured) {
    let prompt_bytes = run.admitted.request.prompt_bytes() as u64;
    let (usage, cost) = truth(target, end, &measured.reading, prompt_bytes);
    let overrun = hold.is_some_and(|hold| hold.settle(cost));
    let cpu_seconds = match end {
        AttemptEnd::Complete(finish) => finish.cpu_seconds.max(measured.reading.cpu_seconds),
        _ => measured.reading.cpu_seconds,
    };
    run.totals.usage = run.totals.usage.plus(usage);
    run.totals.cost = run.totals.cost.plus(cost);
    run.totals.cpu_seconds += cpu_seconds;
    let (status, error) = status_of(end, run.shown);
    let ended = AttemptEnded {
        attempt: id,
        request: run.admitted.request.id,
        ended_at: jiff::Timestamp::now(),
        status,
        cost,
        usage,
        cpu_seconds,
        latency: measured.latency,
        error: error.to_owned(),
        overrun,
    };
    if let Err(error) = run.gateway.ledger.attempt_ended(&ended) {
        tracing::error!(%error, attempt = %id, "the end of an attempt could not be journalled; it will be booked at its hold");
    }
    let finish = match end {
        AttemptEnd::Complete(finish) => Some(finish),
        _ => None,
    };
    if finish.is_some() {
        let seen = Seen {
            at: Instant::now(),
            first_byte: measured.first_chunk.unwrap_or(measured.latency).min(measured.latency),
            total: measured.latency,
            output_tokens: usage.output_tokens,
        };
        run.gateway.latencies.observe(&target.model.id, seen);
    }
    run.gateway.observe_attempt(&Observed {
        model: &target.model,
        route: target.backend.route(),
        status,
        error,
        latency: measured.latency,
        first_chunk: measured.first_chunk,
        chunks: run.chunks,
        usage,
        cpu_seconds,
        response_model: finish.map_or("", |finish| finish.response_model.as_str()),
        finish: finish.map(|finish| finish.reason),
    });
}

/// What an attempt used and cost, as truthfully as can be known.
fn truth(target: &Target, end: &AttemptEnd, reading: &ProbeReading, prompt_bytes: u64) -> (Usage, Cost) {
    let estimate = Usage {
        input_tokens: estimated_tokens(prompt_bytes),
        output_tokens: reading.usage.output_tokens.max(estimated_tokens(reading.text_bytes)),
        ..Usage::default()
    };
    let (usage, reported) = match end {
        AttemptEnd::Complete(finish) if finish.usage_reported => (finish.usage, true),
        AttemptEnd::Failed(error) if error.usage().is_some() => (error.usage().unwrap_or_default(), true),
        _ if reading.reported => (reading.usage, true),
        _ if target.backend.route() == Route::Local => (reading.usage, true),
        _ if reading.sent || reading.text_bytes > 0 => (estimate, false),
        _ => (Usage::default(), true),
    };
    let priced = |basis| Cost { amount: target.model.cost(&usage), basis };
    let cost = match end {
        AttemptEnd::Failed(error) if !error.may_have_been_billed() => return (Usage::default(), Cost::FREE),
        _ if reported => priced(CostBasis::Reported),
        AttemptEnd::Complete(_) => priced(CostBasis::Estimated),
        _ if reading.text_bytes > 0 => priced(CostBasis::Estimated),
        // Sent, and nothing came back: it may have been billed in full.
        _ => Cost { amount: target.bound, basis: CostBasis::Bound },
    };
    (usage, cost)
}

fn status_of(end: &AttemptEnd, shown: bool) -> (EntryStatus, &'static str) {
    match end {
        AttemptEnd::Complete(_) => (EntryStatus::Ok, ""),
        AttemptEnd::Declined => (EntryStatus::Declined, ""),
        AttemptEnd::Rejected(_) => (EntryStatus::Declined, "draft_rejected"),
        AttemptEnd::Cancelled => (EntryStatus::Cancelled, ""),
        AttemptEnd::DeadlineExceeded => (EntryStatus::DeadlineExceeded, "deadline_exceeded"),
        AttemptEnd::Failed(error) if shown => (EntryStatus::Cut, error.code()),
        AttemptEnd::Failed(error) => (EntryStatus::Failed, error.code()),
        AttemptEnd::BudgetExhausted(_) | AttemptEnd::JournalUnwritable(_) => (EntryStatus::Refused, "refused"),
    }
}
