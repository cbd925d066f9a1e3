//! Fitting: FTRL-proximal logistic regression (McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013).
//!
//! Chosen because one pass is already good, further passes and later single examples use the same step, rates adapt to each
//! weight by itself, and L1 leaves most of the table at exactly zero. Everything is seeded and sequential: the same
//! examples, options and order give the same bytes.

use super::features::{GROUPS, Sink, visit};
use super::file::BITS;
use super::surface::SURFACE;
use super::{Scorer, Turn, group_norm};
use crate::embed::EmbedError;

/// One graded conversation.
#[derive(Debug, Clone, Copy)]
pub struct Example<'text> {
    /// The conversation.
    pub turns: &'text [Turn<'text>],
    /// Probability that the small model's answer was good enough: 1 or 0 where it is known, else between.
    pub target: f32,
    /// How many examples this one stands for; above 0.
    pub weight: f32,
}

/// How to fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FitOptions {
    /// The table has `2^bits` weights.
    pub bits: u32,
    /// Passes over the examples.
    pub epochs: u32,
    /// Decides the order of the examples.
    pub seed: u64,
    /// Step size.
    pub rate: f32,
    /// L1 penalty: pulls weights with little evidence to zero.
    pub l1: f32,
    /// L2 penalty.
    pub l2: f32,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { bits: 16, epochs: 6, seed: 1, rate: 0.1, l1: 0.1, l2: 1.0 }
    }
}

/// What stops a fit.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum FitError {
    /// Nothing to learn from.
    #[error("no examples to fit a scorer on")]
    Empty,
    /// A target that is no probability, or a weight that is not above 0.
    #[error("example {place} has target {target} and weight {weight}; targets lie within 0 and 1, weights are above 0")]
    Example {
        /// Which, counted from 0.
        place: usize,
        /// Its target.
        target: f32,
        /// Its weight.
        weight: f32,
    },
    /// All examples are near-duplicates of each other, as far as dealing them to folds can tell.
    #[error(
        "the {cases} examples are of too few kinds to compare ways of scoring: outcomes of more different prompts are needed"
    )]
    OneGroup {
        /// Examples there are.
        cases: usize,
    },
    /// Sizes of an encoder that can't be.
    #[error("no encoder has these sizes: {0}")]
    Shape(String),
    /// There are no sentence vectors.
    #[error("the sentence vectors of this build can't be used: {0}")]
    Vectors(String),
    /// An option out of range.
    #[error("{option} is {value}, which is not {expected}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What it should be.
        expected: &'static str,
    },
}

impl From<EmbedError> for FitError {
    fn from(error: EmbedError) -> Self {
        Self::Vectors(error.to_string())
    }
}

/// A scorer that still learns: weights in full precision and how often each was seen.
#[derive(Debug, Clone)]
pub struct Learner {
    options: FitOptions,
    /// FTRL state of each weight: adjusted gradient sum and sum of squared gradients. Surface features follow the table.
    sums: Vec<f32>,
    squares: Vec<f32>,
    seen: u64,
    scratch: Scratch,
}

/// Smooths the step size of weights seen seldom.
const SMOOTH: f32 = 1.0;

impl Learner {
    /// A learner that knows nothing: every score is 0.
    ///
    /// # Errors
    /// An option out of range.
    pub fn new(options: FitOptions) -> Result<Self, FitError> {
        options.check()?;
        let weights = (1 << options.bits) + SURFACE;
        Ok(Self {
            options,
            sums: vec![0.0; weights],
            squares: vec![0.0; weights],
            seen: 0,
            scratch: Scratch::new(weights),
        })
    }

