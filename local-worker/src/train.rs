//! Training of small decoders on this machine's own cores (feature `lab`): corpus → vocabulary → network → run → GGUF.
//!
//! Built on candle's automatic differentiation. Only operations with a backward pass are used: several fused ones of
//! candle 0.11 silently drop gradients. Knows nothing of routing or money.

pub mod network;
mod optimizer;
mod checkpoint;
pub mod run;
pub mod recipe;
pub mod vocabulary;
pub mod corpus;
pub mod export;

use std::path::{Path, PathBuf};

pub use checkpoint::latest;

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
    /// A checkpoint belongs to a network of another shape.
    #[error("{path}: {name} is missing or of another shape than the recipe says; use another folder for another shape")]
    OtherShape {
        /// The checkpoint.
        path: PathBuf,
        /// The matrix.
        name: String,
    },
    /// There is no checkpoint to take weights from.
    #[error("{0} holds no checkpoint; train first")]
    NoCheckpoint(PathBuf),
    /// No row can be drawn.
    #[error("{rows} rows in batches of {batch}: at least one of each is needed")]
    NothingToDo {
        /// Rows there are.
        rows: usize,
        /// Rows wanted in a batch.
        batch: usize,
    },
    /// An operation without backward pass is in the way.
    #[error("{0} has no gradient: an operation without backward pass is in the way")]
    NoGradient(String),
    /// The loss is no number any more.
    #[error("the loss is {loss} at step {step}; go on from the checkpoint in {folder} with a lower peak rate")]
    Diverged {
        /// The loss.
        loss: f64,
        /// The step.
        step: usize,
        /// Where the last good checkpoint is.
        folder: PathBuf,
    },
    /// The vocabulary can't be trained, read or written.
    #[error("vocabulary: {0}")]
    Vocabulary(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    fn file(path: &Path, error: std::io::Error) -> Self {
        Self::File { path: path.to_owned(), error }
    }
}
