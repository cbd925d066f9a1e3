//! Certificates that are solved again and again while outcomes arrive.
//!
//! Solving a fixed-size test afresh at every new outcome would break its confidence: with enough tries one of them is wrong.
//! Here every threshold of the fixed grid keeps one capital for life, a test martingale. By Ville's inequality a capital whose
//! claim is false *ever* reaches `1 / alpha` with probability at most `alpha`, so it may be looked at after every outcome. The
//! fixed sequence makes one error probability do for all thresholds: a wrong certificate needs the first false threshold to
//! be proven, whenever that is. A proof is never taken back: it speaks about the traffic since the start, and whether that
//! traffic is still the same is the question of drift alarms.
//!
//! A new scorer gives the scores a new meaning and so starts anew; the k-th start may use `alpha / (k (k + 1))`, and these sum
//! to `alpha` over any number of starts.
//!
//! Bets are a fixed mixture of constant ones: no sample size need be known, and the order within a batch does not matter at
//! its end.

use super::bound::{BoundError, Evidence, Promise, grid};
use serde::{Deserialize, Serialize};

/// Constant bets, as shares of the boldest that no single loss can turn into ruin.
const BETS: [f64; 8] = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9];

/// A threshold counts as useful once this share of the outcomes is at or above it.
const USEFUL_SHARE: f64 = 0.05;

/// The running tests of one pair of models and one scorer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveTest {
    promise: Promise,
    /// Natural logarithm of what a capital has to reach.
    needed: f64,
    thresholds: Vec<Running>,
    n: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Running {
    threshold: f64,
    /// Log-capital of each constant bet.
    logs: [f64; BETS.len()],
    best: f64,
    /// Weight of the evidence that would be served locally.
    local: f64,
    all: f64,
}

impl LiveTest {
    /// Tests that know nothing yet. `start` counts from 1: how many scorers, this one with them, were tested for the promise.
    ///
    /// # Errors
    /// Target or confidence out of range.
    pub fn new(promise: Promise, start: u32) -> Result<Self, BoundError> {
        promise.check()?;
        let start = f64::from(start.max(1));
        let alpha = (1.0 - promise.confidence) / (start * (start + 1.0));
        let running = |threshold| Running { threshold, logs: [0.0; BETS.len()], best: 0.0, local: 0.0, all: 0.0 };
        Ok(Self { promise, needed: -alpha.ln(), thresholds: grid().map(running).collect(), n: 0 })
    }

    /// Takes in one outcome; outcomes are independent and come in an order that does not depend on their grades.
    ///
    /// # Errors
    /// Numbers out of range; nothing is taken in then.
    pub fn observe(&mut self, row: &Evidence) -> Result<(), BoundError> {
        row.check(usize::try_from(self.n).unwrap_or(usize::MAX))?;
        let target = self.promise.target;
        self.take(row.score, row.weight, row.loss(0.0, target), row.loss(f64::INFINITY, target));
        Ok(())
    }

    /// Takes in an outcome that was sampled and whose grades are not known, because an answer could not be had or compared:
    /// it counts as the worst that it can have been, served locally at every threshold or not, so that nothing is proven by
    /// leaving out what went wrong.
    pub fn observe_lost(&mut self) {
        self.take(1.0, 1.0, self.promise.target, 0.0);
    }

    /// A row is either served locally or not: two results of the bets for all thresholds.
    fn take(&mut self, score: f64, weight: f64, loss_local: f64, loss_remote: f64) {
        let target = self.promise.target;
        let results = |loss: f64| BETS.map(|bet| (bet * (-weight * loss / target)).ln_1p());
        let (local, remote) = (results(loss_local), results(loss_remote));
        for running in &mut self.thresholds {
            let served = score >= running.threshold;
            for (log, result) in running.logs.iter_mut().zip(if served { local } else { remote }) {
                *log += result;
            }
            // The mixture is never above its best bet.
            if running.logs.iter().any(|log| *log > running.best) {
                let capital: f64 = running.logs.iter().map(|log| log.exp()).sum();
                running.best = running.best.max((capital / BETS.len() as f64).ln());
            }
            running.all += weight;
            running.local += if served { weight } else { 0.0 };
        }
        self.n += 1;
    }

