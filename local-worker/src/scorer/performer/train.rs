//! Training an encoder on graded prompts (feature `lab`), for many pairs of models at once.
//!
//! A prompt is read once and graded for every pair that was asked it: each pair has a line over the mean of tokens, the sum of
//! one that all share and one of its own, since difficulty is shared. The loss is the squared error. AdamW with warm-up and a
//! cosine moves the weights; some tokens are left out at random against learning by heart; random features are drawn anew
//! every so many steps, so that the weights fit no single draw. The same examples, options and number of shards give the same
//! bytes: prompts are dealt to shards by their place, and shards' gradients are added in order.

use super::backward::Gradients;
use super::network::{Attention, Network, Pass, Shape, line_length};
use super::{Performer, favor, tokens};
use crate::embed::StaticEmbedder;
use crate::kernels::{Adam, Level, adam_step, add, sum_products};
use crate::scorer::{FitError, Turn};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use std::sync::Arc;

/// A prompt and how it went.
#[derive(Debug, Clone)]
pub struct Example<'text> {
    /// The conversation.
    pub turns: Vec<Turn<'text>>,
    /// What each task has to say of it.
    pub targets: Vec<Target>,
}

/// What a line should say of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Which line.
    pub task: usize,
    /// What it should say.
    pub value: f32,
    /// How much that counts, above 0.
    pub weight: f32,
}

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    /// Sizes and attention.
    pub shape: Shape,
    /// Decides the first weights, the order, and every draw.
    pub seed: u64,
    /// Passes over the examples.
    pub epochs: usize,
    /// Prompts of a step.
    pub batch: usize,
    /// Highest learning rate.
    pub rate: f64,
    /// Weight decay of matrices and lines.
    pub decay: f64,
    /// Share of the tokens that is left out.
    pub left_out: f64,
    /// Steps after which random features are drawn anew.
    pub redraw: usize,
    /// Most tokens of a prompt that are learnt from: head and tail of a longer one.
    pub most_tokens: usize,
}

impl TrainOptions {
    /// What is done where nothing else is said.
    pub fn usual(attention: Attention, seed: u64) -> Self {
        Self {
            shape: Shape::usual(attention),
            seed,
            epochs: 6,
            batch: 32,
            rate: 2e-3,
            decay: 0.1,
            left_out: 0.1,
            redraw: 50,
            most_tokens: 512,
        }
    }
}

/// How far training is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Passes done.
    pub epoch: usize,
    /// Of how many.
    pub epochs: usize,
    /// Mean loss over the last pass.
    pub loss: f64,
}

/// A trained encoder with a line for each task.
#[derive(Debug, Clone)]
pub struct Trained {
    network: Network,
    tasks: usize,
    embedder: Arc<StaticEmbedder>,
}

/// Threads, each with examples of its own: fixed, so that the number of cores changes no bit.
const SHARDS: usize = 2;
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.98;
/// Share of the steps over which the rate rises.
const WARM_UP: f64 = 0.1;
/// Largest norm of a step's gradients.
const CLIP: f64 = 1.0;

/// A prompt as tokens.
struct Sample {
    tokens: Vec<u32>,
    targets: Vec<Target>,
}

#[derive(Default)]
struct Shard {
    pass: Pass,
    gradients: Gradients,
    loss: f64,
}

