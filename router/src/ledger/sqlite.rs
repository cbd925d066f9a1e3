//! The store: SQLite with a write-ahead log, one writer, many readers. The only place that knows SQL.

mod outcomes;

use super::journal::Position;
use super::query::{EntryFilter, GroupBy, Page, Summary, SummaryQuery, SummaryRow};
use super::recording::StoredRecording;
use super::stored::{self, Record, StoredEnd, StoredEntry, StoredFeedback, StoredStart, StoredUsage};
use super::{Attempt, Feedback, LedgerError, Story};
use crate::domain::{EntryStatus, NanoUsd, RequestId, TenantId};
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: SqlitePool,
    path: PathBuf,
}

impl Store {
    /// Opens or makes the file and brings its tables up to date. When `durable`, what is committed survives a loss of power:
    /// a journal segment is deleted only after that.
    pub async fn open(path: &Path, durable: bool) -> Result<Self, LedgerError> {
        let failed =
            |error: &dyn std::fmt::Display| LedgerError::Store { path: path.to_owned(), reason: error.to_string() };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(if durable { SqliteSynchronous::Full } else { SqliteSynchronous::Normal })
            .busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await;
        let pool = pool.map_err(|error| failed(&error))?;
        let migration = |number: i64, name: &'static str, sql: &'static str| {
            let sql = sqlx::SqlStr::from_static(sql);
            Migration::new(number, Cow::Borrowed(name), MigrationType::Simple, sql, false)
        };
        let migrator = Migrator::with_migrations(vec![
            migration(1, "ledger", include_str!("../../migrations/0001_ledger.sql")),
            migration(2, "recordings", include_str!("../../migrations/0002_recordings.sql")),
            migration(3, "shadows", include_str!("../../migrations/0003_shadows.sql")),
        ]);
        migrator.run(&pool).await.map_err(|error| match error {
            MigrateError::VersionMissing(migration) => LedgerError::Newer { path: path.to_owned(), migration },
            other => failed(&other),
        })?;
        Ok(Self { pool, path: path.to_owned() })
    }

    /// Opens a file that is there, to read only.
    pub async fn open_to_read(path: &Path) -> Result<Self, LedgerError> {
        if !path.exists() {
            return Err(LedgerError::Absent { path: path.to_owned() });
        }
        let failed = |reason: String| LedgerError::Store { path: path.to_owned(), reason };
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await;
        let pool = pool.map_err(|error| failed(error.to_string()))?;
        let found = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = 'outcomes'").fetch_optional(&pool).await;
        match found.map_err(|error| failed(error.to_string()))? {
            Some(_) => Ok(Self { pool, path: path.to_owned() }),
            None => Err(failed("it is empty or of an earlier version; start the gateway on it once".to_owned())),
        }
    }

    /// Wraps an error with the store's file.
    pub fn error(&self, error: &dyn std::fmt::Display) -> LedgerError {
        LedgerError::Store { path: self.path.clone(), reason: error.to_string() }
    }

