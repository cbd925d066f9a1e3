//! What is kept of a request so that it can be decided again: as much as its tenant's record level says, fixed before the
//! first request.

use super::request::{Message, ModelId, Placement, Request};
use super::residency::Residency;
use super::{Decision, ReasonCode, Route};

/// How much of a tenant's requests is kept beside the books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordLevel {
    /// Nothing: the books only. Such a request can't be decided again.
    #[default]
    None,
    /// What was asked for and its size, and nothing that was said. Such a request can be decided again by the scores that
    /// it was given, but not scored again.
    Features,
    /// The messages too, as they came, and what a large model answered.
    Text,
}

impl RecordLevel {
    /// The word in settings and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Features => "features",
            Self::Text => "text",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::None, Self::Features, Self::Text].into_iter().find(|level| level.as_str() == word)
    }
}

/// What was decided before anything went wrong. The ledger's decision is the one that held at the end; propensity speaks
/// of this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstChoice {
    /// The model.
    pub model: ModelId,
    /// `Local` or `Remote`.
    pub route: Route,
    /// Whether a declined draft goes to a large model; for a remote choice, whether a local one's would have.
    pub escalates: bool,
    /// Why.
    pub reason: ReasonCode,
}

/// A request as it is kept; never at level `none`.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// `Features` or `Text`.
    pub level: RecordLevel,
    /// What was decided first.
    pub first: FirstChoice,
    /// What the client asked for.
    pub placement: Placement,
    /// What the key insisted on.
    pub placement_floor: Placement,
    /// Where client, key and tenant allowed it to be served.
    pub residency: Residency,
    /// Bytes of all message texts.
    pub prompt_bytes: u64,
    /// Messages.
    pub turns: u32,
    /// Most tokens to generate, if the client gave a limit.
    pub max_tokens: Option<u32>,
    /// The messages; empty at `features`.
    pub messages: Vec<Message>,
    /// The whole answer that a large model gave and ended by itself; only at `text`.
    pub answer: Option<String>,
}

impl Recording {
    /// What `level` keeps of a request that was decided so; `None` where it keeps nothing.
    /// `escalates` is the policy's word on declined drafts.
    pub fn of(level: RecordLevel, request: &Request, decision: &Decision, escalates: bool) -> Option<Self> {
        if level == RecordLevel::None {
            return None;
        }
        let first = FirstChoice {
            model: decision.model.clone(),
            route: decision.route,
            escalates: decision.escalate_to.is_some() || (escalates && decision.route == Route::Remote),
            reason: decision.reason.code,
        };
        Some(Self {
            level,
            first,
            placement: request.placement,
            placement_floor: request.placement_floor,
            residency: request.residency.clone(),
            prompt_bytes: request.prompt_bytes() as u64,
            turns: u32::try_from(request.messages.len()).unwrap_or(u32::MAX),
            max_tokens: request.limits.max_tokens,
            messages: if level == RecordLevel::Text { request.messages.clone() } else { Vec::new() },
            answer: None,
        })
    }

    /// With the whole answer of a large model, where the level keeps it.
    pub fn answered(self, answer: &str) -> Self {
        let answer = (self.level == RecordLevel::Text).then(|| answer.to_owned());
        Self { answer, ..self }
    }
}