    /// The lowest threshold proven by now; `None` means all remote.
    pub fn threshold(&self) -> Option<f64> {
        let proven = self.thresholds.iter().take_while(|running| running.best >= self.needed).last()?;
        (proven.local > 0.0).then_some(proven.threshold)
    }

    /// Share of the outcomes so far at or above the proven threshold, in `[0, 1]`.
    pub fn local_share(&self) -> f64 {
        let threshold = self.threshold();
        let running = self.thresholds.iter().find(|running| Some(running.threshold) == threshold);
        running.map_or(0.0, |running| running.local / running.all)
    }

    /// Without a proven threshold: about how many more outcomes would prove a useful one if they went on as they did so far;
    /// `None` where they would not, or one is proven.
    pub fn needed(&self) -> Option<u64> {
        if self.threshold().is_some() {
            return None;
        }
        let n = self.n as f64;
        let mut most = 0;
        for running in &self.thresholds {
            // What an outcome adds to each bet: so far on average, or by the least varied evidence there is, rows that stay
            // remote and lose `-(1 - target)` each.
            let rates = match self.n {
                0 => BETS.map(|bet| (bet * (1.0 / self.promise.target - 1.0)).ln_1p()),
                _ => running.logs.map(|log| log / n),
            };
            most = most.max(self.enough(&rates)?.saturating_sub(self.n));
            if self.n == 0 || running.local >= USEFUL_SHARE * running.all {
                return Some(most.max(1));
            }
        }
        None
    }