    fn wrap(&self) -> impl Fn(sqlx::Error) -> LedgerError + '_ {
        |error| self.error(&error)
    }

    /// How far the journal is taken.
    pub async fn position(&self) -> Result<Position, LedgerError> {
        let row =
            sqlx::query("SELECT segment, position FROM journal_taken WHERE id = 1").fetch_optional(&self.pool).await;
        let Some(row) = row.map_err(self.wrap())? else { return Ok(Position::default()) };
        let number = |name: &str| row.try_get::<i64, _>(name).map(i64::unsigned_abs).map_err(self.wrap());
        Ok(Position { segment: number("segment")?, offset: number("position")? })
    }

    /// Takes records and, in the same transaction, notes that the journal is taken up to `to`.
    pub async fn take(&self, records: &[Record], to: Position) -> Result<(), LedgerError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(self.wrap())?;
        for record in records {
            let outcome = match record {
                Record::Started(start) => insert_start(&mut transaction, start).await,
                Record::Ended(end) => update_end(&mut transaction, end).await,
                Record::Entry(entry) => insert_entry(&mut transaction, entry).await,
                Record::Feedback(feedback) => upsert_feedback(&mut transaction, feedback).await,
                Record::Outcome(outcome) => outcomes::insert(&mut transaction, outcome).await,
            };
            outcome.map_err(self.wrap())?;
        }
        sqlx::query("INSERT OR REPLACE INTO journal_taken (id, segment, position) VALUES (1, ?, ?)")
            .bind(to.segment.cast_signed())
            .bind(to.offset.cast_signed())
            .execute(&mut *transaction)
            .await
            .map_err(self.wrap())?;
        transaction.commit().await.map_err(self.wrap())
    }

    /// Books attempts that never ended at their hold and gives their requests entries, with the weakest basis of their attempts;
    /// returns how many attempts. `TOTAL` saturates where `SUM` would fail, and is exact below nine million USD.
    pub async fn interrupt_unfinished(&self, now: Timestamp) -> Result<u64, LedgerError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(self.wrap())?;
        let done = sqlx::query(
            "UPDATE attempts SET status = 'interrupted', ended_ms = ?, cost = hold, basis = 'bound', error = 'interrupted' \
             WHERE status IS NULL",
        )
        .bind(now.as_millisecond())
        .execute(&mut *transaction)
        .await
        .map_err(self.wrap())?;
        sqlx::query(
            "INSERT INTO entries (id, tenant, received_ms, latency_ms, status, route, model, policy, cost, basis, baseline, \
             input, output, cached, reasoning, cpu_seconds, error, labels, body, shadow_of) \
             SELECT request, MIN(tenant), MIN(started_ms), MAX(ended_ms) - MIN(started_ms), 'interrupted', MIN(route), MIN(model), '', \
             CAST(TOTAL(cost) AS INTEGER), CASE WHEN SUM(basis = 'bound') > 0 THEN 'bound' \
             WHEN SUM(basis = 'estimated') > 0 THEN 'estimated' ELSE 'reported' END, CAST(TOTAL(cost) AS INTEGER), SUM(input), SUM(output), SUM(cached), SUM(reasoning), SUM(cpu_seconds), \
             'interrupted', '{}', NULL, MIN(shadow_of) \
             FROM attempts WHERE request NOT IN (SELECT id FROM entries) GROUP BY request",
        )
        .execute(&mut *transaction)
        .await
        .map_err(self.wrap())?;
        transaction.commit().await.map_err(self.wrap())?;
        Ok(done.rows_affected())
    }

    /// What attempts cost since `from`: tenant, start, amount. Read row by row and summed by day here, not in SQL, where a sum
    /// past 64 bits is an error that would keep the gateway from starting.
    pub async fn spent_since(&self, from: Timestamp) -> Result<Vec<(TenantId, Timestamp, NanoUsd)>, LedgerError> {
        let spent = self.spent_by("tenant", from).await?;
        Ok(spent.into_iter().map(|(tenant, at, amount)| (TenantId::new(tenant), at, amount)).collect())
    }

    /// What of it shadow runs cost: policy, start, amount.
    pub async fn shadow_spent_since(&self, from: Timestamp) -> Result<Vec<(String, Timestamp, NanoUsd)>, LedgerError> {
        self.spent_by("shadow_policy", from).await
    }

    async fn spent_by(&self, column: &str, from: Timestamp) -> Result<Vec<(String, Timestamp, NanoUsd)>, LedgerError> {
        const DAY: i64 = 86_400_000;
        let sql = format!(
            "SELECT {column} AS who, started_ms, cost FROM attempts WHERE started_ms >= ? AND cost <> 0 AND {column} IS NOT NULL"
        );
        let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(from.as_millisecond()).fetch(&self.pool);
        let mut days: BTreeMap<(String, i64), NanoUsd> = BTreeMap::new();
        while let Some(row) = rows.try_next().await.map_err(self.wrap())? {
            let column = |name: &str| row.try_get::<i64, _>(name).map_err(self.wrap());
            let who: String = row.try_get("who").map_err(self.wrap())?;
            *days.entry((who, column("started_ms")?.div_euclid(DAY))).or_default() += NanoUsd::new(column("cost")?);
        }
        let spent = |((who, day), amount): ((String, i64), NanoUsd)| {
            (who, Timestamp::from_millisecond(day * DAY).unwrap_or_default(), amount)
        };
        Ok(days.into_iter().map(spent).collect())
    }

    /// Requests that a policy decided since `from` and what they cost; attempts that a dead process left, whose policy is not
    /// known, cost too. `TOTAL` is exact below nine million USD.
    pub async fn spent_under(&self, policy: &str, from: Timestamp) -> Result<(u64, NanoUsd), LedgerError> {
        let row = sqlx::query(
            "SELECT SUM(policy = ?1) AS requests, CAST(TOTAL(cost) AS INTEGER) AS spent FROM entries \
             WHERE received_ms >= ?2 AND shadow_of IS NULL AND (policy = ?1 OR (policy = '' AND cost <> 0))",
        )
        .bind(policy)
        .bind(from.as_millisecond())
        .fetch_one(&self.pool)
        .await
        .map_err(self.wrap())?;
        let requests: Option<i64> = row.try_get("requests").map_err(self.wrap())?;
        let spent: i64 = row.try_get("spent").map_err(self.wrap())?;
        Ok((requests.unwrap_or(0).unsigned_abs(), NanoUsd::new(spent)))
    }

    /// One entry with all that belongs to it.
    pub async fn story(&self, tenant: Option<&TenantId>, id: RequestId) -> Result<Story, LedgerError> {
        let row = sqlx::query("SELECT * FROM entries WHERE id = ?1 AND (?2 IS NULL OR tenant = ?2)")
            .bind(id.to_string())
            .bind(tenant.map(TenantId::as_str))
            .fetch_optional(&self.pool)
            .await
            .map_err(self.wrap())?;
        match row {
            Some(row) => self.complete(&row).await,
            None => Err(LedgerError::NotFound(id.to_string())),
        }
    }

    async fn complete(&self, row: &SqliteRow) -> Result<Story, LedgerError> {
        let mut stored = stored_entry(row).map_err(self.wrap())?;
        let id = stored.id.clone();
        stored.recording = self.recording(&id).await?;
        let entry = stored.entry().ok_or_else(|| self.error(&format!("entry {id} was written by another version")))?;
        Ok(Story { entry, attempts: self.attempts(&id).await?, feedback: self.feedback(&id).await? })
    }

    async fn recording(&self, entry: &str) -> Result<Option<StoredRecording>, LedgerError> {
        let row =
            sqlx::query("SELECT body FROM recordings WHERE entry = ?").bind(entry).fetch_optional(&self.pool).await;
        let Some(row) = row.map_err(self.wrap())? else { return Ok(None) };
        let body: &str = row.try_get("body").map_err(self.wrap())?;
        serde_json::from_str(body).map(Some).map_err(|error| self.error(&error))
    }

    /// Deletes what is kept of a tenant's requests beside the books, and empties the pages it stood on; returns how many.
    pub async fn forget(&self, tenant: &TenantId) -> Result<u64, LedgerError> {
        let mut connection = self.pool.acquire().await.map_err(self.wrap())?;
        sqlx::query("PRAGMA secure_delete = ON").fetch_all(&mut *connection).await.map_err(self.wrap())?;
        let outcomes = sqlx::query("DELETE FROM outcomes WHERE tenant = ?").bind(tenant.as_str());
        outcomes.execute(&mut *connection).await.map_err(self.wrap())?;
        let deleted = sqlx::query("DELETE FROM recordings WHERE tenant = ?").bind(tenant.as_str());
        let deleted = deleted.execute(&mut *connection).await.map_err(self.wrap())?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_all(&mut *connection).await.map_err(self.wrap())?;
        Ok(deleted.rows_affected())
    }

    async fn attempts(&self, request: &str) -> Result<Vec<Attempt>, LedgerError> {
        let rows = sqlx::query("SELECT * FROM attempts WHERE request = ? ORDER BY started_ms, id")
            .bind(request)
            .fetch_all(&self.pool)
            .await
            .map_err(self.wrap())?;
        let found = rows.iter().map(stored_attempt).collect::<Result<Vec<_>, _>>().map_err(self.wrap())?;
        Ok(found.into_iter().filter_map(|(start, end)| stored::attempt(start, end)).collect())
    }

    async fn feedback(&self, entry: &str) -> Result<Vec<Feedback>, LedgerError> {
        let rows = sqlx::query("SELECT entry, source, value, at_ms FROM feedback WHERE entry = ? ORDER BY source")
            .bind(entry)
            .fetch_all(&self.pool)
            .await
            .map_err(self.wrap())?;
        let feedback = |row: &SqliteRow| -> Result<StoredFeedback, sqlx::Error> {
            Ok(StoredFeedback {
                entry: row.try_get("entry")?,
                source: row.try_get("source")?,
                value: row.try_get("value")?,
                at_ms: row.try_get("at_ms")?,
            })
        };
        let found = rows.iter().map(feedback).collect::<Result<Vec<_>, _>>().map_err(self.wrap())?;
        Ok(found.iter().filter_map(StoredFeedback::feedback).collect())
    }

    /// Entries that match, newest first.
    pub async fn list(&self, filter: &EntryFilter) -> Result<Page, LedgerError> {
        let mut sql = String::from("SELECT * FROM entries WHERE received_ms >= ? AND received_ms < ?");
        let mut values: Vec<String> = Vec::new();
        for (column, value) in [
            ("tenant", &filter.tenant),
            ("route", &filter.route),
            ("model", &filter.model),
            ("policy", &filter.policy),
            ("status", &filter.status),
        ] {
            if !value.is_empty() {
                sql.push_str(&format!(" AND {column} = ?"));
                values.push(value.clone());
            }
        }
        for (key, value) in &filter.labels {
            sql.push_str(" AND EXISTS (SELECT 1 FROM json_each(labels) AS l WHERE l.key = ? AND l.value = ?)");
            values.extend([key.clone(), value.clone()]);
        }
        if !filter.page_token.is_empty() {
            let (time, id) = filter.page_token.split_once('.').ok_or(LedgerError::PageToken)?;
            time.parse::<i64>().ok().zip(RequestId::parse(id)).ok_or(LedgerError::PageToken)?;
            sql.push_str(" AND (received_ms, id) < (CAST(? AS INTEGER), ?)");
            values.extend([time.to_owned(), id.to_owned()]);
        }
        sql.push_str(" ORDER BY received_ms DESC, id DESC LIMIT ?");
        let size = filter.size.clamp(1, 1000);
        let mut query = sqlx::query(AssertSqlSafe(sql))
            .bind(filter.from.map_or(i64::MIN, Timestamp::as_millisecond))
            .bind(filter.to.map_or(i64::MAX, Timestamp::as_millisecond));
        for value in values {
            query = query.bind(value);
        }
        let rows = query.bind(size as i64 + 1).fetch_all(&self.pool).await.map_err(self.wrap())?;
        let mut stories = Vec::new();
        for row in rows.iter().take(size) {
            stories.push(self.complete(row).await?);
        }
        let next_page_token = match stories.last() {
            Some(last) if rows.len() > size => format!("{}.{}", last.entry.received_at.as_millisecond(), last.entry.id),
            _ => String::new(),
        };
        Ok(Page { stories, next_page_token })
    }

    /// Sums over entries.
    pub async fn summarize(&self, query: &SummaryQuery) -> Result<Vec<SummaryRow>, LedgerError> {
        let mut rows = sqlx::query(
            "SELECT tenant, received_ms, latency_ms, status, route, model, policy, cost, basis, baseline, input, output, cached, \
             reasoning, cpu_seconds, labels, shadow_of FROM entries \
             WHERE received_ms >= ? AND received_ms < ? AND (? = '' OR tenant = ?)",
        )
        .bind(query.from.as_millisecond())
        .bind(query.to.as_millisecond())
        .bind(&query.tenant)
        .bind(&query.tenant)
        .fetch(&self.pool);
        let mut sums: BTreeMap<(i64, String), Summary> = BTreeMap::new();
        while let Some(row) = rows.try_next().await.map_err(self.wrap())? {
            add(&mut sums, query, &row).map_err(self.wrap())?;
        }
        let row = |((bucket, group), summary): ((i64, String), Summary)| SummaryRow {
            bucket: Timestamp::from_millisecond(bucket).unwrap_or_default(),
            group,
            summary,
        };
        Ok(sums.into_iter().map(row).collect())
    }

    /// Runs a statement that breaks or mends something.
    #[cfg(test)]
    pub async fn execute_for_tests(&self, sql: String) {
        sqlx::query(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }

    /// Finishes the write-ahead log and closes the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn add(sums: &mut BTreeMap<(i64, String), Summary>, query: &SummaryQuery, row: &SqliteRow) -> Result<(), sqlx::Error> {
    let received: i64 = row.try_get("received_ms")?;
    let from = query.from.as_millisecond();
    let bucket = match query.bucket.map(|bucket| bucket.as_millis() as i64) {
        Some(width) if width > 0 => from + (received - from) / width * width,
        _ => from,
    };
    let group: String = match &query.group_by {
        GroupBy::None => String::new(),
        GroupBy::Tenant => row.try_get("tenant")?,
        GroupBy::Route if is_shadow(row)? => "shadow".to_owned(),
        GroupBy::Route => row.try_get("route")?,
        GroupBy::Model => row.try_get("model")?,
        GroupBy::Policy => row.try_get("policy")?,
        GroupBy::Label(key) => labels(row)?.get(key).cloned().unwrap_or_default(),
    };
    let summary = sums.entry((bucket, group)).or_default();
    let status: String = row.try_get("status")?;
    let route: String = row.try_get("route")?;
    let (cost, baseline) = (NanoUsd::new(row.try_get("cost")?), NanoUsd::new(row.try_get("baseline")?));
    *summary.cost.entry(stored::basis(row.try_get::<&str, _>("basis")?)).or_default() += cost;
    summary.usage = summary.usage.plus(usage(row)?.into());
    summary.cpu_seconds += row.try_get::<f64, _>("cpu_seconds")?;
    if is_shadow(row)? {
        // It served nobody: it counts among what was used and spent, not among requests.
        summary.shadow_runs += 1;
        summary.shadow_cost += cost;
        summary.saved += NanoUsd::ZERO - cost;
        return Ok(());
    }
    summary.requests += 1;
    summary.cache_hits += u64::from(route == "cache");
    if status == EntryStatus::Ok.as_str() {
        summary.saved += baseline - cost;
        summary.baseline += baseline;
    }
    *summary.by_status.entry(status).or_default() += 1;
    summary.latency.record(row.try_get("latency_ms")?);
    Ok(())
}