    /// Goes on from a fitted scorer, whose table size is kept. Its weights are treated as seen `memory` times: the higher,
    /// the more it takes to move them.
    ///
    /// # Errors
    /// An option out of range, `memory` below 0 included.
    pub fn resume(scorer: &Scorer, options: FitOptions, memory: f32) -> Result<Self, FitError> {
        if !(memory.is_finite() && memory >= 0.0) {
            return Err(FitError::Option { option: "memory", value: f64::from(memory), expected: "at least 0" });
        }
        let mut learner = Self::new(FitOptions { bits: scorer.bits(), ..options })?;
        let hashed = scorer.weights.iter().map(|weight| f32::from(*weight) * scorer.scale);
        let weights = hashed.chain(scorer.surface.iter().copied());
        let state = learner.sums.iter_mut().zip(&mut learner.squares);
        for (weight, (sum, square)) in weights.zip(state) {
            *square = memory;
            // The sum from which FTRL computes exactly this weight.
            if weight != 0.0 {
                *sum = -weight * options.stiffness(memory) - weight.signum() * options.l1;
            }
        }
        learner.seen = scorer.seen;
        Ok(learner)
    }

    /// Several passes over the examples, each in another order.
    ///
    /// # Errors
    /// No examples, or one that cannot be learnt from; nothing is learnt then.
    pub fn fit(&mut self, examples: &[Example<'_>]) -> Result<(), FitError> {
        check(examples)?;
        let mut order: Vec<usize> = (0..examples.len()).collect();
        let mut random = self.options.seed;
        for _ in 0..self.options.epochs {
            shuffle(&mut order, &mut random);
            for example in order.iter().filter_map(|place| examples.get(*place)) {
                self.learn(example);
            }
        }
        Ok(())
    }

    /// One pass over new examples in the order given.
    ///
    /// # Errors
    /// As [`Learner::fit`].
    pub fn partial_fit(&mut self, examples: &[Example<'_>]) -> Result<(), FitError> {
        check(examples)?;
        for example in examples {
            self.learn(example);
        }
        Ok(())
    }

    /// The scorer learnt so far, its weights rounded to 16 bits.
    pub fn scorer(&self) -> Scorer {
        let table = 1 << self.options.bits;
        let weights: Vec<f32> = (0..self.sums.len()).map(|slot| self.weight(slot)).collect();
        let (hashed, seen_surface) = weights.split_at(table);
        let mut surface = [0.0; SURFACE];
        for (to, from) in surface.iter_mut().zip(seen_surface) {
            *to = *from;
        }
        Scorer::rounded(hashed, surface, self.seen, false)
    }

    fn learn(&mut self, example: &Example<'_>) {
        self.scratch.gather(example.turns, self.options.bits);
        let mut score = 0.0;
        let mut scratch = std::mem::take(&mut self.scratch);
        for (slot, value) in scratch.features() {
            score += self.weight(slot) * value;
        }
        let probability = 1.0 / (1.0 + (-score.clamp(-30.0, 30.0)).exp());
        let error = (probability - example.target) * example.weight;
        for (slot, value) in scratch.features() {
            self.step(slot, error * value);
        }
        scratch.clear();
        self.scratch = scratch;
        self.seen += 1;
    }

    /// The weight that the state of a slot stands for. The bias and its like are not pulled to zero by L1.
    fn weight(&self, slot: usize) -> f32 {
        let (Some(sum), Some(square)) = (self.sums.get(slot), self.squares.get(slot)) else {
            return 0.0;
        };
        if sum.abs() <= self.options.l1 {
            return 0.0;
        }
        -(sum - sum.signum() * self.options.l1) / self.options.stiffness(*square)
    }

    fn step(&mut self, slot: usize, gradient: f32) {
        let weight = self.weight(slot);
        if let (Some(sum), Some(square)) = (self.sums.get_mut(slot), self.squares.get_mut(slot)) {
            let after = *square + gradient * gradient;
            let sigma = (after.sqrt() - square.sqrt()) / self.options.rate;
            *sum += gradient - sigma * weight;
            *square = after;
        }
    }
}

impl FitOptions {
    /// Ways of fitting worth comparing: a cautious one for outcomes that are mostly chance, and bolder ones for outcomes that
    /// follow from the kind of request.
    pub fn candidates(seed: u64) -> [Self; 3] {
        let cautious = Self { seed, ..Self::default() };
        let bold = Self { rate: 0.3, epochs: 10, ..cautious };
        [cautious, Self { epochs: 20, ..cautious }, bold]
    }

    /// How hard a weight with this sum of squared gradients is to move.
    fn stiffness(&self, square: f32) -> f32 {
        (SMOOTH + square.sqrt()) / self.rate + self.l2
    }

    fn check(&self) -> Result<(), FitError> {
        let error = |option, value, expected| Err(FitError::Option { option, value, expected });
        let at_least_0 = |value: f32| value.is_finite() && value >= 0.0;
        if !BITS.contains(&self.bits) {
            return error("bits", f64::from(self.bits), "within 10 and 18");
        }
        if self.epochs == 0 {
            return error("epochs", 0.0, "at least 1");
        }
        if !(self.rate.is_finite() && self.rate > 0.0) {
            return error("rate", f64::from(self.rate), "above 0");
        }
        if !at_least_0(self.l1) {
            return error("l1", f64::from(self.l1), "at least 0");
        }
        if !at_least_0(self.l2) {
            return error("l2", f64::from(self.l2), "at least 0");
        }
        Ok(())
    }
}

fn check(examples: &[Example<'_>]) -> Result<(), FitError> {
    if examples.is_empty() {
        return Err(FitError::Empty);
    }
    for (place, Example { target, weight, .. }) in examples.iter().enumerate() {
        let good = (0.0..=1.0).contains(target) && weight.is_finite() && *weight > 0.0;
        if !good {
            return Err(FitError::Example { place, target: *target, weight: *weight });
        }
    }
    Ok(())
}

/// Fisher–Yates with SplitMix64.
fn shuffle(order: &mut [usize], random: &mut u64) {
    for end in (1..order.len()).rev() {
        *random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = *random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        order.swap(end, (bits % (end as u64 + 1)) as usize);
    }
}

/// The features of one example, summed by slot; kept between examples to spare allocations.
#[derive(Debug, Clone, Default)]
struct Scratch {
    values: Vec<f32>,
    touched: Vec<u32>,
    groups: [Vec<u32>; GROUPS],
}

impl Scratch {
    fn new(weights: usize) -> Self {
        Self { values: vec![0.0; weights], ..Self::default() }
    }

    fn gather(&mut self, turns: &[Turn<'_>], bits: u32) {
        let surface = visit(turns, bits, self);
        let groups = std::mem::take(&mut self.groups);
        for group in &groups {
            let value = group_norm(group.len() as u32) as f32;
            for slot in group {
                self.add(*slot, value);
            }
        }
        self.groups = groups;
        for (place, value) in surface.values().into_iter().enumerate() {
            self.add((1 << bits) + place as u32, value);
        }
    }

    fn add(&mut self, slot: u32, value: f32) {
        if let Some(total) = self.values.get_mut(slot as usize)
            && value != 0.0
        {
            if *total == 0.0 {
                self.touched.push(slot);
            }
            *total += value;
        }
    }

    /// Each slot once, with its value.
    fn features(&self) -> impl Iterator<Item = (usize, f32)> {
        self.touched.iter().map(|slot| {
            let slot = *slot as usize;
            (slot, self.values.get(slot).copied().unwrap_or(0.0))
        })
    }

    fn clear(&mut self) {
        for slot in self.touched.drain(..) {
            if let Some(value) = self.values.get_mut(slot as usize) {
                *value = 0.0;
            }
        }
        for group in &mut self.groups {
            group.clear();
        }
    }
}

impl Sink for Scratch {
    fn slots<const N: usize>(&mut self, group: usize, slots: [usize; N]) {
        if let Some(group) = self.groups.get_mut(group) {
            group.extend(slots.map(|slot| slot as u32));
        }
    }
}
