//! A training run: batches in an order that only the seed decides, a rate that only the tokens seen decide, a log, checkpoints.
//!
//! Nothing that decides the weights knows the clock, so a run that was killed goes on from its checkpoint as if it had not
//! been: what the log said after that checkpoint is taken back and written again, the same.

use super::TrainError;
use super::chart::{Curve, draw};
use super::checkpoint::{Checkpoint, Counters};
use super::network::Network;
use super::optimizer::{Crew, Moments, StepSize};
use super::pass::{Aim, Sample, Sums};
use super::recipe::Training;
use super::teacher::Teacher;
use super::write_whole;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a run is made of.
pub struct Run<'a> {
    /// Where log, checkpoints and loss curve go.
    pub folder: &'a Path,
    /// The model's name, for the loss curve.
    pub name: &'a str,
    /// How to train.
    pub training: &'a Training,
    /// What losses are made of.
    pub aim: Aim,
    /// Seed of the order of records.
    pub seed: u64,
    /// What is learnt.
    pub samples: &'a [Sample],
    /// What is looked at on the way.
    pub dev: &'a [Sample],
    /// Who is asked on the way; nobody where samples have a teacher's shares already, or none are wanted.
    pub teacher: Option<&'a Teacher>,
}

/// What a run tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// It goes on from a checkpoint of this step.
    Resumed(u64),
    /// Some steps are done.
    Step(Progress),
    /// Dev was looked at.
    Dev(Look),
    /// There is a checkpoint of this step.
    Saved(u64),
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens to see in all.
    pub of: u64,
    /// Mean loss since the last line.
    pub loss: f64,
    /// Learning rate of the last step.
    pub rate: f64,
    /// Norm of the last gradient.
    pub norm: f64,
    /// Tokens a second since the run was started or resumed.
    pub pace: f64,
    /// Time left at that pace.
    pub left: Duration,
}

/// What dev looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// Steps done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Mean loss.
    pub loss: f64,
    /// Share of records whose answer greedy decoding would give exactly, in [0, 1].
    pub right: f64,
    /// Records looked at.
    pub records: usize,
}

/// Records looked at together.
const LOOK: usize = 64;

/// Trains until all tokens have been seen, going on from the folder's checkpoint if there is one; `start` gives the first
/// weights.
///
/// # Errors
/// There is nothing to learn, a file can't be written or belongs to another run, or the loss is no number any more.
pub fn train(
    run: &Run<'_>,
    start: impl FnOnce() -> Result<Network, TrainError>,
    shape: &super::network::Shape,
    report: &mut dyn FnMut(Event),
) -> Result<Network, TrainError> {
    if run.samples.iter().all(Sample::is_empty) {
        return Err(TrainError::NothingToDo("the corpus is empty, or all of it is held out or too long".to_owned()));
    }
    let mut log = Log::new(run.folder);
    let mut state = match Checkpoint::load(run.folder, shape)? {
        Some(checkpoint) => {
            log.take_back(checkpoint.counters.step)?;
            report(Event::Resumed(checkpoint.counters.step));
            checkpoint
        }
        None => {
            log.take_back(0)?;
            Checkpoint { network: start()?, moments: Moments::default(), counters: Counters::default() }
        }
    };
    let mut crew = Crew::new(&state.network, run.training.threads, run.training.precision)?;
    let (mut order, mut saved) = (Order::new(run.samples, run.seed), state.counters.step);
    let clock = Clock { before: state.counters.seconds, tokens: state.counters.tokens, started: Instant::now() };
    while state.counters.tokens < run.training.tokens {
        let progress = advance(run, &mut state, &mut crew, &mut order);
        let progress = progress.map_err(|(loss, norm, step)| diverged(run.folder, saved, (loss, norm, step)))?;
        state.counters.seconds = clock.before + clock.started.elapsed().as_secs_f64();
        let (step, last) = (state.counters.step, state.counters.tokens >= run.training.tokens);
        if step.is_multiple_of(run.training.log_steps) || last {
            report(Event::Step(clock.tell(&mut state.counters, run.training, progress, &mut log)?));
        }
        if !run.dev.is_empty() && (step.is_multiple_of(run.training.evaluate_steps) || last) {
            let look = look(&mut crew, &state, run);
            log.write(&serde_json::json!({
                "step": look.step, "tokens": look.tokens, "dev_loss": look.loss, "dev_right": look.right, "dev": look.records,
            }))?;
            report(Event::Dev(look));
        }
        if step.is_multiple_of(run.training.checkpoint_steps) || last {
            // A gradient that was finite may still have moved weights beyond all numbers.
            if !state.network.weights.iter().all(|weight| weight.is_finite()) {
                return Err(diverged(run.folder, saved, (f64::NAN, progress.1, step)));
            }
            state.save(run.folder)?;
            saved = step;
            log.draw(run.name)?;
            report(Event::Saved(step));
        }
    }
    Ok(state.network)
}

