//! What comparing two answers to one request came to, as the ledger keeps it beside the books.

use super::LedgerError;
use crate::domain::{ModelId, RequestId, TenantId};
use crate::evidence::outcome::OutcomeSource;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A graded pair of answers; no text of either.
#[derive(Clone, Debug, PartialEq)]
pub struct GradedOutcome {
    /// The entry that was served.
    pub entry: RequestId,
    /// Whose request.
    pub tenant: TenantId,
    /// When it was graded.
    pub at: Timestamp,
    /// Name and content hash of the policy that decided.
    pub policy: (String, String),
    /// The small model.
    pub small: ModelId,
    /// The large model.
    pub large: ModelId,
    /// Quality of the small model's answer, 0 to 1.
    pub small_quality: f64,
    /// Quality of the large model's answer, 0 to 1.
    pub large_quality: f64,
    /// Who graded.
    pub graded_by: OutcomeSource,
    /// Probability with which the request was chosen for it, above 0 and at most 1.
    pub sampling_probability: f64,
    /// The score that the small model had been given, and the scorer's version.
    pub score: Option<(f64, String)>,
    /// Whether the small model's answer was the one shown.
    pub local: bool,
    /// Whether the small model is only being tried beside the one that serves: what chose it is no evidence for it.
    pub candidate: bool,
}

/// Which outcomes to read: after this one, oldest first.
#[derive(Clone, Debug, Default)]
pub struct OutcomeFilter {
    /// Only of this tenant; empty means all.
    pub tenant: String,
    /// Only of this policy; empty means all.
    pub policy: String,
    /// Those of candidates, in place of those of models that serve.
    pub candidates: bool,
}

/// See [`GradedOutcome`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredOutcome {
    pub entry: String,
    pub tenant: String,
    pub at_ms: i64,
    pub policy: String,
    pub policy_hash: String,
    pub small: String,
    pub large: String,
    pub small_quality: f64,
    pub large_quality: f64,
    pub graded_by: String,
    pub sampling_probability: f64,
    pub score: Option<f64>,
    pub scorer: String,
    pub local: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub candidate: bool,
}

impl From<&GradedOutcome> for StoredOutcome {
    fn from(outcome: &GradedOutcome) -> Self {
        Self {
            entry: outcome.entry.to_string(),
            tenant: outcome.tenant.to_string(),
            at_ms: outcome.at.as_millisecond(),
            policy: outcome.policy.0.clone(),
            policy_hash: outcome.policy.1.clone(),
            small: outcome.small.to_string(),
            large: outcome.large.to_string(),
            small_quality: outcome.small_quality,
            large_quality: outcome.large_quality,
            graded_by: outcome.graded_by.as_str().to_owned(),
            sampling_probability: outcome.sampling_probability,
            score: outcome.score.as_ref().map(|(score, _)| *score),
            scorer: outcome.score.as_ref().map(|(_, version)| version.clone()).unwrap_or_default(),
            local: outcome.local,
            candidate: outcome.candidate,
        }
    }
}

impl StoredOutcome {
    /// The outcome; `None` if a word in it is unknown to this build.
    pub fn outcome(self) -> Option<GradedOutcome> {
        Some(GradedOutcome {
            entry: RequestId::parse(&self.entry)?,
            tenant: TenantId::new(self.tenant),
            at: Timestamp::from_millisecond(self.at_ms).ok()?,
            policy: (self.policy, self.policy_hash),
            small: ModelId::new(self.small),
            large: ModelId::new(self.large),
            small_quality: self.small_quality,
            large_quality: self.large_quality,
            graded_by: OutcomeSource::parse(&self.graded_by)?,
            sampling_probability: self.sampling_probability,
            score: self.score.map(|score| (score, self.scorer)),
            local: self.local,
            candidate: self.candidate,
        })
    }
}

impl super::Ledger {
    /// Writes down what a comparison came to.
    ///
    /// # Errors
    /// The journal can't be written.
    pub fn outcome(&self, outcome: &GradedOutcome) -> Result<(), LedgerError> {
        self.journal.append(&super::stored::Record::Outcome(StoredOutcome::from(outcome)))
    }

    /// What comparisons came to, oldest first.
    ///
    /// # Errors
    /// The store fails.
    pub async fn outcomes(&self, filter: &OutcomeFilter) -> Result<Vec<GradedOutcome>, LedgerError> {
        self.flush().await;
        self.store.outcomes(filter).await
    }

    /// Outcomes behind a place, with their places, in the order they came in; at most `most`. Places rise; where rows were
    /// deleted ([`super::Ledger::forget`]) they may be given again, which [`super::Ledger::last_outcome`] shows.
    ///
    /// # Errors
    /// The store fails.
    pub async fn outcomes_after(&self, place: i64, most: usize) -> Result<Vec<(i64, GradedOutcome)>, LedgerError> {
        self.flush().await;
        self.store.outcomes_after(place, most).await
    }

