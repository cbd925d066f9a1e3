//! The part of the OpenAI chat protocol that the simulated model speaks: what it reads, what it counts, what it writes.

use super::fault::UsageForm;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

/// Splits text into the simulated model's tokens: at most four characters each, and white space begins a new one. Their
/// number is the token count for prompts and answers alike; it never exceeds the number of bytes.
pub fn tokens(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut start, mut length) = (0, 0);
    for (index, character) in text.char_indices() {
        if length == 4 || (length > 0 && character.is_whitespace()) {
            pieces.push(&text[start..index]);
            (start, length) = (index, 0);
        }
        length += 1;
    }
    if length > 0 {
        pieces.push(&text[start..]);
    }
    pieces
}

/// A request, as far as it is read.
#[derive(Debug, Deserialize)]
pub(super) struct Ask {
    pub(super) model: String,
    pub(super) messages: Vec<Turn>,
    #[serde(default)]
    pub(super) stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    stop: Option<Stop>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Turn {
    role: String,
    #[serde(default)]
    content: Content,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

impl Default for Content {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

#[derive(Debug, Deserialize)]
struct ContentPart {
    #[serde(default)]
    text: String,
}

impl Turn {
    fn text(&self) -> String {
        match &self.content {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => parts.iter().map(|part| part.text.as_str()).collect(),
        }
    }
}

impl Ask {
    /// Tokens of the prompt: those of all texts, three for each message's frame and three for the beginning of the answer.
    pub(super) fn prompt_tokens(&self) -> u64 {
        let texts: usize = self.messages.iter().map(|turn| tokens(&turn.text()).len() + 3).sum();
        texts as u64 + 3
    }

    /// Names the prompt's text, for the simulated prompt cache.
    pub(super) fn prompt_hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for turn in &self.messages {
            let text = turn.text();
            hasher.update(turn.role.as_bytes()).update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        hasher.finalize()
    }

    /// The last user message.
    pub(super) fn question(&self) -> String {
        self.messages.iter().rev().find(|turn| turn.role == "user").map(Turn::text).unwrap_or_default()
    }

    /// Most tokens to generate.
    pub(super) fn max_tokens(&self) -> u64 {
        self.max_completion_tokens.or(self.max_tokens).unwrap_or(u64::MAX)
    }

    /// Whether a stream reports usage.
    pub(super) fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage)
    }

    /// The answer up to the first stop text.
    pub(super) fn until_stop<'a>(&self, answer: &'a str) -> &'a str {
        let stops = match &self.stop {
            None => &[][..],
            Some(Stop::One(stop)) => std::slice::from_ref(stop),
            Some(Stop::Several(stops)) => stops,
        };
        let first = stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| answer.find(stop.as_str())).min();
        first.and_then(|end| answer.get(..end)).unwrap_or(answer)
    }

    /// The name the response goes by: always recognisable as simulated, and without fault markers.
    pub(super) fn response_model(&self) -> String {
        let name = self.model.split('!').next().unwrap_or_default();
        if name.starts_with("simulated") { name.to_owned() } else { format!("simulated/{name}") }
    }
}

/// Token counts of one answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) prompt: u64,
    pub(super) cached: u64,
    pub(super) completion: u64,
    pub(super) reasoning: u64,
}

impl Counts {
    fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
            "completion_tokens_details": { "reasoning_tokens": self.reasoning },
        })
    }
}

/// Writes the chunks of one streamed answer.
pub(super) struct ChunkWriter {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) form: Option<UsageForm>,
}

impl ChunkWriter {
    /// The first chunk: the role.
    pub(super) fn role(&self, counts: Counts) -> Bytes {
        self.chunk(
            json!([{ "index": 0, "delta": { "role": "assistant", "content": "" }, "finish_reason": null }]),
            counts,
        )
    }

    /// A piece of text.
    pub(super) fn text(&self, text: &str, counts: Counts) -> Bytes {
        self.chunk(json!([{ "index": 0, "delta": { "content": text }, "finish_reason": null }]), counts)
    }

    /// The finish reason, and usage where the form wants it here.
    pub(super) fn finish(&self, reason: &str, counts: Counts) -> Bytes {
        let choices = json!([{ "index": 0, "delta": {}, "finish_reason": reason }]);
        let usage = matches!(self.form, Some(UsageForm::WithChoices | UsageForm::EveryChunk)).then_some(counts);
        self.event(choices, usage)
    }

    /// The chunk that carries only usage, where the form wants one.
    pub(super) fn usage(&self, counts: Counts) -> Option<Bytes> {
        (self.form == Some(UsageForm::OwnChunk)).then(|| self.event(json!([]), Some(counts)))
    }

    fn chunk(&self, choices: Value, counts: Counts) -> Bytes {
        self.event(choices, (self.form == Some(UsageForm::EveryChunk)).then_some(counts))
    }

    fn event(&self, choices: Value, usage: Option<Counts>) -> Bytes {
        let chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": 0,
            "model": self.model,
            "choices": choices,
            "usage": usage.map(Counts::to_json),
        });
        Bytes::from(format!("data: {chunk}\n\n"))
    }
}

/// A unary answer.
pub(super) fn completion(id: &str, model: &str, text: &str, reason: &str, counts: Option<Counts>) -> Value {
    json!({
        "id": id,
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": reason }],
        "usage": counts.map(Counts::to_json),
    })
}

/// An error object.
pub(super) fn error_object(kind: &str, code: &str) -> Value {
    json!({ "error": { "message": "a simulated failure", "type": kind, "param": null, "code": code } })
}
