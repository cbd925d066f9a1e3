//! What goes into a worker and what comes out: plain values, without behaviour, so that a caller can be written and tested
//! against them alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::template::ChatMessage;

pub use crate::model::CacheFormat;
use crate::model::Quantize;

/// Where a model's file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A GGUF file, or a directory with `config.json`, safetensors and `tokenizer.json` (Llama, Qwen 2 and Qwen 3).
    Path(PathBuf),
    /// The model compiled into this crate.
    Bundled,
}

/// How much a worker takes on at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Requests that may wait for a place; one more is refused with [`SubmitError::QueueFull`], except that a tenant with
    /// less than its share of the queue is let in until twice as many wait.
    pub queue_capacity: usize,
    /// Sequences decoded together; at least 1.
    pub max_sequences: usize,
    /// Prompt tokens worked through in one step, over all sequences and beside one token of each that writes; a cancelled
    /// request is noticed between two steps.
    pub prefill_chunk: usize,
    /// Compute threads, 1 to 64. One by default: other cores belong to what surrounds the worker, and a thread that waits
    /// for another loses where they are busy. Processor time is told of the first only.
    pub threads: usize,
    /// Tokens a conversation may hold, prompt and answer, if fewer than the model was trained for.
    pub context_limit: Option<usize>,
    /// What weights of floating point become at load; files that are quantised stay as they are, and so does all without it.
    pub quantize: Option<Quantize>,
    /// Memory for keys and values, in bytes: a token takes 4 bytes for each layer, key head and value of a head (23 kB with
    /// SmolLM2-135M, so the default of 512 MiB holds 23,300 of its tokens), twice that in single precision. Taken as
    /// sequences grow. A request that can't fit is refused with [`SubmitError::CacheTooSmall`]; one that fits but not now
    /// waits, and where running ones outgrow the budget, the youngest is set back and computed again later. Up to a quarter
    /// keeps the beginnings of sequences that have ended, the least recently used going first.
    pub cache_bytes: usize,
    /// How keys and values are kept. Half precision, the default, is read in half the time, which long contexts wait for; it
    /// changes an answer where two tokens are almost equally likely.
    pub cache_format: CacheFormat,
    /// Shares of tenants in places and prompt rows, by name; 1 if not named.
    pub tenant_weights: BTreeMap<String, u32>,
    /// Tokens at the start of an answer that may be held back while they could still become the decline text; raised to what
    /// that text needs. 0 passes everything on at once, a decline included.
    pub decline_hold: usize,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            queue_capacity: 64,
            max_sequences: 8,
            prefill_chunk: 128,
            threads: 1,
            context_limit: None,
            quantize: None,
            cache_bytes: 512 << 20,
            cache_format: CacheFormat::Half,
            tenant_weights: BTreeMap::new(),
            decline_hold: 8,
        }
    }
}

/// An answer to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The conversation so far; not empty.
    pub messages: Vec<ChatMessage>,
    /// Tokens at most; unset, what the context leaves. What applied is told at the end.
    pub max_tokens: Option<u32>,
    /// 0 takes the likeliest token each time; finite, at least 0.
    pub temperature: f32,
    /// Samples among so many likeliest tokens; unset or 0, among all.
    pub top_k: Option<u32>,
    /// Samples among the likeliest tokens of this much mass; above 0, at most 1.
    pub top_p: f32,
    /// Samples among tokens at least this many times as likely as the likeliest; 0 to 1.
    pub min_p: f32,
    /// Weakens tokens that prompt or answer have already: above 1 weakens, below strengthens; above 0, at most 10.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the answer has already; within −2 and 2.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time the answer has it already; within −2 and 2.
    pub frequency_penalty: f32,
    /// Texts that end the answer and are not part of it. None together with a `constraint`, which they would cut short.
    pub stop: Vec<String>,
    /// Makes sampling repeatable: the same request with the same seed is answered the same, whatever runs beside it.
    pub seed: Option<u64>,
    /// Tells with each token its bytes and so many likeliest alternatives, at most [`MAX_ALTERNATIVES`]; unset, neither.
    pub logprobs: Option<u32>,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// A request that can't be expected to end by then is refused, and given up when the moment passes.
    pub deadline: Option<Instant>,
    /// On whose behalf. Tenants take turns, and what was computed for one is not used again for another. Requests without
    /// one count as those of one tenant.
    pub tenant: Option<String>,
    /// So many of the first messages, a system prompt usually, are no secret: what is computed of them is used again for
    /// every tenant that marks the same ones.
    pub shared_messages: usize,
}

