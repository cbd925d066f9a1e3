//! Policies: what is promised, at what cost, under which rules. A policy file becomes a [`Policy`] that cannot be wrong;
//! [`Policy::constrain`] and [`Policy::decide`] are pure and total. Knows nothing of backends' state but the facts it is given.

mod ceilings;
mod choose;
mod decide;
mod drafts;
mod file;
pub mod live;
mod registry;
mod rules;
mod scoring;
mod selftest;

pub use ceilings::{LatencyCeilings, WhenLate};
pub use decide::{Facts, Refusal, is_decided_anew};
pub use drafts::{JudgeState, SAMPLE, Second, StreamWins};
pub use registry::{Learnt, Registry, RegistryError, Snapshot};
pub use rules::{FUNCTIONS, RuleErrors, VARIABLES};
pub use selftest::SelfTest;

use crate::budget::BudgetLimits;
use crate::budget::allowance::Allowed;
use crate::catalog::Catalog;
use crate::domain::{ModelId, NanoUsd, Placement, PolicyRef, Residency, Route};
use crate::evidence::certificate::Certificate;
use crate::evidence::spending::SpendingCertificate;
use crate::judge::JudgeFile;
use crate::score::PairScorer;
use crate::toml_file::{Problem, Problems, Section, suggest};
use live::{Compare, Learn, OnBreach, Promotion, Shadow};
use rules::Rule;

use std::sync::Arc;
use std::time::Duration;

/// What a policy is after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// The least cost that keeps the quality target, by a solved threshold.
    MinCost {
        /// Share of the large model's quality to keep.
        quality_target: f64,
        /// Confidence of the certificate.
        confidence: f64,
    },
    /// The best quality that a cost ceiling allows, by a threshold solved from recorded costs.
    MaxQuality(CostCeiling),
    /// A threshold given by hand: no promise on quality.
    FixedThreshold(f64),
}

/// A ceiling on the mean cost of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostCeiling {
    /// USD for 1,000 requests.
    pub per_1000: NanoUsd,
    /// Confidence of the certificate.
    pub confidence: f64,
    /// Requests and costs of this long are held against the ceiling together; windows begin at multiples of it since
    /// 1970-01-01 UTC.
    pub window: Duration,
}

/// A share of a policy's conversations that another policy decides, to compare the two.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    /// The other policy's name.
    pub candidate: String,
    /// Its share of the conversations, above 0 and at most 1.
    pub share: f64,
}

/// Whether a policy's certificate can be used.
#[derive(Clone, Debug, PartialEq)]
pub enum CertificateState {
    /// It matches policy and scorer.
    Valid(Box<Certificate>),
    /// One for a ceiling on cost matches policy and scorer.
    Spending(Box<SpendingCertificate>),
    /// There is none.
    Missing,
    /// There is one that does not match, or can't be read.
    Mismatched(String),
    /// The objective needs none.
    NotNeeded,
}

impl CertificateState {
    /// In words.
    pub fn describe(&self) -> String {
        match self {
            Self::Valid(_) | Self::Spending(_) => "valid".to_owned(),
            Self::Missing => {
                "missing: run `sluice train scorer --solve` (`sluice replay --solve` for max-quality) to make one"
                    .to_owned()
            }
            Self::Mismatched(why) => why.clone(),
            Self::NotNeeded => "not needed: the threshold is fixed by hand".to_owned(),
        }
    }

    /// The small model that it speaks for; `None` where it speaks for all.
    pub fn small(&self) -> Option<&str> {
        match self {
            Self::Valid(certificate) => Some(&certificate.small),
            Self::Spending(certificate) => Some(&certificate.small),
            _ => None,
        }
    }
}

/// What to do when a budget is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExhausted {
    /// Serve locally if placement allows.
    LocalOnly,
    /// Refuse.
    Reject,
}

/// How the exact cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExactCacheSettings {
    /// How long an answer is kept.
    pub ttl: Duration,
    /// Whether answers above temperature 0 are kept too.
    pub any_temperature: bool,
}

/// How names of scorer files end.
pub const SCORER_SUFFIX: &str = ".scorer";

