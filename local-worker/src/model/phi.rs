//! Phi-2 (and Phi-1): attention and feed-forward part side by side after one LayerNorm, biases everywhere, a part of each
//! head turned, no gate.

use super::config::Config;
use super::facts::{Facts, Metadata};
use super::family::{base_of_config, base_of_gguf, check_activation, check_off, tied_config, tied_gguf};
use super::names::{Names, Plan};
use super::shape::{Biases, DecoderShape, Feed, NormKind, Pairing};
use super::tensors::Tensors;
use super::{LoadError, LoadOptions};

fn as_phi(base: DecoderShape, head: bool) -> DecoderShape {
    DecoderShape {
        norm: NormKind::Layer,
        feed: Feed::Gelu,
        parallel: true,
        biases: Biases { projections: true, output: true, feed: true, head },
        ..base
    }
}

/// From GGUF.
///
/// # Errors
/// Metadata is missing or out of range.
pub fn of_gguf(facts: &Metadata<'_, '_>, options: &LoadOptions) -> Result<Plan, LoadError> {
    let shape = as_phi(base_of_gguf(facts, Pairing::Halves, options)?, facts.file.has("output.bias"));
    let names = Names { fused: Some("attn_qkv"), ..Names::gguf() };
    Ok(Plan { shape, names, tied: tied_gguf(facts) })
}

/// From `config.json`.
///
/// # Errors
/// Values are missing or out of range.
pub fn of_config(config: &Config, options: &LoadOptions) -> Result<Plan, LoadError> {
    check_activation(config, "hidden_act", &["gelu_new", "gelu_pytorch_tanh"])?;
    check_off(config, "qk_layernorm")?;
    if config.positive("partial_rotary_factor")?.is_none()
        && config.object("rope_parameters").is_none_or(|inner| !inner.has("partial_rotary_factor"))
    {
        return Err(config.missing("partial_rotary_factor"));
    }
    let shape = as_phi(base_of_config(config, "phi2", None, "layer_norm_eps", options)?, true);
    let names = Names {
        norm: "model.final_layernorm",
        output: "self_attn.dense",
        up: "mlp.fc1",
        down: "mlp.fc2",
        ..Names::transformers()
    };
    Ok(Plan { shape, names, tied: tied_config(config, false) })
}
