//! A network with what a model file says beside its weights: vocabulary, chat template, decline text.
//!
//! Text becomes tokens by the very code that serves: the metadata that will be written is read as a file's would be.

use super::TrainError;
use super::network::{Network, Shape};
use super::vocabulary::{CHAT_TEMPLATE, Vocabulary};
use crate::compress::{CompressError, Weights};
use crate::engine::{ChatMessage, Front, ModelSource};
use crate::model::{Feed, Gguf, LoadError, NormKind, Pairing};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use candle_core::quantized::gguf_file::{self, Value};
use std::collections::BTreeMap;

/// What a model file says beside its weights.
pub type Metadata = BTreeMap<String, Value>;

/// What a model of its own vocabulary says.
///
/// # Errors
/// The vocabulary can't be taken apart.
pub fn metadata(name: &str, decline: &str, vocabulary: &Vocabulary) -> Result<Metadata, TrainError> {
    let (tokens, merges) = vocabulary.parts()?;
    let text = |text: &str| Value::String(text.to_owned());
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    // 1 is a plain token, 3 a control token.
    let kinds = tokens.iter().map(|token| Value::I32(if Vocabulary::is_mark(token) { 3 } else { 1 }));
    let kinds = Value::Array(kinds.collect());
    let mut metadata: Metadata = [
        ("general.architecture", text("llama")),
        ("general.name", text(name)),
        ("general.license", text("Apache-2.0")),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.tokens", texts(tokens)),
        ("tokenizer.ggml.token_type", kinds),
        ("tokenizer.ggml.merges", texts(merges)),
        ("tokenizer.ggml.bos_token_id", Value::U32(vocabulary.end)),
        ("tokenizer.ggml.eos_token_id", Value::U32(vocabulary.end)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.chat_template", text(CHAT_TEMPLATE)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    if !decline.is_empty() {
        metadata.insert("sluice.decline".to_owned(), text(decline));
    }
    Ok(metadata)
}

/// Metadata with the sizes of `shape` in the place of what it said of them.
fn sized(metadata: &Metadata, shape: &Shape) -> Metadata {
    let count = |count: usize| Value::U32(u32::try_from(count).unwrap_or(u32::MAX));
    let mut sized = metadata.clone();
    sized.extend(
        [
            ("block_count", count(shape.layers)),
            ("context_length", count(shape.context)),
            ("embedding_length", count(shape.width)),
            ("feed_forward_length", count(shape.feed_forward)),
            ("attention.head_count", count(shape.heads)),
            ("attention.head_count_kv", count(shape.kv_heads)),
            ("attention.key_length", count(shape.head())),
            ("attention.value_length", count(shape.head())),
            ("attention.layer_norm_rms_epsilon", Value::F32(shape.norm_epsilon as f32)),
            ("rope.freq_base", Value::F32(shape.rope_base as f32)),
            ("rope.dimension_count", count(shape.head())),
            ("vocab_size", count(shape.vocabulary)),
        ]
        .map(|(key, value)| (format!("llama.{key}"), value)),
    );
    sized
}

/// A network as a model that can be written, its weights in single precision.
///
/// # Errors
/// Metadata and network make no model that this build runs.
pub fn weights(network: &Network, metadata: &Metadata) -> Result<Weights, CompressError> {
    let tensors = network.parts.iter().filter_map(|part| {
        let size = if part.is_norm() { vec![part.columns] } else { vec![part.rows, part.columns] };
        Some((part.name.clone(), size, network.weights.get(part.range())?))
    });
    Weights::of_parts("the trained network", sized(metadata, &network.shape), tensors)
}

/// Reads a model to go on from: a network of its weights, and what it says beside them.
///
/// # Errors
/// The model can't be read or is no Llama.
pub fn read(source: &ModelSource) -> Result<(Network, Metadata), TrainError> {
    let weights = Weights::read(source)?;
    let shape = shape(&weights)?;
    let mut network = Network::zero(shape);
    for part in network.parts.clone() {
        let values = weights.values(&part.name)?;
        let values = values.flatten_all().and_then(|values| values.to_vec1::<f32>());
        let values = values.map_err(|error| untrainable(&weights, format!("tensor {}: {error}", part.name)))?;
        let place = network.weights.get_mut(part.range()).filter(|place| place.len() == values.len());
        place
            .ok_or_else(|| untrainable(&weights, format!("tensor {} is of another size", part.name)))?
            .copy_from_slice(&values);
    }
    Ok((network, weights.metadata().clone()))
}

fn untrainable(weights: &Weights, problem: String) -> TrainError {
    TrainError::Untrainable { file: weights.file().to_owned(), problem }
}

/// The sizes of a Llama; anything else is refused.
fn shape(weights: &Weights) -> Result<Shape, TrainError> {
    let found = weights.shape();
    let rotary = found.rotary.first();
    let biased = found.biases.projections || found.biases.output || found.biases.feed || found.biases.head;
    let plain = found.family == "llama"
        && found.norm == NormKind::Rms
        && found.feed == Feed::GatedSilu
        && !(found.parallel || found.head_norms || found.post_norms || biased)
        && rotary.is_some_and(|rotary| {
            rotary.pairing == Pairing::Neighbours
                && rotary.frequencies.len() * 2 == found.head
                && rotary.magnitude == 1.0
        })
        && !weights.has("rope_freqs.weight");
    if !plain {
        let problem = format!("it is a {}; models of the plain Llama architecture can be", found.family);
        return Err(untrainable(weights, problem));
    }
    let base = match weights.metadata().get("llama.rope.freq_base") {
        Some(value) => value.to_f32().map_err(|error| untrainable(weights, error.to_string()))?,
        None => 10_000.0,
    };
    Ok(Shape {
        vocabulary: found.vocabulary,
        width: found.width,
        layers: found.layers,
        heads: found.heads,
        kv_heads: found.key_heads,
        head_width: Some(found.head),
        feed_forward: found.hidden,
        context: found.context,
        rope_base: f64::from(base),
        // The decimal that the single was made of.
        norm_epsilon: found.epsilon.to_string().parse().unwrap_or(f64::from(found.epsilon)),
        own_output: weights.has("output.weight"),
    })
}

/// Turns questions and answers into tokens, as the engine does.
pub struct Words {
    front: Front,
    end: u32,
}

impl Words {
    /// Reads vocabulary and template out of metadata.
    ///
    /// # Errors
    /// They are missing or of a kind this build does not know, or no token ends an answer.
    pub fn new(metadata: &Metadata, vocabulary: usize) -> Result<Self, TrainError> {
        let wrong = |problem: String| TrainError::Vocabulary(problem);
        let mut bytes = std::io::Cursor::new(Vec::new());
        let all: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        gguf_file::write(&mut bytes, &all, &[]).map_err(|error| wrong(error.to_string()))?;
        let of_load = |error: LoadError| wrong(error.to_string());
        let file = Gguf::parse("the model", bytes.get_ref()).map_err(of_load)?;
        let tokenizer = Tokenizer::load(&file, vocabulary).map_err(of_load)?;
        let end = tokenizer.end().ok_or_else(|| wrong("no token ends an answer".to_owned()))?;
        let (begin, ending) = tokenizer.names();
        let template = ChatTemplate::new(file.text("tokenizer.chat_template"), begin, ending).map_err(wrong)?;
        Ok(Self { front: Front { tokenizer, template }, end })
    }

    /// Tokens of a prompt up to and including the opening of the model's turn, and of its answer with its end.
    ///
    /// # Errors
    /// The template refuses the prompt.
    pub fn example(&self, prompt: &str, answer: &str) -> Result<(Vec<u32>, Vec<u32>), TrainError> {
        let message = ChatMessage { role: "user".to_owned(), content: prompt.to_owned() };
        let prompt =
            self.front.encode(&[message], usize::MAX).map_err(|error| TrainError::Vocabulary(error.to_string()))?;
        let mut answer = self.encode(answer)?;
        answer.push(self.end);
        Ok((prompt, answer))
    }

    /// Tokens of plain text.
    ///
    /// # Errors
    /// The text can't be split.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TrainError> {
        self.front.tokenizer.encode(text).map_err(TrainError::Vocabulary)
    }

    /// What a token contributes to text; nothing for control tokens.
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.front.tokenizer.bytes(token)
    }
}

