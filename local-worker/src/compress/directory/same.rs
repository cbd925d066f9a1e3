//! Whether what was written for a GGUF file says the same as the directory.

use std::collections::BTreeMap;
use std::io::Cursor;

use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{self, Value};

use crate::compress::CompressError;
use crate::model::{Config, DecoderShape, Facts, Gguf, LoadOptions, Plan, Rotary, shape_of};

/// Refuses what comes out as another model: not everything that a configuration says can be said in GGUF.
pub(super) fn check(
    config: &Config,
    plan: &Plan,
    metadata: &BTreeMap<String, Value>,
    tensors: &BTreeMap<String, QTensor>,
) -> std::result::Result<(), CompressError> {
    let mut head = Cursor::new(Vec::new());
    let metadata: Vec<(&str, &Value)> = metadata
        .iter()
        .filter(|(key, _)| !key.starts_with("tokenizer."))
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let told = gguf_file::write(&mut head, &metadata, &tensors).map_err(|error| error.to_string());
    let bytes = head.into_inner();
    let told = told.and_then(|()| {
        let read = Gguf::parse("its GGUF form", &bytes).and_then(|file| shape_of(&file, &LoadOptions::default()));
        read.map_err(|error| error.to_string())
    });
    let problem = match told {
        Err(problem) => problem,
        Ok(shape) => match differs(&plan.shape, &shape) {
            None => return Ok(()),
            Some(what) => format!("{what} can't be told in GGUF"),
        },
    };
    Err(config.refusal(format!("this {} model is not turned into GGUF: {problem}", plan.shape.family)).into())
}

/// What two descriptions differ in.
fn differs(one: &DecoderShape, other: &DecoderShape) -> Option<&'static str> {
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-4 * a.abs().max(b.abs());
    let angles = |a: &Rotary, b: &Rotary| {
        close(a.magnitude, b.magnitude)
            && a.frequencies.len() == b.frequencies.len()
            && a.frequencies.iter().zip(&b.frequencies).all(|(a, b)| close(*a, *b))
    };
    let window = |shape: &DecoderShape| -> Vec<_> { shape.attention.iter().map(|layer| layer.window).collect() };
    let turned = |shape: &DecoderShape, layer: usize| shape.rotary.get(shape.attention[layer].rotary).cloned();
    let same_angles = (0..one.layers.min(other.layers)).all(|layer| match (turned(one, layer), turned(other, layer)) {
        (Some(a), Some(b)) => angles(&a, &b),
        _ => false,
    });
    let checks = [
        (window(one) == window(other), "which layers have a sliding window, or how large it is,"),
        (same_angles, "its rotary angles"),
        (close(one.scale, other.scale), "the scale of its scores"),
        (one.score_cap == other.score_cap && one.logit_cap == other.logit_cap, "a cap"),
        (one.biases == other.biases, "which parts have a bias"),
        (
            (one.layers, one.width, one.hidden, one.heads, one.key_heads, one.head, one.vocabulary, one.context)
                == (
                    other.layers,
                    other.width,
                    other.hidden,
                    other.heads,
                    other.key_heads,
                    other.head,
                    other.vocabulary,
                    other.context,
                ),
            "a size",
        ),
    ];
    checks.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
}
