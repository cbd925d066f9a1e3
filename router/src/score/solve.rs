//! From a trained scorer and its evidence to a certificate for a policy.

use super::PairScorer;
use super::train::OUTCOMES_PER_EVIDENCE;
use crate::evidence::bound::{BoundError, Evidence, Promise, solve};
use crate::evidence::certificate::Certificate;

/// The policy a threshold is solved for.
#[derive(Debug, Clone, PartialEq)]
pub struct SolveFor {
    /// Name of the policy.
    pub policy: String,
    /// Hash of its content.
    pub policy_hash: String,
    /// Its quality target and confidence.
    pub promise: Promise,
    /// Hash of the outcomes the evidence was drawn from.
    pub evidence_hash: String,
    /// Day of solving.
    pub date: jiff::civil::Date,
}

/// Solves the threshold of a policy and certifies it.
///
/// # Errors
/// A target, confidence, score or quality out of range.
pub fn certify(scorer: &PairScorer, evidence: &[Evidence], solve_for: &SolveFor) -> Result<Certificate, BoundError> {
    certify_version(scorer.version(), (&scorer.pair().small, &scorer.pair().large), evidence, solve_for)
}

/// The same for whatever gave the evidence its scores, by its version and its pair of a small and a large model.
///
/// # Errors
/// As [`certify`].
pub fn certify_version(
    version: &str,
    (small, large): (&str, &str),
    evidence: &[Evidence],
    solve_for: &SolveFor,
) -> Result<Certificate, BoundError> {
    let solution = solve(evidence, solve_for.promise)?;
    // Only part of what is collected becomes evidence.
    let outcomes = |evidence: u64| (evidence as f64 * OUTCOMES_PER_EVIDENCE).ceil() as u64;
    Ok(Certificate {
        policy: solve_for.policy.clone(),
        policy_hash: solve_for.policy_hash.clone(),
        scorer_version: version.to_owned(),
        evidence_hash: solve_for.evidence_hash.clone(),
        small: small.to_owned(),
        large: large.to_owned(),
        threshold: solution.threshold,
        n: solution.n as u64,
        bound: solution.bound,
        confidence: solve_for.promise.confidence,
        target: solve_for.promise.target,
        local_share: solution.local_share,
        needed: solution.needed.map(outcomes),
        method: solution.method,
        date: solve_for.date.to_string(),
        reference: None,
    })
}
