//! Intervals of statistics that have no formula, a weighted quantile for one: whole clusters are drawn with replacement.
//!
//! Percentile intervals (Efron, 1979) with a fixed seed: the same rows give the same interval.

use super::estimate::Interval;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::collections::BTreeMap;

/// Draws of a bootstrap.
pub const DRAWS: usize = 200;

/// `statistic` of the rows and its percentile interval over [`DRAWS`] draws of clusters. The statistic sees each row with
/// the number of times that it was drawn, and may give `None` where it has no value; so does this without rows.
pub fn bootstrap(
    clusters: &[u64],
    confidence: f64,
    seed: u64,
    statistic: impl Fn(&[f64]) -> Option<f64>,
) -> Option<Interval> {
    let value = statistic(&vec![1.0; clusters.len()])?;
    let mut places: BTreeMap<u64, usize> = BTreeMap::new();
    for cluster in clusters {
        let next = places.len();
        places.entry(*cluster).or_insert(next);
    }
    let place: Vec<usize> = clusters.iter().filter_map(|cluster| places.get(cluster).copied()).collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut values = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        let mut drawn = vec![0.0; places.len()];
        for _ in 0..places.len() {
            drawn[rng.random_range(0..places.len())] += 1.0;
        }
        let counts: Vec<f64> = place.iter().map(|place| drawn[*place]).collect();
        values.extend(statistic(&counts));
    }
    interval(value, values, confidence)
}

/// As [`bootstrap`], with rows in strata that keep their sizes: rows are drawn with replacement within each. The statistic
/// sees for each stratum how often each of its rows was drawn.
pub fn stratified(
    sizes: &[usize],
    confidence: f64,
    seed: u64,
    statistic: impl Fn(&[Vec<f64>]) -> Option<f64>,
) -> Option<Interval> {
    let value = statistic(&sizes.iter().map(|size| vec![1.0; *size]).collect::<Vec<_>>())?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut values = Vec::with_capacity(DRAWS);
    let mut counts: Vec<Vec<f64>> = sizes.iter().map(|size| vec![0.0; *size]).collect();
    for _ in 0..DRAWS {
        for counts in &mut counts {
            counts.fill(0.0);
            let size = counts.len();
            (0..size).for_each(|_| counts[rng.random_range(0..size)] += 1.0);
        }
        values.extend(statistic(&counts));
    }
    interval(value, values, confidence)
}

fn interval(value: f64, mut values: Vec<f64>, confidence: f64) -> Option<Interval> {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get((share * (values.len().saturating_sub(1)) as f64).round() as usize).copied();
    let outside = (1.0 - confidence) / 2.0;
    Some(Interval { value, low: at(outside)?.min(value), high: at(1.0 - outside)?.max(value) })
}

/// The quantile `share` of values with weights: the least value that at least this share of the weight lies at or below.
pub fn weighted_quantile(values: &[(f64, f64)], share: f64) -> Option<f64> {
    let mut sorted: Vec<(f64, f64)> = values.iter().copied().filter(|(_, weight)| *weight > 0.0).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: f64 = sorted.iter().map(|(_, weight)| weight).sum();
    let mut below = 0.0;
    for (value, weight) in &sorted {
        below += weight;
        if below >= share * total {
            return Some(*value);
        }
    }
    sorted.last().map(|(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_weigh_and_intervals_hold_them() {
        assert_eq!(weighted_quantile(&[(1.0, 1.0), (9.0, 3.0), (5.0, 0.0)], 0.25), Some(1.0));
        assert_eq!(weighted_quantile(&[(1.0, 1.0), (9.0, 3.0)], 0.5), Some(9.0));
        assert_eq!(weighted_quantile(&[], 0.5), None);
        let clusters: Vec<u64> = (0..400).collect();
        let median = |counts: &[f64]| {
            let rows: Vec<(f64, f64)> = counts.iter().enumerate().map(|(n, count)| (n as f64, *count)).collect();
            weighted_quantile(&rows, 0.5)
        };
        let found = bootstrap(&clusters, 0.95, 7, median).unwrap();
        assert!(found.low > 140.0 && found.low < 199.0 && found.high > 200.0 && found.high < 260.0, "{found:?}");
        assert_eq!(bootstrap(&clusters, 0.95, 7, median), Some(found));
        // One cluster says nothing of how clusters differ.
        let one = bootstrap(&[3; 400], 0.95, 7, median).unwrap();
        assert_eq!((one.low, one.high), (one.value, one.value));
    }

    #[test]
    fn strata_keep_their_sizes_and_narrow_what_lies_between_them() {
        // Two strata that differ only from each other: their mean of means does not vary at all.
        let means = |counts: &[Vec<f64>]| {
            assert_eq!(counts.iter().map(|counts| counts.iter().sum::<f64>()).collect::<Vec<_>>(), [30.0, 10.0]);
            Some((0.2 * counts[0].iter().sum::<f64>() / 30.0 + 0.8 * counts[1].iter().sum::<f64>() / 10.0) / 2.0)
        };
        let found = stratified(&[30, 10], 0.95, 7, means).unwrap();
        assert!((found.low - 0.5).abs() < 1e-12 && (found.high - 0.5).abs() < 1e-12, "{found:?}");
        // Half of 100 rows are 1: the standard error of their mean is 0.05.
        let share = |counts: &[Vec<f64>]| Some(counts[0].iter().take(50).sum::<f64>() / 100.0);
        let found = stratified(&[100], 0.95, 7, share).unwrap();
        assert!((0.36..0.44).contains(&found.low) && (0.56..0.64).contains(&found.high), "{found:?}");
        assert_eq!(stratified(&[100], 0.95, 7, |_| None), None);
    }
}
