//! What a model's files say of themselves, read without packing a weight: for lists, and before anything is made room for.

use std::collections::HashMap;
use std::path::Path;

use super::format::Format;
use super::{Directory, Gguf, LoadError, LoadOptions, Mapped, SLUICE_NANO, family};
use crate::template::ChatTemplate;
use crate::tokenizer::{Beside, Tokenizer};

/// What a model's files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Family, as the file names it: `llama`, `gemma3`.
    pub architecture: String,
    /// Weights in the file.
    pub parameters: u64,
    /// Element type of most weights, such as `Q8_0`.
    pub quantization: String,
    /// Tokens the model was trained for; 0 if this build can't run it.
    pub context: u64,
    /// Whether it brings a chat template.
    pub has_chat_template: bool,
    /// What it writes when a request is not for it.
    pub decline_text: Option<String>,
    /// The licence, where the file names one.
    pub license: Option<String>,
    /// Size of the file; of a directory, of configuration and weights.
    pub file_bytes: u64,
    /// Hexadecimal blake3 hash of the same.
    pub file_blake3: String,
    /// Why this build can't run it, if it can't.
    pub problem: Option<String>,
}

impl Inspection {
    /// Reads a GGUF file or a directory with safetensors, all of it, for the hash.
    ///
    /// # Errors
    /// It is missing or malformed. A sound file of an unknown family is told by [`Inspection::problem`].
    pub fn of(path: &Path) -> Result<Self, LoadError> {
        if path.is_dir() {
            return Self::of_directory(&Directory::open(path)?);
        }
        let name = path.display().to_string();
        let bytes = Mapped::open(path).map_err(|error| LoadError::Io { file: name.clone(), error })?;
        Self::of_gguf(&name, &bytes)
    }

    /// The model compiled into this crate.
    ///
    /// # Errors
    /// This build has none.
    pub fn of_bundled() -> Result<Self, LoadError> {
        Self::of_gguf("bundled", SLUICE_NANO.ok_or(LoadError::NoBundledModel)?)
    }

