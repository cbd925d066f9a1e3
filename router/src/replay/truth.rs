//! Replay against truth: on outcomes that know both models' qualities, logs are made by one policy, another is estimated
//! from them, and the estimate is held against what is exactly known. The way from rows to figures is that of a replay.

use super::estimate::{Replayed, quality};
use super::log::{Action, Logged};
use super::redecide::{Redecision, Way};
use crate::domain::{ModelId, Reason, ReasonCode};
use crate::evidence::outcome::Outcome;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use std::collections::BTreeMap;

/// How the check is made.
#[derive(Clone, Copy, Debug)]
pub struct TruthOptions {
    /// Logs made for each pair.
    pub repetitions: usize,
    /// Requests of a log, drawn with replacement.
    pub rows: usize,
    /// Share of remote-bound requests that the logging policy tries locally.
    pub exploration: f64,
    /// Confidence of the intervals.
    pub confidence: f64,
    /// Seed of all draws.
    pub seed: u64,
}

impl Default for TruthOptions {
    fn default() -> Self {
        Self { repetitions: 400, rows: 1000, exploration: 0.1, confidence: 0.95, seed: 1 }
    }
}

/// How often an estimator's interval held the truth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Coverage {
    /// Share of logs whose interval held the truth.
    pub share: f64,
    /// Mean width of the intervals.
    pub width: f64,
    /// Mean of estimate − truth.
    pub bias: f64,
}

/// One target policy on one pair.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TruthRow {
    /// Data set and models.
    pub pair: String,
    /// Outcomes of the pair.
    pub outcomes: usize,
    /// The target serves locally what scores among this top share.
    pub local_share: f64,
    /// Its true quality.
    pub truth: f64,
    /// Mean effective sample size.
    pub effective: f64,
    /// Mass of routes that the logging policy never takes.
    pub untried: f64,
    /// The doubly robust estimator's.
    pub doubly_robust: Coverage,
    /// The self-normalised estimator's.
    pub snips: Coverage,
    /// The clipped estimator's.
    pub clipped: Coverage,
}

/// The logging policy serves locally this top share of scores.
const LOGGED_SHARE: f64 = 0.3;
/// The shares that targets serve locally; the first leaves routes that were never tried.
const SHARES: [f64; 4] = [0.1, 0.3, 0.5, 0.8];

/// Checks every target on the outcomes of one pair; `scores` are any numbers that order them.
pub fn check(pair: &str, outcomes: &[Outcome], scores: &[f64], options: TruthOptions) -> Vec<TruthRow> {
    let ranks = ranks(scores);
    let target = |share: f64| {
        let local = |place: usize| ranks[place] >= 1.0 - share;
        let gives = |(place, row): (usize, &Outcome)| if local(place) { row.small_quality } else { row.large_quality };
        let truth = outcomes.iter().enumerate().map(gives).sum::<f64>() / outcomes.len() as f64;
        let mut sums = [Coverage::default(); 3];
        let (mut effective, mut untried) = (0.0, 0.0);
        for repetition in 0..options.repetitions {
            let mut rng = StdRng::seed_from_u64(options.seed.wrapping_mul(1 << 32) + repetition as u64);
            let log = draw(outcomes, &ranks, options, &mut rng);
            let rows: Vec<Replayed<'_>> =
                log.iter().map(|(row, rank)| Replayed { logged: row, target: way(*rank, share) }).collect();
            let Some(found) = quality(&rows, options.confidence) else { continue };
            effective += found.doubly_robust.effective;
            untried += found.doubly_robust.untried;
            for (sum, by) in sums.iter_mut().zip([found.doubly_robust, found.self_normalized, found.clipped]) {
                sum.share += f64::from(u8::from(by.bounds.low <= truth && truth <= by.bounds.high));
                sum.width += by.bounds.high - by.bounds.low;
                sum.bias += by.bounds.value - truth;
            }
        }
        let each = 1.0 / options.repetitions.max(1) as f64;
        let mean = |sum: Coverage| Coverage { share: sum.share * each, width: sum.width * each, bias: sum.bias * each };
        TruthRow {
            pair: pair.to_owned(),
            outcomes: outcomes.len(),
            local_share: share,
            truth,
            effective: effective * each,
            untried: untried * each,
            doubly_robust: mean(sums[0]),
            snips: mean(sums[1]),
            clipped: mean(sums[2]),
        }
    };
    if outcomes.is_empty() || outcomes.len() != scores.len() {
        return Vec::new();
    }
    SHARES.into_iter().map(target).collect()
}

