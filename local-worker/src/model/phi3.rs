//! Phi-3, Phi-3.5 and Phi-4-mini: as Llama, with queries, keys and values in one tensor, gate and up in another, a window on
//! every layer, and LongRoPE in those with long context.

use super::config::Config;
use super::facts::{Facts, Metadata};
use super::family::{base_of_config, base_of_gguf, check_activation, tied_config, tied_gguf};
use super::names::{Names, Plan};
use super::shape::Pairing;
use super::{LoadError, LoadOptions};

/// From GGUF. The window is kept, as `transformers` keeps it; llama.cpp at present takes none for this family.
///
/// # Errors
/// Metadata is missing or out of range.
pub fn of_gguf(facts: &Metadata<'_, '_>, options: &LoadOptions) -> Result<Plan, LoadError> {
    let mut shape = base_of_gguf(facts, Pairing::Halves, options)?;
    let window = facts.optional_size("attention.sliding_window", u64::from(u32::MAX))?;
    shape.attention.iter_mut().for_each(|layer| layer.window = window);
    let names = Names { fused: Some("attn_qkv"), gate_up: Some("ffn_up"), ..Names::gguf() };
    Ok(Plan { shape, names, tied: tied_gguf(facts) })
}

/// From `config.json`.
///
/// # Errors
/// Values are missing or out of range.
pub fn of_config(config: &Config, options: &LoadOptions) -> Result<Plan, LoadError> {
    check_activation(config, "hidden_act", &["silu"])?;
    let mut shape = base_of_config(config, "phi3", None, "rms_norm_eps", options)?;
    let window = config.optional_size("sliding_window", u64::from(u32::MAX))?;
    shape.attention.iter_mut().for_each(|layer| layer.window = window);
    let names = Names { fused: Some("self_attn.qkv_proj"), gate_up: Some("mlp.gate_up_proj"), ..Names::transformers() };
    Ok(Plan { shape, names, tied: tied_config(config, false) })
}
