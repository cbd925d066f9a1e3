//! A training run: AdamW with warm-up and a cosine keyed to the clock, gradient clipping, checkpoints to go on from.

use super::corpus::Row;
use super::network::{Network, Shape};
use candle_core::{Device, Result, Tensor, Var};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

/// How to train.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Rows in a batch.
    pub batch: usize,
    /// Highest learning rate.
    pub peak_rate: f64,
    /// Steps of linear warm-up.
    pub warm_up: usize,
    /// Weight decay of matrices.
    pub weight_decay: f64,
    /// Largest norm of the gradient.
    pub clip: f64,
    /// How long to train; the rate falls along a cosine to a tenth of a per cent of the peak at the end.
    pub seconds: f64,
    /// Time between checkpoints.
    pub checkpoint_seconds: f64,
    /// Seed of the order of rows.
    pub seed: u64,
}

/// AdamW (Loshchilov & Hutter 2019) over named variables; matrices decay, norms don't.
struct AdamW {
    first: BTreeMap<String, Tensor>,
    second: BTreeMap<String, Tensor>,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.98;

impl AdamW {
    fn step(
        &mut self,
        network: &Network,
        gradients: &candle_core::backprop::GradStore,
        scale: f64,
        rate: f64,
        decay: f64,
        step: usize,
    ) -> Result<()> {
        let correction1 = 1.0 - BETA1.powi(step as i32);
        let correction2 = 1.0 - BETA2.powi(step as i32);
        for (name, variable) in &network.variables {
            let Some(gradient) = gradients.get(variable) else {
                candle_core::bail!("{name} has no gradient: an operation without backward pass is in the way")
            };
            let gradient = (gradient * scale)?;
            let first = match self.first.get(name) {
                Some(first) => ((first * BETA1)? + (&gradient * (1.0 - BETA1))?)?,
                None => (&gradient * (1.0 - BETA1))?,
            };
            let square = gradient.sqr()?;
            let second = match self.second.get(name) {
                Some(second) => ((second * BETA2)? + (square * (1.0 - BETA2))?)?,
                None => (square * (1.0 - BETA2))?,
            };
            let update = ((&first / correction1)? / ((&second / correction2)?.sqrt()? + 1e-8)?)?;
            let decay = if variable.dims().len() > 1 { 1.0 - rate * decay } else { 1.0 };
            variable.set(&((variable.as_tensor() * decay)? - (update * rate)?)?)?;
            self.first.insert(name.clone(), first.detach());
            self.second.insert(name.clone(), second.detach());
        }
        Ok(())
    }
}

/// What a run reports now and then.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Tokens seen.
    pub tokens: u64,
    /// Mean loss since the last report.
    pub loss: f64,
    /// Time spent.
    pub seconds: f64,
    /// Learning rate.
    pub rate: f64,
}

/// State beside the weights in a checkpoint.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct State {
    step: usize,
    tokens: u64,
    seconds: f64,
}

/// Saves weights and moments, then state, each by rename, so that a killed run leaves a whole checkpoint.
fn save(folder: &Path, network: &Network, optimizer: &AdamW, state: &State) -> Result<()> {
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (name, variable) in &network.variables {
        tensors.insert(name.clone(), variable.as_tensor().clone());
    }
    for (prefix, moments) in [("first.", &optimizer.first), ("second.", &optimizer.second)] {
        for (name, moment) in moments {
            tensors.insert(format!("{prefix}{name}"), moment.clone());
        }
    }
    let temporary = folder.join("checkpoint.partial");
    candle_core::safetensors::save(&tensors, &temporary)?;
    std::fs::rename(&temporary, folder.join(format!("checkpoint-{}.safetensors", state.step)))?;
    let text = serde_json::to_string(state).map_err(candle_core::Error::wrap)?;
    std::fs::write(folder.join("state.partial"), text)?;
    std::fs::rename(folder.join("state.partial"), folder.join("state.json"))?;
    Ok(())
}

/// Loads the latest checkpoint of `folder`, if there is one.
fn load(folder: &Path, shape: &Shape, device: &Device) -> Result<Option<(Network, AdamW, State)>> {
    let Ok(text) = std::fs::read_to_string(folder.join("state.json")) else { return Ok(None) };
    let state: State = serde_json::from_str(&text).map_err(candle_core::Error::wrap)?;
    let path = folder.join(format!("checkpoint-{}.safetensors", state.step));
    let mut optimizer = AdamW { first: BTreeMap::new(), second: BTreeMap::new() };
    let mut variables = BTreeMap::new();
    for (name, tensor) in candle_core::safetensors::load(&path, device)? {
        if let Some(name) = name.strip_prefix("first.") {
            optimizer.first.insert(name.to_owned(), tensor);
        } else if let Some(name) = name.strip_prefix("second.") {
            optimizer.second.insert(name.to_owned(), tensor);
        } else {
            variables.insert(name, Var::from_tensor(&tensor)?);
        }
    }
    Ok(Some((Network::of(shape.clone(), variables, device)?, optimizer, state)))
}

