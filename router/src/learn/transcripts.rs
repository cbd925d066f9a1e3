//! Recorded requests that a large model answered, as records that a small model can learn: the ledger's part of knowledge
//! distillation.
//!
//! Text is taken only of tenants whose record level is `text`, and nothing that had to stay local: neither a request that a
//! client, a key or a rule kept here, nor any other of the same conversation. What looks personal is masked before it leaves
//! this module (`learn/masks.rs`). A record is one question and its answer, as training and serving have them; what had more
//! turns is left out and counted.

use super::masks::{Masked, Masker};
use crate::domain::{EntryStatus, FinishReason, Placement, RecordLevel, Role, Route};
use crate::ledger::{Archive, EntryFilter, FeedbackSource, LedgerError, Story};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Licence of these records: a recipe has to name it among its `data.licences`.
pub const LICENCE: &str = "tenant";

/// Their task.
pub const TASK: &str = "transcript";

/// Why there is nothing to learn from, or it can't be written.
#[derive(Debug, thiserror::Error)]
pub enum TranscriptError {
    /// The ledger can't be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The patterns of masks are broken, which a test rules out.
    #[error("what looks personal can't be looked for: {0}")]
    Masks(#[from] regex::Error),
    /// No request was recorded with its text.
    #[error(
        "{folder}: no request was recorded with its text, of {entries} there are; set tenants.NAME.record = \"text\" for \
         tenants that consent"
    )]
    NoConsent {
        /// The data folder.
        folder: PathBuf,
        /// Requests in it.
        entries: usize,
    },
    /// There are recordings, none of which is of use.
    #[error("{folder}: no recorded answer can be learnt from: {left_out}")]
    Nothing {
        /// The data folder.
        folder: PathBuf,
        /// How many were left out and why.
        left_out: String,
    },
    /// Several tenants' text would end in one model.
    #[error(
        "{folder}: a model that learns the answers to {} may repeat to one what another one said; name one with --tenant, or \
         allow it with --across-tenants", .tenants.join(", ")
    )]
    SeveralTenants {
        /// The data folder.
        folder: PathBuf,
        /// Whose.
        tenants: Vec<String>,
    },
    /// The file can't be written.
    #[error("{file}: {error}; is the disk full?")]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// Which answers are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only of this tenant; empty means all.
    pub tenant: String,
    /// Whether answers to several tenants may be taken together.
    pub across_tenants: bool,
    /// Answers with feedback are wanted only if it is above this, 0 to 1; those without always.
    pub feedback_above: Option<f64>,
}

/// A question and a large model's answer, masked; one line of a corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Transcript {
    /// The entry's id.
    pub id: String,
    /// Always [`TASK`].
    pub task: &'static str,
    /// The tenant.
    pub source: String,
    /// Always [`LICENCE`].
    pub licence: &'static str,
    /// What was asked.
    pub prompt: String,
    /// What was answered.
    pub answer: String,
}

/// What was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcripts {
    /// Oldest first.
    pub rows: Vec<Transcript>,
    /// How often which mask was put in.
    pub masked: Masked,
    /// Requests that were left out, by why.
    pub left_out: BTreeMap<&'static str, usize>,
}

impl Transcripts {
    /// Reads what is wanted out of the ledger in `folder`.
    ///
    /// # Errors
    /// The store fails, or holds nothing that can be learnt from.
    pub async fn read(folder: &Path, wanted: &Wanted) -> Result<Self, TranscriptError> {
        let archive = Archive::open(folder).await?;
        let filter = EntryFilter { tenant: wanted.tenant.clone(), ..EntryFilter::default() };
        let mut stories = Vec::new();
        archive
            .each(filter, |story| stories.extend(Some(story).filter(|story| story.entry.shadow_of.is_none())))
            .await?;
        let taken = Self::of(&stories, wanted)?;
        let folder = folder.to_owned();
        let tenants: BTreeSet<&String> = taken.rows.iter().map(|row| &row.source).collect();
        if tenants.len() > 1 && !wanted.across_tenants {
            return Err(TranscriptError::SeveralTenants { folder, tenants: tenants.into_iter().cloned().collect() });
        }
        if !taken.rows.is_empty() {
            return Ok(taken);
        }
        match stories.iter().any(is_recorded) {
            true => Err(TranscriptError::Nothing { folder, left_out: taken.told_left_out() }),
            false => Err(TranscriptError::NoConsent { folder, entries: stories.len() }),
        }
    }

