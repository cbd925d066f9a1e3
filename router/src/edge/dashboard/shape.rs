//! The JSON that the page reads. Money goes out as text, because JSON's numbers are floats in a browser.

use crate::domain::{Candidate, Decision, NanoUsd, Score};
use crate::edge::grpc::wire;
use crate::evidence::drift::SHIFTED;
use crate::learn::{BreachOf, LiveReport};
use crate::ledger::{Attempt, Story, Summary, SummaryRow};
use crate::policy::live::Standing;
use serde_json::{Value, json};
use sluice_proto::v1::BudgetStatus;
use std::collections::{BTreeMap, BTreeSet};

/// One bucket of one group.
pub(super) fn row(row: &SummaryRow) -> Value {
    let mut value = with("group", &row.group, &row.summary);
    value["bucket_ms"] = json!(row.bucket.as_millisecond());
    value
}

fn with(key: &str, name: &str, summary: &Summary) -> Value {
    let mut value = figures(summary);
    value[key] = json!(name);
    value
}

/// Sums per group over all buckets.
pub(super) fn groups(rows: &[SummaryRow]) -> Vec<Value> {
    let names: BTreeSet<&str> = rows.iter().map(|row| row.group.as_str()).collect();
    let of = |name: &str| total(rows.iter().filter(|row| row.group == name).map(|row| &row.summary));
    names.into_iter().map(|name| with("group", name, &of(name))).collect()
}

/// Sums over several groups and buckets; quantiles come from the merged histogram.
pub(super) fn total<'a>(summaries: impl Iterator<Item = &'a Summary>) -> Summary {
    let mut sum = Summary::default();
    for summary in summaries {
        sum.requests += summary.requests;
        for (status, count) in &summary.by_status {
            *sum.by_status.entry(status.clone()).or_default() += count;
        }
        sum.cache_hits += summary.cache_hits;
        sum.usage = sum.usage.plus(summary.usage);
        for (basis, amount) in &summary.cost {
            *sum.cost.entry(*basis).or_default() += *amount;
        }
        sum.baseline += summary.baseline;
        sum.saved += summary.saved;
        sum.cpu_seconds += summary.cpu_seconds;
        sum.shadow_runs += summary.shadow_runs;
        sum.shadow_cost += summary.shadow_cost;
        sum.latency.merge(&summary.latency);
    }
    sum
}

/// The figures of a sum.
pub(super) fn figures(summary: &Summary) -> Value {
    let by_basis: BTreeMap<&str, String> =
        summary.cost.iter().map(|(basis, amount)| (basis.as_str(), amount.nanos().to_string())).collect();
    json!({
        "requests": summary.requests,
        "by_status": summary.by_status,
        "cache_hits": summary.cache_hits,
        "input_tokens": summary.usage.input_tokens,
        "output_tokens": summary.usage.output_tokens,
        "cost_nano_usd": summary.cost.values().copied().sum::<NanoUsd>().nanos().to_string(),
        "cost_by_basis": by_basis,
        "baseline_nano_usd": summary.baseline.nanos().to_string(),
        "saved_nano_usd": summary.saved.nanos().to_string(),
        "cpu_seconds": summary.cpu_seconds,
        "shadow_runs": summary.shadow_runs,
        "shadow_nano_usd": summary.shadow_cost.nanos().to_string(),
        "p50_ms": summary.latency.quantile(0.5),
        "p99_ms": summary.latency.quantile(0.99),
    })
}

/// A budget as it stands.
pub(super) fn budget(status: &BudgetStatus) -> Value {
    json!({
        "tenant": status.tenant,
        "window": status.window,
        "limit_nano_usd": status.limit_nano_usd.to_string(),
        "spent_nano_usd": status.spent_nano_usd.to_string(),
        "held_nano_usd": status.held_nano_usd.to_string(),
        "resets_ms": status.resets_unix_ms,
    })
}

/// The live checks of a policy and a pair of models.
pub(super) fn live(report: &LiveReport) -> Value {
    let standing = match &report.standing {
        Standing::Holds => "holds",
        Standing::Tightened(_) => "tightened",
        Standing::Withdrawn(_) => "withdrawn",
    };
    let breach = |(of, why): &(BreachOf, String)| json!({ "of": of.as_str(), "why": why });
    let shift = |(name, shift): &(String, f64)| json!({ "feature": name, "shift": shift });
    json!({
        "small": report.pair.small,
        "large": report.pair.large,
        "graded": report.graded,
        "promised": report.promised.0,
        "confidence": report.promised.1,
        "kept": report.kept.map(|kept| json!({ "value": kept.value, "low": kept.low, "high": kept.high })),
        "calibration_error": report.calibration.map(|(error, _)| error),
        "calibration_n": report.calibration.map(|(_, n)| n),
        "shifts": report.shifts.iter().map(shift).collect::<Vec<_>>(),
        "shifted_from": SHIFTED,
        "breaches": report.breaches.iter().map(breach).collect::<Vec<_>>(),
        "standing": standing,
    })
}

