//! Loading, swapping, pushing out, unloading.

use super::borrow::Loaded;
use super::{Found, LoadWhen, Models, ModelsError, Phase};
use crate::domain::ModelId;
use local_worker::{ModelSource, Worker, WorkerConfig};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long requests don't try again to load what could not be loaded.
const LEAVE_FAILED: Duration = Duration::from_secs(30);
/// How long the thread of a model that turned out too large may take to end.
const JOIN_WITHIN: Duration = Duration::from_secs(10);

/// Why a request has no model, after waiting or because waiting is no use.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Waited {
    #[error("{0}")]
    Refused(#[from] ModelsError),
    #[error("the model is not loaded; an administrator loads it with `sluice models load {0}`")]
    NotLoaded(ModelId),
    #[error("the model is being downloaded")]
    Downloading,
    #[error("the model is still being loaded")]
    StillLoading,
    #[error("the deadline passed while the model was being loaded")]
    Deadline,
}

impl Waited {
    /// Whether asking again soon may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Downloading | Self::StillLoading | Self::Refused(ModelsError::NoRoom { .. }))
    }
}

/// A share of the budget for a model that is not there yet; given back when dropped.
pub(super) struct Share<'models> {
    models: &'models Models,
    bytes: u64,
}

impl Share<'_> {
    /// Leaves the bytes counted: from here on they are the model's.
    pub(super) fn keep(mut self) {
        self.bytes = 0;
    }

    /// Another size; whether that is within the budget is not asked.
    fn resize(&mut self, bytes: u64) {
        self.models.memory.send_modify(|used| *used = used.saturating_sub(self.bytes).saturating_add(bytes));
        self.bytes = bytes;
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.models.memory.send_modify(|used| *used = used.saturating_sub(self.bytes));
    }
}

impl Models {
    /// Loads a model, or swaps it for what the catalog says now. Idle models are pushed out for it, the longest unused
    /// first. Goes on to the end even if the future is dropped.
    ///
    /// # Errors
    /// See [`ModelsError`]. What was loaded under the name before stays.
    pub async fn load(self: &Arc<Self>, id: &ModelId) -> Result<(), ModelsError> {
        let (models, name) = (Arc::clone(self), id.clone());
        let task = self.tasks.spawn(async move {
            let _turn = models.turn.lock().await;
            if models.stop.is_cancelled() {
                return Err(ModelsError::Stopping);
            }
            models.load_now(&name).await
        });
        task.await.unwrap_or_else(|_| Err(ModelsError::Failed { model: id.clone(), why: "loading panicked".into() }))
    }

    /// Takes a model from its name: requests under way finish, then its memory is returned. Whether it was loaded.
    ///
    /// # Errors
    /// [`ModelsError::Unknown`].
    pub async fn unload(&self, id: &ModelId) -> Result<bool, ModelsError> {
        // After a load that is under way, not in the middle of it.
        let _turn = self.turn.lock().await;
        let mut slots = self.slots();
        let slot = slots.get_mut(id).ok_or_else(|| ModelsError::Unknown(id.clone()))?;
        slot.phase = Phase::Idle;
        let loaded = slot.loaded.take();
        drop(slots);
        Ok(loaded.is_some())
    }

    /// Whether a request for a model that is not loaded should come and wait.
    pub(super) fn could_wait(&self, id: &ModelId) -> Result<(), Waited> {
        let slots = self.slots();
        let Some(slot) = slots.get(id) else { return Err(ModelsError::Unknown(id.clone()).into()) };
        match &slot.phase {
            Phase::Loading => return Ok(()),
            Phase::Failed { why, at } if at.elapsed() < LEAVE_FAILED || self.config.load_when == LoadWhen::Start => {
                return Err(ModelsError::Failed { model: id.clone(), why: why.clone() }.into());
            }
            _ => {}
        }
        if slot.is_downloading() {
            return Err(Waited::Downloading);
        }
        if self.config.load_when == LoadWhen::Start {
            return Err(Waited::NotLoaded(id.clone()));
        }
        let source = slot.source.clone();
        drop(slots);
        self.find(id, &source)?;
        Ok(())
    }

