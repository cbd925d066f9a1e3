//! The embedded page and the small JSON API behind it. The page is public; its data needs a key like everything else.

use super::auth::Caller;
use super::grpc::{Services, wire};
use crate::domain::{Candidate, Decision, NanoUsd, RequestId, Score, TenantId};
use crate::ledger::{Attempt, EntryFilter, GroupBy, LedgerError, Story, Summary, SummaryQuery, SummaryRow};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use rust_embed::RustEmbed;
use serde_json::{Value, json};
use sluice_proto::v1::BudgetStatus;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

#[derive(RustEmbed)]
#[folder = "dashboard/"]
struct Assets;

/// Longest range of the page, minutes.
const MOST_MINUTES: i64 = 366 * 24 * 60;

/// Nothing but our own files, and no inline code.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'";

/// Routes of the page.
pub fn routes(services: Services) -> Router {
    Router::new()
        .route("/", get(|| async { asset("index.html") }))
        .route("/{file}", get(|Path(file): Path<String>| async move { asset(&file) }))
        .route("/api/summary", get(summary))
        .route("/api/entries", get(entries))
        .route("/api/entries/{id}", get(entry))
        .route("/api/policies", get(policies))
        .with_state(services)
}

fn asset(name: &str) -> Response {
    let Some(file) = Assets::get(name) else {
        return (StatusCode::NOT_FOUND, "there is no such page\n").into_response();
    };
    let kind = match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, file.data.into_owned()).into_response()
}

fn failed(status: StatusCode, message: impl Into<String>) -> Response {
    (status, Json(json!({ "error": message.into() }))).into_response()
}

fn ledger_failed(error: &LedgerError) -> Response {
    match error {
        LedgerError::NotFound(_) | LedgerError::PageToken => failed(StatusCode::NOT_FOUND, error.to_string()),
        other => failed(StatusCode::SERVICE_UNAVAILABLE, other.to_string()),
    }
}

/// Who asks, and whose usage they may see.
fn scope(services: &Services, headers: &HeaderMap) -> Result<(Arc<Caller>, Option<TenantId>), Box<Response>> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(caller) = services.keys.caller(authorization) else {
        return Err(Box::new(failed(StatusCode::UNAUTHORIZED, "a key is needed")));
    };
    match caller.usage_scope("") {
        Ok(tenant) => Ok((caller, tenant)),
        Err(message) => Err(Box::new(failed(StatusCode::FORBIDDEN, message))),
    }
}

fn number(query: &HashMap<String, String>, key: &str, otherwise: i64) -> i64 {
    query.get(key).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn word(query: &HashMap<String, String>, key: &str) -> String {
    query.get(key).cloned().unwrap_or_default()
}

/// The last `minutes` in `buckets` buckets, the running one included: first instant, width and end in milliseconds.
fn range(query: &HashMap<String, String>, now_ms: i64) -> (i64, i64, i64) {
    let minutes = number(query, "minutes", 60).clamp(1, MOST_MINUTES);
    let buckets = number(query, "buckets", 60).clamp(1, 500);
    let width = (minutes * 60_000 / buckets).max(1_000);
    let end = now_ms / width * width + width;
    (end - width * buckets, width, end)
}

async fn summary(
    State(services): State<Services>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let tenant = match scope(&services, &headers) {
        Ok((_, tenant)) => tenant,
        Err(response) => return *response,
    };
    let group_by = match query.get("group_by").map(String::as_str) {
        Some("tenant") => GroupBy::Tenant,
        Some("model") => GroupBy::Model,
        Some("policy") => GroupBy::Policy,
        _ => GroupBy::Route,
    };
    let (start, width, end) = range(&query, Timestamp::now().as_millisecond());
    let (Ok(from), Ok(to)) = (Timestamp::from_millisecond(start), Timestamp::from_millisecond(end)) else {
        return failed(StatusCode::BAD_REQUEST, "the range is out of bounds");
    };
    let wanted = SummaryQuery {
        from,
        to,
        bucket: Some(Duration::from_millis(width.unsigned_abs())),
        group_by,
        tenant: tenant.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    let rows = match services.ledger.summarize(&wanted).await {
        Ok(rows) => rows,
        Err(error) => return ledger_failed(&error),
    };
    let tenants = tenant.map_or_else(|| services.budgets.tenants(), |tenant| vec![tenant]);
    let budgets = tenants.iter().flat_map(|tenant| services.budgets_of(tenant));
    Json(json!({
        "from_ms": start,
        "to_ms": end,
        "bucket_ms": width,
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
        "groups": groups(&rows).iter().map(|(name, sums)| with("group", name, sums)).collect::<Vec<_>>(),
        "total": figures(&total(rows.iter().map(|row| &row.summary))),
        "budgets": budgets.map(|status| budget(&status)).collect::<Vec<_>>(),
    }))
    .into_response()
}

fn row(row: &SummaryRow) -> Value {
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
fn groups(rows: &[SummaryRow]) -> BTreeMap<&str, Summary> {
    let names: BTreeSet<&str> = rows.iter().map(|row| row.group.as_str()).collect();
    let of = |name: &str| total(rows.iter().filter(|row| row.group == name).map(|row| &row.summary));
    names.into_iter().map(|name| (name, of(name))).collect()
}

fn total<'a>(summaries: impl Iterator<Item = &'a Summary>) -> Summary {
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
        sum.latency.merge(&summary.latency);
    }
    sum
}

/// Money goes out as text: JSON's numbers are floats in a browser.
fn figures(summary: &Summary) -> Value {
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
        "p50_ms": summary.latency.quantile(0.5),
        "p99_ms": summary.latency.quantile(0.99),
    })
}

