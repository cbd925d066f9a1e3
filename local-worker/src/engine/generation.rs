//! The caller's end of a request: its events, its usage, and its cancellation by dropping.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::request::{Event, Usage};

/// An answer under way. Dropping it cancels: the model's thread notices before its next step and takes up no more for it.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<Event>,
    meter: UsageMeter,
}

impl Generation {
    pub(super) fn new(events: mpsc::Receiver<Event>, meter: UsageMeter) -> Self {
        Self { events, meter }
    }

    /// The next event; `None` after `Finished` or `Failed`.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// [`Generation::next`] for threads outside an async runtime; panics inside one, as it would block it.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }

    /// The next event, if it is there already.
    #[cfg(test)]
    pub(super) fn try_next(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// What the request has taken so far.
    pub fn usage(&self) -> Usage {
        self.meter.usage()
    }

    /// A handle on the usage that outlives this value, for booking what a cancelled request took.
    pub fn meter(&self) -> UsageMeter {
        self.meter.clone()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.meter.0.cancelled.store(true, Ordering::Release);
    }
}

/// Reads a request's usage, during and after it.
#[derive(Debug, Clone, Default)]
pub struct UsageMeter(Arc<Progress>);

/// Written by the model's thread, read by anyone.
#[derive(Debug, Default)]
struct Progress {
    cancelled: AtomicBool,
    settled: AtomicBool,
    prompt_tokens: AtomicU32,
    cached_prompt_tokens: AtomicU32,
    output_tokens: AtomicU32,
    cpu_nanos: AtomicU64,
}

impl UsageMeter {
    /// What the request has taken so far.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.0.prompt_tokens.load(Ordering::Acquire),
            cached_prompt_tokens: self.0.cached_prompt_tokens.load(Ordering::Acquire),
            output_tokens: self.0.output_tokens.load(Ordering::Acquire),
            cpu_seconds: self.0.cpu_nanos.load(Ordering::Acquire) as f64 / 1e9,
        }
    }

    /// Whether the worker has let go of the request, so that the usage is final.
    pub fn settled(&self) -> bool {
        self.0.settled.load(Ordering::Acquire)
    }

    pub(super) fn cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    pub(super) fn add(&self, prompt_tokens: u32, output_tokens: u32, cpu_nanos: u64) {
        self.0.prompt_tokens.fetch_add(prompt_tokens, Ordering::AcqRel);
        self.0.output_tokens.fetch_add(output_tokens, Ordering::AcqRel);
        self.0.cpu_nanos.fetch_add(cpu_nanos, Ordering::AcqRel);
    }

    pub(super) fn add_cached(&self, prompt_tokens: u32) {
        self.0.cached_prompt_tokens.fetch_add(prompt_tokens, Ordering::AcqRel);
    }

    pub(super) fn settle(&self) {
        self.0.settled.store(true, Ordering::Release);
    }
}
