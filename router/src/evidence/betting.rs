//! Bets against the mean of bounded losses being large: upper bounds that hold after any number of rows.
//!
//! A gambler starts with capital 1 and bets, row after row, that the mean loss is below a claimed value. If the claim is in
//! truth reached or exceeded, the capital is a non-negative supermartingale, so it ever reaches `1 / alpha` with probability
//! at most `alpha` (Ville's inequality). Any bets do that use only rows before their own and cannot ruin.
//!
//! How large to bet decides how little evidence is enough. The number of rows is known, and nothing is gained by ending
//! above `1 / alpha` or by ending a little below it; so each bet aims at reaching exactly that with the rows that are left,
//! as one would hedge an option that pays `1 / alpha` or nothing. Bets that aim anew at every row are those of STaR-Bets
//! (Voráček and Orabona, 2025). Against plug-in bets that aim once (Waudby-Smith and Ramdas, "Estimating means of bounded
//! random variables by betting", 2024) this takes about half as many rows.
//!
//! Rows that were recorded with unequal probabilities carry weights: a weighted loss has the sign of its mean where the
//! unweighted population has it, because a row recorded with probability `p` counts `least p / p`.

use super::bound::Evidence;

/// Bets never risk more than this share of the capital on one row.
const BOLDEST: f64 = 0.9;

/// What the variance of the gains is thought to be before any row is seen, and how many rows that thought is worth. Most
/// rows stay remote, so gains vary little; a wrong thought costs power, never validity.
const FIRST_VARIANCE: f64 = 0.03;
const FIRST_ROWS: f64 = 20.0;

/// Bets aim at `exp(OVERSHOOT) / alpha`: whoever aims at the mark itself comes to rest just below it.
const OVERSHOOT: f64 = 0.1;

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

    /// Whether the claim that the mean loss exceeds `mean` is refuted at error probability `alpha`: whether the capital ever
    /// reaches `1 / alpha`.
    pub fn mean_is_at_most(&self, mean: f64, alpha: f64) -> bool {
        let boundary = self.gain(mean).max(1e-9);
        // Natural logarithm of what the capital has yet to be multiplied by.
        let mut missing = -alpha.ln();
        let mut left = self.evidence.len() as f64;
        let (mut sum, mut squares, mut seen) = (0.0, FIRST_VARIANCE * FIRST_ROWS, FIRST_ROWS);
        for row in self.evidence {
            let moved = row.weight * (self.gain(row.loss(self.threshold, self.target)) - boundary);
            let deviation = (squares / seen * left).sqrt();
            missing -= (aim(missing + OVERSHOOT) / deviation).min(BOLDEST / boundary).mul_add(moved, 1.0).ln();
            if missing <= 0.0 {
                return true;
            }
            left -= 1.0;
            sum += moved;
            seen += 1.0;
            let away = moved - sum / seen;
            squares += away * away;
        }
        false
    }

    /// Mean and variance of the weighted losses.
    pub fn moments(&self) -> (f64, f64) {
        let n = (self.evidence.len() as f64).max(1.0);
        let losses = || self.evidence.iter().map(|row| row.weight * row.loss(self.threshold, self.target));
        let mean = losses().sum::<f64>() / n;
        (mean, losses().map(|loss| (loss - mean).powi(2)).sum::<f64>() / n)
    }

    /// Upper confidence bound of the mean loss, by bisection: the claim above which all are refuted. What the promise rests
    /// on is the test at 0 itself.
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

/// The bet, times the standard deviation of all that is to come, when the capital is `exp(-missing)` of the aim: the hedge of a digital option, `phi(d) / Phi(d)` with `Phi(d) = exp(-missing)`, within 4 % for shares of 0.001 to 0.5.
fn aim(missing: f64) -> f64 {
    let x = (2.0 * missing).sqrt();
    x * x / (x + 0.5)
}
