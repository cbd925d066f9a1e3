//! A model directory as hubs have them: `config.json`, and weights in `model.safetensors` or in several files that
//! `model.safetensors.index.json` names.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::LoadError;
use super::config::Config;
use super::format::Format;
use super::mapped::Mapped;
use super::safetensors::{self, Place};
use super::tensors::Tensors;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const VOCABULARY: &str = "tokenizer.json";
const INDEX: &str = "model.safetensors.index.json";

/// A directory's files, opened.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    config: Config,
    config_text: Vec<u8>,
    shards: Vec<Shard>,
    /// Which shard holds a tensor, and where.
    places: HashMap<String, (usize, Place)>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    bytes: Mapped,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Directory {
    /// Opens a directory's files and reads their heads.
    ///
    /// # Errors
    /// A file is missing or malformed, or an index names what is not there.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let config_text = read(&path.join(CONFIG))?;
        let config = Config::parse(&name(&path.join(CONFIG)), &config_text)?;
        let mut directory =
            Self { path: path.to_owned(), config, config_text, shards: Vec::new(), places: HashMap::new() };
        let index = path.join(INDEX);
        if index.exists() && !path.join(WEIGHTS).exists() {
            directory.open_shards(&index)?;
        } else {
            directory.open_shard(WEIGHTS)?;
        }
        Ok(directory)
    }

    fn open_shards(&mut self, index: &Path) -> Result<(), LoadError> {
        let malformed = |problem: String| LoadError::Malformed { file: name(index), problem };
        let Index { weight_map } = serde_json::from_slice(&read(index)?)
            .map_err(|error| malformed(format!("is no index of tensors: {error}")))?;
        let files: BTreeSet<&String> = weight_map.values().collect();
        for file in files {
            // A name, not a way out of the directory.
            if Path::new(file).file_name().is_none_or(|own| own != file.as_str()) {
                return Err(malformed(format!("weight_map names \"{file}\", which is no file of this directory")));
            }
            self.open_shard(file)?;
        }
        let missing = |(tensor, file): &(&String, &String)| {
            self.places.get(*tensor).is_none_or(|(shard, _)| !self.shards[*shard].name.ends_with(file.as_str()))
        };
        match weight_map.iter().find(missing) {
            None => Ok(()),
            Some((tensor, file)) => Err(malformed(format!("tensor {tensor} is not in {file}, where it should be"))),
        }
    }

    fn open_shard(&mut self, file: &str) -> Result<(), LoadError> {
        let path = self.path.join(file);
        let bytes = Mapped::open(&path).map_err(|error| LoadError::Io { file: name(&path), error })?;
        let number = self.shards.len();
        for (tensor, place) in safetensors::parse(&name(&path), &bytes)? {
            if self.places.contains_key(&tensor) {
                let problem = format!("tensor {tensor} is in another file of the directory too");
                return Err(LoadError::Malformed { file: name(&path), problem });
            }
            self.places.insert(tensor, (number, place));
        }
        self.shards.push(Shard { name: name(&path), bytes });
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of configuration and weights in bytes.
    pub fn bytes(&self) -> u64 {
        (self.config_text.len() + self.shards.iter().map(|shard| shard.bytes.len()).sum::<usize>()) as u64
    }

    /// Hex blake3 hash of configuration, weights in the order of their names, and vocabulary: another one makes another model
    /// of the same weights.
    pub fn blake3(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.config_text);
        for shard in &self.shards {
            hasher.update(&shard.bytes);
        }
        hasher.update(&std::fs::read(self.path.join(VOCABULARY)).unwrap_or_default());
        hasher.finalize().to_hex().to_string()
    }

    /// Element type and number of values of each tensor.
    pub(super) fn weights(&self) -> impl Iterator<Item = (String, u64)> {
        let count =
            |place: &Place| place.shape.iter().fold(1, |product: u64, size| product.saturating_mul(*size as u64));
        self.places.values().map(move |(_, place)| (place.kind.clone(), count(place)))
    }

    /// A tensor's sizes, rows first.
    pub(crate) fn shape_of(&self, tensor: &str) -> Option<Vec<usize>> {
        self.places.get(tensor).map(|(_, place)| place.shape.clone())
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    std::fs::read(path).map_err(|error| LoadError::Io { file: name(path), error })
}

impl Tensors for Directory {
    fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    fn bytes(&self, name: &str, shape: &[usize]) -> Result<(&[u8], Format), LoadError> {
        let missing = || self.fault(name, format!("tensor {name} is missing"));
        let (shard, place) = self.places.get(name).ok_or_else(missing)?;
        if place.shape != shape {
            let problem = format!("tensor {name} has the shape {:?}, {CONFIG} asks for {shape:?}", place.shape);
            return Err(self.fault(name, problem));
        }
        let Some(format) = safetensors::format(&place.kind) else {
            let problem = format!("tensor {name} has the element type {}; F32, F16 and BF16 are supported", place.kind);
            return Err(self.refusal(name, problem));
        };
        let rows: u64 = shape.iter().map(|size| *size as u64).product();
        let (from, to) = place.bytes;
        if format.bytes(rows, 1) != Some((to - from) as u64) {
            let problem = format!("tensor {name} of {shape:?} {} lies in {} bytes", place.kind, to - from);
            return Err(self.fault(name, problem));
        }
        Ok((&self.shards[*shard].bytes[from..to], format))
    }

    fn size(&self) -> u64 {
        self.bytes()
    }

    fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    fn fault(&self, name: &str, problem: String) -> LoadError {
        LoadError::Malformed { file: self.file_of(name), problem }
    }

    fn refusal(&self, name: &str, problem: String) -> LoadError {
        LoadError::Unsupported { file: self.file_of(name), problem }
    }
}

impl Directory {
    /// The file a tensor is in, or should be.
    fn file_of(&self, tensor: &str) -> String {
        match (self.places.get(tensor), self.shards.as_slice()) {
            (Some((shard, _)), shards) => shards[*shard].name.clone(),
            (None, [only]) => only.name.clone(),
            (None, _) => name(&self.path.join(INDEX)),
        }
    }
}
