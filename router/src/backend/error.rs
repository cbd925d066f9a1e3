//! Why an attempt gave no (complete) answer: variants by what the caller can do about it.
//!
//! Messages go to clients, logs and the ledger, so they are made of our own words, numbers and sanitised error codes only:
//! an upstream's free text may quote the prompt or the key and is never passed on.

use crate::domain::Usage;
use std::fmt;
use std::time::Duration;

/// What was being waited for when the time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeoutStage {
    /// The connection.
    Connect,
    /// The status, or the first event of the answer.
    FirstByte,
    /// The next event of the answer.
    Idle,
    /// The whole answer.
    Total,
}

impl fmt::Display for TimeoutStage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Connect => "the connection",
            Self::FirstByte => "the first byte",
            Self::Idle => "the next chunk",
            Self::Total => "the whole answer",
        })
    }
}

/// Why an attempt gave no complete answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BackendError {
    /// Too much to do there; nothing was started.
    #[error("overloaded: {why}")]
    Overloaded {
        /// What is full.
        why: String,
        /// When it may be worth another try.
        retry_after: Option<Duration>,
    },
    /// It can't be reached, answers with a server error, or is kept out by its breaker.
    #[error("unavailable: {why}")]
    Unavailable {
        /// What happened.
        why: String,
        /// When it may be worth another try.
        retry_after: Option<Duration>,
        /// Whether the request may have arrived there without a status coming back.
        sent: bool,
    },
    /// A time-out of the target's own settings, not the caller's deadline.
    #[error("timed out waiting for {stage}")]
    Timeout {
        /// What was being waited for.
        stage: TimeoutStage,
        /// What is known to have been used.
        usage: Option<Usage>,
    },
    /// It refuses this request; the same request will be refused again.
    #[error("the request was rejected with status {status}: {message}")]
    Rejected {
        /// HTTP status.
        status: u16,
        /// The upstream's error code and type, sanitised.
        message: String,
    },
    /// The key is refused, or the account behind it can't pay.
    #[error("the upstream refuses our key with status {status}: {message}; check the key and its account")]
    Unauthorized {
        /// HTTP status.
        status: u16,
        /// The upstream's error code and type, sanitised.
        message: String,
    },
    /// Too many requests or tokens per minute for our key.
    #[error("rate limited by the upstream")]
    RateLimited {
        /// When it may be worth another try.
        retry_after: Option<Duration>,
    },
    /// The answer ended without its end marker, or the upstream reported an error in the middle of it.
    #[error("the answer was cut off: {why}")]
    Cut {
        /// What happened.
        why: String,
        /// What is known to have been used.
        usage: Option<Usage>,
    },
    /// What came back is not the protocol.
    #[error("the upstream does not speak the protocol: {why}")]
    Protocol {
        /// What was wrong; no part of what came.
        why: String,
        /// What is known to have been used.
        usage: Option<Usage>,
    },
    /// The caller's deadline passed.
    #[error("the deadline passed {}", if *sent { "before the answer was complete" } else { "before the request was sent" })]
    DeadlineExceeded {
        /// Whether the request was under way by then.
        sent: bool,
        /// What is known to have been used.
        usage: Option<Usage>,
    },
    /// Prompt and answer do not fit the model's context.
    #[error("the prompt is too long: {0}")]
    PromptTooLong(String),
    /// It can't honour a field of the request after all; another model may.
    #[error("`{field}` can't be honoured: {why}")]
    Unsupported {
        /// The field, such as `response_format.json_schema`.
        field: String,
        /// Why.
        why: String,
    },
    /// The answer ended before it had the form that was asked for.
    #[error("the answer ended before it had the form that was asked for: {why}")]
    Unfinished {
        /// What ended it.
        why: String,
        /// What is known to have been used.
        usage: Option<Usage>,
    },
    /// The local model's thread panicked; it is being loaded again.
    #[error("the model's thread panicked and is being restarted")]
    Panicked,
}

