//! A decoder's weights, packed: read by names out of any file of tensors, after a family has told sizes and choices.

use super::directory::Directory;
use super::family;
use super::names::{Names, Plan};
use super::shape::{DecoderShape, NormKind};
use super::tensors::{Loader, Part, Tensors};
use super::{Gguf, LoadError, Quantize};
use crate::kernels::{Level, Matrix};

/// What may be chosen at load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// Tokens a sequence will have at most, if fewer than the model was trained for. Models with LongRoPE (Phi-3 with long
    /// context, Phi-4-mini) have one set of angles for short and one for long contexts; this decides, once for all
    /// sequences, because cached keys are turned already.
    pub context_limit: Option<usize>,
    /// What weights of floating point become; they stay as the file has them without.
    pub quantize: Option<Quantize>,
}

/// A product, with what is added.
#[derive(Debug)]
pub(super) struct Linear {
    pub matrix: Matrix,
    pub bias: Option<Vec<f32>>,
}

/// A norm's weight and, for [`NormKind::Layer`], bias.
#[derive(Debug)]
pub(super) struct Norm {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

/// One layer's weights.
#[derive(Debug)]
pub(super) struct Layer {
    pub attention_norm: Norm,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    /// Of queries and keys, one head long.
    pub head_norms: Option<[Vec<f32>; 2]>,
    pub output: Linear,
    pub attention_post_norm: Option<Norm>,
    /// `None` where the feed-forward part reads what attention reads.
    pub feed_norm: Option<Norm>,
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    pub feed_post_norm: Option<Norm>,
}

/// A model ready to run.
#[derive(Debug)]
pub struct Decoder {
    pub(super) shape: DecoderShape,
    pub(super) level: Level,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    /// `None` when the embedding serves.
    pub(super) head: Option<Matrix>,
    pub(super) head_bias: Option<Vec<f32>>,
    parameters: u64,
    quantization: String,
}

impl Decoder {
    /// Packs a GGUF file's weights for this processor.
    ///
    /// # Errors
    /// Another architecture, metadata that is missing or contradicts the tensors, unknown element types.
    pub fn load(file: &Gguf<'_>) -> Result<Self, LoadError> {
        Self::load_for(file, &LoadOptions::default(), Level::detect())
    }

    /// As [`Decoder::load`], with choices.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_with(file: &Gguf<'_>, options: &LoadOptions) -> Result<Self, LoadError> {
        Self::load_for(file, options, Level::detect())
    }

    pub(crate) fn load_for(file: &Gguf<'_>, options: &LoadOptions, level: Level) -> Result<Self, LoadError> {
        Self::assemble(family::of_gguf(file, options)?, file, options, level)
    }

    /// Packs the weights of a directory with `config.json` and safetensors.
    ///
    /// # Errors
    /// Another architecture, a configuration that lacks something or contradicts the tensors, unknown element types.
    pub fn load_directory(directory: &Directory, options: &LoadOptions) -> Result<Self, LoadError> {
        Self::load_directory_for(directory, options, Level::detect())
    }

    pub(crate) fn load_directory_for(
        directory: &Directory,
        options: &LoadOptions,
        level: Level,
    ) -> Result<Self, LoadError> {
        Self::assemble(family::of_config(directory.config(), options)?, directory, options, level)
    }

    fn assemble(plan: Plan, tensors: &dyn Tensors, options: &LoadOptions, level: Level) -> Result<Self, LoadError> {
        let Plan { shape, names, tied } = plan;
        let loader = Loader::new(tensors, options.quantize);
        let builder = Builder { loader: &loader, shape: &shape, names: &names };
        let vocabulary = Part::whole(shape.vocabulary);
        let embedding = loader.matrix(&format!("{}.weight", names.embedding), &vocabulary, shape.width, true)?;
        let layers = (0..shape.layers).map(|index| builder.layer(index)).collect::<Result<_, _>>()?;
        let norm = builder.norm(names.norm, shape.width)?;
        let head_name = format!("{}.weight", names.head);
        let head = match tied {
            true => None,
            false => Some(loader.matrix(&head_name, &vocabulary, shape.width, true)?),
        };
        let head_bias = match shape.biases.head {
            true => Some(loader.vector(&format!("{}.bias", names.head), &vocabulary)?),
            false => None,
        };
        // Angles are read with the metadata or are no weights at all; some files repeat the embedding as their tied output.
        loader.finish(|name| {
            name.starts_with("rope_f") || name.ends_with("rotary_emb.inv_freq") || (tied && name == head_name)
        })?;
        let quantization = loader.quantization();
        let mut decoder = Self { level, embedding, layers, norm, head, head_bias, parameters: 0, quantization, shape };
        decoder.parameters = decoder.count_parameters();
        Ok(decoder)
    }

    /// The sizes.
    pub fn shape(&self) -> &DecoderShape {
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
        self.matrices().map(Matrix::bytes).sum::<u64>() + self.vectors() * 4
    }

    fn count_parameters(&self) -> u64 {
        self.matrices().map(|matrix| (matrix.rows() * matrix.cols()) as u64).sum::<u64>() + self.vectors()
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let linears = self.layers.iter().flat_map(Layer::linears);
        linears.map(|linear| &linear.matrix).chain([&self.embedding]).chain(&self.head)
    }

