//! Learning while serving: outcomes of the ledger → a scorer that moved → a certificate that was solved again → in force,
//! without a restart and without a word in anybody's files.
//!
//! The ledger is the queue: [`Teacher`] reads outcomes behind the place it got to, so that each is taken in just once and a
//! restart loses nothing. Only rows whose text its tenant lets be recorded are learnt from, and what was learnt serves only
//! such tenants. Feedback is not among them: nobody knows how likely it was, so it can't move a certificate.
//!
//! A breach that withdrew the certificate ends what was learnt: evidence from before speaks of other traffic. Proofs begin
//! anew with what comes after, with what is left of the error probability.

use super::Live;
use super::learner::{About, Chosen, Counts, Learner, Use};
use super::learning::{Learning, Status};
use super::lessons::{Lessons, PAGE, hash_of, outcome};
use super::shelf::Shelf;
use crate::evidence::bound::Evidence;
use crate::evidence::certificate::{Certificate, Method};
use crate::evidence::drift::Reference;
use crate::evidence::outcome::Outcome;
use crate::ledger::{Ledger, LedgerError};
use crate::policy::live::Standing;
use crate::policy::{Learnt, Policy, Registry};
use crate::score::PairScorer;
use crate::score::blend::{Shared, blend};
use crate::telemetry::Metrics;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// A scorer is fitted on at most so many outcomes, the latest.
const MOST_FITTED: usize = 20_000;
/// Looks without any policy that learns: whether there is one now.
const IDLE: Duration = Duration::from_secs(10);
/// Decides what trees of a scorer see.
const SEED: u64 = 17;

/// Learns. One task of the process runs it.
pub struct Teacher {
    registry: Arc<Registry>,
    ledger: Arc<Ledger>,
    live: Arc<Live>,
    metrics: Metrics,
    shelf: Shelf,
    learning: Arc<Learning>,
    learners: BTreeMap<String, Learner>,
    asked: mpsc::Receiver<oneshot::Sender<()>>,
}

