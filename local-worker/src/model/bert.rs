//! Encoders of the BERT family: a directory with safetensors becomes packed weights, and those turn the tokens of texts into
//! one vector for each token. Attention sees a whole text at once, so there is no cache and nothing is sampled.
//!
//! BERT (Devlin et al. 2019), RoBERTa and XLM-RoBERTa, which count positions from another number, and DistilBERT, which has no
//! token types and other names.

use super::LoadError;
use super::config::Config;
use super::decoder::{Linear, Norm};
use super::directory::Directory;
use super::facts::Facts;
use super::family::check_activation;
use super::tensors::{Loader, Part};
use crate::kernels::{Activations, Level, Matrix, Queries, Weighing, add, attend, gelu, gelu_exact, layer_norm};

/// What a layer of one family calls its parts.
struct Names {
    query: &'static str,
    key: &'static str,
    value: &'static str,
    output: &'static str,
    output_norm: &'static str,
    up: &'static str,
    down: &'static str,
    down_norm: &'static str,
    layer: &'static str,
}

const BERT: Names = Names {
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    output: "attention.output.dense",
    output_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    down_norm: "output.LayerNorm",
    layer: "encoder.layer",
};

const DISTILBERT: Names = Names {
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    output: "attention.out_lin",
    output_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    down_norm: "output_layer_norm",
    layer: "transformer.layer",
};

/// The function between the two products of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activation {
    /// With the error function.
    Gelu,
    /// With tanh.
    GeluTanh,
    Relu,
}

/// Sizes of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderShape {
    /// The family, as `config.json` names it.
    pub family: String,
    /// Numbers in a token's vector.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Inner width of the feed-forward part.
    pub hidden: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Tokens of the longest text.
    pub context: usize,
    /// Number of the first position.
    first_position: usize,
    epsilon: f32,
    activation: Activation,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    output_norm: Norm,
    up: Linear,
    down: Linear,
    down_norm: Norm,
}

/// An encoder ready to run.
#[derive(Debug)]
pub struct Encoder {
    shape: EncoderShape,
    level: Level,
    words: Matrix,
    positions: Matrix,
    /// The vector of the first token type, where there are types.
    kind: Option<Vec<f32>>,
    norm: Norm,
    layers: Vec<Layer>,
}

/// Buffers of a pass, kept between passes.
#[derive(Debug, Default)]
pub struct EncoderScratch {
    stream: Activations,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    attended: Activations,
    inner: Activations,
    back: Vec<f32>,
    normed: Vec<f32>,
    scores: Vec<f32>,
    head: [Vec<f32>; 2],
}