/// Sets the first embeddings to vectors of the tokens' texts, as long as the network's are wide at most, scaled to the
/// deviation that random ones have; tokens without letters or digits keep theirs. Returns how many were set.
pub fn embed(network: &mut Network, words: &Words, embedder: &crate::embed::StaticEmbedder) -> usize {
    let (width, vocabulary) = (network.shape.width, network.shape.vocabulary);
    let Some(embedding) = network.tensor_mut("token_embd.weight") else { return 0 };
    let deviation = (embedding.iter().map(|x| f64::from(x * x)).sum::<f64>() / embedding.len().max(1) as f64).sqrt();
    let (mut set, mut vector) = (0, vec![0.0; embedder.dims()]);
    for (token, row) in embedding.chunks_exact_mut(width).enumerate().take(vocabulary) {
        let bytes = words.bytes(token as u32);
        let Ok(text) = std::str::from_utf8(bytes) else { continue };
        if !text.chars().any(char::is_alphanumeric) {
            continue;
        }
        embedder.embed(text, &mut vector);
        let norm = vector.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        if norm < 1e-6 {
            continue;
        }
        let scale = deviation * (width as f64).sqrt() / norm;
        // What the vector does not reach stays as it was drawn.
        for (value, x) in row.iter_mut().zip(&vector) {
            *value = (f64::from(*x) * scale) as f32;
        }
        set += 1;
    }
    set
}

#[cfg(test)]
mod tests;
