//! A Llama-architecture decoder with gradients: RMSNorm, rotary attention with grouped heads, SwiGLU, tied embedding.
//!
//! Norm, rotary and softmax are written with plain operations, because candle's fused ones have no backward pass.
//! Rotary pairs are (i, i + head/2), as in Hugging Face checkpoints; the export permutes to GGUF's order.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use std::collections::BTreeMap;

/// Shape of a network.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
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
    /// Width of the feed-forward part.
    pub feed_forward: usize,
    /// Longest context.
    pub context: usize,
    /// Base of the rotary angles.
    pub rope_base: f64,
    /// Epsilon of the norms.
    pub norm_epsilon: f64,
}

impl Shape {
    /// Width of a head.
    pub fn head(&self) -> usize {
        self.width / self.heads
    }

    /// All matrices by GGUF name, with their size (out, in).
    pub fn matrices(&self) -> Vec<(String, (usize, usize))> {
        let (width, kv, inner) = (self.width, self.kv_heads * self.head(), self.feed_forward);
        let layer = |layer: usize| {
            let name = move |part: &str| format!("blk.{layer}.{part}.weight");
            [
                (name("attn_q"), (width, width)),
                (name("attn_k"), (kv, width)),
                (name("attn_v"), (kv, width)),
                (name("attn_output"), (width, width)),
                (name("ffn_gate"), (inner, width)),
                (name("ffn_up"), (inner, width)),
                (name("ffn_down"), (width, inner)),
            ]
        };
        let embedding = ("token_embd.weight".to_owned(), (self.vocabulary, width));
        std::iter::once(embedding).chain((0..self.layers).flat_map(layer)).collect()
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        let matrices: usize = self.matrices().iter().map(|(_, (rows, columns))| rows * columns).sum();
        matrices + (2 * self.layers + 1) * self.width
    }
}

/// The network: variables by their GGUF names.
pub struct Network {
    /// Its shape.
    pub shape: Shape,
    /// Its variables, by GGUF tensor name; matrices are (out, in).
    pub variables: BTreeMap<String, Var>,
    cosine: Tensor,
    sine: Tensor,
}

impl Network {
    /// Fresh random weights: normal, narrower where they write to the residual stream; norms are one.
    pub fn random(shape: Shape, device: &Device) -> Result<Self> {
        let width = shape.width;
        let deviation = 0.02 * (768.0 / width as f64).sqrt();
        let residual = deviation / ((2 * shape.layers) as f64).sqrt();
        let mut variables = BTreeMap::new();
        for (name, size) in shape.matrices() {
            let writes = name.ends_with("attn_output.weight") || name.ends_with("ffn_down.weight");
            let deviation = if writes { residual } else { deviation };
            let values = Tensor::randn(0_f32, deviation as f32, size, device)?;
            variables.insert(name, Var::from_tensor(&values)?);
        }
        let norms = (0..shape.layers)
            .flat_map(|layer| [format!("blk.{layer}.attn_norm.weight"), format!("blk.{layer}.ffn_norm.weight")])
            .chain(["output_norm.weight".to_owned()]);
        for name in norms {
            variables.insert(name, Var::ones(width, DType::F32, device)?);
        }
        Self::of(shape, variables, device)
    }

    /// A network of given variables.
    pub fn of(shape: Shape, variables: BTreeMap<String, Var>, device: &Device) -> Result<Self> {
        let half = shape.head() / 2;
        let angles: Vec<f32> = (0..shape.context)
            .flat_map(|position| {
                let shape = &shape;
                (0..2 * half).map(move |index| {
                    let exponent = (index % half) as f64 / half as f64;
                    (position as f64 / shape.rope_base.powf(exponent)) as f32
                })
            })
            .collect();
        let angles = Tensor::from_vec(angles, (shape.context, 2 * half), device)?;
        Ok(Self { cosine: angles.cos()?, sine: angles.sin()?, shape, variables })
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        match self.variables.get(name) {
            Some(variable) => Ok(variable.as_tensor()),
            None => candle_core::bail!("the network has no variable {name}"),
        }
    }

    fn linear(&self, input: &Tensor, name: &str) -> Result<Tensor> {
        let (batch, length, width) = input.dims3()?;
        let weight = self.weight(name)?;
        input.reshape((batch * length, width))?.matmul(&weight.t()?)?.reshape((batch, length, ()))
    }

    fn norm(&self, input: &Tensor, name: &str) -> Result<Tensor> {
        let scale = (input.sqr()?.mean_keepdim(D::Minus1)? + self.shape.norm_epsilon)?.sqrt()?.recip()?;
        input.broadcast_mul(&scale)?.broadcast_mul(self.weight(name)?)
    }