impl EncoderShape {
    /// From `config.json`.
    fn read(config: &Config) -> Result<Self, LoadError> {
        let family = config.text("model_type").ok_or_else(|| config.missing("model_type"))?;
        let distil = family == "distilbert";
        let first_position = match family {
            "bert" | "distilbert" => 0,
            // Positions are counted from the number after that of the padding.
            "roberta" | "xlm-roberta" => config.integer("pad_token_id").unwrap_or(1).min(1 << 20) as usize + 1,
            other => {
                let known = "bert, distilbert, roberta and xlm-roberta";
                return Err(config.refusal(format!("model_type is {other}; as an encoder this build runs {known}")));
            }
        };
        if let Some(kind) = config.text("position_embedding_type").filter(|kind| *kind != "absolute") {
            return Err(config.refusal(format!("position_embedding_type is {kind}; this build runs absolute")));
        }
        let size = |bert: &str, other: &str, most| config.size(if distil { other } else { bert }, most);
        let activation = if distil { "activation" } else { "hidden_act" };
        check_activation(config, activation, &["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])?;
        let shape = Self {
            family: family.to_owned(),
            width: size("hidden_size", "dim", 1 << 16)?,
            layers: size("num_hidden_layers", "n_layers", 1024)?,
            heads: size("num_attention_heads", "n_heads", 1024)?,
            hidden: size("intermediate_size", "hidden_dim", 1 << 18)?,
            vocabulary: config.size("vocab_size", 1 << 24)?,
            context: config.size("max_position_embeddings", 1 << 20)?.saturating_sub(first_position),
            first_position,
            epsilon: if distil { 1e-12 } else { config.epsilon("layer_norm_eps")? },
            activation: match config.text(activation) {
                Some("relu") => Activation::Relu,
                Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
                _ => Activation::Gelu,
            },
        };
        if !shape.width.is_multiple_of(shape.heads) {
            let problem = format!("width {} is no multiple of its {} heads", shape.width, shape.heads);
            return Err(config.fault(problem));
        }
        if shape.context == 0 {
            return Err(config.fault("max_position_embeddings leaves no position for a token".to_owned()));
        }
        Ok(shape)
    }
}

impl Encoder {
    /// Packs a directory's weights for this processor.
    ///
    /// # Errors
    /// The family is not known, or a tensor is missing, of another shape, or without a place.
    pub fn from_directory(directory: &Directory) -> Result<Self, LoadError> {
        let shape = EncoderShape::read(directory.config())?;
        let names = if shape.family == "distilbert" { &DISTILBERT } else { &BERT };
        let loader = Loader::new(directory, None);
        let prefixes = ["", "bert.", "roberta.", "distilbert."];
        let prefix = prefixes.into_iter().find(|prefix| loader.has(&format!("{prefix}{WORDS}.weight"))).unwrap_or("");
        let part = Parts { loader: &loader, prefix, old: loader.has(&format!("{prefix}embeddings.LayerNorm.gamma")) };
        let width = shape.width;
        let matrix =
            |name: &str, rows| loader.matrix(&format!("{prefix}{name}.weight"), &Part::whole(rows), width, true);
        let words = matrix(WORDS, shape.vocabulary)?;
        let positions = matrix("embeddings.position_embeddings", shape.first_position + shape.context)?;
        let kind = match shape.family.as_str() {
            "distilbert" => None,
            _ => {
                let types = directory.config().size("type_vocab_size", 1024)?;
                let mut kind = vec![0.0; width];
                matrix("embeddings.token_type_embeddings", types)?.read_row(0, &mut kind);
                Some(kind)
            }
        };
        let norm = part.norm("embeddings.LayerNorm", width)?;
        let layers = (0..shape.layers).map(|index| part.layer(names, index, &shape)).collect::<Result<_, _>>()?;
        // Heads for other purposes, and a counter that old files carry.
        let known = ["pooler.", "cls.", "lm_head.", "qa_outputs.", "vocab_", "embeddings.position_ids"];
        loader.finish(|name| {
            let own = name.strip_prefix(prefix).unwrap_or(name);
            known.iter().any(|known| own.starts_with(known) || name.starts_with(known))
        })?;
        Ok(Self { shape, level: Level::detect(), words, positions, kind, norm, layers })
    }

    /// Its sizes.
    pub fn shape(&self) -> &EncoderShape {
        &self.shape
    }

    /// Memory of the weights in matrices, in bytes.
    pub fn bytes(&self) -> u64 {
        let linears = |layer: &Layer| {
            let all = [&layer.query, &layer.key, &layer.value, &layer.output, &layer.up, &layer.down];
            all.iter().map(|linear| linear.matrix.bytes()).sum::<u64>()
        };
        self.words.bytes() + self.positions.bytes() + self.layers.iter().map(linears).sum::<u64>()
    }

    /// The vectors of all tokens of some texts, one after the other, each [`EncoderShape::width`] long. What stands beside a
    /// text makes no difference to it. Texts are cut at [`EncoderShape::context`] tokens; unknown tokens count as token 0.
    pub fn encode<'scratch>(&self, scratch: &'scratch mut EncoderScratch, texts: &[&[u32]]) -> &'scratch [f32] {
        let texts: Vec<&[u32]> = texts.iter().map(|text| &text[..text.len().min(self.shape.context)]).collect();
        self.look_up(scratch, &texts);
        for layer in &self.layers {
            self.attention(layer, scratch, &texts);
            self.feed_forward(layer, scratch);
        }
        scratch.stream.values()
    }

    fn look_up(&self, scratch: &mut EncoderScratch, texts: &[&[u32]]) {
        let width = self.shape.width;
        let rows = texts.iter().map(|text| text.len()).sum();
        scratch.normed.resize(width, 0.0);
        let stream = scratch.stream.reset(rows, width);
        let tokens = texts.iter().flat_map(|text| text.iter().enumerate());
        for ((position, token), row) in tokens.zip(stream.chunks_exact_mut(width)) {
            let token = *token as usize;
            self.words.read_row(if token < self.shape.vocabulary { token } else { 0 }, row);
            self.positions.read_row(self.shape.first_position + position, &mut scratch.normed);
            add(self.level, row, &scratch.normed);
            if let Some(kind) = &self.kind {
                add(self.level, row, kind);
            }
            self.norm(&self.norm, row, &mut scratch.normed);
        }
    }

