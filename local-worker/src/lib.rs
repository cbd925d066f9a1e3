//! Small language models, in process.
