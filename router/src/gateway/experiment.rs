//! Experiments: a share of a policy's conversations is decided by another policy. Which ones is drawn by a hash, so that a
//! conversation stays on its side, over restarts and replicas too; a request without a conversation is drawn by its own id.

use crate::domain::{Arm, Request};
use crate::policy::{Policy, Snapshot};
use std::sync::Arc;

/// The policy that decides a request asked under `policy`, and the side it is on where that runs an experiment. An
/// experiment of the candidate's own is not entered.
pub fn decider(policy: Arc<Policy>, snapshot: &Snapshot, request: &Request) -> (Arc<Policy>, Option<Arm>) {
    let Some(experiment) = &policy.experiment else { return (policy, None) };
    let name = &policy.reference.name;
    let candidate = is_candidate(name, &experiment.candidate, experiment.share, request);
    let arm = Arm { experiment: name.clone(), candidate };
    let other = snapshot.policy(Some(&experiment.candidate)).filter(|_| candidate);
    match other {
        Some(other) => (other, Some(arm)),
        None => (policy, Some(Arm { candidate: false, ..arm })),
    }
}

fn is_candidate(experiment: &str, candidate: &str, share: f64, request: &Request) -> bool {
    let mut hasher = blake3::Hasher::new_derive_key("sluice experiment v1");
    for text in [experiment, candidate, request.tenant.as_str(), &request.conversation_id] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    if request.conversation_id.is_empty() {
        hasher.update(request.id.0.as_bytes());
    }
    let mut first = [0_u8; 8];
    hasher.finalize_xof().fill(&mut first);
    ((u64::from_le_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64) < share
}
