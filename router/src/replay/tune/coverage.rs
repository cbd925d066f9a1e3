//! Whether certificates keep their confidence: the recorded set is taken for the whole population, samples are drawn from it
//! with replacement, and each solved threshold is held against the population's exact quality.

use super::{Hindsight, Scores, TuneError, TuneOptions, hindsight, mean_loss, of_pair, pairs, place, recorded_scores};
use crate::evidence::bound::{Evidence, Promise, solve};
use crate::evidence::outcome::Outcome;
use crate::score::Pair;
use crate::score::blend::Shared;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// What many draws came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Coverage {
    /// The models.
    pub pair: Pair,
    /// Rows of the population.
    pub population: usize,
    /// Mean quality of the small model over that of the large one.
    pub quality_ratio: f64,
    /// Draws made.
    pub draws: u32,
    /// Rows in each.
    pub sample: usize,
    /// Share of draws whose threshold breaks the promise in the population.
    pub broken: f64,
    /// The most that share may be: the error probability and three standard errors.
    pub allowed: f64,
    /// Mean share of the population served locally.
    pub local_share: f64,
    /// What was possible on the population.
    pub hindsight: Hindsight,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Draws samples of `sample` rows `draws` times for every pair.
///
/// Rows without recorded score are scored by a scorer that saw only the other half of the clusters, so that the whole set can
/// be the population.
///
/// # Errors
/// As [`super::tune`].
pub fn coverage(
    outcomes: &[Outcome],
    options: &TuneOptions,
    draws: u32,
    sample: usize,
) -> Result<Vec<Coverage>, TuneError> {
    let measure = |pair: Pair| {
        let mut notes = Vec::new();
        let population = population(&pair, outcomes, &mut notes)?;
        Ok(Coverage { notes, ..draw(pair, &population, options.promise, draws, sample)? })
    };
    pairs(outcomes).into_iter().map(measure).collect()
}

fn population(pair: &Pair, outcomes: &[Outcome], notes: &mut Vec<String>) -> Result<Vec<Evidence>, TuneError> {
    let rows = of_pair(outcomes, pair);
    if recorded_scores(pair, rows.iter().copied())? {
        return Ok(rows.iter().map(|row| Scores::Recorded.row(row, 1.0)).collect());
    }
    let half = |row: &Outcome| place("half", &row.cluster).is_multiple_of(2);
    let mut population = Vec::new();
    for learns in [true, false] {
        let (learnt, scored): (Vec<&Outcome>, Vec<&Outcome>) = rows.iter().partition(|row| half(row) == learns);
        let shared = Shared::of(outcomes.iter().filter(|row| half(row) == learns));
        let scores = Scores::fit(pair, &learnt, &shared, notes);
        population.extend(scored.iter().map(|row| scores.row(row, 1.0)));
    }
    Ok(population)
}

fn draw(pair: Pair, rows: &[Evidence], promise: Promise, draws: u32, sample: usize) -> Result<Coverage, TuneError> {
    let (mut broken, mut local) = (0_u32, 0.0);
    for seed in 0..draws {
        let mut random = StdRng::seed_from_u64(u64::from(seed));
        let drawn: Vec<Evidence> =
            (0..sample).filter_map(|_| rows.get(random.random_range(0..rows.len().max(1))).copied()).collect();
        if let Some(threshold) = solve(&drawn, promise)?.threshold {
            broken += u32::from(mean_loss(rows, threshold, promise.target) > 1e-12);
            local += rows.iter().filter(|row| row.score >= threshold).count() as f64;
        }
    }
    let count = f64::from(draws.max(1));
    let error = 1.0 - promise.confidence;
    let sum = |quality: fn(&Evidence) -> f64| rows.iter().map(quality).sum::<f64>();
    Ok(Coverage {
        pair,
        population: rows.len(),
        quality_ratio: sum(|row| row.small) / sum(|row| row.large),
        draws,
        sample,
        broken: f64::from(broken) / count,
        allowed: error + 3.0 * (error * (1.0 - error) / count).sqrt(),
        local_share: local / count / rows.len().max(1) as f64,
        hindsight: hindsight(rows, promise.target),
        notes: Vec::new(),
    })
}
