//! The models of this process: where their files are, which are loaded, and how much memory they may take together.
//!
//! A request borrows a loaded model and gives it back at its end, so a model can be swapped, pushed out or unloaded while it
//! is answering: newcomers see the change at once, those under way finish where they began, and the memory comes back after
//! the last of them. Loads take turns, because two at once could each find the room that only one of them has. Knows
//! nothing of policies, of requests or of the wire.

mod borrow;
mod load;
mod pull;
mod reserve;

pub use pull::Download;
pub use reserve::Reserved;

use crate::backend::Backend;
use crate::catalog::{Catalog, Place};
use crate::domain::ModelId;
use borrow::{Loaded, OnDemand};
use local_worker::model::hub::{Hub, HubReference, Progress};
use local_worker::{ModelInfo, ModelSource, Worker, WorkerConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// When models are loaded that policies name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadWhen {
    /// At start, and never by a request.
    Start,
    /// By the first request that wants one, which waits for it.
    Demand,
}

/// How models are kept.
#[derive(Clone, Debug)]
pub struct ModelsConfig {
    /// Most bytes of all loaded models together; `None` is no bound. Each counts with its weights as loaded and all that its
    /// keys and values may take.
    pub memory_bytes: Option<u64>,
    /// When models are loaded.
    pub load_when: LoadWhen,
    /// How long a request waits for a model at most.
    pub wait: Duration,
    /// What each worker is started with, but for the context.
    pub worker: WorkerConfig,
}

/// Why a model could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelsError {
    /// The catalog has no local model of this name.
    #[error("no model `{0}` runs in this process; see `sluice models list`")]
    Unknown(ModelId),
    /// Its file is not here.
    #[error("model `{model}` is not here: {why}")]
    NotHere {
        /// The model.
        model: ModelId,
        /// What is missing and how it comes here.
        why: String,
    },
    /// It does not fit beside those that are answering.
    #[error(
        "model `{model}` needs {needed} bytes; {used} of `local.memory_bytes` = {budget} are taken by models that are \
         answering or being loaded"
    )]
    NoRoom {
        /// The model.
        model: ModelId,
        /// Bytes it takes.
        needed: u64,
        /// Bytes taken by those that can't be pushed out.
        used: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// It does not fit even alone.
    #[error(
        "model `{model}` needs {needed} bytes, more than `local.memory_bytes` = {budget}; raise it, or lower `local.cache_bytes`"
    )]
    TooLarge {
        /// The model.
        model: ModelId,
        /// Bytes it takes.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// Its file can't be used.
    #[error("model `{model}` can't be loaded: {why}")]
    Failed {
        /// The model.
        model: ModelId,
        /// What is wrong with it.
        why: String,
    },
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

/// What a model is good for right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// Its file is here.
    Available,
    /// Its file is at the hub.
    Downloadable,
    /// Its file is on its way.
    Downloading(Progress),
    /// It is being loaded.
    Loading,
    /// It answers.
    Loaded,
    /// It could not be loaded, and why; or its file is missing.
    Failed(String),
}

impl ModelState {
    /// Its name on the wire and in tables.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Downloadable => "downloadable",
            Self::Downloading(_) => "downloading",
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Failed(_) => "failed",
        }
    }
}

/// Where a model's file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The binary.
    Bundled,
    /// A file or folder.
    Path(PathBuf),
    /// A hub.
    Hub(HubReference),
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundled => formatter.write_str("bundled"),
            Self::Path(path) => write!(formatter, "{}", path.display()),
            Self::Hub(reference) => reference.fmt(formatter),
        }
    }
}

/// What is known of a model.
#[derive(Clone, Debug)]
pub struct ModelReport {
    /// Its name in the catalog.
    pub id: ModelId,
    /// Where its file comes from.
    pub source: Source,
    /// Its file or folder, if it is here.
    pub path: Option<PathBuf>,
    /// Commit of a model from a hub.
    pub commit: Option<String>,
    /// The licence, where the hub names one.
    pub license: Option<String>,
    /// What it is good for.
    pub state: ModelState,
    /// Bytes it counts with while loaded; else 0.
    pub memory_bytes: u64,
    /// Requests that it is answering.
    pub running: usize,
    /// What the loaded file is.
    pub info: Option<ModelInfo>,
}

