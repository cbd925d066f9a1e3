//! Whole layers, groups of heads and neurons go: smaller matrices, a smaller file, fewer products.

use super::{PruneError, largest, squares};
use crate::model::{Site, Watch};
use crate::train::network::{Network, Part, Shape};

/// How many layers or heads may be kept.
const SOME: &str = "keep one at least, and no more than there are";

/// A network of another shape, each tensor made from one of `network` by `take`, which gets the new part and the old one.
fn rebuilt(
    network: &Network,
    shape: Shape,
    old_name: impl Fn(&str) -> String,
    take: impl Fn(&Part, &Part, &[f32]) -> Vec<f32>,
) -> Network {
    let mut small = Network::zero(shape);
    for part in small.parts.clone() {
        let name = old_name(&part.name);
        let Some(old) = network.parts.iter().find(|old| old.name == name) else { continue };
        let values = take(&part, old, &network.weights[old.range()]);
        small.weights[part.range()].copy_from_slice(&values);
    }
    small
}

/// The network without the layers that change their input least: those whose output is most like it (block influence, Men et
/// al. 2024), as `influences` tell of each. The layers that went, too.
///
/// # Errors
/// No layer would stay, or `influences` are not one for each layer.
pub fn drop_layers(network: &Network, influences: &[f64], keep: usize) -> Result<(Network, Vec<usize>), PruneError> {
    let there = network.shape.layers;
    if keep == 0 || keep > there || influences.len() != there {
        return Err(PruneError::Amount { what: "layers", wanted: keep, there, right: SOME });
    }
    let kept = largest(influences, keep);
    let dropped = (0..there).filter(|layer| !kept.contains(layer)).collect();
    Ok((keep_layers(network, &kept)?, dropped))
}

/// The network with some of its layers alone.
///
/// # Errors
/// None is given, one that there is not, or not each once and in their order.
pub fn keep_layers(network: &Network, kept: &[usize]) -> Result<Network, PruneError> {
    let there = network.shape.layers;
    let rises = kept.is_sorted_by(|one, next| one < next);
    if kept.is_empty() || !rises || kept.iter().any(|layer| *layer >= there) {
        return Err(PruneError::Layers { kept: kept.to_vec(), there });
    }
    let old_name = |name: &str| {
        let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return name.to_owned();
        };
        let old = layer.parse::<usize>().ok().and_then(|layer| kept.get(layer).copied());
        format!("blk.{}.{rest}", old.unwrap_or(usize::MAX))
    };
    let shape = Shape { layers: kept.len(), ..network.shape.clone() };
    Ok(rebuilt(network, shape, old_name, |_, _, values| values.to_vec()))
}

/// The network with `keep` neurons in every feed-forward part: those whose output, as large as it was on the calibration text
/// and as far as `down` reads it, is largest.
///
/// # Errors
/// `keep` is no multiple of 32 or too large, or the watch is not of this network.
pub fn keep_neurons(network: &Network, watch: &Watch, keep: usize) -> Result<Network, PruneError> {
    let (there, width) = (network.shape.feed_forward, network.shape.width);
    if keep == 0 || keep > there || !keep.is_multiple_of(32) {
        let right = "it must be a multiple of 32, which quantised rows are made of, and no more than there are";
        return Err(PruneError::Amount { what: "neurons", wanted: keep, there, right });
    }
    let kept = (0..network.shape.layers)
        .map(|layer| {
            let squares = squares(watch, layer, Site::Down, there)?;
            let down = network.tensor(&format!("blk.{layer}.ffn_down.weight")).unwrap_or_default();
            let norms = (0..there).map(|neuron| column(down, there, neuron..neuron + 1));
            Ok(largest(&squares.iter().zip(norms).map(|(square, norm)| square * norm).collect::<Vec<f64>>(), keep))
        })
        .collect::<Result<Vec<_>, PruneError>>()?;
    let shape = Shape { feed_forward: keep, ..network.shape.clone() };
    Ok(rebuilt(network, shape, str::to_owned, |_, old, values| {
        let Some((layer, kind)) = place(&old.name) else { return values.to_vec() };
        match kind {
            "ffn_gate" | "ffn_up" => rows(values, width, &kept[layer], 1),
            "ffn_down" => columns(values, there, &kept[layer], 1),
            _ => values.to_vec(),
        }
    }))
}

/// The network with `keep` key heads in every layer, each with the query heads that read it: those whose output, measured as
/// in [`keep_neurons`], is largest.
///
/// # Errors
/// None or more than there are would stay, or the watch is not of this network.
pub fn keep_heads(network: &Network, watch: &Watch, keep: usize) -> Result<Network, PruneError> {
    let (there, head, width) = (network.shape.kv_heads, network.shape.head(), network.shape.width);
    if keep == 0 || keep > there {
        return Err(PruneError::Amount { what: "key heads", wanted: keep, there, right: SOME });
    }
    let group = network.shape.heads / there * head;
    let queries = there * group;
    let kept = (0..network.shape.layers)
        .map(|layer| {
            let squares = squares(watch, layer, Site::Output, queries)?;
            let output = network.tensor(&format!("blk.{layer}.attn_output.weight")).unwrap_or_default();
            let importance = |key: usize| -> f64 {
                let channels = key * group..(key + 1) * group;
                channels.map(|channel| squares[channel] * column(output, queries, channel..channel + 1)).sum()
            };
            Ok(largest(&(0..there).map(importance).collect::<Vec<f64>>(), keep))
        })
        .collect::<Result<Vec<_>, PruneError>>()?;
    let heads = network.shape.heads / there * keep;
    let shape = Shape { heads, kv_heads: keep, head_width: Some(head), ..network.shape.clone() };
    Ok(rebuilt(network, shape, str::to_owned, |_, old, values| {
        let Some((layer, kind)) = place(&old.name) else { return values.to_vec() };
        match kind {
            "attn_q" => rows(values, width, &kept[layer], group),
            "attn_k" | "attn_v" => rows(values, width, &kept[layer], head),
            "attn_output" => columns(values, queries, &kept[layer], group),
            _ => values.to_vec(),
        }
    }))
}

/// Layer and kind of a tensor inside layers.
fn place(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest.strip_suffix(".weight")?))
}

/// Squares of some columns added up.
fn column(values: &[f32], columns: usize, some: std::ops::Range<usize>) -> f64 {
    values.chunks_exact(columns).flat_map(|row| &row[some.clone()]).map(|value| f64::from(value * value)).sum()
}

/// The kept groups of `size` rows.
fn rows(values: &[f32], columns: usize, kept: &[usize], size: usize) -> Vec<f32> {
    kept.iter().flat_map(|group| &values[group * size * columns..][..size * columns]).copied().collect()
}

/// The kept groups of `size` columns.
fn columns(values: &[f32], columns: usize, kept: &[usize], size: usize) -> Vec<f32> {
    let of_row =
        |row: &[f32]| -> Vec<f32> { kept.iter().flat_map(|group| &row[group * size..][..size]).copied().collect() };
    values.chunks_exact(columns).flat_map(of_row).collect()
}
