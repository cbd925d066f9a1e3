//! The shape that a recorded request has in the journal and in the store.

use crate::domain::{
    FirstChoice, Message, ModelId, Part, Placement, ReasonCode, RecordLevel, Recording, Residency, Role, Route,
};
use serde::{Deserialize, Serialize};

/// See [`Recording`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredRecording {
    pub level: String,
    pub model: String,
    pub route: String,
    pub escalates: bool,
    pub reason: String,
    pub placement: String,
    pub placement_floor: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<String>>,
    pub prompt_bytes: u64,
    pub turns: u32,
    pub max_tokens: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<StoredMessage>,
    // Recordings of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// One turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredMessage {
    pub role: String,
    pub text: String,
}

impl From<&Recording> for StoredRecording {
    fn from(recording: &Recording) -> Self {
        let message =
            |message: &Message| StoredMessage { role: message.role.as_str().to_owned(), text: message.content() };
        Self {
            level: recording.level.as_str().to_owned(),
            model: recording.first.model.to_string(),
            route: recording.first.route.as_str().to_owned(),
            escalates: recording.first.escalates,
            reason: recording.first.reason.as_str().to_owned(),
            placement: recording.placement.as_str().to_owned(),
            placement_floor: recording.placement_floor.as_str().to_owned(),
            regions: recording.residency.regions().map(|regions| regions.iter().cloned().collect()),
            prompt_bytes: recording.prompt_bytes,
            turns: recording.turns,
            max_tokens: recording.max_tokens,
            messages: recording.messages.iter().map(message).collect(),
            answer: recording.answer.clone(),
        }
    }
}

impl StoredMessage {
    fn message(self) -> Option<Message> {
        let roles = [Role::System, Role::User, Role::Assistant, Role::Tool];
        let role = roles.into_iter().find(|role| role.as_str() == self.role)?;
        Some(Message { role, parts: vec![Part::Text(self.text)] })
    }
}

impl StoredRecording {
    /// The recording; `None` if a word in it is unknown to this build.
    pub fn recording(self) -> Option<Recording> {
        let reason = ReasonCode::ALL.into_iter().find(|code| code.as_str() == self.reason)?;
        let first = FirstChoice {
            model: ModelId::new(self.model),
            route: Route::parse(&self.route)?,
            escalates: self.escalates,
            reason,
        };
        Some(Recording {
            level: RecordLevel::parse(&self.level)?,
            first,
            placement: Placement::parse(&self.placement)?,
            placement_floor: Placement::parse(&self.placement_floor)?,
            residency: self.regions.map_or_else(Residency::anywhere, |regions| Residency::only("the request", regions)),
            prompt_bytes: self.prompt_bytes,
            turns: self.turns,
            max_tokens: self.max_tokens,
            messages: self.messages.into_iter().map(StoredMessage::message).collect::<Option<_>>()?,
            answer: self.answer,
        })
    }
}
