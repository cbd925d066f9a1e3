//! The contract of everything that can write an answer: a call goes in, a stream of chunks comes out, dropping it hangs up.
//!
//! One [`Backend::generate`] is exactly one attempt: it takes one hold, has one ledger row and is never repeated in here, because
//! a retry that nobody booked would be money that nobody counted. Retrying, falling back and booking are the gateway's;
//! `backend/resilience` only says when another attempt is worth it. A stream that ends without [`Chunk::End`] is never an
//! answer. Nothing here knows policies, budgets or the wire.

pub mod local;
pub mod remote;
pub mod resilience;

mod error;
mod probe;

pub use error::{BackendError, TimeoutStage};
pub use probe::{ProbeReading, UsageProbe};

use crate::domain::{AttemptId, Chunk, Limits, Message, ModelId, Predicted, Route, TenantId};
use arc_swap::ArcSwap;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An answer under way: any number of [`Chunk::Text`], then one [`Chunk::End`]; or an error, after which nothing follows.
/// Dropping it cancels: local work stops within one step, an upstream connection is closed at once.
pub type AnswerStream = Pin<Box<dyn Stream<Item = Result<Chunk, BackendError>> + Send>>;

/// One attempt at one backend.
#[derive(Clone, Debug)]
pub struct BackendCall {
    /// Names the attempt in the journal; remote backends send it upstream.
    pub attempt: AttemptId,
    /// Whose text it is: local models give tenants turns, and keep apart what they have computed for them.
    pub tenant: TenantId,
    /// The conversation; not empty.
    pub messages: Arc<[Message]>,
    /// Sampling and stop texts; `max_tokens` is not read, [`BackendCall::max_output_tokens`] is.
    pub limits: Limits,
    /// Most tokens to generate, reasoning included; at least 1 and always sent upstream: the hold relies on it.
    pub max_output_tokens: u32,
    /// The caller's deadline; every other time-out is shortened to it.
    pub deadline: Option<Instant>,
    /// The client's own end user, passed upstream where the protocol has a field for it; may be empty.
    pub end_user_id: String,
    /// Written as tokens flow, readable after a hang-up: keep a clone of it to book what was used.
    pub probe: UsageProbe,
}

/// Whether a backend would take a call just now, without trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It would.
    Ready,
    /// It would not.
    Unavailable {
        /// Why, in words: `breaker open`, `the model is being loaded again`.
        why: String,
        /// When it may be worth another look, where that is known.
        retry_after: Option<Duration>,
    },
}

/// Something that writes answers: a model in this process or a remote one.
pub trait Backend: Send + Sync {
    /// The catalog's name of the model.
    fn model(&self) -> &ModelId;

    /// [`Route::Local`] or [`Route::Remote`].
    fn route(&self) -> Route;

    /// Makes one attempt. The future ends when the backend has accepted the call (remote: a success status came); most errors
    /// come from it, later ones from the stream. Dropping the future or the stream hangs up.
    fn generate(&self, call: BackendCall) -> BoxFuture<'_, Result<AnswerStream, BackendError>>;

    /// Whether a call would be taken just now.
    fn availability(&self) -> Availability;

    /// What the backend's own queue and measured speeds say of a call just now, with as many output tokens as answers have
    /// had lately, at most `most_tokens`; `None` where it knows nothing of them, as of a remote one.
    fn expects(&self, prompt_tokens: u32, most_tokens: u32) -> Option<Predicted>;

    /// Whether a call that nobody waits for would be in nobody's way just now.
    fn is_idle(&self) -> bool;
}

/// Everything that can write answers, by model; replaced as a whole when the catalog changes.
#[derive(Default)]
pub struct Backends(ArcSwap<HashMap<ModelId, Arc<dyn Backend>>>);

impl Backends {
    /// The backend of a model; whoever has it keeps it through a change.
    pub fn get(&self, model: &ModelId) -> Option<Arc<dyn Backend>> {
        self.0.load().get(model).cloned()
    }

    /// All of them as they are now.
    pub fn all(&self) -> Arc<HashMap<ModelId, Arc<dyn Backend>>> {
        self.0.load_full()
    }

    /// Puts others in their place.
    pub fn replace(&self, backends: HashMap<ModelId, Arc<dyn Backend>>) {
        self.0.store(Arc::new(backends));
    }
}
