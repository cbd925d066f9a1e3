//! Ceilings on the mean cost of a request: each request of a policy earns its share, and paid attempts live on what was
//! earned.
//!
//! In each window, spent + held never passes the ceiling times the requests so far, however many race: so the mean cost of
//! a request never passes the ceiling, neither at the end of a window nor at any time within it. What a window did not
//! spend ends with it. Worst cases are held, so after a start or at the beginning of a window some requests have to be
//! served without money before the first can be paid for. One lock guards all accounts and is never held across an await.

use crate::domain::{Cost, NanoUsd};
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A ceiling on a mean cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// For 1,000 requests.
    pub per_1000: NanoUsd,
    /// Length of a window; windows begin at multiples of it since 1970-01-01 UTC.
    pub window: Duration,
}

impl Allowed {
    /// The first instant of the window that `at` falls in.
    pub fn window_start(&self, at: Timestamp) -> Timestamp {
        let window = i64::try_from(self.window.as_millis()).unwrap_or(i64::MAX).max(1);
        let start = at.as_millisecond().div_euclid(window).saturating_mul(window);
        Timestamp::from_millisecond(start).unwrap_or(at)
    }

    fn earned(&self, requests: u64) -> i128 {
        i128::from(self.per_1000.nanos()) * i128::from(requests) / 1_000
    }
}

/// What happened in a window; sums in nano-USD, wider than any amount.
#[derive(Clone, Copy, Debug)]
struct Account {
    start: Timestamp,
    requests: u64,
    spent: i128,
    held: i128,
}

/// There is no room for an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("max_cost leaves {left} of what {requests} requests earned, and this attempt needs up to {asked}")]
pub struct NoAllowance {
    /// What is left.
    pub left: NanoUsd,
    /// Requests of the window so far.
    pub requests: u64,
    /// What was asked.
    pub asked: NanoUsd,
}

/// The accounts of all policies with a ceiling, by name.
pub struct Allowances {
    accounts: Mutex<HashMap<String, Account>>,
    clock: fn() -> Timestamp,
}

impl Default for Allowances {
    fn default() -> Self {
        Self { accounts: Mutex::default(), clock: Timestamp::now }
    }
}

fn amount(nanos: i128) -> NanoUsd {
    NanoUsd::new(i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }))
}

