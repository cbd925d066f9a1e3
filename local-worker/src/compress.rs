//! Smaller models out of larger ones: weights read from a model file, changed, and written as GGUF that any reader of the
//! format loads. What a change did to the model is measured by `evaluate`, not here.

mod calibrate;
mod directory;
mod target;
mod tokens;
mod weights;

pub use calibrate::{Calibration, calibrate};
pub use target::Target;
pub use weights::Weights;

use crate::model::LoadError;
use std::path::PathBuf;

/// Why a model can't be made smaller.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The source can't be read, or this build can't run it.
    #[error(transparent)]
    Source(#[from] LoadError),
    /// The source's weights are quantised already.
    #[error(
        "{file}: its weights are {format} already, and what that lost can't be had back; start from f32, f16 or bf16, or \
         allow a source that is quantised (--requantize)"
    )]
    Quantised {
        /// The source.
        file: String,
        /// The element type of most weights.
        format: String,
    },
    /// The result can't be written; what was there before is untouched.
    #[error("{path}: {error}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The model is of a form that can't be calibrated.
    #[error("{file}: can't be calibrated: {problem}")]
    Uncalibrated {
        /// The source.
        file: String,
        /// What is missing.
        problem: String,
    },
    /// A tensor can't be converted.
    #[error("{file}: tensor {tensor}: {problem}")]
    Tensor {
        /// The source.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
}

#[cfg(test)]
mod tests;
