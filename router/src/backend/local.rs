//! A small model in this process as a backend: a call becomes a request of its worker, the worker's events become chunks.
//!
//! Nothing here waits for the model or computes: the worker has a thread of its own. Only long prompts are handed over from a
//! thread that may block, as rendering and counting their tokens takes a while, and so are requests for answers of a given
//! form, which may have to be compiled.

use super::{AnswerStream, Availability, Backend, BackendCall, BackendError, ProbeReading};
use crate::domain::{
    Chunk, Finish, FinishReason, Message, ModelId, Predicted, ResponseFormat, Route, TokenAlternative, TokenLogprob,
    Usage,
};
use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use local_worker::{
    ChatMessage, Constraint, Event, GenerateError, GenerateRequest, Generation, Health, SubmitError, TokenDetail,
    Worker,
};
use std::time::Duration;

/// Prompts of more bytes than this, some two milliseconds of tokenising, are handed over from a blocking thread.
const LONG_PROMPT_BYTES: usize = 4 << 10;

/// How long to stay away from a worker that loads its model again; it takes about that long.
const RELOAD_WAIT: Duration = Duration::from_secs(1);

/// A worker under its catalog name.
#[derive(Clone, Debug)]
pub struct LocalBackend {
    model: ModelId,
    worker: Worker,
}

impl LocalBackend {
    /// The backend of `worker`.
    pub fn new(model: ModelId, worker: Worker) -> Self {
        Self { model, worker }
    }

    /// The worker itself, for token counts, predictions and shutdown.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    async fn call(&self, call: BackendCall) -> Result<AnswerStream, BackendError> {
        let long = call.messages.iter().map(Message::byte_len).sum::<usize>() > LONG_PROMPT_BYTES;
        let probe = call.probe.clone();
        let submitted = if long || call.limits.format.is_some() {
            let worker = self.worker.clone();
            tokio::task::spawn_blocking(move || worker.submit(request(&call)))
                .await
                .map_err(|_| unavailable("handing the prompt to the model failed"))?
        } else {
            self.worker.submit(request(&call))
        };
        let generation = submitted.map_err(refusal)?;
        let meter = generation.meter();
        probe.attach(move || {
            let settled = meter.settled();
            let used = meter.usage();
            ProbeReading {
                sent: true,
                usage: usage(used.prompt_tokens, used.cached_prompt_tokens, used.output_tokens),
                reported: true,
                text_bytes: 0,
                cpu_seconds: used.cpu_seconds,
                settled,
            }
        });
        let model = self.model.as_str().to_owned();
        Ok(chunks(generation, Translation { model, pending: Vec::new() }))
    }
}

impl Backend for LocalBackend {
    fn model(&self) -> &ModelId {
        &self.model
    }

    fn route(&self) -> Route {
        Route::Local
    }

    fn generate(&self, call: BackendCall) -> BoxFuture<'_, Result<AnswerStream, BackendError>> {
        Box::pin(self.call(call))
    }

    fn availability(&self) -> Availability {
        match self.worker.health() {
            Health::Reloading => Availability::Unavailable {
                why: "the model is being loaded again".to_owned(),
                retry_after: Some(RELOAD_WAIT),
            },
            Health::Failed(why) => {
                Availability::Unavailable { why: format!("the model can't be loaded: {why}"), retry_after: None }
            }
            Health::Ready if self.worker.load().full => Availability::Unavailable {
                why: "the model's queue is full".to_owned(),
                retry_after: Some(RELOAD_WAIT),
            },
            Health::Ready => Availability::Ready,
        }
    }

    fn expects(&self, prompt_tokens: u32, most_tokens: u32) -> Option<Predicted> {
        let first_byte = self.worker.predicted_wait(prompt_tokens, 1);
        let total = self.worker.predicted_wait(prompt_tokens, most_tokens);
        // Nothing was measured yet: nothing is claimed.
        (!total.is_zero()).then_some(Predicted { first_byte, total })
    }

    fn is_idle(&self) -> bool {
        let load = self.worker.load();
        self.worker.health() == Health::Ready && load.waiting == 0 && load.running <= 1
    }
}