/// When this start of a run began.
struct Clock {
    before: f64,
    tokens: u64,
    started: Instant,
}

impl Clock {
    /// A line of the log, and what it says.
    fn tell(
        &self,
        counters: &mut Counters,
        training: &Training,
        (rate, norm): (f64, f64),
        log: &mut Log,
    ) -> Result<Progress, TrainError> {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let (loss, weight) = std::mem::take(&mut counters.window);
        let pace = (counters.tokens - self.tokens) as f64 / seconds;
        let left = training.tokens.saturating_sub(counters.tokens) as f64 / pace.max(1e-9);
        let progress = Progress {
            step: counters.step,
            tokens: counters.tokens,
            of: training.tokens,
            loss: loss / weight.max(1e-12),
            rate,
            norm,
            pace,
            left: Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX),
        };
        log.write(&serde_json::json!({
            "step": progress.step, "tokens": progress.tokens, "loss": progress.loss, "rate": rate, "norm": norm,
            "seconds": (counters.seconds * 10.0).round() / 10.0,
        }))?;
        Ok(progress)
    }
}

fn diverged(folder: &Path, saved: u64, (loss, norm, step): (f64, f64, u64)) -> TrainError {
    let kept = match saved {
        0 => "there is no checkpoint yet".to_owned(),
        saved => format!("the last good checkpoint is that of step {saved} in {}", folder.display()),
    };
    TrainError::Diverged { loss, norm, step, kept }
}

/// One step; its rate and the gradient's norm. Loss, norm and step where they are no numbers, and then nothing is moved.
fn advance(
    run: &Run<'_>,
    state: &mut Checkpoint,
    crew: &mut Crew,
    order: &mut Order<'_>,
) -> Result<(f64, f64), (f64, f64, u64)> {
    let (training, step) = (run.training, state.counters.step + 1);
    let rate = training.rate(state.counters.tokens);
    let mut sums = Sums::default();
    for part in 0..training.accumulate {
        let batch = order.next(&mut state.counters, training.batch_tokens);
        state.counters.tokens += batch.iter().map(|sample| sample.len() as u64).sum::<u64>();
        sums += match run.teacher {
            Some(teacher) => {
                let mut taught: Vec<Sample> = batch.into_iter().cloned().collect();
                teacher.teach(&mut taught);
                crew.learn(&state.network, &taught.iter().collect::<Vec<_>>(), &run.aim, part == 0)
            }
            None => crew.learn(&state.network, &batch, &run.aim, part == 0),
        };
    }
    let embedding = training.embedding_rate;
    let size = StepSize { rate, embedding, decay: training.weight_decay, clip: training.clip, step };
    let loss = sums.loss / sums.weight.max(1e-12);
    let norm =
        if loss.is_finite() { crew.step(&mut state.network, &mut state.moments, sums.weight, size) } else { f64::NAN };
    if !norm.is_finite() {
        return Err((loss, norm, step));
    }
    state.counters.step = step;
    state.counters.window.0 += sums.loss;
    state.counters.window.1 += sums.weight;
    Ok((rate, norm))
}

