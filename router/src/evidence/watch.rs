//! Whether a promise that was proven once is still kept: graded requests go in one by one, an alarm and an interval come out.
//!
//! Both may be looked at after every request. The alarm bets against "the promise is kept at each request": under it no bet
//! gains on average, so the capital ever reaches `1 / alpha` with probability at most `alpha` (Ville's inequality). A capital
//! that has shrunk through a long good time would take as long to notice a bad one; so a new gambler sits down every
//! [`SIT_DOWN`] requests with the share `1 / (k (k + 1))` of the stake, which adds up to one over any number of them (a
//! mixture of restarts, as in "E-detectors", Shin, Ramdas and Rinaldo, 2022). What is paid for that is `2 ln k` of evidence.
//!
//! The interval of the realised share of quality is the set of shares that no capital has refuted, from both sides
//! (Waudby-Smith and Ramdas, 2024, for the mean of `share * large - routed`). It speaks of all requests since the start.
//!
//! Bets are constant ones, mixed: nothing has to be known beforehand. This module knows no policies and no clocks.

use serde::{Deserialize, Serialize};

/// Constant bets, as shares of the boldest that no single request can turn into ruin.
const BETS: [f64; 6] = [0.03, 0.08, 0.18, 0.35, 0.6, 0.9];

/// Requests after which the next gambler sits down.
pub const SIT_DOWN: u64 = 25;

/// Shares of the large model's quality that the interval tells apart: from 0.50 to 1.20 in hundredths.
const FIRST_SHARE: u32 = 50;
const SHARES: usize = 71;

/// One served request whose two answers were graded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Graded {
    /// Quality of the small model's answer, in `[0, 1]`.
    pub small: f64,
    /// Quality of the large model's answer, in `[0, 1]`.
    pub large: f64,
    /// Whether the small model's answer was the one shown.
    pub local: bool,
}

impl Graded {
    fn routed(&self) -> f64 {
        if self.local { self.small } else { self.large }
    }

    /// `share * large - routed`: above 0 on average where less than `share` of the large model's quality is kept.
    fn loss(&self, share: f64) -> f64 {
        share * self.large - self.routed()
    }

    fn is_sound(&self) -> bool {
        [self.small, self.large].iter().all(|quality| (0.0..=1.0).contains(quality))
    }
}

/// Bets that a promise is broken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    target: f64,
    /// Probability of ever ringing although the promise is kept.
    alpha: f64,
    /// What the gamblers at the table own, for each bet.
    capitals: [f64; BETS.len()],
    n: u64,
    rang: bool,
}

impl Alarm {
    /// An alarm that knows nothing yet. `start` counts from 1: the k-th alarm for one promise may use `alpha / (k (k + 1))`,
    /// and these add up to `alpha` over any number of starts.
    pub fn new(target: f64, alpha: f64, start: u32) -> Self {
        let start = f64::from(start.max(1));
        Self { target, alpha: alpha / (start * (start + 1.0)), capitals: [0.0; BETS.len()], n: 0, rang: false }
    }

    /// Takes in one graded request; qualities out of range are passed over. Returns whether the alarm has ever rung.
    pub fn observe(&mut self, graded: &Graded) -> bool {
        if !graded.is_sound() {
            return self.rang;
        }
        let newcomer = (self.n.is_multiple_of(SIT_DOWN)).then(|| stake(self.n / SIT_DOWN + 1));
        let loss = graded.loss(self.target);
        for (capital, bet) in self.capitals.iter_mut().zip(BETS) {
            *capital = (*capital + newcomer.unwrap_or(0.0)) * bet.mul_add(loss, 1.0);
        }
        self.n += 1;
        self.rang |= self.capital() >= 1.0 / self.alpha;
        self.rang
    }

    /// What all gamblers own together, those who are still to sit down included; 1 at the start.
    pub fn capital(&self) -> f64 {
        let seated = self.n.div_ceil(SIT_DOWN);
        self.capitals.iter().sum::<f64>() / BETS.len() as f64 + 1.0 / (seated + 1) as f64
    }

    /// Whether the alarm has ever rung.
    pub fn rang(&self) -> bool {
        self.rang
    }

