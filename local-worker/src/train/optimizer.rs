//! One step of training: threads compute gradients of records of their own, AdamW (Loshchilov & Hutter 2019) moves the
//! weights by their sum. Matrices decay, norms don't.
//!
//! Which thread gets which record, and the order in which sums are made, only the records and the number of threads decide:
//! a run with as many threads gives the same bits again.

use super::TrainError;
use super::network::Network;
use super::pass::{Aim, Sample, Shard, Sums};
use crate::kernels::{Adam, Level, Precision, Team, adam_step, add_and_square};
use std::sync::{Mutex, MutexGuard, PoisonError};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.98;
/// Weights moved at once.
const PIECE: usize = 1 << 16;

/// What one step needs to know beside the records.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepSize {
    /// Learning rate.
    pub rate: f64,
    /// Share of it that the embedding of tokens gets.
    pub embedding: f64,
    /// Weight decay of matrices.
    pub decay: f64,
    /// Largest norm of all gradients together.
    pub clip: f64,
    /// Number of this step, from 1.
    pub step: u64,
}

/// Running moments of the gradients, in the order of the weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Moments {
    /// Means of gradients.
    pub first: Vec<f32>,
    /// Means of squared gradients.
    pub second: Vec<f32>,
}

/// Threads with their buffers.
pub(super) struct Crew {
    team: Team,
    shards: Vec<Mutex<Shard>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    /// Threads for networks of one shape, and what products with weights are made of.
    pub fn new(network: &Network, threads: usize, precision: Precision) -> Result<Self, TrainError> {
        let threads = threads.max(1);
        let team = Team::new("train", threads).map_err(TrainError::Threads)?;
        Ok(Self { team, shards: (0..threads).map(|_| Mutex::new(Shard::of(network, precision))).collect() })
    }

    /// Gradients of `samples`, shared out by length; begun anew if `fresh`.
    pub fn learn(&mut self, network: &Network, samples: &[&Sample], aim: &Aim, fresh: bool) -> Sums {
        self.each(samples, |shard, mine| shard.learn(network, mine, aim, fresh))
    }

    /// Losses of `samples`, and which of them are answered rightly.
    pub fn look(&mut self, network: &Network, samples: &[&Sample], aim: &Aim) -> Sums {
        self.each(samples, |shard, mine| shard.look(network, mine, aim))
    }

    fn each(&self, samples: &[&Sample], work: impl Fn(&mut Shard, &[&Sample]) -> Sums + Sync) -> Sums {
        let parts = share_out(samples, self.shards.len());
        let sums: Vec<Mutex<Sums>> = parts.iter().map(|_| Mutex::default()).collect();
        self.team.run(parts.len(), &|piece| {
            if let (Some(shard), Some(part), Some(sum)) = (self.shards.get(piece), parts.get(piece), sums.get(piece)) {
                *lock(sum) = work(&mut lock(shard), part);
            }
        });
        let mut total = Sums::default();
        sums.iter().for_each(|sum| total += *lock(sum));
        total
    }

    /// Moves the weights by the gradients of records of `weight` in all; returns the norm of the mean gradient. Nothing is
    /// moved where that is not finite.
    pub fn step(&mut self, network: &mut Network, moments: &mut Moments, weight: f64, size: StepSize) -> f64 {
        let mut gradients: Vec<Vec<f32>> =
            self.shards.iter().map(|shard| std::mem::take(&mut lock(shard).gradients)).collect();
        let norm = self.sum(&mut gradients).sqrt() / weight.max(1e-12);
        if norm.is_finite() {
            let clipped = (size.clip / norm.max(1e-12)).min(1.0);
            moments.first.resize(network.weights.len(), 0.0);
            moments.second.resize(network.weights.len(), 0.0);
            if let Some(sum) = gradients.first() {
                self.move_weights(network, moments, sum, (clipped / weight.max(1e-12), size));
            }
        }
        for (shard, gradients) in self.shards.iter().zip(gradients) {
            lock(shard).gradients = gradients;
        }
        norm
    }

