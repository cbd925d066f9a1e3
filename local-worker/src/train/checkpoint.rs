//! Checkpoints of a run: weights and moments as safetensors, counters as JSON beside them.
//!
//! Each file appears by rename and the counters last, so a killed run always leaves a whole checkpoint to go on from.

use super::network::{Network, Shape};
use super::optimizer::Moments;
use super::{TrainError, write_whole};
use candle_core::Device;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Counters of a run.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counters {
    /// Steps done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Epochs finished.
    pub epoch: u64,
    /// Records of this epoch that were seen.
    pub seen: usize,
    /// Seconds of training, over all starts.
    pub seconds: f64,
    /// Losses and weights since the last line of the log.
    pub window: (f64, f64),
}

/// Everything a run goes on from.
pub(super) struct Checkpoint {
    pub network: Network,
    pub moments: Moments,
    pub counters: Counters,
}

impl Checkpoint {
    /// Writes a checkpoint into `folder`; the one before is deleted.
    pub fn save(&self, folder: &Path) -> Result<(), TrainError> {
        let former = counters(folder)?;
        let path = weights_path(folder, self.counters.step);
        write_whole(&path, |file| self.put(file))?;
        let text = serde_json::to_string(&self.counters).unwrap_or_default();
        write_whole(&counters_path(folder), |file| file.write_all(text.as_bytes()))?;
        if let Some(former) = former.filter(|former| former.step != self.counters.step) {
            // A checkpoint that stays costs disk space only.
            let _ = std::fs::remove_file(weights_path(folder, former.step));
        }
        Ok(())
    }

    /// A safetensors file: the length of a header, the header as JSON, all numbers in its order.
    fn put(&self, file: &mut dyn Write) -> std::io::Result<()> {
        let all = [("", &self.network.weights), ("first.", &self.moments.first), ("second.", &self.moments.second)];
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (prefix, values) in all {
            for part in self.network.parts.iter().filter(|part| values.len() >= part.range().end) {
                let start = end;
                end += part.range().len() * size_of::<f32>();
                let entry = serde_json::json!({
                    "dtype": "F32", "shape": [part.rows, part.columns], "data_offsets": [start, end],
                });
                header.insert(format!("{prefix}{}", part.name), entry);
            }
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, values) in all {
            for value in values {
                file.write_all(&value.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// The latest checkpoint of `folder`, if there is one; one of another shape is an error.
    pub fn load(folder: &Path, shape: &Shape) -> Result<Option<Self>, TrainError> {
        let Some(counters) = counters(folder)? else { return Ok(None) };
        let path = weights_path(folder, counters.step);
        let bad = |problem: String| TrainError::BadCheckpoint { path: path.clone(), problem };
        let bytes = std::fs::read(&path).map_err(|error| TrainError::file(&path, error))?;
        let file = candle_core::safetensors::BufferedSafetensors::new(bytes).map_err(|error| bad(error.to_string()))?;
        let mut network = Network::zero(shape.clone());
        let count = network.weights.len();
        let mut moments = Moments { first: vec![0.0; count], second: vec![0.0; count] };
        for part in &network.parts {
            let all = [("", &mut network.weights), ("first.", &mut moments.first), ("second.", &mut moments.second)];
            for (prefix, into) in all {
                let name = format!("{prefix}{}", part.name);
                let tensor = file.load(&name, &Device::Cpu).ok();
                let values = tensor.filter(|tensor| tensor.dims() == [part.rows, part.columns]);
                let values = values.and_then(|tensor| tensor.flatten_all().ok()?.to_vec1::<f32>().ok());
                let values =
                    values.ok_or_else(|| bad(format!("{name} is missing or of another shape than the recipe says")))?;
                into[part.range()].copy_from_slice(&values);
            }
        }
        Ok(Some(Self { network, moments, counters }))
    }
}

fn counters(folder: &Path) -> Result<Option<Counters>, TrainError> {
    let path = counters_path(folder);
    match std::fs::read_to_string(&path) {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(counters) => Ok(Some(counters)),
            Err(error) => Err(TrainError::BadCheckpoint { path, problem: error.to_string() }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TrainError::file(&path, error)),
    }
}

fn counters_path(folder: &Path) -> PathBuf {
    folder.join("state.json")
}

fn weights_path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("checkpoint-{step}.safetensors"))
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::tiny;
    use super::*;

    fn checkpoint(step: u64) -> Checkpoint {
        let network = Network::random(tiny(), step);
        let moments = Moments { first: network.weights.clone(), second: vec![0.5; network.weights.len()] };
        Checkpoint { network, moments, counters: Counters { step, tokens: 7, ..Counters::default() } }
    }

    #[test]
    fn the_latest_checkpoint_replaces_the_one_before_and_must_fit_the_shape() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Checkpoint::load(folder.path(), &tiny()).unwrap().is_none());
        for step in [5, 9] {
            checkpoint(step).save(folder.path()).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let read = Checkpoint::load(folder.path(), &tiny()).unwrap().unwrap();
        let saved = checkpoint(9);
        assert_eq!(
            (read.network.weights, read.moments, read.counters),
            (saved.network.weights, saved.moments, saved.counters)
        );
        let error = Checkpoint::load(folder.path(), &Shape { vocabulary: 64, ..tiny() }).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("token_embd.weight") && text.contains("another shape"), "{text}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_leaves_the_checkpoint_before() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(5).save(folder.path()).unwrap();
        // Writing there fails as on a full disk.
        let next = folder.path().join("checkpoint-9.safetensors.partial");
        std::os::unix::fs::symlink("/dev/full", &next).unwrap();
        let error = checkpoint(9).save(folder.path()).unwrap_err().to_string();
        assert!(error.contains("checkpoint-9.safetensors") && error.contains("No space left"), "{error}");
        assert_eq!(Checkpoint::load(folder.path(), &tiny()).unwrap().unwrap().counters.step, 5);
        checkpoint(9).save(folder.path()).unwrap();
        assert_eq!(Checkpoint::load(folder.path(), &tiny()).unwrap().unwrap().counters.step, 9);
    }
}
