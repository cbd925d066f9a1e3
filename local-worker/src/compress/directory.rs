//! A model directory as hubs have them, turned into the metadata and tensors of a GGUF file, as its readers expect them of
//! each family: rows of Llama's queries and keys permuted, Phi-2's three matrices in one, Gemma's norms with their 1.
//!
//! What comes out is read again as a description and held against the directory's own: what GGUF has no words for is
//! refused by name.

mod angles;
mod same;
mod tensors;

use super::CompressError;
use super::tokens;
use crate::model::{Config, DecoderShape, Directory, LoadError, LoadOptions, NormKind, Plan, Tensors, plan_of_config};
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Metadata and tensors.
pub type Parts = (DecoderShape, BTreeMap<String, Value>, BTreeMap<String, QTensor>);

/// Reads a directory with `config.json`, safetensors and `tokenizer.json`.
///
/// # Errors
/// A file is missing or malformed, or says what GGUF has no words for.
pub fn read(path: &Path) -> std::result::Result<Parts, CompressError> {
    let directory = Directory::open(path)?;
    let config = directory.config();
    let plan = plan_of_config(config, &LoadOptions::default())?;
    let mut metadata = sizes(&plan, config)?;
    metadata.insert("general.name".to_owned(), Value::String(name_of(path)));
    metadata.extend(tokens::read(path, config, plan.shape.vocabulary)?);
    let mut tensors = BTreeMap::new();
    for place in tensors::places(&plan) {
        if place.theirs.iter().all(|name| directory.has(name)) {
            tensors.insert(place.ours.clone(), tensors::read(&directory, &place)?);
        }
    }
    tensors::refuse_others(&directory, &plan)?;
    for (name, factors) in angles::factors(&plan, config)? {
        let of_tensor = |error| wrong(&directory, name, error);
        let factors =
            Tensor::new(factors, &Device::Cpu).and_then(|factors| QTensor::quantize(&factors, GgmlDType::F32));
        tensors.insert(name.to_owned(), factors.map_err(of_tensor)?);
    }
    same::check(config, &plan, &metadata, &tensors)?;
    Ok((plan.shape, metadata, tensors))
}

fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn sizes(plan: &Plan, config: &Config) -> std::result::Result<BTreeMap<String, Value>, CompressError> {
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
    let mut put = |key: &str, value: Value| drop(metadata.insert(format!("{family}.{key}"), value));
    let norm = if shape.norm == NormKind::Layer { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
    put(&format!("attention.{norm}"), Value::F32(shape.epsilon));
    if let Some(window) = shape.attention.iter().find_map(|layer| layer.window) {
        put("attention.sliding_window", Value::U32(u32::try_from(window).unwrap_or(u32::MAX)));
    }
    for (key, cap) in [("attn_logit_softcapping", shape.score_cap), ("final_logit_softcapping", shape.logit_cap)] {
        if let Some(cap) = cap {
            put(key, Value::F32(cap));
        }
    }
    for (key, value) in angles::keys(plan, config)? {
        put(key, value);
    }
    metadata.insert("general.architecture".to_owned(), Value::String(family.to_owned()));
    Ok(metadata)
}

fn wrong(directory: &Directory, name: &str, error: candle_core::Error) -> CompressError {
    let file = directory.path().display().to_string();
    CompressError::Tensor { file, tensor: name.to_owned(), problem: error.to_string() }
}

/// A fault of one of the directory's files.
pub(super) fn malformed(path: &Path, problem: String) -> LoadError {
    LoadError::Malformed { file: path.display().to_string(), problem }
}