    /// Adds all gradients to the first ones; the sum of squares of what comes out.
    fn sum(&self, gradients: &mut [Vec<f32>]) -> f64 {
        let level = Level::detect();
        let Some((first, others)) = gradients.split_first_mut() else { return 0.0 };
        let pieces: Vec<Mutex<(&mut [f32], f64)>> =
            first.chunks_mut(PIECE).map(|piece| Mutex::new((piece, 0.0))).collect();
        self.team.run(pieces.len(), &|number| {
            let Some(piece) = pieces.get(number) else { return };
            let (piece, square) = &mut *lock(piece);
            if others.is_empty() {
                *square = f64::from(add_and_square(level, piece, &[]));
            }
            for other in others.iter() {
                let from = number * PIECE;
                *square = f64::from(add_and_square(level, piece, &other[from..from + piece.len()]));
            }
        });
        pieces.iter().map(|piece| lock(piece).1).sum()
    }

    fn move_weights(
        &self,
        network: &mut Network,
        moments: &mut Moments,
        gradients: &[f32],
        (scale, size): (f64, StepSize),
    ) {
        let level = Level::detect();
        let exponent = i32::try_from(size.step).unwrap_or(i32::MAX);
        let adam = Adam {
            rate: 0.0,
            keep: 1.0,
            beta1: BETA1 as f32,
            beta2: BETA2 as f32,
            correction2: (1.0 / (1.0 - BETA2.powi(exponent))) as f32,
            scale: scale as f32,
        };
        let (mut weights, mut first, mut second, mut gradients) =
            (network.weights.as_mut_slice(), moments.first.as_mut_slice(), moments.second.as_mut_slice(), gradients);
        let mut pieces = Vec::new();
        for part in &network.parts {
            let rate = if part.name == "token_embd.weight" { size.rate * size.embedding } else { size.rate };
            let adam = Adam {
                rate: (rate / (1.0 - BETA1.powi(exponent))) as f32,
                keep: if part.is_norm() { 1.0 } else { (1.0 - rate * size.decay) as f32 },
                ..adam
            };
            let mut left = part.rows * part.columns;
            while left > 0 {
                let count = left.min(PIECE);
                let piece = (
                    weights.split_off_mut(..count).unwrap_or_default(),
                    gradients.split_off(..count).unwrap_or_default(),
                    first.split_off_mut(..count).unwrap_or_default(),
                    second.split_off_mut(..count).unwrap_or_default(),
                );
                pieces.push(Mutex::new((adam, piece)));
                left -= count;
            }
        }
        self.team.run(pieces.len(), &|number| {
            let Some(piece) = pieces.get(number) else { return };
            let (adam, (weights, gradients, first, second)) = &mut *lock(piece);
            adam_step(level, *adam, weights, gradients, first, second);
        });
    }
}

