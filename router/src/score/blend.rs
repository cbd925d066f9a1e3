//! Blends for pairs of models: the grades of other pairs on the same prompts are brought in, raw scores calibrated.

use super::{Gain, Pair, PairScorer};
use crate::evidence::calibration::{Calibration, CalibrationError, Scored};
use crate::evidence::outcome::Outcome;
use local_worker::scorer::blend::{Blend, Case, fit};
use local_worker::scorer::{FitError, Turn};
use std::collections::BTreeMap;

/// A row that was seldom recorded counts for at most this many when fitting.
pub(super) const HEAVIEST: f64 = 20.0;

/// Why no blend can be fitted.
#[derive(Debug, thiserror::Error)]
pub enum BlendError {
    /// The rows cannot be learnt from.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// The raw scores cannot be calibrated.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
}

/// A scorer for a pair, fitted on all rows given, and its calibrated scores for them from parts that had not seen them.
#[derive(Debug, Clone)]
pub struct Blended {
    /// Ready to serve.
    pub scorer: PairScorer,
    /// Raw scores of the rows, in their order, from parts that had not seen their clusters.
    pub held_out: Vec<f64>,
    /// What each part is worth.
    pub shares: Vec<(&'static str, f32)>,
}

/// Fits and calibrates a scorer for a pair on its rows; `context` may hold rows of other pairs, of which those about the
/// same clusters are used. Calibration uses the scores that every row gets from parts fitted without its cluster.
///
/// # Errors
/// No rows, too few clusters, one class only.
pub fn blend(
    pair: &Pair,
    rows: &[&Outcome],
    shared: &Shared,
    seed: u64,
    outcomes_hash: &str,
) -> Result<Blended, BlendError> {
    let Blend { scorer, held_out, shares } = raw(rows, shared, seed)?;
    let scored: Vec<Scored> = rows
        .iter()
        .zip(&held_out)
        .map(|(row, score)| Scored { score: *score, suffices: row.small_suffices() })
        .collect();
    let gains = rows.iter().zip(&held_out).map(|(row, score)| (*score, row.large_quality - row.small_quality));
    let gain = Gain::fit(gains.collect::<Vec<_>>().as_slice());
    let scorer =
        PairScorer::new(pair.clone(), scorer, Calibration::fit(&scored)?, outcomes_hash.to_owned()).with_gain(gain);
    Ok(Blended { scorer, held_out, shares: shares.to_vec() })
}

/// The blend of some rows, before calibration: for ranking only.
///
/// # Errors
/// No rows, too few clusters.
pub fn raw(rows: &[&Outcome], shared: &Shared, seed: u64) -> Result<Blend, FitError> {
    let turns: Vec<[Turn<'_>; 1]> = rows.iter().map(|row| [Turn::user(&row.prompt)]).collect();
    let case = |(row, turns): (&&Outcome, _)| Case {
        turns,
        advantage: advantage(row) as f32,
        shared: shared.0.get(&row.cluster).copied().unwrap_or(0.0) as f32,
        weight: (1.0 / row.sampling_probability).min(HEAVIEST) as f32,
        group: super::train::place("fold", &row.cluster),
    };
    let cases: Vec<Case<'_>> = rows.iter().zip(turns.iter().map(|turns| turns.as_slice())).map(case).collect();
    fit(&cases, seed)
}

fn advantage(row: &Outcome) -> f64 {
    row.small_quality - row.large_quality
}

/// How prompts went for all pairs that were asked them, by cluster: difficulty is shared between small models.
#[derive(Debug, Clone, Default)]
pub struct Shared(BTreeMap<String, f64>);

impl Shared {
    /// The mean over rows of each cluster, every pair's advantages brought to mean 0 and deviation 1 first. Rows that
    /// check anything must not be among these.
    pub fn of<'rows>(rows: impl Iterator<Item = &'rows Outcome> + Clone) -> Self {
        let mut pairs: BTreeMap<(&str, &str, &str), (f64, f64, f64)> = BTreeMap::new();
        let name = |row: &'rows Outcome| (row.source.as_str(), row.small.as_str(), row.large.as_str());
        for row in rows.clone() {
            let sums = pairs.entry(name(row)).or_default();
            let advantage = advantage(row);
            *sums = (sums.0 + 1.0, sums.1 + advantage, sums.2 + advantage * advantage);
        }
        let mut clusters: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for row in rows {
            let Some((count, sum, squares)) = pairs.get(&name(row)) else { continue };
            let mean = sum / count;
            let deviation = (squares / count - mean * mean).max(0.0).sqrt();
            let standard = if deviation > 1e-9 { (advantage(row) - mean) / deviation } else { 0.0 };
            let sums = clusters.entry(row.cluster.clone()).or_default();
            *sums = (sums.0 + 1.0, sums.1 + standard);
        }
        Self(clusters.into_iter().map(|(cluster, (count, sum))| (cluster, sum / count)).collect())
    }
}
