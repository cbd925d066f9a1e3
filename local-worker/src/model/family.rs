//! Which family a file is of, and what all families have in common; each then says what is its own.

use super::config::Config;
use super::facts::{Facts, Metadata};
use super::names::Plan;
use super::rotary;
use super::shape::{Biases, DecoderShape, Feed, LayerAttention, NormKind, Pairing};
use super::tensors::Tensors;
use super::{Gguf, LoadError, LoadOptions, gemma, llama, phi, phi3, qwen};

/// Tokens, entries and heads a model may have at most: far beyond any, and far below what would overflow.
const MOST: u64 = 1 << 24;
const MOST_HEADS: u64 = 1 << 12;

/// What this build runs, for messages.
const KNOWN: &str = "llama, phi2, phi3, gemma2, gemma3, qwen2 and qwen3";

/// The model of a GGUF file.
///
/// # Errors
/// An unknown architecture; metadata that is missing or contradicts itself.
pub fn of_gguf(file: &Gguf<'_>, options: &LoadOptions) -> Result<Plan, LoadError> {
    let architecture = file
        .text("general.architecture")
        .ok_or_else(|| file.malformed("metadata key general.architecture is missing or of another type"))?;
    let facts = |family| Metadata { file, family };
    let plan = match architecture {
        "llama" => llama::of_gguf(&facts("llama"), options),
        "phi2" => phi::of_gguf(&facts("phi2"), options),
        "phi3" => phi3::of_gguf(&facts("phi3"), options),
        "gemma2" => gemma::of_gguf(&facts("gemma2"), options),
        "gemma3" => gemma::of_gguf(&facts("gemma3"), options),
        "qwen2" => qwen::of_gguf(&facts("qwen2"), options),
        "qwen3" => qwen::of_gguf(&facts("qwen3"), options),
        other => Err(file.unsupported(format!("the architecture is {other}; this build runs {KNOWN}"))),
    }?;
    match plan.shape.problem() {
        None => Ok(plan),
        Some(problem) => Err(file.malformed(problem)),
    }
}

/// The sizes of a GGUF file's model.
///
/// # Errors
/// As [`of_gguf`].
pub fn shape_of(file: &Gguf<'_>, options: &LoadOptions) -> Result<DecoderShape, LoadError> {
    of_gguf(file, options).map(|plan| plan.shape)
}

/// The model of a `config.json`.
///
/// # Errors
/// An unknown architecture; values that are missing or contradict each other.
pub fn of_config(config: &Config, options: &LoadOptions) -> Result<Plan, LoadError> {
    let kind = config.text("model_type").ok_or_else(|| config.missing("model_type"))?;
    let plan = match kind {
        "llama" => llama::of_config(config, options),
        "phi" => phi::of_config(config, options),
        "phi3" => phi3::of_config(config, options),
        "gemma2" => gemma::of_config(config, "gemma2", options),
        "gemma3_text" => gemma::of_config(config, "gemma3", options),
        "qwen2" => qwen::of_config(config, "qwen2", options),
        "qwen3" => qwen::of_config(config, "qwen3", options),
        other => {
            let known = "llama, phi, phi3, gemma2, gemma3_text, qwen2 and qwen3";
            Err(config.refusal(format!("model_type is {other}; this build runs {known}")))
        }
    }?;
    match plan.shape.problem() {
        None => Ok(plan),
        Some(problem) => Err(config.fault(problem)),
    }
}

/// What GGUF files of all families have, the rest being as Llama is.
///
/// # Errors
/// Metadata is missing or out of range.
pub fn base_of_gguf(
    facts: &Metadata<'_, '_>,
    pairing: Pairing,
    options: &LoadOptions,
) -> Result<DecoderShape, LoadError> {
    let sizes = Sizes {
        width: facts.size("embedding_length", 1 << 16)?,
        heads: facts.size("attention.head_count", MOST_HEADS)?,
        key_heads: facts.optional_size("attention.head_count_kv", MOST_HEADS)?,
        head: facts.optional_size("attention.key_length", MOST_HEADS)?,
        layers: facts.size("block_count", 1 << 10)?,
        hidden: facts.size("feed_forward_length", 1 << 18)?,
        context: facts.size("context_length", MOST)?,
    };
    let head = sizes.head.unwrap_or(sizes.width / sizes.heads);
    if facts.integer("attention.value_length").is_some_and(|value| value != head as u64) {
        return Err(facts.refusal("value heads of another size than key heads are not supported".to_owned()));
    }
    if facts.integer("expert_count").is_some_and(|count| count > 0) {
        return Err(facts.refusal("mixtures of experts are not supported".to_owned()));
    }
    let embedding = facts.file.tensor("token_embd.weight");
    let embedding = embedding.ok_or_else(|| facts.fault("tensor token_embd.weight is missing".to_owned()))?;
    let vocabulary = match embedding.dimensions.as_slice() {
        [_, rows] if *rows <= MOST => *rows as usize,
        other => return Err(facts.fault(format!("tensor token_embd.weight has the impossible shape {other:?}"))),
    };
    let rotary = rotary::of_gguf(facts, pairing, head, sizes.context, options)?;
    let epsilon = |key: &str| facts.has(key).then(|| facts.epsilon(key)).transpose();
    let by_deviation = epsilon("attention.layer_norm_epsilon")?;
    let epsilon = match by_deviation {
        Some(epsilon) => epsilon,
        None => facts.epsilon("attention.layer_norm_rms_epsilon")?,
    };
    Ok(sizes.shape(facts.family, head, vocabulary, epsilon, vec![rotary]))
}

