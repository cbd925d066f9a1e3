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

/// Constant bets, as shares of the boldest that no single loss can turn into ruin.
const BETS: [f64; 8] = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9];

/// The running tests of one pair of models and one scorer.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveTest {
    promise: Promise,
    /// Natural logarithm of what a capital has to reach.
    needed: f64,
    thresholds: Vec<Running>,
    n: u64,
}

#[derive(Debug, Clone, PartialEq)]
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
        // A row is either served locally or not: two results of the bets for all thresholds.
        let results = |threshold: f64| {
            let gain = -row.weight * row.loss(threshold, target) / target;
            BETS.map(|bet| (bet * gain).ln_1p())
        };
        let (local, remote) = (results(0.0), results(f64::INFINITY));
        for running in &mut self.thresholds {
            let served = row.score >= running.threshold;
            for (log, result) in running.logs.iter_mut().zip(if served { local } else { remote }) {
                *log += result;
            }
            // The mixture is never above its best bet.
            if running.logs.iter().any(|log| *log > running.best) {
                let capital: f64 = running.logs.iter().map(|log| log.exp()).sum();
                running.best = running.best.max((capital / BETS.len() as f64).ln());
            }
            running.all += row.weight;
            running.local += if served { row.weight } else { 0.0 };
        }
        self.n += 1;
        Ok(())
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
    fn bad_rows_are_not_taken_in() {
        let mut test = LiveTest::new(PROMISE, 1).unwrap();
        let bad = Evidence { score: f64::NAN, small: 1.0, large: 1.0, weight: 1.0 };
        assert_eq!(test.observe(&bad), Err(BoundError::Evidence { place: 0 }));
        assert_eq!((test.n(), test.threshold()), (0, None));
        assert!(LiveTest::new(Promise { target: 2.0, ..PROMISE }, 1).is_err());
    }
}
