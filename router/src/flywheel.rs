//! The flywheel: recorded traffic → a student → compressed → measured → tried beside the model that serves → in its place, or
//! not, and back by one command. Here is what must be right of it whoever drives it: the run folder that says how far it got
//! ([`RunFolder`]), what changes in the folder of policies and in which order ([`Place`]), and the gate ([`gate`]). The steps
//! themselves are those of the lab; `cli/flywheel.rs` strings them together.
//!
//! A candidate has a name of its own in the catalog, never that of the model it replaces: certificates, judges and outcomes
//! name the model they speak of and the policy's text, so that nothing which was proven of the old one holds for the new one,
//! and all of it holds again after a rollback.

pub mod gate;
mod place;
mod state;

pub use place::Place;
pub use state::{Corpus, Made, Run, RunFolder, Settings, Source, Stage, Tried, hash};

use crate::domain::ModelId;
use crate::ledger::LedgerError;
use crate::toml_file::Problem;
use std::path::{Path, PathBuf};

/// Why the flywheel does not turn.
#[derive(Debug, thiserror::Error)]
pub enum FlywheelError {
    /// A file can't be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said: a full disk too.
        error: std::io::Error,
    },
    /// Another process turns it in this folder.
    #[error("{} is in use by another process; wait for it, or give another --folder", path.display())]
    InUse {
        /// The run folder.
        path: PathBuf,
    },
    /// The folder holds a run of something else.
    #[error("{} holds another run ({difference}); go on with its settings, or give another --folder", path.display())]
    OtherRun {
        /// The run folder.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// What a step wrote is not what it wrote down.
    #[error("{}: {why}; put back what was there, or begin in another folder once the policy names its old model again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Files of policies have problems, or would have.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<Problem>),
    /// The policy can't be improved so.
    #[error("policy `{policy}`: {why}")]
    Policy {
        /// Its name.
        policy: String,
        /// What is missing, and the mend.
        why: String,
    },
    /// There is no run.
    #[error("{} holds no run: there is no flywheel.json in it", path.display())]
    NoRun {
        /// The run folder.
        path: PathBuf,
    },
    /// The ledger can't be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl FlywheelError {
    fn file(path: &Path, error: std::io::Error) -> Self {
        Self::File { path: path.to_owned(), error }
    }

    /// A policy tries one candidate at a time.
    pub fn tries_another(policy: &str, other: &ModelId) -> Self {
        let why = format!(
            "{other} is being tried already; end that with `sluice flywheel rollback --folder` and the folder of its run, which models.toml names"
        );
        Self::Policy { policy: policy.to_owned(), why }
    }
}
