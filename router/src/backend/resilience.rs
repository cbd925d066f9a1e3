//! Whether and when another attempt is worth it ([`RetryPolicy`], a pure function), and whether a backend is worth asking at
//! all ([`Breaker`]). Neither makes a call: each attempt is the gateway's, with a hold and a ledger row of its own.
//!
//! Time is tokio's, so that tests can stop it.

use super::BackendError;
use rand::Rng;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// When to try again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts at one backend, the first included; at least 1.
    pub max_attempts: u32,
    /// Upper end of the first delay; doubles with each attempt.
    pub base_delay: Duration,
    /// No delay of our own making is longer.
    pub max_delay: Duration,
    /// A `Retry-After` longer than this is not waited for: falling back is quicker.
    pub max_retry_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            base_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(5),
            max_retry_after: Duration::from_secs(20),
        }
    }
}

impl RetryPolicy {
    /// How long to wait before another attempt at the same backend, `attempts` having been made and the last one having
    /// failed with `error`; `None` if there should be none. `remaining` is the time to the caller's deadline.
    ///
    /// The delay is drawn evenly from 0 to `base_delay` · 2^(attempts − 1), at most `max_delay` (exponential backoff with full
    /// jitter, which spreads callers best: AWS Architecture Blog, "Exponential Backoff And Jitter"); a `Retry-After` is waited
    /// for in full, and the jitter comes on top, so that all who were told the same second don't return in it.
    pub fn next_delay(
        &self,
        error: &BackendError,
        attempts: u32,
        remaining: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Option<Duration> {
        if !error.is_retryable() || attempts >= self.max_attempts {
            return None;
        }
        let asked = error.retry_after().unwrap_or_default();
        if asked > self.max_retry_after {
            return None;
        }
        let doublings = attempts.saturating_sub(1).min(30);
        let ceiling = self.base_delay.saturating_mul(1 << doublings).min(self.max_delay);
        let delay = asked.saturating_add(ceiling.mul_f64(rng.random::<f64>()));
        remaining.is_none_or(|remaining| delay < remaining).then_some(delay)
    }
}

/// When a breaker opens and closes.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerConfig {
    /// How far back calls count.
    pub window: Duration,
    /// It stays closed before so many calls have ended within the window; at least 1.
    pub min_calls: usize,
    /// It opens when this share of the calls in the window has failed; (0, 1].
    pub failure_ratio: f64,
    /// How long it stays open the first time; doubles each time its probe fails.
    pub open_for: Duration,
    /// It never stays open longer.
    pub max_open_for: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            min_calls: 5,
            failure_ratio: 0.5,
            open_for: Duration::from_secs(5),
            max_open_for: Duration::from_secs(60),
        }
    }
}

/// Calls remembered at most; older ones fall out of the window early.
const MAX_REMEMBERED: usize = 256;

/// Keeps calls away from a backend that keeps failing. Closed it lets all through; open it lets none; after a while one probe
/// may try (half open), whose end decides.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ended: VecDeque<(Instant, bool)>,
    /// Set while open or half open: when a probe may go.
    opens_until: Option<Instant>,
    /// Times it opened since it was last closed.
    openings: u32,
    probing: bool,
}

/// Leave for one call. Tell it how the call ended; dropped without a word, it counts neither way.
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    probe: bool,
    reported: bool,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(config: BreakerConfig) -> Arc<Self> {
        Arc::new(Self { config, state: Mutex::default() })
    }

    /// Leave for one call, or how long to stay away.
    ///
    /// # Errors
    /// The time until a probe may go; zero while one is under way.
    pub fn admit(self: &Arc<Self>) -> Result<Permit, Duration> {
        let mut state = self.lock();
        let probe = match state.blocked_for() {
            Some(wait) => return Err(wait),
            None => state.opens_until.is_some(),
        };
        state.probing = probe;
        Ok(Permit { breaker: self.clone(), probe, reported: false })
    }

    /// How long calls are kept away from now on; `None` if the next one is let through.
    pub fn blocked_for(&self) -> Option<Duration> {
        self.lock().blocked_for()
    }

    fn report(&self, probe: bool, succeeded: bool) {
        let now = Instant::now();
        let mut state = self.lock();
        if probe {
            state.probing = false;
            if succeeded {
                *state = State::default();
            } else {
                self.open(&mut state, now);
            }
            return;
        }
        if state.opens_until.is_some() {
            return; // a call from before it opened: its end is old news
        }
        state.ended.push_back((now, succeeded));
        let window = self.config.window;
        while state.ended.len() > MAX_REMEMBERED
            || state.ended.front().is_some_and(|(then, _)| now.duration_since(*then) > window)
        {
            state.ended.pop_front();
        }
        let failures = state.ended.iter().filter(|(_, succeeded)| !succeeded).count();
        let enough = state.ended.len() >= self.config.min_calls.max(1);
        if enough && failures as f64 >= self.config.failure_ratio * state.ended.len() as f64 && failures > 0 {
            self.open(&mut state, now);
        }
    }

    fn open(&self, state: &mut State, now: Instant) {
        let doubled = self.config.open_for.saturating_mul(1 << state.openings.min(20));
        state.opens_until = Some(now + doubled.min(self.config.max_open_for));
        state.openings = state.openings.saturating_add(1);
        state.ended.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn blocked_for(&self) -> Option<Duration> {
        let until = self.opens_until?;
        let wait = until.saturating_duration_since(Instant::now());
        (self.probing || !wait.is_zero()).then_some(wait)
    }
}

