//! One thread's part of a training step: forward, loss and backward for records of its own, gradients added up beside it.
//!
//! Records lie one after the other without padding and without seeing each other: products run over all tokens, attention
//! over each record alone, positions begin at zero in each, as when it is served. Everything that the way back needs stays
//! in buffers that are kept from step to step. Behind the last attention only rows with a target that counts are worked:
//! where answers alone are learnt, that is a small part of them.

mod attention;
mod head;
mod rows;
#[cfg(test)]
mod tests;

pub use head::Aim;

use super::network::Network;
use crate::kernels::{Level, Precision, View, ViewMut, add, silu_multiply, silu_multiply_backward, sum_products};
use rows::{Back, gather, norm, scatter};

/// A record as tokens: each but the last is an input, each but the first a target with a weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Tokens: one more than targets.
    pub tokens: Vec<u32>,
    /// Weight of each target in the loss.
    pub weights: Vec<f32>,
    /// What a teacher says of each target; empty without one.
    pub soft: SoftTargets,
}

/// The likeliest tokens by a teacher, as many for each target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SoftTargets {
    /// Token ids, target after target.
    pub ids: Vec<u32>,
    /// Their shares at the run's temperature.
    pub shares: Vec<f32>,
}

impl Sample {
    /// Number of targets.
    pub fn len(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Whether there is nothing to learn.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Logits of every token of a text, as training computes them: as many rows of the vocabulary's length.
///
/// # Panics
/// A token is none of the vocabulary.
pub fn logits(network: &Network, tokens: &[u32]) -> Vec<f32> {
    Shard::new(network).logits(network, tokens)
}

/// How far each layer turns what goes into it: 1 less the mean cosine of its input and output, over all tokens of texts.
///
/// # Panics
/// A token is none of the vocabulary.
pub fn influences(network: &Network, texts: &[Vec<u32>]) -> Vec<f64> {
    let mut shard = Shard::new(network);
    let (mut sums, mut rows) = (vec![0.0; network.shape.layers], 0);
    for text in texts {
        let tokens = text.iter().copied().chain([0]).collect();
        shard.forward(network, &[&Sample { tokens, ..Sample::default() }]);
        rows += text.len();
        for (layer, sum) in sums.iter_mut().enumerate() {
            let output = shard.layers.get(layer + 1).map_or(&shard.state.input, |next| &next.input);
            *sum += turned(&shard.layers[layer].input, output, network.shape.width, text.len());
        }
    }
    sums.iter().map(|sum| sum / rows.max(1) as f64).collect()
}

/// 1 less the cosine, added up over rows.
fn turned(input: &[f32], output: &[f32], width: usize, rows: usize) -> f64 {
    let of_row = |(one, other): (&[f32], &[f32])| {
        let size = (sum_products(one, one) * sum_products(other, other)).sqrt();
        1.0 - f64::from(sum_products(one, other) / size.max(1e-20))
    };
    input.chunks_exact(width).zip(output.chunks_exact(width)).take(rows).map(of_row).sum()
}

/// What became of some records.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Weighted losses added up.
    pub loss: f64,
    /// Weights added up.
    pub weight: f64,
    /// Records whose every target of full weight was the likeliest token: what greedy decoding would answer rightly.
    pub right: usize,
    /// Records.
    pub records: usize,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.weight += other.weight;
        self.right += other.right;
        self.records += other.records;
    }
}

/// What one layer leaves for the way back.
#[derive(Debug, Default)]
struct Kept {
    input: Vec<f32>,
    normal: Vec<f32>,
    factors: Vec<f32>,
    turned: Vec<f32>,
    shares: Vec<f32>,
    mixed: Vec<f32>,
    picked: Vec<f32>,
    middle: Vec<f32>,
    second_normal: Vec<f32>,
    second_factors: Vec<f32>,
    gate_up: Vec<f32>,
    inner: Vec<f32>,
}