const NO_SCORER: &str = "no scorer is loaded for this policy's models";

/// A checked policy.
#[derive(Debug)]
pub struct Policy {
    /// Name and content hash.
    pub reference: PolicyRef,
    /// What it is for.
    pub description: String,
    /// Its file.
    pub text: String,
    /// A scorer of its own: the name of a file beside the policy's.
    pub scorer_file: Option<String>,
    /// Small candidates, in order of preference.
    pub small: Vec<ModelId>,
    /// Large candidates, in order of preference.
    pub large: Vec<ModelId>,
    /// What it is after.
    pub objective: Objective,
    /// Ceilings on latency.
    pub latency: LatencyCeilings,
    /// Placement that it asks for.
    pub placement: Placement,
    /// Where it lets requests be served.
    pub residency: Residency,
    /// `escalate-only`: how long a conversation that went remote and is silent stays remote.
    pub sticky: Option<Duration>,
    /// A share of the traffic that another policy decides.
    pub experiment: Option<Experiment>,
    /// Whether a declined draft goes to a large model.
    pub escalate: bool,
    /// Score of the prompt below which no draft is tried.
    pub draft_above: f64,
    /// What wins for streams.
    pub stream_wins: StreamWins,
    /// Who else is asked about drafts.
    pub second: Option<Second>,
    /// Whether a small model may serve while no large one is up.
    pub local_when_remote_is_down: bool,
    /// Use of the exact cache.
    pub exact_cache: Option<ExactCacheSettings>,
    /// Tenant budgets that it tightens.
    pub budget: BudgetLimits,
    /// What to do when a budget is exhausted.
    pub on_exhausted: OnExhausted,
    /// Share of remote-bound requests that try a small model to learn.
    pub exploration: f64,
    /// Requests that are answered by both sides, to compare.
    pub shadow: Option<Shadow>,
    /// Learning from what those came to.
    pub learn: Option<Learn>,
    /// What a candidate has to show before it takes a small model's place.
    pub promotion: Option<Promotion>,
    /// The small model that is tried beside the one that serves; nobody is shown what it answers.
    pub candidate: Option<ModelId>,
    /// What happens when the promise looks broken.
    pub on_breach: OnBreach,
    rules: Vec<Rule>,
    tests: Vec<SelfTest>,
    certificate: CertificateState,
    judge: JudgeState,
    /// The scorer in its own scorer file.
    filed: Option<Arc<PairScorer>>,
    /// The scorer that was learnt while the policy served.
    learnt: Option<Arc<PairScorer>>,
}

impl Policy {
    /// Reads and checks a policy file, its embedded tests included.
    ///
    /// # Errors
    /// All problems of the file.
    pub fn parse(file: &str, text: &str, catalog: &Catalog) -> Result<Self, Vec<Problem>> {
        file::read(file, text, catalog)
    }

