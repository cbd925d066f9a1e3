//! The record of what happened: one entry a request, one row an attempt, feedback. Nothing that was started is lost.
//!
//! The journal is an append-only file written before each attempt and at each end; it survives kill -9. One writer task
//! drains it into SQLite and keeps, in the same transaction, how far it got: that makes the journal the queue, the spool
//! while the store is away, and the means of recovery, and every record lands exactly once. Knows no protocol.

mod archive;
mod histogram;
mod journal;
mod outcome;
mod query;
mod recording;
mod sqlite;
mod stored;
mod writer;

pub use archive::Archive;
pub use histogram::LatencyHistogram;
pub use outcome::{GradedOutcome, OutcomeFilter};
pub use query::{EntryFilter, GroupBy, Page, Summary, SummaryQuery, SummaryRow};

use crate::domain::ModelId;
use crate::domain::{
    AttemptId, Constraints, Cost, Decision, EntryStatus, FinishReason, Labels, NanoUsd, Recording, RequestId, Route,
    TenantId, Usage,
};
use jiff::Timestamp;
use journal::Journal;
use sqlite::Store;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use stored::Record;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Why the ledger can't do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// The data folder can't be used.
    #[error("{}: {reason}; give `data_dir` a folder that this process can write", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another process uses the folder.
    #[error("{} is in use by another process; give each replica its own `data_dir`", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The journal can't be written.
    #[error("the journal {} can't be written: {reason}", path.display())]
    JournalUnwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The journal holds too much that the store has not taken.
    #[error(
        "the store is {bytes} bytes behind the journal, more than `ledger.max_backlog_bytes`; is the disk slow or full?"
    )]
    Backlogged {
        /// How far.
        bytes: u64,
    },
    /// The store's file is damaged or not ours.
    #[error("{} can't be used as the ledger: {reason}; restore it from a backup or move it away, the journal starts a new one", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        reason: String,
    },
    /// There is no ledger to read.
    #[error("there is no ledger {}; name the data folder of a gateway that has run", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// No such entry for this tenant.
    #[error("there is no entry `{0}`")]
    NotFound(String),
    /// The store's file was made by a later version.
    #[error("{} was made by a later version (migration {migration}); use that version, or give `data_dir` another folder", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The first migration that this build does not know.
        migration: i64,
    },
    /// A page token that this server did not make.
    #[error("the page token is not one of this server's")]
    PageToken,
}

/// An attempt that is about to start.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptStarted {
    /// Its id, also sent to the backend.
    pub attempt: AttemptId,
    /// The request it serves.
    pub request: RequestId,
    /// Whose money.
    pub tenant: TenantId,
    /// The model.
    pub model: ModelId,
    /// `Local` or `Remote`.
    pub route: Route,
    /// Counts tries at the same model, from 1.
    pub number: u32,
    /// When.
    pub started_at: Timestamp,
    /// What is held for it.
    pub hold: NanoUsd,
    /// Of a shadow run: whose answer it is compared with, and on which policy's shadow budget it draws.
    pub shadow: Option<ShadowOf>,
}

/// What a shadow run is beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowOf {
    /// The entry that was served.
    pub entry: RequestId,
    /// Name of the policy whose shadow budget pays.
    pub policy: String,
}

/// An attempt that ended.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptEnded {
    /// Its id.
    pub attempt: AttemptId,
    /// The request it served.
    pub request: RequestId,
    /// When.
    pub ended_at: Timestamp,
    /// How.
    pub status: EntryStatus,
    /// What it cost.
    pub cost: Cost,
    /// What it used.
    pub usage: Usage,
    /// Processor time of the local model, in seconds.
    pub cpu_seconds: f64,
    /// How long it took.
    pub latency: Duration,
    /// Why it failed, as a stable code; empty if it did not.
    pub error: String,
    /// Whether the truth came out above the hold.
    pub overrun: bool,
}

/// An attempt as the store has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// How it started.
    pub started: AttemptStarted,
    /// How it ended; `None` while it runs.
    pub ended: Option<AttemptEnded>,
}