/// What configurations of all families have, the rest being as Llama is. `head` is the size of a head where the file does
/// not say; `epsilon` the key of what norms add.
///
/// # Errors
/// Values are missing or out of range.
pub fn base_of_config(
    config: &Config,
    family: &'static str,
    head: Option<usize>,
    epsilon: &str,
    options: &LoadOptions,
) -> Result<DecoderShape, LoadError> {
    let sizes = Sizes {
        width: config.size("hidden_size", 1 << 16)?,
        heads: config.size("num_attention_heads", MOST_HEADS)?,
        key_heads: config.optional_size("num_key_value_heads", MOST_HEADS)?,
        head: config.optional_size("head_dim", MOST_HEADS)?,
        layers: config.size("num_hidden_layers", 1 << 10)?,
        hidden: config.size("intermediate_size", 1 << 18)?,
        context: config.size("max_position_embeddings", MOST)?,
    };
    let head = sizes.head.or(head).unwrap_or(sizes.width / sizes.heads);
    let vocabulary = config.size("vocab_size", MOST)?;
    let rotary = match config.object("rope_parameters") {
        // One table for each kind of layer; only Gemma 3 has that, and reads it itself.
        Some(tables) if tables.object("full_attention").is_some() => Vec::new(),
        _ => vec![rotary::of_config(config, head, sizes.context, options)?],
    };
    Ok(sizes.shape(family, head, vocabulary, config.epsilon(epsilon)?, rotary))
}

/// Sizes as a file gives them.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    width: usize,
    heads: usize,
    key_heads: Option<usize>,
    head: Option<usize>,
    layers: usize,
    hidden: usize,
    context: usize,
}

impl Sizes {
    fn shape(
        self,
        family: &'static str,
        head: usize,
        vocabulary: usize,
        epsilon: f32,
        rotary: Vec<super::shape::Rotary>,
    ) -> DecoderShape {
        DecoderShape {
            family,
            layers: self.layers,
            width: self.width,
            hidden: self.hidden,
            heads: self.heads,
            key_heads: self.key_heads.unwrap_or(self.heads),
            head,
            vocabulary,
            context: self.context,
            norm: NormKind::Rms,
            epsilon,
            rotary,
            attention: vec![LayerAttention { window: None, rotary: 0 }; self.layers],
            scale: 1.0 / (head as f32).sqrt(),
            score_cap: None,
            logit_cap: None,
            embedding_scale: 1.0,
            feed: Feed::GatedSilu,
            parallel: false,
            head_norms: false,
            post_norms: false,
            biases: Biases::default(),
        }
    }
}

/// Whether a GGUF file's embedding serves as its output.
pub fn tied_gguf(facts: &Metadata<'_, '_>) -> bool {
    !facts.file.has("output.weight")
}

/// Whether a configuration says that the embedding serves as the output; `otherwise` is the family's default.
pub fn tied_config(config: &Config, otherwise: bool) -> bool {
    config.flag("tie_word_embeddings").unwrap_or(otherwise)
}

/// Refuses an activation that is not among `known`.
///
/// # Errors
/// It is another.
pub fn check_activation(config: &Config, key: &str, known: &[&str]) -> Result<(), LoadError> {
    match config.text(key) {
        Some(name) if !known.contains(&name) => {
            Err(config.refusal(format!("{key} is {name}; this build runs {}", known.join(" and "))))
        }
        _ => Ok(()),
    }
}

/// Refuses a switch that must be off.
///
/// # Errors
/// It is on.
pub fn check_off(config: &Config, key: &str) -> Result<(), LoadError> {
    match config.flag(key) {
        Some(true) => Err(config.refusal(format!("{key} is on, which is not supported"))),
        _ => Ok(()),
    }
}

/// Which layers see a window: as `layer_types` says, or by the family's rule where the file has none.
///
/// # Errors
/// The list has an unknown kind or another length.
pub fn windowed(config: &Config, layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>, LoadError> {
    let Some(kinds) = config.texts("layer_types")? else { return Ok((0..layers).map(rule).collect()) };
    if kinds.len() != layers {
        return Err(config.fault(format!("layer_types has {} entries for {layers} layers", kinds.len())));
    }
    let kind = |kind: &&str| match *kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(config.refusal(format!("layer_types has \"{other}\", which is not supported"))),
    };
    kinds.iter().map(kind).collect()
}
