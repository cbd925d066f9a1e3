//! One request, answered or failed as scripted: first a list of steps is made, then the steps are taken. Dropping the body
//! in between is how a caller hangs up, and the account notices.

use super::bill::{Account, Ending};
use super::fault::{Fault, UsageForm};
use super::protocol::{Ask, ChunkWriter, Counts, completion, error_object, tokens};
use super::{SIMULATED_HEADER, Shared};
use crate::evidence::grading::{Comparison, Grader};
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a response is made of, in order.
enum Step {
    /// Waits.
    Wait(Duration),
    /// Charges generated tokens.
    Charge(u64),
    /// The status line and headers go out here.
    Headers,
    /// Sends a piece of the body.
    Send(Bytes),
    /// Sends so many bytes without a line end.
    Flood(u64),
    /// Notes the ending; stands before the last piece, as a caller may be gone the moment it has that.
    End(Ending),
    /// Breaks the connection off.
    Break,
    /// Does nothing any more.
    Hang,
}

/// `POST /v1/chat/completions`.
pub(super) async fn chat_completions(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let text =
        |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default().to_owned();
    let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut account = shared.books.open(text("x-request-id"), text("idempotency-key"), parsed.clone());
    if !shared.knows(&headers) {
        return refuse(&account, StatusCode::UNAUTHORIZED, None, "invalid_request_error", "invalid_api_key");
    }
    let ask: Ask = match serde_json::from_value(parsed) {
        Ok(ask) => ask,
        Err(_) => return refuse(&account, StatusCode::BAD_REQUEST, None, "invalid_request_error", "invalid_body"),
    };
    let Ok(faults) = shared.faults.take(&ask.model, &ask.question()) else {
        return refuse(&account, StatusCode::NOT_FOUND, None, "invalid_request_error", "model_not_found");
    };
    for fault in &faults {
        if let Fault::Status { status, retry_after, code } = fault {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return refuse(&account, status, retry_after.as_deref(), "simulated_error", code);
        }
    }
    let prompt = ask.prompt_tokens();
    let cached = shared.books.cached_tokens(ask.prompt_hash(), prompt);
    account.charge_prompt(prompt, cached);
    let answer = Answer::plan(&shared, &ask, &faults, prompt, cached);
    let steps =
        if ask.stream { answer.stream_steps(&shared, &ask, &faults) } else { answer.unary_steps(&shared, &faults) };
    let mut delivery = Delivery { steps, account, stop: shared.stop.clone() };
    delivery.until_headers().await;
    let mut response = Response::new(delivery.into_body());
    let html = faults.contains(&Fault::HtmlPage);
    let kind = if html {
        "text/html; charset=utf-8"
    } else if ask.stream {
        "text/event-stream"
    } else {
        "application/json"
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(SIMULATED_HEADER, HeaderValue::from_static("true"));
    if faults.contains(&Fault::ClaimsGzip) {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn refuse(account: &Account, status: StatusCode, retry_after: Option<&str>, kind: &str, code: &str) -> Response {
    account.end(Ending::Refused);
    let mut response = (status, [(SIMULATED_HEADER, "true")], axum::Json(error_object(kind, code))).into_response();
    if let Some(value) = retry_after.and_then(|value| HeaderValue::from_str(value).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// The verdict on two answers to one question, where a judge is asked for one: the answer that this server knows wins.
fn judgement(answers: &HashMap<String, String>, question: &str) -> Option<String> {
    let [asked, first, second] = Comparison::read(question)?;
    let known = answers.get(asked.trim()).map(String::as_str);
    let right = |answer: &str| known.is_some_and(|known| Grader::Exact.grade(answer, known) == Ok(1.0));
    let verdict = match (right(first), right(second)) {
        (true, false) => "A",
        (false, true) => "B",
        _ => "TIE",
    };
    Some(format!("VERDICT: {verdict}"))
}

/// What will be said, before any fault of the transport.
struct Answer {
    id: String,
    model: String,
    pieces: Vec<String>,
    reason: String,
    /// With the counts of the whole answer.
    counts: Counts,
}

impl Answer {
    fn plan(shared: &Shared, ask: &Ask, faults: &[Fault], prompt: u64, cached: u64) -> Self {
        let question = ask.question();
        let known = || shared.config.answers.get(question.trim()).cloned();
        let text =
            judgement(&shared.config.answers, &question).or_else(known).unwrap_or_else(|| placeholder(&question));
        let limit = if faults.contains(&Fault::IgnoreMaxTokens) { u64::MAX } else { ask.max_tokens() };
        let wished = faults.iter().find_map(|fault| match fault {
            Fault::Reasoning(count) => Some(u64::from(*count)),
            _ => None,
        });
        let reasoning = wished.unwrap_or(0).min(limit);
        let whole = tokens(ask.until_stop(&text));
        let room = usize::try_from(limit - reasoning).unwrap_or(usize::MAX);
        let pieces: Vec<String> = whole.iter().take(room).map(|piece| (*piece).to_owned()).collect();
        let natural = if pieces.len() < whole.len() { "length" } else { "stop" };
        let scripted = faults.iter().find_map(|fault| match fault {
            Fault::FinishReason(reason) => Some(reason.clone()),
            _ => None,
        });
        let completion = reasoning + pieces.len() as u64;
        Self {
            id: format!("chatcmpl-simulated-{}", uuid::Uuid::now_v7().simple()),
            model: ask.response_model(),
            pieces,
            reason: scripted.unwrap_or_else(|| natural.to_owned()),
            counts: Counts { prompt, cached, completion, reasoning },
        }
    }

    /// The counts after so many pieces.
    fn counts_after(&self, pieces: usize) -> Counts {
        Counts { completion: self.counts.reasoning + pieces as u64, ..self.counts }
    }

    fn stream_steps(&self, shared: &Shared, ask: &Ask, faults: &[Fault]) -> VecDeque<Step> {
        let pause = token_delay(shared, faults);
        let mut steps = before_headers(faults);
        steps.push_back(Step::Headers);
        if first_chunk_faults(faults, &mut steps) {
            return steps;
        }
        steps.push_back(Step::Wait(first_delay(shared, faults)));
        steps.push_back(Step::Charge(self.counts.reasoning));
        let writer =
            ChunkWriter { id: self.id.clone(), model: self.model.clone(), form: usage_form(faults, ask.wants_usage()) };
        for index in 0..=self.pieces.len() {
            let last = index == self.pieces.len();
            if faults.iter().any(|fault| mid_stream(fault, index, last, &mut steps)) {
                return steps;
            }
            if index == 0 {
                steps.push_back(Step::Send(writer.role(self.counts_after(0))));
            }
            if let Some(piece) = self.pieces.get(index) {
                if index > 0 {
                    steps.push_back(Step::Wait(pause));
                }
                steps.push_back(Step::Charge(1));
                steps.push_back(Step::Send(writer.text(piece, self.counts_after(index + 1))));
            }
        }
        if !faults.contains(&Fault::NoFinishReason) {
            steps.push_back(Step::Send(writer.finish(&self.reason, self.counts)));
        }
        steps.extend(writer.usage(self.counts).map(Step::Send));
        if faults.contains(&Fault::NoDone) {
            steps.push_back(Step::End(Ending::Broken));
        } else {
            steps.extend([Step::End(Ending::Complete), Step::Send(Bytes::from_static(b"data: [DONE]\n\n"))]);
        }
        steps
    }

    fn unary_steps(&self, shared: &Shared, faults: &[Fault]) -> VecDeque<Step> {
        let mut steps = before_headers(faults);
        let pause = token_delay(shared, faults) * u32::try_from(self.pieces.len()).unwrap_or(u32::MAX);
        steps.extend([
            Step::Wait(first_delay(shared, faults) + pause),
            Step::Charge(self.counts.completion),
            Step::Headers,
        ]);
        if first_chunk_faults(faults, &mut steps) {
            return steps;
        }
        let counts = usage_form(faults, true).filter(|form| *form != UsageForm::Missing).map(|_| self.counts);
        let whole = completion(&self.id, &self.model, &self.pieces.concat(), &self.reason, counts).to_string();
        let half = whole.len() / 2;
        for fault in faults {
            match fault {
                Fault::CutAfter(_) => {
                    steps
                        .extend([Step::Send(Bytes::from(whole.into_bytes()).slice(..half)), Step::End(Ending::Broken)]);
                    steps.push_back(Step::Break);
                    return steps;
                }
                Fault::HalfJsonAfter(_) | Fault::EndAfter(_) => {
                    steps
                        .extend([Step::End(Ending::Broken), Step::Send(Bytes::from(whole.into_bytes()).slice(..half))]);
                    return steps;
                }
                Fault::GarbageAfter(_) => {
                    steps.extend([Step::End(Ending::Broken), Step::Send(Bytes::from_static(b"\x00no json"))]);
                    return steps;
                }
                Fault::HangAfter(_) => {
                    steps.push_back(Step::Hang);
                    return steps;
                }
                _ => {}
            }
        }
        steps.extend([Step::End(Ending::Complete), Step::Send(Bytes::from(whole))]);
        steps
    }
}

/// What is said where the table has no answer: honest, and of some length.
fn placeholder(question: &str) -> String {
    let words = question.split_whitespace().count();
    format!(
        "[simulated large model] No model wrote this. A large model would answer your question of {words} words here; the \
         simulated one only shows that the request came, was counted, priced and answered through the real protocol."
    )
}

fn token_delay(shared: &Shared, faults: &[Fault]) -> Duration {
    let scripted =
        faults.iter().find_map(|fault| if let Fault::DelayTokens(delay) = fault { Some(*delay) } else { None });
    scripted.unwrap_or(shared.config.token_delay)
}

fn first_delay(shared: &Shared, faults: &[Fault]) -> Duration {
    let scripted =
        faults.iter().find_map(|fault| if let Fault::DelayFirstByte(delay) = fault { Some(*delay) } else { None });
    scripted.unwrap_or(shared.config.first_token_delay)
}

fn usage_form(faults: &[Fault], wanted: bool) -> Option<UsageForm> {
    let scripted = faults.iter().find_map(|fault| if let Fault::Usage(form) = fault { Some(*form) } else { None });
    wanted.then(|| scripted.unwrap_or_default())
}

fn before_headers(faults: &[Fault]) -> VecDeque<Step> {
    let steps = faults.iter().filter_map(|fault| match fault {
        Fault::DelayHeaders(delay) => Some(Step::Wait(*delay)),
        Fault::Hang => Some(Step::Hang),
        _ => None,
    });
    steps.collect()
}

/// Faults that replace the whole body. Returns whether there was one.
fn first_chunk_faults(faults: &[Fault], steps: &mut VecDeque<Step>) -> bool {
    for fault in faults {
        let last = match fault {
            Fault::NoNewline(bytes) => Step::Flood(*bytes),
            Fault::HtmlPage => Step::Send(Bytes::from_static(b"<!doctype html><title>502 Bad Gateway</title>")),
            Fault::NotUtf8 => Step::Send(Bytes::from_static(b"data: {\"choices\": \"\xff\xfe\"}\n\n")),
            _ => continue,
        };
        steps.extend([Step::End(Ending::Broken), last]);
        return true;
    }
    false
}

/// Faults after `index` chunks of text, or after the last one if it has fewer. Returns whether the body ends with it.
fn mid_stream(fault: &Fault, index: usize, last: bool, steps: &mut VecDeque<Step>) -> bool {
    let due = |after: usize| after == index || (last && after > index);
    match fault {
        Fault::CutAfter(after) if due(*after) => steps.extend([Step::End(Ending::Broken), Step::Break]),
        Fault::EndAfter(after) if due(*after) => steps.push_back(Step::End(Ending::Broken)),
        Fault::HangAfter(after) if due(*after) => steps.push_back(Step::Hang),
        Fault::ErrorAfter(after) if due(*after) => {
            let object = error_object("server_error", "simulated");
            steps.extend([Step::End(Ending::Broken), Step::Send(Bytes::from(format!("data: {object}\n\n")))]);
        }
        Fault::GarbageAfter(after) if due(*after) => {
            steps.extend([Step::End(Ending::Broken), Step::Send(Bytes::from_static(b"data: \x01 not json\n\n"))]);
        }
        Fault::HalfJsonAfter(after) if due(*after) => {
            steps
                .extend([Step::End(Ending::Broken), Step::Send(Bytes::from_static(b"data: {\"choices\":[{\"del\n\n"))]);
        }
        _ => return false,
    }
    true
}

/// Takes the steps.
struct Delivery {
    steps: VecDeque<Step>,
    account: Account,
    stop: CancellationToken,
}

/// The connection is to be broken off.
#[derive(Debug, thiserror::Error)]
#[error("broken off by script")]
struct BrokenOff;

impl Delivery {
    /// Takes the steps before the headers.
    async fn until_headers(&mut self) {
        while let Some(step) = self.steps.pop_front() {
            if matches!(step, Step::Headers) {
                return;
            }
            self.quiet(&step).await;
        }
    }

    /// Takes a step that sends nothing.
    async fn quiet(&mut self, step: &Step) {
        match step {
            Step::Charge(count) => self.account.charge_completion(*count),
            Step::End(ending) => self.account.end(*ending),
            Step::Wait(time) if !time.is_zero() => {
                tokio::select! { () = tokio::time::sleep(*time) => {}, () = self.stop.cancelled() => {} }
            }
            Step::Hang => self.stop.cancelled().await,
            _ => {}
        }
    }

    /// The next piece of the body.
    async fn next(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        const FLOOD: &[u8] = &[b'x'; 1 << 16];
        loop {
            match self.steps.pop_front()? {
                Step::Send(piece) => return Some(Ok(piece)),
                Step::Break => {
                    // What was sent so far is to arrive before the connection goes.
                    tokio::task::yield_now().await;
                    return Some(Err(BrokenOff));
                }
                Step::Flood(0) => {}
                Step::Flood(left) => {
                    let piece = Bytes::from_static(FLOOD);
                    self.steps.push_front(Step::Flood(left.saturating_sub(piece.len() as u64)));
                    return Some(Ok(piece));
                }
                step => self.quiet(&step).await,
            }
        }
    }

    fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut delivery| async move {
            let piece = delivery.next().await?;
            Some((piece, delivery))
        }))
    }
}
