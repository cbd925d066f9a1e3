//! Model files and the forward pass: a GGUF file becomes packed weights, and packed weights turn rows of tokens into
//! logits. Knows nothing of requests, text or time.

mod error;

pub use error::LoadError;
