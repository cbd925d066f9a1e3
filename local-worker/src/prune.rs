//! Smaller or sparser networks out of trained ones (feature `lab`): single weights become zero, or whole layers, heads,
//! neurons or tokens go. What is lost thereby is healed by training on, measured by `evaluate`; both are others' business.

mod structure;
mod tokens;
mod zeros;

pub use structure::{drop_layers, keep_heads, keep_layers, keep_neurons};
pub use tokens::keep_tokens;
pub use zeros::{Pattern, zero};

use crate::model::{Site, Watch};
use crate::train::TrainError;
use crate::train::network::Network;

/// Why a network can't be pruned as asked.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The model can't be read.
    #[error(transparent)]
    Model(#[from] TrainError),
    /// More is to go than may, or less than nothing.
    #[error("{what}: {wanted} of {there} can't be kept; {right}")]
    Amount {
        /// What is counted.
        what: &'static str,
        /// How many are to stay.
        wanted: usize,
        /// How many there are.
        there: usize,
        /// What would be right.
        right: &'static str,
    },
    /// Layers to keep are not there, or not each named once and in their order.
    #[error("layers {kept:?} can't be kept of {there}: name them from 0, each once and in their order")]
    Layers {
        /// Those that were named.
        kept: Vec<usize>,
        /// How many there are.
        there: usize,
    },
    /// A row of weights is no multiple of the pattern.
    #[error("{tensor}: rows of {columns} weights are no multiple of {of}")]
    Pattern {
        /// The tensor.
        tensor: String,
        /// Its columns.
        columns: usize,
        /// The pattern's length.
        of: usize,
    },
    /// The calibration text was read by a model of another shape, or was empty.
    #[error("the calibration text says nothing of layer {0}; give one of some thousand tokens")]
    Uncalibrated(usize),
    /// The vocabulary can't be made smaller.
    #[error("vocabulary: {0}")]
    Vocabulary(String),
}

/// Mean squares of the channels that go into a product.
fn squares(watch: &Watch, layer: usize, site: Site, channels: usize) -> Result<Vec<f64>, PruneError> {
    let inputs = watch.inputs(layer, site);
    if inputs.rows == 0 || inputs.squares.len() != channels {
        return Err(PruneError::Uncalibrated(layer));
    }
    Ok(inputs.squares.iter().map(|square| square / inputs.rows as f64).collect())
}

/// The matrices inside layers, with the site that each reads.
fn matrices(network: &Network) -> Vec<(usize, usize, Site)> {
    let named = |(index, part): (usize, &crate::train::network::Part)| {
        let mut words = part.name.split('.');
        let (Some("blk"), Some(layer), Some(kind)) = (words.next(), words.next(), words.next()) else { return None };
        let site = match kind {
            "attn_q" | "attn_k" | "attn_v" => Site::Attention,
            "attn_output" => Site::Output,
            "ffn_gate" | "ffn_up" => Site::Feed,
            "ffn_down" => Site::Down,
            _ => return None,
        };
        Some((index, layer.parse().ok()?, site))
    };
    network.parts.iter().enumerate().filter_map(named).collect()
}

/// Share of the weights inside layers that are zero, in [0, 1].
pub fn zero_share(network: &Network) -> f64 {
    let (mut zeros, mut all) = (0, 0);
    for (index, _, _) in matrices(network) {
        let values = network.parts.get(index).and_then(|part| network.weights.get(part.range())).unwrap_or_default();
        zeros += values.iter().filter(|weight| **weight == 0.0).count();
        all += values.len();
    }
    zeros as f64 / all.max(1) as f64
}

/// The `count` places of the largest values, in their order; the first of equals.
fn largest(values: &[f64], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|one, other| values[*other].total_cmp(&values[*one]).then(one.cmp(other)));
    places.truncate(count);
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests;
