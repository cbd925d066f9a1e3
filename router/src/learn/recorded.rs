//! Outcomes that the ledger holds, as rows that scorers, certificates and replays read: what shadow runs came to, joined with
//! the text that was recorded, and, for a scorer of one tenant only, feedback on what a small model answered.
//!
//! Feedback comes from whoever cared to give it: nobody knows how likely that was, so it may move a ranking and never a proof.
//! It stays in its tenant, as all text does.

use crate::domain::{RecordLevel, Role, Route};
use crate::evidence::certificate::ANY_LARGE;
use crate::evidence::outcome::{Outcome, OutcomeSource, Outcomes, Recorded};
use crate::ledger::{Archive, EntryFilter, FeedbackSource, GradedOutcome, LedgerError, OutcomeFilter, Story};

/// What a row must have to be of use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Having {
    /// Its grades.
    #[default]
    Grades,
    /// A score, by the latest scorer: scores of two scorers can't be held against one threshold.
    Score,
    /// The text of its prompt, for whatever reads it.
    Text,
}

/// Which rows are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Only of this tenant; empty means all.
    pub tenant: String,
    /// What a row must have to be of use.
    pub having: Having,
    /// Feedback on a small model's answers as well. Only of one tenant.
    pub feedback: bool,
}

/// Rows, and what was left out.
#[derive(Debug, Clone)]
pub struct FromLedger {
    /// The rows, oldest first.
    pub outcomes: Outcomes,
    /// Graded, but without what they must have.
    pub unusable: usize,
    /// Of the rows, those from feedback.
    pub feedback: usize,
}

/// Reads what is wanted out of a ledger.
///
/// # Errors
/// The store fails.
pub async fn read(archive: &Archive, wanted: &Wanted) -> Result<FromLedger, LedgerError> {
    let filter = OutcomeFilter { tenant: wanted.tenant.clone(), ..OutcomeFilter::default() };
    let graded = archive.outcomes(&filter).await?;
    let version = graded.iter().rev().find_map(|row| Some(row.score.as_ref()?.1.clone()));
    let (mut rows, mut unusable) = (Vec::new(), 0);
    for outcome in &graded {
        let scored = outcome.score.as_ref().is_some_and(|(_, made)| Some(made) == version.as_ref());
        let story = archive.story(outcome.entry).await?;
        let row = row(outcome, story.as_ref());
        let usable = match wanted.having {
            Having::Grades => true,
            Having::Score => scored,
            Having::Text => !row.prompt.is_empty(),
        };
        if usable {
            rows.push(row);
        } else {
            unusable += 1;
        }
    }
    let before = rows.len();
    if wanted.feedback && !wanted.tenant.is_empty() {
        let graded: Vec<String> = graded.iter().map(|outcome| outcome.entry.to_string()).collect();
        rows.extend(feedback(archive, &wanted.tenant).await?.into_iter().filter(|row| !graded.contains(&row.id)));
    }
    let mut hash = blake3::Hasher::new();
    for row in &rows {
        let words = format!("{} {} {} {} {}\n", row.id, row.small, row.large, row.small_quality, row.large_quality);
        hash.update(words.as_bytes());
    }
    let hash = hash.finalize().to_hex().chars().take(16).collect();
    let feedback = rows.len() - before;
    Ok(FromLedger { outcomes: Outcomes { rows, hash, notes: Vec::new() }, unusable, feedback })
}

/// The last question of a recorded request; empty where no text was recorded.
pub(super) fn prompt(story: &Story) -> String {
    let recording = story.entry.recording.as_ref().filter(|recording| recording.level == RecordLevel::Text);
    let messages = recording.map(|recording| recording.messages.as_slice()).unwrap_or_default();
    let asked = messages.iter().rev().find(|message| message.role == Role::User);
    asked.map(crate::domain::Message::content).unwrap_or_default()
}

/// What groups rows that say the same: the conversation, else the prompt, else the row itself.
pub(super) fn cluster(story: Option<&Story>, prompt: &str, id: &str) -> String {
    let tenant = story.map_or("", |story| story.entry.tenant.as_str());
    match story.map_or("", |story| story.entry.conversation_id.as_str()) {
        "" if prompt.is_empty() => id.to_owned(),
        "" => blake3::hash(format!("{tenant}\0{prompt}").as_bytes()).to_hex().chars().take(16).collect(),
        conversation => format!("{tenant}/{conversation}"),
    }
}

fn row(outcome: &GradedOutcome, story: Option<&Story>) -> Outcome {
    let id = outcome.entry.to_string();
    let prompt = story.map(prompt).unwrap_or_default();
    Outcome {
        source: "shadow".to_owned(),
        domain: outcome.policy.0.clone(),
        small: outcome.small.to_string(),
        large: outcome.large.to_string(),
        small_quality: outcome.small_quality,
        large_quality: outcome.large_quality,
        cluster: cluster(story, &prompt, &id),
        split: String::new(),
        sampling_probability: outcome.sampling_probability,
        graded_by: outcome.graded_by,
        recorded: Recorded {
            score: outcome.score.as_ref().map(|(score, _)| *score),
            tenant: outcome.tenant.to_string(),
            label: String::new(),
            at_ms: Some(outcome.at.as_millisecond()),
            small_tokens: None,
        },
        id,
        prompt,
    }
}

/// Feedback of one tenant on answers that a small model gave, as rows without a score.
async fn feedback(archive: &Archive, tenant: &str) -> Result<Vec<Outcome>, LedgerError> {
    let filter = EntryFilter { tenant: tenant.to_owned(), ..EntryFilter::default() };
    let mut rows = Vec::new();
    archive.each(filter, |story| rows.extend(judged_by_a_reader(&story))).await?;
    rows.reverse();
    Ok(rows)
}

/// What feedback says of a small model's answer, against a large one that is thought to be right; `None` without feedback,
/// without the prompt's text, and for other answers.
pub fn judged_by_a_reader(story: &Story) -> Option<Outcome> {
    let entry = &story.entry;
    let decision = entry.decision.as_ref().filter(|_| entry.shadow_of.is_none())?;
    let shown = decision.candidates.iter().find(|candidate| candidate.model == decision.model)?;
    let prompt = prompt(story);
    if shown.route != Route::Local || decision.route == Route::Cache || prompt.is_empty() {
        return None;
    }
    // What was measured counts before a judge, a judge before a user.
    let (value, graded_by) = [
        (FeedbackSource::Metric, OutcomeSource::Metric),
        (FeedbackSource::Judge, OutcomeSource::Judge),
        (FeedbackSource::User, OutcomeSource::User),
    ]
    .into_iter()
    .find_map(|(source, as_graded)| {
        let given = story.feedback.iter().find(|feedback| feedback.source == source)?;
        Some((given.value, as_graded))
    })?;
    let id = entry.id.to_string();
    Some(Outcome {
        source: "feedback".to_owned(),
        domain: decision.policy.name.clone(),
        small: decision.model.to_string(),
        large: ANY_LARGE.to_owned(),
        small_quality: value,
        large_quality: 1.0,
        cluster: cluster(Some(story), &prompt, &id),
        split: String::new(),
        sampling_probability: 1.0,
        graded_by,
        recorded: Recorded {
            tenant: entry.tenant.to_string(),
            at_ms: Some(entry.received_at.as_millisecond()),
            ..Recorded::default()
        },
        id,
        prompt,
    })
}
