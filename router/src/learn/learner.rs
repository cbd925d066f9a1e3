//! What one policy has learnt: outcomes go in one by one; scorers that should be fitted, and the one that may serve with its
//! proven threshold, come out. Pure: reading, fitting and putting in force are the teacher's.
//!
//! A hash of its cluster makes an outcome either one that scorers are fitted on or evidence, for ever, so that each scorer can
//! be tested on all evidence so far, whenever it was fitted. A test may be looked at after every outcome (`evidence::live`), and
//! the k-th scorer has the k-th part of the error probability, so that all proofs hold together: which proven scorer serves
//! may then be chosen by what it serves locally. At most two are tested at once, the one in force and the latest; a scorer
//! is fitted again when there are twice as many outcomes to fit.

use crate::evidence::bound::{Evidence, Promise};
use crate::evidence::live::LiveTest;
use crate::policy::live::Learn;
use crate::policy::{Objective, Policy};
use crate::score::train::place;
use crate::score::{Pair, PairScorer, ScoreError};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;

/// Half of the outcomes are evidence.
const EVIDENCE_EVERY: u64 = 2;

/// What has to stay the same for what was learnt to be gone on with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The promise.
    pub promise: Promise,
    /// The policy's first small model.
    pub small: String,
    /// Its first large model.
    pub large: String,
    /// Hash of the policy's text: which requests a score decides, and how likely they are sampled.
    pub policy_hash: String,
}

impl About {
    /// What a policy wants learnt; `None` if nothing, or if that can't be.
    pub fn of(policy: &Policy) -> Option<(Self, Learn)> {
        let Objective::MinCost { quality_target: target, confidence } = policy.objective else { return None };
        let about = Self {
            promise: Promise { target, confidence },
            small: policy.small.first()?.to_string(),
            large: policy.large.first()?.to_string(),
            policy_hash: policy.reference.hash.clone(),
        };
        Some((about, policy.learn.filter(|_| policy.shadow.is_some())?))
    }

    /// Whether the claim is the same, whatever else of the policy was changed.
    fn claims_as(&self, other: &Self) -> bool {
        Self { policy_hash: String::new(), ..self.clone() } == Self { policy_hash: String::new(), ..other.clone() }
    }

    /// The models.
    pub fn pair(&self) -> Pair {
        Pair::new(&*self.small, &*self.large)
    }
}

/// What an outcome is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Scorers are fitted on it.
    Fit,
    /// Certificates are solved on it.
    Evidence,
}

impl Use {
    /// What outcomes of a cluster are used for, always.
    pub fn of(cluster: &str) -> Self {
        if place("learn", cluster).is_multiple_of(EVIDENCE_EVERY) { Self::Evidence } else { Self::Fit }
    }
}

/// How many outcomes were taken in, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Fitted on.
    pub fit: u64,
    /// Evidence.
    pub evidence: u64,
    /// Sampled, and no grades could be had: they count as wrong.
    pub lost: u64,
    /// Without recorded text, or of other models.
    pub unusable: u64,
    /// Evidence that says the same as earlier evidence.
    pub repeated: u64,
}

/// A scorer that is being tested.
#[derive(Debug, Clone)]
pub struct Tested {
    /// The scorer.
    pub scorer: Arc<PairScorer>,
    /// How many were tested for the promise, this one with them.
    pub start: u32,
    /// Outcomes that it was fitted on.
    pub fitted_on: u64,
    /// Its tests.
    pub test: LiveTest,
}

/// What may serve.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The scorer, with its tests.
    pub tested: Tested,
    /// The proven threshold; `None` means all remote.
    pub threshold: Option<f64>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Learner {
    /// What it learns for.
    pub about: About,
    /// Outcomes before this time, in milliseconds since 1970, say nothing any more.
    pub since_ms: i64,
    /// Place in the ledger up to which outcomes are taken in.
    pub taken: i64,
    /// Scorers that were tested for the promise.
    pub starts: u32,
    /// Outcomes to fit on at which the next scorer is fitted.
    pub next_fit: u64,
    /// What was taken in.
    pub counts: Counts,
    /// Clusters of the evidence.
    pub seen: HashSet<u64>,
    /// The scorers that are tested, oldest first.
    pub tested: Vec<Tested>,
    /// Version of the one that was put in force, and its threshold.
    pub in_force: Option<(String, Option<f64>)>,
}