    /// A model for a request that found none: waits until it is loaded, no longer than settings and deadline allow.
    pub(super) async fn demand(
        self: &Arc<Self>,
        id: &ModelId,
        deadline: Option<Instant>,
    ) -> Result<Arc<Loaded>, Waited> {
        self.could_wait(id)?;
        let patience = Instant::now() + self.config.wait;
        let (until, late) = match deadline {
            Some(deadline) if deadline < patience => (deadline, Waited::Deadline),
            _ => (patience, Waited::StillLoading),
        };
        let loaded = async {
            // Another load may push it out before we have it.
            for _ in 0..3 {
                self.load(id).await?;
                if let Some(loaded) = self.borrow(id) {
                    return Ok(loaded);
                }
            }
            Err(Waited::StillLoading)
        };
        tokio::time::timeout_at(until.into(), loaded).await.unwrap_or(Err(late))
    }

    async fn load_now(&self, id: &ModelId) -> Result<(), ModelsError> {
        loop {
            let unknown = || ModelsError::Unknown(id.clone());
            let wished = self.slots().get(id).map(|slot| (slot.source.clone(), slot.context)).ok_or_else(unknown)?;
            let (source, context) = &wished;
            let found = self.find(id, source)?;
            let before = {
                let mut slots = self.slots();
                let slot = slots.get_mut(id).ok_or_else(unknown)?;
                if slot.loaded.as_ref().is_some_and(|loaded| loaded.is(&found.source, *context)) {
                    slot.phase = Phase::Idle;
                    return Ok(());
                }
                slot.phase = Phase::Loading;
                slot.loaded.as_ref().map(Arc::downgrade)
            };
            let outcome = self.start(id, &found, *context).await;
            let mut slots = self.slots();
            // It may be gone from the catalog by now.
            let slot = slots.get_mut(id).ok_or_else(unknown)?;
            match outcome {
                Ok(loaded) => {
                    let (bytes, info) = (loaded.bytes(), loaded.worker().info());
                    let (seconds, packing) = (info.load_seconds, info.pack_seconds);
                    slot.phase = Phase::Idle;
                    let gone = slot.loaded.replace(Arc::new(loaded));
                    let asked_for = (&slot.source, slot.context) == (source, *context);
                    drop(slots);
                    let swapped = before.is_some();
                    tracing::info!(model = %id, bytes, seconds, packing, swapped, "a model is loaded");
                    drop(gone);
                    // The catalog may have changed meanwhile.
                    if asked_for {
                        return Ok(());
                    }
                }
                Err(error) => {
                    slot.phase = match &error {
                        ModelsError::Failed { why, .. } => Phase::Failed { why: why.clone(), at: Instant::now() },
                        _ => Phase::Idle,
                    };
                    // Let go for the new one, but still answering: better than nothing.
                    if slot.loaded.is_none() {
                        slot.loaded = before.and_then(|before| before.upgrade());
                    }
                    drop(slots);
                    tracing::warn!(model = %id, %error, "a model was not loaded");
                    return Err(error);
                }
            }
        }
    }

    /// Makes room and starts a worker.
    async fn start(&self, id: &ModelId, found: &Found, context: usize) -> Result<Loaded, ModelsError> {
        let config = WorkerConfig { context_limit: Some(context), ..self.config.worker.clone() };
        let keys = config.cache_bytes as u64;
        let file = match &found.source {
            ModelSource::Path(path) => bytes_of(path),
            ModelSource::Bundled => local_worker::model::SLUICE_NANO.map_or(0, |bytes| bytes.len() as u64),
        };
        let mut share = self.share(id, file.saturating_add(keys), 0).await?;
        let (name, source) = (id.to_string(), found.source.clone());
        let started = tokio::task::spawn_blocking(move || Worker::start(&name, source, config)).await;
        let failed = |why: String| ModelsError::Failed { model: id.clone(), why };
        let worker = started.map_err(|_| failed("loading panicked".to_owned()))?;
        let worker = worker.map_err(|error| failed(error.to_string()))?;
        // Packed weights may take more than the file does, or less.
        let bytes = worker.info().resident_bytes.saturating_add(keys);
        if bytes <= share.bytes {
            share.resize(bytes);
        } else {
            match self.share(id, bytes - share.bytes, share.bytes).await {
                Ok(more) => {
                    more.keep();
                    share.bytes = bytes;
                }
                Err(error) => {
                    // Its thread is joined, which blocks.
                    let _ended = tokio::task::spawn_blocking(move || worker.shutdown(JOIN_WITHIN)).await;
                    return Err(error);
                }
            }
        }
        share.keep();
        let memory = self.memory.clone();
        Ok(Loaded::new((id.clone(), worker), (found.source.clone(), context), bytes, memory, self.tasks.clone()))
    }