impl BackendError {
    /// Whether the same call, made again to the same backend, may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Overloaded { .. }
            | Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::RateLimited { .. }
            | Self::Cut { .. }
            | Self::Protocol { .. }
            | Self::Panicked => true,
            Self::Rejected { .. }
            | Self::Unauthorized { .. }
            | Self::DeadlineExceeded { .. }
            | Self::Unsupported { .. }
            | Self::Unfinished { .. }
            | Self::PromptTooLong(_) => false,
        }
    }

    /// Whether another model may succeed where this one failed. A request that was found malformed (400, 422) would be found so
    /// again elsewhere, and a deadline that has passed has passed for everyone.
    pub fn may_fall_back(&self) -> bool {
        match self {
            Self::Rejected { status, .. } => !matches!(status, 400 | 422),
            Self::DeadlineExceeded { .. } | Self::Unfinished { .. } => false,
            _ => true,
        }
    }

    /// Whether the attempt may cost money all the same: the request was sent and no status came back, or the answer had begun.
    /// A refusal with a status is free.
    pub fn may_have_been_billed(&self) -> bool {
        match self {
            Self::Timeout { stage, .. } => *stage != TimeoutStage::Connect,
            Self::Unavailable { sent, .. } | Self::DeadlineExceeded { sent, .. } => *sent,
            Self::Cut { .. } | Self::Protocol { .. } | Self::Unfinished { .. } => true,
            Self::Overloaded { .. }
            | Self::Rejected { .. }
            | Self::Unauthorized { .. }
            | Self::RateLimited { .. }
            | Self::Unsupported { .. }
            | Self::PromptTooLong(_)
            | Self::Panicked => false,
        }
    }

    /// Whether it says something about the backend's health, so that its breaker counts it. Limits, refusals of one request and
    /// the caller's own deadline don't.
    pub fn is_backend_fault(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::Unauthorized { .. }
            | Self::Cut { .. }
            | Self::Protocol { .. }
            | Self::Panicked => true,
            Self::Overloaded { .. }
            | Self::Rejected { .. }
            | Self::RateLimited { .. }
            | Self::DeadlineExceeded { .. }
            | Self::Unsupported { .. }
            | Self::Unfinished { .. }
            | Self::PromptTooLong(_) => false,
        }
    }

    /// When the backend says that another try may be worth it.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. }
            | Self::Unavailable { retry_after, .. }
            | Self::RateLimited { retry_after } => *retry_after,
            _ => None,
        }
    }

    /// What the failed attempt is known to have used.
    pub fn usage(&self) -> Option<Usage> {
        match self {
            Self::Timeout { usage, .. }
            | Self::Cut { usage, .. }
            | Self::Protocol { usage, .. }
            | Self::Unfinished { usage, .. }
            | Self::DeadlineExceeded { usage, .. } => *usage,
            _ => None,
        }
    }

    /// The same error with what is known to have been used, where the variant has room for it.
    pub fn with_usage(mut self, known: Option<Usage>) -> Self {
        match &mut self {
            Self::Timeout { usage, .. }
            | Self::Cut { usage, .. }
            | Self::Protocol { usage, .. }
            | Self::Unfinished { usage, .. }
            | Self::DeadlineExceeded { usage, .. } => *usage = usage.or(known),
            _ => {}
        }
        self
    }

    /// A stable code for the ledger, logs and metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Overloaded { .. } => "overloaded",
            Self::Unavailable { .. } => "unavailable",
            Self::Timeout { .. } => "timeout",
            Self::Rejected { .. } => "rejected",
            Self::Unauthorized { .. } => "unauthorized",
            Self::RateLimited { .. } => "rate_limited",
            Self::Cut { .. } => "cut",
            Self::Protocol { .. } => "protocol",
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::PromptTooLong(_) => "prompt_too_long",
            Self::Unsupported { .. } => "unsupported",
            Self::Unfinished { .. } => "unfinished",
            Self::Panicked => "panicked",
        }
    }
}
