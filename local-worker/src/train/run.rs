//! A training run: warm-up, a cosine keyed to the clock, batches in an order that only the step decides, checkpoints.

use super::TrainError;
use super::checkpoint::Checkpoint;
use super::network::{Network, Shape};
use super::optimizer::StepSize;
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand::seq::SliceRandom;
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
    /// How long to train, over all starts; the rate falls along a cosine to a tenth of a per cent of the peak at the end.
    pub seconds: f64,
    /// Time between checkpoints.
    pub checkpoint_seconds: f64,
    /// Seed of the order of rows.
    pub seed: u64,
}

impl Schedule {
    /// Learning rate of step `step` (from 1) after `seconds` of training.
    fn rate(&self, step: usize, seconds: f64) -> f64 {
        let warm = (step as f64 / self.warm_up.max(1) as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * (seconds / self.seconds).min(1.0)).cos());
        self.peak_rate * warm * cosine.max(0.001)
    }
}

/// A training row: `length` inputs, as many targets, and a weight for each target.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Token ids.
    pub inputs: Vec<u32>,
    /// The token after each.
    pub targets: Vec<u32>,
    /// Weight of each target in the loss.
    pub weights: Vec<f32>,
}

/// What a run reports about every twenty seconds.
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

const REPORT_EVERY: Duration = Duration::from_secs(20);

/// Trains on `rows` until the schedule's time is over, going on from the folder's checkpoint if there is one.
pub fn train(
    folder: &Path,
    shape: &Shape,
    schedule: &Schedule,
    rows: &[Row],
    mut report: impl FnMut(Progress),
) -> Result<Network, TrainError> {
    std::fs::create_dir_all(folder).map_err(|error| TrainError::file(folder, error))?;
    let mut state = match Checkpoint::load(folder, shape)? {
        Some(checkpoint) => checkpoint,
        None => Checkpoint::fresh(shape)?,
    };
    let before = state.counters.seconds;
    let started = Instant::now();
    let (mut saved, mut reported) = (Instant::now(), Instant::now());
    let (mut sum, mut count) = (0.0, 0_u32);
    let mut order = Order::new(rows.len(), schedule)?;
    while state.counters.seconds < schedule.seconds {
        let step = state.counters.step + 1;
        let rate = schedule.rate(step, state.counters.seconds);
        let batch: Vec<&Row> = order.of_step(step).iter().filter_map(|index| rows.get(*index)).collect();
        let loss = advance(&mut state, &batch, schedule, rate)?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { loss, step, folder: folder.to_owned() });
        }
        state.counters.seconds = before + started.elapsed().as_secs_f64();
        (sum, count) = (sum + loss, count + 1);
        if reported.elapsed() > REPORT_EVERY {
            let (tokens, seconds) = (state.counters.tokens, state.counters.seconds);
            report(Progress { step, tokens, loss: sum / f64::from(count), seconds, rate });
            (sum, count, reported) = (0.0, 0, Instant::now());
        }
        if saved.elapsed().as_secs_f64() > schedule.checkpoint_seconds {
            state.save(folder)?;
            saved = Instant::now();
        }
    }
    state.save(folder)?;
    Ok(state.network)
}

/// Which rows a step sees: every epoch is shuffled by its own seed, so a resumed run sees what an unbroken one would.
struct Order {
    rows: usize,
    batch: usize,
    seed: u64,
    epoch: Option<usize>,
    shuffled: Vec<usize>,
}

impl Order {
    fn new(rows: usize, schedule: &Schedule) -> Result<Self, TrainError> {
        if rows == 0 || schedule.batch == 0 {
            return Err(TrainError::NothingToDo { rows, batch: schedule.batch });
        }
        let batch = schedule.batch.min(rows);
        Ok(Self { rows, batch, seed: schedule.seed, epoch: None, shuffled: Vec::new() })
    }

    /// The rows of step `step`, from 1. What is left of an epoch that fills no batch is skipped.
    fn of_step(&mut self, step: usize) -> &[usize] {
        let steps = self.rows / self.batch;
        let (epoch, within) = ((step - 1) / steps, (step - 1) % steps);
        if self.epoch != Some(epoch) {
            self.shuffled = (0..self.rows).collect();
            let seed = self.seed.wrapping_add(epoch as u64);
            self.shuffled.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
            self.epoch = Some(epoch);
        }
        &self.shuffled[within * self.batch..(within + 1) * self.batch]
    }
}

