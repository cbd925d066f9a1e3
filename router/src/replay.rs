//! Replay: recorded traffic decided again by a policy, and what that policy would have cost and kept.
//!
//! Rows come from the ledger or from a log of JSON lines; both take one way in ([`log`]). What a policy would do is asked
//! of the policy itself ([`redecide`]); what that would have given is estimated from what was tried ([`estimate`]), and
//! never guessed where nothing was. Knows nothing of backends, the wire, or a running gateway.
//!
//! Traffic of an experiment is told apart by its sides ([`arms`]).

pub mod arms;
pub mod estimate;
pub mod log;
pub mod page;
pub mod redecide;
pub mod report;
pub mod spend;
pub mod truth;
pub mod tune;

/// Why a replay can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A file can't be read or written.
    #[error("{file}: {error}")]
    File {
        /// The file as it was named.
        file: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// Bad rows, all that were found up to a limit.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Rows(Vec<crate::evidence::outcome::RowProblem>),
    /// There is nothing to replay.
    #[error("{0} holds no recorded requests; set `tenants.NAME.record = \"features\"` or `\"text\"` and serve some")]
    Empty(String),
    /// Nothing that is there can be decided again.
    #[error("none of {rows} requests can be decided again: {why}")]
    Nothing {
        /// How many there are.
        rows: usize,
        /// The reasons with their counts.
        why: String,
    },
    /// The policy has no ceiling on cost.
    #[error("policy `{0}` has no ceiling on cost to solve for: its goal is not `max-quality`")]
    NoCeiling(String),
    /// No scorer knows its models.
    #[error("no scorer knows the models of policy `{0}`; name one with --scorer")]
    NoScorer(String),
    /// No such policy.
    #[error("there is no policy `{name}`; there are {known}")]
    UnknownPolicy {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
}
