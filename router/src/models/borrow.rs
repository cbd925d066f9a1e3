//! Loaded models and those who use them. Who holds one may use it to the end, whatever happens to its name meanwhile.

use super::load::Waited;
use super::{Models, ModelsError};
use crate::backend::local::LocalBackend;
use crate::backend::{AnswerStream, Availability, Backend, BackendCall, BackendError};
use crate::domain::{ModelId, Predicted, Route};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use local_worker::{ModelSource, Worker};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// How long the thread of a model that nobody uses may take to end.
const END_WITHIN: Duration = Duration::from_secs(10);
/// When to ask again for a model that is being loaded or has no room.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// A model that answers. The last holder to let go ends its thread and gives its memory back.
#[derive(Debug)]
pub(super) struct Loaded {
    backend: LocalBackend,
    source: ModelSource,
    context: usize,
    bytes: u64,
    used: AtomicU64,
    memory: watch::Sender<u64>,
    tasks: TaskTracker,
}

impl Loaded {
    /// `bytes` are counted in `memory` already.
    pub fn new(
        (id, worker): (ModelId, Worker),
        (source, context): (ModelSource, usize),
        bytes: u64,
        memory: watch::Sender<u64>,
        tasks: TaskTracker,
    ) -> Self {
        let backend = LocalBackend::new(id, worker);
        Self { backend, source, context, bytes, used: AtomicU64::new(0), memory, tasks }
    }

    pub fn worker(&self) -> &Worker {
        self.backend.worker()
    }

    /// Bytes it counts with.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is what a slot asks for.
    pub fn is(&self, source: &ModelSource, context: usize) -> bool {
        &self.source == source && self.context == context
    }

    /// The number of its last use; larger is later.
    pub fn last_use(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let (worker, memory, bytes) = (self.worker().clone(), self.memory.clone(), self.bytes);
        let end = move || {
            worker.shutdown(END_WITHIN);
            drop(worker);
            memory.send_modify(|used| *used = used.saturating_sub(bytes));
        };
        // Joining a thread blocks, and the last holder may be a request's task.
        match Handle::try_current() {
            Ok(handle) => drop(self.tasks.spawn_blocking_on(end, &handle)),
            Err(_) => end(),
        }
    }
}

/// The backend of a model that may be loaded, swapped and unloaded.
pub(super) struct OnDemand {
    model: ModelId,
    models: Arc<Models>,
}

impl OnDemand {
    pub fn new(model: ModelId, models: Arc<Models>) -> Self {
        Self { model, models }
    }

    async fn call(&self, call: BackendCall) -> Result<AnswerStream, BackendError> {
        let loaded = match self.models.borrow(&self.model) {
            Some(loaded) => loaded,
            None => self.models.demand(&self.model, call.deadline).await.map_err(refusal)?,
        };
        let stream = loaded.backend.generate(call).await?;
        // The answer keeps the model until it ends.
        Ok(Box::pin(stream.map(move |chunk| {
            let _kept = &loaded;
            chunk
        })))
    }
}

impl Backend for OnDemand {
    fn model(&self) -> &ModelId {
        &self.model
    }

    fn route(&self) -> Route {
        Route::Local
    }

    fn generate(&self, call: BackendCall) -> BoxFuture<'_, Result<AnswerStream, BackendError>> {
        Box::pin(self.call(call))
    }

    fn availability(&self) -> Availability {
        if let Some(loaded) = self.models.borrow(&self.model) {
            return loaded.backend.availability();
        }
        match self.models.could_wait(&self.model) {
            Ok(()) => Availability::Ready,
            Err(waited) => {
                let retry_after = waited.is_passing().then_some(RETRY_SOON);
                Availability::Unavailable { why: waited.to_string(), retry_after }
            }
        }
    }

    /// Nothing is known of a model that is not loaded.
    fn expects(&self, prompt_tokens: u32, most_tokens: u32) -> Option<Predicted> {
        self.models.borrow(&self.model)?.backend.expects(prompt_tokens, most_tokens)
    }

    fn is_idle(&self) -> bool {
        // Nothing is loaded for the sake of a call that nobody waits for.
        self.models.borrow(&self.model).is_some_and(|loaded| loaded.backend.is_idle())
    }
}

fn refusal(waited: Waited) -> BackendError {
    let why = waited.to_string();
    match waited {
        Waited::Refused(ModelsError::NoRoom { .. }) => BackendError::Overloaded { why, retry_after: Some(RETRY_SOON) },
        Waited::Deadline => BackendError::DeadlineExceeded { sent: false, usage: None },
        waited => {
            let retry_after = waited.is_passing().then_some(RETRY_SOON);
            BackendError::Unavailable { why, retry_after, sent: false }
        }
    }
}

impl Models {
    /// The loaded model of a name, for one use.
    pub(super) fn borrow(&self, id: &ModelId) -> Option<Arc<Loaded>> {
        let loaded = self.slots().get(id)?.loaded.clone()?;
        loaded.used.store(self.uses.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        Some(loaded)
    }
}
