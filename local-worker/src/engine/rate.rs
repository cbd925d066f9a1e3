//! How fast the worker has been lately, and from that how long a request will take.

use std::time::Duration;

/// Weight of the newest observation.
const NEWEST: f64 = 0.2;

/// Moving averages over the latest steps and answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    /// Prompt tokens a second.
    pub prefill: f64,
    /// Output tokens a second, over all sequences.
    pub decode: f64,
    /// Output tokens of an answer.
    pub answer: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { prefill: 0.0, decode: 0.0, answer: 32.0 }
    }
}

/// Work that is accepted and not done.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Backlog {
    /// Requests waiting and running.
    pub requests: usize,
    /// Prompt tokens to be read.
    pub prompt: f64,
    /// Output tokens expected.
    pub output: f64,
}

impl Rates {
    /// A step took `seconds`. What each part took of a mixed one is not known, so both speeds are corrected alike by how far
    /// they were off together.
    pub fn observe_step(&mut self, prompt_rows: usize, output_rows: usize, seconds: f64) {
        let seconds = seconds.max(1e-9);
        let average = |old: &mut f64, rate: f64| *old = if *old == 0.0 { rate } else { *old + NEWEST * (rate - *old) };
        match (prompt_rows, output_rows) {
            (0, 0) => {}
            (rows, 0) => average(&mut self.prefill, rows as f64 / seconds),
            (0, rows) => average(&mut self.decode, rows as f64 / seconds),
            (prompts, outputs) if self.prefill > 0.0 && self.decode > 0.0 => {
                let expected = prompts as f64 / self.prefill + outputs as f64 / self.decode;
                let factor = 1.0 + NEWEST * (expected / seconds - 1.0);
                self.prefill *= factor;
                self.decode *= factor;
            }
            _ => {}
        }
    }

    /// An answer ended of itself after so many tokens.
    pub fn observe_answer(&mut self, output: u32) {
        self.answer += NEWEST * (f64::from(output) - self.answer);
    }

    /// Output tokens to be expected of a request that may have `most` and has `done`.
    pub fn expected_output(&self, most: u32, done: u32) -> f64 {
        let left = f64::from(most.saturating_sub(done));
        (self.answer - f64::from(done)).clamp(left.min(1.0), left)
    }

    /// Time to the end of an answer submitted now. With a place free it shares the worker with those that run; else all that
    /// was accepted before comes first.
    pub fn predict(&self, backlog: Backlog, places: usize, prompt: f64, output: f64) -> Duration {
        if self.prefill <= 0.0 || self.decode <= 0.0 {
            return Duration::ZERO;
        }
        let reading = (backlog.prompt + prompt) / self.prefill;
        let shared = output * (backlog.requests + 1) as f64;
        let everything = backlog.output + output;
        let writing = if backlog.requests < places { shared.min(everything) } else { everything };
        Duration::try_from_secs_f64(reading + writing / self.decode).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_follow_rates_and_backlog() {
        let mut rates = Rates::default();
        let empty = Backlog::default();
        assert_eq!(rates.predict(empty, 2, 100.0, 100.0), Duration::ZERO, "nothing measured, nothing claimed");
        rates.observe_step(100, 0, 0.1);
        rates.observe_step(0, 4, 0.04);
        rates.observe_step(50, 5, 0.1);
        assert_eq!((rates.prefill, rates.decode), (1000.0, 100.0), "a mixed step as expected");
        let mut slower = rates;
        slower.observe_step(50, 5, 0.2);
        assert!((slower.prefill - 900.0).abs() < 1e-9 && (slower.decode - 90.0).abs() < 1e-9, "{slower:?}");
        assert_eq!(rates.predict(empty, 2, 500.0, 50.0), Duration::from_secs(1));
        let running = Backlog { requests: 1, prompt: 0.0, output: 400.0 };
        assert_eq!(rates.predict(running, 2, 0.0, 50.0), Duration::from_secs(1), "two share");
        assert_eq!(rates.predict(running, 1, 0.0, 50.0), Duration::from_millis(4500), "one after the other");
        assert_eq!(rates.expected_output(1000, 0), 32.0);
        assert_eq!(rates.expected_output(10, 0), 10.0);
        assert_eq!(rates.expected_output(1000, 100), 1.0);
        rates.observe_answer(132);
        assert_eq!(rates.expected_output(1000, 0), 52.0);
    }
}
