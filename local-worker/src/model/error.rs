//! Why a model could not be loaded. Files come from anywhere, so every message names the file and the fault.

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// This build contains no model of its own.
    #[error("this build contains no bundled model; give the path of a GGUF file")]
    NoBundledModel,
    /// The file could not be read.
    #[error("{file}: {error}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not what it claims to be.
    #[error("{file}: {problem}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong, and where.
        problem: String,
    },
    /// The file is sound, but this build can't run it.
    #[error("{file}: {problem}")]
    Unsupported {
        /// The file.
        file: String,
        /// What is not supported and what would be.
        problem: String,
    },
    /// A setting of the worker is out of its range.
    #[error("{setting} {problem}")]
    Config {
        /// Name of the setting.
        setting: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The worker's thread could not be started, or died while loading.
    #[error("the worker's thread failed: {0}")]
    Thread(String),
}
