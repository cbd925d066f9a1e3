//! The embedded page and the small JSON API behind it. The page is public; its data needs a key like everything else.

mod shape;

use super::auth::Caller;
use super::grpc::Services;
use crate::domain::{RequestId, TenantId};
use crate::ledger::{EntryFilter, GroupBy, LedgerError, SummaryQuery};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use rust_embed::RustEmbed;
use serde_json::{Value, json};
use shape::{budget, figures, groups, live, row, story, total};
use std::collections::{BTreeSet, HashMap};
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
    let (caller, tenant) = match scope(&services, &headers) {
        Ok(scope) => scope,
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
    let mut tenants: BTreeSet<TenantId> = match tenant {
        Some(_) => BTreeSet::new(),
        None => services.budgets.tenants().into_iter().collect(),
    };
    tenants.insert(caller.tenant.clone());
    let budgets = tenants.iter().flat_map(|tenant| services.budgets_of(tenant));
    Json(json!({
        "from_ms": start,
        "to_ms": end,
        "bucket_ms": width,
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
        "groups": groups(&rows),
        "total": figures(&total(rows.iter().map(|row| &row.summary))),
        "budgets": budgets.map(|status| budget(&status)).collect::<Vec<_>>(),
    }))
    .into_response()
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
                "certificate": services.gateway.certificate_as_it_stands(policy),
                "threshold": services.gateway.live().standing(policy).applied(policy.threshold()),
                "live": services.gateway.live().report(policy).iter().map(live).collect::<Vec<_>>(),
                "default": policy.reference.name == snapshot.default_name(),
            })
        })
        .collect();
    let problem = services.registry.failure().map(|failure| failure.to_string());
    Json(json!({ "policies": policies, "reload_problem": problem })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_with_the_running_bucket() {
        let check = |minutes: &str, buckets: &str, expected: (i64, i64, i64)| {
            let query =
                [("minutes", minutes), ("buckets", buckets)].map(|(key, value)| (key.to_owned(), value.to_owned()));
            assert_eq!(range(&query.into(), 7_199_999), expected, "{minutes} {buckets}");
        };
        check("60", "60", (3_600_000, 60_000, 7_200_000));
        check("60", "1", (3_600_000, 3_600_000, 7_200_000));
        check("1", "500", (6_700_000, 1_000, 7_200_000));
        // What is no number, or none that makes sense, is the nearest that does.
        check("many", "0", (3_600_000, 3_600_000, 7_200_000));
    }

    #[test]
    fn the_page_is_embedded_and_may_load_nothing_else() {
        for name in ["index.html", "app.js", "chart.js", "format.js", "style.css", "icon.svg"] {
            let response = asset(name);
            assert_eq!(response.status(), StatusCode::OK, "{name}");
            let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
            let text = String::from_utf8(Assets::get(name).unwrap().data.into_owned()).unwrap();
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "").contains("://");
            assert!(!elsewhere, "{name} names another place");
            assert!(!text.contains("innerHTML") && !text.contains("style=\""), "{name} writes text only");
        }
        assert_eq!(asset("../Cargo.toml").status(), StatusCode::NOT_FOUND);
    }
}
