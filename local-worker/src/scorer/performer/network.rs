//! The encoder's sizes, its weights in one slice, and the way forward.
//!
//! Serving works through a long text in chunks of rows, once for keys and values, once for all that follows: between layers
//! only one row of `width` numbers a token is kept, and softmax keeps keys and values beside. Training is the same code with
//! the whole text as one chunk and buffers of its own for each layer.

use super::attention::{self, BLOCK, Rows};
use super::favor;
use crate::embed::StaticEmbedder;
use crate::kernels::{Level, View, ViewMut, add, product, rms_norm, silu_multiply, sum_products};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Most tokens that are read.
pub const MOST_TOKENS: usize = 8192;

/// A word that the table does not know: only its place counts.
pub(super) const UNKNOWN: u32 = u32::MAX;

/// Numbers of a word vector.
pub(super) const VECTOR: usize = 256;

/// Rows that are worked at once where attention is linear.
const CHUNK: usize = 256;

pub(super) const EPSILON: f32 = 1e-6;

/// How much of a token is where it stands.
const PLACE: f32 = 0.3;

/// Kinds of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "lowercase")]
pub enum Attention {
    /// Exact.
    Softmax,
    /// By positive orthogonal random features.
    Favor {
        /// Features of a head.
        features: usize,
    },
}

/// Sizes of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Numbers of a token between layers.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of a layer; they divide the width.
    pub heads: usize,
    /// Width of the feed-forward part.
    pub inner: usize,
    /// How tokens look at each other.
    pub attention: Attention,
}

impl Shape {
    /// The sizes that are trained where nothing else is said.
    pub const fn usual(attention: Attention) -> Self {
        Self { width: 64, layers: 2, heads: 4, inner: 96, attention }
    }

    /// Features of the usual Performer.
    pub const FEATURES: usize = 64;

    /// Numbers of a head.
    pub fn head(&self) -> usize {
        self.width / self.heads.max(1)
    }

    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<String> {
        let Self { width, layers, heads, inner, attention } = self;
        let within = |name: &str, value: usize, most: usize| {
            (!(1..=most).contains(&value)).then(|| format!("{name} is {value}, not within 1 and {most}"))
        };
        let features = match attention {
            Attention::Softmax => None,
            Attention::Favor { features } => within("features", *features, 4096),
        };
        within("width", *width, 1024)
            .or_else(|| within("layers", *layers, 16))
            .or_else(|| within("heads", *heads, 64))
            .or_else(|| within("inner", *inner, 4096))
            .or(features)
            .or_else(|| {
                (!width.is_multiple_of(*heads)).then(|| format!("{heads} heads don't divide a width of {width}"))
            })
    }

    /// Where weights lie for `lines` lines over the mean.
    pub(super) fn places(&self, lines: usize) -> Places {
        let mut end = 0;
        let mut next = |length: usize| {
            end += length;
            end - length..end
        };
        let Self { width, inner, .. } = *self;
        let input = next(width * VECTOR);
        let layers = (0..self.layers)
            .map(|_| LayerPlaces {
                norm: next(width),
                query: next(width * width),
                key_value: next(2 * width * width),
                out: next(width * width),
                second_norm: next(width),
                gate_up: next(2 * inner * width),
                down: next(width * inner),
            })
            .collect();
        let norm = next(width);
        let lines = next(lines * line_length(width));
        Places { input, layers, norm, lines, end }
    }
}

/// Numbers of a line over the mean: one for each of the width, one for the length, an offset.
pub(super) fn line_length(width: usize) -> usize {
    width + 2
}

/// What a line reads of a text's length.
pub(super) fn length_sign(tokens: usize) -> f32 {
    (1.0 + tokens as f32).ln() / 8.0
}

/// Where each tensor lies.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// `width × VECTOR`.
    pub input: Range<usize>,
    pub layers: Vec<LayerPlaces>,
    pub norm: Range<usize>,
    /// Lines over the mean, each of [`line_length`].
    pub lines: Range<usize>,
    pub end: usize,
}

/// The same within a layer; matrices have a row for each output.
#[derive(Debug, Clone)]
pub(super) struct LayerPlaces {
    pub norm: Range<usize>,
    pub query: Range<usize>,
    /// Keys' rows, then values'.
    pub key_value: Range<usize>,
    pub out: Range<usize>,
    pub second_norm: Range<usize>,
    /// Gates' rows, then the others'.
    pub gate_up: Range<usize>,
    pub down: Range<usize>,
}

/// An encoder: sizes, weights, and random rows of each layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Network {
    pub shape: Shape,
    pub weights: Vec<f32>,
    /// For each layer a random row for each feature, shared by its heads; nothing for softmax.
    pub features: Vec<Vec<f32>>,
}

