//! How a request is routed and why: the record that every answer carries and the ledger keeps.

use super::money::{Cost, CostBasis, NanoUsd};
use super::request::{ModelId, Placement};
use super::residency::Residency;
use std::fmt;
use std::time::Duration;

/// A probability in [0, 1]: P(the small model's answer is as good as the large one's). Cannot hold nonsense.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Score(f32);

/// A number that is no probability.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{0} is not a probability in [0, 1]")]
pub struct ScoreOutOfRange(pub f64);

impl Score {
    /// Checks that `probability` is within [0, 1].
    pub fn new(probability: f64) -> Result<Self, ScoreOutOfRange> {
        if (0.0..=1.0).contains(&probability) {
            Ok(Self(probability as f32))
        } else {
            Err(ScoreOutOfRange(probability))
        }
    }

    /// The probability.
    pub fn get(self) -> f64 {
        f64::from(self.0)
    }
}

/// How a request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// From the cache.
    Cache,
    /// By a small model in this process.
    Local,
    /// By a remote large model.
    Remote,
    /// A local draft, judged and perhaps escalated: also a local answer that was declined and then served remotely.
    Cascade,
}

impl Route {
    /// The word used on the wire, in SQL and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Cascade => "cascade",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Cache, Self::Local, Self::Remote, Self::Cascade].into_iter().find(|route| route.as_str() == word)
    }
}

/// Why a route was chosen: a closed list for metrics and filters, with words for people in [`Reason::detail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasonCode {
    /// An identical earlier request was answered.
    CacheHit,
    /// The score reaches the threshold.
    ScoreAboveThreshold,
    /// The score does not reach the threshold.
    ScoreBelowThreshold,
    /// A rule of the policy decided.
    Rule,
    /// The client's, key's or rule's placement decided.
    Placement,
    /// No certificate, or one that does not match: the safe side.
    NoCertificate,
    /// Live checks refuted the certificate, and the policy withdrew it: the safe side.
    Breach,
    /// The scorer gave no score: the safe side.
    NoScore,
    /// Only one candidate was left.
    OnlyCandidate,
    /// The request was chosen for exploration.
    Explored,
    /// A local draft is judged before anything of it is shown.
    Draft,
    /// The judge found the draft good enough.
    DraftAccepted,
    /// The judge found the draft not good enough, or hopeless before its end.
    DraftRejected,
    /// The small model declined its draft.
    Declined,
    /// The local queue was full or too slow; spilled to remote.
    LocalOverloaded,
    /// The local model was unhealthy or failed.
    LocalUnavailable,
    /// The remote was down; local serves what the policy allows.
    RemoteUnavailable,
    /// The budget was exhausted; local serves what the policy allows.
    BudgetExhausted,
    /// The conversation went remote before and stays there.
    Sticky,
    /// A latency ceiling moved the choice: what else would have served is predicted to miss it.
    LatencyCeiling,
    /// Whatever may serve is predicted to miss the latency ceiling; the policy says what serves then.
    Late,
    /// The cost ceiling leaves no room for a large model.
    CostCeiling,
    /// A shadow run: the answer is compared with the one that was shown, and never shown itself.
    Shadow,
}

impl ReasonCode {
    /// All codes.
    pub const ALL: [Self; 23] = [
        Self::CacheHit,
        Self::ScoreAboveThreshold,
        Self::ScoreBelowThreshold,
        Self::Rule,
        Self::Placement,
        Self::NoCertificate,
        Self::Breach,
        Self::NoScore,
        Self::OnlyCandidate,
        Self::Explored,
        Self::Draft,
        Self::DraftAccepted,
        Self::DraftRejected,
        Self::Declined,
        Self::LocalOverloaded,
        Self::LocalUnavailable,
        Self::RemoteUnavailable,
        Self::BudgetExhausted,
        Self::Sticky,
        Self::LatencyCeiling,
        Self::Late,
        Self::CostCeiling,
        Self::Shadow,
    ];

    /// The word used on the wire, in SQL and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CacheHit => "cache_hit",
            Self::ScoreAboveThreshold => "score_above_threshold",
            Self::ScoreBelowThreshold => "score_below_threshold",
            Self::Rule => "rule",
            Self::Placement => "placement",
            Self::NoCertificate => "no_certificate",
            Self::Breach => "quality_breach",
            Self::NoScore => "no_score",
            Self::OnlyCandidate => "only_candidate",
            Self::Explored => "explored",
            Self::Draft => "draft",
            Self::DraftAccepted => "draft_accepted",
            Self::DraftRejected => "draft_rejected",
            Self::Declined => "declined",
            Self::LocalOverloaded => "local_overloaded",
            Self::LocalUnavailable => "local_unavailable",
            Self::RemoteUnavailable => "remote_unavailable",
            Self::BudgetExhausted => "budget_exhausted",
            Self::Sticky => "sticky",
            Self::LatencyCeiling => "latency_ceiling",
            Self::Late => "late",
            Self::CostCeiling => "cost_ceiling",
            Self::Shadow => "shadow",
        }
    }
}

/// Why, as a code and in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The code.
    pub code: ReasonCode,
    /// One sentence for people; never contains prompt text.
    pub detail: String,
}

