//! The one task that moves records from the journal into the store, in batches, and never gives up on one.

use super::LedgerError;
use super::journal::Journal;
use super::sqlite::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long records are gathered before a transaction: what a reader of fresh entries waits at most.
const GATHER: Duration = Duration::from_millis(5);
/// Most records in one transaction.
const BATCH: usize = 512;
/// First and longest wait after the store refused a batch.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Moves everything that stands in the journal now; returns how many records that were.
pub async fn drain(journal: &Journal, store: &Store) -> Result<u64, LedgerError> {
    let mut count = 0;
    loop {
        let from = store.position().await?;
        let unreadable = |error: std::io::Error| store.error(&error);
        let (records, to) = journal.read(from, BATCH).map_err(unreadable)?;
        if records.is_empty() && to == from {
            return Ok(count);
        }
        store.take(&records, to).await?;
        count += records.len() as u64;
        let bytes = if to.segment == from.segment { to.offset - from.offset } else { to.offset };
        journal.taken(to, bytes);
    }
}

/// Drains whenever the journal grows, until `stop` fires and everything is drained.
pub async fn run(journal: Arc<Journal>, store: Store, stop: CancellationToken) {
    let _gone = journal.writer_guard();
    let mut wait = BACKOFF.0;
    loop {
        match drain(&journal, &store).await {
            Ok(_) => {
                wait = BACKOFF.0;
                if stop.is_cancelled() && journal.is_drained() {
                    return store.close().await;
                }
                tokio::select! {
                    () = journal.grown() => gather(&stop).await,
                    () = stop.cancelled() => {}
                }
            }
            Err(error) if stop.is_cancelled() => {
                tracing::error!(%error, "the store did not take the last records; the journal keeps them for the next start");
                return;
            }
            Err(error) => {
                tracing::error!(%error, "the store did not take a batch; the journal keeps it");
                journal.refused();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => {}
                }
                wait = (wait * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Waits a moment, so that one transaction takes what comes close together instead of one for each record.
async fn gather(stop: &CancellationToken) {
    let _stopped_early = stop.run_until_cancelled(tokio::time::sleep(GATHER)).await;
}