/// Trains an encoder for `tasks` tasks. `told` hears of every pass.
///
/// # Errors
/// No examples, a target that is no number or of no task, sizes that can't be, or weights that stop being numbers.
pub fn train(
    examples: &[Example<'_>],
    tasks: usize,
    options: &TrainOptions,
    mut told: impl FnMut(Progress),
) -> Result<Trained, FitError> {
    check(examples, tasks, options)?;
    let embedder = StaticEmbedder::shared()?;
    let sample = |example: &Example<'_>| {
        let mut tokens = tokens(&embedder, &example.turns);
        let most = options.most_tokens.max(2);
        if tokens.len() > most {
            tokens.drain(most / 2..tokens.len() - most / 2);
        }
        Sample { tokens, targets: example.targets.clone() }
    };
    let samples: Vec<Sample> = examples.iter().map(sample).collect();
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut network = Network::begin(options.shape, tasks, &embedder, &mut random);
    let decays = decays(&network, tasks);
    let (mut first, mut second) = (vec![0.0; network.weights.len()], vec![0.0; network.weights.len()]);
    let mut shards: Vec<Shard> = (0..SHARDS).map(|_| Shard::default()).collect();
    let mut order: Vec<usize> = (0..samples.len()).collect();
    let steps = samples.len().div_ceil(options.batch.max(1)) * options.epochs;
    let mut step = 0;
    for epoch in 0..options.epochs {
        order.shuffle(&mut random);
        let (mut loss, mut weight) = (0.0, 0.0);
        for batch in order.chunks(options.batch.max(1)) {
            if step > 0 && step % options.redraw.max(1) == 0 {
                network.redraw(&mut random);
            }
            step += 1;
            let batch: Vec<Sample> =
                batch.iter().map(|place| thinned(&samples[*place], options.left_out, &mut random)).collect();
            let share =
                batch.iter().flat_map(|sample| &sample.targets).map(|target| f64::from(target.weight)).sum::<f64>();
            learn(&network, &embedder, &batch, tasks, &mut shards);
            let lost: f64 = shards.iter().map(|shard| shard.loss).sum();
            (loss, weight) = (loss + lost, weight + share);
            let Some((sum, others)) = shards.split_first_mut() else { continue };
            for other in others {
                add(Level::detect(), &mut sum.gradients.weights, &other.gradients.weights);
            }
            let norm = f64::from(sum_products(&sum.gradients.weights, &sum.gradients.weights)).sqrt() / share;
            if !norm.is_finite() {
                let expected = "a rate with which weights stay numbers";
                return Err(FitError::Option { option: "rate", value: options.rate, expected });
            }
            let adam = adam(options, (step, steps), (CLIP / norm.max(1e-12)).min(1.0) / share);
            for (place, decay) in &decays {
                let keep = if *decay { adam.keep } else { 1.0 };
                adam_step(
                    Level::detect(),
                    Adam { keep, ..adam },
                    &mut network.weights[place.clone()],
                    &sum.gradients.weights[place.clone()],
                    &mut first[place.clone()],
                    &mut second[place.clone()],
                );
            }
        }
        told(Progress { epoch: epoch + 1, epochs: options.epochs, loss: loss / weight });
    }
    Ok(Trained { network, tasks, embedder })
}

fn check(examples: &[Example<'_>], tasks: usize, options: &TrainOptions) -> Result<(), FitError> {
    if examples.is_empty() {
        return Err(FitError::Empty);
    }
    for (place, example) in examples.iter().enumerate() {
        let good = |target: &&Target| target.task < tasks && target.value.is_finite() && target.weight > 0.0;
        if let Some(bad) = example.targets.iter().find(|target| !good(target)) {
            return Err(FitError::Example { place, target: bad.value, weight: bad.weight });
        }
    }
    if let Some(problem) = options.shape.problem() {
        return Err(FitError::Shape(problem));
    }
    let shares = [("left_out", options.left_out), ("decay", options.decay)];
    match shares.into_iter().find(|(_, value)| !(0.0..1.0).contains(value)) {
        Some((option, value)) => Err(FitError::Option { option, value, expected: "from 0 to below 1" }),
        None => Ok(()),
    }
}

/// A prompt with some of its tokens left out.
fn thinned(sample: &Sample, left_out: f64, random: &mut StdRng) -> Sample {
    let tokens = sample.tokens.iter().copied().filter(|_| !random.random_bool(left_out));
    Sample { tokens: tokens.collect(), targets: sample.targets.clone() }
}

/// Gradients and losses of a batch, by shards side by side.
fn learn(network: &Network, embedder: &StaticEmbedder, batch: &[Sample], tasks: usize, shards: &mut [Shard]) {
    let count = shards.len();
    std::thread::scope(|scope| {
        for (number, shard) in shards.iter_mut().enumerate() {
            let mine = batch.iter().skip(number).step_by(count);
            scope.spawn(move || {
                shard.loss = 0.0;
                shard.gradients.clear(network.weights.len());
                for sample in mine {
                    shard.loss += learn_one(network, embedder, sample, tasks, shard);
                }
            });
        }
    });
}

/// Adds the gradients of one prompt; its loss.
fn learn_one(network: &Network, embedder: &StaticEmbedder, sample: &Sample, tasks: usize, shard: &mut Shard) -> f64 {
    let Shard { pass, gradients, .. } = shard;
    network.forward(embedder, &sample.tokens, pass, true);
    let mean = network.mean(sample.tokens.len(), pass);
    let length = line_length(network.shape.width);
    let lines = network.shape.places(tasks + 1).lines;
    let (mut dmean, mut loss) = (vec![0.0; mean.len()], 0.0);
    for target in &sample.targets {
        let places = [0, target.task + 1].map(|line| lines.start + line * length);
        let says: f32 = places
            .iter()
            .map(|at| {
                let line = &network.weights[*at..][..length];
                line.iter().zip(&mean).map(|(weight, value)| weight * value).sum::<f32>() + line[length - 1]
            })
            .sum();
        let error = says - target.value;
        loss += f64::from(target.weight * error * error);
        let pull = 2.0 * target.weight * error;
        for at in places {
            let line = &network.weights[at..][..length];
            dmean.iter_mut().zip(line).for_each(|(value, weight)| *value += pull * weight);
            let dline = &mut gradients.weights[at..][..length];
            dline.iter_mut().zip(mean.iter().chain([&1.0])).for_each(|(weight, value)| *weight += pull * value);
        }
    }
    gradients.add_text(network, pass, sample.tokens.len(), &dmean);
    loss
}

fn adam(options: &TrainOptions, (step, steps): (usize, usize), scale: f64) -> Adam {
    let (now, warm) = (step as f64, (steps as f64 * WARM_UP).max(1.0));
    let done = ((now - warm) / (steps as f64 - warm).max(1.0)).clamp(0.0, 1.0);
    let rate = match now < warm {
        true => options.rate * now / warm,
        false => options.rate * (0.02 + 0.98 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())),
    };
    let power = i32::try_from(step).unwrap_or(i32::MAX);
    Adam {
        rate: (rate / (1.0 - BETA1.powi(power))) as f32,
        keep: (1.0 - rate * options.decay) as f32,
        beta1: BETA1 as f32,
        beta2: BETA2 as f32,
        correction2: (1.0 / (1.0 - BETA2.powi(power))) as f32,
        scale: scale as f32,
    }
}