/// One request, finished.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its id.
    pub id: RequestId,
    /// Whose money.
    pub tenant: TenantId,
    /// Name of the key.
    pub key_name: String,
    /// When it came.
    pub received_at: Timestamp,
    /// How long it took.
    pub latency: Duration,
    /// Time to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// How it ended.
    pub status: EntryStatus,
    /// The decision that held at the end.
    pub decision: Option<Decision>,
    /// What placement, key and rules allowed.
    pub constraints: Option<Constraints>,
    /// Tokens over all attempts.
    pub usage: Usage,
    /// Processor time of the local model, in seconds.
    pub cpu_seconds: f64,
    /// Cost over all attempts.
    pub cost: Cost,
    /// What the first large model would have cost: an estimate.
    pub baseline: NanoUsd,
    /// How the baseline was estimated.
    pub baseline_method: String,
    /// Why the answer ended, if it did.
    pub finish_reason: Option<FinishReason>,
    /// Why the request failed, as a stable code; empty if it did not.
    pub error: String,
    /// The entry whose answer was repeated.
    pub cached_from: Option<RequestId>,
    /// Labels of the request.
    pub labels: Labels,
    /// Conversation id of the request.
    pub conversation_id: String,
    /// End-user id of the request.
    pub end_user_id: String,
    /// What its tenant's record level keeps of the request.
    pub recording: Option<Recording>,
    /// Of a shadow run, which served nobody: the entry that was served.
    pub shadow_of: Option<RequestId>,
}

/// Who judges an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeedbackSource {
    /// A person.
    User,
    /// A model used as a judge.
    Judge,
    /// A measured outcome.
    Metric,
}

impl FeedbackSource {
    /// The word in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Judge => "judge",
            Self::Metric => "metric",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::User, Self::Judge, Self::Metric].into_iter().find(|source| source.as_str() == word)
    }
}

/// Feedback on an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Feedback {
    /// The entry.
    pub entry: RequestId,
    /// Who judges.
    pub source: FeedbackSource,
    /// 0..=1.
    pub value: f64,
    /// When.
    pub at: Timestamp,
}

/// What became of feedback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedbackOutcome {
    /// New.
    Recorded,
    /// The same value was there.
    Unchanged,
    /// It replaced another value.
    Updated,
}

/// An entry with all that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    /// The entry.
    pub entry: Entry,
    /// Its attempts, in order.
    pub attempts: Vec<Attempt>,
    /// Its feedback.
    pub feedback: Vec<Feedback>,
}

/// How the ledger keeps its journal.
#[derive(Clone, Copy, Debug)]
pub struct LedgerOptions {
    /// Wait for the disk at each record (`durability = "power"`); otherwise records survive the process, not the power.
    pub sync_each: bool,
    /// Most bytes the store may be behind before paid attempts are refused.
    pub max_backlog_bytes: u64,
    /// Bytes after which the journal goes on in a new file.
    pub segment_bytes: u64,
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self { sync_each: false, max_backlog_bytes: 256 << 20, segment_bytes: 16 << 20 }
    }
}

/// What was found and mended at the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovery {
    /// Records that the store had not taken.
    pub replayed: u64,
    /// Attempts that were started and never ended: booked at their hold.
    pub interrupted: u64,
    /// Files with the damaged ends and lines of journals, set aside.
    pub torn: Vec<PathBuf>,
    /// What was spent in the current month: tenant, when, how much.
    pub spent: Vec<(TenantId, Timestamp, NanoUsd)>,
    /// What of it shadow runs spent: policy, when, how much.
    pub shadow_spent: Vec<(String, Timestamp, NanoUsd)>,
}

/// The ledger; cheap to share in an `Arc`.
pub struct Ledger {
    journal: Arc<Journal>,
    store: Store,
    max_backlog_bytes: u64,
    _lock: std::fs::File,
}

