//! A model file's metadata and weights, to be changed and written again.
//!
//! Metadata is carried over as it stands but for what speaks of the weights' format, so tokens, template and decline text
//! stay what they were. Tensors keep the bytes they came in until somebody asks for their numbers.

use super::{CompressError, Target, directory};
use crate::engine::ModelSource;
use crate::model::{DecoderShape, Gguf, LoadError, LoadOptions, Mapped, SLUICE_NANO, shape_of};
use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

/// Metadata keys that speak of the file and not of the model.
const OF_THE_FILE: [&str; 3] = ["general.file_type", "general.quantization_version", "general.alignment"];

/// A model's metadata and tensors.
#[derive(Debug)]
pub struct Weights {
    file: String,
    shape: DecoderShape,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, QTensor>,
}

impl Weights {
    /// Reads a GGUF file, or a directory with `config.json`, safetensors and `tokenizer.json`, of a model that this build runs.
    ///
    /// # Errors
    /// The file is missing or malformed, or of a kind this build can't run.
    pub fn read(source: &ModelSource) -> Result<Self, CompressError> {
        match source {
            ModelSource::Bundled => Self::parse("the bundled model", SLUICE_NANO.ok_or(LoadError::NoBundledModel)?),
            ModelSource::Path(path) if path.is_dir() => {
                let (shape, metadata, tensors) = directory::read(path)?;
                Ok(Self { file: path.display().to_string(), shape, metadata, tensors })
            }
            ModelSource::Path(path) => {
                let file = path.display().to_string();
                let bytes = Mapped::open(path).map_err(|error| LoadError::Io { file: file.clone(), error })?;
                Self::parse(&file, &bytes)
            }
        }
    }

    fn parse(file: &str, bytes: &[u8]) -> Result<Self, CompressError> {
        let shape = shape_of(&Gguf::parse(file, bytes)?, &LoadOptions::default())?;
        let mut reader = Cursor::new(bytes);
        let malformed =
            |error: candle_core::Error| LoadError::Malformed { file: file.to_owned(), problem: error.to_string() };
        let content = Content::read(&mut reader).map_err(malformed)?;
        let mut tensors = BTreeMap::new();
        for name in content.tensor_infos.keys() {
            let tensor = content.tensor(&mut reader, name, &Device::Cpu);
            let wrong = |error: candle_core::Error| CompressError::Tensor {
                file: file.to_owned(),
                tensor: name.clone(),
                problem: error.to_string(),
            };
            tensors.insert(name.clone(), tensor.map_err(wrong)?);
        }
        let metadata = content.metadata.into_iter().filter(|(key, _)| !OF_THE_FILE.contains(&key.as_str())).collect();
        Ok(Self { file: file.to_owned(), shape, metadata, tensors })
    }

    /// A model made of parts: metadata as a GGUF file has it, and tensors by name with their sizes (rows first), in single
    /// precision. `name` is for messages.
    ///
    /// # Errors
    /// The parts make no model that this build runs.
    #[cfg(feature = "lab")]
    pub(crate) fn of_parts<'a>(
        name: &str,
        metadata: BTreeMap<String, Value>,
        tensors: impl Iterator<Item = (String, Vec<usize>, &'a [f32])>,
    ) -> Result<Self, CompressError> {
        let made = |(tensor, size, values): (String, Vec<usize>, &[f32])| {
            let made = Tensor::from_slice(values, size, &Device::Cpu)
                .and_then(|values| QTensor::quantize(&values, GgmlDType::F32));
            let wrong = |error: candle_core::Error| CompressError::Tensor {
                file: name.to_owned(),
                tensor: tensor.clone(),
                problem: error.to_string(),
            };
            let made = made.map_err(wrong)?;
            Ok((tensor, made))
        };
        let tensors: BTreeMap<String, QTensor> = tensors.map(made).collect::<Result<_, CompressError>>()?;
        // The sizes are read as they are of any file; the numbers don't matter for that.
        let mut bytes = Cursor::new(Vec::new());
        put(&metadata, &tensors, &mut bytes)
            .map_err(|error| LoadError::Malformed { file: name.to_owned(), problem: error.to_string() })?;
        let shape = shape_of(&Gguf::parse(name, bytes.get_ref())?, &LoadOptions::default())?;
        Ok(Self { file: name.to_owned(), shape, metadata, tensors })
    }

    /// What the file says beside its tensors.
    #[cfg(feature = "lab")]
    pub(crate) fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// What the model says where it can't; `None` if it never does.
    pub fn decline(&self) -> Option<&str> {
        let text = self.metadata.get("sluice.decline")?.to_string().ok()?;
        Some(text.as_str()).filter(|text| !text.is_empty())
    }