impl Allowances {
    /// Empty accounts on another clock, for tests.
    pub fn with_clock(clock: fn() -> Timestamp) -> Self {
        Self { clock, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a policy's account of the current window.
    fn with<T>(&self, policy: &str, allowed: &Allowed, act: impl FnOnce(&mut Account) -> T) -> T {
        let start = allowed.window_start((self.clock)());
        let mut accounts = self.lock();
        let fresh = Account { start, requests: 0, spent: 0, held: 0 };
        let account = accounts.entry(policy.to_owned()).or_insert(fresh);
        // A clock that goes back does not open a window anew: what was spent in the later one still counts.
        if account.start < start {
            *account = fresh;
        }
        act(account)
    }

    /// Adds what the ledger says happened in the current window before this process started.
    pub fn restore(&self, policy: &str, allowed: &Allowed, requests: u64, spent: NanoUsd) {
        self.with(policy, allowed, |account| {
            account.requests += requests;
            account.spent += i128::from(spent.nanos());
        });
    }

    /// Counts a request that is being served.
    pub fn earn(&self, policy: &str, allowed: &Allowed) {
        self.with(policy, allowed, |account| account.requests += 1);
    }

    /// What one more request would find.
    pub fn left(&self, policy: &str, allowed: &Allowed) -> NanoUsd {
        self.with(policy, allowed, |account| {
            amount(allowed.earned(account.requests + 1) - account.spent - account.held)
        })
    }

    /// Holds the worst case of an attempt of a request that was counted.
    ///
    /// # Errors
    /// There is no room; nothing is held then.
    pub fn hold(
        self: &Arc<Self>,
        policy: &str,
        allowed: &Allowed,
        asked: NanoUsd,
    ) -> Result<AllowanceHold, NoAllowance> {
        let asked = asked.max(NanoUsd::ZERO);
        let nanos = i128::from(asked.nanos());
        let start = self.with(policy, allowed, |account| {
            let left = allowed.earned(account.requests) - account.spent - account.held;
            if nanos > left {
                return Err(NoAllowance { left: amount(left), requests: account.requests, asked });
            }
            account.held += nanos;
            Ok(account.start)
        })?;
        Ok(AllowanceHold {
            allowances: Arc::clone(self),
            policy: policy.to_owned(),
            start,
            amount: asked,
            settled: false,
        })
    }

    fn release(&self, policy: &str, start: Timestamp, held: NanoUsd, spent: NanoUsd) {
        let mut accounts = self.lock();
        // A hold of a window that is over was within what that one had earned.
        if let Some(account) = accounts.get_mut(policy).filter(|account| account.start == start) {
            account.held -= i128::from(held.nanos());
            account.spent += i128::from(spent.nanos());
        }
    }
}

/// Money held under a ceiling. Dropped without a word it is booked in full.
#[must_use = "a dropped hold is booked in full"]
pub struct AllowanceHold {
    allowances: Arc<Allowances>,
    policy: String,
    start: Timestamp,
    amount: NanoUsd,
    settled: bool,
}

impl AllowanceHold {
    /// Books the truth.
    pub fn settle(mut self, cost: Cost) {
        self.settled = true;
        self.allowances.release(&self.policy, self.start, self.amount, cost.amount);
    }
}

impl Drop for AllowanceHold {
    fn drop(&mut self) {
        if !self.settled {
            self.allowances.release(&self.policy, self.start, self.amount, self.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::CostBasis;
    use std::sync::atomic::{AtomicI64, Ordering};

    const ALLOWED: Allowed = Allowed { per_1000: NanoUsd::new(10_000), window: Duration::from_secs(60) };

    fn cost(nanos: i64) -> Cost {
        Cost { amount: NanoUsd::new(nanos), basis: CostBasis::Reported }
    }

    #[test]
    fn spending_lives_on_what_requests_earned() {
        let allowances = Arc::new(Allowances::with_clock(|| Timestamp::from_second(1_000).unwrap()));
        assert_eq!(allowances.left("p", &ALLOWED).nanos(), 10, "what the next request would bring");
        assert!(allowances.hold("p", &ALLOWED, NanoUsd::new(1)).is_err(), "nobody was counted yet");
        for _ in 0..10 {
            allowances.earn("p", &ALLOWED);
        }
        let hold = allowances.hold("p", &ALLOWED, NanoUsd::new(70)).unwrap();
        let refused = allowances.hold("p", &ALLOWED, NanoUsd::new(31)).err().unwrap();
        assert_eq!((refused.left.nanos(), refused.requests), (30, 10));
        hold.settle(cost(20));
        assert_eq!(allowances.left("p", &ALLOWED).nanos(), 90);
        drop(allowances.hold("p", &ALLOWED, NanoUsd::new(50)).unwrap());
        assert_eq!(allowances.left("p", &ALLOWED).nanos(), 40, "dropped is booked in full");
        assert_eq!(allowances.left("q", &ALLOWED).nanos(), 10, "another policy has its own");
        allowances.restore("q", &ALLOWED, 100, NanoUsd::new(600));
        assert_eq!(allowances.left("q", &ALLOWED).nanos(), 410);
    }

    #[test]
    fn a_window_ends_with_what_it_did_not_spend() {
        static NOW: AtomicI64 = AtomicI64::new(119);
        let allowances =
            Arc::new(Allowances::with_clock(|| Timestamp::from_second(NOW.load(Ordering::Relaxed)).unwrap()));
        for _ in 0..10 {
            allowances.earn("p", &ALLOWED);
        }
        let hold = allowances.hold("p", &ALLOWED, NanoUsd::new(100)).unwrap();
        NOW.store(120, Ordering::Relaxed);
        assert_eq!(allowances.left("p", &ALLOWED).nanos(), 10);
        hold.settle(cost(100));
        assert_eq!(allowances.left("p", &ALLOWED).nanos(), 10, "the old window paid");
        // The clock goes back: the window that was open stays open.
        allowances.earn("p", &ALLOWED);
        NOW.store(60, Ordering::Relaxed);
        assert_eq!(allowances.left("p", &ALLOWED).nanos(), 20);
    }

    #[test]
    fn the_mean_never_passes_the_ceiling_however_many_race() {
        let allowances = Arc::new(Allowances::with_clock(|| Timestamp::from_second(1_000).unwrap()));
        let spent: Vec<(i64, i64)> = std::thread::scope(|scope| {
            let worker = |worker: i64| {
                let allowances = Arc::clone(&allowances);
                scope.spawn(move || {
                    let (mut requests, mut spent) = (0, 0);
                    for round in 0..500 {
                        allowances.earn("p", &ALLOWED);
                        requests += 1;
                        let asked = 7 + (worker * 13 + round * 5) % 60;
                        if let Ok(hold) = allowances.hold("p", &ALLOWED, NanoUsd::new(asked)) {
                            hold.settle(cost(asked - round % 3));
                            spent += asked - round % 3;
                        }
                    }
                    (requests, spent)
                })
            };
            let workers: Vec<_> = (0..8).map(worker).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        let (requests, spent) = spent.iter().fold((0, 0), |(r, s), (requests, spent)| (r + requests, s + spent));
        assert_eq!(requests, 4_000);
        assert!(spent <= 10 * requests && spent > 9 * requests, "{spent} of {}", 10 * requests);
    }
}