impl Learner {
    /// One that knows nothing.
    pub fn new(about: About, learn: Learn) -> Self {
        Self {
            about,
            since_ms: i64::MIN,
            taken: 0,
            starts: 0,
            next_fit: learn.first / EVIDENCE_EVERY,
            counts: Counts::default(),
            seen: HashSet::new(),
            tested: Vec::new(),
            in_force: None,
        }
    }

    /// One that knows nothing, after this one. Where the claim is still the same, so is the error probability that is left.
    pub fn anew(&self, about: About, learn: Learn, since_ms: i64) -> Self {
        let starts = if self.about.claims_as(&about) { self.starts } else { 0 };
        Self { starts, since_ms, ..Self::new(about, learn) }
    }

    /// Takes in an outcome to fit on.
    pub fn fit_on(&mut self) {
        self.counts.fit += 1;
    }

    /// Takes in evidence by the scores that `score` gives it, if its cluster is new.
    ///
    /// # Errors
    /// A scorer that gives no probability; not expected.
    pub fn observe(
        &mut self,
        cluster: &str,
        (small, large): (f64, f64),
        score: impl Fn(&PairScorer) -> Result<f64, ScoreError>,
    ) -> Result<(), ScoreError> {
        if !self.seen.insert(place("learn", cluster)) {
            self.counts.repeated += 1;
            return Ok(());
        }
        self.counts.evidence += 1;
        for tested in &mut self.tested {
            let row = Evidence { score: score(&tested.scorer)?, small, large, weight: 1.0 };
            if let Err(error) = tested.test.observe(&row) {
                tracing::warn!(%error, "an outcome is no evidence");
            }
        }
        Ok(())
    }

    /// Takes in outcomes whose grades could not be had.
    pub fn lost(&mut self, count: u64) {
        self.counts.lost += count;
        for tested in &mut self.tested {
            (0..count).for_each(|_| tested.test.observe_lost());
        }
    }

    /// Whether there is enough for the next scorer.
    pub fn wants_fit(&self) -> bool {
        self.counts.fit >= self.next_fit
    }

    /// No scorer could be fitted: it is tried again with a few more outcomes.
    pub fn fit_failed(&mut self) {
        self.next_fit = self.counts.fit + (self.counts.fit / 5).max(10);
    }

    /// Begins to test a scorer on all evidence so far. Scorers that neither serve nor are the latest are let go.
    pub fn tests(&mut self, scorer: Arc<PairScorer>, evidence: &[Evidence]) {
        self.starts += 1;
        self.next_fit = self.counts.fit * 2;
        let Ok(test) = LiveTest::new(self.about.promise, self.starts) else { return };
        let serving = self.in_force.as_ref().filter(|(_, threshold)| threshold.is_some()).map(|(version, _)| version);
        self.tested.retain(|tested| Some(tested.scorer.version()) == serving.map(String::as_str));
        let mut tested = Tested { scorer, start: self.starts, fitted_on: self.counts.fit, test };
        // First what is worst: no proof is had by what happens to come late.
        (0..self.counts.lost).for_each(|_| tested.test.observe_lost());
        for row in evidence {
            if let Err(error) = tested.test.observe(row) {
                tracing::warn!(%error, "an outcome is no evidence");
            }
        }
        self.tested.push(tested);
    }

    /// What may serve now: of the scorers with a proven threshold the one that keeps most local, of equals the latest;
    /// without any, the latest with everything remote.
    pub fn chosen(&self) -> Option<Chosen> {
        let local = |tested: &Tested| tested.test.threshold().map_or(-1.0, |_| tested.test.local_share());
        let best = self.tested.iter().reduce(|best, next| if local(next) >= local(best) { next } else { best })?;
        Some(Chosen { tested: best.clone(), threshold: best.test.threshold() })
    }