    /// Graded requests taken in.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Whether a value that was read back can be gone on with.
    pub fn is_sound(&self) -> bool {
        let probability = self.alpha > 0.0 && self.alpha < 1.0;
        probability && (0.0..=1.0).contains(&self.target) && self.capitals.iter().all(|c| c.is_finite() && *c >= 0.0)
    }
}

/// Share of the whole stake that the `k`-th gambler brings.
fn stake(k: u64) -> f64 {
    1.0 / (k as f64 * (k + 1) as f64)
}

/// The share of the large model's quality that was kept, as an interval that holds at all times together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptQuality {
    alpha: f64,
    /// Of each share, log-capitals of the bets that less, and that more, is kept.
    less: Vec<[f64; BETS.len()]>,
    more: Vec<[f64; BETS.len()]>,
    /// Shares ever refuted: the truth is below, above.
    below: Vec<bool>,
    above: Vec<bool>,
    routed: f64,
    large: f64,
    n: u64,
}

/// An interval and what lies in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeptShare {
    /// Kept so far: sum of qualities shown over the sum of the large model's.
    pub value: f64,
    /// Lower end; 0 where nothing is refuted from below.
    pub low: f64,
    /// Upper end; 1.2 stands for that much or more.
    pub high: f64,
    /// Graded requests.
    pub n: u64,
}

impl KeptQuality {
    /// An interval that knows nothing and will hold with probability `1 - alpha`.
    pub fn new(alpha: f64) -> Self {
        let logs = vec![[0.0; BETS.len()]; SHARES];
        let refuted = vec![false; SHARES];
        Self {
            alpha,
            less: logs.clone(),
            more: logs,
            below: refuted.clone(),
            above: refuted,
            routed: 0.0,
            large: 0.0,
            n: 0,
        }
    }

    /// Takes in one graded request; qualities out of range are passed over.
    pub fn observe(&mut self, graded: &Graded) {
        if !graded.is_sound() {
            return;
        }
        let needed = 2.0 / self.alpha;
        for place in 0..SHARES {
            let share = share(place);
            // Within [-1, share]: neither side can be ruined.
            let loss = graded.loss(share);
            let sides =
                [(&mut self.less, &mut self.below, loss), (&mut self.more, &mut self.above, -loss / share.max(1.0))];
            for (logs, refuted, gain) in sides {
                let (Some(logs), Some(refuted)) = (logs.get_mut(place), refuted.get_mut(place)) else { continue };
                for (log, bet) in logs.iter_mut().zip(BETS) {
                    *log += (bet * gain).ln_1p();
                }
                *refuted |= logs.iter().map(|log| log.exp()).sum::<f64>() / BETS.len() as f64 >= needed;
            }
        }
        self.routed += graded.routed();
        self.large += graded.large;
        self.n += 1;
    }

    /// What is known by now; `None` before the first graded request, or while the large model got no grade above 0.
    pub fn share(&self) -> Option<KeptShare> {
        let value = (self.large > 0.0).then(|| self.routed / self.large)?;
        let above = self.above.iter().take_while(|refuted| **refuted).count();
        let below = self.below.iter().rev().take_while(|refuted| **refuted).count();
        let low = if above == 0 { 0.0 } else { share(above - 1) };
        let high = if below == 0 { share(SHARES - 1) } else { share(SHARES - below) };
        // Where quality changed meanwhile, both ends may be refuted by different times: the wider reading is told.
        Some(KeptShare { value, low: low.min(high), high: high.max(low), n: self.n })
    }

    /// Whether a value that was read back can be gone on with.
    pub fn is_sound(&self) -> bool {
        let lengths = [self.less.len(), self.more.len(), self.below.len(), self.above.len()];
        let numbers = self.less.iter().chain(&self.more).flatten().all(|log| log.is_finite());
        let sums = self.routed.is_finite() && self.large.is_finite();
        lengths == [SHARES; 4] && numbers && sums && self.alpha > 0.0 && self.alpha < 1.0
    }
}