/// All weights by place, and whether they decay: norms don't.
fn decays(network: &Network, tasks: usize) -> Vec<(std::ops::Range<usize>, bool)> {
    let places = network.shape.places(tasks + 1);
    let mut decays = vec![(places.input, true)];
    for layer in places.layers {
        decays.extend([(layer.norm, false), (layer.query, true), (layer.key_value, true), (layer.out, true)]);
        decays.extend([(layer.second_norm, false), (layer.gate_up, true), (layer.down, true)]);
    }
    decays.extend([(places.norm, false), (places.lines, true)]);
    decays
}

impl Network {
    /// First weights: matrices small and random, the input so that tokens begin with numbers near 1, norms 1, lines 0.
    pub(super) fn begin(shape: Shape, tasks: usize, embedder: &StaticEmbedder, random: &mut StdRng) -> Self {
        let places = shape.places(tasks + 1);
        let mut weights = vec![0.0; places.end];
        let mut fill = |place: std::ops::Range<usize>, deviation: f64| {
            weights[place].iter_mut().for_each(|weight| *weight = (favor::normal(random) * deviation) as f32);
        };
        fill(places.input, 1.0 / mean_norm(embedder));
        let (wide, deep) = (1.0 / (shape.width as f64).sqrt(), 1.0 / (2.0 * shape.layers as f64).sqrt());
        for layer in &places.layers {
            fill(layer.query.clone(), wide);
            fill(layer.key_value.clone(), wide);
            fill(layer.out.clone(), wide * deep);
            fill(layer.gate_up.clone(), wide);
            fill(layer.down.clone(), deep / (shape.inner as f64).sqrt());
        }
        let norms = places.layers.iter().flat_map(|layer| [layer.norm.clone(), layer.second_norm.clone()]);
        for place in norms.chain([places.norm]) {
            weights[place].fill(1.0);
        }
        let mut network = Self { shape, weights, features: Vec::new() };
        network.redraw(random);
        network
    }

    /// Draws the random rows of all layers anew.
    pub(super) fn redraw(&mut self, random: &mut StdRng) {
        if let Attention::Favor { features } = self.shape.attention {
            self.features = (0..self.shape.layers).map(|_| favor::draw(features, self.shape.head(), random)).collect();
        }
    }
}

/// Mean length of the table's vectors.
fn mean_norm(embedder: &StaticEmbedder) -> f64 {
    let mut vector = vec![0.0; embedder.dims()];
    let norm = |row: usize| {
        embedder.row(row as u32, &mut vector);
        f64::from(sum_products(&vector, &vector)).sqrt()
    };
    let every = 7;
    let norms: Vec<f64> = (0..embedder.rows()).step_by(every).map(norm).collect();
    (norms.iter().sum::<f64>() / norms.len().max(1) as f64).max(1e-6)
}

impl Trained {
    /// The encoder with the line of one task; `None` without such a task.
    pub fn task(&self, task: usize) -> Option<Performer> {
        let length = line_length(self.network.shape.width);
        let lines = self.network.shape.places(self.tasks + 1).lines;
        let line = |number: usize| self.network.weights.get(lines.start + number * length..)?.get(..length);
        let (shared, own) = (line(0)?, line(task + 1)?);
        let mut weights = self.network.weights.get(..lines.start)?.to_vec();
        weights.extend(shared.iter().zip(own).map(|(shared, own)| shared + own));
        let network = Network { weights, ..self.network.clone() };
        Some(Performer::named(network, Arc::clone(&self.embedder)))
    }
}
