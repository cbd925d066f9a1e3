//! Two ways of answering compared on the same requests, at any time: bounds of the mean difference of their qualities that hold
//! together after every request, so that whoever looks until the figures please is not deceived.
//!
//! Against the claim that the mean difference is at most `m` a capital bets on each difference in turn; while the claim holds,
//! it is a non-negative supermartingale and ever reaches `1 / alpha` with probability at most `alpha` (Ville's inequality).
//! Bets are a fixed mixture of constant ones, as in `evidence/live.rs`; the bound is the claim above which none was refuted
//! (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024).

/// Constant bets, as shares of the boldest that no single difference can turn into ruin.
const BETS: [f64; 8] = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9];

/// Halvings of the range that a bound is looked for in.
const HALVINGS: usize = 30;

/// Whether a mean of at most `mean` was ever refuted by differences within `[-1, 1]`, in the order they came in, which must
/// not depend on them. Those out of range are passed over.
pub fn is_above(differences: &[f64], mean: f64, alpha: f64) -> bool {
    let mut logs = [0.0_f64; BETS.len()];
    differences.iter().filter(|difference| (-1.0..=1.0).contains(*difference)).any(|difference| {
        // At worst `-1 - mean`, which is the whole stake.
        let gain = (difference - mean) / (1.0 + mean).max(1e-9);
        for (log, bet) in logs.iter_mut().zip(BETS) {
            *log += (bet * gain).ln_1p();
        }
        let capital: f64 = logs.iter().map(|log| log.exp()).sum();
        capital / BETS.len() as f64 >= 1.0 / alpha
    })
}

/// Lower bound of the mean difference, -1 where nothing is refuted.
pub fn lower(differences: &[f64], alpha: f64) -> f64 {
    let (mut low, mut high) = (-1.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if is_above(differences, middle, alpha) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Upper bound of the mean difference, 1 where nothing is refuted.
pub fn upper(differences: &[f64], alpha: f64) -> f64 {
    -lower(&differences.iter().map(|difference| -difference).collect::<Vec<_>>(), alpha)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    /// Differences of which `better` are 1, `worse` are -1 and the rest 0.
    fn drawn(count: usize, seed: u64, (better, worse): (f64, f64)) -> Vec<f64> {
        let mut random = StdRng::seed_from_u64(seed);
        let draw = |random: &mut StdRng| match random.random::<f64>() {
            share if share < better => 1.0,
            share if share < better + worse => -1.0,
            _ => 0.0,
        };
        (0..count).map(|_| draw(&mut random)).collect()
    }

    #[test]
    fn looking_after_every_request_keeps_the_confidence() {
        const RUNS: u64 = 200;
        // The mean is just -0.05: "above -0.05" is false, however often it is asked.
        let wrong = (0..RUNS).filter(|seed| is_above(&drawn(600, *seed, (0.1, 0.15)), -0.05, 0.1)).count() as f64;
        let allowed = 0.1 + 3.0 * (0.1_f64 * 0.9 / RUNS as f64).sqrt();
        assert!(wrong <= allowed * RUNS as f64, "{wrong} of {RUNS}");
        let found = (0..RUNS).filter(|seed| is_above(&drawn(600, *seed, (0.2, 0.05)), 0.0, 0.1)).count() as f64;
        assert!(found > 0.9 * RUNS as f64, "{found} of {RUNS}");
    }

    #[test]
    fn bounds_hold_the_mean_between_them() {
        let rows = drawn(400, 3, (0.25, 0.1));
        let mean = rows.iter().sum::<f64>() / rows.len() as f64;
        let (low, high) = (lower(&rows, 0.05), upper(&rows, 0.05));
        assert!(low < mean && mean < high && high - low < 0.4, "{low} {mean} {high}");
        assert_eq!((lower(&[], 0.05).round(), upper(&[], 0.05).round()), (-1.0, 1.0));
        assert!(lower(&[f64::NAN, 2.0], 0.05) < -0.999, "what is out of range says nothing");
        // Equal answers on and on show that nothing is lost, and sooner where a little may be.
        let equal = [0.0; 400];
        assert!(is_above(&equal, -0.02, 0.05) && !is_above(&equal[..100], -0.02, 0.05));
    }
}