    fn attention(&self, layer: &Layer, scratch: &mut EncoderScratch, texts: &[&[u32]]) {
        let (width, rows) = (self.shape.width, scratch.stream.rows());
        scratch.stream.quantize(self.level);
        for (linear, out) in
            [(&layer.query, &mut scratch.queries), (&layer.key, &mut scratch.keys), (&layer.value, &mut scratch.values)]
        {
            out.resize(rows * width, 0.0);
            linear.multiply(self.level, &scratch.stream, out);
        }
        let head = width / self.shape.heads;
        let weighing = Weighing { scale: 1.0 / (head as f32).sqrt(), cap: None };
        let attended = scratch.attended.reset(rows, width);
        let mut start = 0;
        for text in texts {
            let range = start * width..(start + text.len()) * width;
            start += text.len();
            scratch.scores.resize(text.len(), 0.0);
            let (queries, keys, values) =
                (&scratch.queries[range.clone()], &scratch.keys[range.clone()], &scratch.values[range.clone()]);
            let out = &mut attended[range];
            for at in (0..width).step_by(head) {
                let [own_keys, own_values] = &mut scratch.head;
                gather(keys, width, at..at + head, own_keys);
                gather(values, width, at..at + head, own_values);
                for (query, out) in queries.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                    let kept = std::iter::once((own_keys.as_slice(), own_values.as_slice()));
                    let (query, out) = (&query[at..at + head], &mut out[at..at + head]);
                    let queries = Queries { values: query, head, rows: 1 };
                    attend(self.level, queries, kept, &weighing, &mut scratch.scores, out);
                }
            }
        }
        scratch.attended.quantize(self.level);
        scratch.back.resize(rows * width, 0.0);
        layer.output.multiply(self.level, &scratch.attended, &mut scratch.back);
        self.add_and_norm(&layer.output_norm, scratch);
    }

    fn feed_forward(&self, layer: &Layer, scratch: &mut EncoderScratch) {
        let rows = scratch.stream.rows();
        scratch.stream.quantize(self.level);
        scratch.queries.resize(rows * self.shape.hidden, 0.0);
        layer.up.multiply(self.level, &scratch.stream, &mut scratch.queries);
        let inner = scratch.inner.reset(rows, self.shape.hidden);
        match self.shape.activation {
            Activation::GeluTanh => gelu(self.level, &scratch.queries, inner),
            Activation::Gelu => {
                inner.copy_from_slice(&scratch.queries);
                gelu_exact(self.level, inner);
            }
            Activation::Relu => inner.iter_mut().zip(&scratch.queries).for_each(|(out, x)| *out = x.max(0.0)),
        }
        scratch.inner.quantize(self.level);
        layer.down.multiply(self.level, &scratch.inner, &mut scratch.back);
        self.add_and_norm(&layer.down_norm, scratch);
    }

    /// `stream = norm(stream + back)`.
    fn add_and_norm(&self, norm: &Norm, scratch: &mut EncoderScratch) {
        let width = self.shape.width;
        let rows = scratch.stream.rows();
        let stream = scratch.stream.reset(rows, width);
        add(self.level, stream, &scratch.back);
        stream.chunks_exact_mut(width).for_each(|row| self.norm(norm, row, &mut scratch.normed));
    }

    fn norm(&self, norm: &Norm, row: &mut [f32], out: &mut [f32]) {
        layer_norm(self.level, row, &norm.weight, &norm.bias, self.shape.epsilon, out);
        row.copy_from_slice(out);
    }
}

/// The name of the table of words.
const WORDS: &str = "embeddings.word_embeddings";

/// One head's columns, row after row.
fn gather(from: &[f32], width: usize, columns: std::ops::Range<usize>, into: &mut Vec<f32>) {
    into.clear();
    from.chunks_exact(width).for_each(|row| into.extend_from_slice(&row[columns.clone()]));
}

/// Reads parts by their names.
struct Parts<'file> {
    loader: &'file Loader<'file>,
    prefix: &'static str,
    /// Whether norms are called as in files converted from TensorFlow.
    old: bool,
}

impl Parts<'_> {
    fn layer(&self, names: &Names, index: usize, shape: &EncoderShape) -> Result<Layer, LoadError> {
        let stem = |part: &str| format!("{}.{index}.{part}", names.layer);
        let linear = |part: &str, rows, cols| self.linear(&stem(part), rows, cols);
        let (width, hidden) = (shape.width, shape.hidden);
        Ok(Layer {
            query: linear(names.query, width, width)?,
            key: linear(names.key, width, width)?,
            value: linear(names.value, width, width)?,
            output: linear(names.output, width, width)?,
            output_norm: self.norm(&stem(names.output_norm), width)?,
            up: linear(names.up, hidden, width)?,
            down: linear(names.down, width, hidden)?,
            down_norm: self.norm(&stem(names.down_norm), width)?,
        })
    }

    fn linear(&self, stem: &str, rows: usize, cols: usize) -> Result<Linear, LoadError> {
        let stem = format!("{}{stem}", self.prefix);
        let matrix = self.loader.matrix(&format!("{stem}.weight"), &Part::whole(rows), cols, false)?;
        Ok(Linear { matrix, bias: Some(self.loader.vector(&format!("{stem}.bias"), &Part::whole(rows))?) })
    }

    fn norm(&self, stem: &str, width: usize) -> Result<Norm, LoadError> {
        let (weight, bias) = if self.old { ("gamma", "beta") } else { ("weight", "bias") };
        let read = |kind: &str| self.loader.vector(&format!("{}{stem}.{kind}", self.prefix), &Part::whole(width));
        Ok(Norm { weight: read(weight)?, bias: read(bias)? })
    }
}
