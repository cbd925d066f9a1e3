//! What served traffic says about what was promised: graded requests and the looks of all go in; whether a policy's
//! certificates still stand comes out, with the figures that say why.
//!
//! A certificate is a proof about the requests it was solved on. While a policy serves, [`Live`] keeps three figures for each
//! pair of models: how far scores and outcomes are apart (calibration), the share of the large model's quality that was really
//! kept (an interval that may be looked at at any time, and an alarm, `evidence::watch`), and how far requests have shifted
//! from those that the certificate knows (`evidence::drift`). When one of the latter two gives way, the policy's `[on_breach]`
//! says what follows. A breach ends with a new certificate or a changed policy, never by itself: quality that recovers while
//! everything is remote proves nothing.
//!
//! State outlives the process in one small file, because a certificate that was withdrawn must not come back with a restart.
//! Knows no requests under way, no backends and no wire; the gateway feeds it, decisions ask it.

mod learner;
mod learning;
mod lessons;
pub mod masks;
pub mod recorded;
mod shelf;
mod state;
mod teacher;
pub mod transcripts;
mod watched;

pub use learner::Counts;
pub use learning::{Learning, Status};
pub use state::LiveError;
pub use teacher::{Teacher, TeacherParts};
pub use watched::{BreachOf, LiveReport, PROBED};

use crate::evidence::certificate::Certificate;
use crate::evidence::drift::{Look, Reference};
use crate::evidence::watch::Graded;
use crate::policy::live::{OnBreach, Standing};
use crate::policy::{CertificateState, JudgeState, Objective, Policy};
use crate::score::Pair;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use watched::Watched;

/// Whose figures: a policy's name and a pair of models.
type Key = (String, Pair);

/// The promise of a policy that is in force, and all it rests on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Promised {
    /// Changes with the policy, the scorer, the evidence or the judge: figures start anew then.
    pub epoch: String,
    pub target: f64,
    pub confidence: f64,
    pub reference: Option<Reference>,
    pub on_breach: OnBreach,
    /// Whether it was learnt while the policy served: its thresholds may move, its claim does not.
    pub learnt: bool,
}

impl Promised {
    /// The promise of a policy; `None` if it makes none, or has no certificate that holds.
    fn of(policy: &Policy) -> Option<Self> {
        let Objective::MinCost { quality_target: target, confidence } = policy.objective else { return None };
        let certificate = match policy.certificate() {
            CertificateState::Valid(certificate) => Some(certificate.as_ref()),
            _ => None,
        };
        let judge = match policy.judge() {
            JudgeState::InForce(file) => Some(&file.certificate),
            _ => None,
        };
        let solved: Vec<&Certificate> = certificate.into_iter().chain(judge).collect();
        if solved.is_empty() {
            return None;
        }
        let mut hash = blake3::Hasher::new_derive_key("sluice 2026 live promise");
        hash.update(policy.reference.hash.as_bytes());
        for certificate in &solved {
            hash.update(certificate.scorer_version.as_bytes());
            hash.update(certificate.evidence_hash.as_bytes());
            if policy.learnt().is_none() {
                hash.update(&certificate.threshold.unwrap_or(2.0).to_le_bytes());
            }
        }
        let epoch = hash.finalize().to_hex().chars().take(16).collect();
        let reference = certificate.and_then(|certificate| certificate.reference.clone());
        let learnt = policy.learnt().is_some();
        Some(Self { epoch, target, confidence, reference, on_breach: policy.on_breach, learnt })
    }
}

/// One served request whose two answers were graded.
#[derive(Debug, Clone)]
pub struct GradedRequest {
    /// The models.
    pub pair: Pair,
    /// The grades, and which answer was shown.
    pub grades: Graded,
    /// The score that the small model had been given.
    pub score: Option<f64>,
}

