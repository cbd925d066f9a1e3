//! What a teacher reads out of the ledger: outcomes with the text that was recorded, as rows to fit on and as evidence.

use super::learner::{About, Learner, Use};
use super::recorded::{cluster, prompt};
use super::teacher::TeachError;
use crate::domain::{Message, RecordLevel};
use crate::evidence::bound::Evidence;
use crate::evidence::drift::Look;
use crate::evidence::outcome::{Outcome, Recorded};
use crate::ledger::{GradedOutcome, Ledger, LedgerError, Story};
use crate::policy::Policy;
use crate::score::PairScorer;
use std::collections::HashSet;

/// Outcomes read at once.
pub const PAGE: usize = 200;

/// An outcome with what was asked.
pub struct Row {
    pub place: i64,
    pub cluster: String,
    pub prompt: String,
    pub messages: Vec<Message>,
    pub outcome: GradedOutcome,
}

/// The outcomes of one policy.
pub struct Lessons<'a> {
    /// Where they are.
    pub ledger: &'a Ledger,
    /// Whose they are.
    pub policy: &'a Policy,
}

impl Lessons<'_> {
    /// An outcome as it can be learnt from: of the policy's models, sampled as it samples now, with its text.
    pub async fn row(&self, learner: &Learner, place: i64, outcome: GradedOutcome) -> Result<Option<Row>, TeachError> {
        let About { small, large, .. } = &learner.about;
        let share = self.policy.shadow.as_ref().map(|shadow| shadow.share);
        let ours = outcome.small.as_str() == small && outcome.large.as_str() == large;
        if !ours || Some(outcome.sampling_probability) != share {
            return Ok(None);
        }
        let story: Story = match self.ledger.story(None, outcome.entry).await {
            Ok(story) => story,
            Err(LedgerError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let prompt = prompt(&story);
        let recorded = story.entry.recording.as_ref().filter(|recording| recording.level == RecordLevel::Text);
        let messages = recorded.map(|recording| recording.messages.clone()).unwrap_or_default();
        let cluster = cluster(Some(&story), &prompt, &outcome.entry.to_string());
        Ok((!prompt.is_empty()).then_some(Row { place, cluster, prompt, messages, outcome }))
    }

    /// All rows that a learner has taken in, by use; of evidence one a cluster, the first.
    pub async fn rows(&self, learner: &Learner, wanted: Use) -> Result<Vec<Row>, TeachError> {
        let (mut rows, mut place, mut seen) = (Vec::new(), 0, HashSet::new());
        loop {
            let page = self.ledger.outcomes_after(place, PAGE).await?;
            let Some((end, _)) = page.last() else { return Ok(rows) };
            place = *end;
            for (place, outcome) in page {
                let named = outcome.policy.0 == self.policy.reference.name && place <= learner.taken;
                if !named || outcome.at.as_millisecond() < learner.since_ms {
                    continue;
                }
                let Some(row) = self.row(learner, place, outcome).await? else { continue };
                let used_for = Use::of(&row.cluster);
                if used_for == wanted && (used_for == Use::Fit || seen.insert(row.cluster.clone())) {
                    rows.push(row);
                }
            }
        }
    }

    /// The evidence by the scores of a scorer, and how the requests looked.
    pub async fn evidence(
        &self,
        learner: &Learner,
        scorer: &PairScorer,
    ) -> Result<(Vec<Evidence>, Vec<Look>), TeachError> {
        let (mut evidence, mut looks) = (Vec::new(), Vec::new());
        for row in self.rows(learner, Use::Evidence).await? {
            let score = scorer.score(&row.messages)?.get();
            let (small, large) = (row.outcome.small_quality, row.outcome.large_quality);
            evidence.push(Evidence { score, small, large, weight: 1.0 });
            let contents: Vec<String> = row.messages.iter().map(Message::content).collect();
            looks.push(Look::of(Some(score), contents.iter().map(String::as_str)));
        }
        Ok((evidence, looks))
    }
}

/// A hash of the rows that a scorer is fitted on.
pub fn hash_of(rows: &[&Outcome]) -> String {
    let mut hash = blake3::Hasher::new();
    for row in rows {
        hash.update(format!("{} {} {}\n", row.id, row.small_quality, row.large_quality).as_bytes());
    }
    hash.finalize().to_hex().chars().take(16).collect()
}

/// A row as scorers are fitted on it.
pub fn outcome(row: Row) -> Outcome {
    let Row { outcome, cluster, prompt, place, .. } = row;
    Outcome {
        id: place.to_string(),
        source: "shadow".to_owned(),
        domain: outcome.policy.0.clone(),
        prompt,
        small: outcome.small.to_string(),
        large: outcome.large.to_string(),
        small_quality: outcome.small_quality,
        large_quality: outcome.large_quality,
        cluster,
        split: String::new(),
        sampling_probability: outcome.sampling_probability,
        graded_by: outcome.graded_by,
        recorded: Recorded::default(),
    }
}
