//! The way back: gradients of all weights, given those of what lines read. Random rows are not learnt, and what keeps
//! exponents small ([`favor`](super::favor)) changes no output, so it counts as constant.

use super::attention::Rows;
use super::favor::{Sums, side_scale};
use super::network::{Attention, Block, EPSILON, LayerPlaces, Network, Pass, Whole, fit};
use crate::kernels::{Level, View, ViewMut, add, product, rms_norm_backward, silu_multiply_backward, sum_products};
use std::ops::Range;

/// Gradients, and buffers of the way back.
#[derive(Debug, Default)]
pub(super) struct Gradients {
    /// By all weights, in the network's order.
    pub weights: Vec<f32>,
    state: Vec<f32>,
    wide: Vec<f32>,
    inner: Vec<f32>,
    mixed: Vec<f32>,
    query: Vec<f32>,
    key_value: Vec<f32>,
    square: Vec<f32>,
    values: Vec<f32>,
}

/// `dweights += doutᵀ · input`.
fn learn(dweights: &mut [f32], dout: &[f32], input: &[f32], rows: usize) {
    let (outputs, width) = (dout.len() / rows, input.len() / rows);
    let dout = View::new(dout, rows, outputs, outputs).transposed();
    product(ViewMut::new(dweights, outputs, width, width), dout, View::new(input, rows, width, width), 1.0, true);
}

/// `dinput = dout · weights`, or `+=`.
fn back(weights: &[f32], dout: &[f32], rows: usize, dinput: &mut [f32], more: bool) {
    let (outputs, width) = (dout.len() / rows, dinput.len() / rows);
    let right = View::new(weights, outputs, width, width);
    product(ViewMut::new(dinput, rows, width, width), View::new(dout, rows, outputs, outputs), right, 1.0, more);
}

/// Adds what goes back through the norm of every row to `dinput`.
fn back_norms(level: Level, input: &[f32], weight: &[f32], dout: &[f32], dinput: &mut [f32], dweight: &mut [f32]) {
    let width = weight.len();
    let rows = input.chunks_exact(width).zip(dout.chunks_exact(width)).zip(dinput.chunks_exact_mut(width));
    for ((input, dout), dinput) in rows {
        let factor = 1.0 / (sum_products(input, input) / width as f32 + EPSILON).sqrt();
        rms_norm_backward(level, input, weight, factor, dout, dinput, dweight);
    }
}

impl Gradients {
    /// Begins anew.
    pub fn clear(&mut self, length: usize) {
        self.weights.resize(length, 0.0);
        self.weights.fill(0.0);
    }

    /// Adds the gradients of a text that went forward with `keep`; `dmean` is the gradient by the mean of its tokens.
    pub fn add_text(&mut self, network: &Network, pass: &Pass, tokens: usize, dmean: &[f32]) {
        if tokens == 0 {
            return;
        }
        let (width, level, places) = (network.shape.width, Level::detect(), network.shape.places(0));
        let share = 1.0 / tokens as f32;
        let even: Vec<f32> = dmean.iter().take(width).map(|value| value * share).collect();
        let rows = tokens * width;
        fit(&mut self.state, rows).fill(0.0);
        let dout: Vec<f32> = even.iter().copied().cycle().take(rows).collect();
        let norm = places.norm.clone();
        back_norms(
            level,
            &pass.state[..rows],
            &network.weights[norm.clone()],
            &dout,
            &mut self.state[..rows],
            &mut self.weights[norm],
        );
        for (number, layer) in places.layers.iter().enumerate().rev() {
            let Some((block, whole)) = pass.layers.get(number) else { continue };
            self.feed_forward(network, layer, block, tokens);
            self.attention(network, (layer, number), (block, whole), tokens);
        }
        learn(&mut self.weights[places.input], &self.state[..rows], network.vectors(pass, tokens), tokens);
    }

