use super::super::network::tests::tiny;
use super::super::network::{Network, Shape};
use super::*;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use std::collections::BTreeMap;

fn samples() -> Vec<Sample> {
    let sample = |tokens: &[u32], weights: &[f32]| Sample {
        tokens: tokens.to_vec(),
        weights: weights.to_vec(),
        ..Sample::default()
    };
    vec![
        sample(&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[0.0, 0.25, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0]),
        sample(&[30, 31], &[1.0]),
        sample(&[7, 7, 12, 0, 2], &[0.1, 0.1, 1.0, 1.0]),
    ]
}

/// The same network with candle's automatic differentiation, from operations that have a backward pass.
struct Reference {
    shape: Shape,
    variables: BTreeMap<String, Var>,
}

impl Reference {
    fn new(network: &Network) -> Self {
        let variable = |part: &super::super::network::Part| {
            let values = network.weights[part.range()].to_vec();
            let tensor = if part.is_norm() {
                Tensor::from_vec(values, part.columns, &Device::Cpu)
            } else {
                Tensor::from_vec(values, (part.rows, part.columns), &Device::Cpu)
            };
            (part.name.clone(), Var::from_tensor(&tensor.unwrap()).unwrap())
        };
        Self { shape: network.shape.clone(), variables: network.parts.iter().map(variable).collect() }
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.variables[name].as_tensor()
    }

    fn norm(&self, input: &Tensor, name: &str) -> Result<Tensor> {
        let scale = (input.sqr()?.mean_keepdim(D::Minus1)? + self.shape.norm_epsilon)?.sqrt()?.recip()?;
        input.broadcast_mul(&scale)?.broadcast_mul(self.weight(name))
    }

    /// Neighbouring values of each head are a pair.
    fn rotate(&self, input: &Tensor) -> Result<Tensor> {
        let (heads, length, head) = input.dims3()?;
        let angle =
            |position: usize, pair: usize| position as f64 / self.shape.rope_base.powf(pair as f64 / (head / 2) as f64);
        let angles: Vec<f32> =
            (0..length).flat_map(|position| (0..head / 2).map(move |pair| angle(position, pair) as f32)).collect();
        let angles = Tensor::from_vec(angles, (1, length, head / 2, 1), &Device::Cpu)?;
        let pairs = input.reshape((heads, length, head / 2, 2))?;
        let (one, other) = (pairs.narrow(3, 0, 1)?, pairs.narrow(3, 1, 1)?);
        let (cosine, sine) = (angles.cos()?, angles.sin()?);
        let first = (one.broadcast_mul(&cosine)? - other.broadcast_mul(&sine)?)?;
        let second = (one.broadcast_mul(&sine)? + other.broadcast_mul(&cosine)?)?;
        Tensor::cat(&[first, second], 3)?.reshape((heads, length, head))
    }

    fn attention(&self, input: &Tensor, layer: usize) -> Result<Tensor> {
        let (length, (heads, kv_heads, head)) =
            (input.dim(0)?, (self.shape.heads, self.shape.kv_heads, self.shape.head()));
        let part = |name: &str, count: usize| -> Result<Tensor> {
            let weight = self.weight(&format!("blk.{layer}.{name}.weight"));
            input.matmul(&weight.t()?)?.reshape((length, count, head))?.transpose(0, 1)?.contiguous()
        };
        let repeat = |part: Tensor| -> Result<Tensor> {
            let times = heads / kv_heads;
            part.unsqueeze(1)?.expand((kv_heads, times, length, head))?.reshape((heads, length, head))
        };
        let query = self.rotate(&part("attn_q", heads)?)?;
        let key = repeat(self.rotate(&part("attn_k", kv_heads)?)?)?;
        let value = repeat(part("attn_v", kv_heads)?)?;
        let mask = (0..length)
            .flat_map(|row| (0..length).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 }));
        let mask = Tensor::from_vec(mask.collect::<Vec<f32>>(), (1, length, length), &Device::Cpu)?;
        let scores = (query.matmul(&key.t()?.contiguous()?)? / (head as f64).sqrt())?.broadcast_add(&mask)?;
        let terms = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let shares = terms.broadcast_div(&terms.sum_keepdim(D::Minus1)?)?;
        let mixed = shares.matmul(&value)?.transpose(0, 1)?.reshape((length, heads * head))?;
        mixed.matmul(&self.weight(&format!("blk.{layer}.attn_output.weight")).t()?)
    }

    fn logits(&self, tokens: &[u32]) -> Result<Tensor> {
        let mut state = self.weight("token_embd.weight").embedding(&Tensor::new(tokens, &Device::Cpu)?)?;
        for layer in 0..self.shape.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            state = (&state + self.attention(&self.norm(&state, &name("attn_norm"))?, layer)?)?;
            let normal = self.norm(&state, &name("ffn_norm"))?;
            let gate = normal.matmul(&self.weight(&name("ffn_gate")).t()?)?.silu()?;
            let inner = (gate * normal.matmul(&self.weight(&name("ffn_up")).t()?)?)?;
            state = (state + inner.matmul(&self.weight(&name("ffn_down")).t()?)?)?;
        }
        let output = if self.shape.own_output { "output.weight" } else { "token_embd.weight" };
        self.norm(&state, "output_norm.weight")?.matmul(&self.weight(output).t()?)
    }

    /// The sum of weighted losses.
    fn loss(&self, samples: &[Sample], aim: &Aim) -> Result<Tensor> {
        let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        let shares = |logits: &Tensor| -> Result<Tensor> {
            let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
            shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
        };
        for sample in samples {
            let logits = self.logits(&sample.tokens[..sample.len()])?;
            let weights = Tensor::new(sample.weights.as_slice(), &Device::Cpu)?;
            let targets = Tensor::new(&sample.tokens[1..], &Device::Cpu)?.unsqueeze(1)?;
            let mut losses = (shares(&logits)?.gather(&targets, 1)?.squeeze(1)?.neg()? * f64::from(aim.hard))?;
            if !sample.soft.ids.is_empty() {
                let size = (sample.len(), sample.soft.ids.len() / sample.len());
                let ids = Tensor::from_vec(sample.soft.ids.clone(), size, &Device::Cpu)?;
                let teacher = Tensor::from_vec(sample.soft.shares.clone(), size, &Device::Cpu)?;
                let student = shares(&(logits / f64::from(aim.temperature))?)?.gather(&ids, 1)?;
                let divergence = (&teacher * (teacher.log()? - student)?)?.sum(1)?;
                let factor = aim.soft * aim.temperature * aim.temperature;
                losses = (losses + (divergence * f64::from(factor))?)?;
            }
            total = (total + (losses * weights)?.sum_all()?)?;
        }
        Ok(total)
    }
}

