//! One step of the forward pass over any rows: the next token of several sequences, pieces of several prompts, or both.
//!
//! A row is one token at one position of one sequence. Products run over all rows together, so weights are read once a
//! step; attention runs row by row, over what its own sequence has stored.

use std::sync::Arc;

use super::cache::{Cache, Look};
use super::llama::{Layer, Llama};
use crate::kernels::{Activations, Team, Weighing, add, rms_norm, rope, silu_multiply};

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
    scores: Vec<f32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    logits: Vec<f32>,
}

impl Scratch {
    /// Buffers whose products are shared by the threads of `team`.
    pub fn shared_by(team: Option<Arc<Team>>) -> Self {
        let rows = || Activations::shared_by(team.clone());
        Self { normed: rows(), attended: rows(), inner: rows(), ..Self::default() }
    }
}

impl Llama {
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
        self.turn(scratch, rows);
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(layer, index, cache, scratch, rows);
            self.feed_forward(layer, scratch, rows.len());
        }
        self.logits(scratch, rows)
    }

    /// Cosines and sines of every row's angles; the same for all layers.
    fn turn(&self, scratch: &mut Scratch, rows: &[Row]) {
        scratch.cosines.clear();
        scratch.sines.clear();
        for row in rows {
            for frequency in &self.shape.frequencies {
                let (sine, cosine) = (row.position as f64 * f64::from(*frequency)).sin_cos();
                scratch.cosines.push(cosine as f32);
                scratch.sines.push(sine as f32);
            }
        }
    }

    fn attention(&self, layer: &Layer, index: usize, cache: &mut Cache, scratch: &mut Scratch, rows: &[Row]) {
        let (shape, level) = (&self.shape, self.level);
        let (queries, keys, pairs) = (shape.heads * shape.head, shape.key_heads * shape.head, shape.frequencies.len());
        self.norm_into(&layer.attention_norm, &scratch.stream, &mut scratch.normed, rows.len());
        scratch.queries.resize(rows.len() * queries, 0.0);
        scratch.keys.resize(rows.len() * keys, 0.0);
        scratch.values.resize(rows.len() * keys, 0.0);
        layer.query.multiply(level, &scratch.normed, &mut scratch.queries);
        layer.key.multiply(level, &scratch.normed, &mut scratch.keys);
        layer.value.multiply(level, &scratch.normed, &mut scratch.values);
        for (at, row) in rows.iter().enumerate() {
            let angles = at * pairs..(at + 1) * pairs;
            let (cosines, sines) = (&scratch.cosines[angles.clone()], &scratch.sines[angles]);
            let (query, key) = (at * queries..(at + 1) * queries, at * keys..(at + 1) * keys);
            rope(level, &mut scratch.queries[query], shape.head, cosines, sines);
            rope(level, &mut scratch.keys[key.clone()], shape.head, cosines, sines);
            cache.put(row.slot, index, row.position, &scratch.keys[key.clone()], &scratch.values[key]);
        }
        let out = scratch.attended.reset(rows.len(), queries);
        let weighing = Weighing { scale: 1.0 / (shape.head as f32).sqrt(), cap: None };
        let shared = shape.heads / shape.key_heads;
        for (at, row) in rows.iter().enumerate() {
            for head in 0..shape.heads {
                let (key_head, positions) = (head / shared, 0..row.position + 1);
                let look = Look { slot: row.slot, layer: index, key_head, positions, weighing };
                let part = at * queries + head * shape.head..at * queries + (head + 1) * shape.head;
                cache.attend(level, &look, &scratch.queries[part.clone()], &mut scratch.scores, &mut out[part]);
            }
        }
        scratch.attended.quantize(level);
        scratch.back.resize(rows.len() * shape.width, 0.0);
        layer.output.multiply(level, &scratch.attended, &mut scratch.back);
        add(level, &mut scratch.stream, &scratch.back);
    }

    fn feed_forward(&self, layer: &Layer, scratch: &mut Scratch, rows: usize) {
        let (hidden, level) = (self.shape.hidden, self.level);
        self.norm_into(&layer.feed_norm, &scratch.stream, &mut scratch.normed, rows);
        scratch.gate.resize(rows * hidden, 0.0);
        scratch.up.resize(rows * hidden, 0.0);
        layer.gate.multiply(level, &scratch.normed, &mut scratch.gate);
        layer.up.multiply(level, &scratch.normed, &mut scratch.up);
        silu_multiply(level, &scratch.gate, &scratch.up, scratch.inner.reset(rows, hidden));
        scratch.inner.quantize(level);
        layer.down.multiply(level, &scratch.inner, &mut scratch.back);
        add(level, &mut scratch.stream, &scratch.back);
    }

    fn logits<'scratch>(&self, scratch: &'scratch mut Scratch, rows: &[Row]) -> &'scratch [f32] {
        let width = self.shape.width;
        let wanted = rows.iter().filter(|row| row.wants_logits).count();
        let normed = scratch.normed.reset(wanted, width);
        let asking = scratch.stream.chunks_exact(width).zip(rows).filter(|(_, row)| row.wants_logits);
        for ((stream, _), out) in asking.zip(normed.chunks_exact_mut(width)) {
            rms_norm(self.level, stream, &self.norm, self.shape.epsilon, out);
        }
        scratch.normed.quantize(self.level);
        scratch.logits.resize(wanted * self.shape.vocabulary, 0.0);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        head.multiply(self.level, &scratch.normed, &mut scratch.logits);
        &scratch.logits
    }

    fn norm_into(&self, weight: &[f32], stream: &[f32], out: &mut Activations, rows: usize) {
        let width = self.shape.width;
        let normed = out.reset(rows, width);
        for (stream, normed) in stream.chunks_exact(width).zip(normed.chunks_exact_mut(width)) {
            rms_norm(self.level, stream, weight, self.shape.epsilon, normed);
        }
        out.quantize(self.level);
    }
}