/// Records for each of `parts` threads, so that all have about as much to do: the longest first, each to who has least.
fn share_out<'a>(samples: &[&'a Sample], parts: usize) -> Vec<Vec<&'a Sample>> {
    let mut order: Vec<&Sample> = samples.to_vec();
    order.sort_by_key(|sample| std::cmp::Reverse(sample.len()));
    let mut shares: Vec<(usize, Vec<&Sample>)> = vec![(0, Vec::new()); parts.max(1)];
    for sample in order {
        if let Some(least) = shares.iter_mut().min_by_key(|share| share.0) {
            least.0 += sample.len();
            least.1.push(sample);
        }
    }
    shares.into_iter().map(|(_, samples)| samples).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::network::Shape;
    use crate::train::network::tests::tiny;

    fn samples() -> Vec<Sample> {
        let sample = |first: u32| {
            let tokens: Vec<u32> = (0..6 + first % 3).map(|index| (first * 7 + index * first) % 32).collect();
            Sample { weights: vec![1.0; tokens.len() - 1], tokens, ..Sample::default() }
        };
        (1..8).map(sample).collect()
    }

    fn run(threads: usize, steps: u64) -> (Network, Vec<f64>) {
        run_in(Precision::F32, threads, steps)
    }

    fn run_in(precision: Precision, threads: usize, steps: u64) -> (Network, Vec<f64>) {
        let mut network = Network::random(tiny(), 5);
        let mut crew = Crew::new(&network, threads, precision).unwrap();
        let mut moments = Moments::default();
        let samples = samples();
        let samples: Vec<&Sample> = samples.iter().collect();
        let mut losses = Vec::new();
        for step in 1..=steps {
            let (one, other) = samples.split_at(4);
            let mut sums = crew.learn(&network, one, &Aim::default(), true);
            sums += crew.learn(&network, other, &Aim::default(), false);
            losses.push(sums.loss / sums.weight);
            let size = StepSize { rate: 1e-2, embedding: 1.0, decay: 0.0, clip: 1.0, step };
            assert!(crew.step(&mut network, &mut moments, sums.weight, size).is_finite());
        }
        (network, losses)
    }

    #[test]
    fn a_handful_of_records_is_learnt_by_heart_on_any_number_of_threads() {
        let (_, one) = run(1, 150);
        let (_, three) = run(3, 150);
        assert!(one[0] > 3.0, "untrained: about ln 32, not {}", one[0]);
        assert!(one[149] < 0.1, "after 150 steps: {}", one[149]);
        assert!((one[0] - three[0]).abs() < 1e-5 && (one[9] - three[9]).abs() < 1e-2, "{one:?} {three:?}");
        assert_eq!(run(3, 20).0.weights, run(3, 20).0.weights, "the same bits with as many threads");
    }

    #[test]
    fn rounded_factors_learn_about_the_same() {
        let (_, exact) = run(2, 150);
        let (network, rounded) = run_in(Precision::Bf16, 2, 150);
        for step in [0, 5, 20] {
            assert!((exact[step] / rounded[step] - 1.0).abs() < 0.05, "{step}: {} {}", exact[step], rounded[step]);
        }
        assert!(rounded[149] < 0.1, "after 150 steps: {}", rounded[149]);
        assert_eq!(run_in(Precision::Bf16, 2, 150).0.weights, network.weights, "the same bits again");
    }

    #[test]
    fn gradients_that_are_no_numbers_move_nothing() {
        let mut network = Network::random(tiny(), 5);
        network.weights[3] = f32::NAN;
        let before = network.weights.clone();
        let mut crew = Crew::new(&network, 2, Precision::F32).unwrap();
        let samples = samples();
        let samples: Vec<&Sample> = samples.iter().collect();
        crew.learn(&network, &samples, &Aim::default(), true);
        let size = StepSize { rate: 1.0, embedding: 1.0, decay: 0.1, clip: 1.0, step: 1 };
        network.weights[3] = 0.0;
        let norm = crew.step(&mut network, &mut Moments::default(), 1.0, size);
        assert!(norm.is_nan() || before[4..] != network.weights[4..], "token 0 is in no record");
    }

    #[test]
    fn the_embedding_moves_at_its_own_rate() {
        let moved = |embedding: f64| {
            let before = Network::random(Shape { own_output: true, ..tiny() }, 5);
            let (mut network, samples) = (before.clone(), samples());
            let mut crew = Crew::new(&network, 2, Precision::F32).unwrap();
            let sums = crew.learn(&network, &samples.iter().collect::<Vec<_>>(), &Aim::default(), true);
            let size = StepSize { rate: 1e-2, embedding, decay: 0.0, clip: 1.0, step: 1 };
            crew.step(&mut network, &mut Moments::default(), sums.weight, size);
            let by = |name: &str| {
                let pairs = network.tensor(name).unwrap().iter().zip(before.tensor(name).unwrap());
                pairs.map(|(a, b)| f64::from((a - b).abs())).sum::<f64>()
            };
            (by("token_embd.weight"), by("output.weight"), by("blk.0.attn_q.weight"))
        };
        let (whole, tenth) = (moved(1.0), moved(0.1));
        assert!((tenth.0 / whole.0 - 0.1).abs() < 1e-3, "{whole:?} {tenth:?}");
        assert_eq!((tenth.1, tenth.2), (whole.1, whole.2));
        assert_eq!(moved(0.0).0, 0.0);
    }

    #[test]
    fn records_are_shared_out_evenly() {
        let sample =
            |length: usize| Sample { tokens: vec![1; length + 1], weights: vec![1.0; length], ..Sample::default() };
        let samples: Vec<Sample> = [5, 90, 40, 30, 20, 1].into_iter().map(sample).collect();
        let samples: Vec<&Sample> = samples.iter().collect();
        let lengths = |shares: Vec<Vec<&Sample>>| {
            shares.iter().map(|share| share.iter().map(|sample| sample.len()).sum()).collect::<Vec<usize>>()
        };
        assert_eq!(lengths(share_out(&samples, 2)), [95, 91]);
        assert_eq!(lengths(share_out(&samples[..1], 2)), [5, 0]);
    }
}