    /// The file's name, for messages.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// The model's sizes.
    pub fn shape(&self) -> &DecoderShape {
        &self.shape
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The format that most quantised weights have; `None` if all are floating point.
    pub fn quantised(&self) -> Option<String> {
        let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
        for tensor in self.tensors.values().filter(|tensor| tensor.dtype().block_size() > 1) {
            *sizes.entry(format!("{:?}", tensor.dtype())).or_default() += tensor.shape().elem_count();
        }
        sizes.into_iter().max_by_key(|(_, count)| *count).map(|(format, _)| format)
    }

    /// Refuses weights that are quantised already.
    ///
    /// # Errors
    /// [`CompressError::Quantised`].
    pub fn refuse_quantised(&self) -> Result<(), CompressError> {
        match self.quantised() {
            Some(format) => Err(CompressError::Quantised { file: self.file.clone(), format }),
            None => Ok(()),
        }
    }

    /// A tensor's numbers, rows first.
    ///
    /// # Errors
    /// There is no such tensor, or one of its numbers is not finite.
    pub fn values(&self, name: &str) -> Result<Tensor, CompressError> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.wrong(name, "is missing".to_owned()))?;
        let read = || -> candle_core::Result<(Tensor, f32)> {
            let tensor = tensor.dequantize(&Device::Cpu)?;
            // One that is not a number makes the sum one that is none.
            let sum =
                tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? + tensor.sum_all()?.to_scalar::<f32>()?;
            Ok((tensor, sum))
        };
        let (tensor, sum) = read().map_err(|error| self.wrong(name, error.to_string()))?;
        if sum.is_finite() { Ok(tensor) } else { Err(self.wrong(name, "holds a number that is not finite".to_owned())) }
    }

    /// Puts other numbers in the place of a tensor's, in single precision.
    ///
    /// # Errors
    /// The shape is another one.
    pub fn replace(&mut self, name: &str, values: &Tensor) -> Result<(), CompressError> {
        if self.tensors.get(name).is_none_or(|old| old.shape() != values.shape()) {
            return Err(self.wrong(name, format!("can't become {:?}", values.shape())));
        }
        let tensor = QTensor::quantize(values, GgmlDType::F32);
        let tensor = tensor.map_err(|error| self.wrong(name, error.to_string()))?;
        self.tensors.insert(name.to_owned(), tensor);
        Ok(())
    }

    /// Matrices to `target`, vectors to single precision. The embedding and the output, which suffer most, get 8 bits at
    /// least; rows that the blocks don't divide take the nearest format that fits, or stay single.
    ///
    /// # Errors
    /// A tensor holds a number that is not finite.
    pub fn convert(mut self, target: Target) -> Result<Self, CompressError> {
        let names: Vec<String> = self.tensors.keys().cloned().collect();
        for name in names {
            let values = self.values(&name)?;
            let converted = QTensor::quantize(&values, format_of(&name, values.dims(), target));
            let converted = converted.map_err(|error| self.wrong(&name, error.to_string()))?;
            self.tensors.insert(name, converted);
        }
        self.metadata.insert("general.file_type".to_owned(), Value::U32(target.file_type()));
        if target.blocks().is_some() {
            self.metadata.insert("general.quantization_version".to_owned(), Value::U32(2));
        }
        Ok(self)
    }

    /// Writes a GGUF file; it appears whole or not at all.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> Result<(), CompressError> {
        let written = crate::files::write(path, |file| self.put(file));
        written.map_err(|error| CompressError::Unwritable { path: path.to_owned(), error })
    }

    /// The bytes of the GGUF file that [`Weights::write`] would write.
    ///
    /// # Errors
    /// A tensor can't be written, which none that was read is.
    pub fn bytes(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Cursor::new(Vec::new());
        self.put(&mut bytes)?;
        Ok(bytes.into_inner())
    }

    fn put<W: std::io::Write + std::io::Seek>(&self, out: &mut W) -> std::io::Result<()> {
        put(&self.metadata, &self.tensors, out)
    }

    pub(super) fn wrong(&self, tensor: &str, problem: String) -> CompressError {
        CompressError::Tensor { file: self.file.clone(), tensor: tensor.to_owned(), problem }
    }
}

fn put<W: std::io::Write + std::io::Seek>(
    metadata: &BTreeMap<String, Value>,
    tensors: &BTreeMap<String, QTensor>,
    out: &mut W,
) -> std::io::Result<()> {
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(out, &metadata, &tensors).map_err(|error| match error {
        candle_core::Error::Io(error) => error,
        error => std::io::Error::other(error),
    })
}

/// What a tensor becomes.
fn format_of(name: &str, dimensions: &[usize], target: Target) -> GgmlDType {
    let [_, columns] = dimensions else { return GgmlDType::F32 };
    let precise = matches!(name, "token_embd.weight" | "output.weight");
    match target.blocks() {
        // Angles and the like are no weights of a product.
        _ if !name.ends_with(".weight") => GgmlDType::F32,
        Some(blocks) => {
            blocks.format_for(*columns, precise).and_then(crate::model::Format::candle).unwrap_or(GgmlDType::F32)
        }
        None if target == Target::Half => GgmlDType::F16,
        None => GgmlDType::F32,
    }
}
