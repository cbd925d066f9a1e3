//! Blends for pairs of models: the grades of other pairs on the same prompts are brought in, raw scores calibrated.

use super::{Gain, Pair, PairScorer};
use crate::evidence::calibration::{Calibration, CalibrationError, Scored};
use crate::evidence::outcome::Outcome;
use local_worker::scorer::blend::{Blend, Case, Common, Pool, fit};
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
    let scorer = PairScorer::new(pair.clone(), scorer, Calibration::fit(&scored)?, outcomes_hash.to_owned());
    let scorer = scorer.with_gain(gain).with_hard(hard(held_out.iter().copied()));
    Ok(Blended { scorer, held_out, shares: shares.to_vec() })
}

/// The raw score below which one of ten lies.
pub(super) fn hard(scores: impl Iterator<Item = f64>) -> f64 {
    let mut scores: Vec<f64> = scores.collect();
    scores.sort_by(f64::total_cmp);
    scores.get(scores.len() / 10).copied().unwrap_or(f64::NEG_INFINITY)
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
        shared: shared.went(row) as f32,
        weight: (1.0 / row.sampling_probability).min(HEAVIEST) as f32,
        group: group(&row.cluster),
        remembered: remembered(row),
    };
    let cases: Vec<Case<'_>> = rows.iter().zip(turns.iter().map(|turns| turns.as_slice())).map(case).collect();
    fit(&cases, &shared.pool, seed)
}

/// Whether a row's prompt may lie in a scorer's memory: one tenant's only in a scorer for that tenant alone.
fn remembered(row: &Outcome) -> bool {
    row.recorded.tenant.is_empty()
}

/// What decides the fold of a cluster.
fn group(cluster: &str) -> u64 {
    super::train::place("fold", cluster)
}

fn advantage(row: &Outcome) -> f64 {
    row.small_quality - row.large_quality
}

/// How prompts went for all pairs that were asked them, by cluster, and what that says of other prompts: difficulty is shared
/// between small models, between some of them more than between others.
#[derive(Debug, Clone, Default)]
pub struct Shared {
    /// Source and models, by place.
    pairs: BTreeMap<(String, String, String), usize>,
    /// By cluster, for each pair that was asked it, its place and how it went.
    by_cluster: BTreeMap<String, Vec<(usize, f64)>>,
    /// How far two pairs find the same prompts hard, by their places.
    kinship: BTreeMap<(usize, usize), f64>,
    pool: Pool,
}

/// Sums with their counts, by pair.
type Sums = BTreeMap<usize, (f64, f64)>;

/// Prompts that two pairs have in common count as much as this many on which they have nothing in common.
const STRANGERS: f64 = 50.0;

impl Shared {
    /// Every pair's advantages are brought to mean 0 and deviation 1 first. Rows that check anything must not be among these.
    pub fn of<'rows>(rows: impl Iterator<Item = &'rows Outcome> + Clone) -> Self {
        let mut pairs: BTreeMap<(&str, &str, &str), (f64, f64, f64)> = BTreeMap::new();
        let name = |row: &'rows Outcome| (row.source.as_str(), row.small.as_str(), row.large.as_str());
        for row in rows.clone() {
            let sums = pairs.entry(name(row)).or_default();
            let advantage = advantage(row);
            *sums = (sums.0 + 1.0, sums.1 + advantage, sums.2 + advantage * advantage);
        }
        let places: BTreeMap<(&str, &str, &str), usize> =
            pairs.keys().enumerate().map(|(place, name)| (*name, place)).collect();
        // By cluster the sum and count of every pair, and a prompt.
        let mut clusters: BTreeMap<&str, (Sums, &str)> = BTreeMap::new();
        for row in rows {
            let (Some((count, sum, squares)), Some(place)) = (pairs.get(&name(row)), places.get(&name(row))) else {
                continue;
            };
            let mean = sum / count;
            let deviation = (squares / count - mean * mean).max(0.0).sqrt();
            let standard = if deviation > 1e-9 { (advantage(row) - mean) / deviation } else { 0.0 };
            let (of_pairs, _) = clusters.entry(&row.cluster).or_insert_with(|| (BTreeMap::new(), &row.prompt));
            let sums = of_pairs.entry(*place).or_default();
            *sums = (sums.0 + standard, sums.1 + 1.0);
        }
        let prompts: Vec<&str> = clusters.values().map(|(_, prompt)| *prompt).collect();
        let by_cluster: BTreeMap<String, Vec<(usize, f64)>> = clusters
            .iter()
            .map(|(cluster, (of_pairs, _))| {
                let went = of_pairs.iter().map(|(place, (sum, count))| (*place, sum / count)).collect();
                ((*cluster).to_owned(), went)
            })
            .collect();
        let pool = pool(&by_cluster, &prompts);
        let kinship = kinship(&by_cluster);
        let own = |(source, small, large): &(&str, &str, &str)| {
            ((*source).to_owned(), (*small).to_owned(), (*large).to_owned())
        };
        let pairs = places.iter().map(|(name, place)| (own(name), *place)).collect();
        Self { pairs, by_cluster, kinship, pool }
    }

    /// How a row's prompt went, over all pairs that were asked it, those counting most that find the same prompts hard.
    fn went(&self, row: &Outcome) -> f64 {
        let Some(went) = self.by_cluster.get(&row.cluster) else { return 0.0 };
        let own = self.pairs.get(&(row.source.clone(), row.small.clone(), row.large.clone()));
        let kinship = |other: &usize| match own {
            Some(own) if own == other => 1.0,
            Some(own) => self.kinship.get(&(*own.min(other), *own.max(other))).copied().unwrap_or(0.0),
            None => 1.0,
        };
        let (sum, weight) = went
            .iter()
            .fold((0.0, 0.0), |(sum, weight), (pair, value)| (sum + kinship(pair) * value, weight + kinship(pair)));
        if weight > 0.0 { sum / weight } else { 0.0 }
    }
}