    fn rotate(&self, input: &Tensor, length: usize) -> Result<Tensor> {
        let half = self.shape.head() / 2;
        let low = input.narrow(D::Minus1, 0, half)?;
        let high = input.narrow(D::Minus1, half, half)?;
        let turned = Tensor::cat(&[&high.neg()?, &low], D::Minus1)?;
        let cosine = self.cosine.narrow(0, 0, length)?;
        let sine = self.sine.narrow(0, 0, length)?;
        input.broadcast_mul(&cosine)? + turned.broadcast_mul(&sine)?
    }

    fn attention(&self, input: &Tensor, layer: usize, mask: &Tensor) -> Result<Tensor> {
        let (batch, length, width) = input.dims3()?;
        let (heads, kv_heads, head) = (self.shape.heads, self.shape.kv_heads, self.shape.head());
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let split = |part: &str, count: usize| -> Result<Tensor> {
            self.linear(input, &name(part))?.reshape((batch, length, count, head))?.transpose(1, 2)?.contiguous()
        };
        let query = self.rotate(&split("attn_q", heads)?, length)?;
        let key = self.rotate(&split("attn_k", kv_heads)?, length)?;
        let value = split("attn_v", kv_heads)?;
        let repeat = |part: Tensor| -> Result<Tensor> {
            let times = heads / kv_heads;
            part.unsqueeze(2)?.expand((batch, kv_heads, times, length, head))?.reshape((batch, heads, length, head))
        };
        let (key, value) = (repeat(key)?, repeat(value)?);
        let scores = (query.contiguous()?.matmul(&key.t()?.contiguous()?)? / (head as f64).sqrt())?;
        let scores = scores.broadcast_add(mask)?;
        let shares = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let mixed = shares.matmul(&value.contiguous()?)?.transpose(1, 2)?.reshape((batch, length, width))?;
        self.linear(&mixed, &name("attn_output"))
    }

    /// Logits of (batch, length) token ids: (batch · length, vocabulary).
    pub fn logits(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, length) = ids.dims2()?;
        let width = self.shape.width;
        let embedding = self.weight("token_embd.weight")?;
        let mut state = embedding.embedding(&ids.flatten_all()?)?.reshape((batch, length, width))?;
        let mask: Vec<f32> = (0..length)
            .flat_map(|row| (0..length).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        let mask = Tensor::from_vec(mask, (length, length), ids.device())?;
        for layer in 0..self.shape.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let normal = self.norm(&state, &name("attn_norm"))?;
            state = (state + self.attention(&normal, layer, &mask)?)?;
            let normal = self.norm(&state, &name("ffn_norm"))?;
            let gate = self.linear(&normal, &name("ffn_gate"))?.silu()?;
            let inner = (gate * self.linear(&normal, &name("ffn_up"))?)?;
            state = (state + self.linear(&inner, &name("ffn_down"))?)?;
        }
        let state = self.norm(&state, "output_norm.weight")?.reshape((batch * length, width))?;
        state.matmul(&embedding.t()?)
    }

    /// Mean cross entropy of `targets` (flat), weighted.
    pub fn loss(&self, ids: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let logits = self.logits(ids)?;
        let largest = logits.max_keepdim(D::Minus1)?.detach();
        let total = logits.broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?.log()?;
        let chosen = logits.gather(&targets.unsqueeze(1)?, 1)?;
        let losses = (total + largest)?.sub(&chosen)?.squeeze(1)?;
        (losses * weights)?.sum_all()? / weights.sum_all()?.to_scalar::<f32>()? as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Shape {
        Shape {
            vocabulary: 32,
            width: 16,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            feed_forward: 24,
            context: 8,
            rope_base: 10_000.0,
            norm_epsilon: 1e-5,
        }
    }

    #[test]
    fn every_variable_gets_a_gradient() {
        let device = Device::Cpu;
        let network = Network::random(tiny(), &device).unwrap();
        let ids = Tensor::from_vec(vec![1_u32, 2, 3, 4, 5, 6, 7, 8], (1, 8), &device).unwrap();
        let targets = Tensor::from_vec(vec![2_u32, 3, 4, 5, 6, 7, 8, 9], 8, &device).unwrap();
        let weights = Tensor::ones(8, DType::F32, &device).unwrap();
        let gradients = network.loss(&ids, &targets, &weights).unwrap().backward().unwrap();
        for (name, variable) in &network.variables {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} has no gradient"));
            let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0 && size.is_finite(), "{name}: gradient {size}");
        }
    }
}
