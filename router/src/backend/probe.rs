//! What an attempt has used so far, readable by whoever books it while the attempt runs and after it was dropped.

use crate::domain::Usage;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What an attempt has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProbeReading {
    /// Whether the request may have reached the backend; if not, it costs nothing.
    pub sent: bool,
    /// Tokens, as far as known. Before a remote backend has reported usage, `output_tokens` is the number of text chunks that
    /// came (at most the true count of tokens) and `input_tokens` is 0.
    pub usage: Usage,
    /// Whether `usage` is the backend's own final count.
    pub reported: bool,
    /// Bytes of text that came.
    pub text_bytes: u64,
    /// Processor time of the local model, in seconds; 0 for remote ones.
    pub cpu_seconds: f64,
    /// Whether nothing will be added any more: a local worker has let go of the request, or a remote answer is complete.
    pub settled: bool,
}

type Source = Box<dyn Fn() -> ProbeReading + Send + Sync>;

#[derive(Default)]
struct State {
    reading: Mutex<ProbeReading>,
    source: OnceLock<Source>,
}

/// Shared between the backend that writes it and the meter that reads it; clones are the same probe. One probe, one attempt.
#[derive(Clone, Default)]
pub struct UsageProbe(Arc<State>);

impl UsageProbe {
    /// What has been used so far.
    pub fn reading(&self) -> ProbeReading {
        match self.0.source.get() {
            Some(source) => source(),
            None => *self.lock(),
        }
    }

    /// Changes the reading; for backends.
    pub fn update(&self, change: impl FnOnce(&mut ProbeReading)) {
        change(&mut self.lock());
    }

    /// Reads from `source` from now on; for backends that keep a live count of their own. Only the first source counts.
    pub fn attach(&self, source: impl Fn() -> ProbeReading + Send + Sync + 'static) {
        let _already_attached = self.0.source.set(Box::new(source));
    }

    fn lock(&self) -> MutexGuard<'_, ProbeReading> {
        self.0.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for UsageProbe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("UsageProbe").field(&self.reading()).finish()
    }
}
