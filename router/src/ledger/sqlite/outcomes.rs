//! The table of outcomes.

use super::Store;
use crate::ledger::outcome::{OutcomeFilter, StoredOutcome};
use crate::ledger::{GradedOutcome, LedgerError};
use sqlx::{Row as _, SqliteConnection};

/// Writes one outcome; the same comparison graded again replaces the one before.
pub async fn insert(connection: &mut SqliteConnection, outcome: &StoredOutcome) -> Result<(), sqlx::Error> {
    let body = serde_json::to_string(outcome).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    sqlx::query("INSERT OR REPLACE INTO outcomes (entry, small, large, tenant, at_ms, body) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(&outcome.entry)
        .bind(&outcome.small)
        .bind(&outcome.large)
        .bind(&outcome.tenant)
        .bind(outcome.at_ms)
        .bind(body)
        .execute(connection)
        .await?;
    Ok(())
}

impl Store {
    /// Outcomes behind a place, with their places, in the order they came in; at most `most`. None of candidates.
    pub async fn outcomes_after(&self, place: i64, most: usize) -> Result<Vec<(i64, GradedOutcome)>, LedgerError> {
        let query = "SELECT rowid, body FROM outcomes WHERE rowid > ?1 AND json_extract(body, '$.candidate') IS NULL \
                     ORDER BY rowid LIMIT ?2";
        let rows = sqlx::query(query)
            .bind(place)
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await
            .map_err(self.wrap())?;
        let mut outcomes = Vec::new();
        for row in rows {
            let place: i64 = row.try_get("rowid").map_err(self.wrap())?;
            let body: &str = row.try_get("body").map_err(self.wrap())?;
            let stored: StoredOutcome = serde_json::from_str(body).map_err(|error| self.error(&error))?;
            outcomes.extend(stored.outcome().map(|outcome| (place, outcome)));
        }
        Ok(outcomes)
    }

    /// The place of the last outcome; 0 without any.
    pub async fn last_outcome(&self) -> Result<i64, LedgerError> {
        let row = sqlx::query("SELECT COALESCE(MAX(rowid), 0) AS last FROM outcomes").fetch_one(&self.pool).await;
        row.and_then(|row| row.try_get("last")).map_err(self.wrap())
    }

    /// Outcomes that match, oldest first.
    pub async fn outcomes(&self, filter: &OutcomeFilter) -> Result<Vec<GradedOutcome>, LedgerError> {
        let rows = sqlx::query("SELECT body FROM outcomes WHERE ?1 = '' OR tenant = ?1 ORDER BY at_ms, entry")
            .bind(&filter.tenant)
            .fetch_all(&self.pool)
            .await
            .map_err(self.wrap())?;
        let mut outcomes = Vec::new();
        for row in rows {
            let body: &str = row.try_get("body").map_err(self.wrap())?;
            let stored: StoredOutcome = serde_json::from_str(body).map_err(|error| self.error(&error))?;
            let wanted = filter.policy.is_empty() || stored.policy == filter.policy;
            if wanted && stored.candidate == filter.candidates {
                outcomes.extend(stored.outcome());
            }
        }
        Ok(outcomes)
    }
}