    /// Takes what is wanted out of entries, newest first: of several answers to one prompt the newest counts.
    fn of(stories: &[Story], wanted: &Wanted) -> Result<Self, regex::Error> {
        let masker = Masker::new()?;
        let local: HashSet<(&str, &str)> = stories.iter().filter(|s| stays_local(s)).filter_map(conversation).collect();
        let (mut taken, mut seen) = (Self::default(), HashSet::new());
        for story in stories {
            let private = stays_local(story) || conversation(story).is_some_and(|found| local.contains(&found));
            let found = if private { Err("had to stay local") } else { exchange(story, wanted) };
            let found = found.and_then(|(prompt, answer)| {
                let mut masked = Masked::new();
                let row = Transcript {
                    id: story.entry.id.to_string(),
                    task: TASK,
                    source: story.entry.tenant.to_string(),
                    licence: LICENCE,
                    prompt: masker.mask(prompt, &mut masked),
                    answer: masker.mask(answer, &mut masked),
                };
                let new = seen.insert((row.source.clone(), blake3::hash(row.prompt.trim().as_bytes())));
                if new { Ok((row, masked)) } else { Err("the same was asked again later") }
            });
            match found {
                Ok((row, masked)) => {
                    taken.rows.push(row);
                    masked.into_iter().for_each(|(mask, count)| *taken.masked.entry(mask).or_default() += count);
                }
                Err(why) => *taken.left_out.entry(why).or_default() += 1,
            }
        }
        taken.rows.reverse();
        Ok(taken)
    }

    /// Writes rows as JSON lines.
    ///
    /// # Errors
    /// The file can't be written; what was there before is untouched.
    pub fn write<'row>(mut rows: impl Iterator<Item = &'row Transcript>, file: &Path) -> Result<(), TranscriptError> {
        let mut lines = Vec::new();
        let written = rows.try_for_each(|row| {
            serde_json::to_writer(&mut lines, row)?;
            lines.write_all(b"\n")
        });
        let replaced = written.and_then(|()| crate::files::replace(file, lines));
        replaced.map_err(|error| TranscriptError::Unwritable { file: file.to_owned(), error })
    }

    /// How many were taken, masked and left out, in lines.
    pub fn told(&self) -> String {
        let masked: Vec<String> = self.masked.iter().map(|(mask, count)| format!("{count} {mask}")).collect();
        let mut told = format!("{} answers of large models taken; masked in them: ", self.rows.len());
        told.push_str(&if masked.is_empty() { "nothing".to_owned() } else { masked.join(", ") });
        if !self.left_out.is_empty() {
            told.push_str(&format!("\nleft out: {}", self.told_left_out()));
        }
        told
    }

    fn told_left_out(&self) -> String {
        let left_out: Vec<String> = self.left_out.iter().map(|(why, count)| format!("{count} ({why})")).collect();
        left_out.join(", ")
    }
}

fn is_recorded(story: &Story) -> bool {
    story.entry.recording.as_ref().is_some_and(|recording| recording.level == RecordLevel::Text)
}

/// Whether anybody kept the request in this process.
fn stays_local(story: &Story) -> bool {
    let entry = &story.entry;
    let asked = entry.recording.iter().flat_map(|recording| [recording.placement, recording.placement_floor]);
    let held = entry.constraints.iter().map(|constraints| constraints.placement);
    asked.chain(held).any(|placement| placement == Placement::LocalOnly)
}

fn conversation(story: &Story) -> Option<(&str, &str)> {
    let entry = &story.entry;
    (!entry.conversation_id.is_empty()).then_some((entry.tenant.as_str(), entry.conversation_id.as_str()))
}

/// The question and the answer of an entry, or why it can't be learnt from.
fn exchange<'story>(story: &'story Story, wanted: &Wanted) -> Result<(&'story str, &'story str), &'static str> {
    let entry = &story.entry;
    let recording = entry.recording.as_ref().filter(|_| is_recorded(story)).ok_or("recorded without its text")?;
    let decision = entry.decision.as_ref().filter(|_| entry.status == EntryStatus::Ok).ok_or("not answered")?;
    let by = decision.candidates.iter().find(|candidate| candidate.model == decision.model);
    if decision.route == Route::Cache || entry.cached_from.is_some() {
        return Err("answered from the cache");
    }
    if by.is_some_and(|by| by.route == Route::Local) {
        return Err("answered by a small model");
    }
    if entry.finish_reason != Some(FinishReason::Stop) {
        return Err("answer cut off");
    }
    let answer = recording.answer.as_deref().ok_or("recorded before answers were kept")?;
    let [message] = recording.messages.as_slice() else { return Err("several turns or instructions") };
    if message.role != Role::User {
        return Err("several turns or instructions");
    }
    let [crate::domain::Part::Text(prompt)] = message.parts.as_slice() else { return Err("not one text") };
    if prompt.trim().is_empty() || answer.trim().is_empty() {
        return Err("blank");
    }
    // What was measured counts before a judge, a judge before a user.
    let graded = [FeedbackSource::Metric, FeedbackSource::Judge, FeedbackSource::User]
        .into_iter()
        .find_map(|source| story.feedback.iter().find(|feedback| feedback.source == source));
    let poor = graded.zip(wanted.feedback_above).is_some_and(|(graded, above)| graded.value <= above);
    if poor { Err("poor feedback") } else { Ok((prompt, answer)) }
}
