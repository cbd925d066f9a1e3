//! `UsageService`.

use super::{Services, wire};
use crate::domain::TenantId;
use crate::edge::status;
use crate::ledger::{EntryFilter, GroupBy, SummaryQuery, SummaryRow};
use jiff::Timestamp;
use sluice_proto::v1;
use std::time::Duration;
use tonic::{Response, Status};

/// Most buckets of one summary.
const MAX_BUCKETS: i64 = 10_000;
/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;
/// Entries of a page where none is asked for, and the most.
const PAGE: (usize, usize) = (50, 1_000);

fn timestamp(field: &str, milliseconds: i64) -> Result<Timestamp, Status> {
    let wrong = |_| status::invalid(vec![(field.to_owned(), format!("{milliseconds} is out of range"))]);
    Timestamp::from_millisecond(milliseconds).map_err(wrong)
}

#[tonic::async_trait]
impl v1::usage_service_server::UsageService for Services {
    async fn summarize(
        &self,
        call: tonic::Request<v1::SummarizeRequest>,
    ) -> Result<Response<v1::SummarizeResponse>, Status> {
        let caller = self.any_caller(call.metadata())?;
        let message = call.into_inner();
        let scope = caller.usage_scope(&message.tenant).map_err(status::denied)?;
        let query = query(&message, scope.as_ref())?;
        let rows = self.ledger.summarize(&query).await.map_err(|error| status::of_ledger(&error))?;
        let tenants: Vec<TenantId> = match scope {
            Some(tenant) => vec![tenant],
            None => self.budgets.tenants(),
        };
        let budgets = tenants.iter().flat_map(|tenant| self.budgets_of(tenant)).collect();
        Ok(Response::new(v1::SummarizeResponse { rows: rows.iter().map(row).collect(), budgets }))
    }

    async fn list_entries(
        &self,
        call: tonic::Request<v1::ListEntriesRequest>,
    ) -> Result<Response<v1::ListEntriesResponse>, Status> {
        let caller = self.any_caller(call.metadata())?;
        let message = call.into_inner();
        let scope = caller.usage_scope(&message.tenant).map_err(status::denied)?;
        let size = match usize::try_from(message.page_size) {
            Ok(0) => PAGE.0,
            Ok(size) if size <= PAGE.1 => size,
            _ => {
                let description = format!("is {}, it must be within 0 and {}", message.page_size, PAGE.1);
                return Err(status::invalid(vec![("page_size".to_owned(), description)]));
            }
        };
        let route = match message.route() {
            v1::Route::Unspecified => "",
            v1::Route::Cache => "cache",
            v1::Route::Local => "local",
            v1::Route::Remote => "remote",
            v1::Route::Cascade => "cascade",
        };
        let filter = EntryFilter {
            from: Some(timestamp("from_unix_ms", message.from_unix_ms)?),
            to: if message.to_unix_ms == 0 { None } else { Some(timestamp("to_unix_ms", message.to_unix_ms)?) },
            tenant: scope.map(|tenant| tenant.to_string()).unwrap_or_default(),
            route: route.to_owned(),
            model: message.model,
            policy: message.policy,
            status: message.status,
            labels: message.labels.into_iter().collect(),
            size,
            page_token: message.page_token,
        };
        let page = self.ledger.list(&filter).await.map_err(|error| status::of_ledger(&error))?;
        Ok(Response::new(v1::ListEntriesResponse {
            entries: page.stories.iter().map(wire::entry).collect(),
            next_page_token: page.next_page_token,
        }))
    }
}

fn query(message: &v1::SummarizeRequest, scope: Option<&TenantId>) -> Result<SummaryQuery, Status> {
    let to = if message.to_unix_ms == 0 { Timestamp::now().as_millisecond() + 1 } else { message.to_unix_ms };
    let from = if message.from_unix_ms == 0 { to.saturating_sub(DAY_MS) } else { message.from_unix_ms };
    let mut wrong = Vec::new();
    if from >= to {
        wrong.push(("from_unix_ms".to_owned(), "must be before to_unix_ms".to_owned()));
    }
    let width = message.bucket_seconds;
    if width < 0 || (width > 0 && (to.saturating_sub(from)) / width.saturating_mul(1000) > MAX_BUCKETS) {
        wrong.push(("bucket_seconds".to_owned(), format!("{width} gives no buckets or more than {MAX_BUCKETS}")));
    }
    let group_by = match message.group_by() {
        v1::GroupBy::Unspecified => GroupBy::None,
        v1::GroupBy::Tenant => GroupBy::Tenant,
        v1::GroupBy::Route => GroupBy::Route,
        v1::GroupBy::Model => GroupBy::Model,
        v1::GroupBy::Policy => GroupBy::Policy,
        v1::GroupBy::Label if message.label_key.is_empty() => {
            wrong.push(("label_key".to_owned(), "is needed to group by label".to_owned()));
            GroupBy::None
        }
        v1::GroupBy::Label => GroupBy::Label(message.label_key.clone()),
    };
    if !wrong.is_empty() {
        return Err(status::invalid(wrong));
    }
    Ok(SummaryQuery {
        from: timestamp("from_unix_ms", from)?,
        to: timestamp("to_unix_ms", to)?,
        bucket: (width > 0).then(|| Duration::from_secs(width.unsigned_abs())),
        group_by,
        tenant: scope.map(ToString::to_string).unwrap_or_default(),
    })
}

fn row(row: &SummaryRow) -> v1::SummaryRow {
    let summary = &row.summary;
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let cost = |(basis, amount): (&crate::domain::CostBasis, &crate::domain::NanoUsd)| {
        wire::cost(crate::domain::Cost { amount: *amount, basis: *basis })
    };
    v1::SummaryRow {
        bucket_unix_ms: row.bucket.as_millisecond(),
        group: row.group.clone(),
        requests: count(summary.requests),
        by_status: summary.by_status.iter().map(|(status, number)| (status.clone(), count(*number))).collect(),
        cache_hits: count(summary.cache_hits),
        usage: Some(wire::usage(summary.usage, summary.cpu_seconds)),
        cost: summary.cost.iter().map(cost).collect(),
        baseline_nano_usd: summary.baseline.nanos(),
        saved_nano_usd: summary.saved.nanos(),
        latency_p50_ms: summary.latency.quantile(0.5),
        latency_p90_ms: summary.latency.quantile(0.9),
        latency_p99_ms: summary.latency.quantile(0.99),
        shadow_runs: count(summary.shadow_runs),
        shadow_nano_usd: summary.shadow_cost.nanos(),
    }
}

impl Services {
    /// A tenant's budgets as they stand, for windows that have a limit.
    pub(in crate::edge) fn budgets_of(&self, tenant: &TenantId) -> Vec<v1::BudgetStatus> {
        let snapshot = self.registry.snapshot();
        let Some(policy) = snapshot.policy(None) else { return Vec::new() };
        let limits = self.gateway.budget_limits(tenant, &policy);
        let windows = self.budgets.status(tenant);
        let of = |status: &crate::budget::WindowStatus| {
            Some(v1::BudgetStatus {
                tenant: tenant.to_string(),
                window: status.window.as_str().to_owned(),
                limit_nano_usd: limits.of(status.window)?.nanos(),
                spent_nano_usd: status.spent.nanos(),
                held_nano_usd: status.held.nanos(),
                resets_unix_ms: status.resets_at.as_millisecond(),
            })
        };
        windows.iter().filter_map(of).collect()
    }
}
