//! A Llama-architecture decoder to be trained: its sizes, and all its weights in one slice.
//!
//! Tensors lie one after the other under their GGUF names, those that read the same input side by side (query, key and
//! value; gate and up), so that one product serves them all. Rotary pairs are neighbours, as in GGUF files: what is trained
//! is written as it stands.

use rand::SeedableRng as _;

/// Sizes of a network.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Tokens.
    pub vocabulary: usize,
    /// Width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; the width over the heads if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_width: Option<usize>,
    /// Width of the feed-forward part.
    pub feed_forward: usize,
    /// Longest context.
    pub context: usize,
    /// Base of the rotary angles.
    pub rope_base: f64,
    /// Epsilon of the norms.
    pub norm_epsilon: f64,
    /// Whether the output has a matrix of its own instead of the embedding.
    #[serde(default)]
    pub own_output: bool,
}

impl Shape {
    /// Width of a head.
    pub fn head(&self) -> usize {
        self.head_width.unwrap_or(self.width / self.heads.max(1))
    }

    /// All that a sound shape must not be.
    pub fn problems(&self) -> Vec<String> {
        let whole = |part: usize, of: usize| of > 0 && part > 0 && part.is_multiple_of(of);
        let checks = [
            (self.head_width.is_some() || whole(self.width, self.heads), "width must be a multiple of heads"),
            (whole(self.heads, self.kv_heads), "heads must be a multiple of kv_heads"),
            (self.heads == 0 || self.head().is_multiple_of(2) && self.head() > 0, "the width of a head must be even"),
            (whole(self.width, 32), "width must be a multiple of 32, as Q8_0 stores blocks of 32"),
            (whole(self.feed_forward, 32), "feed_forward must be a multiple of 32, as Q8_0 stores blocks of 32"),
            (self.layers > 0, "layers must be above 0"),
            (self.vocabulary >= 260, "vocabulary must be 260 at least: 256 bytes and four marks"),
            (self.context >= 2, "context must be 2 at least"),
            (self.rope_base > 0.0, "rope_base must be above 0"),
            (self.norm_epsilon > 0.0, "norm_epsilon must be above 0"),
        ];
        checks.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem.to_owned()).collect()
    }

    /// Width of query, key and value together.
    pub(super) fn turned(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head()
    }

    /// Names and sizes (rows, columns) of all tensors in their order; norms are one row.
    pub fn tensors(&self) -> Vec<(String, usize, usize)> {
        let (width, inner) = (self.width, self.feed_forward);
        let (queries, keys) = (self.heads * self.head(), self.kv_heads * self.head());
        let layer = |layer: usize| {
            let name = move |part: &str| format!("blk.{layer}.{part}.weight");
            [
                (name("attn_norm"), 1, width),
                (name("attn_q"), queries, width),
                (name("attn_k"), keys, width),
                (name("attn_v"), keys, width),
                (name("attn_output"), width, queries),
                (name("ffn_norm"), 1, width),
                (name("ffn_gate"), inner, width),
                (name("ffn_up"), inner, width),
                (name("ffn_down"), width, inner),
            ]
        };
        let mut tensors = vec![("token_embd.weight".to_owned(), self.vocabulary, width)];
        tensors.extend((0..self.layers).flat_map(layer));
        tensors.push(("output_norm.weight".to_owned(), 1, width));
        if self.own_output {
            tensors.push(("output.weight".to_owned(), self.vocabulary, width));
        }
        tensors
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, rows, columns)| rows * columns).sum()
    }

    /// Multiply-adds of one token's products, both ways, times two: what a training step computes for it beside attention.
    pub fn work_per_token(&self) -> f64 {
        let matrices: usize =
            self.tensors().iter().filter(|part| part.1 > 1).map(|(_, rows, columns)| rows * columns).sum();
        let looked_up = if self.own_output { self.vocabulary * self.width } else { 0 };
        6.0 * (matrices - looked_up) as f64
    }
}

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its GGUF name.
    pub name: String,
    /// Its rows; norms have one.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// Its first place.
    pub start: usize,
}

impl Part {
    /// All its places.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.rows * self.columns
    }

    /// Whether it is a vector, which neither decays nor is quantised.
    pub fn is_norm(&self) -> bool {
        self.rows == 1
    }
}

/// First places of one layer's tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerPlaces {
    pub attention_norm: usize,
    pub turned: usize,
    pub output: usize,
    pub forward_norm: usize,
    pub gate_up: usize,
    pub down: usize,
}

/// A network's sizes and weights.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its sizes.
    pub shape: Shape,
    /// Its tensors, in their order.
    pub parts: Vec<Part>,
    /// All weights.
    pub weights: Vec<f32>,
}

impl Network {
    /// Random weights that only the seed decides: normal, narrower where they write to the residual stream; norms are one.
    pub fn random(shape: Shape, seed: u64) -> Self {
        let mut network = Self::zero(shape);
        let mut generator = rand::rngs::StdRng::seed_from_u64(seed);
        let deviation = 0.02 * (768.0 / network.shape.width as f32).sqrt();
        let residual = deviation / ((2 * network.shape.layers) as f32).sqrt();
        for part in network.parts.clone() {
            let writes = part.name.ends_with("attn_output.weight") || part.name.ends_with("ffn_down.weight");
            let deviation = if writes { residual } else { deviation };
            for weight in &mut network.weights[part.range()] {
                *weight = if part.is_norm() { 1.0 } else { normal(&mut generator) * deviation };
            }
        }
        network
    }