    /// About how many more outcomes are needed before anything can be served locally, if they go on as they did; `None`
    /// where something can, or more of the same would not help.
    pub fn needed(&self) -> Option<u64> {
        let Some(latest) = self.tested.last() else {
            let least = LiveTest::new(self.about.promise, self.starts + 1).ok()?.needed()?;
            let missing = least.saturating_sub(self.counts.evidence).max(self.next_fit.saturating_sub(self.counts.fit));
            return Some((missing * EVIDENCE_EVERY).max(1));
        };
        if self.chosen()?.threshold.is_some() {
            return None;
        }
        Some(latest.test.needed()? * EVIDENCE_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::calibration::Calibration;
    use local_worker::scorer::{Example, FitOptions, Learner as Fitting, Turn};

    fn about(target: f64) -> About {
        About {
            promise: Promise { target, confidence: 0.9 },
            small: "s".to_owned(),
            large: "l".to_owned(),
            policy_hash: "h".to_owned(),
        }
    }

    /// A scorer that says `first` for each text.
    fn scorer(first: f64) -> Arc<PairScorer> {
        let turns = [Turn::user("a")];
        let mut fitting = Fitting::new(FitOptions::default()).unwrap();
        let example = |target| Example { turns: &turns, target, weight: 1.0 };
        fitting.fit(&[example(1.0), example(0.0)]).unwrap();
        let calibration = Calibration::Isotonic(vec![(0.0, first)]);
        Arc::new(PairScorer::new(Pair::new("s", "l"), fitting.scorer(), calibration, "o".to_owned()))
    }

    fn good(score: f64) -> Evidence {
        Evidence { score, small: 1.0, large: 1.0, weight: 1.0 }
    }

    #[test]
    fn the_proven_scorer_that_keeps_most_local_serves_and_error_is_shared() {
        let mut learner = Learner::new(about(0.8), Learn::default());
        assert!(learner.chosen().is_none() && learner.needed() >= Some(100));
        let (first, second) = (scorer(0.9), scorer(0.7));
        learner.tests(Arc::clone(&first), &[]);
        assert_eq!(learner.chosen().unwrap().threshold, None);
        for number in 0..60 {
            learner.observe(&format!("c{number}"), (1.0, 1.0), |_| Ok(0.9)).unwrap();
        }
        learner.observe("c0", (0.0, 1.0), |_| Ok(0.9)).unwrap();
        assert_eq!((learner.counts.evidence, learner.counts.repeated), (60, 1));
        let chosen = learner.chosen().unwrap();
        assert!(chosen.threshold.is_some() && learner.needed().is_none());
        learner.in_force = Some((first.version().to_owned(), chosen.threshold));
        // One that has proven nothing yet does not push out one that has.
        let wrong = Evidence { score: 0.9, small: 0.0, large: 1.0, weight: 1.0 };
        learner.tests(Arc::clone(&second), &[wrong; 60]);
        assert_eq!((learner.starts, learner.tested.len()), (2, 2));
        assert_eq!(learner.chosen().unwrap().tested.scorer.version(), first.version());
        // One that is as good does, and the third start needs more than the first.
        let third = scorer(0.6);
        learner.tests(Arc::clone(&third), &[good(0.9); 60]);
        assert_eq!((learner.tested.len(), learner.tested[0].start, learner.tested[1].start), (2, 1, 3));
        assert_eq!(learner.chosen().unwrap().tested.scorer.version(), third.version());
        let few = |start| {
            let mut test = LiveTest::new(about(0.8).promise, start).unwrap();
            (1..200).find(|_| {
                test.observe(&good(0.9)).unwrap();
                test.threshold().is_some()
            })
        };
        assert!(few(3) > few(1));
    }

    #[test]
    fn what_was_lost_counts_for_scorers_to_come_and_a_new_beginning_keeps_what_was_spent() {
        let mut learner = Learner::new(about(0.8), Learn::default());
        learner.lost(20);
        learner.tests(scorer(0.9), &[good(0.9); 40]);
        assert_eq!(learner.chosen().unwrap().threshold, None);
        let next = learner.anew(About { policy_hash: "other".to_owned(), ..about(0.8) }, Learn::default(), 5);
        assert_eq!((next.starts, next.since_ms, next.taken, next.tested.len()), (1, 5, 0, 0));
        assert_eq!(learner.anew(about(0.7), Learn::default(), 5).starts, 0, "another claim");
    }
}
