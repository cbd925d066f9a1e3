//! A model directory as hubs have them, turned into the metadata and tensors of a GGUF file.
//!
//! Families whose GGUF form is their own tensors under other names: Llama (whose query and key rows are permuted, so that
//! rotary pairs are neighbours), Qwen 2 and Qwen 3. The others are refused by name.

use super::CompressError;
use super::tokens;
use crate::model::{
    Config, DecoderShape, Directory, Facts, Format, LoadError, LoadOptions, Names, Plan, Tensors, plain_angles,
    plan_of_config, rotary_base, singles,
};
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Metadata and tensors.
pub type Parts = (DecoderShape, BTreeMap<String, Value>, BTreeMap<String, QTensor>);

/// Reads a directory with `config.json`, safetensors and `tokenizer.json`.
///
/// # Errors
/// A file is missing or malformed, or of a kind that can't be turned into GGUF here.
pub fn read(path: &Path) -> std::result::Result<Parts, CompressError> {
    let directory = Directory::open(path)?;
    let config = directory.config();
    let plan = plan_of_config(config, &LoadOptions::default())?;
    let family = plan.shape.family;
    if !matches!(family, "llama" | "qwen2" | "qwen3") {
        let known = "llama, qwen2 and qwen3 are; give a GGUF file";
        return Err(config
            .refusal(format!("directories of the family {family} are not turned into GGUF, {known}"))
            .into());
    }
    if plan.shape.attention.iter().any(|layer| layer.window.is_some()) {
        return Err(config.refusal("a sliding window, which its GGUF form can't describe".to_owned()).into());
    }
    let base = rotary_base(config)?;
    let mut metadata = sizes(&plan, base);
    metadata.insert("general.name".to_owned(), Value::String(name_of(path)));
    metadata.extend(tokens::read(path, config, plan.shape.vocabulary)?);
    let mut tensors = BTreeMap::new();
    for (theirs, ours, heads) in names(&plan) {
        if directory.has(&theirs) {
            let tensor = tensor(&directory, &theirs, heads);
            tensors.insert(ours, tensor?);
        }
    }
    refuse_others(&directory, &plan)?;
    if let Some(factors) = factors(&plan.shape, base) {
        if family != "llama" {
            return Err(config.refusal(format!("{family} with scaled angles is not turned into GGUF here")).into());
        }
        let of_tensor = |error| wrong(&directory, "rope_freqs.weight", error);
        let factors =
            Tensor::new(factors, &Device::Cpu).and_then(|factors| QTensor::quantize(&factors, GgmlDType::F32));
        tensors.insert("rope_freqs.weight".to_owned(), factors.map_err(of_tensor)?);
    }
    Ok((plan.shape, metadata, tensors))
}

fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn sizes(plan: &Plan, base: f64) -> BTreeMap<String, Value> {
    let shape = &plan.shape;
    let family = shape.family;
    let turned = shape.rotary.first().map_or(shape.head, |rotary| rotary.frequencies.len() * 2);
    let counts = [
        ("block_count", shape.layers),
        ("context_length", shape.context),
        ("embedding_length", shape.width),
        ("feed_forward_length", shape.hidden),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.key_heads),
        ("attention.key_length", shape.head),
        ("attention.value_length", shape.head),
        ("rope.dimension_count", turned),
        ("vocab_size", shape.vocabulary),
    ];
    let mut metadata: BTreeMap<String, Value> =
        counts.into_iter().map(|(key, count)| (format!("{family}.{key}"), Value::U32(count as u32))).collect();
    metadata.insert(format!("{family}.attention.layer_norm_rms_epsilon"), Value::F32(shape.epsilon));
    metadata.insert(format!("{family}.rope.freq_base"), Value::F32(base as f32));
    metadata.insert("general.architecture".to_owned(), Value::String(family.to_owned()));
    metadata
}

/// What the plain angles are divided by; `None` where they are plain.
fn factors(shape: &DecoderShape, base: f64) -> Option<Vec<f32>> {
    let frequencies = &shape.rotary.first()?.frequencies;
    let plain = plain_angles(base, frequencies.len() * 2);
    let factors: Vec<f32> =
        plain.iter().zip(frequencies).map(|(plain, angle)| (plain / f64::from(*angle)) as f32).collect();
    factors.iter().any(|factor| (factor - 1.0).abs() > 1e-4).then_some(factors)
}

