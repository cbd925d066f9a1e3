//! Rotary angles in the words of GGUF: a base, a scaling, tensors of factors.

use candle_core::quantized::gguf_file::Value;

use crate::compress::CompressError;
use crate::model::{Config, Facts, LoadError, Plan, Rotary, plain_angles, rotary_base};

/// Keys that say how queries and keys are turned, without the family's name before them.
///
/// # Errors
/// The configuration's scaling is malformed.
pub(super) fn keys(plan: &Plan, config: &Config) -> Result<Vec<(&'static str, Value)>, CompressError> {
    if plan.shape.family == "gemma3" {
        return Ok(of_two_tables(&plan.shape.rotary));
    }
    let mut keys = vec![("rope.freq_base", Value::F32(rotary_base(config)? as f32))];
    if let Some(long) = long(config)? {
        let magnitude = plan.shape.rotary.first().map_or(1.0, |rotary| rotary.magnitude);
        keys.push(("rope.scaling.original_context_length", Value::U32(long.original)));
        keys.push(("rope.scaling.attn_factor", Value::F32(magnitude)));
    }
    Ok(keys)
}

/// The bases of layers that see everything and of those with a window. A description has only angles, but the first and the
/// last of n pairs are base^(−(n − 1)/n) apart.
fn of_two_tables(tables: &[Rotary]) -> Vec<(&'static str, Value)> {
    let base = |rotary: &Rotary| {
        let (first, last) = (f64::from(*rotary.frequencies.first()?), f64::from(*rotary.frequencies.last()?));
        let count = rotary.frequencies.len() as f64;
        (count > 1.0).then(|| Value::F32((first / last).powf(count / (count - 1.0)) as f32))
    };
    let names = ["rope.freq_base", "rope.freq_base_swa"];
    let mut keys: Vec<_> =
        names.into_iter().zip(tables).filter_map(|(key, rotary)| Some((key, base(rotary)?))).collect();
    let slowed = tables.first().and_then(|rotary| rotary.frequencies.first().copied()).unwrap_or(1.0);
    if (slowed - 1.0).abs() > 1e-4 {
        keys.push(("rope.scaling.type", Value::String("linear".to_owned())));
        keys.push(("rope.scaling.factor", Value::F32(1.0 / slowed)));
    }
    keys
}

/// What plain angles are divided by, as tensors of their own.
///
/// # Errors
/// The scaling is malformed, or its family's files have no tensor for it.
pub(super) fn factors(plan: &Plan, config: &Config) -> Result<Vec<(&'static str, Vec<f32>)>, CompressError> {
    let (family, Some(rotary)) = (plan.shape.family, plan.shape.rotary.first()) else { return Ok(Vec::new()) };
    if family == "gemma3" {
        return Ok(Vec::new());
    }
    if let Some(long) = long(config)? {
        return Ok(vec![("rope_factors_long.weight", long.long), ("rope_factors_short.weight", long.short)]);
    }
    let plain = plain_angles(rotary_base(config)?, rotary.frequencies.len() * 2);
    let factors: Vec<f32> =
        plain.iter().zip(&rotary.frequencies).map(|(plain, angle)| (plain / f64::from(*angle)) as f32).collect();
    if factors.iter().all(|factor| (factor - 1.0).abs() <= 1e-4) {
        return Ok(Vec::new());
    }
    if family != "llama" {
        return Err(config.refusal(format!("{family} with scaled angles is not turned into GGUF here")).into());
    }
    Ok(vec![("rope_freqs.weight", factors)])
}

/// LongRoPE, as a configuration has it.
struct Long {
    short: Vec<f32>,
    long: Vec<f32>,
    original: u32,
}

fn long(config: &Config) -> Result<Option<Long>, LoadError> {
    let scaling = config.object("rope_parameters").or_else(|| config.object("rope_scaling"));
    let Some(scaling) = scaling else { return Ok(None) };
    let list = |key: &str| {
        let list = scaling.numbers(key)?;
        Ok::<_, LoadError>(list.map(|list| list.into_iter().map(|factor| factor as f32).collect::<Vec<f32>>()))
    };
    let (Some(short), Some(long)) = (list("short_factor")?, list("long_factor")?) else { return Ok(None) };
    let key = "original_max_position_embeddings";
    let original = config.integer(key).or_else(|| scaling.integer(key)).ok_or_else(|| config.missing(key))?;
    Ok(Some(Long { short, long, original: u32::try_from(original).unwrap_or(u32::MAX) }))
}