/// The latest weights of a run folder.
pub fn latest(folder: &Path, shape: &Shape) -> Result<Network> {
    match load(folder, shape, &Device::Cpu)? {
        Some((network, _, _)) => Ok(network),
        None => candle_core::bail!("{} holds no checkpoint", folder.display()),
    }
}

/// Trains on `rows` until the schedule's time is over, going on from the folder's checkpoint if there is one.
pub fn train(
    folder: &Path,
    shape: &Shape,
    schedule: &Schedule,
    rows: &[Row],
    mut report: impl FnMut(Progress),
) -> Result<Network> {
    std::fs::create_dir_all(folder)?;
    let device = Device::Cpu;
    let (network, mut optimizer, mut state) = match load(folder, shape, &device)? {
        Some(loaded) => loaded,
        None => {
            let optimizer = AdamW { first: BTreeMap::new(), second: BTreeMap::new() };
            (Network::random(shape.clone(), &device)?, optimizer, State::default())
        }
    };
    let before = state.seconds;
    let started = Instant::now();
    let (mut saved, mut reported) = (Instant::now(), Instant::now());
    let (mut sum, mut count) = (0.0, 0_u32);
    let mut order: Vec<usize> = Vec::new();
    let mut epoch_seed = schedule.seed.wrapping_add(state.step as u64);
    while state.seconds < schedule.seconds {
        if order.len() < schedule.batch {
            order = (0..rows.len()).collect();
            order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(epoch_seed));
            epoch_seed = epoch_seed.wrapping_add(1);
        }
        let batch: Vec<&Row> =
            order.drain(order.len() - schedule.batch.min(order.len())..).map(|index| &rows[index]).collect();
        state.step += 1;
        state.tokens += batch.iter().map(|row| row.inputs.len() as u64).sum::<u64>();
        let warm = (state.step as f64 / schedule.warm_up as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * state.seconds / schedule.seconds).cos());
        let rate = schedule.peak_rate * warm * cosine.max(0.001);
        let loss = step(&network, &mut optimizer, &batch, schedule, rate, state.step)?;
        if !loss.is_finite() {
            candle_core::bail!(
                "the loss is {loss} at step {}; the last good checkpoint is in {}",
                state.step,
                folder.display()
            );
        }
        sum += loss;
        count += 1;
        state.seconds = before + started.elapsed().as_secs_f64();
        if reported.elapsed() > Duration::from_secs(20) {
            report(Progress {
                step: state.step,
                tokens: state.tokens,
                loss: sum / f64::from(count),
                seconds: state.seconds,
                rate,
            });
            (sum, count, reported) = (0.0, 0, Instant::now());
        }
        if saved.elapsed().as_secs_f64() > schedule.checkpoint_seconds {
            save(folder, &network, &optimizer, &state)?;
            saved = Instant::now();
        }
    }
    save(folder, &network, &optimizer, &state)?;
    Ok(network)
}

fn step(
    network: &Network,
    optimizer: &mut AdamW,
    batch: &[&Row],
    schedule: &Schedule,
    rate: f64,
    step: usize,
) -> Result<f64> {
    let device = Device::Cpu;
    let length = batch.first().map_or(0, |row| row.inputs.len());
    let flat = |part: fn(&Row) -> &Vec<u32>| batch.iter().flat_map(|row| part(row).clone()).collect::<Vec<u32>>();
    let ids = Tensor::from_vec(flat(|row| &row.inputs), (batch.len(), length), &device)?;
    let targets = Tensor::from_vec(flat(|row| &row.targets), batch.len() * length, &device)?;
    let weights: Vec<f32> = batch.iter().flat_map(|row| row.weights.clone()).collect();
    let weights = Tensor::from_vec(weights, batch.len() * length, &device)?;
    let loss = network.loss(&ids, &targets, &weights)?;
    let value = f64::from(loss.to_scalar::<f32>()?);
    let gradients = loss.backward()?;
    let mut square = 0.0;
    for variable in network.variables.values() {
        if let Some(gradient) = gradients.get(variable) {
            square += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
    }
    let scale = (schedule.clip / square.sqrt().max(1e-12)).min(1.0);
    optimizer.step(network, &gradients, scale, rate, schedule.weight_decay, step)?;
    Ok(value)
}