impl Reason {
    /// A reason of `code` with words.
    pub fn new(code: ReasonCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

/// Why a candidate was not eligible, in words: `placement local-only (key)`, `rule "restricted data stays here"`,
/// `context 512 < prompt 3000`, `breaker open`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExcludedBy(pub String);

impl fmt::Display for ExcludedBy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// How long an answer is predicted to take, at the quantile that ceilings speak of (95 %).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predicted {
    /// To the first byte, waiting included.
    pub first_byte: Duration,
    /// To the end of the answer.
    pub total: Duration,
}

/// Which side of an experiment a request is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    /// The policy that runs the experiment.
    pub experiment: String,
    /// Whether the candidate policy decided; the experiment's own policy else.
    pub candidate: bool,
}

impl Arm {
    /// The word on the wire, in logs and in reports.
    pub const fn as_str(&self) -> &'static str {
        if self.candidate { "candidate" } else { "control" }
    }
}

impl ExcludedBy {
    /// How an exclusion for money begins.
    pub const WORST_CASE: &str = "worst case";
}

/// One model that was considered.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Which.
    pub model: ModelId,
    /// `Local` or `Remote`.
    pub route: Route,
    /// P(as good as the large one); `None` for large models and where the scorer gave none.
    pub score: Option<Score>,
    /// Expected cost of serving it here.
    pub expected_cost: Cost,
    /// The most that one attempt can cost: what would be held for it.
    pub worst_cost: NanoUsd,
    /// How long it is predicted to take; `None` while too little was seen.
    pub predicted: Option<Predicted>,
    /// The catalog's word on where it runs.
    pub region: Option<String>,
    /// Why it was not eligible.
    pub excluded_by: Option<ExcludedBy>,
}

impl Candidate {
    /// A free candidate that nothing is known of and nothing excludes.
    pub fn new(model: ModelId, route: Route) -> Self {
        Self {
            model,
            route,
            score: None,
            expected_cost: Cost { amount: NanoUsd::ZERO, basis: CostBasis::Estimated },
            worst_cost: NanoUsd::ZERO,
            predicted: None,
            region: None,
            excluded_by: None,
        }
    }

    /// Whether money excludes it.
    pub fn is_priced_out(&self) -> bool {
        self.excluded_by.as_ref().is_some_and(|why| why.0.starts_with(ExcludedBy::WORST_CASE))
    }
}

/// Which policy decided, to the byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRef {
    /// Its name.
    pub name: String,
    /// blake3 of its file, first 16 hexadecimal digits.
    pub hash: String,
}

/// A decision: a pure function of facts and policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The route.
    pub route: Route,
    /// The model that serves, or served.
    pub model: ModelId,
    /// Models to try after `model`, in order (remote fallbacks).
    pub fallbacks: Vec<ModelId>,
    /// Where a local answer that declines or cannot start may go; `None` fails closed.
    pub escalate_to: Option<ModelId>,
    /// Everything that was considered.
    pub candidates: Vec<Candidate>,
    /// Why.
    pub reason: Reason,
    /// The threshold on the score that applied; `None` where none did (all remote).
    pub threshold: Option<f64>,
    /// The policy.
    pub policy: PolicyRef,
    /// Version of the scorer; empty where no score was made.
    pub scorer_version: String,
    /// Probability with which this policy takes this route for this request, exploration included; (0, 1].
    pub propensity: f64,
    /// Whether the route was taken to learn, not because it looked best.
    pub explored: bool,
    /// Its side of an experiment, if there is one.
    pub arm: Option<Arm>,
}

/// What placement, key, tenant and rules allow, computed before anything is looked up.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraints {
    /// The combined placement.
    pub placement: Placement,
    /// Who made it so: `client`, `key`, `rule "…"`, or `policy`.
    pub placement_by: String,
    /// Name of the rule that matched first, if any.
    pub rule: Option<String>,
    /// A model that the rule names; other candidates are excluded.
    pub model: Option<ModelId>,
    /// Where it may be served.
    pub residency: Residency,
    /// Whether an answer may be taken from the cache.
    pub cache_read: bool,
    /// Whether an answer may be kept in the cache.
    pub cache_write: bool,
}

/// How a ledger entry or attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryStatus {
    /// A complete answer was delivered.
    Ok,
    /// Failed before the first byte.
    Failed,
    /// Cut after the first byte.
    Cut,
    /// The client hung up.
    Cancelled,
    /// The deadline passed.
    DeadlineExceeded,
    /// Refused: budget, overload, policy.
    Refused,
    /// The small model declined (of attempts; an entry only under `local-only`).
    Declined,
    /// The process died meanwhile.
    Interrupted,
}

impl EntryStatus {
    /// The word used on the wire, in SQL and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Cut => "cut",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Refused => "refused",
            Self::Declined => "declined",
            Self::Interrupted => "interrupted",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [
            Self::Ok,
            Self::Failed,
            Self::Cut,
            Self::Cancelled,
            Self::DeadlineExceeded,
            Self::Refused,
            Self::Declined,
            Self::Interrupted,
        ]
        .into_iter()
        .find(|status| status.as_str() == word)
    }
}