impl Permit {
    /// The call ended well.
    pub fn succeeded(mut self) {
        self.reported = true;
        self.breaker.report(self.probe, true);
    }

    /// The call ended with `error`, which counts as a failure only if it is the backend's fault; a refusal proves that the
    /// backend is there.
    pub fn failed(mut self, error: &BackendError) {
        self.reported = true;
        self.breaker.report(self.probe, !error.is_backend_fault());
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.probe && !self.reported {
            self.breaker.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::TimeoutStage;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn down() -> BackendError {
        BackendError::Unavailable { why: "down".to_owned(), retry_after: None, sent: false }
    }

    #[test]
    fn delays_grow_with_jitter_and_respect_everyone() {
        let policy = RetryPolicy { max_attempts: 6, ..RetryPolicy::default() };
        let mut rng = StdRng::seed_from_u64(7);
        for (attempts, ceiling) in [(1, 200), (2, 400), (3, 800), (5, 3_200)] {
            let delays: Vec<Duration> =
                (0..200).filter_map(|_| policy.next_delay(&down(), attempts, None, &mut rng)).collect();
            let ceiling = Duration::from_millis(ceiling);
            assert_eq!(delays.len(), 200);
            assert!(delays.iter().all(|delay| *delay <= ceiling), "{attempts}");
            assert!(delays.iter().any(|delay| *delay > ceiling / 2), "{attempts}");
            assert!(delays.iter().any(|delay| *delay < ceiling / 2), "{attempts}");
        }
        assert_eq!(policy.next_delay(&down(), 6, None, &mut rng), None);
        assert_eq!(policy.next_delay(&down(), 1, Some(Duration::ZERO), &mut rng), None);
        let told = |seconds| BackendError::RateLimited { retry_after: Some(Duration::from_secs(seconds)) };
        let delay = policy.next_delay(&told(3), 1, None, &mut rng).unwrap();
        assert!(delay >= Duration::from_secs(3) && delay <= Duration::from_millis(3_200));
        assert_eq!(policy.next_delay(&told(3), 1, Some(Duration::from_secs(2)), &mut rng), None);
        assert_eq!(policy.next_delay(&told(3_600), 1, None, &mut rng), None);
        let rejected = BackendError::Rejected { status: 400, message: String::new() };
        assert_eq!(policy.next_delay(&rejected, 1, None, &mut rng), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_opens_probes_and_closes() {
        let breaker = Breaker::new(BreakerConfig { min_calls: 4, ..BreakerConfig::default() });
        for _ in 0..2 {
            breaker.admit().unwrap().succeeded();
        }
        breaker.admit().unwrap().failed(&down());
        assert_eq!(breaker.blocked_for(), None, "three calls are too few");
        breaker.admit().unwrap().failed(&BackendError::Timeout { stage: TimeoutStage::Idle, usage: None });
        assert_eq!(breaker.blocked_for(), Some(Duration::from_secs(5)), "two of four failed");
        assert_eq!(breaker.admit().unwrap_err(), Duration::from_secs(5));

        tokio::time::advance(Duration::from_secs(5)).await;
        let probe = breaker.admit().unwrap();
        assert!(breaker.admit().is_err(), "one probe at a time");
        probe.failed(&down());
        assert_eq!(breaker.blocked_for(), Some(Duration::from_secs(10)), "open twice as long");

        tokio::time::advance(Duration::from_secs(10)).await;
        drop(breaker.admit().unwrap());
        breaker.admit().unwrap().succeeded();
        assert_eq!(breaker.blocked_for(), None);
        breaker.admit().unwrap().failed(&down());
        assert_eq!(breaker.blocked_for(), None, "the past is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn old_failures_and_refusals_do_not_count() {
        let breaker = Breaker::new(BreakerConfig { min_calls: 2, ..BreakerConfig::default() });
        breaker.admit().unwrap().failed(&down());
        tokio::time::advance(Duration::from_secs(31)).await;
        let refusal = BackendError::Rejected { status: 400, message: String::new() };
        for _ in 0..10 {
            breaker.admit().unwrap().failed(&refusal);
            breaker.admit().unwrap().failed(&BackendError::RateLimited { retry_after: None });
        }
        assert_eq!(breaker.blocked_for(), None);
    }
}
