//! Feedback is written down and heard at once: what a tenant thinks of a small model's answer counts from its next score on.
//!
//! Only where the prompt's text was recorded, for this tenant alone, and in its memory alone: nobody knows how likely feedback
//! was, so it proves nothing, and under a certificate it can only hold requests back.

use super::Gateway;
use crate::domain::{ModelId, TenantId};
use crate::learn::recorded::judged_by_a_reader;
use crate::ledger::{Feedback, FeedbackOutcome, LedgerError};
use crate::policy::{Policy, Snapshot};
use crate::score::Pair;
use crate::score::own::Observed;

impl Gateway {
    /// Records feedback on an entry of a tenant and learns from it.
    ///
    /// # Errors
    /// The tenant has no such entry, or the journal can't be written.
    pub async fn feedback(&self, tenant: &TenantId, feedback: &Feedback) -> Result<FeedbackOutcome, LedgerError> {
        let outcome = self.ledger.feedback(tenant, feedback).await?;
        if outcome == FeedbackOutcome::Unchanged {
            return Ok(outcome);
        }
        let story = self.ledger.story(Some(tenant), feedback.entry).await?;
        let snapshot = self.registry.snapshot();
        if let Some(judged) = judged_by_a_reader(&story)
            && let Some(policy) = snapshot.policy(Some(&judged.domain))
            && let Some(large) = policy.large.first()
        {
            let observed = Observed {
                tenant: tenant.as_str(),
                pair: &Pair::new(&judged.small, large.as_str()),
                prompt: &judged.prompt,
                small_quality: judged.small_quality,
                large_quality: judged.large_quality,
            };
            self.learn_at_once((&snapshot, &policy), &ModelId::new(&*judged.small), &observed);
        }
        Ok(outcome)
    }

    /// Lets an outcome correct what a policy's scorer says to its tenant; nothing happens where there is no scorer yet.
    pub(super) fn learn_at_once(
        &self,
        (snapshot, policy): (&Snapshot, &Policy),
        small: &ModelId,
        observed: &Observed<'_>,
    ) {
        let Some(scorer) = self.scorer(snapshot, policy, small) else { return };
        if let Err(error) = self.scorers.observe(&scorer, observed) {
            tracing::warn!(%error, model = %small, "an outcome could not be learnt from");
        }
    }
}
