//! What a decoder is, in plain values: sizes, and the few choices by which the families differ. The forward pass reads
//! nothing else, and no family has a pass of its own.

/// The sizes and choices of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderShape {
    /// The family, as GGUF names it: `llama`, `phi2`, `gemma3`.
    pub family: &'static str,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Inner width of the feed-forward part.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub key_heads: usize,
    /// Values of one head.
    pub head: usize,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Tokens the model was trained for.
    pub context: usize,
    /// How the stream is normed.
    pub norm: NormKind,
    /// Added under the root of each norm.
    pub epsilon: f32,
    /// Rotary tables that layers choose from; at least one.
    pub rotary: Vec<Rotary>,
    /// What layers look at, one entry for each.
    pub attention: Vec<LayerAttention>,
    /// Factor of the products of queries with keys.
    pub scale: f32,
    /// Bound that scores are drawn under (`cap · tanh(score / cap)`).
    pub score_cap: Option<f32>,
    /// Bound that logits are drawn under.
    pub logit_cap: Option<f32>,
    /// Factor of embeddings.
    pub embedding_scale: f32,
    /// The feed-forward part.
    pub feed: Feed,
    /// Attention and feed-forward part both read the same normed stream and are added together (Phi-2).
    pub parallel: bool,
    /// Queries and keys are normed head by head before they are turned.
    pub head_norms: bool,
    /// What attention and feed-forward part give is normed before it is added.
    pub post_norms: bool,
    /// Which products have something added.
    pub biases: Biases,
}

/// How the stream is normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By its root mean square; a weight.
    Rms,
    /// By mean and deviation; a weight and a bias.
    Layer,
}

/// The feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// `down(silu(gate) · up)`.
    GatedSilu,
    /// `down(gelu(gate) · up)`, GELU by tanh.
    GatedGelu,
    /// `down(gelu(up))`.
    Gelu,
}

impl Feed {
    /// Whether there is a gate.
    pub fn gated(self) -> bool {
        self != Self::Gelu
    }
}

/// Which values of a head make a rotary pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Neighbours: how GGUF keeps Llama, rows being permuted.
    Neighbours,
    /// The same places of the two halves of what is turned.
    Halves,
}

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Which values make a pair.
    pub pairing: Pairing,
    /// Angle per position of each pair, in radians; fewer than half a head turns only its beginning.
    pub frequencies: Vec<f32>,
    /// Factor of cosines and sines (LongRoPE); 1 usually.
    pub magnitude: f32,
}

/// What one layer looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerAttention {
    /// Positions seen, the query's own among them; all without.
    pub window: Option<usize>,
    /// Index into [`DecoderShape::rotary`].
    pub rotary: usize,
}

/// Which products have something added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    /// Queries, keys and values.
    pub projections: bool,
    /// What attention gives.
    pub output: bool,
    /// The feed-forward part.
    pub feed: bool,
    /// The logits.
    pub head: bool,
}

impl DecoderShape {
    /// What contradicts itself, if anything: sizes that don't fit each other.
    pub(super) fn problem(&self) -> Option<String> {
        let Self { heads, key_heads, head, width, .. } = self;
        if *head == 0 || head % 2 != 0 || *key_heads == 0 || heads % key_heads != 0 {
            return Some(format!(
                "{heads} heads of {head} values with {key_heads} key heads over a width of {width} do not fit"
            ));
        }
        let turned = self.rotary.iter().map(|rotary| rotary.frequencies.len() * 2).max().unwrap_or(0);
        if turned > *head {
            return Some(format!("{turned} of {head} values of a head are to be turned"));
        }
        let positive = |value: f32| value.is_finite() && value > 0.0;
        if !positive(self.scale) || !positive(self.embedding_scale) {
            return Some(format!(
                "factor {} of scores or {} of embeddings is not above 0",
                self.scale, self.embedding_scale
            ));
        }
        if [self.score_cap, self.logit_cap].into_iter().flatten().any(|cap| !positive(cap)) {
            return Some(format!(
                "caps {:?} of scores and {:?} of logits must be above 0",
                self.score_cap, self.logit_cap
            ));
        }
        let sound = |layer: &LayerAttention| layer.window != Some(0) && layer.rotary < self.rotary.len();
        if self.attention.len() != self.layers || !self.attention.iter().all(sound) {
            return Some(format!("{} layers, windows given for {}", self.layers, self.attention.len()));
        }
        None
    }
}
