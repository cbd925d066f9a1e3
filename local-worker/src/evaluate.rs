//! How good a model is: a suite's questions asked through the engine that serves, each task graded as the corpus says, and
//! how well the model foretells given text. Knows nothing of intervals, tables or routing.

pub mod answer;
pub mod compare;
pub mod metric;
pub mod probe;
pub mod suite;

pub use answer::{Answer, AskError, AskOptions, Trace, ask};
pub use metric::{Column, columns, wants_json};
pub use probe::{Forecast, Probe, ProbeError};
pub use suite::{Record, SuiteError, hash_share};

use std::path::{Path, PathBuf};

/// Reads the files of a suite, one after the other, and checks that each record can be graded.
///
/// # Errors
/// As [`suite::read`], or a record's right answer does not fit its task's metric.
pub fn read_suite(files: &[PathBuf]) -> Result<Vec<Record>, SuiteError> {
    let mut records = Vec::new();
    for file in files {
        records.extend(suite::read(file, metric::check)?);
    }
    match (records.is_empty(), files.first()) {
        (true, first) => Err(SuiteError::Empty { path: first.map_or(Path::new("").to_owned(), Clone::clone) }),
        _ => Ok(records),
    }
}

#[cfg(test)]
mod tests;
