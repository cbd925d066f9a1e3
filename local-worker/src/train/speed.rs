//! How fast training is on this machine, and what the machine could do.

use super::TrainError;
use super::network::{Network, Shape};
use super::optimizer::{Crew, Moments, StepSize};
use super::pass::{Aim, Sample};
use crate::kernels::{Precision, Team, View, ViewMut};
use std::sync::Mutex;
use std::time::Instant;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Tokens a second, the median of the steps.
    pub tokens_per_second: f64,
    /// Floating-point operations a second that the products of these tokens take.
    pub flops: f64,
    /// Those that large products alone reach on as many threads.
    pub peak: f64,
}

/// Steps on random tokens: `rows` records of `length`, on some threads, with products of one precision.
///
/// # Errors
/// The system gives no threads.
pub fn measure(
    shape: &Shape,
    rows: usize,
    length: usize,
    steps: usize,
    (threads, precision): (usize, Precision),
) -> Result<Speed, TrainError> {
    let mut network = Network::random(shape.clone(), 1);
    let token = |at: usize| (at as u32).wrapping_mul(2_654_435_761) >> 7;
    let sample = |row: usize| Sample {
        tokens: (0..=length).map(|at| token(row * 4096 + at) % shape.vocabulary as u32).collect(),
        weights: vec![1.0; length],
        ..Sample::default()
    };
    let samples: Vec<Sample> = (0..rows).map(sample).collect();
    let samples: Vec<&Sample> = samples.iter().collect();
    let (mut crew, mut moments) = (Crew::new(&network, threads, precision)?, Moments::default());
    let mut seconds = Vec::new();
    for step in 1..=steps as u64 + 2 {
        let started = Instant::now();
        let sums = crew.learn(&network, &samples, &Aim::default(), true);
        let size = StepSize { rate: 1e-3, embedding: 1.0, decay: 0.01, clip: 1.0, step };
        crew.step(&mut network, &mut moments, sums.weight, size);
        seconds.push(started.elapsed().as_secs_f64());
    }
    // The first steps make the buffers.
    let mut seconds = seconds.split_off(2);
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    let tokens_per_second = (rows * length) as f64 / median;
    // Queries with keys, and shares with values, both ways.
    let attention = 12.0 * (length * shape.heads * shape.head() * shape.layers) as f64;
    let flops = tokens_per_second * (shape.work_per_token() + attention);
    Ok(Speed { tokens_per_second, flops, peak: peak(threads, precision)? })
}

/// The best of some rounds of square products, one on each thread.
fn peak(threads: usize, precision: Precision) -> Result<f64, TrainError> {
    const SIZE: usize = 768;
    let team = Team::new("peak", threads).map_err(TrainError::Threads)?;
    let values: Vec<f32> = (0..SIZE * SIZE).map(|at| (at as f32 * 0.7).sin()).collect();
    let outs: Vec<Mutex<Vec<f32>>> = (0..threads).map(|_| Mutex::new(vec![0.0; SIZE * SIZE])).collect();
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let started = Instant::now();
        team.run(threads, &|thread| {
            let Some(Ok(mut out)) = outs.get(thread).map(Mutex::lock) else { return };
            let view = View::new(&values, SIZE, SIZE, SIZE);
            precision.product(ViewMut::new(&mut out, SIZE, SIZE, SIZE), view, view, 1.0, false);
        });
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(threads as f64 * 2.0 * (SIZE as f64).powi(3) / best)
}