    /// Weights that are not in matrices.
    fn vectors(&self) -> u64 {
        let bias = |linear: &Linear| linear.bias.as_ref().map_or(0, Vec::len);
        let layer = |layer: &Layer| {
            let norms = [&layer.attention_post_norm, &layer.feed_norm, &layer.feed_post_norm].into_iter().flatten();
            let heads = layer.head_norms.iter().flatten().map(Vec::len).sum::<usize>();
            layer.linears().map(bias).sum::<usize>()
                + norms.chain([&layer.attention_norm]).map(Norm::len).sum::<usize>()
                + heads
        };
        let ends = self.norm.len() + self.head_bias.as_ref().map_or(0, Vec::len);
        (self.layers.iter().map(layer).sum::<usize>() + ends) as u64
    }
}

impl Layer {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        [&self.query, &self.key, &self.value, &self.output, &self.up, &self.down].into_iter().chain(&self.gate)
    }
}

impl Norm {
    fn len(&self) -> usize {
        self.weight.len() + self.bias.len()
    }
}

/// Reads layers.
struct Builder<'plan> {
    loader: &'plan Loader<'plan>,
    shape: &'plan DecoderShape,
    names: &'plan Names,
}

impl Builder<'_> {
    fn layer(&self, index: usize) -> Result<Layer, LoadError> {
        let (shape, names) = (self.shape, self.names);
        let norm = |part: &str| self.norm(&self.stem(index, part), shape.width);
        let when = |wanted: bool, part: &str| if wanted { norm(part).map(Some) } else { Ok(None) };
        let attention_norm = norm(names.attention_norm)?;
        let [query, key, value] = self.projections(index)?;
        let (gate, up) = self.feed(index)?;
        let head_norms = match shape.head_norms {
            true => Some([self.head_norm(index, names.query_norm)?, self.head_norm(index, names.key_norm)?]),
            false => None,
        };
        let output = self.stem(index, names.output);
        let width = Part::whole(shape.width);
        Ok(Layer {
            attention_norm,
            query,
            key,
            value,
            head_norms,
            output: self.linear(&output, &width, shape.heads * shape.head, shape.biases.output)?,
            attention_post_norm: when(shape.post_norms, names.attention_post_norm)?,
            feed_norm: when(!shape.parallel, names.feed_norm)?,
            gate,
            up,
            down: self.linear(&self.stem(index, names.down), &width, shape.hidden, shape.biases.feed)?,
            feed_post_norm: when(shape.post_norms, names.feed_post_norm)?,
        })
    }

    /// Queries, keys and values: three tensors, or one with their rows one after the other.
    fn projections(&self, index: usize) -> Result<[Linear; 3], LoadError> {
        let (shape, names) = (self.shape, self.names);
        let (queries, keys) = (shape.heads * shape.head, shape.key_heads * shape.head);
        let whole = queries + 2 * keys;
        let fused =
            names.fused.map(|name| self.stem(index, name)).filter(|name| self.loader.has(&format!("{name}.weight")));
        let read = |name: &str, start: usize, rows: usize| {
            let (stem, part) = match &fused {
                Some(stem) => (stem.clone(), Part { rows: start..start + rows, of: whole }),
                None => (self.stem(index, name), Part::whole(rows)),
            };
            self.linear(&stem, &part, shape.width, shape.biases.projections)
        };
        Ok([read(names.query, 0, queries)?, read(names.key, queries, keys)?, read(names.value, queries + keys, keys)?])
    }

    /// Gate, if there is one, and up.
    fn feed(&self, index: usize) -> Result<(Option<Linear>, Linear), LoadError> {
        let (shape, names) = (self.shape, self.names);
        let hidden = shape.hidden;
        let read = |name: &str, part: Part| self.linear(&self.stem(index, name), &part, shape.width, shape.biases.feed);
        let half = |start: usize| Part { rows: start..start + hidden, of: 2 * hidden };
        Ok(match names.gate_up {
            Some(name) => (Some(read(name, half(0))?), read(name, half(hidden))?),
            None if shape.feed.gated() => {
                (Some(read(names.gate, Part::whole(hidden))?), read(names.up, Part::whole(hidden))?)
            }
            None => (None, read(names.up, Part::whole(hidden))?),
        })
    }

    fn linear(&self, stem: &str, part: &Part, cols: usize, biased: bool) -> Result<Linear, LoadError> {
        let matrix = self.loader.matrix(&format!("{stem}.weight"), part, cols, false)?;
        let bias = match biased {
            true => Some(self.loader.vector(&format!("{stem}.bias"), part)?),
            false => None,
        };
        Ok(Linear { matrix, bias })
    }

    fn norm(&self, stem: &str, length: usize) -> Result<Norm, LoadError> {
        let read = |kind: &str| self.loader.vector(&format!("{stem}.{kind}"), &Part::whole(length));
        let mut weight = read("weight")?;
        weight.iter_mut().for_each(|weight| *weight += self.names.norm_offset);
        let bias = if self.shape.norm == NormKind::Layer { read("bias")? } else { Vec::new() };
        Ok(Norm { weight, bias })
    }

    fn head_norm(&self, index: usize, name: &str) -> Result<Vec<f32>, LoadError> {
        let name = format!("{}.weight", self.stem(index, name));
        let mut weight = self.loader.vector(&name, &Part::whole(self.shape.head))?;
        weight.iter_mut().for_each(|weight| *weight += self.names.norm_offset);
        Ok(weight)
    }

    fn stem(&self, index: usize, part: &str) -> String {
        let [before, after] = self.names.layer;
        format!("{before}{index}{after}{part}")
    }
}