impl GenerateRequest {
    /// A greedy request without limits.
    pub fn greedy(messages: Vec<ChatMessage>) -> Self {
        Self {
            messages,
            max_tokens: None,
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            stop: Vec::new(),
            seed: None,
            logprobs: None,
            constraint: None,
            deadline: None,
            tenant: None,
            shared_messages: 0,
        }
    }
}

/// Most alternatives that are told with a token.
pub const MAX_ALTERNATIVES: u32 = 20;

/// What an answer must look like. The answer matches as a whole, or the request fails with [`GenerateError::Unfinished`] or
/// [`GenerateError::Constraint`]; a model that declines may still do so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Constraint {
    /// JSON, without optional white space, that a JSON Schema describes. Keywords that can't be kept are refused.
    JsonSchema(String),
    /// Text that a regular expression matches from beginning to end; Rust syntax without look-around, back references and
    /// inner anchors, `\d` and `\w` being those of ASCII.
    Regex(String),
    /// One of these texts.
    Choices(Vec<String>),
}

/// A token the model might have written.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// Index in the vocabulary.
    pub id: u32,
    /// What it would have added, perhaps part of a character; empty for control tokens.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability at temperature 1.
    pub logprob: f32,
}

/// What is told of a token where [`GenerateRequest::logprobs`] asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenDetail {
    /// What the token adds, perhaps part of a character; empty for control tokens.
    pub bytes: Vec<u8>,
    /// The model's likeliest tokens here, likeliest first, the written one perhaps among them.
    pub alternatives: Vec<Alternative>,
}

/// What happens while an answer is written, in order: one `Started`, any number of `Token`s, then `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request has its place and the prompt is being read.
    Started {
        /// Tokens of the prompt, the template's own included.
        prompt_tokens: u32,
    },
    /// One more token.
    Token {
        /// Text that is now certain; empty while a character is incomplete or a stop text may be under way.
        text: String,
        /// Index in the vocabulary. The token that ends an answer is reported too, with no text of its own.
        id: u32,
        /// Natural logarithm of the probability the model gave it: at temperature 1, before penalties and constraint.
        logprob: f32,
        /// Distance of the model's likeliest token to its second, in log-probability; at least 0.
        margin: f32,
        /// More about it, where asked for.
        detail: Option<Box<TokenDetail>>,
    },
    /// The answer is complete.
    Finished(Finished),
    /// There will be no (more) answer.
    Failed(GenerateError),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop text came.
    Stop,
    /// As many tokens as asked for.
    Length,
    /// As many tokens as the context holds.
    Context,
    /// The model wrote its decline text; no text was passed on.
    Declined,
}

/// How an answer ended and what it took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Those of them that had been computed before.
    pub cached_prompt_tokens: u32,
    /// Tokens generated, the ending one and declined ones included.
    pub output_tokens: u32,
    /// Output tokens it could have had: as asked for, or what prompt and context left.
    pub max_tokens: u32,
    /// Processor time of the worker's thread, this request's share.
    pub cpu_seconds: f64,
}

/// What a request has taken so far; readable while it runs and after it was cancelled or has failed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Tokens of the prompt worked through.
    pub prompt_tokens: u32,
    /// Those of them that had been computed before.
    pub cached_prompt_tokens: u32,
    /// Tokens generated.
    pub output_tokens: u32,
    /// Processor time of the worker's thread, this request's share.
    pub cpu_seconds: f64,
}

