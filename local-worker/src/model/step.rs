//! One step of the forward pass over any rows: the next token of several sequences, pieces of several prompts, or both.
//!
//! A row is one token at one position of one sequence. Products run over all rows together, so weights are read once a
//! step; attention looks, row by row or a few together, at what their own sequence has stored.

use std::sync::Arc;

use super::cache::{Cache, Look};
use super::decoder::{Decoder, Layer, Linear, Norm};
use super::shape::{DecoderShape, Feed, NormKind, Pairing};
use super::watch::{Site, Watch};
use crate::kernels::{
    Activations, Level, Team, Weighing, add, add_to_rows, gelu, gelu_multiply, layer_norm, multiply_by, rms_norm,
    rms_norm_parts, rope_halves, rope_neighbours, silu_multiply, soft_cap,
};

/// Queries that the kernels of attention serve with one look at a key.
const TOGETHER: usize = 4;

/// One token to work through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The sequence, as a place in the [`Cache`].
    pub slot: usize,
    /// Tokens of that sequence before this one; they were rows of earlier steps, or come earlier in this one.
    pub position: usize,
    /// Index in the vocabulary.
    pub token: u32,
    /// Whether the logits after this token are asked for.
    pub wants_logits: bool,
}

/// Buffers of a step, kept between steps so that a step in the steady state allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    stream: Vec<f32>,
    normed: Activations,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    attended: Activations,
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Activations,
    back: Vec<f32>,
    /// Queries of rows that look together, and what they see.
    together: [Vec<f32>; 2],
    scores: Vec<f32>,
    turns: Vec<Turns>,
    logits: Vec<f32>,
    /// Who takes note of what goes into products, if anybody does.
    pub watch: Option<Watch>,
}