    pub(crate) fn of_gguf(name: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        let file = Gguf::parse(name, bytes)?;
        let weights = file.tensors().map(|(_, tensor)| {
            let format = Format::from_id(tensor.type_id);
            let format = format.map_or_else(|| format!("type {}", tensor.type_id), |format| format!("{format:?}"));
            (format, tensor.dimensions.iter().fold(1, |product: u64, size| product.saturating_mul(*size)))
        });
        let (parameters, quantization) = sum(weights);
        let plan = family::of_gguf(&file, &LoadOptions::default());
        let problem = match &plan {
            Ok(plan) => file_words(&file, plan.shape.vocabulary).err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let text = |key: &str| file.text(key).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(Self {
            architecture: text("general.architecture").unwrap_or_default(),
            parameters,
            quantization,
            context: plan.as_ref().map_or(0, |plan| plan.shape.context as u64),
            has_chat_template: file.text("tokenizer.chat_template").is_some(),
            decline_text: text("sluice.decline"),
            license: text("general.license"),
            file_bytes: bytes.len() as u64,
            file_blake3: blake3::hash(bytes).to_hex().to_string(),
            problem,
        })
    }

    fn of_directory(directory: &Directory) -> Result<Self, LoadError> {
        let (parameters, quantization) = sum(directory.weights());
        let plan = family::of_config(directory.config(), &LoadOptions::default());
        let beside = Beside::read(directory.path());
        let has_chat_template = beside.as_ref().is_ok_and(|beside| beside.template().is_some());
        let problem = match (&plan, &beside) {
            (Err(error), _) | (_, Err(error)) => Some(error.to_string()),
            (Ok(plan), Ok(beside)) => {
                folder_words(directory, beside, plan.shape.vocabulary).err().map(|error| error.to_string())
            }
        };
        let configuration = std::fs::read(directory.path().join("config.json")).unwrap_or_default();
        let told: serde_json::Value = serde_json::from_slice(&configuration).unwrap_or_default();
        let architecture = told.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
        Ok(Self {
            architecture: architecture.to_owned(),
            parameters,
            quantization,
            context: plan.as_ref().map_or(0, |plan| plan.shape.context as u64),
            has_chat_template,
            decline_text: None,
            license: None,
            file_bytes: directory.bytes(),
            file_blake3: directory.blake3(),
            problem,
        })
    }
}

/// Reads a file's vocabulary and chat template.
fn file_words(file: &Gguf<'_>, vocabulary: usize) -> Result<(), LoadError> {
    let tokenizer = Tokenizer::load(file, vocabulary)?;
    template_of(&tokenizer, file.text("tokenizer.chat_template"))
        .map_err(|problem| file.malformed(format!("tokenizer.chat_template: {problem}")))
}

/// Reads a directory's.
fn folder_words(directory: &Directory, beside: &Beside, vocabulary: usize) -> Result<(), LoadError> {
    let tokenizer = Tokenizer::of_folder(directory.path(), directory.config(), beside, vocabulary)?;
    let Some((template, file)) = beside.template() else { return Ok(()) };
    let malformed = |problem| LoadError::Malformed { file: file.to_owned(), problem };
    template_of(&tokenizer, Some(template)).map_err(malformed)
}

fn template_of(tokenizer: &Tokenizer, template: Option<&str>) -> Result<(), String> {
    let (begin, end) = tokenizer.names();
    ChatTemplate::new(template, begin, end).map(drop)
}

/// All weights, and the element type of most of them.
fn sum(weights: impl Iterator<Item = (String, u64)>) -> (u64, String) {
    let mut by_type: HashMap<String, u64> = HashMap::new();
    for (format, count) in weights {
        let known = by_type.entry(format).or_default();
        *known = known.saturating_add(count);
    }
    let all = by_type.values().fold(0, |sum: u64, count| sum.saturating_add(*count));
    let most = by_type.into_iter().max_by(|one, other| (one.1, &other.0).cmp(&(other.1, &one.0)));
    (all, most.map(|(format, _)| format).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Script;

    #[test]
    fn files_say_what_they_are_and_what_is_wrong_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let bytes = Script { context: 77, decline: Some("no"), ..Script::default() }.gguf();
        std::fs::write(&path, &bytes).unwrap();
        let told = Inspection::of(&path).unwrap();
        assert_eq!((told.architecture.as_str(), told.context, told.problem), ("llama", 77, None));
        assert_eq!((told.file_bytes, told.quantization.as_str()), (bytes.len() as u64, "F32"));
        assert_eq!((told.has_chat_template, told.decline_text.as_deref()), (true, Some("no")));
        let at = bytes.windows(5).position(|window| window == b"llama").unwrap();
        let mut other = bytes.clone();
        other[at..at + 5].copy_from_slice(b"mamba");
        std::fs::write(&path, &other).unwrap();
        let told = Inspection::of(&path).unwrap();
        assert_eq!(told.architecture, "mamba");
        assert!(told.problem.unwrap().contains("mamba"));
        std::fs::write(&path, &bytes[..100]).unwrap();
        assert!(matches!(Inspection::of(&path), Err(LoadError::Malformed { .. })));
        assert!(matches!(Inspection::of(Path::new("no.gguf")), Err(LoadError::Io { .. })));
        assert!(matches!(Inspection::of(folder.path()), Err(LoadError::Io { .. })), "no config.json");
    }

    #[test]
    fn the_bundled_model_is_as_a_worker_tells_it() {
        let told = Inspection::of_bundled().unwrap();
        let worker = crate::Worker::start("nano", crate::ModelSource::Bundled, crate::WorkerConfig::default()).unwrap();
        let info = worker.info();
        assert_eq!((told.file_blake3, told.file_bytes), (info.file_blake3, info.file_bytes));
        assert_eq!((told.parameters, told.quantization), (info.parameters, info.quantization));
        assert_eq!(told.context, u64::from(info.context_length));
    }
}