/// A call as the worker takes it. What the caller left open is greedy here: a small model is at its best then.
fn request(call: &BackendCall) -> GenerateRequest {
    let message =
        |message: &Message| ChatMessage { role: message.role.as_str().to_owned(), content: message.content() };
    GenerateRequest {
        messages: call.messages.iter().map(message).collect(),
        max_tokens: Some(call.max_output_tokens),
        temperature: call.limits.temperature.unwrap_or(0.0),
        top_p: call.limits.top_p.unwrap_or(1.0),
        stop: call.limits.stop.clone(),
        seed: call.limits.seed,
        deadline: call.deadline,
        tenant: Some(call.tenant.as_str().to_owned()),
        shared_messages: 0,
        top_k: call.limits.top_k,
        min_p: call.limits.min_p.unwrap_or(0.0),
        repetition_penalty: call.limits.repetition_penalty.unwrap_or(1.0),
        presence_penalty: call.limits.presence_penalty.unwrap_or(0.0),
        frequency_penalty: call.limits.frequency_penalty.unwrap_or(0.0),
        logprobs: call.limits.logprobs,
        constraint: call.limits.format.as_ref().map(constraint),
    }
}

fn constraint(format: &ResponseFormat) -> Constraint {
    match format {
        ResponseFormat::JsonSchema(schema) => Constraint::JsonSchema(schema.clone()),
        ResponseFormat::Regex(regex) => Constraint::Regex(regex.clone()),
        ResponseFormat::Choices(choices) => Constraint::Choices(choices.clone()),
    }
}

/// The field of an ask that a field of the worker's request comes from.
fn field_of_ask(field: &str) -> String {
    match field {
        "json_schema" | "regex" | "choices" => format!("response_format.{field}"),
        _ => format!("limits.{field}"),
    }
}

/// The chunks of an answer under way; dropping them drops `generation`, which cancels it.
fn chunks(generation: Generation, translation: Translation) -> AnswerStream {
    Box::pin(unfold(Some((generation, translation)), |state| async move {
        let (mut generation, mut translation) = state?;
        loop {
            let Some(event) = generation.next().await else {
                let error = unavailable("the model's thread ended without a word");
                return Some((Err(error), None));
            };
            match translation.event(event) {
                Ok(None) => {}
                Ok(Some(chunk @ Chunk::Text { .. })) => return Some((Ok(chunk), Some((generation, translation)))),
                Ok(Some(end)) => return Some((Ok(end), None)),
                Err(error) => {
                    let used = generation.usage();
                    let known = usage(used.prompt_tokens, used.cached_prompt_tokens, used.output_tokens);
                    return Some((Err(error.with_usage(Some(known))), None));
                }
            }
        }
    }))
}

/// Turns events into chunks. Tokens without text of their own are kept until there is text to go with.
struct Translation {
    model: String,
    pending: Vec<TokenLogprob>,
}

impl Translation {
    fn event(&mut self, event: Event) -> Result<Option<Chunk>, BackendError> {
        match event {
            Event::Started { .. } => Ok(None),
            Event::Token { text, logprob, margin, detail, .. } => {
                self.pending.push(token(logprob, margin, detail));
                if text.is_empty() {
                    return Ok(None);
                }
                Ok(Some(Chunk::Text { text, logprobs: std::mem::take(&mut self.pending) }))
            }
            Event::Finished(finished) => Ok(Some(Chunk::End(Finish {
                reason: match finished.reason {
                    local_worker::FinishReason::Stop => FinishReason::Stop,
                    local_worker::FinishReason::Length => FinishReason::Length,
                    local_worker::FinishReason::Context => FinishReason::Context,
                    local_worker::FinishReason::Declined => FinishReason::Declined,
                },
                usage: usage(finished.prompt_tokens, finished.cached_prompt_tokens, finished.output_tokens),
                usage_reported: true,
                max_tokens: Some(finished.max_tokens),
                cpu_seconds: finished.cpu_seconds,
                response_model: std::mem::take(&mut self.model),
            }))),
            Event::Failed(error) => Err(failure(&error)),
        }
    }
}