    /// The place of the last outcome; 0 without any.
    ///
    /// # Errors
    /// The store fails.
    pub async fn last_outcome(&self) -> Result<i64, LedgerError> {
        self.flush().await;
        self.store.last_outcome().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AttemptId, NanoUsd, Route};
    use crate::ledger::{Archive, AttemptStarted, Ledger, LedgerOptions, Recovery, ShadowOf};
    use std::path::Path;
    use std::sync::Arc;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    fn outcome(tenant: &str, at_ms: i64) -> GradedOutcome {
        GradedOutcome {
            entry: RequestId::fresh(),
            tenant: TenantId::new(tenant),
            at: Timestamp::from_millisecond(at_ms).unwrap(),
            policy: ("balanced".to_owned(), "h".to_owned()),
            small: ModelId::new("s"),
            large: ModelId::new("a/large"),
            small_quality: 0.0,
            large_quality: 1.0,
            graded_by: OutcomeSource::Judge,
            sampling_probability: 0.1,
            score: Some((0.25, "v".to_owned())),
            local: true,
            candidate: false,
        }
    }

    async fn open(folder: &Path) -> (Arc<Ledger>, Recovery, impl AsyncFnOnce()) {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let opened = Ledger::open(folder, LedgerOptions::default(), &tracker, stop.clone()).await;
        let (ledger, recovery) = opened.unwrap();
        let close = async move || {
            stop.cancel();
            tracker.close();
            tracker.wait().await;
        };
        (ledger, recovery, close)
    }

    #[tokio::test]
    async fn outcomes_are_read_back_in_order_and_go_with_what_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let (ledger, _, close) = open(folder.path()).await;
        let unscored = GradedOutcome { score: None, ..outcome("other", 3_000) };
        let rows = [outcome("acme", 2_000), outcome("acme", 1_000), unscored];
        rows.iter().for_each(|row| ledger.outcome(row).unwrap());
        let all = ledger.outcomes(&OutcomeFilter::default()).await.unwrap();
        assert_eq!(all, [rows[1].clone(), rows[0].clone(), rows[2].clone()]);
        let read = Archive::open(folder.path()).await.unwrap().outcomes(&OutcomeFilter::default()).await.unwrap();
        assert_eq!(read, all);
        let of = |tenant: &str, policy: &str| OutcomeFilter {
            tenant: tenant.to_owned(),
            policy: policy.to_owned(),
            ..OutcomeFilter::default()
        };
        assert_eq!(ledger.outcomes(&of("other", "balanced")).await.unwrap().len(), 1);
        assert!(ledger.outcomes(&of("other", "frugal")).await.unwrap().is_empty());
        // Graded again, the later grade counts.
        ledger.outcome(&GradedOutcome { small_quality: 1.0, ..rows[2].clone() }).unwrap();
        assert_eq!(ledger.outcomes(&of("other", "")).await.unwrap()[0].small_quality, 1.0);
        ledger.forget(&TenantId::new("acme")).await.unwrap();
        assert_eq!(ledger.outcomes(&OutcomeFilter::default()).await.unwrap().len(), 1);
        close().await;
    }

    #[tokio::test]
    async fn what_an_interrupted_shadow_run_held_is_spent_on_both_sides() {
        let folder = tempfile::tempdir().unwrap();
        let served = RequestId::fresh();
        let started = AttemptStarted {
            attempt: AttemptId::fresh(),
            request: RequestId::fresh(),
            tenant: TenantId::new("acme"),
            model: ModelId::new("a/large"),
            route: Route::Remote,
            number: 1,
            started_at: Timestamp::now(),
            hold: NanoUsd::new(70),
            shadow: Some(ShadowOf { entry: served, policy: "balanced".to_owned() }),
        };
        let (ledger, _, close) = open(folder.path()).await;
        ledger.attempt_started(&started).unwrap();
        close().await;
        drop(ledger);
        let (ledger, recovery, close) = open(folder.path()).await;
        assert_eq!(recovery.interrupted, 1);
        let sums = |spent: i64| NanoUsd::new(spent);
        assert_eq!(recovery.spent.iter().map(|row| row.2).collect::<Vec<_>>(), [sums(70)]);
        assert_eq!(
            recovery.shadow_spent.iter().map(|row| (row.0.as_str(), row.2)).collect::<Vec<_>>(),
            [("balanced", sums(70))]
        );
        let story = ledger.story(None, started.request).await.unwrap();
        assert_eq!((story.entry.shadow_of, &story.attempts[0].started.shadow), (Some(served), &started.shadow));
        close().await;
    }
}