fn is_shadow(row: &SqliteRow) -> Result<bool, sqlx::Error> {
    Ok(row.try_get::<Option<&str>, _>("shadow_of")?.is_some())
}

fn labels(row: &SqliteRow) -> Result<BTreeMap<String, String>, sqlx::Error> {
    serde_json::from_str(row.try_get::<&str, _>("labels")?).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn usage(row: &SqliteRow) -> Result<StoredUsage, sqlx::Error> {
    Ok(StoredUsage {
        input: row.try_get("input")?,
        output: row.try_get("output")?,
        cached: row.try_get("cached")?,
        reasoning: row.try_get("reasoning")?,
    })
}

fn stored_entry(row: &SqliteRow) -> Result<StoredEntry, sqlx::Error> {
    if let Some(body) = row.try_get::<Option<&str>, _>("body")? {
        return serde_json::from_str(body).map_err(|error| sqlx::Error::Decode(Box::new(error)));
    }
    // An interrupted request left nothing but its attempts.
    Ok(StoredEntry {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant")?,
        key_name: String::new(),
        received_ms: row.try_get("received_ms")?,
        latency_ms: row.try_get("latency_ms")?,
        first_byte_ms: None,
        status: row.try_get("status")?,
        decision: None,
        constraints: None,
        usage: usage(row)?,
        cpu_seconds: row.try_get("cpu_seconds")?,
        cost: row.try_get("cost")?,
        basis: row.try_get("basis")?,
        baseline: row.try_get("baseline")?,
        baseline_method: String::new(),
        finish_reason: None,
        error: row.try_get("error")?,
        cached_from: None,
        labels: BTreeMap::new(),
        conversation_id: String::new(),
        end_user_id: String::new(),
        recording: None,
        shadow_of: row.try_get("shadow_of")?,
    })
}

fn stored_attempt(row: &SqliteRow) -> Result<(StoredStart, Option<StoredEnd>), sqlx::Error> {
    let start = StoredStart {
        attempt: row.try_get("id")?,
        request: row.try_get("request")?,
        tenant: row.try_get("tenant")?,
        model: row.try_get("model")?,
        route: row.try_get("route")?,
        number: row.try_get("number")?,
        started_ms: row.try_get("started_ms")?,
        hold: row.try_get("hold")?,
        shadow_of: row.try_get("shadow_of")?,
        shadow_policy: row.try_get("shadow_policy")?,
    };
    let Some(status) = row.try_get::<Option<String>, _>("status")? else { return Ok((start, None)) };
    let end = StoredEnd {
        attempt: start.attempt.clone(),
        request: start.request.clone(),
        ended_ms: row.try_get("ended_ms")?,
        status,
        cost: row.try_get("cost")?,
        basis: row.try_get("basis")?,
        usage: usage(row)?,
        cpu_seconds: row.try_get("cpu_seconds")?,
        latency_ms: row.try_get("latency_ms")?,
        error: row.try_get("error")?,
        overrun: row.try_get("overrun")?,
    };
    Ok((start, Some(end)))
}

async fn insert_start(connection: &mut SqliteConnection, start: &StoredStart) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO attempts (id, request, tenant, model, route, number, started_ms, hold, shadow_of, shadow_policy) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(&start.attempt)
    .bind(&start.request)
    .bind(&start.tenant)
    .bind(&start.model)
    .bind(&start.route)
    .bind(start.number)
    .bind(start.started_ms)
    .bind(start.hold)
    .bind(&start.shadow_of)
    .bind(&start.shadow_policy)
    .execute(connection)
    .await?;
    Ok(())
}