    fn feed_forward(&mut self, network: &Network, layer: &LayerPlaces, block: &Block, tokens: usize) {
        let (width, inner, level) = (network.shape.width, network.shape.inner, Level::detect());
        let weights = |place: &Range<usize>| &network.weights[place.clone()];
        let dstate = &mut self.state[..tokens * width];
        let dinner = fit(&mut self.inner, tokens * inner);
        learn(&mut self.weights[layer.down.clone()], dstate, &block.inner[..tokens * inner], tokens);
        back(weights(&layer.down), dstate, tokens, dinner, false);
        let gate_up = fit(&mut self.wide, 2 * tokens * inner);
        gate_up.copy_from_slice(&block.gate_up[..2 * tokens * inner]);
        for (gate_up, dinner) in gate_up.chunks_exact_mut(2 * inner).zip(dinner.chunks_exact(inner)) {
            let (gate, up) = gate_up.split_at_mut(inner);
            silu_multiply_backward(level, gate, up, dinner);
        }
        let normal = &block.second_normal[..tokens * width];
        learn(&mut self.weights[layer.gate_up.clone()], gate_up, normal, tokens);
        let dnormal = fit(&mut self.mixed, tokens * width);
        back(weights(&layer.gate_up), gate_up, tokens, dnormal, false);
        let norm = layer.second_norm.clone();
        let middle = &block.middle[..tokens * width];
        back_norms(level, middle, weights(&layer.second_norm), dnormal, dstate, &mut self.weights[norm]);
    }

    fn attention(
        &mut self,
        network: &Network,
        (layer, number): (&LayerPlaces, usize),
        (block, whole): (&Block, &Whole),
        tokens: usize,
    ) {
        let (width, level) = (network.shape.width, Level::detect());
        let weights = |place: &Range<usize>| &network.weights[place.clone()];
        let rows = tokens * width;
        learn(&mut self.weights[layer.out.clone()], &self.state[..rows], &block.mixed[..rows], tokens);
        back(weights(&layer.out), &self.state[..rows], tokens, fit(&mut self.mixed, rows), false);
        fit(&mut self.query, rows);
        fit(&mut self.key_value, 2 * rows);
        for head in 0..network.shape.heads {
            match network.shape.attention {
                Attention::Softmax => self.softmax_head(network, (block, whole), head, tokens),
                Attention::Favor { .. } => {
                    let features = network.features.get(number).map_or(&[][..], Vec::as_slice);
                    self.favor_head(network, features, (block, whole), head, tokens);
                }
            }
        }
        let normal = &block.normal[..rows];
        learn(&mut self.weights[layer.query.clone()], &self.query[..rows], normal, tokens);
        learn(&mut self.weights[layer.key_value.clone()], &self.key_value[..2 * rows], normal, tokens);
        let dnormal = fit(&mut self.mixed, rows);
        back(weights(&layer.query), &self.query[..rows], tokens, dnormal, false);
        back(weights(&layer.key_value), &self.key_value[..2 * rows], tokens, dnormal, true);
        let norm = layer.norm.clone();
        let dstate = &mut self.state[..rows];
        back_norms(level, &block.input[..rows], weights(&layer.norm), dnormal, dstate, &mut self.weights[norm]);
    }

    fn softmax_head(&mut self, network: &Network, (block, whole): (&Block, &Whole), number: usize, tokens: usize) {
        let (width, head) = (network.shape.width, network.shape.head());
        let (at, scale) = (number * head, side_scale(head).powi(2));
        let queries = Rows::new(&block.query, at, width, head).view(tokens);
        let keys = Rows::new(&whole.key_value, at, 2 * width, head).view(tokens);
        let values = Rows::new(&whole.key_value, width + at, 2 * width, head).view(tokens);
        let dout = Rows::new(&self.mixed, at, width, head).view(tokens);
        let each = tokens * tokens;
        let shares = &block.shares[number * each..][..each];
        let dvalues = ViewMut::new(&mut self.key_value[width + at..], tokens, head, 2 * width);
        product(dvalues, View::new(shares, tokens, tokens, tokens).transposed(), dout, 1.0, false);
        let square = fit(&mut self.square, each);
        product(ViewMut::new(square, tokens, tokens, tokens), dout, values.transposed(), 1.0, false);
        for (shares, square) in shares.chunks_exact(tokens).zip(square.chunks_exact_mut(tokens)) {
            let pull = sum_products(shares, square);
            square.iter_mut().zip(shares).for_each(|(value, share)| *value = share * (*value - pull));
        }
        let square = View::new(square, tokens, tokens, tokens);
        product(ViewMut::new(&mut self.query[at..], tokens, head, width), square, keys, scale, false);
        let dkeys = ViewMut::new(&mut self.key_value[at..], tokens, head, 2 * width);
        product(dkeys, square.transposed(), queries, scale, false);
    }

