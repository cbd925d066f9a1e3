//! What a backend gives back, chunk by chunk, and what it used.

/// Tokens used by one attempt or one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub input_tokens: u64,
    /// Generated tokens, reasoning included.
    pub output_tokens: u64,
    /// Prompt tokens that the backend had cached; part of `input_tokens`.
    pub cached_input_tokens: u64,
    /// Hidden reasoning; part of `output_tokens`.
    pub reasoning_tokens: u64,
}

impl Usage {
    /// The sum of two usages.
    pub fn plus(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            cached_input_tokens: self.cached_input_tokens.saturating_add(other.cached_input_tokens),
            reasoning_tokens: self.reasoning_tokens.saturating_add(other.reasoning_tokens),
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model ended it, or a stop text was met.
    Stop,
    /// The token limit ended it.
    Length,
    /// The model's context is full.
    Context,
    /// The model asks for tools.
    ToolCalls,
    /// The small model says that it can't.
    Declined,
    /// The backend withheld the rest.
    Filtered,
}

impl FinishReason {
    /// The word used in SQL and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::ToolCalls => "tool_calls",
            Self::Declined => "declined",
            Self::Filtered => "filtered",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Stop, Self::Length, Self::Context, Self::ToolCalls, Self::Declined, Self::Filtered]
            .into_iter()
            .find(|reason| reason.as_str() == word)
    }
}

/// What is known of one generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// What it adds, perhaps part of a character; empty where [`Limits::logprobs`](super::Limits::logprobs) did not ask.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Distance of the likeliest token to the second, in nats; `None` where the backend does not tell two.
    pub margin: Option<f32>,
    /// The likeliest tokens, likeliest first, as many as were asked for.
    pub alternatives: Vec<TokenAlternative>,
}

/// A token that the model might have written.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenAlternative {
    /// What it would have added; empty for control tokens.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// How an answer ended, in full.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// What was used.
    pub usage: Usage,
    /// Whether `usage` comes from the backend itself (else it is our count).
    pub usage_reported: bool,
    /// Tokens that it could have had; `None` for as many as the call allowed.
    pub max_tokens: Option<u32>,
    /// Processor time of the local model, in seconds; 0 for remote ones.
    pub cpu_seconds: f64,
    /// The model as the backend names it; empty where it names none.
    pub response_model: String,
}

/// A piece of an answer stream. A stream is complete only if `End` came.
#[derive(Clone, Debug, PartialEq)]
pub enum Chunk {
    /// More text (never empty), with log-probabilities where the backend gives them.
    Text {
        /// The text.
        text: String,
        /// Its tokens; may be empty.
        logprobs: Vec<TokenLogprob>,
    },
    /// The end; nothing follows.
    End(Finish),
}

/// A complete answer, as the cache keeps it and unary calls return it.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerText {
    /// The whole text.
    pub text: String,
    /// How it ended.
    pub finish: Finish,
}
