//! What the gateway knows of learning: how far each policy's got, in figures and in words; and what it tells the teacher.

use super::learner::{Counts, Learner};
use crate::policy::Policy;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// How far a policy's learning got.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// What was taken in.
    pub counts: Counts,
    /// Scorers that were tested.
    pub starts: u32,
    /// Version of the scorer in force.
    pub scorer: Option<String>,
    /// Its proven threshold.
    pub threshold: Option<f64>,
    /// Share of the evidence at or above it.
    pub local_share: f64,
    /// About how many more outcomes are needed before anything can be served locally.
    pub needed: Option<u64>,
}

impl Status {
    pub(super) fn of(learner: &Learner) -> Self {
        let chosen = learner.chosen();
        let threshold = chosen.as_ref().and_then(|chosen| chosen.threshold);
        Self {
            counts: learner.counts,
            starts: learner.starts,
            scorer: chosen.as_ref().map(|chosen| chosen.tested.scorer.version().to_owned()),
            threshold,
            local_share: chosen.filter(|_| threshold.is_some()).map_or(0.0, |chosen| chosen.tested.test.local_share()),
            needed: learner.needed(),
        }
    }

    /// In words.
    pub fn told(&self) -> String {
        let Counts { fit, evidence, lost, .. } = self.counts;
        let outcomes = fit + evidence + lost;
        match (self.threshold, &self.scorer, self.needed) {
            (Some(threshold), Some(scorer), _) => format!(
                "learnt from {outcomes} outcomes ({fit} to fit, {evidence} as evidence, {lost} lost): scorer {scorer} from \
                 {threshold:.3} on, {:.0} % of the evidence",
                self.local_share * 100.0
            ),
            (_, _, Some(needed)) => {
                format!("learning: all remote after {outcomes} outcomes, about {needed} more are needed")
            }
            _ => format!("learning: all remote after {outcomes} outcomes, and more like these would prove nothing"),
        }
    }
}

/// What the gateway knows of learning.
#[derive(Debug)]
pub struct Learning {
    status: Mutex<BTreeMap<String, Status>>,
    lost: Mutex<BTreeMap<String, u64>>,
    asked: mpsc::Sender<oneshot::Sender<()>>,
}

impl Learning {
    /// Nothing is known yet; with what the teacher hears by.
    pub(super) fn new() -> (Self, mpsc::Receiver<oneshot::Sender<()>>) {
        let (sender, asked) = mpsc::channel(8);
        (Self { status: Mutex::default(), lost: Mutex::default(), asked: sender }, asked)
    }

    /// Keeps how far a policy's learning got; `None` if it learns no more.
    pub(super) fn tell(&self, policy: &str, status: Option<Status>) {
        match status {
            Some(status) => locked(&self.status).insert(policy.to_owned(), status),
            None => locked(&self.status).remove(policy),
        };
    }

    /// Outcomes of a policy that were lost since the last call.
    pub(super) fn take_lost(&self, policy: &str) -> u64 {
        locked(&self.lost).remove(policy).unwrap_or(0)
    }

    /// How far a policy's learning got; `None` if it does not learn.
    pub fn status(&self, policy: &str) -> Option<Status> {
        locked(&self.status).get(policy).cloned()
    }

    /// The same in words.
    pub fn told(&self, policy: &Policy) -> Option<String> {
        policy.learn?;
        self.status(&policy.reference.name).map(|status| status.told())
    }

    /// A sampled request of a policy came to no outcome.
    pub fn lost(&self, policy: &str) {
        *locked(&self.lost).entry(policy.to_owned()).or_default() += 1;
    }

    /// Looks at what came in now, and returns when that is done.
    pub async fn look(&self) {
        let (done, finished) = oneshot::channel();
        if self.asked.send(done).await.is_ok() {
            let _gone = finished.await;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
