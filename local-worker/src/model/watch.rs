//! What goes into a model's products while it reads text: for calibration and pruning, which must know which inputs are large.
//! Costs nothing where nobody watches.

use crate::kernels::Activations;

/// Rows of each product's input that are kept as they are.
const SAMPLE: usize = 128;
/// One row in so many is kept, until there are [`SAMPLE`]; a prime, so that no pattern of the text falls in with it.
const EVERY: usize = 13;

/// A product's input within a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// What queries, keys and values read.
    Attention,
    /// What attention's output reads.
    Output,
    /// What gate and up read.
    Feed,
    /// What down reads.
    Down,
}

impl Site {
    /// All sites of a layer.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::Feed, Self::Down];
}

/// Inputs seen at one site.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inputs {
    /// Rows seen.
    pub rows: usize,
    /// Σ x² of each channel.
    pub squares: Vec<f64>,
    /// Largest |x| of each channel.
    pub largest: Vec<f32>,
    /// Some of the rows, one after the other.
    pub sample: Vec<f32>,
}

/// Inputs seen at all sites of all layers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Watch {
    layers: Vec<[Inputs; 4]>,
}

impl Watch {
    /// Inputs of a site; empty ones for a layer that was never seen.
    pub fn inputs(&self, layer: usize, site: Site) -> Inputs {
        self.layers.get(layer).map(|inputs| inputs[site as usize].clone()).unwrap_or_default()
    }

    /// Takes note of rows going into a product.
    pub(super) fn note(&mut self, layer: usize, site: Site, activations: &Activations) {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, Default::default);
        }
        let inputs = &mut self.layers[layer][site as usize];
        inputs.squares.resize(activations.cols(), 0.0);
        inputs.largest.resize(activations.cols(), 0.0);
        for row in (0..activations.rows()).map(|row| activations.row(row)) {
            let channels = inputs.squares.iter_mut().zip(&mut inputs.largest);
            for (value, (square, largest)) in row.iter().zip(channels) {
                *square += f64::from(*value) * f64::from(*value);
                *largest = largest.max(value.abs());
            }
            if inputs.rows.is_multiple_of(EVERY) && inputs.sample.len() < SAMPLE * row.len() {
                inputs.sample.extend_from_slice(row);
            }
            inputs.rows += 1;
        }
    }
}
