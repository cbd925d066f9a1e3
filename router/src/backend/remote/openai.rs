//! The OpenAI chat-completions protocol: a call as JSON, events and bodies as chunks, refusals as typed errors. Pure: the
//! bytes come and go elsewhere.
//!
//! Strict where honesty needs it: an answer is complete only if both a finish reason and `[DONE]` came, and a finish reason
//! that we don't know is not taken for a good end. Lenient elsewhere: fields that we don't know are passed over.

use crate::backend::{BackendCall, BackendError};
use crate::domain::{Finish, FinishReason, Message, ResponseFormat, TokenAlternative, TokenLogprob, Usage};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The field in which a target wants the limit on generated tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxTokensField {
    /// `max_completion_tokens`: OpenAI; counts reasoning.
    #[default]
    MaxCompletionTokens,
    /// `max_tokens`: most servers that imitate it.
    MaxTokens,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<Turn<'a>>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<serde_json::Value>,
    // What follows is not OpenAI's: servers such as vLLM know it, and only models whose catalog entry says so get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    structured_outputs: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct Turn<'a> {
    role: &'a str,
    content: String,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// The body of a request.
pub(super) fn request_body(
    call: &BackendCall,
    upstream_model: &str,
    stream: bool,
    field: MaxTokensField,
) -> Result<Vec<u8>, BackendError> {
    let turn = |message: &Message| (message.role.as_str(), message.content());
    let max = Some(call.max_output_tokens);
    let limits = &call.limits;
    let (response_format, structured_outputs) = form(limits.format.as_ref())?;
    let body = Body {
        model: upstream_model,
        messages: call.messages.iter().map(turn).map(|(role, content)| Turn { role, content }).collect(),
        stream,
        stream_options: stream.then_some(StreamOptions { include_usage: true }),
        max_completion_tokens: max.filter(|_| field == MaxTokensField::MaxCompletionTokens),
        max_tokens: max.filter(|_| field == MaxTokensField::MaxTokens),
        temperature: call.limits.temperature,
        top_p: call.limits.top_p,
        stop: &call.limits.stop,
        seed: call.limits.seed,
        user: &call.end_user_id,
        presence_penalty: limits.presence_penalty,
        frequency_penalty: limits.frequency_penalty,
        logprobs: limits.logprobs.map(|_| true),
        top_logprobs: limits.logprobs.filter(|count| *count > 0),
        response_format,
        top_k: limits.top_k,
        min_p: limits.min_p,
        repetition_penalty: limits.repetition_penalty,
        structured_outputs,
    };
    serde_json::to_vec(&body).map_err(|_| protocol("our own request can't be written as JSON"))
}

/// A form as `response_format` (OpenAI's structured outputs, strict) or as vLLM's `structured_outputs`.
fn form(
    format: Option<&ResponseFormat>,
) -> Result<(Option<serde_json::Value>, Option<serde_json::Value>), BackendError> {
    use serde_json::{Value, json};
    Ok(match format {
        None => (None, None),
        Some(ResponseFormat::JsonSchema(schema)) => {
            let schema: Value =
                serde_json::from_str(schema).map_err(|_| protocol("the JSON schema can't be read as JSON"))?;
            let schema = json!({ "name": "answer", "strict": true, "schema": schema });
            (Some(json!({ "type": "json_schema", "json_schema": schema })), None)
        }
        Some(ResponseFormat::Regex(regex)) => (None, Some(json!({ "regex": regex }))),
        Some(ResponseFormat::Choices(choices)) => (None, Some(json!({ "choice": choices }))),
    })
}

/// An event of a stream, a unary body, or an error object: they share their fields.
#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    error: Option<ErrorObject>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    #[serde(default, alias = "message")]
    delta: Option<Said>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    logprobs: Option<WireLogprobs>,
}

#[derive(Deserialize)]
struct WireLogprobs {
    #[serde(default)]
    content: Option<Vec<WireToken>>,
}

#[derive(Deserialize)]
struct WireToken {
    token: String,
    logprob: f32,
    #[serde(default)]
    bytes: Option<Vec<u8>>,
    #[serde(default)]
    top_logprobs: Vec<WireToken>,
}

