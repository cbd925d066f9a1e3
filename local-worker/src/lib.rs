//! Small language models, in process.
pub mod scorer;
