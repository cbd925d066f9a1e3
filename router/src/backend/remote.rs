//! Remote large models that speak the OpenAI chat protocol: one call is one HTTP request, made once.
//!
//! This file owns the connection: time-outs, size caps, hanging up. What the bytes mean is `openai`'s, how they fall into
//! events is `sse`'s, whether to ask at all is the breaker's. Redirects are not followed (they would carry the key along) and
//! the client's own retries are off: an attempt that nobody booked must not happen.

mod openai;
mod sse;
mod stream;

pub use openai::MaxTokensField;

use super::resilience::{Breaker, BreakerConfig, Permit};
use super::{AnswerStream, Availability, Backend, BackendCall, BackendError, TimeoutStage};
use crate::domain::{Chunk, ModelId, Predicted, Route, Usage};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream as futures};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Most bytes of an error's body that are looked at.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// How long to wait for what; each is shortened to the caller's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// From the start of the call to the first byte of the answer.
    pub first_byte: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
    /// For all of it.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            total: Duration::from_secs(600),
        }
    }
}

/// One remote model, as settings and catalog describe it.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// The catalog's name.
    pub model: ModelId,
    /// The upstream's name for it.
    pub upstream_model: String,
    /// Such as `https://api.openai.com/v1`; `/chat/completions` is appended.
    pub base_url: String,
    /// Sent as a bearer token; `None` sends none.
    pub key: Option<SecretString>,
    /// Whether to ask for a stream; `false` is for servers that can't.
    pub stream: bool,
    /// Where the limit on generated tokens goes.
    pub max_tokens_field: MaxTokensField,
    /// Time-outs.
    pub timeouts: Timeouts,
    /// Most bytes of one answer, framing included.
    pub max_body_bytes: usize,
    /// When to stop asking for a while.
    pub breaker: BreakerConfig,
}

impl RemoteConfig {
    /// A streaming target with defaults: 32 MiB of body, default time-outs and breaker.
    pub fn new(model: ModelId, upstream_model: impl Into<String>, base_url: impl Into<String>) -> Self {
        Self {
            model,
            upstream_model: upstream_model.into(),
            base_url: base_url.into(),
            key: None,
            stream: true,
            max_tokens_field: MaxTokensField::default(),
            timeouts: Timeouts::default(),
            max_body_bytes: 32 << 20,
            breaker: BreakerConfig::default(),
        }
    }
}

/// Why a remote model can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum RemoteConfigError {
    /// The base URL is none, or of another scheme.
    #[error("base URL of model `{model}` must be http:// or https:// and a host, such as https://api.openai.com/v1")]
    BaseUrl {
        /// Which model.
        model: ModelId,
    },
    /// The key has characters that no header can carry.
    #[error("key of model `{model}` contains characters that a header can't carry; is there a line end in its file?")]
    Key {
        /// Which model.
        model: ModelId,
    },
    /// The HTTP client can't be built, such as for want of root certificates.
    #[error("the HTTP client for model `{model}` can't be built: {why}")]
    Client {
        /// Which model.
        model: ModelId,
        /// What the library says.
        why: String,
    },
}

/// A remote model behind one client and one breaker.
pub struct RemoteBackend {
    config: RemoteConfig,
    url: reqwest::Url,
    headers: HeaderMap,
    client: reqwest::Client,
    breaker: Arc<Breaker>,
}

