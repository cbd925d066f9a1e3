//! The ledger as a reader sees it: beside a running gateway, without its lock, never writing.

use super::sqlite::Store;
use super::{EntryFilter, GradedOutcome, LedgerError, OutcomeFilter, Page, Story};
use crate::domain::RequestId;
use std::path::Path;

/// The store of a ledger, opened for reading. What a running gateway has not yet drained from its journal is not seen.
pub struct Archive {
    store: Store,
}

impl Archive {
    /// Opens the store in a data folder.
    ///
    /// # Errors
    /// There is none, or it is damaged or of a version without recordings.
    pub async fn open(folder: &Path) -> Result<Self, LedgerError> {
        Ok(Self { store: Store::open_to_read(&folder.join("ledger.sqlite")).await? })
    }

    /// Entries that match, newest first.
    ///
    /// # Errors
    /// A foreign page token, or the store fails.
    pub async fn list(&self, filter: &EntryFilter) -> Result<Page, LedgerError> {
        self.store.list(filter).await
    }

    /// What comparisons came to, oldest first.
    ///
    /// # Errors
    /// The store fails.
    pub async fn outcomes(&self, filter: &OutcomeFilter) -> Result<Vec<GradedOutcome>, LedgerError> {
        self.store.outcomes(filter).await
    }

    /// One entry with all that belongs to it; `None` if there is none.
    ///
    /// # Errors
    /// The store fails.
    pub async fn story(&self, id: RequestId) -> Result<Option<Story>, LedgerError> {
        match self.store.story(None, id).await {
            Ok(story) => Ok(Some(story)),
            Err(LedgerError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
