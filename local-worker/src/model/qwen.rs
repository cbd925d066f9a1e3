//! Qwen2.5, with biases on queries, keys and values, and Qwen3, which norms queries and keys instead and gives the size of
//! its heads.

use super::config::Config;
use super::facts::{Facts, Metadata};
use super::family::{base_of_config, base_of_gguf, check_activation, tied_config, tied_gguf, windowed};
use super::names::{Names, Plan};
use super::shape::{Biases, DecoderShape, Pairing};
use super::{LoadError, LoadOptions};

/// Size of Qwen3's heads where the file does not say.
const HEAD: usize = 128;

fn as_qwen(base: DecoderShape) -> DecoderShape {
    let third = base.family == "qwen3";
    DecoderShape { head_norms: third, biases: Biases { projections: !third, ..Biases::default() }, ..base }
}

/// From GGUF.
///
/// # Errors
/// Metadata is missing or out of range.
pub fn of_gguf(facts: &Metadata<'_, '_>, options: &LoadOptions) -> Result<Plan, LoadError> {
    if facts.has("attention.sliding_window") {
        return Err(facts.refusal("a sliding window, of which this file can't say where, is not supported".to_owned()));
    }
    let shape = as_qwen(base_of_gguf(facts, Pairing::Halves, options)?);
    Ok(Plan { shape, names: Names::gguf(), tied: tied_gguf(facts) })
}

/// From `config.json`.
///
/// # Errors
/// Values are missing or out of range.
pub fn of_config(config: &Config, family: &'static str, options: &LoadOptions) -> Result<Plan, LoadError> {
    check_activation(config, "hidden_act", &["silu"])?;
    let third = family == "qwen3";
    let mut shape = as_qwen(base_of_config(config, family, third.then_some(HEAD), "rms_norm_eps", options)?);
    if third && config.flag("attention_bias").unwrap_or(false) {
        shape.biases = Biases { projections: true, output: true, ..Biases::default() };
    }
    if config.flag("use_sliding_window").unwrap_or(false)
        && let Some(window) = config.optional_size("sliding_window", u64::from(u32::MAX))?
    {
        let from = config.integer("max_window_layers").unwrap_or(0);
        let windowed = windowed(config, shape.layers, |layer| layer as u64 >= from)?;
        for (layer, windowed) in shape.attention.iter_mut().zip(windowed) {
            layer.window = windowed.then_some(window);
        }
    }
    Ok(Plan { shape, names: Names::transformers(), tied: tied_config(config, false) })
}
