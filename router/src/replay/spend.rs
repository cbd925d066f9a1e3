//! The threshold of a `max-quality` policy, solved from recorded requests: what each would cost at every threshold, asked of
//! the policy itself, and the highest one that is proven to stay under the ceiling.
//!
//! What a route cost where it was taken is taken from the record; elsewhere a large model costs what its prices say, scaled
//! to what it did cost, and a small one the mean of what its escalations did cost. One request stands for its conversation,
//! chosen by a hash, and weighs as much as there are requests in it.

use super::ReplayError;
use super::log::{Log, Logged};
use super::redecide::{Prepared, Redecision, Target, Unusable};
use crate::domain::ModelId;
use crate::evidence::spending::{SPENDING_SCHEMA, SpendingCertificate, Spent, solve};
use crate::policy::{CostCeiling, Objective};
use std::collections::BTreeMap;

/// Thresholds that are tried, from 0 in steps of one by this: fixed, so that nobody can pick a grid that suits the data.
const STEPS: u32 = 200;

/// A request with what it would cost.
struct Row<'a> {
    logged: &'a Logged,
    prepared: Prepared,
    weight: f64,
}

/// What routes cost.
struct Costs {
    /// What a large model did cost over what prices said, by model.
    scales: BTreeMap<ModelId, f64>,
    /// Mean cost of requests decided local: of what escalated.
    local: f64,
}

/// Solves the threshold of a policy with a ceiling on cost. `date` is today, `YYYY-MM-DD`.
///
/// # Errors
/// A policy without a ceiling, no scorer for its models, or no request that can be decided again.
pub fn spend(target: &Target<'_>, log: &Log, date: String) -> Result<SpendingCertificate, ReplayError> {
    let policy = target.policy;
    let name = || policy.reference.name.clone();
    let Objective::MaxQuality(ceiling) = policy.objective else { return Err(ReplayError::NoCeiling(name())) };
    let pair = policy.small.first().zip(policy.large.first());
    let (small, large) = pair.ok_or_else(|| ReplayError::NoScorer(name()))?;
    let scorer = policy.scorer(small, target.scorers, target.catalog).ok_or_else(|| ReplayError::NoScorer(name()))?;
    let rows = representatives(target, &log.rows)?;
    let costs = Costs::of(target, &log.rows);
    let most = rows.iter().map(|row| row.prepared.worst_usd().max(row.logged.cost_usd)).fold(0.0, f64::max);
    let at = |threshold: f64| -> Vec<Option<Redecision>> {
        rows.iter().map(|row| target.redecide_at(&row.prepared, Some(threshold)).ok()).collect()
    };
    let step = |step: u32| {
        let threshold = f64::from(step) / f64::from(STEPS);
        let decided = at(threshold);
        let spent = rows.iter().zip(&decided).map(|(row, decided)| Spent {
            usd: decided.as_ref().map_or(0.0, |decided| costs.expected(row.logged, decided)),
            weight: row.weight,
        });
        (threshold, spent.collect())
    };
    let CostCeiling { per_1000, confidence, .. } = ceiling;
    let found = solve((0..=STEPS).map(step), per_1000.as_usd() / 1e3, most, confidence);
    Ok(SpendingCertificate {
        schema: SPENDING_SCHEMA,
        goal: SpendingCertificate::goal(),
        policy: name(),
        policy_hash: policy.reference.hash.clone(),
        scorer_version: scorer.version().to_owned(),
        evidence_hash: hash(&rows),
        small: small.to_string(),
        large: large.to_string(),
        threshold: found.threshold,
        n: log.rows.len() as u64,
        paid: log.rows.iter().filter(|row| row.went_remote).count() as u64,
        ceiling_usd_per_1000: per_1000.as_usd(),
        mean_usd_per_1000: found.mean * 1e3,
        bound_usd_per_1000: found.bound * 1e3,
        most_usd: most,
        confidence,
        local_share: found.threshold.map_or(1.0, |threshold| local_share(&rows, &at(threshold))),
        date,
    })
}