/// Why an accepted request got no complete answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The model's thread panicked; the model is being loaded again.
    #[error("the model's thread panicked, the model is loaded again; try once more")]
    WorkerPanicked,
    /// The deadline passed before the answer was complete.
    #[error("the deadline passed before the answer was complete")]
    DeadlinePassed,
    /// The worker was shut down before the answer was complete.
    #[error("the worker was shut down before the answer was complete")]
    ShutDown,
    /// The model produced something that is not a number.
    #[error("the model's output is not a number at output token {0}; the weights or the prompt are faulty")]
    NotANumber(u32),
    /// The answer reached its limit of tokens before it was what its constraint asks for.
    #[error(
        "after {0} tokens, the most it may have, the answer was not yet what its constraint asks for; allow more tokens"
    )]
    Unfinished(u32),
    /// The answer can't go on as its constraint asks for.
    #[error("the answer can't go on as its constraint asks for: {0}")]
    Constraint(String),
}

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many requests wait as may.
    #[error("{capacity} requests are waiting already, as many as the queue holds")]
    QueueFull {
        /// Requests that may wait.
        capacity: usize,
    },
    /// The answer can't be expected by the deadline.
    #[error("the answer would take about {predicted:?}, longer than the deadline allows")]
    DeadlineUnreachable {
        /// Predicted time to the end of the answer.
        predicted: Duration,
    },
    /// The model is not there just now.
    #[error("the model is not ready: {0}")]
    Unhealthy(String),
    /// The prompt leaves no room for an answer.
    #[error("the prompt has at least {tokens} tokens, the context holds {context} with the answer; shorten the prompt")]
    PromptTooLong {
        /// Tokens counted, a lower bound for very long texts.
        tokens: usize,
        /// Tokens of prompt and answer together.
        context: usize,
    },
    /// Prompt and answer could never be in the cache together.
    #[error(
        "{tokens} tokens of prompt and answer, cache_bytes holds {positions}; allow fewer tokens or raise cache_bytes"
    )]
    CacheTooSmall {
        /// Tokens of the prompt, and of the answer at most.
        tokens: usize,
        /// Tokens that the cache holds.
        positions: usize,
    },
    /// The model's chat template refused the conversation, or failed.
    #[error("the chat template refused the conversation: {0}")]
    Template(String),
    /// A field of the request is out of its range.
    #[error("{field} {problem}")]
    Invalid {
        /// Name of the field.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The worker accepts nothing any more.
    #[error("the worker is shutting down")]
    ShuttingDown,
}

/// Whether a worker can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Ready,
    /// Its thread panicked and it loads the model again.
    Reloading,
    /// It could not be loaded again; it will not come back.
    Failed(String),
}

/// What a model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// The name it was started under.
    pub name: String,
    /// Tokens a conversation may hold, prompt and answer.
    pub context_length: u32,
    /// Weights, tied ones counted once.
    pub parameters: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// Memory taken by the weights as loaded.
    pub resident_bytes: u64,
    /// Format of most weights, such as `Q8_0`.
    pub quantization: String,
    /// Whether the file brings a chat template; without one a plain form is used.
    pub has_chat_template: bool,
    /// What the model writes when a request is not for it.
    pub decline_text: Option<String>,
    /// Time to load.
    pub load_seconds: f64,
    /// Time of that to bring the weights into the kernels' form.
    pub pack_seconds: f64,
    /// Hex blake3 hash of the file.
    pub file_blake3: String,
    /// Which kernels were chosen for this processor: `avx512-vnni`, `avx2` or `scalar`.
    pub kernels: String,
}

/// How busy a worker is, and how fast it has been lately.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LoadSnapshot {
    /// Requests waiting for a place.
    pub waiting: usize,
    /// Requests being answered.
    pub running: usize,
    /// Prompt tokens a second, over all sequences.
    pub prefill_tokens_per_second: f64,
    /// Generated tokens a second, over all sequences.
    pub decode_tokens_per_second: f64,
    /// Whether nobody's request would find a place in the queue.
    pub full: bool,
    /// Bytes of the cache that running sequences hold.
    pub cache_used_bytes: u64,
    /// Bytes that keep beginnings no running sequence holds; given up where room is needed.
    pub cache_kept_bytes: u64,
    /// Bytes of [`WorkerConfig::cache_bytes`] that are not taken from memory.
    pub cache_free_bytes: u64,
    /// Prompt tokens that had not to be computed, since the start.
    pub prefix_hit_tokens: u64,
    /// Times a sequence was set back because the cache was full, since the start.
    pub preemptions: u64,
}