    /// Takes a share of the budget beside the `own` bytes that this load has, pushing out idle models where that helps.
    pub(super) async fn share(&self, id: &ModelId, bytes: u64, own: u64) -> Result<Share<'_>, ModelsError> {
        let Some(budget) = self.config.memory_bytes else {
            self.memory.send_modify(|used| *used += bytes);
            return Ok(Share { models: self, bytes });
        };
        let needed = bytes.saturating_add(own);
        if needed > budget {
            return Err(ModelsError::TooLarge { model: id.clone(), needed, budget });
        }
        let end = Instant::now() + self.config.wait;
        loop {
            let mut taken = false;
            self.memory.send_if_modified(|used| {
                taken = used.saturating_add(bytes) <= budget;
                *used += if taken { bytes } else { 0 };
                taken
            });
            if taken {
                return Ok(Share { models: self, bytes });
            }
            let mut memory = self.memory.subscribe();
            let before = *memory.borrow_and_update();
            let used = before - own.min(before);
            let refused = || ModelsError::NoRoom { model: id.clone(), needed, used, budget };
            if !self.push_out(id, before.saturating_add(bytes).saturating_sub(budget), own) {
                return Err(refused());
            }
            // Threads end in their own time, and requests of a model that was let go finish first.
            let freed = memory.wait_for(|used| *used < before);
            if tokio::time::timeout_at(end.into(), freed).await.is_err() {
                return Err(refused());
            }
        }
    }

    /// Lets models go until `missing` bytes will come back: first the one that is being swapped, then idle ones, the longest
    /// unused first. Lets none go and returns false if that is out of reach.
    fn push_out(&self, id: &ModelId, missing: u64, own: u64) -> bool {
        let mut slots = self.slots();
        let held = |slot: &super::Slot| slot.loaded.as_ref().map_or(0, |loaded| loaded.bytes());
        // What is counted and in no slot is on its way out, but for the share of the load itself.
        let counted = *self.memory.borrow();
        let stays = self.reserved.load(Ordering::Relaxed).saturating_add(own);
        let leaving = counted.saturating_sub(stays).saturating_sub(slots.values().map(held).sum());
        let mut may_go: Vec<(bool, u64, ModelId, u64)> = Vec::new();
        for (name, slot) in slots.iter() {
            // Whoever uses the model that is swapped finishes with it, and newcomers wait for the new one.
            if let Some(loaded) = &slot.loaded
                && (name == id || Arc::strong_count(loaded) == 1)
            {
                may_go.push((name != id, loaded.last_use(), name.clone(), loaded.bytes()));
            }
        }
        may_go.sort();
        let within_reach = may_go.iter().map(|(_, _, _, bytes)| bytes).sum::<u64>().saturating_add(leaving);
        if within_reach < missing {
            return false;
        }
        let (mut coming, mut gone) = (leaving, Vec::new());
        for (_, _, name, bytes) in may_go {
            if coming >= missing {
                break;
            }
            coming += bytes;
            gone.extend(slots.get_mut(&name).and_then(|slot| slot.loaded.take()));
            tracing::info!(model = %name, bytes, for_model = %id, "a model is pushed out");
        }
        drop(slots);
        drop(gone);
        true
    }
}

/// Size of a file, or of the files of a folder.
fn bytes_of(path: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |known| known.len());
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| size(&entry.path())).sum(),
        Err(_) => size(path),
    }
}