    /// With `φ` of queries, `ψ` of keys, `S = ψᵀV`, `z = ψᵀ1`: what a query sees is `φS / φz`.
    fn favor_head(
        &mut self,
        network: &Network,
        features: &[f32],
        (block, whole): (&Block, &Whole),
        number: usize,
        tokens: usize,
    ) {
        let (width, head, level) = (network.shape.width, network.shape.head(), Level::detect());
        let (at, scale, count) = (number * head, side_scale(head), features.len() / head);
        let Some(Sums { values: sums, totals, .. }) = whole.sums.get(number) else { return };
        let each = tokens * count;
        let shares = &block.shares[number * each..][..each];
        let key_shares = &block.key_shares[number * each..][..each];
        let keys = Rows::new(&whole.key_value, at, 2 * width, head);
        let values = Rows::new(&whole.key_value, width + at, 2 * width, head).view(tokens);
        let draws = View::new(features, count, head, head);
        // Gradients by what is divided, and by what it is divided by.
        let dseen = fit(&mut self.wide, tokens * (head + 1));
        for (row, dseen) in dseen.chunks_exact_mut(head + 1).enumerate() {
            let total = sum_products(&shares[row * count..][..count], totals);
            let dout = &self.mixed[row * width + at..][..head];
            let seen = &block.mixed[row * width + at..][..head];
            let (by_value, by_total) = dseen.split_at_mut(head);
            by_value.iter_mut().zip(dout).for_each(|(value, dout)| *value = dout / total);
            by_total.fill(-sum_products(dout, seen) / total);
        }
        let by_value = View::new(dseen, tokens, head, head + 1);
        let by_total = |row: usize| dseen[row * (head + 1) + head];
        let dshares = fit(&mut self.square, each);
        let sums = View::new(sums, count, head, head);
        product(ViewMut::new(dshares, tokens, count, count), by_value, sums.transposed(), 1.0, false);
        // Exponents of queries.
        let dsums = fit(&mut self.values, count * (head + 1));
        let (dsums, dtotals) = dsums.split_at_mut(count * head);
        dtotals.fill(0.0);
        for (row, (shares, dshares)) in shares.chunks_exact(count).zip(dshares.chunks_exact_mut(count)).enumerate() {
            let by_total = by_total(row);
            let each = shares.iter().zip(dshares).zip(totals).zip(dtotals.iter_mut());
            for (((share, dshare), total), dtotal) in each {
                *dshare = share * (*dshare + by_total * total);
                *dtotal += share * by_total;
            }
        }
        let dqueries = ViewMut::new(&mut self.query[at..], tokens, head, width);
        product(dqueries, View::new(dshares, tokens, count, count), draws, scale, false);
        let shares = View::new(shares, tokens, count, count);
        product(ViewMut::new(dsums, count, head, head), shares.transposed(), by_value, 1.0, false);
        // Values, and exponents of keys.
        let dsums = View::new(dsums, count, head, head);
        let dvalues = ViewMut::new(&mut self.key_value[width + at..], tokens, head, 2 * width);
        product(dvalues, View::new(key_shares, tokens, count, count), dsums, 1.0, false);
        product(ViewMut::new(dshares, tokens, count, count), values, dsums.transposed(), 1.0, false);
        for (shares, dshares) in key_shares.chunks_exact(count).zip(dshares.chunks_exact_mut(count)) {
            add(level, dshares, dtotals);
            dshares.iter_mut().zip(shares).for_each(|(dshare, share)| *dshare *= share);
        }
        let dkeys = ViewMut::new(&mut self.key_value[at..], tokens, head, 2 * width);
        product(dkeys, View::new(dshares, tokens, count, count), draws, scale, false);
        for (row, dshares) in dshares.chunks_exact(count).enumerate() {
            let pull = scale * scale * dshares.iter().sum::<f32>();
            let dkey = &mut self.key_value[row * 2 * width + at..][..head];
            dkey.iter_mut().zip(keys.row(row)).for_each(|(dkey, key)| *dkey -= pull * key);
        }
    }
}
