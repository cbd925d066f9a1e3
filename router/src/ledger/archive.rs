//! The ledger as a reader sees it: beside a running gateway, without its lock, never writing.

use super::sqlite::Store;
use super::{EntryFilter, GradedOutcome, LedgerError, OutcomeFilter, Page, Story};
use crate::domain::RequestId;
use std::path::Path;

/// Entries read at once.
const PAGE: usize = 500;

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

    /// Hands every entry that matches to `take`, newest first; however many there are, one page of them is held at once.
    ///
    /// # Errors
    /// The store fails.
    pub async fn each(&self, filter: EntryFilter, mut take: impl FnMut(Story)) -> Result<(), LedgerError> {
        let mut filter = EntryFilter { size: PAGE, page_token: String::new(), ..filter };
        loop {
            let page = self.list(&filter).await?;
            page.stories.into_iter().for_each(&mut take);
            if page.next_page_token.is_empty() {
                return Ok(());
            }
            filter.page_token = page.next_page_token;
        }
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
