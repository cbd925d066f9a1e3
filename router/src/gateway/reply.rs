//! What comes back from the gateway: an initial decision, a stream of events, and errors that say what was used.

pub use crate::budget::BudgetWindow;
use crate::domain::{Constraints, Cost, Decision, FinishReason, NanoUsd, RequestId, TokenLogprob, Usage};
use futures_util::Stream;
use std::pin::Pin;
use std::time::Duration;

/// Events of one answer. Ends after `Finished` or after the first error; dropping it hangs up.
pub type ReplyStream = Pin<Box<dyn Stream<Item = Result<ReplyEvent, GatewayError>> + Send>>;

/// A request that was accepted and decided; the answer is still to come.
pub struct Reply {
    /// Names the request and its ledger entry.
    pub request_id: RequestId,
    /// The initial decision.
    pub decision: Decision,
    /// What placement, key and rules allowed.
    pub constraints: Constraints,
    /// The answer.
    pub events: ReplyStream,
}

/// One event of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyEvent {
    /// The decision changed; only before the first `Text`.
    Rerouted(Box<Decision>),
    /// More of the answer.
    Text {
        /// The text; never empty.
        text: String,
        /// Its tokens, where the request asked for them.
        logprobs: Vec<TokenLogprob>,
    },
    /// The answer is complete.
    Finished(Box<Summary>),
}

/// A finished request, summed up over all its attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Tokens used.
    pub usage: Usage,
    /// Processor time of the local model, in seconds.
    pub cpu_seconds: f64,
    /// What it cost.
    pub cost: Cost,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// Tokens that the answer could have had.
    pub max_tokens: u32,
    /// The decision that held at the end.
    pub decision: Decision,
    /// What placement, key and rules allowed.
    pub constraints: Constraints,
    /// What the first large model would have cost (an estimate).
    pub baseline: Cost,
    /// Baseline − cost; may be negative; an estimate.
    pub saved: NanoUsd,
    /// The model's own name for itself; empty where it gives none.
    pub response_model: String,
    /// From arrival to the end of the answer.
    pub latency: Duration,
}

/// What a failed request used.
#[derive(Clone, Debug, PartialEq)]
pub struct FailureReport {
    /// Names the request and its ledger entry.
    pub request_id: RequestId,
    /// Tokens used over all attempts.
    pub usage: Usage,
    /// Cost over all attempts.
    pub cost: Cost,
    /// The decision, where one was made.
    pub decision: Option<Box<Decision>>,
    /// What placement, key and rules allowed, where that was computed.
    pub constraints: Option<Box<Constraints>>,
}

/// A failed request: why, and what it used meanwhile.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}")]
pub struct GatewayError {
    /// Why.
    pub kind: GatewayErrorKind,
    /// What was used; `None` before a request was admitted.
    pub report: Option<Box<FailureReport>>,
}

