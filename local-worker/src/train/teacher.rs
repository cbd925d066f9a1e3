//! A larger model that says how likely it finds each token of a record, for a student to learn from (Hinton, Vinyals & Dean
//! 2015). Of each target only the likeliest tokens are kept, their shares made to add up to one.

use super::TrainError;
use super::model::{self, Metadata};
use super::network::Network;
use super::pass::{Sample, Shard};
use crate::engine::ModelSource;
use crate::kernels::{Level, Team, log_sum_exp};
use std::sync::{Mutex, PoisonError};

/// What decides how a vocabulary reads text.
const READING: [&str; 4] = ["model", "pre", "tokens", "merges"];

/// A teacher and its threads.
pub struct Teacher {
    network: Network,
    metadata: Metadata,
    temperature: f32,
    most: usize,
    team: Team,
    shards: Vec<Mutex<Shard>>,
}

impl Teacher {
    /// Loads a teacher that says the `most` likeliest tokens at a temperature.
    ///
    /// # Errors
    /// The model can't be read or is no plain Llama, or the system gives no threads.
    pub fn load(source: &ModelSource, (temperature, most): (f32, usize), threads: usize) -> Result<Self, TrainError> {
        let (network, metadata) = model::read(source)?;
        let team = Team::new("teach", threads.max(1)).map_err(TrainError::Threads)?;
        let shards = (0..threads.max(1)).map(|_| Mutex::new(Shard::new(&network))).collect();
        let most = most.clamp(1, network.shape.vocabulary);
        Ok(Self { network, metadata, temperature, most, team, shards })
    }

    /// Refuses a student whose tokens are others.
    ///
    /// # Errors
    /// [`TrainError::Vocabulary`] with what differs.
    pub fn check(&self, student: &Metadata) -> Result<(), TrainError> {
        let differs = |key: &&&str| {
            let key = format!("tokenizer.ggml.{key}");
            let text = |metadata: &Metadata| metadata.get(&key).map(|value| format!("{value:?}"));
            text(&self.metadata) != text(student)
        };
        match READING.iter().find(differs) {
            Some(key) => Err(TrainError::Vocabulary(format!(
                "teacher and student have different tokens (tokenizer.ggml.{key}), so shares of tokens can't be compared; start the \
                 student from the teacher's file or a pruned copy of it, or learn from answers it wrote"
            ))),
            None => Ok(()),
        }
    }

    /// Gives each sample what the teacher says of its targets; those of no weight get nothing that counts.
    pub fn teach(&self, samples: &mut [Sample]) {
        let each: Vec<Mutex<&mut Sample>> = samples.iter_mut().map(Mutex::new).collect();
        let threads = self.shards.len();
        self.team.run(threads, &|thread| {
            let Some(shard) = self.shards.get(thread) else { return };
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for sample in each.iter().skip(thread).step_by(threads) {
                self.one(&mut shard, &mut sample.lock().unwrap_or_else(PoisonError::into_inner));
            }
        });
    }

