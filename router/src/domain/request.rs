//! What a client asks for, after the edge has checked it: nothing in here can be malformed.

use super::residency::Residency;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

/// Names a tenant: whose money is spent and whose text it is. Comes from the key, never from the message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Arc<str>);

/// Names a model of the catalog, such as `openai/gpt-4.1-mini` or `sluice-nano`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(Arc<str>);

macro_rules! text_id {
    ($name:ident) => {
        impl $name {
            /// Wraps a name.
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}
text_id!(TenantId);
text_id!(ModelId);

/// Names one request and its ledger entry (UUID version 7: sortable by time).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub Uuid);

/// Names one call to one backend; the same id is sent upstream and written to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub Uuid);

macro_rules! uuid_id {
    ($name:ident) => {
        impl $name {
            /// A fresh id.
            pub fn fresh() -> Self {
                Self(Uuid::now_v7())
            }
            /// Reads the hyphenated form.
            pub fn parse(text: &str) -> Option<Self> {
                Uuid::parse_str(text).ok().map(Self)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}
uuid_id!(RequestId);
uuid_id!(AttemptId);

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions of the application.
    System,
    /// The person or service that asks.
    User,
    /// Earlier answers of a model.
    Assistant,
    /// Results of tools.
    Tool,
}

impl Role {
    /// The word that templates and upstream protocols use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A piece of a message. Only text is served by this build; the edge refuses the others by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// Plain text.
    Text(String),
}

/// One turn of the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; never empty.
    pub parts: Vec<Part>,
}

impl Message {
    /// A message of one text part.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self { role, parts: vec![Part::Text(text.into())] }
    }

    /// All text of the message, parts joined without a separator.
    pub fn content(&self) -> String {
        self.parts.iter().map(|Part::Text(text)| text.as_str()).collect()
    }

    /// Bytes of text.
    pub fn byte_len(&self) -> usize {
        self.parts.iter().map(|Part::Text(text)| text.len()).sum()
    }
}

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFormat {
    /// JSON that this JSON Schema describes; the text is JSON.
    JsonSchema(String),
    /// Text that this regular expression matches from beginning to end.
    Regex(String),
    /// One of these texts; not empty, and none of them is.
    Choices(Vec<String>),
}

impl ResponseFormat {
    /// The field of an ask that says so.
    pub const fn field(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "response_format.json_schema",
            Self::Regex(_) => "response_format.regex",
            Self::Choices(_) => "response_format.choices",
        }
    }
}

/// Limits, sampling and form of an answer. `None` means the policy's or backend's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Most tokens to generate, reasoning included; at least 1.
    pub max_tokens: Option<u32>,
    /// 0..=2; 0 is greedy.
    pub temperature: Option<f32>,
    /// (0, 1].
    pub top_p: Option<f32>,
    /// Texts that end the answer; not part of it. At most 8.
    pub stop: Vec<String>,
    /// Seed of the sampler.
    pub seed: Option<u64>,
    /// Sample from so many likeliest tokens; at least 1.
    pub top_k: Option<u32>,
    /// 0..=1: sample from tokens at least this many times as likely as the likeliest.
    pub min_p: Option<f32>,
    /// (0, 10]: weakens tokens that prompt or answer have already; 1 does nothing.
    pub repetition_penalty: Option<f32>,
    /// -2..=2: subtracted from the logits of tokens that the answer has already.
    pub presence_penalty: Option<f32>,
    /// -2..=2: subtracted from the logit of a token for each time that the answer has it.
    pub frequency_penalty: Option<f32>,
    /// Tell each token with so many alternatives; at most 20.
    pub logprobs: Option<u32>,
    /// What the answer must look like.
    pub format: Option<ResponseFormat>,
}

impl Limits {
    /// Whether the same request always gives the same answer as far as we can tell: temperature set to 0.
    pub fn is_deterministic(&self) -> bool {
        self.temperature == Some(0.0)
    }
}

/// Where a request may be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Placement {
    /// The policy decides.
    #[default]
    Auto,
    /// Only in this process: fails closed.
    LocalOnly,
    /// In this process where possible.
    PreferLocal,
    /// Remote where possible.
    PreferRemote,
    /// Only remote.
    RemoteOnly,
}