    /// All weights zero, to be filled.
    pub fn zero(shape: Shape) -> Self {
        let mut start = 0;
        let part = |(name, rows, columns): (String, usize, usize)| {
            let part = Part { name, rows, columns, start };
            start += rows * columns;
            part
        };
        let parts: Vec<Part> = shape.tensors().into_iter().map(part).collect();
        let count = parts.last().map_or(0, |last| last.range().end);
        Self { shape, parts, weights: vec![0.0; count] }
    }

    /// One tensor's values.
    pub fn tensor(&self, name: &str) -> Option<&[f32]> {
        let part = self.parts.iter().find(|part| part.name == name)?;
        self.weights.get(part.range())
    }

    /// One tensor's values, to be changed.
    pub fn tensor_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        let range = self.parts.iter().find(|part| part.name == name)?.range();
        self.weights.get_mut(range)
    }

    pub(super) fn layer(&self, layer: usize) -> LayerPlaces {
        let shape = &self.shape;
        let (width, queries) = (shape.width, shape.heads * shape.head());
        let sizes = [width, shape.turned() * width, width * queries, width, 2 * shape.feed_forward * width];
        let size = sizes.iter().sum::<usize>() + shape.feed_forward * width;
        let attention_norm = shape.vocabulary * width + layer * size;
        let turned = attention_norm + sizes[0];
        let output = turned + sizes[1];
        let forward_norm = output + sizes[2];
        let gate_up = forward_norm + sizes[3];
        LayerPlaces { attention_norm, turned, output, forward_norm, gate_up, down: gate_up + sizes[4] }
    }

    pub(super) fn last_norm(&self) -> usize {
        self.layer(self.shape.layers).attention_norm
    }

    /// First place of the matrix that gives the logits.
    pub(super) fn output(&self) -> usize {
        if self.shape.own_output { self.last_norm() + self.shape.width } else { 0 }
    }

    /// Cosines and sines of the angles of `length` positions: half a head each.
    pub(super) fn angles(&self, length: usize) -> (Vec<f32>, Vec<f32>) {
        let half = self.shape.head() / 2;
        let angle = |position: usize, pair: usize| {
            let exponent = pair as f64 / half as f64;
            (position as f64 / self.shape.rope_base.powf(exponent)) as f32
        };
        let angles = (0..length).flat_map(|position| (0..half).map(move |pair| angle(position, pair)));
        angles.map(|angle| (angle.cos(), angle.sin())).unzip()
    }
}

/// One draw of the standard normal distribution (Box & Muller 1958).
fn normal(generator: &mut impl rand::Rng) -> f32 {
    let (one, other): (f64, f64) = (generator.random(), generator.random());
    ((-2.0 * (1.0 - one).ln()).sqrt() * (std::f64::consts::TAU * other).cos()) as f32
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A shape small enough for finite differences.
    pub fn tiny() -> Shape {
        Shape {
            vocabulary: 32,
            width: 16,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_width: None,
            feed_forward: 24,
            context: 16,
            rope_base: 10_000.0,
            norm_epsilon: 1e-5,
            own_output: false,
        }
    }

    #[test]
    fn places_are_those_of_the_names() {
        for own_output in [false, true] {
            let network = Network::random(Shape { own_output, head_width: Some(6), ..tiny() }, 1);
            let start = |name: &str| network.parts.iter().find(|part| part.name == name).unwrap().start;
            for layer in 0..2 {
                let places = network.layer(layer);
                for (place, name) in [
                    (places.attention_norm, "attn_norm"),
                    (places.turned, "attn_q"),
                    (places.output, "attn_output"),
                    (places.forward_norm, "ffn_norm"),
                    (places.gate_up, "ffn_gate"),
                    (places.down, "ffn_down"),
                ] {
                    assert_eq!(place, start(&format!("blk.{layer}.{name}.weight")), "{name}");
                }
            }
            assert_eq!(network.last_norm(), start("output_norm.weight"));
            assert_eq!(network.output(), if own_output { start("output.weight") } else { 0 });
            assert_eq!(network.weights.len(), network.shape.parameters());
        }
    }

    #[test]
    fn only_the_seed_decides_random_weights() {
        let weights = |seed| Network::random(tiny(), seed).weights;
        assert_eq!(weights(3), weights(3));
        assert_ne!(weights(3), weights(4));
        let embedding = Network::random(Shape { vocabulary: 4000, ..tiny() }, 3);
        let embedding = embedding.tensor("token_embd.weight").unwrap();
        let mean = embedding.iter().sum::<f32>() / embedding.len() as f32;
        let deviation = (embedding.iter().map(|x| x * x).sum::<f32>() / embedding.len() as f32).sqrt();
        let expected = 0.02 * (768.0_f32 / 16.0).sqrt();
        assert!(mean.abs() < 0.005 && (deviation / expected - 1.0).abs() < 0.02, "{mean} {deviation}");
    }
}
