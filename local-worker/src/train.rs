//! Training of small decoders on this machine's own cores (feature `lab`): recipe and corpus → tokens → network → run →
//! model file.
//!
//! Forward and backward are written out for the one architecture that is trained, over buffers that are kept; candle's
//! automatic differentiation is the reference they are tested against. A run says in its folder what it was made of, can be
//! killed at any moment and goes on as if it had not been. Knows nothing of routing or money.

pub mod network;
pub mod pass;
mod optimizer;
pub mod recipe;
pub mod vocabulary;
pub mod model;
pub mod corpus;
pub mod teacher;
mod checkpoint;
mod chart;
pub mod run;
pub mod folder;
pub mod speed;

use crate::compress::CompressError;
use crate::evaluate::suite::SuiteError;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Why a run could not start, go on or be written.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file of the run or the model can't be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A recipe contradicts itself.
    #[error("{path}: {problems}")]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// All that is wrong.
        problems: String,
    },
    /// The corpus can't be read, or may not be trained on.
    #[error(transparent)]
    Corpus(#[from] SuiteError),
    /// A model to start from can't be read, or the result can't be written.
    #[error(transparent)]
    Model(#[from] CompressError),
    /// A model is of a kind that can't be trained here.
    #[error("{file}: can't be trained: {problem}")]
    Untrainable {
        /// The model.
        file: String,
        /// Why.
        problem: String,
    },
    /// Nothing of the corpus is left to train on.
    #[error("no record to train on: {0}")]
    NothingToDo(String),
    /// A record does not fit the context.
    #[error(
        "record {id} has {tokens} tokens, the context {context}; shorten it, raise `context`, or say \
         `long_records = \"skip\"` under [data]"
    )]
    TooLong {
        /// The record's id.
        id: String,
        /// Its tokens.
        tokens: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// The folder holds another run.
    #[error("{folder}: holds a run with {difference}; use another folder, or take that back")]
    OtherRun {
        /// The folder.
        folder: PathBuf,
        /// What differs.
        difference: String,
    },
    /// Another process trains in the folder.
    #[error("{folder}: another process trains in it; wait for it, or use another folder")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// A checkpoint can't be read, or belongs to a network of another shape.
    #[error("{path}: {problem}; use another folder, or delete this one to start anew")]
    BadCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The loss or the gradient is no number any more.
    #[error(
        "the loss is {loss} and the gradient's norm {norm} at step {step}; {kept}; try a lower peak_rate or a longer warm_up \
         in another folder"
    )]
    Diverged {
        /// The loss.
        loss: f64,
        /// The norm.
        norm: f64,
        /// The step.
        step: u64,
        /// Where the last good checkpoint is.
        kept: String,
    },
    /// The vocabulary can't be trained, read or written, or is not the model's.
    #[error("vocabulary: {0}")]
    Vocabulary(String),
    /// The system gives no threads.
    #[error("no threads to train on: {0}")]
    Threads(std::io::Error),
}

impl TrainError {
    fn file(path: &Path, error: std::io::Error) -> Self {
        Self::File { path: path.to_owned(), error }
    }
}

/// Writes a file that appears whole or not at all.
fn write_whole(path: &Path, put: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<(), TrainError> {
    crate::files::write(path, |file| put(file)).map_err(|error| TrainError::file(path, error))
}