/// Every tensor's name here and there, and the heads whose rows are to be permuted.
fn names(plan: &Plan) -> Vec<(String, String, Option<usize>)> {
    let (theirs, ours, shape) = (&plan.names, Names::gguf(), &plan.shape);
    let permuted = |heads: usize| (shape.family == "llama").then_some(heads);
    let mut names = vec![
        (format!("{}.weight", theirs.embedding), format!("{}.weight", ours.embedding), None),
        (format!("{}.weight", theirs.norm), format!("{}.weight", ours.norm), None),
    ];
    if !plan.tied {
        names.push((format!("{}.weight", theirs.head), format!("{}.weight", ours.head), None));
    }
    let parts = [
        (theirs.attention_norm, ours.attention_norm, None),
        (theirs.query, ours.query, permuted(shape.heads)),
        (theirs.key, ours.key, permuted(shape.key_heads)),
        (theirs.value, ours.value, None),
        (theirs.query_norm, ours.query_norm, None),
        (theirs.key_norm, ours.key_norm, None),
        (theirs.output, ours.output, None),
        (theirs.feed_norm, ours.feed_norm, None),
        (theirs.gate, ours.gate, None),
        (theirs.up, ours.up, None),
        (theirs.down, ours.down, None),
    ];
    for layer in 0..shape.layers {
        for (theirs_part, ours_part, heads) in parts {
            for kind in ["weight", "bias"] {
                let ([before, after], [our_before, our_after]) = (theirs.layer, ours.layer);
                let name = format!("{before}{layer}{after}{theirs_part}.{kind}");
                names.push((name, format!("{our_before}{layer}{our_after}{ours_part}.{kind}"), heads));
            }
        }
    }
    names
}

/// A tensor this family has no place for must not be silently left out.
fn refuse_others(directory: &Directory, plan: &Plan) -> std::result::Result<(), CompressError> {
    let known: Vec<String> = names(plan).into_iter().map(|(theirs, ..)| theirs).collect();
    let tied = plan.tied.then(|| format!("{}.weight", plan.names.head));
    let mut others = directory.names();
    others
        .retain(|name| !known.contains(name) && tied.as_ref() != Some(name) && !name.ends_with("rotary_emb.inv_freq"));
    others.sort();
    match others.first() {
        None => Ok(()),
        Some(name) => {
            let problem = format!("tensor {name} has no place in this architecture as this build knows it");
            Err(directory.refusal(name, problem).into())
        }
    }
}

fn tensor(directory: &Directory, name: &str, heads: Option<usize>) -> std::result::Result<QTensor, CompressError> {
    let shape = directory.shape_of(name).unwrap_or_default();
    let (bytes, format): (&[u8], Format) = Tensors::bytes(directory, name, &shape)?;
    let read = || -> Result<QTensor> {
        let mut values = Tensor::from_vec(singles(bytes, format), shape.as_slice(), &Device::Cpu)?;
        if let Some(heads) = heads {
            values = match shape.len() {
                1 => neighbours(&values.reshape((shape[0], 1))?, heads)?.flatten_all()?,
                _ => neighbours(&values, heads)?,
            };
        }
        // Matrices stay as they are; vectors are single precision in every GGUF file.
        let kept = match format {
            Format::F16 if shape.len() > 1 => GgmlDType::F16,
            Format::BF16 if shape.len() > 1 => GgmlDType::BF16,
            _ => GgmlDType::F32,
        };
        QTensor::quantize(&values, kept)
    };
    read().map_err(|error| wrong(directory, name, error))
}

fn wrong(directory: &Directory, name: &str, error: candle_core::Error) -> CompressError {
    let file = directory.path().display().to_string();
    CompressError::Tensor { file, tensor: name.to_owned(), problem: error.to_string() }
}

/// Rows of a rotary matrix from pairs (i, i + head/2) to pairs (2i, 2i + 1), head by head.
///
/// # Errors
/// The heads don't divide the rows.
pub fn neighbours(matrix: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    matrix.reshape((heads, 2, rows / heads / 2, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}

/// A fault of one of the directory's files.
pub(super) fn malformed(path: &Path, problem: String) -> LoadError {
    LoadError::Malformed { file: path.display().to_string(), problem }
}

/// The ids that a configuration names under a key: one, or a list.
pub(super) fn ids(config: &Config, key: &str) -> Vec<u64> {
    match config.integer(key) {
        Some(id) => vec![id],
        None => config.numbers(key).ok().flatten().unwrap_or_default().into_iter().map(|id| id as u64).collect(),
    }
}