/// An entry with its decision, attempts and feedback.
pub(super) fn story(story: &Story) -> Value {
    let entry = &story.entry;
    let constraints = entry.constraints.as_ref();
    let feedback: Vec<Value> = story
        .feedback
        .iter()
        .map(|feedback| json!({ "source": feedback.source.as_str(), "value": feedback.value }))
        .collect();
    json!({
        "id": entry.id.to_string(),
        "tenant": entry.tenant.as_str(),
        "received_ms": entry.received_at.as_millisecond(),
        "status": entry.status.as_str(),
        "error": entry.error,
        "decision": entry.decision.as_ref().map(|made| {
            let mut value = decision(made);
            value["placement"] = json!(constraints.map(|constraints| constraints.placement.as_str()));
            value["placement_by"] = json!(constraints.map(|constraints| constraints.placement_by.as_str()));
            value["rule"] = json!(constraints.and_then(|constraints| constraints.rule.as_deref()));
            value
        }),
        "cost_nano_usd": entry.cost.amount.nanos().to_string(),
        "basis": entry.cost.basis.as_str(),
        "baseline_nano_usd": entry.baseline.nanos().to_string(),
        "baseline_method": entry.baseline_method,
        "saved_nano_usd": wire::saved(entry).to_string(),
        "latency_ms": entry.latency.as_secs_f64() * 1e3,
        "first_byte_ms": entry.first_byte.map(|first| first.as_secs_f64() * 1e3),
        "input_tokens": entry.usage.input_tokens,
        "output_tokens": entry.usage.output_tokens,
        "cpu_seconds": entry.cpu_seconds,
        "finish_reason": entry.finish_reason.map(|reason| reason.as_str()).unwrap_or_default(),
        "shadow_of": entry.shadow_of.map(|id| id.to_string()).unwrap_or_default(),
        "cached_from": entry.cached_from.map(|id| id.to_string()).unwrap_or_default(),
        "labels": entry.labels,
        "attempts": story.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "feedback": feedback,
    })
}

fn decision(decision: &Decision) -> Value {
    let candidate = |candidate: &Candidate| {
        json!({
            "model": candidate.model.as_str(),
            "route": candidate.route.as_str(),
            "score": candidate.score.map(Score::get),
            "expected_cost_nano_usd": candidate.expected_cost.amount.nanos().to_string(),
            "excluded_by": candidate.excluded_by.as_ref().map(ToString::to_string).unwrap_or_default(),
        })
    };
    json!({
        "route": decision.route.as_str(),
        "model": decision.model.as_str(),
        "reason": { "code": decision.reason.code.as_str(), "detail": decision.reason.detail },
        "threshold": decision.threshold,
        "policy": decision.policy.name,
        "policy_hash": decision.policy.hash,
        "scorer": decision.scorer_version,
        "propensity": decision.propensity,
        "explored": decision.explored,
        "candidates": decision.candidates.iter().map(candidate).collect::<Vec<_>>(),
    })
}

fn attempt(attempt: &Attempt) -> Value {
    let started = &attempt.started;
    let ended = attempt.ended.as_ref();
    json!({
        "id": started.attempt.to_string(),
        "model": started.model.as_str(),
        "route": started.route.as_str(),
        "started_ms": started.started_at.as_millisecond(),
        "hold_nano_usd": started.hold.nanos().to_string(),
        "status": ended.map_or("running", |ended| ended.status.as_str()),
        "error": ended.map_or("", |ended| ended.error.as_str()),
        "cost_nano_usd": ended.map_or(0, |ended| ended.cost.amount.nanos()).to_string(),
        "basis": ended.map_or("", |ended| ended.cost.basis.as_str()),
        "latency_ms": ended.map_or(0.0, |ended| ended.latency.as_secs_f64() * 1e3),
        "input_tokens": ended.map_or(0, |ended| ended.usage.input_tokens),
        "output_tokens": ended.map_or(0, |ended| ended.usage.output_tokens),
        "overrun": ended.is_some_and(|ended| ended.overrun),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::CostBasis;
    use jiff::Timestamp;

    fn bucket(group: &str, cost: i64, milliseconds: f64) -> SummaryRow {
        let mut summary = Summary { requests: 1, saved: NanoUsd::new(-1), ..Summary::default() };
        summary.cost.insert(CostBasis::Reported, NanoUsd::new(cost));
        summary.by_status.insert("ok".to_owned(), 1);
        summary.latency.record(milliseconds);
        SummaryRow { bucket: Timestamp::UNIX_EPOCH, group: group.to_owned(), summary }
    }

    #[test]
    fn sums_are_exact_and_money_is_text() {
        // 2^53 + 1 is the first integer that a browser's number can't hold.
        let rows = [bucket("remote", 9_007_199_254_740_992, 10.0), bucket("local", 0, 1.0), bucket("remote", 1, 10.0)];
        let all = figures(&total(rows.iter().map(|row| &row.summary)));
        assert_eq!(all["cost_nano_usd"], "9007199254740993");
        assert_eq!(all["saved_nano_usd"], "-3");
        assert_eq!(all["requests"], 3);
        assert_eq!(all["by_status"]["ok"], 3);
        let groups = groups(&rows);
        assert_eq!(
            groups.iter().map(|group| group["group"].as_str().unwrap()).collect::<Vec<_>>(),
            ["local", "remote"]
        );
        assert_eq!(groups[1]["cost_nano_usd"], "9007199254740993");
        assert!(groups[0]["p99_ms"].as_f64().unwrap() < 2.0 && all["p99_ms"].as_f64().unwrap() > 9.0);
    }
}