    fn one(&self, shard: &mut Shard, sample: &mut Sample) {
        let count = sample.len();
        let logits = shard.logits(&self.network, &sample.tokens[..count]);
        sample.soft.ids = vec![0; count * self.most];
        sample.soft.shares = vec![0.0; count * self.most];
        let rows = sample.soft.ids.chunks_exact_mut(self.most).zip(sample.soft.shares.chunks_exact_mut(self.most));
        let mut scratch = vec![0.0; self.most];
        for ((logits, (ids, shares)), weight) in
            logits.chunks_exact(self.network.shape.vocabulary).zip(rows).zip(&sample.weights)
        {
            if *weight <= 0.0 {
                continue;
            }
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            let better =
                |one: &u32, other: &u32| logits[*other as usize].total_cmp(&logits[*one as usize]).then(one.cmp(other));
            if self.most < order.len() {
                order.select_nth_unstable_by(self.most - 1, better);
            }
            ids.copy_from_slice(&order[..self.most]);
            for (share, id) in shares.iter_mut().zip(ids.iter()) {
                *share = logits[*id as usize] / self.temperature;
            }
            let total = log_sum_exp(Level::detect(), shares, &mut scratch);
            shares.iter_mut().for_each(|share| *share = (*share - total).exp());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::network::tests::tiny;
    use crate::train::optimizer::{Crew, Moments, StepSize};
    use crate::train::pass::{Aim, logits};

    fn teacher(network: &Network, temperature: f32, most: usize) -> Teacher {
        Teacher {
            network: network.clone(),
            metadata: Metadata::new(),
            temperature,
            most,
            team: Team::new("teach", 2).unwrap(),
            shards: (0..2).map(|_| Mutex::new(Shard::new(network))).collect(),
        }
    }

    fn samples() -> Vec<Sample> {
        let sample = |first: u32| {
            let tokens: Vec<u32> = (0..6 + first % 3).map(|index| (first * 7 + index * first) % 32).collect();
            Sample { weights: vec![1.0; tokens.len() - 1], tokens, ..Sample::default() }
        };
        (1..6).map(sample).collect()
    }

    #[test]
    fn shares_are_those_of_the_likeliest_tokens() {
        let network = Network::random(tiny(), 2);
        let mut samples = samples();
        samples[0].weights[0] = 0.0;
        teacher(&network, 2.0, 5).teach(&mut samples);
        for sample in &samples {
            let logits = logits(&network, &sample.tokens[..sample.len()]);
            for (place, row) in logits.chunks(32).enumerate() {
                let ids = &sample.soft.ids[place * 5..][..5];
                let shares = &sample.soft.shares[place * 5..][..5];
                if sample.weights[place] == 0.0 {
                    assert_eq!(shares, [0.0; 5]);
                    continue;
                }
                let least = ids.iter().map(|id| row[*id as usize]).fold(f32::INFINITY, f32::min);
                assert_eq!(row.iter().filter(|logit| **logit >= least).count(), 5);
                let terms: Vec<f32> = ids.iter().map(|id| (row[*id as usize] / 2.0).exp()).collect();
                for (share, term) in shares.iter().zip(&terms) {
                    assert!((share - term / terms.iter().sum::<f32>()).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_student_comes_to_say_what_its_teacher_says() {
        let network = Network::random(tiny(), 2);
        let mut samples = samples();
        teacher(&network, 1.0, 32).teach(&mut samples);
        let mut student = Network::random(tiny(), 9);
        let (mut crew, mut moments) =
            (Crew::new(&student, 2, crate::kernels::Precision::F32).unwrap(), Moments::default());
        let samples: Vec<&Sample> = samples.iter().collect();
        let aim = Aim { hard: 0.0, soft: 1.0, temperature: 1.0 };
        let mut divergences = Vec::new();
        for step in 1..=200 {
            let sums = crew.learn(&student, &samples, &aim, true);
            divergences.push(sums.loss / sums.weight);
            let size = StepSize { rate: 1e-2, embedding: 1.0, decay: 0.0, clip: 1.0, step };
            crew.step(&mut student, &mut moments, sums.weight, size);
        }
        let (first, last) = (divergences[0], divergences[199]);
        assert!(last >= -1e-4 && last < first / 20.0, "{first} {last}");
    }

    #[test]
    fn other_tokens_are_refused() {
        let network = Network::random(tiny(), 2);
        let mut teacher = teacher(&network, 1.0, 4);
        let value = |text: &str| candle_core::quantized::gguf_file::Value::String(text.to_owned());
        teacher.metadata.insert("tokenizer.ggml.pre".to_owned(), value("smollm"));
        let mut student = teacher.metadata.clone();
        teacher.check(&student).unwrap();
        student.insert("tokenizer.ggml.pre".to_owned(), value("llama-bpe"));
        assert!(teacher.check(&student).unwrap_err().to_string().contains("tokenizer.ggml.pre"));
    }
}
