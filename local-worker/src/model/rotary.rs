//! Angles of rotary embeddings, with the ways in which they are stretched for longer contexts. The formulas are those of
//! `transformers` (`modeling_rope_utils.py`), which the published checkpoints were made for.

use std::f64::consts::TAU;

use super::config::Config;
use super::facts::{Facts, Metadata};
use super::format::singles;
use super::shape::{Pairing, Rotary};
use super::tensors::Tensors;
use super::{LoadError, LoadOptions};

/// Pairs a head may have.
const MOST_TURNED: u64 = 1 << 12;

/// What a configuration says of sizes, for [`of_config`].
#[derive(Debug, Clone, Copy)]
pub struct Turned<'config> {
    /// The configuration itself.
    pub config: &'config Config,
    /// The object with the scaling, if there is one.
    pub scaling: Option<&'config Config>,
    /// Base of the frequencies.
    pub base: f64,
    /// Values of a head.
    pub head: usize,
    /// Tokens the model was trained for.
    pub context: usize,
}

/// `base^(−2 pair / turned)` for each pair.
pub fn plain(base: f64, turned: usize) -> Vec<f64> {
    (0..turned / 2).map(|pair| base.powf(-2.0 * pair as f64 / turned as f64)).collect()
}

/// Base, scaling and angles of a `config.json`: `rope_parameters` as today's files have it, `rope_theta` and
/// `rope_scaling` as older ones do.
///
/// # Errors
/// Values are missing, impossible or of a kind this build doesn't know.
pub fn of_config(config: &Config, head: usize, context: usize, options: &LoadOptions) -> Result<Rotary, LoadError> {
    let (scaling, base) = (scaling(config), base(config)?);
    stretched(&Turned { config, scaling: scaling.as_ref(), base, head, context }, options)
}

fn scaling(config: &Config) -> Option<Config> {
    config.object("rope_parameters").or_else(|| config.object("rope_scaling"))
}

/// The base of a configuration's angles.
///
/// # Errors
/// It is not above 0.
pub fn base(config: &Config) -> Result<f64, LoadError> {
    let inner = scaling(config).map(|scaling| scaling.positive("rope_theta")).transpose()?.flatten();
    Ok(match inner {
        Some(base) => base,
        None => config.positive("rope_theta")?.unwrap_or(10_000.0),
    })
}

/// The angles under a scaling.
///
/// # Errors
/// As [`of_config`].
pub fn stretched(turned: &Turned<'_>, options: &LoadOptions) -> Result<Rotary, LoadError> {
    let Turned { config, scaling, base, head, .. } = *turned;
    let inner = scaling.map(|scaling| scaling.positive("partial_rotary_factor")).transpose()?.flatten();
    let part = inner.or(config.positive("partial_rotary_factor")?).unwrap_or(1.0);
    let count = (head as f64 * part) as usize;
    if part > 1.0 || !count.is_multiple_of(2) || count == 0 {
        return Err(config.fault(format!("partial_rotary_factor {part} of a head of {head} values is impossible")));
    }
    let (mut frequencies, mut magnitude) = (plain(base, count), 1.0);
    if let Some(scaling) = scaling {
        let kind = scaling.text("rope_type").or_else(|| scaling.text("type")).unwrap_or("default");
        match kind {
            "default" => {}
            "linear" => {
                let factor = required(scaling, "factor")?;
                frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
            }
            "llama3" => llama3(scaling, &mut frequencies)?,
            "longrope" | "su" => magnitude = longrope(turned, scaling, &mut frequencies, options)?,
            other => {
                let known = "default, linear, llama3 and longrope are supported";
                return Err(scaling.refusal(format!("rope scaling {other} is not supported; {known}")));
            }
        }
    }
    Ok(Rotary {
        pairing: Pairing::Halves,
        frequencies: frequencies.into_iter().map(|frequency| frequency as f32).collect(),
        magnitude: magnitude as f32,
    })
}

fn required(facts: &Config, key: &str) -> Result<f64, LoadError> {
    facts.positive(key)?.ok_or_else(|| facts.missing(key))
}