/// What some rows of a layer are worked in; kept for the way back when training.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub input: Vec<f32>,
    pub normal: Vec<f32>,
    pub query: Vec<f32>,
    pub shares: Vec<f32>,
    pub key_shares: Vec<f32>,
    pub mixed: Vec<f32>,
    pub middle: Vec<f32>,
    pub second_normal: Vec<f32>,
    pub gate_up: Vec<f32>,
    pub inner: Vec<f32>,
    passing: Vec<f32>,
}

/// What all rows of a layer leave for each other.
#[derive(Debug, Default)]
pub(super) struct Whole {
    /// Keys and values; for linear attention those of a chunk.
    pub key_value: Vec<f32>,
    /// Sums over keys, head by head.
    pub sums: Vec<favor::Sums>,
}

/// Buffers of a reading.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// A row of the width for each token.
    pub state: Vec<f32>,
    vectors: Vec<f32>,
    /// One for all layers when serving, one for each when training.
    pub layers: Vec<(Block, Whole)>,
}

impl Pass {
    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        let layer = |(block, whole): &(Block, Whole)| {
            let buffers = [
                &block.input,
                &block.normal,
                &block.query,
                &block.shares,
                &block.key_shares,
                &block.mixed,
                &block.middle,
                &block.second_normal,
                &block.gate_up,
                &block.inner,
                &block.passing,
                &whole.key_value,
            ];
            let sums: usize = whole.sums.iter().map(favor::Sums::bytes).sum();
            buffers.iter().map(|buffer| buffer.capacity() * size_of::<f32>()).sum::<usize>() + sums
        };
        let own = (self.state.capacity() + self.vectors.capacity()) * size_of::<f32>();
        own + self.layers.iter().map(layer).sum::<usize>()
    }
}

