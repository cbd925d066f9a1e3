//! The worker: one model, one owned thread, a bounded queue in front of it, and a stream of events for each request.
//!
//! The thread decodes up to [`WorkerConfig::max_sequences`] conversations together and looks at cancellation, deadlines and
//! newcomers between two steps, a step being one token for each running sequence plus at most one chunk of prompts. Nothing
//! here blocks a caller: [`Worker::submit`] renders, tokenises and queues, or refuses at once.
//!
//! What an answer is worth, and who else could give it, is none of this module's business.

mod generation;
mod request;

pub use generation::{Generation, UsageMeter};
pub use request::{
    ChatMessage, Event, FinishReason, Finished, GenerateError, GenerateRequest, Health, LoadSnapshot, ModelInfo,
    ModelSource, SubmitError, Usage, WorkerConfig,
};

use std::sync::Arc;
use std::time::Duration;

use crate::model::LoadError;

/// A handle on a running model; cheap to clone.
#[derive(Debug, Clone)]
pub struct Worker(Arc<Shared>);

/// What handles and the thread share.
#[derive(Debug)]
struct Shared {
    info: ModelInfo,
    config: WorkerConfig,
}

impl Worker {
    /// Loads a model on a thread of its own, called `name`, and returns when it can answer.
    ///
    /// # Errors
    /// The file is missing, malformed or of a kind this build can't run, or a setting is out of range.
    pub fn start(_name: &str, source: ModelSource, _config: WorkerConfig) -> Result<Self, LoadError> {
        match source {
            ModelSource::Bundled => Err(LoadError::NoBundledModel),
            ModelSource::Path(path) => Err(LoadError::Unsupported {
                file: path.display().to_string(),
                problem: "this build has no model architecture yet".to_owned(),
            }),
        }
    }

    /// What the model is.
    pub fn info(&self) -> ModelInfo {
        self.0.info.clone()
    }

    /// Queues a request, or refuses it at once. Costs the rendering and tokenising of the conversation, a few microseconds a
    /// kilobyte, on the caller's thread; never waits.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit(&self, _request: GenerateRequest) -> Result<Generation, SubmitError> {
        Err(SubmitError::QueueFull { capacity: self.0.config.queue_capacity })
    }

    /// Whether the worker can answer.
    pub fn health(&self) -> Health {
        Health::Failed("this build has no model architecture yet".to_owned())
    }

    /// How busy it is, and how fast it has been lately.
    pub fn load(&self) -> LoadSnapshot {
        LoadSnapshot::default()
    }

    /// Predicted time from now to the end of an answer, were it submitted now: the work waiting and running, this prompt, and
    /// as many output tokens as answers have had lately, at most `max_tokens`.
    pub fn predicted_wait(&self, _prompt_tokens: u32, _max_tokens: u32) -> Duration {
        Duration::ZERO
    }

    /// Tokens a conversation takes as a prompt, the template's own included.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub fn count_prompt_tokens(&self, _messages: &[ChatMessage]) -> Result<u32, SubmitError> {
        Err(SubmitError::ShuttingDown)
    }

    /// Accepts nothing more, finishes what is queued and running, and joins the thread; what is not finished after `timeout`
    /// fails with [`GenerateError::ShutDown`]. Returns whether everything was finished. Blocks.
    pub fn shutdown(&self, _timeout: Duration) -> bool {
        true
    }

    /// Makes the model's thread panic before its next step, for tests of what follows.
    #[doc(hidden)]
    pub fn inject_panic(&self) {}
}