impl RemoteBackend {
    /// Checks the configuration and builds the client; connects to nothing.
    ///
    /// # Errors
    /// See [`RemoteConfigError`].
    pub fn new(config: RemoteConfig) -> Result<Self, RemoteConfigError> {
        let model = config.model.clone();
        let address = format!("{}/chat/completions", config.base_url.trim_end_matches('/'));
        let url = reqwest::Url::parse(&address)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| RemoteConfigError::BaseUrl { model: model.clone() })?;
        let mut headers = HeaderMap::new();
        if let Some(key) = &config.key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))
                .map_err(|_| RemoteConfigError::Key { model: model.clone() })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let accepted = if config.stream { "text/event-stream" } else { "application/json" };
        headers.insert(ACCEPT, HeaderValue::from_static(accepted));
        let mut builder = reqwest::Client::builder()
            .connect_timeout(config.timeouts.connect)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .tcp_nodelay(true)
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&url) {
            // A proxy is never the way to this very machine.
            builder = builder.no_proxy();
        }
        if url.scheme() == "http" {
            // Without this a machine without root certificates could not even ask itself.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| RemoteConfigError::Client { model, why: describe(&error) })?;
        let breaker = Breaker::new(config.breaker.clone());
        Ok(Self { config, url, headers, client, breaker })
    }

    async fn call(&self, call: BackendCall) -> Result<AnswerStream, BackendError> {
        let clock = Clock::start(&self.config.timeouts, call.deadline);
        if clock.deadline.is_some_and(|deadline| deadline <= clock.start) {
            return Err(BackendError::DeadlineExceeded { sent: false, usage: None });
        }
        let permit = self.breaker.admit().map_err(|wait| breaker_open(&self.config.model, wait))?;
        match self.send(&call, &clock).await {
            Ok(response) => self.answer(call, clock, response, permit).await,
            Err(error) => {
                call.probe.update(|reading| reading.sent &= error.may_have_been_billed());
                permit.failed(&error);
                Err(error)
            }
        }
    }

    /// Sends the request and waits for a good status.
    async fn send(&self, call: &BackendCall, clock: &Clock) -> Result<reqwest::Response, BackendError> {
        let body =
            openai::request_body(call, &self.config.upstream_model, self.config.stream, self.config.max_tokens_field)?;
        let attempt = HeaderValue::from_str(&call.attempt.to_string())
            .map_err(|_| openai::protocol("an attempt id that no header can carry"))?;
        let request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(HeaderName::from_static("x-request-id"), attempt.clone())
            .header(HeaderName::from_static("idempotency-key"), attempt)
            .body(body);
        let prompt = estimated_prompt(call);
        call.probe.update(|reading| {
            reading.sent = true;
            reading.usage.input_tokens = prompt;
        });
        let (limit, passed) = clock.first_byte();
        let response = match timeout_at(limit, request.send()).await {
            Err(_) => return Err(passed),
            Ok(Err(error)) => return Err(not_sent(&error)),
            Ok(Ok(response)) => response,
        };
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = header.and_then(|value| openai::retry_after(value, jiff::Timestamp::now()));
        let body = error_body(response, limit).await;
        Err(openai::refusal(status, retry_after, &body))
    }

    /// Checks what kind of body came, and reads it as it is meant.
    async fn answer(
        &self,
        call: BackendCall,
        clock: Clock,
        response: reqwest::Response,
        permit: Permit,
    ) -> Result<AnswerStream, BackendError> {
        let expected = if self.config.stream { "text/event-stream" } else { "application/json" };
        if let Err(error) = check_headers(response.headers(), expected) {
            permit.failed(&error);
            return Err(error);
        }
        let body = response.bytes_stream().map(|piece| piece.map_err(|_| ())).boxed();
        let reading = stream::Reading::new(stream::Task {
            body,
            clock,
            permit,
            estimated_prompt: estimated_prompt(&call),
            probe: call.probe,
            max_bytes: self.config.max_body_bytes,
        });
        if self.config.stream {
            return Ok(reading.events());
        }
        let (text, end) = reading.whole().await?;
        let text = Some(text).filter(|text| !text.is_empty()).map(|text| Chunk::Text { text, logprobs: Vec::new() });
        Ok(Box::pin(futures::iter(text.into_iter().chain([Chunk::End(end)]).map(Ok))))
    }
}

impl Backend for RemoteBackend {
    fn model(&self) -> &ModelId {
        &self.config.model
    }

    fn route(&self) -> Route {
        Route::Remote
    }

    fn generate(&self, call: BackendCall) -> BoxFuture<'_, Result<AnswerStream, BackendError>> {
        Box::pin(self.call(call))
    }

    fn availability(&self) -> Availability {
        match self.breaker.blocked_for() {
            None => Availability::Ready,
            Some(wait) => Availability::Unavailable { why: "breaker open".to_owned(), retry_after: Some(wait) },
        }
    }

    fn expects(&self, _: u32, _: u32) -> Option<Predicted> {
        None
    }

    fn is_idle(&self) -> bool {
        self.availability() == Availability::Ready
    }
}

