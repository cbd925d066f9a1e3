//! How far attention by random features is from exact attention (feature `lab`), for measuring.

use super::attention::Rows;
use super::favor;
use super::network::{Pass, Shape};
use super::{Performer, network};
use crate::kernels::Level;
use crate::scorer::Turn;
use rand::Rng;

/// Queries, keys and values of one head: rows of `width` numbers, one for each token.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Numbers of a row.
    pub width: usize,
    /// What asks.
    pub queries: Vec<f32>,
    /// What is asked.
    pub keys: Vec<f32>,
    /// What is seen.
    pub values: Vec<f32>,
}

impl Head {
    /// Rows from a normal distribution; queries and keys such that `|q|²/√width`, which is what the error depends on, is
    /// `norm²` in the mean.
    pub fn random(tokens: usize, width: usize, norm: f64, random: &mut impl Rng) -> Self {
        let deviation = norm / (width as f64).sqrt() * (width as f64).powf(0.25);
        let mut rows = |deviation: f64| -> Vec<f32> {
            (0..tokens * width).map(|_| (favor::normal(random) * deviation) as f32).collect()
        };
        Self { width, queries: rows(deviation), keys: rows(deviation), values: rows(1.0) }
    }

    /// Rows.
    pub fn tokens(&self) -> usize {
        self.queries.len() / self.width.max(1)
    }

    /// Root mean square of `|q|` and `|k|` after both are divided by the fourth root of the width.
    pub fn norm(&self) -> f64 {
        let squares = self.queries.iter().chain(&self.keys).map(|value| f64::from(value * value));
        (squares.sum::<f64>() / (2 * self.tokens()).max(1) as f64 / (self.width as f64).sqrt()).sqrt()
    }

    /// Softmax attention, computed in double precision.
    pub fn exact(&self) -> Vec<f64> {
        let width = self.width;
        let scale = 1.0 / (width as f64).sqrt();
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let mut out = vec![0.0; self.queries.len()];
        for (query, out) in self.queries.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let scores: Vec<f64> = self.keys.chunks_exact(width).map(|key| scale * product(query, key)).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let shares: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let total: f64 = shares.iter().sum();
            for (share, values) in shares.iter().zip(self.values.chunks_exact(width)) {
                out.iter_mut().zip(values).for_each(|(out, value)| *out += share / total * f64::from(*value));
            }
        }
        out
    }

    /// Attention by these random rows, as it is served.
    pub fn favor(&self, features: &[f32]) -> Vec<f32> {
        let (width, tokens, level) = (self.width, self.tokens(), Level::detect());
        let count = features.len() / width;
        let mut sums = favor::Sums::default();
        sums.reset(count, width);
        let mut shares = vec![0.0; tokens * count];
        let rows = |values| Rows::new(values, 0, width, width);
        let sides = (rows(&self.keys), rows(&self.values));
        favor::add_keys(level, features, sides, tokens, &mut shares, &mut sums);
        let mut out = vec![0.0; tokens * width];
        favor::look(level, features, rows(&self.queries), tokens, &mut shares, &sums, (&mut out, width));
        out
    }

    /// Relative error of attention with one draw of so many features: the norm of the difference over that of the exact.
    pub fn error(&self, exact: &[f64], features: usize, random: &mut impl Rng) -> f64 {
        let found = self.favor(&favor::draw(features, self.width, random));
        let apart: f64 = found.iter().zip(exact).map(|(found, exact)| (f64::from(*found) - exact).powi(2)).sum();
        (apart / exact.iter().map(|value| value * value).sum::<f64>()).sqrt()
    }
}

impl Performer {
    /// Queries, keys and values of every head of every layer on a conversation, of at most `most` tokens.
    pub fn heads(&self, turns: &[Turn<'_>], most: usize) -> Vec<Head> {
        let mut tokens = self.tokens(turns);
        tokens.truncate(most);
        let mut pass = Pass::default();
        self.network.forward(&self.embedder, &tokens, &mut pass, true);
        let Shape { width, heads, .. } = self.network.shape;
        let head = width / heads;
        let picked = |values: &[f32], step: usize, at: usize| -> Vec<f32> {
            values.chunks_exact(step).take(tokens.len()).flat_map(|row| &row[at..at + head]).copied().collect()
        };
        let of_layer = |(block, whole): &(network::Block, network::Whole)| {
            let of_head = |number: usize| Head {
                width: head,
                queries: picked(&block.query, width, number * head),
                keys: picked(&whole.key_value, 2 * width, number * head),
                values: picked(&whole.key_value, 2 * width, width + number * head),
            };
            (0..heads).map(of_head).collect::<Vec<Head>>()
        };
        pass.layers.iter().flat_map(of_layer).collect()
    }
}