fn check(shape: Shape, samples: &[Sample], aim: &Aim) {
    let network = Network::random(shape, 11);
    let reference = Reference::new(&network);
    let expected = reference.loss(samples, aim).unwrap();
    let gradients = expected.backward().unwrap();
    let mut shard = Shard::new(&network);
    let borrowed: Vec<&Sample> = samples.iter().collect();
    // Twice, so that what the first step left in the buffers is seen not to matter.
    shard.learn(&network, &borrowed[..1], aim, true);
    let sums = shard.learn(&network, &borrowed, aim, true);
    let expected = f64::from(expected.to_scalar::<f32>().unwrap());
    assert!((sums.loss / expected - 1.0).abs() < 1e-5, "loss {} for {expected}", sums.loss);
    let looked = shard.look(&network, &borrowed, aim);
    assert!((looked.loss / expected - 1.0).abs() < 1e-5 && looked.weight == sums.weight);
    for part in &network.parts {
        let wanted = gradients.get(&reference.variables[&part.name]).unwrap_or_else(|| panic!("{}", part.name));
        let wanted = wanted.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let found = &shard.gradients[part.range()];
        let size = wanted.iter().map(|value| value * value).sum::<f32>().sqrt();
        let off = wanted.iter().zip(found).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        assert!(size > 1e-6, "{}: no gradient", part.name);
        assert!(off / size < 1e-4, "{}: off by {} of {size}", part.name, off);
    }
}

#[test]
fn every_tensor_gets_the_gradient_that_automatic_differentiation_finds() {
    check(tiny(), &samples(), &Aim::default());
    check(Shape { own_output: true, head_width: Some(6), kv_heads: 4, ..tiny() }, &samples(), &Aim::default());
    let answers_alone = |mut sample: Sample| {
        let prompt = sample.len() / 2;
        sample.weights[..prompt].fill(0.0);
        sample
    };
    let answers: Vec<Sample> = samples().into_iter().map(answers_alone).collect();
    check(tiny(), &answers, &Aim::default());
    check(Shape { kv_heads: 1, heads: 2, layers: 1, feed_forward: 40, ..tiny() }, &samples()[..1], &Aim::default());
}

#[test]
fn a_teachers_shares_pull_as_automatic_differentiation_says() {
    let mut samples = samples();
    for sample in &mut samples {
        for place in 0..sample.len() as u32 {
            sample.soft.ids.extend([place + 1, place + 9, 31]);
            sample.soft.shares.extend([0.5, 0.3, 0.2]);
        }
    }
    for (hard, soft, temperature) in [(0.5, 0.5, 2.0), (0.0, 1.0, 1.0), (0.3, 0.9, 4.0)] {
        check(tiny(), &samples, &Aim { hard, soft, temperature });
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut network = Network::random(Shape { layers: 1, ..tiny() }, 4);
    let samples = samples();
    let samples: Vec<&Sample> = samples.iter().collect();
    let mut shard = Shard::new(&network);
    shard.learn(&network, &samples, &Aim::default(), true);
    let step = 1e-2;
    for part in network.parts.clone() {
        // The place with the largest gradient, where rounding matters least.
        let largest = |a: &usize, b: &usize| shard.gradients[*a].abs().total_cmp(&shard.gradients[*b].abs());
        let place = part.range().max_by(largest).unwrap();
        let gradient = f64::from(shard.gradients[place]);
        let mut loss = |change: f32| {
            network.weights[place] += change;
            let sums = Shard::new(&network).look(&network, &samples, &Aim::default());
            network.weights[place] -= change;
            sums.loss
        };
        let slope = (loss(step) - loss(-step)) / f64::from(2.0 * step);
        assert!((slope / gradient - 1.0).abs() < 0.03, "{}: {slope} by differences, {gradient} found", part.name);
    }
}

#[test]
fn a_record_does_not_see_the_others_and_right_answers_are_counted() {
    let network = Network::random(tiny(), 2);
    let samples = samples();
    let alone: f64 =
        samples.iter().map(|sample| Shard::new(&network).look(&network, &[sample], &Aim::default()).loss).sum();
    let together = Shard::new(&network).look(&network, &samples.iter().collect::<Vec<_>>(), &Aim::default());
    assert!((alone / together.loss - 1.0).abs() < 1e-6);
    assert_eq!((together.records, together.right), (3, 0));
    let logits = Reference::new(&network).logits(&[5]).unwrap();
    let likeliest = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap()[0];
    let right = Sample { tokens: vec![5, likeliest], weights: vec![1.0], ..Sample::default() };
    assert_eq!(Shard::new(&network).look(&network, &[&right], &Aim::default()).right, 1);
}