/// Makes a buffer exactly as long as is needed, or uses the beginning of a longer one.
pub(super) fn fit(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.reserve_exact(length - buffer.len());
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

/// `out = input · weightsᵀ` for `rows` rows; `weights` has a row for each output.
pub(super) fn apply(weights: &[f32], input: &[f32], rows: usize, out: &mut [f32]) {
    if rows == 0 {
        return;
    }
    let (width, outputs) = (input.len() / rows, out.len() / rows);
    let right = View::new(weights, outputs, width, width).transposed();
    product(ViewMut::new(out, rows, outputs, outputs), View::new(input, rows, width, width), right, 1.0, false);
}

/// Which rows of how many, and whether everything is kept for the way back.
#[derive(Debug, Clone, Copy)]
struct Part {
    first: usize,
    rows: usize,
    all: usize,
    keep: bool,
}

impl Network {
    /// The score of a text by the first line.
    pub fn score(&self, embedder: &StaticEmbedder, tokens: &[u32], pass: &mut Pass) -> f64 {
        self.forward(embedder, tokens, pass, false);
        let mean = self.mean(tokens.len(), pass);
        let width = self.shape.width;
        let lines = &self.weights[self.shape.places(1).lines];
        let line: f64 = lines.iter().zip(&mean).map(|(weight, value)| f64::from(weight * value)).sum();
        debug_assert_eq!(mean.len(), width + 1, "a mean and a length");
        line + f64::from(lines[width + 1])
    }

    /// What each token adds to the score by the first line.
    pub fn pushes(&self, embedder: &StaticEmbedder, tokens: &[u32]) -> Vec<f64> {
        let mut pass = Pass::default();
        self.forward(embedder, tokens, &mut pass, false);
        let (width, places) = (self.shape.width, self.shape.places(1));
        let (norm, line) = (&self.weights[places.norm], &self.weights[places.lines][..width]);
        let mut normal = vec![0.0; width];
        let rows = pass.state.chunks_exact(width).take(tokens.len());
        rows.map(|row| {
            rms_norm(Level::detect(), row, norm, EPSILON, &mut normal);
            f64::from(sum_products(&normal, line)) / tokens.len() as f64
        })
        .collect()
    }

    /// The same encoder, its first line times `slope` plus `offset`.
    pub fn rescale(&mut self, slope: f32, offset: f32) {
        let lines = self.shape.places(1).lines;
        self.weights[lines.clone()].iter_mut().for_each(|weight| *weight *= slope);
        self.weights[lines.end - 1] += offset;
    }

    /// The mean of what the last layer left, and what lines read of the length.
    pub fn mean(&self, tokens: usize, pass: &Pass) -> Vec<f32> {
        let (width, norm) = (self.shape.width, &self.weights[self.shape.places(0).norm]);
        let (mut normal, mut sums) = (vec![0.0; width], vec![0.0f64; width]);
        for row in pass.state.chunks_exact(width).take(tokens) {
            rms_norm(Level::detect(), row, norm, EPSILON, &mut normal);
            sums.iter_mut().zip(&normal).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let count = tokens.max(1) as f64;
        sums.iter().map(|sum| (sum / count) as f32).chain([length_sign(tokens)]).collect()
    }

    /// Fills the pass's state; with `keep` everything the way back needs too.
    pub fn forward(&self, embedder: &StaticEmbedder, tokens: &[u32], pass: &mut Pass, keep: bool) {
        let places = self.shape.places(0);
        let (width, all) = (self.shape.width, tokens.len());
        self.embed(embedder, tokens, &places, pass, keep);
        pass.layers.resize_with(if keep { self.shape.layers } else { 1 }, Default::default);
        let chunk = match (keep, self.shape.attention) {
            (true, _) => all.max(1),
            (false, Attention::Softmax) => BLOCK,
            (false, Attention::Favor { .. }) => CHUNK,
        };
        let parts = || {
            let part = move |first| Part { first, rows: chunk.min(all - first), all, keep };
            (0..all).step_by(chunk).map(part)
        };
        let mut state = std::mem::take(&mut pass.state);
        for (number, layer) in places.layers.iter().enumerate() {
            let Some((block, whole)) = pass.layers.get_mut(if keep { number } else { 0 }) else { continue };
            let features = self.features.get(number).map_or(&[][..], Vec::as_slice);
            self.reset(features, all, whole);
            for part in parts() {
                let rows = &state[part.first * width..][..part.rows * width];
                if keep {
                    fit(&mut block.input, rows.len()).copy_from_slice(rows);
                }
                self.read_keys(layer, features, rows, part, block, whole);
            }
            for part in parts() {
                let rows = &mut state[part.first * width..][..part.rows * width];
                self.look(layer, features, rows, part, block, whole);
            }
        }
        pass.state = state;
    }

    /// Word vectors, projected, with the sines of their places (Vaswani et al. 2017, section 3.5).
    fn embed(&self, embedder: &StaticEmbedder, tokens: &[u32], places: &Places, pass: &mut Pass, keep: bool) {
        let width = self.shape.width;
        let chunk = if keep { tokens.len().max(1) } else { CHUNK };
        let state = fit(&mut pass.state, tokens.len() * width);
        let vectors = fit(&mut pass.vectors, tokens.len().min(chunk) * VECTOR);
        let weights = &self.weights[places.input.clone()];
        for (number, (tokens, state)) in tokens.chunks(chunk).zip(state.chunks_mut(chunk * width)).enumerate() {
            gather(embedder, tokens, vectors);
            apply(weights, &vectors[..tokens.len() * VECTOR], tokens.len(), state);
            for (row, values) in state.chunks_exact_mut(width).enumerate() {
                let place = (number * chunk + row) as f32;
                let mut turn = 1.0f32;
                for pair in values.chunks_mut(2) {
                    let (sine, cosine) = (place * turn).sin_cos();
                    pair.iter_mut().zip([sine, cosine]).for_each(|(value, sign)| *value += PLACE * sign);
                    turn *= self.turn();
                }
            }
        }
    }

    /// How much slower each pair of numbers turns than the one before: the last turns once in some 10,000 radians.
    fn turn(&self) -> f32 {
        (-(10_000f32.ln()) * 2.0 / self.shape.width as f32).exp()
    }

    /// The word vectors as the last forward with `keep` gathered them.
    #[cfg(feature = "lab")]
    pub fn vectors<'pass>(&self, pass: &'pass Pass, tokens: usize) -> &'pass [f32] {
        &pass.vectors[..tokens * VECTOR]
    }

    fn reset(&self, features: &[f32], all: usize, whole: &mut Whole) {
        let Shape { width, heads, attention, .. } = self.shape;
        match attention {
            Attention::Softmax => {
                fit(&mut whole.key_value, 2 * width * all);
            }
            Attention::Favor { .. } => {
                whole.sums.resize_with(heads, Default::default);
                let head = self.shape.head();
                whole.sums.iter_mut().for_each(|sums| sums.reset(features.len() / head, head));
            }
        }
    }

    /// Keys and values of some rows.
    fn read_keys(
        &self,
        layer: &LayerPlaces,
        features: &[f32],
        rows: &[f32],
        part: Part,
        block: &mut Block,
        whole: &mut Whole,
    ) {
        let (width, head, level) = (self.shape.width, self.shape.head(), Level::detect());
        let normal = fit(&mut block.normal, rows.len());
        norms(level, rows, &self.weights[layer.norm.clone()], normal);
        let at = if self.shape.attention == Attention::Softmax { part.first } else { 0 };
        let length = 2 * width * part.rows;
        fit(&mut whole.key_value, 2 * width * at + length);
        let key_value = &mut whole.key_value[2 * width * at..][..length];
        apply(&self.weights[layer.key_value.clone()], normal, part.rows, key_value);
        if self.shape.attention == Attention::Softmax {
            return;
        }
        let each = part.rows * (features.len() / head);
        let shares = fit(&mut block.key_shares, each * if part.keep { self.shape.heads } else { 1 });
        for (number, sums) in whole.sums.iter_mut().enumerate() {
            let keys = Rows::new(&whole.key_value, number * head, 2 * width, head);
            let values = Rows::new(&whole.key_value, width + number * head, 2 * width, head);
            let from = if part.keep { number * each } else { 0 };
            favor::add_keys(level, features, (keys, values), part.rows, &mut shares[from..from + each], sums);
        }
    }

    /// Everything of a layer behind keys and values: attention, and the feed-forward part.
    fn look(
        &self,
        layer: &LayerPlaces,
        features: &[f32],
        rows: &mut [f32],
        part: Part,
        block: &mut Block,
        whole: &Whole,
    ) {
        let (Shape { width, inner, .. }, level) = (self.shape, Level::detect());
        let weights = |place: &Range<usize>| &self.weights[place.clone()];
        let normal = fit(&mut block.normal, rows.len());
        norms(level, rows, weights(&layer.norm), normal);
        apply(weights(&layer.query), normal, part.rows, fit(&mut block.query, rows.len()));
        self.attend(features, part, block, whole);
        let passing = fit(&mut block.passing, rows.len());
        apply(weights(&layer.out), &block.mixed[..part.rows * width], part.rows, passing);
        add(level, rows, passing);
        if part.keep {
            fit(&mut block.middle, rows.len()).copy_from_slice(rows);
        }
        let normal = fit(&mut block.second_normal, rows.len());
        norms(level, rows, weights(&layer.second_norm), normal);
        let gate_up = fit(&mut block.gate_up, 2 * inner * part.rows);
        apply(weights(&layer.gate_up), normal, part.rows, gate_up);
        let gated = fit(&mut block.inner, inner * part.rows);
        for (gate_up, gated) in gate_up.chunks_exact(2 * inner).zip(gated.chunks_exact_mut(inner)) {
            let (gate, up) = gate_up.split_at(inner);
            silu_multiply(level, gate, up, gated);
        }
        apply(weights(&layer.down), gated, part.rows, passing);
        add(level, rows, passing);
    }

    /// What each head of each row sees, side by side in `mixed`.
    fn attend(&self, features: &[f32], part: Part, block: &mut Block, whole: &Whole) {
        let (width, head, level) = (self.shape.width, self.shape.head(), Level::detect());
        let seen = match self.shape.attention {
            Attention::Softmax => part.all,
            Attention::Favor { .. } => features.len() / head,
        };
        let each = part.rows * seen;
        let shares = fit(&mut block.shares, each * if part.keep { self.shape.heads } else { 1 });
        let mixed = fit(&mut block.mixed, part.rows * width);
        for number in 0..self.shape.heads {
            let queries = Rows::new(&block.query, number * head, width, head);
            let from = if part.keep { number * each } else { 0 };
            let shares = &mut shares[from..from + each];
            let out = (&mut mixed[number * head..], width);
            match whole.sums.get(number) {
                Some(sums) => favor::look(level, features, queries, part.rows, shares, sums, out),
                None => {
                    let keys = Rows::new(&whole.key_value, number * head, 2 * width, head);
                    let values = Rows::new(&whole.key_value, width + number * head, 2 * width, head);
                    let seen = (keys, values, part.all);
                    attention::look(level, (queries, part.rows), seen, shares, part.keep, out);
                }
            }
        }
    }
}

/// The norm of every row.
fn norms(level: Level, rows: &[f32], weight: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        rms_norm(level, row, weight, EPSILON, out);
    }
}

/// The word vectors of tokens, zeros for unknown ones.
pub(super) fn gather(embedder: &StaticEmbedder, tokens: &[u32], vectors: &mut [f32]) {
    for (token, vector) in tokens.iter().zip(vectors.chunks_exact_mut(VECTOR)) {
        match *token {
            UNKNOWN => vector.fill(0.0),
            piece => embedder.row(piece, vector),
        }
    }
}