/// Cosines and sines of one rotary table, for every row.
#[derive(Debug, Default)]
struct Turns {
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Scratch {
    /// Buffers whose products are shared by the threads of `team`.
    pub fn shared_by(team: Option<Arc<Team>>) -> Self {
        let rows = || Activations::shared_by(team.clone());
        Self { normed: rows(), attended: rows(), inner: rows(), ..Self::default() }
    }
}

impl Decoder {
    /// Works through `rows` and returns the logits of those that asked, one vocabulary after the other in the order of rows.
    ///
    /// Rows of one sequence must come in the order of their positions, and a bounded cache must have had their positions
    /// reserved. Tokens beyond the vocabulary count as token 0.
    pub fn step<'scratch>(&self, cache: &mut Cache, scratch: &'scratch mut Scratch, rows: &[Row]) -> &'scratch [f32] {
        let width = self.shape.width;
        for row in rows {
            let room = cache.reserve(row.slot, row.position + 1);
            debug_assert!(room, "who bounds a cache reserves before a step");
        }
        scratch.stream.resize(rows.len() * width, 0.0);
        for (row, stream) in rows.iter().zip(scratch.stream.chunks_exact_mut(width)) {
            let token = row.token as usize;
            self.embedding.read_row(if token < self.shape.vocabulary { token } else { 0 }, stream);
        }
        if self.shape.embedding_scale != 1.0 {
            multiply_by(self.level, &mut scratch.stream, self.shape.embedding_scale);
        }
        scratch.turn(&self.shape, rows);
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(layer, index, cache, scratch, rows);
            self.feed_forward(layer, index, scratch, rows.len());
        }
        self.logits(scratch, rows)
    }

    fn attention(&self, layer: &Layer, index: usize, cache: &mut Cache, scratch: &mut Scratch, rows: &[Row]) {
        let (shape, level) = (&self.shape, self.level);
        let (queries, keys) = (shape.heads * shape.head, shape.key_heads * shape.head);
        self.norm_into(&layer.attention_norm, &scratch.stream, &mut scratch.normed);
        scratch.note(index, Site::Attention);
        scratch.queries.resize(rows.len() * queries, 0.0);
        scratch.keys.resize(rows.len() * keys, 0.0);
        scratch.values.resize(rows.len() * keys, 0.0);
        layer.query.multiply(level, &scratch.normed, &mut scratch.queries);
        layer.key.multiply(level, &scratch.normed, &mut scratch.keys);
        layer.value.multiply(level, &scratch.normed, &mut scratch.values);
        if let Some([query, key]) = &layer.head_norms {
            rms_norm_parts(level, &mut scratch.queries, query, shape.epsilon);
            rms_norm_parts(level, &mut scratch.keys, key, shape.epsilon);
        }
        scratch.turn_heads(shape, level, index, rows.len());
        for (at, row) in rows.iter().enumerate() {
            let key = at * keys..(at + 1) * keys;
            let place = (row.slot, index, row.position);
            cache.put(level, place, &scratch.keys[key.clone()], &scratch.values[key]);
        }
        self.attend_rows(index, cache, scratch, rows);
        scratch.attended.quantize(level);
        scratch.note(index, Site::Output);
        scratch.back.resize(rows.len() * shape.width, 0.0);
        layer.output.multiply(level, &scratch.attended, &mut scratch.back);
        self.add_back(layer.attention_post_norm.as_ref(), scratch);
    }

    /// What every row sees of its sequence. Neighbouring rows of one sequence look together, head by head, so that keys are
    /// read once for several queries.
    fn attend_rows(&self, index: usize, cache: &Cache, scratch: &mut Scratch, rows: &[Row]) {
        let shape = &self.shape;
        let (queries, size) = (shape.heads * shape.head, shape.heads / shape.key_heads * shape.head);
        let (weighing, window) = (Weighing { scale: shape.scale, cap: shape.score_cap }, shape.attention[index].window);
        let out = scratch.attended.reset(rows.len(), queries);
        let [asked, told] = &mut scratch.together;
        for key_head in 0..shape.key_heads {
            let mut at = 0;
            while at < rows.len() {
                let some = together(&rows[at..], size / shape.head, window);
                let last = rows[at].position + some;
                let positions = window.map_or(0, |window| last.saturating_sub(window))..last;
                let look = Look { slot: rows[at].slot, layer: index, key_head, positions, rows: some, weighing };
                let part =
                    |row: usize| (at + row) * queries + key_head * size..(at + row) * queries + (key_head + 1) * size;
                asked.clear();
                (0..some).for_each(|row| asked.extend_from_slice(&scratch.queries[part(row)]));
                told.resize(some * size, 0.0);
                cache.attend(self.level, &look, asked, &mut scratch.scores, told);
                told.chunks_exact(size).enumerate().for_each(|(row, told)| out[part(row)].copy_from_slice(told));
                at += some;
            }
        }
    }

    fn feed_forward(&self, layer: &Layer, index: usize, scratch: &mut Scratch, rows: usize) {
        let (hidden, level) = (self.shape.hidden, self.level);
        if let Some(norm) = &layer.feed_norm {
            self.norm_into(norm, &scratch.stream, &mut scratch.normed);
        }
        scratch.note(index, Site::Feed);
        scratch.up.resize(rows * hidden, 0.0);
        layer.up.multiply(level, &scratch.normed, &mut scratch.up);
        if let Some(gate) = &layer.gate {
            scratch.gate.resize(rows * hidden, 0.0);
            gate.multiply(level, &scratch.normed, &mut scratch.gate);
        }
        let inner = scratch.inner.reset(rows, hidden);
        match self.shape.feed {
            Feed::GatedSilu => silu_multiply(level, &scratch.gate, &scratch.up, inner),
            Feed::GatedGelu => gelu_multiply(level, &scratch.gate, &scratch.up, inner),
            Feed::Gelu => gelu(level, &scratch.up, inner),
        }
        scratch.inner.quantize(level);
        scratch.note(index, Site::Down);
        layer.down.multiply(level, &scratch.inner, &mut scratch.back);
        self.add_back(layer.feed_post_norm.as_ref(), scratch);
    }

    /// Adds what a part gave to the stream, normed where the family does.
    fn add_back(&self, norm: Option<&Norm>, scratch: &mut Scratch) {
        if let Some(norm) = norm {
            rms_norm_parts(self.level, &mut scratch.back, &norm.weight, self.shape.epsilon);
        }
        add(self.level, &mut scratch.stream, &scratch.back);
    }

    fn logits<'scratch>(&self, scratch: &'scratch mut Scratch, rows: &[Row]) -> &'scratch [f32] {
        let width = self.shape.width;
        let wanted = rows.iter().filter(|row| row.wants_logits).count();
        let normed = scratch.normed.reset(wanted, width);
        let asking = scratch.stream.chunks_exact(width).zip(rows).filter(|(_, row)| row.wants_logits);
        for ((stream, _), out) in asking.zip(normed.chunks_exact_mut(width)) {
            self.norm_row(&self.norm, stream, out);
        }
        scratch.normed.quantize(self.level);
        scratch.logits.resize(wanted * self.shape.vocabulary, 0.0);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        head.multiply(self.level, &scratch.normed, &mut scratch.logits);
        if let Some(bias) = &self.head_bias {
            add_to_rows(self.level, &mut scratch.logits, bias);
        }
        if let Some(cap) = self.shape.logit_cap {
            soft_cap(self.level, &mut scratch.logits, cap);
        }
        &scratch.logits
    }

    fn norm_into(&self, norm: &Norm, stream: &[f32], out: &mut Activations) {
        let width = self.shape.width;
        let normed = out.reset(stream.len() / width, width);
        for (stream, normed) in stream.chunks_exact(width).zip(normed.chunks_exact_mut(width)) {
            self.norm_row(norm, stream, normed);
        }
        out.quantize(self.level);
    }

    fn norm_row(&self, norm: &Norm, row: &[f32], out: &mut [f32]) {
        match self.shape.norm {
            NormKind::Rms => rms_norm(self.level, row, &norm.weight, self.shape.epsilon, out),
            NormKind::Layer => layer_norm(self.level, row, &norm.weight, &norm.bias, self.shape.epsilon, out),
        }
    }
}

