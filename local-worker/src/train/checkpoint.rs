//! Checkpoints of a run: weights and moments as safetensors, counters as JSON beside them.
//!
//! Each file appears by rename and the counters last, so a killed run always leaves a whole checkpoint to go on from.

use super::TrainError;
use super::network::{Network, Shape};
use super::optimizer::AdamW;
use candle_core::{Device, Tensor, Var};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Counters of a run.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Counters {
    /// Steps done.
    pub step: usize,
    /// Tokens seen, padding included.
    pub tokens: u64,
    /// Seconds of training, over all starts.
    pub seconds: f64,
}

/// Everything a run goes on from.
pub(super) struct Checkpoint {
    pub network: Network,
    pub optimizer: AdamW,
    pub counters: Counters,
}

impl Checkpoint {
    /// The start of a run.
    pub fn fresh(shape: &Shape) -> Result<Self, TrainError> {
        let network = Network::random(shape.clone(), &Device::Cpu)?;
        Ok(Self { network, optimizer: AdamW::default(), counters: Counters::default() })
    }

    /// Writes a checkpoint into `folder`; the one before the last is deleted.
    pub fn save(&self, folder: &Path) -> Result<(), TrainError> {
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for (name, variable) in &self.network.variables {
            tensors.insert(name.clone(), variable.as_tensor().clone());
        }
        for (prefix, moments) in [("first.", &self.optimizer.first), ("second.", &self.optimizer.second)] {
            tensors.extend(moments.iter().map(|(name, moment)| (format!("{prefix}{name}"), moment.clone())));
        }
        let former = counters(folder)?;
        let temporary = folder.join("checkpoint.partial");
        candle_core::safetensors::save(&tensors, &temporary)?;
        rename(&temporary, &weights_path(folder, self.counters.step))?;
        let temporary = folder.join("state.partial");
        let text = serde_json::to_string(&self.counters).map_err(candle_core::Error::wrap)?;
        std::fs::write(&temporary, text).map_err(|error| TrainError::file(&temporary, error))?;
        rename(&temporary, &counters_path(folder))?;
        if let Some(former) = former.filter(|former| former.step != self.counters.step) {
            // A checkpoint that stays costs disk space only.
            let _ = std::fs::remove_file(weights_path(folder, former.step));
        }
        Ok(())
    }

    /// The latest checkpoint of `folder`, if there is one; one of another shape is an error.
    pub fn load(folder: &Path, shape: &Shape) -> Result<Option<Self>, TrainError> {
        let Some(counters) = counters(folder)? else { return Ok(None) };
        let path = weights_path(folder, counters.step);
        let (mut variables, mut optimizer) = (BTreeMap::new(), AdamW::default());
        for (name, tensor) in candle_core::safetensors::load(&path, &Device::Cpu)? {
            if let Some(name) = name.strip_prefix("first.") {
                optimizer.first.insert(name.to_owned(), tensor);
            } else if let Some(name) = name.strip_prefix("second.") {
                optimizer.second.insert(name.to_owned(), tensor);
            } else {
                variables.insert(name, Var::from_tensor(&tensor)?);
            }
        }
        for (name, (rows, columns)) in shape.matrices() {
            let found = variables.get(&name).map(|variable| variable.dims().to_vec());
            if found.as_deref() != Some(&[rows, columns]) {
                return Err(TrainError::OtherShape { path, name });
            }
        }
        Ok(Some(Self { network: Network::of(shape.clone(), variables, &Device::Cpu)?, optimizer, counters }))
    }
}

/// The latest weights of a run folder.
pub fn latest(folder: &Path, shape: &Shape) -> Result<Network, TrainError> {
    match Checkpoint::load(folder, shape)? {
        Some(checkpoint) => Ok(checkpoint.network),
        None => Err(TrainError::NoCheckpoint(folder.to_owned())),
    }
}

fn counters(folder: &Path) -> Result<Option<Counters>, TrainError> {
    let path = counters_path(folder);
    match std::fs::read_to_string(&path) {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(counters) => Ok(Some(counters)),
            Err(error) => Err(TrainError::file(&path, error.into())),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TrainError::file(&path, error)),
    }
}

fn counters_path(folder: &Path) -> PathBuf {
    folder.join("state.json")
}

fn weights_path(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!("checkpoint-{step}.safetensors"))
}

fn rename(from: &Path, to: &Path) -> Result<(), TrainError> {
    std::fs::rename(from, to).map_err(|error| TrainError::file(to, error))
}