/// When which wait ends, and with which error.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: Instant,
    first_byte: Instant,
    idle: Duration,
    total: Instant,
    deadline: Option<Instant>,
}

impl Clock {
    fn start(timeouts: &Timeouts, deadline: Option<std::time::Instant>) -> Self {
        let start = Instant::now();
        Self {
            start,
            first_byte: start + timeouts.first_byte,
            idle: timeouts.idle,
            total: start + timeouts.total,
            deadline: deadline.map(Instant::from_std),
        }
    }

    /// Until when to wait for the first byte, and the error after that.
    fn first_byte(&self) -> (Instant, BackendError) {
        self.earliest(self.first_byte, TimeoutStage::FirstByte)
    }

    /// Until when to wait for the next piece, and the error after that.
    fn next_piece(&self) -> (Instant, BackendError) {
        self.earliest(Instant::now() + self.idle, TimeoutStage::Idle)
    }

    fn earliest(&self, limit: Instant, stage: TimeoutStage) -> (Instant, BackendError) {
        let (limit, stage) = if self.total < limit { (self.total, TimeoutStage::Total) } else { (limit, stage) };
        match self.deadline {
            Some(deadline) if deadline < limit => {
                (deadline, BackendError::DeadlineExceeded { sent: true, usage: None })
            }
            _ => (limit, BackendError::Timeout { stage, usage: None }),
        }
    }
}

/// Our own count of a prompt, an estimate: a token for every four bytes, and four for the frame of each message.
fn estimated_prompt(call: &BackendCall) -> u64 {
    call.messages.iter().map(|message| estimated_tokens(message.byte_len() as u64) + 4).sum()
}

/// Our own count of tokens in so many bytes of text, an estimate: one for every four, rounded up.
fn estimated_tokens(bytes: u64) -> u64 {
    bytes.div_ceil(4)
}

/// Our own count where the upstream reported none: the chunks that came, or the text by its length, whichever is more.
fn estimated_usage(prompt: u64, chunks: u64, text_bytes: u64) -> Usage {
    Usage { input_tokens: prompt, output_tokens: chunks.max(estimated_tokens(text_bytes)), ..Usage::default() }
}

fn breaker_open(model: &ModelId, wait: Duration) -> BackendError {
    BackendError::Unavailable {
        why: format!("the breaker of `{model}` is open after repeated failures"),
        retry_after: Some(wait),
        sent: false,
    }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The request failed without a status.
fn not_sent(error: &reqwest::Error) -> BackendError {
    if error.is_connect() && error.is_timeout() {
        BackendError::Timeout { stage: TimeoutStage::Connect, usage: None }
    } else if error.is_connect() {
        BackendError::Unavailable { why: describe(error), retry_after: None, sent: false }
    } else if error.is_builder() {
        openai::protocol("the request can't be built")
    } else {
        BackendError::Unavailable {
            why: format!("no status came back: {}", describe(error)),
            retry_after: None,
            sent: true,
        }
    }
}

/// The innermost cause of an HTTP error, which names addresses and system errors, but no header and no body.
fn describe(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// What can be had of an error's body, bounded in size and time.
async fn error_body(response: reqwest::Response, limit: Instant) -> Vec<u8> {
    let mut pieces = response.bytes_stream();
    let mut body = Vec::new();
    let limit = limit.min(Instant::now() + Duration::from_secs(2));
    while let Ok(Some(Ok(piece))) = timeout_at(limit, pieces.next()).await {
        if body.len() + piece.len() > MAX_ERROR_BYTES {
            break;
        }
        body.extend_from_slice(&piece);
    }
    body
}

fn check_headers(headers: &HeaderMap, expected: &str) -> Result<(), BackendError> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let encoding = text(CONTENT_ENCODING).trim();
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(openai::protocol("a compressed body that was not asked for"));
    }
    let kind = text(CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case(expected) {
        Ok(())
    } else {
        Err(openai::protocol(&format!("status 200 with a content type other than {expected}")))
    }
}

#[cfg(test)]
mod tests;