fn look(crew: &mut Crew, state: &Checkpoint, run: &Run<'_>) -> Look {
    let mut sums = Sums::default();
    for samples in run.dev.chunks(LOOK) {
        sums += crew.look(&state.network, &samples.iter().collect::<Vec<_>>(), &Aim::default());
    }
    Look {
        step: state.counters.step,
        tokens: state.counters.tokens,
        loss: sums.loss / sums.weight.max(1e-12),
        right: sums.right as f64 / sums.records.max(1) as f64,
        records: sums.records,
    }
}

/// Which records come when: every epoch is shuffled by its own seed, so a resumed run sees what an unbroken one would.
struct Order<'a> {
    samples: &'a [Sample],
    seed: u64,
    epoch: Option<u64>,
    shuffled: Vec<usize>,
}

impl<'a> Order<'a> {
    fn new(samples: &'a [Sample], seed: u64) -> Self {
        Self { samples, seed, epoch: None, shuffled: Vec::new() }
    }

    /// The next records, until they have `tokens`; an epoch's last batch may be smaller.
    fn next(&mut self, counters: &mut Counters, tokens: usize) -> Vec<&'a Sample> {
        if counters.seen >= self.samples.len() {
            (counters.epoch, counters.seen) = (counters.epoch + 1, 0);
        }
        if self.epoch != Some(counters.epoch) {
            self.shuffled = (0..self.samples.len()).collect();
            let seed = self.seed.wrapping_add(counters.epoch);
            self.shuffled.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
            self.epoch = Some(counters.epoch);
        }
        let (mut batch, mut count) = (Vec::new(), 0);
        for index in self.shuffled.iter().skip(counters.seen) {
            let Some(sample) = self.samples.get(*index) else { break };
            batch.push(sample);
            count += sample.len();
            counters.seen += 1;
            if count >= tokens {
                break;
            }
        }
        batch
    }
}

/// Tokens that the log of a folder's run knows of.
pub(super) fn tokens_seen(folder: &Path) -> Result<u64, TrainError> {
    let seen = |line: &serde_json::Value| line.get("tokens").and_then(serde_json::Value::as_u64);
    Ok(Log::new(folder).lines()?.iter().filter_map(seen).max().unwrap_or_default())
}

/// The log of a run: JSON lines.
struct Log {
    path: PathBuf,
    curve: PathBuf,
}

impl Log {
    fn new(folder: &Path) -> Self {
        Self { path: folder.join("log.jsonl"), curve: folder.join("loss.svg") }
    }

    /// Drops what was written after `step`.
    fn take_back(&mut self, step: u64) -> Result<(), TrainError> {
        let kept: String = self
            .lines()?
            .iter()
            .filter(|line| number(line, "step") <= step as f64)
            .map(|line| format!("{line}\n"))
            .collect();
        write_whole(&self.path, |file| file.write_all(kept.as_bytes()))
    }

    fn lines(&self) -> Result<Vec<serde_json::Value>, TrainError> {
        match std::fs::read_to_string(&self.path) {
            // A line that a kill cut off is of a step after the checkpoint.
            Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(TrainError::file(&self.path, error)),
        }
    }

    fn write(&mut self, line: &serde_json::Value) -> Result<(), TrainError> {
        let append = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&self.path)?;
            file.write_all(format!("{line}\n").as_bytes())
        };
        append().map_err(|error| TrainError::file(&self.path, error))
    }

    fn draw(&self, name: &str) -> Result<(), TrainError> {
        let lines = self.lines()?;
        let points = |key: &str| -> Vec<(f64, f64)> {
            let has = lines.iter().filter(|line| line.get(key).is_some());
            has.map(|line| (number(line, "tokens"), number(line, key))).collect()
        };
        let (train, dev) = (points("loss"), points("dev_loss"));
        let curves = [
            Curve { name: "training loss", colour: "#2060c0", points: &train },
            Curve { name: "dev loss", colour: "#c06020", points: &dev },
        ];
        let svg = draw(&format!("{name}: loss by tokens seen"), &curves);
        write_whole(&self.curve, |file| file.write_all(svg.as_bytes()))
    }
}

fn number(line: &serde_json::Value, key: &str) -> f64 {
    line.get(key).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests;
