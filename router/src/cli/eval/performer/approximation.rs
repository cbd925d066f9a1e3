//! How far attention by random features is from exact attention, by features: on random rows of given norms, and on queries
//! and keys of the trained encoders.

use super::Scorers;
use crate::cli::table::{self, Align};
use local_worker::scorer::Turn;
use local_worker::scorer::performer::approximation::Head;
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use std::io::Write;

/// Features that are tried.
pub const FEATURES: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];

/// Norms of random rows.
const NORMS: [f64; 4] = [0.5, 1.0, 1.5, 2.0];

const TOKENS: usize = 256;
const WIDTH: usize = 16;
const DRAWS: usize = 16;
/// Prompts that trained encoders read, the longest ones.
const PROMPTS: usize = 8;
/// Draws for each of their heads.
const DRAWS_A_HEAD: usize = 4;

/// Errors of one kind of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What rows.
    pub name: String,
    /// Root mean square of `|q|` and `|k|`, each divided by the fourth root of the head's width.
    pub norm: f64,
    /// Mean relative error of the output, in the order of [`FEATURES`].
    pub errors: Vec<f64>,
}

/// Errors of all kinds.
#[derive(Clone, Debug, PartialEq)]
pub struct Errors {
    /// Random rows, then those of encoders.
    pub lines: Vec<Line>,
}

impl Errors {
    /// Measures them all.
    pub fn measure(scorers: &Scorers, prompts: &[&str], seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut lines = Vec::new();
        for norm in NORMS {
            let head = Head::random(TOKENS, WIDTH, norm, &mut random);
            lines.push(Line::measure(format!("random rows of norm {norm}"), &[head], DRAWS, &mut random));
        }
        let mut prompts = prompts.to_vec();
        prompts.sort_by_key(|prompt| std::cmp::Reverse(prompt.len()));
        prompts.truncate(PROMPTS);
        for (name, encoder) in [("trained Performer", &scorers.performer), ("trained with softmax", &scorers.softmax)] {
            let heads = |prompt: &&str| encoder.heads(&[Turn::user(prompt)], TOKENS);
            let heads: Vec<Head> = prompts.iter().flat_map(heads).collect();
            lines.push(Line::measure(name.to_owned(), &heads, DRAWS_A_HEAD, &mut random));
        }
        Self { lines }
    }

    pub(super) fn to_json(&self) -> Value {
        let line = |line: &Line| json!({ "rows": line.name, "norm": line.norm, "relative_errors": line.errors });
        json!({ "features": FEATURES, "lines": self.lines.iter().map(line).collect::<Vec<_>>() })
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let rows: Vec<Vec<String>> = self
            .lines
            .iter()
            .map(|line| {
                let errors = line.errors.iter().map(|error| format!("{error:.3}"));
                [line.name.clone(), format!("{:.2}", line.norm)].into_iter().chain(errors).collect()
            })
            .collect();
        let features = FEATURES.map(|features| features.to_string());
        let mut header = vec![("relative error by features", Align::Left), ("norm", Align::Right)];
        header.extend(features.iter().map(|name| (name.as_str(), Align::Right)));
        table::print(out, &header, &rows)?;
        Ok(())
    }
}

impl Line {
    fn measure(name: String, heads: &[Head], draws: usize, random: &mut StdRng) -> Self {
        let mut sums = vec![0.0; FEATURES.len()];
        for head in heads {
            let exact = head.exact();
            for (features, sum) in FEATURES.into_iter().zip(&mut sums) {
                *sum += (0..draws).map(|_| head.error(&exact, features, random)).sum::<f64>();
            }
        }
        let count = heads.len().max(1) as f64;
        let norm = (heads.iter().map(|head| head.norm().powi(2)).sum::<f64>() / count).sqrt();
        Self { name, norm, errors: sums.into_iter().map(|sum| sum / (count * draws as f64)).collect() }
    }
}