/// `local-only` met `remote-only`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("placements contradict each other: {first} says local-only, {second} says remote-only")]
pub struct PlacementConflict {
    /// Who asked for local-only.
    pub first: String,
    /// Who asked for remote-only.
    pub second: String,
}

impl Placement {
    /// The word used in policies, on the wire and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::LocalOnly => "local-only",
            Self::PreferLocal => "prefer-local",
            Self::PreferRemote => "prefer-remote",
            Self::RemoteOnly => "remote-only",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Auto, Self::LocalOnly, Self::PreferLocal, Self::PreferRemote, Self::RemoteOnly]
            .into_iter()
            .find(|placement| placement.as_str() == word)
    }

    /// Combines placements, each with the name of who asked for it, to the most restrictive one. `*-only` beats
    /// `prefer-*` beats `auto`; opposite preferences cancel to the first one given; opposite `*-only`s are an error.
    pub fn combine<'a>(asked: impl IntoIterator<Item = (&'a str, Self)>) -> Result<Self, PlacementConflict> {
        let mut local_only: Option<&str> = None;
        let mut remote_only: Option<&str> = None;
        let mut preference = Self::Auto;
        for (who, placement) in asked {
            match placement {
                Self::LocalOnly => local_only = local_only.or(Some(who)),
                Self::RemoteOnly => remote_only = remote_only.or(Some(who)),
                Self::PreferLocal | Self::PreferRemote if preference == Self::Auto => preference = placement,
                Self::Auto | Self::PreferLocal | Self::PreferRemote => {}
            }
        }
        match (local_only, remote_only) {
            (Some(first), Some(second)) => {
                Err(PlacementConflict { first: first.to_owned(), second: second.to_owned() })
            }
            (Some(_), None) => Ok(Self::LocalOnly),
            (None, Some(_)) => Ok(Self::RemoteOnly),
            (None, None) => Ok(preference),
        }
    }
}

/// Labels of a request, such as `data_class = "restricted"`; an absent label reads as the empty string.
pub type Labels = BTreeMap<String, String>;

/// One checked request of one tenant.
#[derive(Clone, Debug)]
pub struct Request {
    /// Names the request and its ledger entry.
    pub id: RequestId,
    /// From the key.
    pub tenant: TenantId,
    /// Name of the key that asked, for logs; empty where no keys are configured.
    pub key_name: String,
    /// Turns, oldest first; never empty, the last one is of the user or a tool.
    pub messages: Vec<Message>,
    /// Limits and sampling.
    pub limits: Limits,
    /// What the client asked for.
    pub placement: Placement,
    /// What the key insists on.
    pub placement_floor: Placement,
    /// Where client, key and tenant allow it to be served.
    pub residency: Residency,
    /// The policy asked for (already allowed for the key); `None` is the default policy.
    pub policy: Option<String>,
    /// Client's labels together with the key's own, which win.
    pub labels: Labels,
    /// Groups the requests of one conversation; may be empty.
    pub conversation_id: String,
    /// The client's own end user, for its bookkeeping; may be empty.
    pub end_user_id: String,
    /// The caller's deadline.
    pub deadline: Option<Instant>,
    /// Whether the client wants to see the answer as it is made.
    pub stream: bool,
}

impl Request {
    /// Bytes of all message texts: an upper bound on prompt tokens for any byte-based tokenizer, before framing.
    pub fn prompt_bytes(&self) -> usize {
        self.messages.iter().map(Message::byte_len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_combine_to_the_most_restrictive() {
        use Placement::*;
        let check = |asked: &[Placement], expected: Option<Placement>| {
            let named = asked.iter().map(|placement| (placement.as_str(), *placement));
            assert_eq!(Placement::combine(named).ok(), expected, "{asked:?}");
        };
        check(&[], Some(Auto));
        check(&[Auto, PreferLocal], Some(PreferLocal));
        check(&[PreferRemote, LocalOnly], Some(LocalOnly));
        check(&[PreferLocal, PreferRemote], Some(PreferLocal));
        check(&[LocalOnly, RemoteOnly], None);
    }
}