/// One step on `batch`; its loss before the step.
fn advance(state: &mut Checkpoint, batch: &[&Row], schedule: &Schedule, rate: f64) -> Result<f64, TrainError> {
    let length = batch.first().map_or(0, |row| row.inputs.len());
    let flat = |part: fn(&Row) -> &Vec<u32>| batch.iter().flat_map(|row| part(row).clone()).collect::<Vec<u32>>();
    let ids = Tensor::from_vec(flat(|row| &row.inputs), (batch.len(), length), &Device::Cpu)?;
    let targets = Tensor::from_vec(flat(|row| &row.targets), batch.len() * length, &Device::Cpu)?;
    let weights: Vec<f32> = batch.iter().flat_map(|row| row.weights.clone()).collect();
    let weights = Tensor::from_vec(weights, batch.len() * length, &Device::Cpu)?;
    let loss = state.network.loss(&ids, &targets, &weights)?;
    let value = f64::from(loss.to_scalar::<f32>()?);
    let gradients = loss.backward()?;
    state.counters.step += 1;
    state.counters.tokens += (batch.len() * length) as u64;
    let size = StepSize { rate, decay: schedule.weight_decay, clip: schedule.clip, step: state.counters.step };
    state.optimizer.step(&state.network, &gradients, size)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            vocabulary: 32,
            width: 32,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            feed_forward: 32,
            context: 16,
            rope_base: 10_000.0,
            norm_epsilon: 1e-5,
        }
    }

    fn schedule() -> Schedule {
        Schedule {
            batch: 2,
            peak_rate: 1e-2,
            warm_up: 5,
            weight_decay: 0.0,
            clip: 1.0,
            seconds: 1e9,
            checkpoint_seconds: 1e9,
            seed: 3,
        }
    }

    /// Four rows whose answers depend on their first token.
    fn rows() -> Vec<Row> {
        let row = |first: u32| {
            let tokens: Vec<u32> = (0..9).map(|index| (first * 7 + index * first) % 32).collect();
            Row { inputs: tokens[..8].to_vec(), targets: tokens[1..].to_vec(), weights: vec![1.0; 8] }
        };
        (1..5).map(row).collect()
    }

    fn steps(state: &mut Checkpoint, order: &mut Order, rows: &[Row], count: usize) -> Vec<f64> {
        let mut losses = Vec::new();
        for _ in 0..count {
            let step = state.counters.step + 1;
            let batch: Vec<&Row> = order.of_step(step).iter().map(|index| &rows[*index]).collect();
            losses.push(advance(state, &batch, &schedule(), schedule().rate(step, 0.0)).unwrap());
        }
        losses
    }

    #[test]
    fn a_handful_of_rows_is_learnt_by_heart() {
        let mut state = Checkpoint::fresh(&shape()).unwrap();
        let losses = steps(&mut state, &mut Order::new(4, &schedule()).unwrap(), &rows(), 200);
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(first > 3.0, "untrained: about ln 32, not {first}");
        assert!(last < 0.4, "after 200 steps: {last}");
    }

    #[test]
    fn a_resumed_run_goes_on_as_the_unbroken_one() {
        let folder = tempfile::tempdir().unwrap();
        let rows = rows();
        let mut state = Checkpoint::fresh(&shape()).unwrap();
        let mut order = Order::new(4, &schedule()).unwrap();
        steps(&mut state, &mut order, &rows, 3);
        state.save(folder.path()).unwrap();
        let unbroken = steps(&mut state, &mut order, &rows, 4);
        let mut resumed = Checkpoint::load(folder.path(), &shape()).unwrap().unwrap();
        assert_eq!(resumed.counters.step, 3);
        assert_eq!(steps(&mut resumed, &mut Order::new(4, &schedule()).unwrap(), &rows, 4), unbroken);
    }

    #[test]
    fn the_latest_checkpoint_replaces_the_one_before_and_must_fit_the_shape() {
        let folder = tempfile::tempdir().unwrap();
        let none = super::super::checkpoint::latest(folder.path(), &shape()).err().unwrap();
        assert!(matches!(none, TrainError::NoCheckpoint(_)), "{none}");
        let mut state = Checkpoint::fresh(&shape()).unwrap();
        for step in [5, 9] {
            state.counters.step = step;
            state.save(folder.path()).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let other = Shape { vocabulary: 64, ..shape() };
        let error = Checkpoint::load(folder.path(), &other).err().unwrap();
        assert!(matches!(&error, TrainError::OtherShape { name, .. } if name == "token_embd.weight"), "{error}");
    }

    #[test]
    fn every_epoch_sees_every_row_once() {
        let mut order = Order::new(4, &schedule()).unwrap();
        for epoch in 0..3 {
            let mut seen: Vec<usize> = (1..=2).flat_map(|step| order.of_step(epoch * 2 + step).to_vec()).collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3]);
        }
        assert!(matches!(Order::new(0, &schedule()), Err(TrainError::NothingToDo { .. })));
    }

    #[test]
    fn the_rate_rises_then_falls_to_almost_nothing() {
        let schedule = Schedule { seconds: 100.0, ..schedule() };
        let close = |given: f64, expected: f64| assert!((given - expected).abs() < 1e-9, "{given} {expected}");
        close(schedule.rate(1, 0.0), 0.2e-2);
        close(schedule.rate(5, 0.0), 1e-2);
        close(schedule.rate(50, 50.0), 0.5e-2);
        close(schedule.rate(99, 100.0), 1e-5);
        close(schedule.rate(99, 130.0), 1e-5);
    }
}