async fn update_end(connection: &mut SqliteConnection, end: &StoredEnd) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE attempts SET ended_ms = ?, status = ?, cost = ?, basis = ?, input = ?, output = ?, cached = ?, reasoning = ?, \
         cpu_seconds = ?, latency_ms = ?, error = ?, overrun = ? WHERE id = ?",
    )
    .bind(end.ended_ms)
    .bind(&end.status)
    .bind(end.cost)
    .bind(&end.basis)
    .bind(end.usage.input)
    .bind(end.usage.output)
    .bind(end.usage.cached)
    .bind(end.usage.reasoning)
    .bind(end.cpu_seconds)
    .bind(end.latency_ms)
    .bind(&end.error)
    .bind(end.overrun)
    .bind(&end.attempt)
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_entry(connection: &mut SqliteConnection, entry: &StoredEntry) -> Result<(), sqlx::Error> {
    let json = |error: serde_json::Error| sqlx::Error::Encode(Box::new(error));
    let word = |part: fn(&stored::StoredDecision) -> &str| entry.decision.as_ref().map_or("", part);
    sqlx::query(
        "INSERT INTO entries (id, tenant, received_ms, latency_ms, status, route, model, policy, cost, basis, baseline, input, \
         output, cached, reasoning, cpu_seconds, error, labels, body, shadow_of) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
    )
    .bind(&entry.id)
    .bind(&entry.tenant)
    .bind(entry.received_ms)
    .bind(entry.latency_ms)
    .bind(&entry.status)
    .bind(word(|decision| &decision.route))
    .bind(word(|decision| &decision.model))
    .bind(word(|decision| &decision.policy))
    .bind(entry.cost)
    .bind(&entry.basis)
    .bind(entry.baseline)
    .bind(entry.usage.input)
    .bind(entry.usage.output)
    .bind(entry.usage.cached)
    .bind(entry.usage.reasoning)
    .bind(entry.cpu_seconds)
    .bind(&entry.error)
    .bind(serde_json::to_string(&entry.labels).map_err(json)?)
    .bind(serde_json::to_string(&StoredEntry { recording: None, ..entry.clone() }).map_err(json)?)
    .bind(&entry.shadow_of)
    .execute(&mut *connection)
    .await?;
    if let Some(recording) = &entry.recording {
        sqlx::query("INSERT INTO recordings (entry, tenant, level, body) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(&entry.id)
            .bind(&entry.tenant)
            .bind(&recording.level)
            .bind(serde_json::to_string(recording).map_err(json)?)
            .execute(connection)
            .await?;
    }
    Ok(())
}

async fn upsert_feedback(connection: &mut SqliteConnection, feedback: &StoredFeedback) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT OR REPLACE INTO feedback (entry, source, value, at_ms) VALUES (?, ?, ?, ?)")
        .bind(&feedback.entry)
        .bind(&feedback.source)
        .bind(feedback.value)
        .bind(feedback.at_ms)
        .execute(connection)
        .await?;
    Ok(())
}
