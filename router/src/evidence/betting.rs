//! Bets against the mean of bounded losses being large: upper bounds that hold after any number of rows.
//!
//! A gambler starts with capital 1 and bets, row after row, that the mean loss is below a claimed value. If the claim is in
//! truth reached or exceeded, the capital is a non-negative supermartingale, so it ever reaches `1 / alpha` with probability
//! at most `alpha` (Ville's inequality). Each bet uses only rows before its own. Bets are the predictable plug-in of
//! Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024), equation 26.
//!
//! Rows that were recorded with unequal probabilities carry weights: a weighted loss has the sign of its mean where the
//! unweighted population has it, because a row recorded with probability `p` counts `least p / p`.

use super::bound::Evidence;

/// Bets never risk more than this share of the capital on one row.
const BOLDEST: f64 = 0.9;

/// What the variance of the gains is thought to be before any row is seen, and how many rows that thought is worth. Most
/// rows stay remote, so gains vary little; a wrong thought costs power, never validity.
const FIRST_VARIANCE: f64 = 0.03;
const FIRST_ROWS: f64 = 4.0;

/// Losses `target * large - routed`, within `[-1, target]`, at one threshold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Losses<'evidence> {
    /// In an order that does not depend on outcomes.
    pub evidence: &'evidence [Evidence],
    /// Scores at or above it are served by the small model.
    pub threshold: f64,
    /// Share of the large model's quality to keep.
    pub target: f64,
}

impl Losses<'_> {
    /// Gains `(target - loss) / (1 + target)`, within `[0, 1]`: the mean loss is at most `m` when the mean gain is at least
    /// the gain of `m`.
    fn gain(&self, loss: f64) -> f64 {
        (self.target - loss) / (1.0 + self.target)
    }

    /// Natural logarithm of the largest capital on the way, when the claimed mean loss is `mean` and `alpha` is aimed at.
    pub fn log_capital(&self, mean: f64, alpha: f64) -> f64 {
        let boundary = self.gain(mean).max(1e-9);
        let level = self.gain(0.0);
        let stake = -2.0 * alpha.ln() / (self.evidence.len() as f64).max(1.0);
        let (mut log, mut best) = (0.0_f64, 0.0_f64);
        let (mut sum, mut squares, mut seen) = (0.0, FIRST_VARIANCE * FIRST_ROWS, FIRST_ROWS);
        for row in self.evidence {
            let gain = self.gain(row.loss(self.threshold, self.target));
            let bet = (stake * seen / squares).sqrt().min(BOLDEST / boundary);
            log += (bet * row.weight * (gain - boundary)).ln_1p();
            best = best.max(log);
            // The spread is taken around a level that no claim moves, so that the capital rises with the claim.
            let moved = row.weight * (gain - level);
            sum += moved;
            seen += 1.0;
            let away = moved - sum / seen;
            squares += away * away;
        }
        best
    }

    /// Whether the claim that the mean loss exceeds `mean` is refuted at error probability `alpha`.
    pub fn mean_is_at_most(&self, mean: f64, alpha: f64) -> bool {
        self.log_capital(mean, alpha) >= -alpha.ln()
    }

    /// Upper confidence bound of the mean loss: every larger mean is refuted at `alpha`.
    pub fn upper_mean(&self, alpha: f64) -> f64 {
        let (mut low, mut high) = (-1.0, self.target);
        for _ in 0..40 {
            let middle = f64::midpoint(low, high);
            if self.mean_is_at_most(middle, alpha) {
                high = middle;
            } else {
                low = middle;
            }
        }
        high
    }
}
