//! The output matrix and the loss, some rows at a time: logits are never kept, targets of no weight never computed.

use super::super::network::Network;
use super::{Passing, Sample, Shard, Sums, fit};
use crate::kernels::{Soft, View, ViewMut, cross_entropy, soft_divergence, top_two};

/// Logits worked at once; some megabytes, which the cache holds.
const LOGITS: usize = 1 << 20;
/// Rows worked at once at least, or the products would be thin.
const ROWS: usize = 128;

/// What is learnt from: right tokens, a teacher's shares, or both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aim {
    /// Weight of the right token.
    pub hard: f32,
    /// Weight of the teacher's shares.
    pub soft: f32,
    /// What logits are divided by for the latter.
    pub temperature: f32,
}

impl Default for Aim {
    fn default() -> Self {
        Self { hard: 1.0, soft: 0.0, temperature: 1.0 }
    }
}

/// A target that counts: its row, its record and its place there.
#[derive(Clone, Copy)]
struct Target {
    row: usize,
    record: usize,
    place: usize,
}

fn targets(samples: &[&Sample]) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for (record, sample) in samples.iter().enumerate() {
        for (place, _) in sample.weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            // Other rows were left behind before.
            targets.push(Target { row: targets.len(), record, place });
        }
    }
    targets
}

impl Shard {
    /// Losses of all targets that count. If `learning`, the gradient by the last norm's output goes to `passing.narrow`.
    pub(super) fn head(&mut self, network: &Network, samples: &[&Sample], aim: &Aim, learning: bool) -> Sums {
        let (width, vocabulary, output) = (network.shape.width, network.shape.vocabulary, network.output());
        let matrix = View::new(&network.weights[output..], vocabulary, width, width);
        let (targets, mut sums) = (targets(samples), Sums { records: samples.len(), ..Sums::default() });
        let mut wrong = vec![false; samples.len()];
        let Passing { narrow, logits, scratch, rows, .. } = &mut self.passing;
        let all: usize = samples.iter().map(|sample| sample.len()).sum();
        // Without any target that counts, no row was left behind.
        let dnormal = fit(narrow, if targets.is_empty() { all } else { targets.len() } * width);
        dnormal.fill(0.0);
        for targets in targets.chunks((LOGITS / vocabulary.max(1)).max(ROWS)) {
            let some = targets.len();
            let rows = fit(rows, some * width);
            for (row, target) in rows.chunks_exact_mut(width).zip(targets) {
                row.copy_from_slice(&self.state.normal[target.row * width..][..width]);
            }
            let logits = fit(logits, some * vocabulary);
            let out = ViewMut::new(logits, some, vocabulary, vocabulary);
            self.precision.product(out, View::new(rows, some, width, width), matrix.transposed(), 1.0, false);
            for (logits, target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
                let sample = samples[target.record];
                if !learning && sample.weights[target.place] >= 1.0 {
                    let likeliest = top_two(self.level, logits).0;
                    wrong[target.record] |= sample.tokens[target.place + 1] as usize != likeliest;
                }
                let place = target.place;
                sums += Row { level: self.level, sample, place, aim }.loss(logits, fit(scratch, 2 * vocabulary));
            }
            if !learning {
                continue;
            }
            let dlogits = View::new(logits, some, vocabulary, vocabulary);
            let out = ViewMut::new(&mut self.gradients[output..], vocabulary, width, width);
            self.precision.product(out, dlogits.transposed(), View::new(rows, some, width, width), 1.0, true);
            self.precision.product(ViewMut::new(rows, some, width, width), dlogits, matrix, 1.0, false);
            for (row, target) in rows.chunks_exact(width).zip(targets) {
                dnormal[target.row * width..][..width].copy_from_slice(row);
            }
        }
        sums.right = wrong.iter().filter(|wrong| !**wrong).count();
        sums
    }
}

impl Shard {
    /// Logits of every token of a text: as many rows of the vocabulary's length.
    pub fn logits(&mut self, network: &Network, tokens: &[u32]) -> Vec<f32> {
        let (width, vocabulary, count) = (network.shape.width, network.shape.vocabulary, tokens.len());
        self.some.clear();
        // The last token would be a target only.
        let tokens = tokens.iter().copied().chain([0]).collect();
        self.forward(network, &[&Sample { tokens, ..Sample::default() }]);
        let matrix = View::new(&network.weights[network.output()..], vocabulary, width, width);
        let mut logits = vec![0.0; count * vocabulary];
        let normal = View::new(&self.state.normal, count, width, width);
        self.precision.product(
            ViewMut::new(&mut logits, count, vocabulary, vocabulary),
            normal,
            matrix.transposed(),
            1.0,
            false,
        );
        logits
    }
}

/// One target and what it is compared with.
struct Row<'a> {
    level: crate::kernels::Level,
    sample: &'a Sample,
    place: usize,
    aim: &'a Aim,
}

impl Row<'_> {
    /// Logits become their gradient.
    fn loss(&self, logits: &mut [f32], scratch: &mut [f32]) -> Sums {
        let Self { level, sample, place, aim } = self;
        let (weight, target) = (sample.weights[*place], sample.tokens[*place + 1] as usize);
        let each = sample.soft.ids.len() / sample.len().max(1);
        let mut sums = Sums { weight: f64::from(weight), ..Sums::default() };
        if aim.soft <= 0.0 || each == 0 {
            sums.loss = f64::from(cross_entropy(*level, logits, target, weight) * weight);
            return sums;
        }
        let soft = Soft {
            ids: &sample.soft.ids[place * each..][..each],
            shares: &sample.soft.shares[place * each..][..each],
            temperature: aim.temperature,
            weight: weight * aim.soft,
        };
        let (copy, scratch) = scratch.split_at_mut(logits.len());
        copy.copy_from_slice(logits);
        let hard = cross_entropy(*level, logits, target, weight * aim.hard);
        let divergence = soft_divergence(*level, copy, soft, scratch, logits);
        sums.loss = f64::from(weight * (aim.hard * hard + aim.soft * divergence));
        sums
    }
}