    /// The content hash of a policy text: blake3, first 16 hexadecimal digits.
    pub fn hash(text: &str) -> String {
        blake3::hash(text.as_bytes()).to_hex().chars().take(16).collect()
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateState {
        &self.certificate
    }

    /// Gives the policy the certificate in the text of `file`, of the kind that its objective asks for. `scorer_version` is
    /// that of the scorer in use.
    pub fn certify_by(&mut self, file: &str, text: Option<&str>, scorer_version: Option<&str>) {
        let Objective::MaxQuality(ceiling) = self.objective else {
            let read = |text: &str| Certificate::parse(text).map_err(|error| format!("{file}: {error}"));
            return self.certify(text.map(read), scorer_version);
        };
        let read = text.map(SpendingCertificate::parse);
        self.certificate = match (read, scorer_version) {
            (None, _) => CertificateState::Missing,
            (Some(Err(error)), _) => CertificateState::Mismatched(format!("{file}: {error}")),
            (Some(Ok(_)), None) => CertificateState::Mismatched(NO_SCORER.to_owned()),
            (Some(Ok(certificate)), Some(version)) => match self.overspends(&certificate, ceiling, version) {
                Some(why) => CertificateState::Mismatched(why),
                None => CertificateState::Spending(Box::new(certificate)),
            },
        };
    }

    /// Why a certificate for a ceiling on cost does not speak for this policy, if it does not.
    fn overspends(&self, found: &SpendingCertificate, ceiling: CostCeiling, version: &str) -> Option<String> {
        if let Err(mismatch) = found.check(&self.reference.hash, version) {
            return Some(mismatch.to_string());
        }
        if !self.small.iter().any(|model| model.as_str() == found.small) {
            return Some(format!("certificate was solved for small model {}", found.small));
        }
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
        let asked = ceiling.per_1000.as_usd();
        let promised = same(found.ceiling_usd_per_1000, asked) && same(found.confidence, ceiling.confidence);
        (!promised).then(|| format!("certificate promises {} USD at {}", found.ceiling_usd_per_1000, found.confidence))
    }

    /// Gives the policy its certificate, unless its objective needs none. `scorer_version` is that of the scorer in use.
    pub fn certify(&mut self, certificate: Option<Result<Certificate, String>>, scorer_version: Option<&str>) {
        if let Objective::FixedThreshold(_) = self.objective {
            self.certificate = CertificateState::NotNeeded;
            return;
        }
        self.certificate = match (certificate, scorer_version) {
            (None, _) => CertificateState::Missing,
            (Some(Err(why)), _) => CertificateState::Mismatched(why),
            (Some(Ok(_)), None) => CertificateState::Mismatched(NO_SCORER.to_owned()),
            (Some(Ok(certificate)), Some(version)) => match self.mismatch(&certificate, version) {
                Some(why) => CertificateState::Mismatched(why),
                None => CertificateState::Valid(Box::new(certificate)),
            },
        };
    }

    /// Makes the policy one that decides by what was learnt while it served: its own scorer, and the certificate for that.
    fn learn_by(&mut self, learnt: &Learnt) {
        self.certify(learnt.certificate.clone().map(Ok), Some(learnt.scorer.version()));
        self.learnt = Some(Arc::clone(&learnt.scorer));
    }

    /// The scorer that was learnt while the policy served, which is in force with the policy's certificate.
    pub fn learnt(&self) -> Option<&Arc<PairScorer>> {
        self.learnt.as_ref()
    }

    /// Gives the policy its judge. It is in force only where its own certificate speaks for this policy and this judge.
    pub fn judge_by(&mut self, judge: Option<Result<JudgeFile, String>>) {
        let unjudged = !matches!(self.objective, Objective::MinCost { .. });
        self.judge = match judge {
            None => JudgeState::Absent,
            Some(_) if unjudged || !self.escalate => JudgeState::Absent,
            Some(Err(why)) => JudgeState::Mismatched(why),
            Some(Ok(file)) => match self.mismatch(&file.certificate, file.judge.version()) {
                Some(why) => JudgeState::Mismatched(why),
                None if file.certificate.small != file.judge.small => {
                    JudgeState::Mismatched(format!("the judge knows drafts of {} only", file.judge.small))
                }
                None if self.second.as_ref().is_some_and(|second| second.as_str() == file.judge.small) => {
                    let why = "`escalate.second` names the model that drafts, which would agree with itself";
                    JudgeState::Mismatched(why.to_owned())
                }
                None => JudgeState::InForce(Box::new(file)),
            },
        };
    }

    /// Gives the policy the candidate in the text of `NAME.candidate.toml`: `model = "NAME"`, a local model of the catalog. One
    /// that serves already is tried no more.
    ///
    /// # Errors
    /// All problems of the file.
    pub fn try_candidate(&mut self, file: &str, text: &str, catalog: &Catalog) -> Result<(), Vec<Problem>> {
        let (table, mut problems) = Problems::parse(file, text);
        let mut root = Section::root(&table);
        root.missing("model", "name the local model that is tried", &mut problems);
        let named = root.text("model", &mut problems);
        root.finish(&mut problems);
        if let Some((name, span)) = named {
            let id = ModelId::new(name.as_str());
            match catalog.get(&id) {
                Some(model) if model.route() == Route::Local && self.shadow.is_some() => {
                    self.candidate = Some(id).filter(|id| !self.small.contains(id));
                }
                Some(model) if model.route() == Route::Local => {
                    let message = format!("the policy `{}` makes no shadow runs", self.reference.name);
                    problems.add(span, "model", message, "add [shadow] to it, or remove this file");
                }
                Some(_) => problems.add(span, "model", format!("model `{name}` is remote"), "name a local model"),
                None => {
                    let known = suggest(&name, catalog.models().map(|model| model.id.as_str()));
                    problems.add(span, "model", format!("model `{name}` is not in the catalog"), known);
                }
            }
        }
        let found = problems.into_found();
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    /// The judge.
    pub fn judge(&self) -> &JudgeState {
        &self.judge
    }

    /// The judge whose threshold drafts must reach, and the threshold.
    pub fn judged_at(&self) -> Option<(&JudgeFile, f64)> {
        match &self.judge {
            JudgeState::InForce(file) => Some((file, file.certificate.threshold?)),
            _ => None,
        }
    }

    fn mismatch(&self, certificate: &Certificate, scorer_version: &str) -> Option<String> {
        if let Err(mismatch) = certificate.check(&self.reference.hash, scorer_version) {
            return Some(mismatch.to_string());
        }
        let small = self.small.iter().any(|model| model.as_str() == certificate.small);
        let large =
            certificate.large == "*" || self.large.first().is_none_or(|first| first.as_str() == certificate.large);
        let promise = match self.objective {
            Objective::MinCost { quality_target, confidence } => {
                certificate.target == quality_target && certificate.confidence == confidence
            }
            Objective::MaxQuality(_) | Objective::FixedThreshold(_) => true,
        };
        if !small {
            Some(format!("certificate was solved for small model {}", certificate.small))
        } else if !large {
            Some(format!("certificate was solved against large model {}", certificate.large))
        } else if !promise {
            Some(format!("certificate promises {} at {}", certificate.target, certificate.confidence))
        } else {
            None
        }
    }

    /// All models that it may call: small, large, the one that is asked about drafts, the one that judges shadow runs, and the
    /// one that is tried.
    pub fn models(&self) -> impl Iterator<Item = &ModelId> {
        let judge = self.shadow.as_ref().and_then(|shadow| match &shadow.compare {
            Compare::Judge(judge) => Some(judge),
            _ => None,
        });
        let second = self.second.as_ref().and_then(|second| match second {
            Second::Model(model) => Some(model),
            Second::Sample => None,
        });
        self.small.iter().chain(&self.large).chain(second).chain(judge).chain(&self.candidate)
    }

    /// The problem of an experiment that tries a policy which is none of `known`.
    pub fn unknown_candidate(&self, file: &str, known: &[&str]) -> Option<Problem> {
        let experiment = self.experiment.as_ref().filter(|found| !known.contains(&found.candidate.as_str()))?;
        let (table, mut problems) = Problems::parse(file, &self.text);
        let span = Section::root(&table).span_in("experiment", "candidate");
        let suggestion = suggest(&experiment.candidate, known.iter().copied());
        let message = format!("there is no policy `{}`", experiment.candidate);
        problems.add(span, "experiment.candidate", message, suggestion);
        problems.into_found().into_iter().next()
    }

    /// The ceiling on the mean cost of a request, if the policy has one.
    pub fn allowed(&self) -> Option<Allowed> {
        match self.objective {
            Objective::MaxQuality(ceiling) => Some(Allowed { per_1000: ceiling.per_1000, window: ceiling.window }),
            _ => None,
        }
    }

    /// Whether a rule reads the prompt, so that a request without its text can't be decided again.
    pub fn reads_prompt(&self) -> bool {
        self.rules.iter().any(Rule::reads_prompt)
    }

    /// The score that a small model must reach; `None` means that everything goes remote, or under `max-quality` stays local.
    pub fn threshold(&self) -> Option<f64> {
        match (&self.objective, &self.certificate) {
            (Objective::FixedThreshold(threshold), _) => Some(*threshold),
            (_, CertificateState::Valid(certificate)) => certificate.threshold,
            (_, CertificateState::Spending(certificate)) => certificate.threshold,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
