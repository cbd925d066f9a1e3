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
            if filter.policy.is_empty() || stored.policy == filter.policy {
                outcomes.extend(stored.outcome());
            }
        }
        Ok(outcomes)
    }
}
