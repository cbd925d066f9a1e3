//! Llama: SmolLM2, Llama 2 and 3, TinyLlama, the bundled `sluice-nano`.
//!
//! GGUF keeps query and key rows permuted so that rotary pairs are neighbours; `rope_freqs.weight` divides each pair's
//! frequency (Llama 3.1 and later).

use super::config::Config;
use super::facts::Facts;
use super::facts::Metadata;
use super::family::{base_of_config, base_of_gguf, check_activation, tied_config, tied_gguf};
use super::names::{Names, Plan};
use super::shape::{Biases, Pairing};
use super::tensors::Tensors;
use super::{LoadError, LoadOptions};

/// From GGUF.
///
/// # Errors
/// Metadata is missing or out of range.
pub fn of_gguf(facts: &Metadata<'_, '_>, options: &LoadOptions) -> Result<Plan, LoadError> {
    let mut shape = base_of_gguf(facts, Pairing::Neighbours, options)?;
    shape.biases = Biases {
        projections: facts.file.has("blk.0.attn_q.bias"),
        output: facts.file.has("blk.0.attn_output.bias"),
        feed: facts.file.has("blk.0.ffn_up.bias"),
        head: false,
    };
    Ok(Plan { shape, names: Names::gguf(), tied: tied_gguf(facts) })
}

/// From `config.json`.
///
/// # Errors
/// Values are missing or out of range.
pub fn of_config(config: &Config, options: &LoadOptions) -> Result<Plan, LoadError> {
    check_activation(config, "hidden_act", &["silu"])?;
    let mut shape = base_of_config(config, "llama", None, "rms_norm_eps", options)?;
    let attention = config.flag("attention_bias").unwrap_or(false);
    shape.biases = Biases {
        projections: attention,
        output: attention,
        feed: config.flag("mlp_bias").unwrap_or(false),
        head: false,
    };
    Ok(Plan { shape, names: Names::transformers(), tied: tied_config(config, false) })
}