fn budget(status: &BudgetStatus) -> Value {
    json!({
        "tenant": status.tenant,
        "window": status.window,
        "limit_nano_usd": status.limit_nano_usd.to_string(),
        "spent_nano_usd": status.spent_nano_usd.to_string(),
        "held_nano_usd": status.held_nano_usd.to_string(),
        "resets_ms": status.resets_unix_ms,
    })
}

async fn entries(
    State(services): State<Services>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let tenant = match scope(&services, &headers) {
        Ok((_, tenant)) => tenant,
        Err(response) => return *response,
    };
    let filter = EntryFilter {
        tenant: tenant.map(|tenant| tenant.to_string()).unwrap_or_default(),
        route: word(&query, "route"),
        status: word(&query, "status"),
        size: usize::try_from(number(&query, "limit", 50).clamp(1, 500)).unwrap_or(1),
        page_token: word(&query, "page_token"),
        ..EntryFilter::default()
    };
    match services.ledger.list(&filter).await {
        Ok(page) => {
            let entries: Vec<Value> = page.stories.iter().map(story).collect();
            Json(json!({ "entries": entries, "next_page_token": page.next_page_token })).into_response()
        }
        Err(error) => ledger_failed(&error),
    }
}

async fn entry(State(services): State<Services>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    let tenant = match scope(&services, &headers) {
        Ok((_, tenant)) => tenant,
        Err(response) => return *response,
    };
    let Some(id) = RequestId::parse(&id) else { return failed(StatusCode::NOT_FOUND, "there is no such entry") };
    match services.ledger.story(tenant.as_ref(), id).await {
        Ok(found) => Json(story(&found)).into_response(),
        Err(error) => ledger_failed(&error),
    }
}

async fn policies(State(services): State<Services>, headers: HeaderMap) -> Response {
    if let Err(response) = scope(&services, &headers) {
        return *response;
    }
    let snapshot = services.registry.snapshot();
    let policies: Vec<Value> = snapshot
        .policies()
        .map(|policy| {
            json!({
                "name": policy.reference.name,
                "description": policy.description,
                "hash": policy.reference.hash,
                "certificate": policy.certificate().describe(),
                "threshold": policy.threshold(),
                "default": policy.reference.name == snapshot.default_name(),
            })
        })
        .collect();
    let problem = services.registry.failure().map(|failure| failure.to_string());
    Json(json!({ "policies": policies, "reload_problem": problem })).into_response()
}

fn story(story: &Story) -> Value {
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