/// Llama 3.1 and later: slow pairs are slowed by `factor`, fast ones stay, those between go over smoothly.
fn llama3(scaling: &Config, frequencies: &mut [f64]) -> Result<(), LoadError> {
    let value = |key: &str| required(scaling, key);
    let (factor, low, high) = (value("factor")?, value("low_freq_factor")?, value("high_freq_factor")?);
    let original = value("original_max_position_embeddings")?;
    if high <= low {
        return Err(scaling.fault(format!("high_freq_factor {high} must be above low_freq_factor {low}")));
    }
    for frequency in frequencies {
        let turns = original * *frequency / TAU;
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        *frequency *= (1.0 - smooth) / factor + smooth;
    }
    Ok(())
}

/// LongRoPE: each pair has a factor for contexts up to the original one, and another for longer ones. Returns the
/// magnitude.
fn longrope(
    turned: &Turned<'_>,
    scaling: &Config,
    frequencies: &mut [f64],
    options: &LoadOptions,
) -> Result<f64, LoadError> {
    let original = match turned.config.positive("original_max_position_embeddings")? {
        Some(original) => original,
        None => required(scaling, "original_max_position_embeddings")?,
    };
    let long = options.context_limit.unwrap_or(usize::MAX).min(turned.context) as f64 > original;
    let key = if long { "long_factor" } else { "short_factor" };
    let factors = scaling.numbers(key)?.ok_or_else(|| scaling.missing(key))?;
    if factors.len() != frequencies.len() || factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
        let wanted = frequencies.len();
        return Err(scaling.fault(format!("{} is not {wanted} factors above 0", scaling.spelled(key))));
    }
    frequencies.iter_mut().zip(&factors).for_each(|(frequency, factor)| *frequency /= factor);
    if let Some(magnitude) = scaling.positive("attention_factor")? {
        return Ok(magnitude);
    }
    let factor = scaling.positive("factor")?.unwrap_or(turned.context as f64 / original);
    Ok(if factor <= 1.0 || original <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() })
}

/// The angles of a GGUF file: base, scaling and the tensors of factors.
///
/// # Errors
/// As [`of_config`].
pub fn of_gguf(
    facts: &Metadata<'_, '_>,
    pairing: Pairing,
    head: usize,
    context: usize,
    options: &LoadOptions,
) -> Result<Rotary, LoadError> {
    let base = facts.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let turned = facts.optional_size("rope.dimension_count", MOST_TURNED)?.unwrap_or(head);
    if turned > head || !turned.is_multiple_of(2) {
        return Err(facts.fault(format!("rope over {turned} of {head} values with base {base} is impossible")));
    }
    let mut frequencies = plain(base, turned);
    match facts.text("rope.scaling.type").unwrap_or("none") {
        "none" | "longrope" => {}
        "linear" => {
            let factor = facts.positive("rope.scaling.factor")?.ok_or_else(|| facts.missing("rope.scaling.factor"))?;
            frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
        }
        other => return Err(facts.refusal(format!("rope scaling {other} is not supported"))),
    }
    let mut magnitude = 1.0;
    let tensor = if facts.file.has("rope_factors_long.weight") {
        let original = "rope.scaling.original_context_length";
        let original = facts.size(original, 1 << 24)?;
        magnitude = facts.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let long = options.context_limit.unwrap_or(usize::MAX).min(context) > original;
        Some(if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" })
    } else {
        facts.file.has("rope_freqs.weight").then_some("rope_freqs.weight")
    };
    if let Some(tensor) = tensor {
        let (bytes, format) = facts.file.bytes(tensor, &[frequencies.len()])?;
        let factors = if format.dense() { singles(bytes, format) } else { Vec::new() };
        if factors.len() != frequencies.len() || factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return Err(facts.fault(format!("tensor {tensor} holds a factor that is not above 0")));
        }
        frequencies.iter_mut().zip(&factors).for_each(|(frequency, factor)| *frequency /= f64::from(*factor));
    }
    Ok(Rotary {
        pairing,
        frequencies: frequencies.into_iter().map(|frequency| frequency as f32).collect(),
        magnitude: magnitude as f32,
    })
}