/// The live checks of all policies.
#[derive(Debug, Default)]
pub struct Live {
    watched: Mutex<Table>,
    file: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Table {
    of: BTreeMap<Key, Watched>,
    changed: bool,
}

impl Live {
    /// Checks that go on where `file` left off; without it, checks of this process only.
    ///
    /// # Errors
    /// A file that is there but can't be read: what it withdrew would come back.
    pub fn open(file: Option<&Path>) -> Result<Self, LiveError> {
        let of = file.map(state::read).transpose()?.unwrap_or_default();
        Ok(Self { watched: Mutex::new(Table { of, changed: false }), file: file.map(Path::to_owned) })
    }

    /// How far a policy's certificates stand now. Takes a microsecond.
    pub fn standing(&self, policy: &Policy) -> Standing {
        let table = self.lock();
        let of = name(policy);
        let of_policy = table.of.iter().filter(|((name, _), _)| *name == of);
        let mut of_policy = of_policy.map(|(_, watched)| watched).peekable();
        if of_policy.peek().is_none() {
            return Standing::Holds;
        }
        let Some(promised) = Promised::of(policy) else { return Standing::Holds };
        let mut raised: f64 = 0.0;
        for watched in of_policy.filter(|watched| watched.is_of(&promised)) {
            match watched.standing() {
                Standing::Withdrawn(why) => return Standing::Withdrawn(why),
                Standing::Tightened(by) => raised = raised.max(by),
                Standing::Holds => {}
            }
        }
        if raised > 0.0 { Standing::Tightened(raised) } else { Standing::Holds }
    }

    /// Takes in how a decided request looked.
    pub fn saw(&self, policy: &Policy, pair: &Pair, look: Look) {
        self.with(policy, pair, |watched, promised| watched.saw(promised, look));
    }

    /// Takes in a graded request.
    pub fn graded(&self, policy: &Policy, request: &GradedRequest) {
        self.with(policy, &request.pair, |watched, promised| watched.graded(promised, &request.grades, request.score));
    }

    /// The figures of a policy as it is in force, by pair; empty before anything was seen.
    pub fn report(&self, policy: &Policy) -> Vec<LiveReport> {
        let Some(promised) = Promised::of(policy) else { return Vec::new() };
        let table = self.lock();
        let of = name(policy);
        let of_policy = table.of.iter().filter(|((name, _), _)| *name == of);
        let in_force = of_policy.filter(|(_, watched)| watched.is_of(&promised));
        in_force.map(|((_, pair), watched)| watched.report(pair.clone(), &promised)).collect()
    }

    /// What a policy promises and how surely, if it promises anything just now.
    pub fn promise(policy: &Policy) -> Option<(f64, f64)> {
        Promised::of(policy).map(|promised| (promised.target, promised.confidence))
    }

    /// Writes down what has changed. Breaches are written when they happen.
    pub fn save(&self) {
        let mut table = self.lock();
        if std::mem::take(&mut table.changed) {
            self.write(&table);
        }
    }

    fn with(&self, policy: &Policy, pair: &Pair, feed: impl FnOnce(&mut Watched, &Promised) -> Option<String>) {
        let Some(promised) = Promised::of(policy) else { return };
        let name = name(policy);
        let mut table = self.lock();
        let watched = table.of.entry((name.clone(), pair.clone())).or_insert_with(|| Watched::new(&promised));
        if !watched.is_of(&promised) {
            *watched = watched.followed_by(&promised);
        }
        let breach = feed(watched, &promised);
        table.changed = true;
        if let Some(why) = breach {
            tracing::error!(policy = %name, %pair, "{why}");
            // Before the next decision: what is withdrawn stays so through a crash.
            self.write(&table);
        }
    }

    fn write(&self, table: &Table) {
        let Some(file) = &self.file else { return };
        if let Err(error) = state::write(file, &table.of) {
            tracing::error!(%error, "the state of live checks could not be kept; a restart would forget what happened since");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What figures are kept under: a policy that decides by what was learnt serves beside the same by its files.
fn name(policy: &Policy) -> String {
    match policy.learnt() {
        Some(_) => format!("{} (learnt)", policy.reference.name),
        None => policy.reference.name.clone(),
    }
}

#[cfg(test)]
mod tests;
