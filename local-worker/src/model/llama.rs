//! The Llama architecture as GGUF files have it: SmolLM2, Llama 2 and 3, TinyLlama, the bundled `sluice-nano`.
//!
//! Query and key rows come permuted so that rotary pairs are neighbours. `rope_freqs.weight`, where present, divides each
//! pair's frequency (Llama 3.1 and later).

use std::collections::HashMap;

use super::format::{Format, read_matrix, read_vector};
use super::{Gguf, LoadError};
use crate::kernels::{Level, Matrix};

/// The sizes of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaShape {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Inner width of the feed-forward part.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub key_heads: usize,
    /// Values of one head.
    pub head: usize,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Tokens the model was trained for.
    pub context: usize,
    /// Added under the root of each norm.
    pub epsilon: f32,
    /// Angle per position of each rotary pair, in radians.
    pub frequencies: Vec<f32>,
}

/// One layer's weights.
#[derive(Debug)]
pub(super) struct Layer {
    pub attention_norm: Vec<f32>,
    pub query: Matrix,
    pub key: Matrix,
    pub value: Matrix,
    pub output: Matrix,
    pub feed_norm: Vec<f32>,
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
}

/// A model ready to run.
#[derive(Debug)]
pub struct Llama {
    pub(super) shape: LlamaShape,
    pub(super) level: Level,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Vec<f32>,
    /// `None` when the embedding serves.
    pub(super) head: Option<Matrix>,
    parameters: u64,
    quantization: String,
}

impl Llama {
    /// Packs a model's weights for this processor.
    ///
    /// # Errors
    /// Another architecture, metadata that is missing or contradicts the tensors, unknown element types.
    pub fn load(file: &Gguf<'_>) -> Result<Self, LoadError> {
        Self::load_for(file, Level::detect())
    }

    pub(crate) fn load_for(file: &Gguf<'_>, level: Level) -> Result<Self, LoadError> {
        let shape = LlamaShape::read(file)?;
        let mut loader = Loader { file, parameters: 0, formats: HashMap::new() };
        let embedding = loader.matrix("token_embd.weight", shape.vocabulary, shape.width)?;
        let layers = (0..shape.layers).map(|index| loader.layer(index, &shape)).collect::<Result<_, _>>()?;
        let norm = loader.vector("output_norm.weight", shape.width)?;
        let head = match file.tensor("output.weight") {
            Some(_) => Some(loader.matrix("output.weight", shape.vocabulary, shape.width)?),
            None => None,
        };
        let most = loader.formats.iter().max_by_key(|(_, weights)| **weights);
        let quantization = most.map(|(format, _)| format.clone()).unwrap_or_default();
        Ok(Self { level, embedding, layers, norm, head, parameters: loader.parameters, quantization, shape })
    }

    /// The sizes.
    pub fn shape(&self) -> &LlamaShape {
        &self.shape
    }

    /// The kernels in use.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Name of the kernels in use.
    pub fn kernels(&self) -> &'static str {
        self.level.name()
    }

    /// Weights, tied ones counted once.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// The element type of most weights.
    pub fn quantization(&self) -> &str {
        &self.quantization
    }

    /// Memory taken by the weights.
    pub fn bytes(&self) -> u64 {
        let layer = |layer: &Layer| {
            let matrices = [&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down];
            matrices.iter().map(|matrix| matrix.bytes()).sum::<u64>() + (self.shape.width * 8) as u64
        };
        let ends = self.embedding.bytes() + self.head.as_ref().map_or(0, Matrix::bytes) + (self.shape.width * 4) as u64;
        ends + self.layers.iter().map(layer).sum::<u64>()
    }
}