impl From<WireToken> for TokenLogprob {
    fn from(wire: WireToken) -> Self {
        let alternative = |other: WireToken| TokenAlternative {
            bytes: other.bytes.unwrap_or_else(|| other.token.into_bytes()),
            logprob: other.logprob,
        };
        let alternatives: Vec<TokenAlternative> = wire.top_logprobs.into_iter().map(alternative).collect();
        let margin = match alternatives.as_slice() {
            [first, second, ..] => Some(first.logprob - second.logprob),
            _ => None,
        };
        let bytes = wire.bytes.unwrap_or_else(|| wire.token.into_bytes());
        Self { bytes, logprob: wire.logprob, margin, alternatives }
    }
}

#[derive(Default, Deserialize)]
struct Said {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Clone, Copy, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
struct CompletionDetails {
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

/// Usually an object with `code`, `type`, `param` and `message`; some servers send a mere string.
#[derive(Default, Deserialize)]
#[serde(transparent)]
struct ErrorObject(serde_json::Value);

impl WireUsage {
    fn says_something(&self) -> bool {
        self.prompt_tokens.is_some() || self.completion_tokens.is_some()
    }
}

impl From<WireUsage> for Usage {
    fn from(wire: WireUsage) -> Self {
        let input_tokens = wire.prompt_tokens.unwrap_or(0);
        let output_tokens = wire.completion_tokens.unwrap_or(0);
        let cached = wire.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
        let reasoning = wire.completion_tokens_details.and_then(|details| details.reasoning_tokens).unwrap_or(0);
        Self {
            input_tokens,
            output_tokens,
            cached_input_tokens: cached.min(input_tokens),
            reasoning_tokens: reasoning.min(output_tokens),
        }
    }
}

/// What one event brought.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// More text; not empty.
    Text(String),
    /// Nothing for the caller.
    Nothing,
    /// `[DONE]` after a finish reason: the answer is complete.
    Done,
}

/// Reads the events of one answer and remembers what its end needs.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    finish_reason: Option<FinishReason>,
    usage: Option<Usage>,
    model: String,
    /// Tokens that were told and not taken yet.
    logprobs: Vec<TokenLogprob>,
}

impl Decoder {
    /// Reads the data of one event.
    pub(super) fn event(&mut self, data: &str) -> Result<Step, BackendError> {
        if data.trim() == "[DONE]" {
            return match self.finish_reason {
                Some(_) => Ok(Step::Done),
                None => Err(self.cut("the end marker came without a finish reason")),
            };
        }
        let reply: Reply = serde_json::from_str(data)
            .map_err(|_| protocol("an event is not the JSON of a chat completion chunk").with_usage(self.usage))?;
        let text = self.reply(reply)?;
        Ok(if text.is_empty() { Step::Nothing } else { Step::Text(text) })
    }

    /// Reads a unary body; it ends the answer.
    pub(super) fn body(&mut self, body: &[u8]) -> Result<String, BackendError> {
        let reply: Reply =
            serde_json::from_slice(body).map_err(|_| protocol("the body is not the JSON of a chat completion"))?;
        let text = self.reply(reply)?;
        match self.finish_reason {
            Some(_) => Ok(text),
            None => Err(self.cut("the answer came without a finish reason")),
        }
    }

    /// Tokens that came since this was last asked.
    pub(super) fn take_logprobs(&mut self) -> Vec<TokenLogprob> {
        std::mem::take(&mut self.logprobs)
    }