/// One request of each conversation, in the order of a hash.
fn representatives<'a>(target: &Target<'_>, all: &'a [Logged]) -> Result<Vec<Row<'a>>, ReplayError> {
    let mut left_out: BTreeMap<Unusable, usize> = BTreeMap::new();
    let mut clusters: BTreeMap<u64, Vec<(u64, &Logged, Prepared)>> = BTreeMap::new();
    for row in all {
        match target.prepare(row) {
            Ok(prepared) => clusters.entry(row.cluster).or_default().push((place(&row.id), row, prepared)),
            Err(why) => *left_out.entry(why).or_default() += 1,
        }
    }
    let longest = clusters.values().map(Vec::len).max().unwrap_or(0);
    if longest == 0 {
        let why = left_out.iter().map(|(why, count)| format!("{count} {}", why.describe())).collect::<Vec<_>>();
        return Err(ReplayError::Nothing { rows: all.len(), why: why.join("; ") });
    }
    let row = |rows: Vec<(u64, &'a Logged, Prepared)>| {
        let weight = rows.len() as f64 / longest as f64;
        let drawn = rows.into_iter().min_by_key(|(place, _, _)| *place);
        drawn.map(|(_, logged, prepared)| Row { logged, prepared, weight })
    };
    Ok(clusters.into_values().filter_map(row).collect())
}

/// A number that depends on a name only.
fn place(name: &str) -> u64 {
    let hash = blake3::derive_key("sluice 2026 representative of a conversation", name.as_bytes());
    hash.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn hash(rows: &[Row<'_>]) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in rows {
        hasher.update(row.logged.id.as_bytes());
        hasher.update(&row.logged.cost_usd.to_le_bytes());
    }
    hasher.finalize().to_hex().chars().take(16).collect()
}

fn local_share(rows: &[Row<'_>], decided: &[Option<Redecision>]) -> f64 {
    let total: f64 = rows.iter().map(|row| row.weight).sum();
    let local = rows.iter().zip(decided).map(|(row, decided)| {
        let ways = decided.iter().flat_map(|decided| &decided.ways).filter(|way| way.local);
        row.weight * ways.map(|way| way.probability).sum::<f64>()
    });
    local.sum::<f64>() / total
}

impl Costs {
    fn of(target: &Target<'_>, rows: &[Logged]) -> Self {
        let mut sums: BTreeMap<ModelId, (f64, f64)> = BTreeMap::new();
        let mut local = (0.0, 0.0);
        for row in rows {
            let Some(action) = &row.action else { continue };
            if row.local {
                local = (local.0 + row.cost_usd, local.1 + 1.0);
            } else if let Ok(prepared) = target.prepare(row)
                && let Some(expected) = prepared.expected_usd(&action.model)
            {
                let sum = sums.entry(action.model.clone()).or_default();
                *sum = (sum.0 + row.cost_usd, sum.1 + expected);
            }
        }
        let scales = sums.into_iter().filter(|(_, (_, expected))| *expected > 0.0);
        Self {
            scales: scales.map(|(model, (cost, expected))| (model, cost / expected)).collect(),
            local: if local.1 > 0.0 { local.0 / local.1 } else { 0.0 },
        }
    }

    /// USD of a request under what is decided.
    fn expected(&self, logged: &Logged, decided: &Redecision) -> f64 {
        let way = |way: &super::redecide::Way| {
            let taken = logged.action.as_ref().is_some_and(|action| action.model == way.action.model);
            let usd = match (taken, way.local) {
                (true, _) => logged.cost_usd,
                (false, true) => self.local,
                (false, false) => {
                    let price = decided.expected_costs.get(&way.action.model).copied().unwrap_or(0.0);
                    price * self.scales.get(&way.action.model).copied().unwrap_or(1.0)
                }
            };
            way.probability * usd
        };
        decided.ways.iter().map(way).sum()
    }
}