    /// How many outcomes prove a threshold, if each adds so much to its bets; `None` if none do.
    fn enough(&self, rates: &[f64; BETS.len()]) -> Option<u64> {
        let proves = |n: u64| {
            let capital: f64 = rates.iter().map(|rate| (rate * n as f64).exp()).sum();
            (capital / BETS.len() as f64).ln() >= self.needed
        };
        let mut high = 1_u64;
        while !proves(high) {
            high = high.checked_mul(2).filter(|n| *n < 1 << 32)?;
        }
        let mut low = high / 2;
        while low + 1 < high {
            let middle = low.midpoint(high);
            if proves(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(high)
    }

    /// Upper bound of the mean loss at the proven threshold, at the test's own error probability, from the rows that it took
    /// in, in any order that does not depend on their grades. What the promise rests on is the test at 0 itself, so that the
    /// bound is at most 0.
    pub fn bound(&self, rows: &[Evidence]) -> f64 {
        let Some(threshold) = self.threshold() else { return self.promise.target };
        let (mut low, mut high) = (self.promise.target - 1.0, 0.0);
        for _ in 0..20 {
            let middle = f64::midpoint(low, high);
            if self.refutes(rows, threshold, middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        high
    }

    /// Whether a mean loss above `mean` is refuted at `threshold`.
    fn refutes(&self, rows: &[Evidence], threshold: f64, mean: f64) -> bool {
        let target = self.promise.target;
        let mut logs = [0.0_f64; BETS.len()];
        rows.iter().any(|row| {
            let gain = (mean - row.weight * row.loss(threshold, target)) / (target - mean);
            for (log, bet) in logs.iter_mut().zip(BETS) {
                *log += (bet * gain).ln_1p();
            }
            let capital: f64 = logs.iter().map(|log| log.exp()).sum();
            (capital / BETS.len() as f64).ln() >= self.needed
        })
    }

    /// Whether a test that was read back can be gone on with.
    pub fn is_sound(&self) -> bool {
        let running = |running: &Running| {
            let sums = [running.local, running.all, running.best];
            running.logs.iter().chain(&sums).all(|value| value.is_finite()) && running.local <= running.all
        };
        let grid = self.thresholds.iter().map(|running| running.threshold).eq(grid());
        self.promise.check().is_ok() && self.needed.is_finite() && grid && self.thresholds.iter().all(running)
    }

    /// Outcomes taken in.
    pub fn n(&self) -> u64 {
        self.n
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    const PROMISE: Promise = Promise { target: 0.9, confidence: 0.9 };

    /// Scores 0.9 (a third, always right) and 0.5, right so seldom that serving them breaks the promise by a little.
    fn draw(random: &mut StdRng) -> Evidence {
        let easy = random.random_bool(0.33);
        let right = easy || random.random_bool(0.84);
        Evidence { score: if easy { 0.9 } else { 0.5 }, small: f64::from(u8::from(right)), large: 1.0, weight: 1.0 }
    }

    #[test]
    fn looking_after_every_outcome_keeps_the_confidence() {
        const RUNS: u64 = 150;
        let (mut wrong, mut useful) = (0_u32, 0_u32);
        for seed in 0..RUNS {
            let mut random = StdRng::seed_from_u64(seed);
            let mut test = LiveTest::new(PROMISE, 1).unwrap();
            let mut ever = false;
            for _ in 0..600 {
                test.observe(&draw(&mut random)).unwrap();
                ever |= test.threshold().is_some_and(|threshold| threshold <= 0.5);
            }
            wrong += u32::from(ever);
            useful += u32::from(test.threshold().is_some() && (0.2..0.45).contains(&test.local_share()));
        }
        let allowed = 0.1 + 3.0 * (0.1_f64 * 0.9 / RUNS as f64).sqrt();
        assert!(f64::from(wrong) <= allowed * RUNS as f64, "{wrong} of {RUNS} were ever wrong");
        assert!(f64::from(useful) >= 0.75 * RUNS as f64, "{useful} of {RUNS} found what is safe");
    }

    #[test]
    fn later_starts_share_one_error_probability() {
        let spent: f64 = (1..=2000).map(|start| (-LiveTest::new(PROMISE, start).unwrap().needed).exp()).sum();
        assert!(spent <= 0.1 + 1e-12 && spent > 0.099, "{spent}");
    }

    #[test]
    fn it_says_how_many_more_are_needed_and_the_bound_is_below_zero_once_proven() {
        let mut test = LiveTest::new(PROMISE, 1).unwrap();
        let least = test.needed().unwrap();
        let mut rows = Vec::new();
        let mut random = StdRng::seed_from_u64(3);
        let mut foretold = None;
        while test.threshold().is_none() {
            let row = draw(&mut random);
            test.observe(&row).unwrap();
            rows.push(row);
            if rows.len() == 30 {
                foretold = test.needed();
            }
            assert!(rows.len() < 400);
        }
        assert!((10..=rows.len() as u64).contains(&least), "{least} at least, {} in the end", rows.len());
        let foretold = foretold.unwrap() as f64 + 30.0;
        assert!((0.5..2.0).contains(&(foretold / rows.len() as f64)), "{foretold} foretold, {} needed", rows.len());
        let bound = test.bound(&rows);
        assert!(bound <= 0.0 && bound > -0.05, "{bound}");
        assert_eq!(test.needed(), None);
        // What can't be proven needs no more of the same.
        let bad = Evidence { score: 0.7, small: 0.0, large: 1.0, weight: 1.0 };
        let mut test = LiveTest::new(PROMISE, 1).unwrap();
        (0..50).for_each(|_| test.observe(&bad).unwrap());
        assert_eq!(test.needed(), None);
    }

    #[test]
    fn what_was_lost_counts_as_wrong() {
        let good = Evidence { score: 0.9, small: 1.0, large: 1.0, weight: 1.0 };
        let (mut whole, mut torn) = (LiveTest::new(PROMISE, 1).unwrap(), LiveTest::new(PROMISE, 1).unwrap());
        for row in 0..80 {
            whole.observe(&good).unwrap();
            match row % 4 {
                0 => torn.observe_lost(),
                _ => torn.observe(&good).unwrap(),
            }
        }
        assert_eq!((whole.threshold(), torn.threshold()), (Some(0.0), None));
        assert!(torn.is_sound() && whole.is_sound());
        let text = serde_json::to_string(&whole).unwrap();
        assert_eq!(serde_json::from_str::<LiveTest>(&text).unwrap(), whole, "it goes on as it was");
    }

    #[test]
    fn bad_rows_are_not_taken_in() {
        let mut test = LiveTest::new(PROMISE, 1).unwrap();
        let bad = Evidence { score: f64::NAN, small: 1.0, large: 1.0, weight: 1.0 };
        assert_eq!(test.observe(&bad), Err(BoundError::Evidence { place: 0 }));
        assert_eq!((test.n(), test.threshold()), (0, None));
        assert!(LiveTest::new(Promise { target: 2.0, ..PROMISE }, 1).is_err());
    }
}
