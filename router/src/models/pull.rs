//! Downloads: one for each model, whoever asks; all who ask see how far it is.

use super::{Models, ModelsError, Slot, Source};
use crate::domain::ModelId;
use local_worker::model::hub::{HubError, Progress};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// How far a download is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Download {
    /// Under way.
    Running(Progress),
    /// All of it is here.
    Done(PathBuf),
    /// It failed.
    Failed {
        /// Why, and what would help.
        why: String,
        /// Whether another try may succeed with nothing changed.
        passing: bool,
    },
}

impl Slot {
    pub(super) fn is_downloading(&self) -> bool {
        self.download.as_ref().is_some_and(|download| matches!(&*download.borrow(), Download::Running(_)))
    }
}

impl Models {
    /// Fetches what a model's source means now, or joins the download that does. It goes on if the receiver is dropped, and ends
    /// with the gateway.
    ///
    /// # Errors
    /// An unknown model; one that is not at a hub and whose file is missing.
    pub fn pull(self: &Arc<Self>, id: &ModelId) -> Result<watch::Receiver<Download>, ModelsError> {
        let mut slots = self.slots();
        let slot = slots.get_mut(id).ok_or_else(|| ModelsError::Unknown(id.clone()))?;
        let reference = match &slot.source {
            Source::Hub(reference) => reference.clone(),
            Source::Bundled => return Ok(watch::channel(Download::Done(PathBuf::new())).1),
            Source::Path(path) if path.exists() => return Ok(watch::channel(Download::Done(path.clone())).1),
            Source::Path(path) => {
                let why = format!("there is no {}, and the catalog names no hub to pull it from", path.display());
                return Err(ModelsError::NotHere { model: id.clone(), why });
            }
        };
        if slot.is_downloading()
            && let Some(download) = &slot.download
        {
            return Ok(download.clone());
        }
        let (sender, receiver) = watch::channel(Download::Running(Progress::default()));
        slot.download = Some(receiver.clone());
        drop(slots);
        let (models, id) = (Arc::clone(self), id.clone());
        self.tasks.spawn(async move {
            let report = |progress| drop(sender.send_replace(Download::Running(progress)));
            let pull = models.hub.pull(&reference, &report);
            let end = match models.stop.run_until_cancelled(pull).await {
                Some(Ok(pulled)) => Download::Done(pulled.path),
                Some(Err(error)) => {
                    let passing = matches!(error, HubError::Unreachable { .. });
                    Download::Failed { why: error.to_string(), passing }
                }
                None => Download::Failed { why: ModelsError::Stopping.to_string(), passing: true },
            };
            if let Download::Failed { why, .. } = &end {
                tracing::warn!(model = %id, why, "a model was not pulled");
            }
            sender.send_replace(end);
        });
        Ok(receiver)
    }

    /// Fetches a model if it is not here, then loads it.
    ///
    /// # Errors
    /// As [`Models::load`], and downloads that failed.
    pub async fn fetch_and_load(self: &Arc<Self>, id: &ModelId) -> Result<(), ModelsError> {
        let source = self.slots().get(id).map(|slot| slot.source.clone());
        let source = source.ok_or_else(|| ModelsError::Unknown(id.clone()))?;
        if self.find(id, &source).is_err() {
            let mut download = self.pull(id)?;
            let ended = download.wait_for(|download| !matches!(download, Download::Running(_))).await;
            if let Ok(Download::Failed { why, .. }) = ended.as_deref() {
                return Err(ModelsError::NotHere { model: id.clone(), why: why.clone() });
            }
        }
        self.load(id).await
    }
}
