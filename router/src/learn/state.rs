//! The state of live checks as a file: JSON, replaced as a whole, so that a reader never meets half of one.

use super::Key;
use super::watched::Watched;
use crate::score::Pair;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The format this build reads and writes.
const SCHEMA: u32 = 1;

/// Why the state can't be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The system refuses.
    #[error("{file}: {error}")]
    File {
        /// The file.
        file: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// It is not what was written.
    #[error(
        "{file} is no state of live checks ({why}); restore it, or remove it to start the checks anew — certificates that \
         were withdrawn count again then"
    )]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<W> {
    schema: u32,
    watched: Vec<Row<W>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row<W> {
    policy: String,
    small: String,
    large: String,
    figures: W,
}

/// What the file holds; nothing if there is none.
pub fn read(file: &Path) -> Result<BTreeMap<Key, Watched>, LiveError> {
    let name = || file.display().to_string();
    let damaged = |why: String| LiveError::Damaged { file: name(), why };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(LiveError::File { file: name(), error }),
    };
    let stored: Stored<Watched> = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if stored.schema != SCHEMA {
        return Err(damaged(format!("its schema is {}, not {SCHEMA}", stored.schema)));
    }
    let row = |row: Row<Watched>| match row.figures.is_sound() {
        true => Ok(((row.policy, Pair::new(row.small, row.large)), row.figures)),
        false => Err(damaged(format!("the figures of {} are out of range", row.policy))),
    };
    stored.watched.into_iter().map(row).collect()
}

/// Replaces the file.
pub fn write(file: &Path, watched: &BTreeMap<Key, Watched>) -> Result<(), LiveError> {
    let failed = |error: std::io::Error| LiveError::File { file: file.display().to_string(), error };
    let row = |((policy, pair), figures): (&Key, _)| Row {
        policy: policy.clone(),
        small: pair.small.clone(),
        large: pair.large.clone(),
        figures,
    };
    let stored: Stored<&Watched> = Stored { schema: SCHEMA, watched: watched.iter().map(row).collect() };
    let bytes = serde_json::to_vec(&stored).map_err(|error| failed(error.into()))?;
    crate::files::replace(file, bytes).map_err(failed)
}
