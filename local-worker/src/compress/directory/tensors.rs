//! Which of the directory's tensors become which of the file's, and what is done to their numbers on the way.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};

use super::wrong;
use crate::compress::CompressError;
use crate::model::{Directory, Format, Names, Plan, Tensors, singles};

/// One tensor of the file.
pub(super) struct Place {
    /// The directory's tensors, whose rows come one after the other.
    pub theirs: Vec<String>,
    /// Its name in the file.
    pub ours: String,
    change: Change,
}

/// What is done to numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    None,
    /// Rows of so many rotary heads become neighbours.
    Neighbours(usize),
    /// Added to each.
    Add(f32),
}

/// All that a model may have; those that it lacks are left out by the caller.
pub(super) fn places(plan: &Plan) -> Vec<Place> {
    let (theirs, ours, shape) = (&plan.names, Names::gguf(), &plan.shape);
    let norm = if theirs.norm_offset == 0.0 { Change::None } else { Change::Add(theirs.norm_offset) };
    let turned = |heads: usize| if shape.family == "llama" { Change::Neighbours(heads) } else { Change::None };
    let place = |theirs: Vec<String>, ours: String, change: Change| Place { theirs, ours, change };
    let mut places = Vec::new();
    for kind in ["weight", "bias"] {
        let whole = |theirs: &str, ours: &str, change| {
            place(vec![format!("{theirs}.{kind}")], format!("{ours}.{kind}"), change)
        };
        places.push(whole(theirs.embedding, ours.embedding, Change::None));
        places.push(whole(theirs.norm, ours.norm, norm));
        if !plan.tied {
            places.push(whole(theirs.head, ours.head, Change::None));
        }
    }
    let mut parts = vec![
        (vec![theirs.attention_norm], ours.attention_norm, norm),
        (vec![theirs.query_norm], ours.query_norm, norm),
        (vec![theirs.key_norm], ours.key_norm, norm),
        (vec![theirs.output], ours.output, Change::None),
        (vec![theirs.feed_norm], ours.feed_norm, norm),
        (vec![theirs.down], ours.down, Change::None),
    ];
    if shape.post_norms {
        parts.push((vec![theirs.attention_post_norm], ours.attention_post_norm, norm));
        parts.push((vec![theirs.feed_post_norm], ours.feed_post_norm, norm));
    }
    match theirs.fused {
        Some(fused) => parts.push((vec![fused], "attn_qkv", Change::None)),
        None if shape.family == "phi2" => {
            parts.push((vec![theirs.query, theirs.key, theirs.value], "attn_qkv", Change::None));
        }
        None => {
            parts.push((vec![theirs.query], ours.query, turned(shape.heads)));
            parts.push((vec![theirs.key], ours.key, turned(shape.key_heads)));
            parts.push((vec![theirs.value], ours.value, Change::None));
        }
    }
    match theirs.gate_up {
        Some(both) => parts.push((vec![both], ours.up, Change::None)),
        None => {
            parts.push((vec![theirs.gate], ours.gate, Change::None));
            parts.push((vec![theirs.up], ours.up, Change::None));
        }
    }
    for layer in 0..shape.layers {
        for (theirs_parts, ours_part, change) in &parts {
            for kind in ["weight", "bias"] {
                let ([before, after], [our_before, our_after]) = (theirs.layer, ours.layer);
                let theirs = theirs_parts.iter().map(|part| format!("{before}{layer}{after}{part}.{kind}")).collect();
                places.push(place(theirs, format!("{our_before}{layer}{our_after}{ours_part}.{kind}"), *change));
            }
        }
    }
    places
}

/// A tensor this family has no place for must not be silently left out.
///
/// # Errors
/// There is one.
pub(super) fn refuse_others(directory: &Directory, plan: &Plan) -> std::result::Result<(), CompressError> {
    let known: std::collections::HashSet<String> = places(plan).into_iter().flat_map(|place| place.theirs).collect();
    let tied = plan.tied.then(|| format!("{}.weight", plan.names.head));
    let mut others = directory.names();
    others
        .retain(|name| !known.contains(name) && tied.as_ref() != Some(name) && !name.ends_with("rotary_emb.inv_freq"));
    others.sort();
    match others.first() {
        None => Ok(()),
        Some(name) => {
            let problem = format!("tensor {name} has no place in this architecture as this build knows it");
            Err(directory.refusal(name, problem).into())
        }
    }
}

/// Reads a tensor and makes it the file's.
///
/// # Errors
/// One of the directory's is cut off or of an unknown element type, or shapes don't fit together.
pub(super) fn read(directory: &Directory, place: &Place) -> std::result::Result<QTensor, CompressError> {
    let mut parts = Vec::with_capacity(place.theirs.len());
    let mut kept = GgmlDType::F32;
    for name in &place.theirs {
        let shape = directory.shape_of(name).unwrap_or_default();
        let (bytes, format): (&[u8], Format) = Tensors::bytes(directory, name, &shape)?;
        // Matrices stay as they are; vectors are single precision in every GGUF file.
        kept = match format {
            Format::F16 if shape.len() > 1 => GgmlDType::F16,
            Format::BF16 if shape.len() > 1 => GgmlDType::BF16,
            _ => GgmlDType::F32,
        };
        let values = Tensor::from_vec(singles(bytes, format), shape.as_slice(), &Device::Cpu);
        parts.push(values.map_err(|error| wrong(directory, name, error))?);
    }
    let read = || -> Result<QTensor> {
        let values = Tensor::cat(&parts, 0)?;
        let values = match (place.change, values.dims()) {
            (Change::Neighbours(heads), [rows]) => neighbours(&values.reshape((*rows, 1))?, heads)?.flatten_all()?,
            (Change::Neighbours(heads), _) => neighbours(&values, heads)?,
            (Change::Add(more), _) => (values + f64::from(more))?,
            (Change::None, _) => values,
        };
        QTensor::quantize(&values, kept)
    };
    read().map_err(|error| wrong(directory, &place.ours, error))
}

/// Rows of a rotary matrix from pairs (i, i + head/2) to pairs (2i, 2i + 1), head by head.
///
/// # Errors
/// The heads don't divide the rows.
pub fn neighbours(matrix: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    matrix.reshape((heads, 2, rows / heads / 2, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}