/// What a teacher works with.
pub struct TeacherParts<'a> {
    /// The data folder.
    pub data: &'a Path,
    /// Where scorers and certificates are put in force.
    pub registry: Arc<Registry>,
    /// Where outcomes come from.
    pub ledger: Arc<Ledger>,
    /// Whether what is in force still stands.
    pub live: Arc<Live>,
    /// Metrics.
    pub metrics: Metrics,
}

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum TeachError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Score(#[from] crate::score::ScoreError),
    #[error(transparent)]
    Shelf(#[from] super::shelf::ShelfError),
    #[error(transparent)]
    Registry(#[from] crate::policy::RegistryError),
}

impl Teacher {
    /// A teacher, with what was learnt before already in force, and what the gateway knows of it.
    pub fn open(parts: TeacherParts<'_>) -> (Arc<Learning>, Self) {
        let TeacherParts { data, registry, ledger, live, metrics } = parts;
        let (learning, asked) = Learning::new();
        let learning = Arc::new(learning);
        let shelf = Shelf::within(data);
        let learners = BTreeMap::new();
        let mut teacher =
            Self { registry, ledger, live, metrics, shelf, learning: Arc::clone(&learning), learners, asked };
        let snapshot = teacher.registry.snapshot();
        for policy in snapshot.policies().filter(|policy| policy.learn.is_some()) {
            teacher.recall(policy);
        }
        (learning, teacher)
    }

    /// Takes up what an earlier process learnt for a policy. What can't be read is learnt again from the ledger: until then
    /// everything is remote.
    fn recall(&mut self, policy: &Policy) {
        let Some((about, learn)) = About::of(policy) else { return };
        let name = &policy.reference.name;
        let learner = match self.shelf.read(name) {
            Ok(Some((learner, certificate))) => {
                let serving = learner
                    .in_force
                    .as_ref()
                    .and_then(|(version, _)| learner.tested.iter().find(|tested| tested.scorer.version() == version));
                if let Some(serving) = serving {
                    let learnt = Learnt { scorer: Arc::clone(&serving.scorer), certificate };
                    if let Err(error) = self.registry.adopt(name, Some(learnt)) {
                        tracing::error!(policy = %name, %error, "what was learnt can't be put in force");
                    }
                }
                learner
            }
            Ok(None) => Learner::new(about, learn),
            Err(error) => {
                tracing::error!(policy = %name, %error, "what was learnt is lost; it is learnt again from the ledger");
                Learner::new(about, learn)
            }
        };
        self.tell(name, &learner);
        self.learners.insert(name.clone(), learner);
    }

    /// Looks at what came in, again and again, until `stop` fires.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let snapshot = self.registry.snapshot();
            let every = snapshot.policies().filter_map(|policy| policy.learn).map(|learn| learn.every).min();
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every.unwrap_or(IDLE)) => None,
                asked = self.asked.recv() => asked,
            };
            // A look that is cut off changed nothing that was written down.
            if stop.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
            if let Some(done) = asked {
                let _gone = done.send(());
            }
        }
    }

    async fn look(&mut self) {
        let snapshot = self.registry.snapshot();
        let policies: Vec<Arc<Policy>> =
            snapshot.policies().filter(|policy| About::of(policy).is_some()).cloned().collect();
        let left: Vec<String> = self
            .learners
            .keys()
            .filter(|name| !policies.iter().any(|policy| policy.reference.name == **name))
            .cloned()
            .collect();
        for name in left {
            self.learners.remove(&name);
            self.learning.tell(&name, None);
            if let Err(error) = self.registry.adopt(&name, None) {
                tracing::error!(policy = %name, %error, "what was learnt can't be taken out");
            }
        }
        for policy in policies {
            let name = policy.reference.name.clone();
            if !self.learners.contains_key(&name) {
                self.recall(&policy);
            }
            // Out of the table while it learns: what fails half-way is read again from the shelf.
            let Some(mut learner) = self.learners.remove(&name) else { continue };
            match self.teach(&policy, &mut learner).await {
                Ok(()) => {
                    self.tell(&name, &learner);
                    self.learners.insert(name, learner);
                }
                Err(error) => tracing::error!(policy = %name, %error, "nothing could be learnt just now"),
            }
        }
    }

    /// One look for one policy.
    async fn teach(&mut self, policy: &Policy, learner: &mut Learner) -> Result<(), TeachError> {
        let Some((about, learn)) = About::of(policy) else { return Ok(()) };
        let name = &policy.reference.name;
        let mut changed = false;
        if learner.about != about {
            *learner = learner.anew(about, learn, learner.since_ms);
            changed = true;
        } else if policy.learnt().is_some() && matches!(self.live.standing(policy), Standing::Withdrawn(_)) {
            tracing::warn!(policy = %name, "the certificate was withdrawn: learning begins anew with what comes now");
            *learner = learner.anew(about, learn, jiff::Timestamp::now().as_millisecond());
            changed = true;
        }
        let lost = self.learning.take_lost(name);
        learner.lost(lost);
        let taken = self.take_in(policy, learner).await?;
        changed |= lost > 0 || taken;
        if learner.wants_fit() {
            self.fit(policy, learner).await?;
            changed = true;
        }
        if changed {
            self.put_in_force(policy, learner).await?;
            self.shelf.write(name, learner)?;
        }
        Ok(())
    }

    /// Takes in what came behind the place the learner got to; whether there was anything.
    async fn take_in(&self, policy: &Policy, learner: &mut Learner) -> Result<bool, TeachError> {
        // Rows that were deleted give their places to later ones.
        let last = self.ledger.last_outcome().await?;
        let before = learner.taken;
        learner.taken = learner.taken.min(last);
        loop {
            let page = self.ledger.outcomes_after(learner.taken, PAGE).await?;
            let Some((end, _)) = page.last() else { return Ok(learner.taken != before) };
            learner.taken = *end;
            for (place, outcome) in page {
                if outcome.policy.0 != policy.reference.name || outcome.at.as_millisecond() < learner.since_ms {
                    continue;
                }
                let Some(row) = self.lessons(policy).row(learner, place, outcome).await? else {
                    learner.counts.unusable += 1;
                    continue;
                };
                match Use::of(&row.cluster) {
                    Use::Fit => learner.fit_on(),
                    Use::Evidence => {
                        let grades = (row.outcome.small_quality, row.outcome.large_quality);
                        let score = |scorer: &PairScorer| scorer.score(&row.messages).map(|score| score.get());
                        learner.observe(&row.cluster, grades, score)?;
                    }
                }
            }
        }
    }

    fn lessons<'a>(&'a self, policy: &'a Policy) -> Lessons<'a> {
        Lessons { ledger: &self.ledger, policy }
    }

    /// Fits the next scorer and begins to test it.
    async fn fit(&self, policy: &Policy, learner: &mut Learner) -> Result<(), TeachError> {
        let name = &policy.reference.name;
        let rows = self.lessons(policy).rows(learner, Use::Fit).await?;
        let latest = rows.len().saturating_sub(MOST_FITTED);
        let rows: Vec<Outcome> = rows.into_iter().skip(latest).map(outcome).collect();
        let pair = learner.about.pair();
        let count = rows.len();
        let fitted = tokio::task::spawn_blocking(move || {
            let rows: Vec<&Outcome> = rows.iter().collect();
            blend(&pair, &rows, &Shared::of(rows.iter().copied()), SEED, &hash_of(&rows))
        })
        .await;
        let fitted = match fitted {
            Ok(Ok(fitted)) => fitted,
            Ok(Err(error)) => {
                tracing::warn!(policy = %name, %error, outcomes = count, "no scorer could be fitted yet");
                learner.fit_failed();
                return Ok(());
            }
            Err(error) => {
                tracing::error!(policy = %name, %error, "fitting a scorer failed");
                learner.fit_failed();
                return Ok(());
            }
        };
        let scorer = Arc::new(fitted.scorer);
        let (evidence, _) = self.lessons(policy).evidence(learner, &scorer).await?;
        learner.tests(Arc::clone(&scorer), &evidence);
        let (version, start) = (scorer.version(), learner.starts);
        tracing::info!(policy = %name, scorer = %version, start, outcomes = count, "a scorer was fitted while serving");
        Ok(())
    }

    /// Puts in force what may serve now, if that changed.
    async fn put_in_force(&self, policy: &Policy, learner: &mut Learner) -> Result<(), TeachError> {
        let name = &policy.reference.name;
        let Some(chosen) = learner.chosen() else {
            if learner.in_force.take().is_some() || policy.learnt().is_some() {
                self.shelf.write_certificate(name, None)?;
                self.registry.adopt(name, None)?;
            }
            return Ok(());
        };
        let next = (chosen.tested.scorer.version().to_owned(), chosen.threshold);
        if learner.in_force.as_ref() == Some(&next) {
            return Ok(());
        }
        let certificate = match chosen.threshold {
            Some(_) => Some(self.certificate(policy, learner, &chosen).await?),
            None => None,
        };
        // On disk before in force: what serves is there after a crash.
        learner.in_force = Some(next);
        self.shelf.write_certificate(name, certificate.as_ref())?;
        self.shelf.write(name, learner)?;
        let scorer = Arc::clone(&chosen.tested.scorer);
        match &certificate {
            Some(certificate) => tracing::info!(
                policy = %name, scorer = %certificate.scorer_version, threshold = certificate.threshold,
                local_share = certificate.local_share, n = certificate.n, "a learnt certificate is in force"
            ),
            None => {
                tracing::info!(policy = %name, scorer = %scorer.version(), "a learnt scorer is in force, all remote")
            }
        }
        self.registry.adopt(name, Some(Learnt { scorer, certificate }))?;
        Ok(())
    }

    async fn certificate(
        &self,
        policy: &Policy,
        learner: &Learner,
        chosen: &Chosen,
    ) -> Result<Certificate, TeachError> {
        let Chosen { tested, threshold } = chosen;
        let (mut evidence, looks) = self.lessons(policy).evidence(learner, &tested.scorer).await?;
        let lost = Evidence { score: 1.0, small: 0.0, large: 1.0, weight: 1.0 };
        evidence.extend((0..learner.counts.lost).map(|_| lost));
        let About { promise, small, large, policy_hash } = &learner.about;
        Ok(Certificate {
            policy: policy.reference.name.clone(),
            policy_hash: policy_hash.clone(),
            scorer_version: tested.scorer.version().to_owned(),
            evidence_hash: stream(learner, tested.start),
            small: small.clone(),
            large: large.clone(),
            threshold: *threshold,
            n: tested.test.n(),
            bound: tested.test.bound(&evidence),
            confidence: promise.confidence,
            target: promise.target,
            local_share: tested.test.local_share(),
            needed: None,
            method: Method::AnytimeBetting,
            date: jiff::Timestamp::now().strftime("%F").to_string(),
            reference: Reference::of(&looks),
        })
    }

    fn tell(&self, policy: &str, learner: &Learner) {
        let status = Status::of(learner);
        let Counts { fit, evidence, lost, unusable, repeated } = status.counts;
        let used =
            [("fit", fit), ("evidence", evidence), ("lost", lost), ("unusable", unusable), ("repeated", repeated)];
        for (used_for, count) in used {
            self.metrics.learnt_outcomes(policy, used_for, count);
        }
        self.metrics.learnt(policy, u64::from(status.starts), status.local_share);
        self.learning.tell(policy, Some(status));
    }
}

/// The name of the outcomes that one scorer is tested on, which go on coming.
fn stream(learner: &Learner, start: u32) -> String {
    let words = format!("{} {} {} {start}", learner.about.small, learner.about.large, learner.since_ms);
    blake3::hash(words.as_bytes()).to_hex().chars().take(16).collect()
}