/// The place of each number among all, from 0 for the least to just below 1.
fn ranks(scores: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let mut ranks = vec![0.0; scores.len()];
    for (rank, place) in order.into_iter().enumerate() {
        ranks[place] = rank as f64 / scores.len() as f64;
    }
    ranks
}

fn action(local: bool) -> Action {
    Action { model: ModelId::new(if local { "small" } else { "large" }), escalates: false, judged: false }
}

/// What a target that serves the top `share` does with a request of this rank.
fn way(rank: f64, share: f64) -> Redecision {
    let local = rank >= 1.0 - share;
    let reason = Reason::new(ReasonCode::ScoreAboveThreshold, "");
    let way = Way { action: action(local), local, probability: 1.0, reason };
    Redecision { ways: vec![way], score: Some(rank), expected_costs: BTreeMap::new() }
}

fn draw(outcomes: &[Outcome], ranks: &[f64], options: TruthOptions, rng: &mut StdRng) -> Vec<(Logged, f64)> {
    let row = |number: usize| {
        let place = rng.random_range(0..outcomes.len());
        let (outcome, rank) = (&outcomes[place], ranks[place]);
        let certain = rank >= 1.0 - LOGGED_SHARE;
        let local = certain || rng.random_bool(options.exploration);
        let propensities = match certain {
            true => BTreeMap::from([(action(true), 1.0)]),
            false => BTreeMap::from([(action(true), options.exploration), (action(false), 1.0 - options.exploration)]),
        };
        let quality = if local { outcome.small_quality } else { outcome.large_quality };
        let logged = Logged {
            id: String::new(),
            at_ms: 0,
            policy: String::new(),
            arm: None,
            cluster: number as u64,
            request: None,
            has_text: false,
            action: Some(action(local)),
            local,
            propensities,
            candidates: Vec::new(),
            scorer: String::new(),
            cost_usd: 0.0,
            latency_ms: 0.0,
            quality: Some((quality, 1.0)),
            since_remote_ms: None,
            went_remote: false,
            suffices: None,
        };
        (logged, rank)
    };
    (0..options.rows).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::outcome::OutcomeSource;

    #[test]
    fn estimates_of_one_policy_from_anothers_logs_hold_the_truth() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut scores = Vec::new();
        let mut outcome = |number: usize| {
            let score: f64 = rng.random();
            scores.push(score);
            Outcome {
                id: number.to_string(),
                source: "simulated".to_owned(),
                domain: String::new(),
                prompt: "p".to_owned(),
                small: "s".to_owned(),
                large: "l".to_owned(),
                small_quality: f64::from(u8::from(rng.random_bool(0.2 + 0.6 * score))),
                large_quality: f64::from(u8::from(rng.random_bool(0.85))),
                cluster: number.to_string(),
                split: "train".to_owned(),
                sampling_probability: 1.0,
                graded_by: OutcomeSource::Gold,
                recorded: Default::default(),
            }
        };
        let outcomes: Vec<Outcome> = (0..800).map(&mut outcome).collect();
        let options = TruthOptions { rows: 300, repetitions: 400, ..TruthOptions::default() };
        let rows = check("simulated", &outcomes, &scores, options);
        let slack = 3.0 * (0.95_f64 * 0.05 / 400.0).sqrt();
        assert_eq!(rows.len(), SHARES.len());
        for row in rows {
            println!("{row:?}");
            for coverage in [row.doubly_robust, row.snips] {
                assert!(coverage.share >= 0.95 - slack, "{row:?}");
                // Where all was tried, being right by saying nothing is no merit.
                assert!(row.untried > 0.0 || coverage.width < 0.35, "{row:?}");
            }
            assert!(row.untried > 0.0 || row.doubly_robust.bias.abs() < 0.01, "{row:?}");
        }
        let untried = check("simulated", &outcomes, &scores, TruthOptions { repetitions: 1, ..options })[0].untried;
        assert!((0.1..0.3).contains(&untried), "a fifth of the choices is never tried: {untried}");
    }
}