/// What is being done with a slot.
#[derive(Debug)]
enum Phase {
    Idle,
    Loading,
    Failed { why: String, at: Instant },
}

/// One model of the catalog.
#[derive(Debug)]
struct Slot {
    source: Source,
    /// Tokens that the catalog allows.
    context: usize,
    /// Whether a policy names it.
    wanted: bool,
    phase: Phase,
    loaded: Option<Arc<Loaded>>,
    download: Option<watch::Receiver<Download>>,
}

/// All models of this process.
pub struct Models {
    config: ModelsConfig,
    hub: Hub,
    slots: Mutex<BTreeMap<ModelId, Slot>>,
    /// Bytes of loaded models, of those still finishing, and of one being loaded.
    memory: watch::Sender<u64>,
    /// Bytes among them of what is no model; see [`Models::reserve`].
    reserved: Arc<AtomicU64>,
    turn: tokio::sync::Mutex<()>,
    uses: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Models {
    /// No models yet; `tasks` owns loads and downloads, `stop` ends downloads.
    pub fn new(config: ModelsConfig, hub: Hub, tasks: TaskTracker, stop: CancellationToken) -> Arc<Self> {
        let (memory, _) = watch::channel(0);
        let (slots, turn, uses) = (Mutex::default(), tokio::sync::Mutex::default(), AtomicU64::new(0));
        let reserved = Arc::default();
        Arc::new(Self { config, hub, slots, memory, reserved, turn, uses, tasks, stop })
    }

    /// Takes over the local models of a catalog; `used` are those that policies name. Returns those whose file or context is
    /// another than the one loaded: [`Models::load`] swaps them. Models that are gone are let go.
    pub fn apply(&self, catalog: &Catalog, used: &BTreeSet<ModelId>) -> Vec<ModelId> {
        let mut slots = self.slots();
        slots.retain(|id, _| catalog.get(id).is_some_and(|model| source_of(&model.place).is_some()));
        let mut changed = Vec::new();
        for model in catalog.models() {
            let Some(source) = source_of(&model.place) else { continue };
            let (context, wanted) = (usize::try_from(model.context).unwrap_or(usize::MAX), used.contains(&model.id));
            let fresh = Slot { source, context, wanted, phase: Phase::Idle, loaded: None, download: None };
            match slots.get_mut(&model.id) {
                None => drop(slots.insert(model.id.clone(), fresh)),
                Some(slot) => {
                    slot.wanted = wanted;
                    if (&slot.source, slot.context) != (&fresh.source, context) {
                        (slot.source, slot.context, slot.phase, slot.download) =
                            (fresh.source, context, Phase::Idle, None);
                        slot.loaded.iter().for_each(|_| changed.push(model.id.clone()));
                    }
                }
            }
        }
        changed
    }

    /// The models that policies name and that are not loaded.
    pub fn wanting(&self) -> Vec<ModelId> {
        let slots = self.slots();
        let wanting = slots.iter().filter(|(_, slot)| slot.wanted && slot.loaded.is_none());
        wanting.map(|(id, _)| id.clone()).collect()
    }

    /// When models are loaded.
    pub fn load_when(&self) -> LoadWhen {
        self.config.load_when
    }

    /// The backend of a local model: whatever is loaded under its name when a call comes.
    pub fn backend(self: &Arc<Self>, id: &ModelId) -> Option<Arc<dyn Backend>> {
        let known = self.slots().contains_key(id);
        known.then(|| Arc::new(OnDemand::new(id.clone(), Arc::clone(self))) as Arc<dyn Backend>)
    }

    /// The loaded models. What is returned keeps none of them from being pushed out.
    pub fn loaded(&self) -> Vec<(ModelId, Worker)> {
        let slots = self.slots();
        let loaded = slots.iter().filter_map(|(id, slot)| Some((id.clone(), slot.loaded.as_ref()?.worker().clone())));
        loaded.collect()
    }

    /// What is known of all models, by name.
    pub fn reports(&self) -> Vec<ModelReport> {
        let ids: Vec<ModelId> = self.slots().keys().cloned().collect();
        ids.iter().filter_map(|id| self.report(id).ok()).collect()
    }

    /// What is known of one model.
    ///
    /// # Errors
    /// [`ModelsError::Unknown`].
    pub fn report(&self, id: &ModelId) -> Result<ModelReport, ModelsError> {
        let slots = self.slots();
        let slot = slots.get(id).ok_or_else(|| ModelsError::Unknown(id.clone()))?;
        let source = slot.source.clone();
        let progress = slot.download.as_ref().and_then(|download| match &*download.borrow() {
            Download::Running(progress) => Some(progress.clone()),
            Download::Done(_) | Download::Failed { .. } => None,
        });
        let busy = match &slot.phase {
            Phase::Idle => None,
            Phase::Loading => Some(ModelState::Loading),
            Phase::Failed { why, .. } => Some(ModelState::Failed(why.clone())),
        };
        let loaded = slot.loaded.as_ref().map(|loaded| {
            // One holder is the slot.
            (loaded.bytes(), Arc::strong_count(loaded) - 1, loaded.worker().info())
        });
        drop(slots);
        // Looks at the disk, so not while others wait for the lock.
        let here = self.find(id, &source);
        let state = match (&loaded, progress, busy, &here) {
            (_, Some(progress), _, _) => ModelState::Downloading(progress),
            (Some(_), _, _, _) => ModelState::Loaded,
            (None, None, Some(busy), _) => busy,
            (None, None, None, Ok(_)) => ModelState::Available,
            (None, None, None, Err(_)) if matches!(source, Source::Hub(_)) => ModelState::Downloadable,
            (None, None, None, Err(error)) => ModelState::Failed(error.to_string()),
        };
        let found = here.unwrap_or(Found { source: ModelSource::Bundled, commit: None, license: None });
        let path = match found.source {
            ModelSource::Path(path) => Some(path),
            ModelSource::Bundled => None,
        };
        let (memory_bytes, running, info) = match loaded {
            Some((bytes, running, info)) => (bytes, running, Some(info)),
            None => (0, 0, None),
        };
        let (id, commit, license) = (id.clone(), found.commit, found.license);
        Ok(ModelReport { id, source, path, commit, license, state, memory_bytes, running, info })
    }

    /// Bytes that count at the moment, and the most that may.
    pub fn memory(&self) -> (u64, Option<u64>) {
        (*self.memory.borrow(), self.config.memory_bytes)
    }

    /// Lets all models go and waits, at most `grace` for each, until their threads have ended. Blocks. Returns whether they did.
    pub fn shutdown(&self, grace: Duration) -> bool {
        let loaded: Vec<Worker> = self.loaded().into_iter().map(|(_, worker)| worker).collect();
        let ended = loaded.iter().all(|worker| worker.shutdown(grace));
        self.slots().clear();
        ended
    }

    /// Where a model's file is.
    fn find(&self, id: &ModelId, source: &Source) -> Result<Found, ModelsError> {
        let not_here = |why: String| ModelsError::NotHere { model: id.clone(), why };
        match source {
            Source::Bundled => Ok(Found { source: ModelSource::Bundled, commit: None, license: None }),
            Source::Path(path) if path.exists() => {
                Ok(Found { source: ModelSource::Path(path.clone()), commit: None, license: None })
            }
            Source::Path(path) => Err(not_here(format!("there is no {}", path.display()))),
            Source::Hub(reference) => match self.hub.cached(reference) {
                Some(pulled) => Ok(Found {
                    source: ModelSource::Path(pulled.path),
                    commit: Some(pulled.commit),
                    license: pulled.license,
                }),
                None => Err(not_here(format!("pull it with `sluice models pull {id}`"))),
            },
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<ModelId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model's file that is here.
struct Found {
    source: ModelSource,
    commit: Option<String>,
    license: Option<String>,
}

fn source_of(place: &Place) -> Option<Source> {
    match place {
        Place::Bundled => Some(Source::Bundled),
        Place::File(path) => Some(Source::Path(path.clone())),
        Place::Hub(reference) => Some(Source::Hub(reference.clone())),
        Place::Remote { .. } => None,
    }
}

#[cfg(test)]
mod tests;