fn token(logprob: f32, margin: f32, detail: Option<Box<TokenDetail>>) -> TokenLogprob {
    let (bytes, alternatives) = detail.map_or_else(Default::default, |detail| (detail.bytes, detail.alternatives));
    let alternative =
        |other: local_worker::Alternative| TokenAlternative { bytes: other.bytes, logprob: other.logprob };
    let alternatives = alternatives.into_iter().map(alternative).collect();
    TokenLogprob { bytes, logprob, margin: Some(margin), alternatives }
}

fn usage(prompt_tokens: u32, cached_prompt_tokens: u32, output_tokens: u32) -> Usage {
    Usage {
        input_tokens: u64::from(prompt_tokens),
        cached_input_tokens: u64::from(cached_prompt_tokens),
        output_tokens: u64::from(output_tokens),
        ..Usage::default()
    }
}

fn unavailable(why: &str) -> BackendError {
    BackendError::Unavailable { why: why.to_owned(), retry_after: None, sent: false }
}

/// Why the worker did not take the request.
fn refusal(error: SubmitError) -> BackendError {
    let why = error.to_string();
    match error {
        SubmitError::QueueFull { .. } => BackendError::Overloaded { why, retry_after: Some(RELOAD_WAIT) },
        // The same caller can't wait for it, so there is no sense in naming a time.
        SubmitError::DeadlineUnreachable { .. } => BackendError::Overloaded { why, retry_after: None },
        SubmitError::Unhealthy(_) => BackendError::Unavailable { why, retry_after: Some(RELOAD_WAIT), sent: false },
        SubmitError::ShuttingDown => BackendError::Unavailable { why, retry_after: None, sent: false },
        SubmitError::PromptTooLong { .. } | SubmitError::CacheTooSmall { .. } => BackendError::PromptTooLong(why),
        // A template's own message may quote the conversation.
        SubmitError::Template(_) => BackendError::Rejected {
            status: 400,
            message: "the model's chat template refuses this sequence of roles".to_owned(),
        },
        SubmitError::Invalid { field, problem } => {
            BackendError::Unsupported { field: field_of_ask(field), why: problem }
        }
    }
}

