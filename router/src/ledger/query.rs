//! What can be asked of the ledger.

use super::{LatencyHistogram, Story};
use crate::domain::{CostBasis, NanoUsd, Usage};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Which entries to list.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// Not before.
    pub from: Option<Timestamp>,
    /// Before.
    pub to: Option<Timestamp>,
    /// Only of this tenant; empty means all.
    pub tenant: String,
    /// Only of this route; empty means all.
    pub route: String,
    /// Only of this model; empty means all.
    pub model: String,
    /// Only of this policy; empty means all.
    pub policy: String,
    /// Only of this status; empty means all.
    pub status: String,
    /// Only with all these labels.
    pub labels: BTreeMap<String, String>,
    /// Most entries, 1..=1000.
    pub size: usize,
    /// Where the page before ended; empty for the first.
    pub page_token: String,
}

/// A page of entries, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The entries with their attempts and feedback.
    pub stories: Vec<Story>,
    /// Where to go on; empty at the end.
    pub next_page_token: String,
}

/// What to group sums by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GroupBy {
    /// One group.
    #[default]
    None,
    /// By tenant.
    Tenant,
    /// By route.
    Route,
    /// By model.
    Model,
    /// By policy.
    Policy,
    /// By the value of this label.
    Label(String),
}

/// What to sum up.
#[derive(Clone, Debug)]
pub struct SummaryQuery {
    /// Not before.
    pub from: Timestamp,
    /// Before.
    pub to: Timestamp,
    /// Width of a bucket; `None` is one bucket.
    pub bucket: Option<Duration>,
    /// What to group by.
    pub group_by: GroupBy,
    /// Only of this tenant; empty means all.
    pub tenant: String,
}

/// Sums of one bucket and group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Requests.
    pub requests: u64,
    /// Requests by status word.
    pub by_status: BTreeMap<String, u64>,
    /// Requests answered from the cache.
    pub cache_hits: u64,
    /// Tokens.
    pub usage: Usage,
    /// Cost by basis.
    pub cost: BTreeMap<CostBasis, NanoUsd>,
    /// What the first large model would have cost: an estimate.
    pub baseline: NanoUsd,
    /// Baseline − cost: an estimate.
    pub saved: NanoUsd,
    /// Processor time of local models, in seconds.
    pub cpu_seconds: f64,
    /// Shadow runs: they serve nobody and are no requests; what they used is in the sums.
    pub shadow_runs: u64,
    /// What they cost; part of `cost`.
    pub shadow_cost: NanoUsd,
    /// Latencies.
    pub latency: LatencyHistogram,
}

/// One bucket of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct SummaryRow {
    /// Start of the bucket.
    pub bucket: Timestamp,
    /// The group's value.
    pub group: String,
    /// The sums.
    pub summary: Summary,
}
