//! Recorded requests, one JSON object a line, and the checks that make them rows that can't be wrong. The ledger's entries
//! are brought into the same shape, so that an exported log replays as the ledger does.

use super::ReplayError;
use crate::domain::{Arm, Candidate, ModelId, Request};
use crate::evidence::outcome::{MOST_PROBLEMS, Outcome, RowProblem};
use crate::ledger::Story;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

mod line;
mod story;

pub use line::{LogCandidate, LogLine, LogMessage};
pub use story::line_of;

/// What was chosen: a model, and for a local one whether a declined draft goes on to a large one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Action {
    /// The model.
    pub model: ModelId,
    /// Always false for remote ones.
    pub escalates: bool,
    /// Whether a judge looks at the draft before anything of it is shown.
    pub judged: bool,
}

/// A recorded request, checked.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Its id as it was written.
    pub id: String,
    /// When it came.
    pub at_ms: i64,
    /// The policy that decided; may be empty.
    pub policy: String,
    /// Its side of an experiment, if there was one.
    pub arm: Option<Arm>,
    /// Rows of one conversation share it.
    pub cluster: u64,
    /// What can be decided again; `None` at level `none`.
    pub request: Option<Request>,
    /// Whether the messages are its own, not stand-ins of their size.
    pub has_text: bool,
    /// The choice; `None` if the cache answered.
    pub action: Option<Action>,
    /// Whether the model chosen is local.
    pub local: bool,
    /// Whether a large model answered in the end.
    pub went_remote: bool,
    /// The logger's probability of each choice that it could make, the one made included.
    pub propensities: BTreeMap<Action, f64>,
    /// Models considered, without what constraints made of them.
    pub candidates: Vec<Candidate>,
    /// Version of the scorer.
    pub scorer: String,
    /// Cost in USD.
    pub cost_usd: f64,
    /// Latency in milliseconds.
    pub latency_ms: f64,
    /// Quality and the probability of its being graded.
    pub quality: Option<(f64, f64)>,
    /// Whether the small model sufficed, where outcomes tell.
    pub suffices: Option<bool>,
    /// How long before it the conversation was last served remotely, in ms, as it was logged.
    pub since_remote_ms: Option<i64>,
}

impl Logged {
    /// Whether a conversation that stays remote for `time_to_live` after it went there would be remote at this row.
    pub fn is_sticky(&self, time_to_live: Option<Duration>) -> bool {
        let since = self.since_remote_ms.and_then(|since| u64::try_from(since).ok());
        time_to_live.zip(since).is_some_and(|(time_to_live, since)| Duration::from_millis(since) <= time_to_live)
    }
}

/// Rows and what is odd about them without being wrong.
#[derive(Debug, Default)]
pub struct Log {
    /// The rows, by time.
    pub rows: Vec<Logged>,
    /// What to know.
    pub warnings: Vec<String>,
}

impl Log {
    /// Reads lines; `file` is how they are named in problems.
    ///
    /// # Errors
    /// Bad rows by file, line and field, or no rows.
    pub fn parse(file: &str, text: &str) -> Result<Self, ReplayError> {
        let torn = (!text.ends_with('\n')).then(|| text.lines().count());
        let mut lines = Vec::new();
        let mut problems = Vec::new();
        for (place, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match serde_json::from_str::<LogLine>(line) {
                Ok(row) => lines.push((place + 1, row)),
                Err(error) => {
                    let cut = if torn == Some(place + 1) { "the file ends within this row: " } else { "" };
                    let mend = if cut.is_empty() {
                        "write JSON; NaN and infinity have no word in it"
                    } else {
                        "remove the row"
                    };
                    problems.push(problem(file, place + 1, "row", format!("{cut}{error}; {mend}")));
                }
            }
        }
        Self::check(file, lines, problems)
    }

    /// Takes entries of the ledger.
    ///
    /// # Errors
    /// As [`Log::parse`]; a line is then an entry's place.
    pub fn from_stories(file: &str, stories: &[Story]) -> Result<Self, ReplayError> {
        let lines = stories.iter().filter_map(line_of).enumerate().map(|(place, line)| (place + 1, line));
        Self::check(file, lines.collect(), Vec::new())
    }

    fn check(file: &str, lines: Vec<(usize, LogLine)>, mut problems: Vec<RowProblem>) -> Result<Self, ReplayError> {
        let mut log = Self::default();
        let mut seen = HashSet::new();
        let (mut latest, mut back) = (i64::MIN, 0);
        for (place, line) in lines {
            if !seen.insert(line.id.clone()) {
                let what = format!("{:?} is there twice; ids are unique: remove one", line.id);
                problems.push(problem(file, place, "id", what));
            }
            back += usize::from(line.at_ms < latest);
            latest = latest.max(line.at_ms);
            match line.check() {
                Ok(row) => log.rows.push(row),
                Err((field, what)) => problems.push(problem(file, place, field, what)),
            }
        }
        if !problems.is_empty() {
            problems.sort_by_key(|problem| problem.line);
            problems.truncate(MOST_PROBLEMS);
            return Err(ReplayError::Rows(problems));
        }
        if log.rows.is_empty() {
            return Err(ReplayError::Empty(file.to_owned()));
        }
        if back > 0 {
            let what = "are older than a row before them; they were put in order, and nothing estimated depends on it";
            log.warnings.push(format!("{back} rows {what}"));
        }
        log.rows.sort_by_key(|row| row.at_ms);
        log.find_remote_conversations();
        Ok(log)
    }

    /// Notes for each row how long before it its conversation was last served remotely.
    fn find_remote_conversations(&mut self) {
        let mut last: HashMap<u64, i64> = HashMap::new();
        for row in &mut self.rows {
            row.since_remote_ms = last.get(&row.cluster).map(|at_ms| row.at_ms - at_ms);
            if row.went_remote {
                last.insert(row.cluster, row.at_ms);
            }
        }
    }

    /// Takes qualities from outcomes of the same ids: the small model's where it was chosen, else the large one's. Returns
    /// how many rows found one.
    pub fn join(&mut self, outcomes: &[Outcome]) -> usize {
        let by_id: HashMap<&str, &Outcome> = outcomes.iter().map(|row| (row.id.as_str(), row)).collect();
        let mut joined = 0;
        for row in &mut self.rows {
            let Some(outcome) = by_id.get(row.id.as_str()) else { continue };
            let quality = if row.local { outcome.small_quality } else { outcome.large_quality };
            row.quality = Some((quality, outcome.sampling_probability));
            row.suffices = Some(outcome.small_suffices());
            joined += 1;
        }
        joined
    }
}

fn problem(file: &str, line: usize, field: &'static str, problem: String) -> RowProblem {
    RowProblem { file: file.to_owned(), line, field, problem }
}

#[cfg(test)]
mod tests;