fn share(place: usize) -> f64 {
    (f64::from(FIRST_SHARE) + place as f64) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Half of the requests are served locally, right with probability `right`; the large model is right nine times in ten.
    fn draw(random: &mut StdRng, right: f64) -> Graded {
        let grade = |random: &mut StdRng, right: f64| f64::from(u8::from(random.random_bool(right)));
        let local = random.random_bool(0.5);
        Graded { small: grade(random, if local { right } else { 0.3 }), large: grade(random, 0.9), local }
    }

    /// `0.5 * right + 0.5 * 0.9` of 0.9.
    fn truth(right: f64) -> f64 {
        f64::midpoint(right, 0.9) / 0.9
    }

    #[test]
    fn a_promise_that_is_just_kept_seldom_rings() {
        const RUNS: u64 = 200;
        // 0.81 of 0.9 is just nine tenths of the large model's quality.
        let rang = (0..RUNS).filter(|seed| {
            let mut random = StdRng::seed_from_u64(*seed);
            let mut alarm = Alarm::new(0.9, 0.05, 1);
            (0..1_500).any(|_| alarm.observe(&draw(&mut random, 0.72)))
        });
        let rang = rang.count() as f64;
        assert!((truth(0.72) - 0.9).abs() < 1e-12);
        let allowed = 0.05 + 3.0 * (0.05_f64 * 0.95 / RUNS as f64).sqrt();
        assert!(rang <= allowed * RUNS as f64, "{rang} of {RUNS} rang");
    }

    #[test]
    fn a_drop_is_noticed_after_a_long_good_time() {
        const RUNS: u64 = 60;
        let mut delays: Vec<u32> = (0..RUNS)
            .map(|seed| {
                let mut random = StdRng::seed_from_u64(seed);
                let mut alarm = Alarm::new(0.9, 0.05, 1);
                assert!(!(0..1_000).any(|_| alarm.observe(&draw(&mut random, 0.9))), "it rang in good times");
                (1..2_000).find(|_| alarm.observe(&draw(&mut random, 0.4))).unwrap_or(2_000)
            })
            .collect();
        delays.sort_unstable();
        let (median, late) = (delays[30], delays[57]);
        assert!(median < 250 && late < 500, "half after {median}, 95 % after {late}");
    }

    #[test]
    fn the_interval_holds_at_all_times_and_narrows() {
        const RUNS: u64 = 40;
        let truth = truth(0.8);
        let (mut missed, mut widths) = (0, 0.0);
        for seed in 0..RUNS {
            let mut random = StdRng::seed_from_u64(seed);
            let mut kept = KeptQuality::new(0.1);
            let mut ever = false;
            for row in 0..600 {
                kept.observe(&draw(&mut random, 0.8));
                let Some(share) = kept.share() else { continue };
                ever |= row % 20 == 0 && (share.low > truth || share.high < truth);
            }
            let share = kept.share().unwrap();
            missed += u32::from(ever);
            widths += (share.high - share.low) / RUNS as f64;
            assert!((share.value - truth).abs() < 0.08 && share.n == 600);
        }
        assert!(f64::from(missed) <= (0.1 + 3.0 * (0.09_f64 / RUNS as f64).sqrt()) * RUNS as f64, "{missed} missed");
        assert!(widths < 0.3, "{widths} wide");
    }

    #[test]
    fn grades_out_of_range_are_passed_over_and_damage_is_seen() {
        let (mut alarm, mut kept) = (Alarm::new(0.9, 0.05, 1), KeptQuality::new(0.05));
        assert!((alarm.capital() - 1.0).abs() < 1e-12);
        for small in [f64::NAN, 1.5, -0.1] {
            let graded = Graded { small, large: 1.0, local: true };
            assert!(!alarm.observe(&graded));
            kept.observe(&graded);
        }
        assert_eq!((alarm.n(), kept.share()), (0, None));
        assert!(alarm.is_sound() && kept.is_sound());
        alarm.capitals[0] = f64::NAN;
        kept.less.pop();
        assert!(!alarm.is_sound() && !kept.is_sound());
    }

    #[test]
    fn later_starts_share_one_error_probability() {
        let spent: f64 = (1..=2000).map(|start| Alarm::new(0.9, 0.05, start).alpha).sum();
        assert!(spent <= 0.05 + 1e-12 && spent > 0.0499, "{spent}");
    }
}