impl LlamaShape {
    fn read(file: &Gguf<'_>) -> Result<Self, LoadError> {
        let architecture = file.text("general.architecture").ok_or_else(|| missing(file, "general.architecture"))?;
        if architecture != "llama" {
            return Err(file.unsupported(format!("the architecture is {architecture}; this build runs llama")));
        }
        let size = |key: &str, most: u64| {
            let key = format!("llama.{key}");
            let value = file.integer(&key).ok_or_else(|| missing(file, &key))?;
            match value {
                value if value >= 1 && value <= most => Ok(value as usize),
                value => Err(file.malformed(format!("{key} is {value}, which is not between 1 and {most}"))),
            }
        };
        let (width, heads) = (size("embedding_length", 1 << 16)?, size("attention.head_count", 1 << 12)?);
        let key_heads = if file.get("llama.attention.head_count_kv").is_some() {
            size("attention.head_count_kv", 1 << 12)?
        } else {
            heads
        };
        let head = if file.get("llama.attention.key_length").is_some() {
            size("attention.key_length", 1 << 12)?
        } else {
            width / heads
        };
        if head == 0 || head % 2 != 0 || heads % key_heads != 0 {
            let problem =
                format!("{heads} heads of {head} values with {key_heads} key heads over a width of {width} do not fit");
            return Err(file.malformed(problem));
        }
        if file.integer("llama.attention.value_length").is_some_and(|value| value != head as u64) {
            return Err(file.unsupported("value heads of another size than key heads are not supported"));
        }
        if file.integer("llama.expert_count").is_some_and(|count| count > 0) {
            return Err(file.unsupported("mixtures of experts are not supported"));
        }
        let epsilon = file.number("llama.attention.layer_norm_rms_epsilon");
        let epsilon = epsilon.ok_or_else(|| missing(file, "llama.attention.layer_norm_rms_epsilon"))?;
        if !(0.0..=1.0).contains(&epsilon) {
            return Err(
                file.malformed(format!("llama.attention.layer_norm_rms_epsilon is {epsilon}, not between 0 and 1"))
            );
        }
        let embedding =
            file.tensor("token_embd.weight").ok_or_else(|| file.malformed("tensor token_embd.weight is missing"))?;
        let vocabulary = match embedding.dimensions.as_slice() {
            [_, rows] if *rows <= 1 << 24 => *rows as usize,
            other => return Err(file.malformed(format!("tensor token_embd.weight has the impossible shape {other:?}"))),
        };
        Ok(Self {
            layers: size("block_count", 1 << 10)?,
            width,
            hidden: size("feed_forward_length", 1 << 18)?,
            heads,
            key_heads,
            head,
            vocabulary,
            context: size("context_length", 1 << 24)?,
            epsilon: epsilon as f32,
            frequencies: frequencies(file, head)?,
        })
    }
}

fn frequencies(file: &Gguf<'_>, head: usize) -> Result<Vec<f32>, LoadError> {
    let scaling = file.text("llama.rope.scaling.type").unwrap_or("none");
    if scaling != "none" {
        return Err(file.unsupported(format!("rope scaling {scaling} is not supported")));
    }
    let base = file.number("llama.rope.freq_base").unwrap_or(10_000.0);
    let turned = file.integer("llama.rope.dimension_count").unwrap_or(head as u64);
    if !(base.is_finite() && base > 0.0) || turned > head as u64 || !turned.is_multiple_of(2) {
        return Err(file.malformed(format!("rope over {turned} of {head} values with base {base} is impossible")));
    }
    let pairs = turned as usize / 2;
    let factors = match file.tensor("rope_freqs.weight") {
        Some(_) => read_vector(file, "rope_freqs.weight", pairs)?,
        None => vec![1.0; pairs],
    };
    if factors.iter().any(|factor| *factor <= 0.0) {
        return Err(file.malformed("tensor rope_freqs.weight holds a factor that is not above 0"));
    }
    let frequency =
        |(pair, factor): (usize, &f32)| (base.powf(-2.0 * pair as f64 / turned as f64) / f64::from(*factor)) as f32;
    Ok(factors.iter().enumerate().map(frequency).collect())
}

fn missing(file: &Gguf<'_>, key: &str) -> LoadError {
    file.malformed(format!("metadata key {key} is missing or of another type"))
}

/// Reads tensors and keeps count.
struct Loader<'file, 'bytes> {
    file: &'file Gguf<'bytes>,
    parameters: u64,
    formats: HashMap<String, u64>,
}

impl Loader<'_, '_> {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        let (matrix, format): (Matrix, Format) = read_matrix(self.file, name, rows, cols)?;
        self.parameters += (rows * cols) as u64;
        *self.formats.entry(format!("{format:?}")).or_default() += (rows * cols) as u64;
        Ok(matrix)
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        self.parameters += length as u64;
        read_vector(self.file, name, length)
    }

    fn layer(&mut self, index: usize, shape: &LlamaShape) -> Result<Layer, LoadError> {
        let bias = ["attn_q", "attn_k", "attn_v", "attn_output"].map(|name| format!("blk.{index}.{name}.bias"));
        if let Some(bias) = bias.iter().find(|bias| self.file.tensor(bias).is_some()) {
            return Err(self.file.unsupported(format!("tensor {bias}: attention with biases is not supported")));
        }
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let (queries, keys) = (shape.heads * shape.head, shape.key_heads * shape.head);
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm"), shape.width)?,
            query: self.matrix(&name("attn_q"), queries, shape.width)?,
            key: self.matrix(&name("attn_k"), keys, shape.width)?,
            value: self.matrix(&name("attn_v"), keys, shape.width)?,
            output: self.matrix(&name("attn_output"), shape.width, queries)?,
            feed_norm: self.vector(&name("ffn_norm"), shape.width)?,
            gate: self.matrix(&name("ffn_gate"), shape.hidden, shape.width)?,
            up: self.matrix(&name("ffn_up"), shape.hidden, shape.width)?,
            down: self.matrix(&name("ffn_down"), shape.width, shape.hidden)?,
        })
    }
}