/// Why a request failed, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GatewayErrorKind {
    /// No policy of that name is loaded.
    #[error("policy `{name}` does not exist; known policies: {known}")]
    UnknownPolicy {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Client, key, policy or rule contradict each other.
    #[error("{0}")]
    PlacementConflict(String),
    /// No model may serve the request: each candidate and why not.
    #[error("no model can serve this request: {0}")]
    NoCandidate(String),
    /// No model that may serve the request runs where it may be served.
    #[error("{why}")]
    NoRegion {
        /// The field that demands it, such as `ask.regions`.
        field: String,
        /// The demand and each candidate.
        why: String,
    },
    /// Only a large model may serve, and the policy's ceiling on the mean cost has no room for one.
    #[error("max_cost leaves no room: {why}")]
    CostCeiling {
        /// Each candidate and why not.
        why: String,
        /// When there may be room.
        retry_after: Duration,
    },
    /// Nothing is predicted to be in time, and the policy refuses then.
    #[error("{why}")]
    Late {
        /// Each candidate and why not.
        why: String,
        /// When it may be worth another try.
        retry_after: Duration,
    },
    /// No candidate can honour a field of the request.
    #[error("`{field}` can't be honoured: {why}")]
    Unsupported {
        /// The field, such as `limits.seed`.
        field: String,
        /// Why.
        why: String,
    },
    /// A field of a request for vectors is wrong in a way that only its encoder knows.
    #[error("`{field}` {why}")]
    Invalid {
        /// The field, such as `texts[3]`.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The prompt does not fit any candidate's context.
    #[error("the prompt is too long: {0}")]
    PromptTooLong(String),
    /// A budget is exhausted and the policy has no free way.
    #[error(
        "the {} budget of tenant `{tenant}` is exhausted: limit {limit}, spent {spent}, held {held}, this request needs up to {asked}",
        window.as_str()
    )]
    BudgetExhausted {
        /// Whose.
        tenant: String,
        /// Which window.
        window: BudgetWindow,
        /// The limit.
        limit: NanoUsd,
        /// Spent so far.
        spent: NanoUsd,
        /// Held by attempts in flight.
        held: NanoUsd,
        /// What this attempt would hold.
        asked: NanoUsd,
        /// Until the window ends.
        resets_in: Duration,
    },
    /// Too much to do: come back later.
    #[error("overloaded: {what}; retry in {} ms", retry_after.as_millis())]
    Overloaded {
        /// What is full.
        what: String,
        /// When it may be worth another try.
        retry_after: Duration,
    },
    /// No backend is up.
    #[error("unavailable: {what}")]
    Unavailable {
        /// Which, and what happened.
        what: String,
        /// When it may be worth another try.
        retry_after: Duration,
    },
    /// The small model declined and the request may not leave the process.
    #[error("the small model declined this request and placement `local-only` ({by}) forbids asking a remote one")]
    Declined {
        /// Who asked for local-only.
        by: String,
    },
    /// The remote model refused the request as it is.
    #[error("the model refused the request: {0}")]
    UpstreamRejected(String),
    /// The answer was cut after its first byte; what was shown is not complete.
    #[error("the answer was cut off: {0}")]
    Cut(String),
    /// The answer ended before it had the form that was asked for; what was shown is not complete.
    #[error("the answer ended before it had the form that was asked for: {0}")]
    Unfinished(String),
    /// The caller's deadline passed.
    #[error("the deadline passed {0}")]
    DeadlineExceeded(String),
    /// The caller hung up.
    #[error("the caller hung up")]
    Cancelled,
    /// Paid attempts can't be recorded, so none is made.
    #[error("paid requests are refused while the journal can't be written: {0}")]
    JournalUnwritable(String),
    /// The ledger has no such entry for this tenant.
    #[error("there is no entry `{0}`")]
    UnknownEntry(String),
    /// The gateway is shutting down.
    #[error("shutting down; retry against another replica")]
    ShuttingDown,
    /// A fault of the gateway itself.
    #[error("internal fault: {0}")]
    Internal(String),
}

impl GatewayErrorKind {
    /// A stable code for the ledger, logs and metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownPolicy { .. } => "unknown_policy",
            Self::PlacementConflict(_) => "placement_conflict",
            Self::NoCandidate(_) => "no_candidate",
            Self::NoRegion { .. } => "no_region",
            Self::CostCeiling { .. } => "cost_ceiling",
            Self::Late { .. } => "late",
            Self::Unsupported { .. } => "unsupported",
            Self::Invalid { .. } => "invalid",
            Self::PromptTooLong(_) => "prompt_too_long",
            Self::BudgetExhausted { .. } => "budget_exhausted",
            Self::Overloaded { .. } => "overloaded",
            Self::Unavailable { .. } => "unavailable",
            Self::Declined { .. } => "declined",
            Self::UpstreamRejected(_) => "upstream_rejected",
            Self::Cut(_) => "cut",
            Self::Unfinished(_) => "unfinished",
            Self::DeadlineExceeded(_) => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::JournalUnwritable(_) => "journal_unwritable",
            Self::UnknownEntry(_) => "unknown_entry",
            Self::ShuttingDown => "shutting_down",
            Self::Internal(_) => "internal",
        }
    }
}

/// How a request would be decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// What placement, key and rules allowed.
    pub constraints: Constraints,
    /// State of the policy's certificate: `valid`, `missing`, or why it does not match.
    pub certificate: String,
    /// Features that moved the score most, strongest first, in words.
    pub strongest: Vec<String>,
}