/// Rows from the first on that look at the keys together: of one sequence, one position after the other, none of which has a
/// beginning out of its window, and only where heads that share keys are too few to fill a kernel.
fn together(rows: &[Row], shared: usize, window: Option<usize>) -> usize {
    if shared.is_multiple_of(TOGETHER) {
        return 1;
    }
    let first = rows[0];
    let belongs = |(at, row): &(usize, &Row)| {
        let position = first.position + at;
        (row.slot, row.position) == (first.slot, position) && window.is_none_or(|window| position < window)
    };
    rows.iter().enumerate().take(TOGETHER).take_while(belongs).count().max(1)
}

impl Linear {
    pub(super) fn multiply(&self, level: Level, input: &Activations, out: &mut [f32]) {
        self.matrix.multiply(level, input, out);
        if let Some(bias) = &self.bias {
            add_to_rows(level, out, bias);
        }
    }
}

impl Scratch {
    /// Tells whoever watches what goes into a product.
    fn note(&mut self, layer: usize, site: Site) {
        if let Some(watch) = &mut self.watch {
            let inputs = match site {
                Site::Attention | Site::Feed => &self.normed,
                Site::Output => &self.attended,
                Site::Down => &self.inner,
            };
            watch.note(layer, site, inputs);
        }
    }

    /// Cosines and sines of every row's angles, for each rotary table; the same for all layers that use it.
    fn turn(&mut self, shape: &DecoderShape, rows: &[Row]) {
        self.turns.resize_with(shape.rotary.len(), Turns::default);
        for (turns, rotary) in self.turns.iter_mut().zip(&shape.rotary) {
            turns.cosines.clear();
            turns.sines.clear();
            for row in rows {
                for frequency in &rotary.frequencies {
                    let (sine, cosine) = (row.position as f64 * f64::from(*frequency)).sin_cos();
                    turns.cosines.push(cosine as f32 * rotary.magnitude);
                    turns.sines.push(sine as f32 * rotary.magnitude);
                }
            }
        }
    }

    /// Turns the queries and keys of a layer.
    fn turn_heads(&mut self, shape: &DecoderShape, level: Level, layer: usize, rows: usize) {
        let table = shape.attention[layer].rotary;
        let (rotary, turns) = (&shape.rotary[table], &self.turns[table]);
        let (queries, keys, pairs) = (shape.heads * shape.head, shape.key_heads * shape.head, rotary.frequencies.len());
        for at in 0..rows {
            let angles = at * pairs..(at + 1) * pairs;
            let (cosines, sines) = (&turns.cosines[angles.clone()], &turns.sines[angles]);
            let query = &mut self.queries[at * queries..(at + 1) * queries];
            let key = &mut self.keys[at * keys..(at + 1) * keys];
            for values in [query, key] {
                match rotary.pairing {
                    Pairing::Neighbours => rope_neighbours(level, values, shape.head, cosines, sines),
                    Pairing::Halves => rope_halves(level, values, shape.head, cosines, sines),
                }
            }
        }
    }
}