/// Why an accepted request failed.
fn failure(error: &GenerateError) -> BackendError {
    match error {
        GenerateError::WorkerPanicked => BackendError::Panicked,
        GenerateError::DeadlinePassed => BackendError::DeadlineExceeded { sent: true, usage: None },
        GenerateError::Unfinished(_) | GenerateError::Constraint(_) => {
            BackendError::Unfinished { why: error.to_string(), usage: None }
        }
        GenerateError::ShutDown | GenerateError::NotANumber(_) => unavailable(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::UsageProbe;
    use crate::domain::{AttemptId, Limits, Role, TenantId};
    use std::sync::Arc;

    #[test]
    fn a_call_reaches_the_worker_whole() {
        let deadline = std::time::Instant::now();
        let call = BackendCall {
            attempt: AttemptId::fresh(),
            tenant: TenantId::new("acme"),
            messages: Arc::from([Message::text(Role::System, "Be brief."), Message::text(Role::Tool, "42")]),
            limits: Limits {
                max_tokens: Some(1_000),
                temperature: Some(0.5),
                top_p: Some(0.9),
                stop: vec!["\n".to_owned()],
                seed: Some(7),
                top_k: Some(9),
                min_p: Some(0.1),
                repetition_penalty: Some(1.2),
                presence_penalty: Some(0.3),
                frequency_penalty: Some(0.4),
                logprobs: Some(3),
                format: Some(ResponseFormat::Regex("a+".to_owned())),
            },
            max_output_tokens: 12,
            deadline: Some(deadline),
            end_user_id: "somebody".to_owned(),
            probe: UsageProbe::default(),
        };
        let turn = |role: &str, content: &str| ChatMessage { role: role.to_owned(), content: content.to_owned() };
        let expected = GenerateRequest {
            messages: vec![turn("system", "Be brief."), turn("tool", "42")],
            max_tokens: Some(12),
            temperature: 0.5,
            top_p: 0.9,
            stop: vec!["\n".to_owned()],
            seed: Some(7),
            deadline: Some(deadline),
            top_k: Some(9),
            min_p: 0.1,
            repetition_penalty: 1.2,
            presence_penalty: 0.3,
            frequency_penalty: 0.4,
            logprobs: Some(3),
            constraint: Some(Constraint::Regex("a+".to_owned())),
            tenant: Some("acme".to_owned()),
            shared_messages: 0,
        };
        assert_eq!(request(&call), expected);
        let open = BackendCall { limits: Limits::default(), ..call };
        assert_eq!((request(&open).temperature, request(&open).top_p, request(&open).seed), (0.0, 1.0, None));
    }

    #[test]
    fn events_become_chunks_and_no_token_is_lost() {
        let mut translation = Translation { model: "nano".to_owned(), pending: Vec::new() };
        let alternative = local_worker::Alternative { id: 1, bytes: b"x".to_vec(), logprob: -0.5 };
        let detail =
            |text: &str| TokenDetail { bytes: text.as_bytes().to_vec(), alternatives: vec![alternative.clone()] };
        let token = |text: &str, logprob: f32| Event::Token {
            text: text.to_owned(),
            id: 1,
            logprob,
            margin: 0.5,
            detail: Some(Box::new(detail(text))),
        };
        assert_eq!(translation.event(Event::Started { prompt_tokens: 9 }), Ok(None));
        assert_eq!(translation.event(token("", -1.0)), Ok(None));
        let known = |text: &str, logprob: f32| TokenLogprob {
            bytes: text.as_bytes().to_vec(),
            logprob,
            margin: Some(0.5),
            alternatives: vec![TokenAlternative { bytes: b"x".to_vec(), logprob: -0.5 }],
        };
        let chunk = Chunk::Text { text: "é".to_owned(), logprobs: vec![known("", -1.0), known("é", -2.0)] };
        assert_eq!(translation.event(token("é", -2.0)), Ok(Some(chunk)));
        let finished = local_worker::Finished {
            reason: local_worker::FinishReason::Declined,
            prompt_tokens: 9,
            cached_prompt_tokens: 4,
            output_tokens: 3,
            max_tokens: 11,
            cpu_seconds: 0.25,
        };
        let Ok(Some(Chunk::End(finish))) = translation.event(Event::Finished(finished)) else { panic!("an end") };
        assert_eq!((finish.reason, finish.usage, finish.cpu_seconds), (FinishReason::Declined, usage(9, 4, 3), 0.25));
        assert_eq!((finish.response_model.as_str(), finish.max_tokens), ("nano", Some(11)));
    }

    #[test]
    fn refusals_and_failures_say_what_the_caller_can_do() {
        let check = |error: BackendError, code: &str, retryable: bool| {
            assert_eq!((error.code(), error.is_retryable()), (code, retryable), "{error}");
            assert!(!error.to_string().contains("SECRET"), "{error}");
        };
        check(refusal(SubmitError::QueueFull { capacity: 64 }), "overloaded", true);
        let predicted = Duration::from_secs(9);
        check(refusal(SubmitError::DeadlineUnreachable { predicted }), "overloaded", true);
        check(refusal(SubmitError::Unhealthy("x".to_owned())), "unavailable", true);
        check(refusal(SubmitError::ShuttingDown), "unavailable", true);
        check(refusal(SubmitError::PromptTooLong { tokens: 9, context: 8 }), "prompt_too_long", false);
        check(refusal(SubmitError::CacheTooSmall { tokens: 9, positions: 8 }), "prompt_too_long", false);
        check(refusal(SubmitError::Template("SECRET".to_owned())), "rejected", false);
        let problem = "must be above 0".to_owned();
        check(refusal(SubmitError::Invalid { field: "top_p", problem: problem.clone() }), "unsupported", false);
        let schema = refusal(SubmitError::Invalid { field: "json_schema", problem });
        assert_eq!(schema.to_string(), "`response_format.json_schema` can't be honoured: must be above 0");
        check(failure(&GenerateError::Unfinished(3)), "unfinished", false);
        check(failure(&GenerateError::WorkerPanicked), "panicked", true);
        check(failure(&GenerateError::DeadlinePassed), "deadline_exceeded", false);
        check(failure(&GenerateError::ShutDown), "unavailable", true);
        check(failure(&GenerateError::NotANumber(3)), "unavailable", true);
    }
}