impl Ledger {
    /// Opens or makes the ledger in `folder`, drains what the last process left, books what it interrupted, and starts the
    /// writer task on `tracker`. The writer flushes when `stop` fires.
    ///
    /// # Errors
    /// The folder can't be used, another process uses it, or the store's file is damaged.
    pub async fn open(
        folder: &Path,
        options: LedgerOptions,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<(Arc<Self>, Recovery), LedgerError> {
        let unusable =
            |error: std::io::Error| LedgerError::Folder { path: folder.to_owned(), reason: error.to_string() };
        std::fs::create_dir_all(folder).map_err(unusable)?;
        let lock = local_worker::files::lock(&folder.join("lock")).map_err(unusable)?;
        let lock = lock.ok_or_else(|| LedgerError::Locked { path: folder.to_owned() })?;
        let store = Store::open(&folder.join("ledger.sqlite"), options.sync_each).await?;
        let mut recovery = Recovery::default();
        let journal = Arc::new(Journal::open(folder, options, &store.position().await?, &mut recovery.torn)?);
        recovery.replayed = writer::drain(&journal, &store).await?;
        recovery.interrupted = store.interrupt_unfinished(Timestamp::now()).await?;
        let (month, _) = crate::budget::BudgetWindow::Month.span(Timestamp::now());
        recovery.spent = store.spent_since(month).await?;
        recovery.shadow_spent = store.shadow_spent_since(month).await?;
        tracker.spawn(writer::run(Arc::clone(&journal), store.clone(), stop));
        Ok((Arc::new(Self { journal, store, max_backlog_bytes: options.max_backlog_bytes, _lock: lock }), recovery))
    }

    /// Writes down an attempt before it is made.
    ///
    /// # Errors
    /// The journal can't be written or is too far ahead of the store: the attempt should not be made if it costs money.
    pub fn attempt_started(&self, started: &AttemptStarted) -> Result<(), LedgerError> {
        let bytes = self.journal.backlog_bytes();
        if bytes > self.max_backlog_bytes {
            return Err(LedgerError::Backlogged { bytes });
        }
        self.journal.append(&Record::started(started))
    }

    /// Writes down how an attempt ended.
    ///
    /// # Errors
    /// The journal can't be written: the attempt will be booked at its hold at the next start.
    pub fn attempt_ended(&self, ended: &AttemptEnded) -> Result<(), LedgerError> {
        self.journal.append(&Record::ended(ended))
    }

    /// Writes down a finished request.
    ///
    /// # Errors
    /// The journal can't be written.
    pub fn entry(&self, entry: &Entry) -> Result<(), LedgerError> {
        self.journal.append(&Record::entry(entry))
    }

    /// Records feedback on an entry of `tenant`.
    ///
    /// # Errors
    /// The tenant has no such entry, or the journal can't be written.
    pub async fn feedback(&self, tenant: &TenantId, feedback: &Feedback) -> Result<FeedbackOutcome, LedgerError> {
        let story = self.story(Some(tenant), feedback.entry).await?;
        let before = story.feedback.iter().find(|before| before.source == feedback.source).map(|before| before.value);
        let outcome = match before {
            Some(value) if value == feedback.value => return Ok(FeedbackOutcome::Unchanged),
            Some(_) => FeedbackOutcome::Updated,
            None => FeedbackOutcome::Recorded,
        };
        self.journal.append(&Record::feedback(feedback))?;
        self.flush().await;
        Ok(outcome)
    }

    /// Waits until the store has everything that was written down before this call, or has failed to take it.
    pub async fn flush(&self) {
        self.journal.drained_to(self.journal.end()).await;
    }

    /// One entry with its attempts and feedback; of `tenant` only, if one is given.
    ///
    /// # Errors
    /// There is no such entry (of this tenant), or the store fails.
    pub async fn story(&self, tenant: Option<&TenantId>, id: RequestId) -> Result<Story, LedgerError> {
        self.flush().await;
        self.store.story(tenant, id).await
    }

    /// Entries that match, newest first.
    ///
    /// # Errors
    /// A foreign page token, or the store fails.
    pub async fn list(&self, filter: &EntryFilter) -> Result<Page, LedgerError> {
        self.flush().await;
        self.store.list(filter).await
    }

    /// Requests that a policy decided since `from`, and what they cost, with what a dead process left unattributed.
    ///
    /// # Errors
    /// The store fails.
    pub async fn spent_under(&self, policy: &str, from: Timestamp) -> Result<(u64, NanoUsd), LedgerError> {
        self.flush().await;
        self.store.spent_under(policy, from).await
    }

    /// Sums over entries.
    ///
    /// # Errors
    /// The store fails.
    pub async fn summarize(&self, query: &SummaryQuery) -> Result<Vec<SummaryRow>, LedgerError> {
        self.flush().await;
        self.store.summarize(query).await
    }

    /// Deletes what is kept of a tenant's requests beside the books (text, features, outcomes); returns how many there were. Their
    /// entries stay: they are the books. A journal file may hold their text until the next start.
    ///
    /// # Errors
    /// The store fails.
    pub async fn forget(&self, tenant: &TenantId) -> Result<u64, LedgerError> {
        self.flush().await;
        self.store.forget(tenant).await
    }

    /// Bytes of the journal that the store has not taken yet.
    pub fn backlog_bytes(&self) -> u64 {
        self.journal.backlog_bytes()
    }
}

#[cfg(test)]
mod tests;