    /// Whether the finish reason came, so that a usage that came too is the final one.
    pub(super) fn has_finish_reason(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// What is reported so far.
    pub(super) fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// The end of a complete answer; `estimate` stands in where the upstream reported no usage.
    pub(super) fn finish(&self, estimate: Usage) -> Finish {
        Finish {
            reason: self.finish_reason.unwrap_or(FinishReason::Stop),
            usage: self.usage.unwrap_or(estimate),
            usage_reported: self.usage.is_some(),
            max_tokens: None,
            cpu_seconds: 0.0,
            response_model: self.model.clone(),
        }
    }

    /// The answer was broken off.
    pub(super) fn cut(&self, why: &str) -> BackendError {
        BackendError::Cut { why: why.to_owned(), usage: self.usage }
    }

    fn reply(&mut self, reply: Reply) -> Result<String, BackendError> {
        if let Some(usage) = reply.usage.filter(WireUsage::says_something) {
            // Some servers count up in every chunk: the last count is the true one.
            self.usage = Some(usage.into());
        }
        if let Some(error) = reply.error {
            return Err(self.cut(&format!("the upstream reported an error in its answer ({})", error.describe())));
        }
        if let Some(model) = reply.model {
            self.model = model;
        }
        let Some(choices) = reply.choices else {
            return Err(protocol("neither `choices` nor `error`").with_usage(self.usage));
        };
        let mut text = String::new();
        for choice in choices.into_iter().filter(|choice| choice.index == 0) {
            let said = choice.delta.unwrap_or_default();
            text.extend(said.content);
            text.extend(said.refusal);
            let told = choice.logprobs.and_then(|told| told.content).unwrap_or_default();
            self.logprobs.extend(told.into_iter().map(TokenLogprob::from));
            if let Some(reason) = choice.finish_reason {
                self.finish_reason = Some(finish_reason(&reason).map_err(|error| error.with_usage(self.usage))?);
            }
        }
        Ok(text)
    }
}

/// A finish reason; an unknown one is an error, as an answer with it can't be called complete.
fn finish_reason(word: &str) -> Result<FinishReason, BackendError> {
    match word {
        "stop" => Ok(FinishReason::Stop),
        "length" => Ok(FinishReason::Length),
        "tool_calls" | "function_call" => Ok(FinishReason::ToolCalls),
        "content_filter" => Ok(FinishReason::Filtered),
        _ => Err(protocol(&format!("unknown finish reason `{}`", identifier(word)))),
    }
}

/// A refusal with a status other than 200 as an error. `body` may be anything, or cut off.
pub(super) fn refusal(status: u16, retry_after: Option<Duration>, body: &[u8]) -> BackendError {
    #[derive(Deserialize)]
    struct Envelope {
        error: ErrorObject,
    }
    let error = serde_json::from_slice::<Envelope>(body).map(|envelope| envelope.error).unwrap_or_default();
    let message = error.describe();
    let unavailable =
        |sent| BackendError::Unavailable { why: format!("status {status}, {message}"), retry_after, sent };
    match status {
        413 => BackendError::PromptTooLong(format!("status 413, {message}")),
        400 | 422 if error.has_code("context_length_exceeded") => {
            BackendError::PromptTooLong("it does not fit the upstream's context".to_owned())
        }
        401..=403 => BackendError::Unauthorized { status, message },
        429 if error.has_code("insufficient_quota") => BackendError::Unauthorized { status, message },
        429 => BackendError::RateLimited { retry_after },
        529 => BackendError::Overloaded { why: format!("status 529, {message}"), retry_after },
        // A gateway's own time-out says nothing about the model behind it: it may have answered, and charged.
        504 | 524 => unavailable(true),
        408 | 409 | 425 | 500..=599 => unavailable(false),
        400..=499 => BackendError::Rejected { status, message },
        _ => protocol(&format!("status {status} where 200 or an error was expected")),
    }
}

impl ErrorObject {
    fn has_code(&self, code: &str) -> bool {
        ["code", "type"].iter().any(|name| self.0.get(name).is_some_and(|value| value.as_str() == Some(code)))
    }

    /// Code, type and parameter, sanitised. The upstream's message is left out: it may quote the prompt or the key.
    fn describe(&self) -> String {
        let mut words = Vec::new();
        for name in ["code", "type", "param"] {
            let text = match self.0.get(name) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(serde_json::Value::Number(number)) => number.to_string(),
                _ => continue,
            };
            words.push(format!("{name} `{}`", identifier(&text)));
        }
        if words.is_empty() { "no error code given".to_owned() } else { words.join(", ") }
    }
}

/// A foreign word, harmless: 64 characters at most, of those that identifiers are made of, and nothing that looks like a key.
fn identifier(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-.[]".contains(character);
    if word.starts_with("sk-") || word.len() > 64 || !word.chars().all(plain) {
        "?".to_owned()
    } else {
        word.to_owned()
    }
}

/// What came is not the protocol.
pub(super) fn protocol(why: &str) -> BackendError {
    BackendError::Protocol { why: why.to_owned(), usage: None }
}

/// `Retry-After` as seconds or as an HTTP date (RFC 9110, section 10.2.3); a date in the past is zero.
pub(super) fn retry_after(value: &str, now: jiff::Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests;