/// What all pairs say of all prompts; one prompt speaks for its near-duplicates.
fn pool(by_cluster: &BTreeMap<String, Vec<(usize, f64)>>, prompts: &[&str]) -> Pool {
    let turns: Vec<[Turn<'_>; 1]> = prompts.iter().map(|prompt| [Turn::user(prompt)]).collect();
    let common = |((cluster, went), turns): ((&String, &Vec<(usize, f64)>), _)| Common {
        turns,
        shared: (went.iter().map(|(_, value)| value).sum::<f64>() / went.len().max(1) as f64) as f32,
        group: group(cluster),
    };
    let commons: Vec<Common<'_>> =
        by_cluster.iter().zip(turns.iter().map(|turns| turns.as_slice())).map(common).collect();
    // What stops this stops the blend as well, and that says so.
    Pool::fit(&commons).unwrap_or_default()
}

/// Correlations of how prompts went, shrunk where few are shared; none below 0.
fn kinship(by_cluster: &BTreeMap<String, Vec<(usize, f64)>>) -> BTreeMap<(usize, usize), f64> {
    let mut products: BTreeMap<(usize, usize), (f64, f64)> = BTreeMap::new();
    for went in by_cluster.values() {
        for (at, (one, a)) in went.iter().enumerate() {
            for (other, b) in went.iter().skip(at + 1) {
                let sums = products.entry((*one, *other)).or_default();
                *sums = (sums.0 + a * b, sums.1 + 1.0);
            }
        }
    }
    products.into_iter().map(|(pair, (sum, count))| (pair, (sum / (count + STRANGERS)).max(0.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::outcome::Outcomes;

    /// A and B find the same prompts hard, C finds those hard that are easy for them.
    #[test]
    fn pairs_count_for_each_other_as_far_as_they_agree() {
        let row = |number: usize, small: &str, good: bool| {
            format!(
                "{{\"id\":\"{number}\",\"source\":\"made\",\"prompt\":\"Question {number}\",\"weak_model\":\"{small}\",\
                 \"strong_model\":\"large\",\"weak_quality\":{},\"strong_quality\":1,\"cluster\":\"c{number}\"}}\n",
                u8::from(good)
            )
        };
        let rows: String = (0..400)
            .map(|number| {
                let hard = number % 2 == 0;
                row(number, "a", !hard) + &row(number, "b", hard == (number % 8 == 3)) + &row(number, "c", hard)
            })
            .collect();
        let outcomes = Outcomes::parse([("made", rows.as_str())]).unwrap();
        let shared = Shared::of(outcomes.rows.iter());
        let of = |id: &str, small: &str| {
            shared.went(outcomes.rows.iter().find(|row| row.id == id && row.small == small).unwrap())
        };
        // What is easy for A stays so, however hard it is for C; B, which mostly agrees with A, moves it.
        assert!(of("1", "a") > 0.5 && of("0", "a") < -0.5, "{} {}", of("1", "a"), of("0", "a"));
        assert!(of("1", "a") > of("3", "a"), "{} {}", of("1", "a"), of("3", "a"));
        assert!((of("0", "c") - 1.0).abs() < 0.01, "nobody agrees with C: {}", of("0", "c"));
        // A pair that is not among the rows hears all of them alike.
        let stranger = Outcome { small: "d".to_owned(), ..outcomes.rows[0].clone() };
        assert!(shared.went(&stranger).abs() < 0.5, "{}", shared.went(&stranger));
    }
}