/// Buffers that no layer owns.
#[derive(Debug, Default)]
struct Passing {
    gradient: Vec<f32>,
    wide: Vec<f32>,
    narrow: Vec<f32>,
    square: Vec<f32>,
    logits: Vec<f32>,
    scratch: Vec<f32>,
    rows: Vec<f32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

/// One thread's gradients and buffers.
#[derive(Debug)]
pub(super) struct Shard {
    /// Gradients by all weights, in the network's order.
    pub gradients: Vec<f32>,
    level: Level,
    precision: Precision,
    layers: Vec<Kept>,
    state: Kept,
    passing: Passing,
    /// Rows that are worked behind the last attention, where not all are.
    some: Vec<usize>,
}

/// Makes a buffer as long as is needed now; what is in it is of the step before.
fn fit(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

impl Shard {
    pub fn new(network: &Network) -> Self {
        Self::of(network, Precision::F32)
    }

    /// Buffers for networks of one shape, and what products with weights are made of.
    pub fn of(network: &Network, precision: Precision) -> Self {
        Self {
            gradients: Vec::new(),
            level: Level::detect(),
            precision,
            layers: (0..network.shape.layers).map(|_| Kept::default()).collect(),
            state: Kept::default(),
            passing: Passing::default(),
            some: Vec::new(),
        }
    }

    /// Forward and backward over `samples`; gradients are begun anew if `fresh`, added to otherwise.
    pub fn learn(&mut self, network: &Network, samples: &[&Sample], aim: &Aim, fresh: bool) -> Sums {
        self.gradients.resize(network.weights.len(), 0.0);
        if fresh {
            self.gradients.fill(0.0);
        }
        self.pick(samples);
        self.forward(network, samples);
        let sums = self.head(network, samples, aim, true);
        self.backward(network, samples);
        sums
    }

    /// Forward alone: losses, and which answers are right.
    pub fn look(&mut self, network: &Network, samples: &[&Sample], aim: &Aim) -> Sums {
        self.pick(samples);
        self.forward(network, samples);
        self.head(network, samples, aim, false)
    }

    /// Notes the rows whose targets count.
    fn pick(&mut self, samples: &[&Sample]) {
        let weights = samples.iter().flat_map(|sample| &sample.weights);
        let count = weights.clone().count();
        self.some.clear();
        self.some.extend(weights.enumerate().filter(|(_, weight)| **weight > 0.0).map(|(row, _)| row));
        if self.some.len() == count {
            self.some.clear();
        }
    }

    /// Rows behind a layer's attention.
    fn left(&self, network: &Network, layer: usize, count: usize) -> usize {
        if layer + 1 < network.shape.layers || self.some.is_empty() { count } else { self.some.len() }
    }

    fn forward(&mut self, network: &Network, samples: &[&Sample]) {
        let shape = &network.shape;
        let (width, count) = (shape.width, samples.iter().map(|sample| sample.len()).sum::<usize>());
        let longest = samples.iter().map(|sample| sample.len()).max().unwrap_or(0);
        let half = shape.head() / 2;
        if self.passing.cosines.len() < longest * half {
            (self.passing.cosines, self.passing.sines) = network.angles(longest);
        }
        let mut stream = std::mem::take(&mut self.state.input);
        let tokens = samples.iter().flat_map(|sample| &sample.tokens[..sample.len()]);
        for (row, token) in fit(&mut stream, count * width).chunks_exact_mut(width).zip(tokens) {
            row.copy_from_slice(&network.weights[*token as usize * width..][..width]);
        }
        for layer in 0..shape.layers {
            std::mem::swap(&mut self.layers[layer].input, &mut stream);
            self.layer_forward(network, layer, samples, count);
            let left = self.left(network, layer, count);
            let kept = &mut self.layers[layer];
            let out = fit(&mut stream, left * width);
            out.copy_from_slice(&kept.middle[..left * width]);
            let inner = View::new(&kept.inner, left, shape.feed_forward, shape.feed_forward);
            let down =
                View::new(&network.weights[network.layer(layer).down..], width, shape.feed_forward, shape.feed_forward);
            self.precision.product(ViewMut::new(out, left, width, width), inner, down.transposed(), 1.0, true);
        }
        let weight = &network.weights[network.last_norm()..][..width];
        let left = self.left(network, shape.layers.saturating_sub(1), count);
        let Kept { normal, factors, .. } = &mut self.state;
        norm(self.level, &stream[..left * width], weight, network, normal, factors);
        self.state.input = stream;
    }

    fn layer_forward(&mut self, network: &Network, layer: usize, samples: &[&Sample], count: usize) {
        let (shape, weights, places) = (&network.shape, &network.weights, network.layer(layer));
        let (width, turned) = (shape.width, shape.turned());
        let left = self.left(network, layer, count);
        let (kept, level, precision) = (&mut self.layers[layer], self.level, self.precision);
        let input = &kept.input[..count * width];
        norm(level, input, &weights[places.attention_norm..][..width], network, &mut kept.normal, &mut kept.factors);
        let normal = View::new(&kept.normal, count, width, width);
        let matrix = View::new(&weights[places.turned..], turned, width, width).transposed();
        let out = fit(&mut kept.turned, count * turned);
        precision.product(ViewMut::new(out, count, turned, turned), normal, matrix, 1.0, false);
        attention::forward(level, shape, samples, kept, &self.passing);
        let queries = shape.heads * shape.head();
        let middle = fit(&mut kept.middle, left * width);
        let mixed = if left < count {
            gather(&self.some, &kept.input, middle, width);
            gather(&self.some, &kept.mixed, fit(&mut kept.picked, left * queries), queries);
            &kept.picked
        } else {
            middle.copy_from_slice(&kept.input[..count * width]);
            &kept.mixed
        };
        let mixed = View::new(mixed, left, queries, queries);
        let matrix = View::new(&weights[places.output..], width, queries, queries).transposed();
        precision.product(ViewMut::new(middle, left, width, width), mixed, matrix, 1.0, true);
        self.forward_part(network, layer, left);
    }

    fn forward_part(&mut self, network: &Network, layer: usize, count: usize) {
        let (shape, weights, places) = (&network.shape, &network.weights, network.layer(layer));
        let (width, inner) = (shape.width, shape.feed_forward);
        let (kept, level, precision) = (&mut self.layers[layer], self.level, self.precision);
        let (normal, factors) = (&mut kept.second_normal, &mut kept.second_factors);
        norm(level, &kept.middle[..count * width], &weights[places.forward_norm..][..width], network, normal, factors);
        let normal = View::new(&kept.second_normal, count, width, width);
        let matrix = View::new(&weights[places.gate_up..], 2 * inner, width, width).transposed();
        let out = fit(&mut kept.gate_up, count * 2 * inner);
        precision.product(ViewMut::new(out, count, 2 * inner, 2 * inner), normal, matrix, 1.0, false);
        let rows =
            fit(&mut kept.inner, count * inner).chunks_exact_mut(inner).zip(kept.gate_up.chunks_exact(2 * inner));
        for (out, row) in rows {
            let (gate, up) = row.split_at(inner);
            silu_multiply(level, gate, up, out);
        }
    }

    /// From the gradient by the last norm's output, which the head left, to all gradients.
    fn backward(&mut self, network: &Network, samples: &[&Sample]) {
        let (shape, level) = (&network.shape, self.level);
        let (width, count) = (shape.width, samples.iter().map(|sample| sample.len()).sum::<usize>());
        let last = network.last_norm();
        let left = self.left(network, shape.layers.saturating_sub(1), count);
        let Passing { gradient, narrow, .. } = &mut self.passing;
        fit(gradient, left * width).fill(0.0);
        let back =
            Back { level, weight: &network.weights[last..][..width], dweight: &mut self.gradients[last..][..width] };
        back.norm(&self.state.input, &self.state.factors, &narrow[..left * width], &mut gradient[..left * width]);
        for layer in (0..shape.layers).rev() {
            self.forward_part_backward(network, layer, self.left(network, layer, count));
            self.attention_part_backward(network, layer, samples, count);
        }
        let tokens = samples.iter().flat_map(|sample| &sample.tokens[..sample.len()]);
        for (row, token) in self.passing.gradient.chunks_exact(width).zip(tokens) {
            add(level, &mut self.gradients[*token as usize * width..][..width], row);
        }
    }

    fn forward_part_backward(&mut self, network: &Network, layer: usize, count: usize) {
        let (shape, weights, places, level) = (&network.shape, &network.weights, network.layer(layer), self.level);
        let (width, inner) = (shape.width, shape.feed_forward);
        let (kept, gradients, precision) = (&mut self.layers[layer], &mut self.gradients, self.precision);
        let Passing { gradient, wide, narrow, .. } = &mut self.passing;
        let dout = View::new(gradient, count, width, width);
        let down = View::new(&weights[places.down..], width, inner, inner);
        let dinner = fit(wide, count * inner);
        precision.product(ViewMut::new(dinner, count, inner, inner), dout, down, 1.0, false);
        let out = ViewMut::new(&mut gradients[places.down..], width, inner, inner);
        precision.product(out, dout.transposed(), View::new(&kept.inner, count, inner, inner), 1.0, true);
        for (row, dinner) in kept.gate_up.chunks_exact_mut(2 * inner).zip(dinner.chunks_exact(inner)).take(count) {
            let (gate, up) = row.split_at_mut(inner);
            silu_multiply_backward(level, gate, up, dinner);
        }
        let dgate_up = View::new(&kept.gate_up, count, 2 * inner, 2 * inner);
        let matrix = View::new(&weights[places.gate_up..], 2 * inner, width, width);
        let dnormal = fit(narrow, count * width);
        precision.product(ViewMut::new(dnormal, count, width, width), dgate_up, matrix, 1.0, false);
        let out = ViewMut::new(&mut gradients[places.gate_up..], 2 * inner, width, width);
        precision.product(out, dgate_up.transposed(), View::new(&kept.second_normal, count, width, width), 1.0, true);
        let (weight, dweight) =
            (&weights[places.forward_norm..][..width], &mut gradients[places.forward_norm..][..width]);
        let back = Back { level, weight, dweight };
        back.norm(&kept.middle, &kept.second_factors, dnormal, &mut gradient[..count * width]);
    }

    fn attention_part_backward(&mut self, network: &Network, layer: usize, samples: &[&Sample], count: usize) {
        let (shape, weights, places, level) = (&network.shape, &network.weights, network.layer(layer), self.level);
        let (width, turned, queries) = (shape.width, shape.turned(), shape.heads * shape.head());
        let left = self.left(network, layer, count);
        let (kept, gradients, precision) = (&mut self.layers[layer], &mut self.gradients, self.precision);
        let Passing { gradient, narrow, rows, .. } = &mut self.passing;
        let dout = View::new(gradient, left, width, width);
        let matrix = View::new(&weights[places.output..], width, queries, queries);
        let dmixed = fit(narrow, left * queries);
        precision.product(ViewMut::new(dmixed, left, queries, queries), dout, matrix, 1.0, false);
        let out = ViewMut::new(&mut gradients[places.output..], width, queries, queries);
        let mixed = if left < count { &kept.picked } else { &kept.mixed };
        precision.product(out, dout.transposed(), View::new(mixed, left, queries, queries), 1.0, true);
        if left < count {
            scatter(&self.some, narrow, rows, (count, queries));
            scatter(&self.some, gradient, rows, (count, width));
        }
        attention::backward(level, shape, samples, kept, &mut self.passing);
        let Passing { gradient, wide, narrow, .. } = &mut self.passing;
        let dturned = View::new(wide, count, turned, turned);
        let matrix = View::new(&weights[places.turned..], turned, width, width);
        let dnormal = fit(narrow, count * width);
        precision.product(ViewMut::new(dnormal, count, width, width), dturned, matrix, 1.0, false);
        let out = ViewMut::new(&mut gradients[places.turned..], turned, width, width);
        precision.product(out, dturned.transposed(), View::new(&kept.normal, count, width, width), 1.0, true);
        let norm = places.attention_norm;
        let back = Back { level, weight: &weights[norm..][..width], dweight: &mut gradients[norm..][..width] };
        back.norm(&kept.input, &kept.factors, dnormal, &mut gradient[..count * width]);
    }
}
