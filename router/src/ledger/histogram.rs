//! A mergeable histogram of latencies: buckets that grow by 5 %, so that a quantile is at most 2.5 % off.

use std::collections::BTreeMap;

/// Growth from one bucket to the next.
const GROWTH: f64 = 1.05;

/// Counts by logarithmic bucket of milliseconds. Adding two is exact.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatencyHistogram {
    counts: BTreeMap<i32, u64>,
}

impl LatencyHistogram {
    /// Adds one latency in milliseconds; below a microsecond counts as one.
    pub fn record(&mut self, milliseconds: f64) {
        let bucket = (milliseconds.max(1e-3).ln() / GROWTH.ln()).floor() as i32;
        *self.counts.entry(bucket).or_default() += 1;
    }

    /// Adds all of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.counts {
            *self.counts.entry(*bucket).or_default() += count;
        }
    }

    /// The latency in milliseconds below which the share `quantile` lies: the geometric middle of its bucket; 0 if empty.
    pub fn quantile(&self, quantile: f64) -> f64 {
        let total: u64 = self.counts.values().sum();
        let rank = (quantile * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in &self.counts {
            seen += count;
            if seen >= rank {
                return GROWTH.powf(f64::from(*bucket) + 0.5);
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_the_stated_error_and_merging_is_exact() {
        let values: Vec<f64> = (1..=1000).map(|n| f64::from(n) * 0.37).collect();
        let (mut whole, mut odd, mut even) =
            (LatencyHistogram::default(), LatencyHistogram::default(), LatencyHistogram::default());
        for (index, value) in values.iter().enumerate() {
            whole.record(*value);
            if index % 2 == 0 { even.record(*value) } else { odd.record(*value) }
        }
        even.merge(&odd);
        assert_eq!(even, whole);
        for quantile in [0.01, 0.5, 0.9, 0.99] {
            let exact = values[(quantile * 1000.0_f64).ceil() as usize - 1];
            let error = (whole.quantile(quantile) / exact - 1.0).abs();
            assert!(error < 0.05, "{quantile}: {error}");
        }
        assert_eq!(LatencyHistogram::default().quantile(0.5), 0.0);
    }
}
