//! Gemma 2 and the text models of Gemma 3: norms before and after, embeddings scaled by the root of the width, GELU gates,
//! windows on some layers. Gemma 2 caps scores and logits; Gemma 3 norms queries and keys, and turns layers with a window
//! by another base.
//!
//! Norm weights are kept without their 1 in safetensors, with it in GGUF.

use super::config::Config;
use super::facts::{Facts, Metadata};
use super::family::{base_of_config, base_of_gguf, check_activation, check_off, tied_config, tied_gguf, windowed};
use super::names::{Names, Plan};
use super::rotary::{Turned, plain, stretched};
use super::shape::{DecoderShape, Feed, LayerAttention, Pairing, Rotary};
use super::{LoadError, LoadOptions};

/// Size of a head where the file does not say.
const HEAD: usize = 256;
/// Base of Gemma 3's layers with a window where the file does not say.
const LOCAL_BASE: f64 = 10_000.0;
/// Base of its other layers.
const GLOBAL_BASE: f64 = 1_000_000.0;
/// Every so many layers of Gemma 3 see everything.
const PATTERN: usize = 6;
/// Layers of the largest models of both generations, whose scores are scaled by another size. GGUF has no key for that; its
/// readers know the models by their layers.
const LARGEST: [(&str, usize); 2] = [("gemma2", 46), ("gemma3", 62)];

fn as_gemma(base: DecoderShape) -> DecoderShape {
    DecoderShape {
        feed: Feed::GatedGelu,
        post_norms: true,
        head_norms: base.family == "gemma3",
        embedding_scale: (base.width as f32).sqrt(),
        ..base
    }
}

/// The rule of each generation: every second layer from the first, or all but every sixth.
fn rule(family: &str, pattern: usize) -> impl Fn(usize) -> bool {
    let pattern = if family == "gemma2" { 2 } else { pattern };
    move |layer| !(layer + 1).is_multiple_of(pattern)
}

fn set_windows(shape: &mut DecoderShape, window: usize, windowed: Vec<bool>) {
    let local = usize::from(shape.family == "gemma3");
    shape.attention = windowed
        .into_iter()
        .map(|windowed| match windowed {
            true => LayerAttention { window: Some(window), rotary: local },
            false => LayerAttention { window: None, rotary: 0 },
        })
        .collect();
}

fn local(base: f64, head: usize) -> Rotary {
    let frequencies = plain(base, head).into_iter().map(|frequency| frequency as f32).collect();
    Rotary { pairing: Pairing::Halves, frequencies, magnitude: 1.0 }
}

/// From GGUF.
///
/// # Errors
/// Metadata is missing or out of range.
pub fn of_gguf(facts: &Metadata<'_, '_>, options: &LoadOptions) -> Result<Plan, LoadError> {
    let mut shape = as_gemma(base_of_gguf(facts, Pairing::Halves, options)?);
    let gemma3 = shape.family == "gemma3";
    let cap = |key: &str| facts.positive(key).map(|cap| cap.map(|cap| cap as f32));
    shape.score_cap = cap("attn_logit_softcapping")?;
    shape.logit_cap = cap("final_logit_softcapping")?;
    if LARGEST.contains(&(shape.family, shape.layers)) {
        shape.scale = 1.0 / (shape.width as f32 / shape.heads as f32).sqrt();
    }
    if gemma3 {
        if !facts.has("rope.freq_base") {
            return Err(facts.missing("rope.freq_base"));
        }
        shape.rotary.push(local(facts.positive("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE), shape.head));
    }
    let window = facts.size("attention.sliding_window", u64::from(u32::MAX))?;
    let pattern = facts.optional_size("attention.sliding_window_pattern", 1 << 10)?.unwrap_or(PATTERN);
    let windowed = (0..shape.layers).map(rule(shape.family, pattern)).collect();
    set_windows(&mut shape, window, windowed);
    Ok(Plan { shape, names: Names::gguf(), tied: tied_gguf(facts) })
}

/// From `config.json`.
///
/// # Errors
/// Values are missing or out of range.
pub fn of_config(config: &Config, family: &'static str, options: &LoadOptions) -> Result<Plan, LoadError> {
    check_activation(config, "hidden_activation", &["gelu_pytorch_tanh"])?;
    check_off(config, "use_bidirectional_attention")?;
    check_off(config, "attention_bias")?;
    let mut shape = as_gemma(base_of_config(config, family, Some(HEAD), "rms_norm_eps", options)?);
    let scalar = config.positive("query_pre_attn_scalar")?.ok_or_else(|| config.missing("query_pre_attn_scalar"))?;
    shape.scale = 1.0 / (scalar as f32).sqrt();
    let cap = |key: &str| config.positive(key).map(|cap| cap.map(|cap| cap as f32));
    shape.score_cap = cap("attn_logit_softcapping")?;
    shape.logit_cap = cap("final_logit_softcapping")?;
    if family == "gemma3" {
        shape.rotary = two_bases(config, &shape, options)?;
    }
    let pattern = config.optional_size("sliding_window_pattern", 1 << 10)?.unwrap_or(PATTERN);
    let windowed = windowed(config, shape.layers, rule(family, pattern))?;
    let window = config.size("sliding_window", u64::from(u32::MAX))?;
    set_windows(&mut shape, window, windowed);
    let names = Names { feed_norm: "pre_feedforward_layernorm", norm_offset: 1.0, ..Names::transformers() };
    Ok(Plan { shape, names, tied: tied_config(config, true) })
}

/// Gemma 3's tables: for layers that see everything, and for those with a window.
fn two_bases(config: &Config, shape: &DecoderShape, options: &LoadOptions) -> Result<Vec<Rotary>, LoadError> {
    let tables = config.object("rope_parameters");
    let table = |kind: &str| tables.as_ref().and_then(|tables| tables.object(kind));
    let global = table("full_attention").or_else(|| config.object("rope_scaling"));
    let base = |table: &Option<Config>, key: &str, otherwise: f64| {
        let inner = table.as_ref().map(|table| table.positive("rope_theta")).transpose()?.flatten();
        Ok::<f64, LoadError>(inner.or(config.positive(key)?).unwrap_or(otherwise))
    };
    let (head, context) = (shape.head, shape.context);
    let turned =
        Turned { config, scaling: global.as_ref(), base: base(&global, "rope_theta", GLOBAL_BASE)?, head, context };
    let windowed = table("sliding_attention");
    Ok(vec![stretched(&turned, options)?, local(base(&windowed, "rope_local_base_freq", LOCAL_BASE)?, head)])
}
