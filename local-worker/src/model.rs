//! Model files and the forward pass: a GGUF file becomes packed weights, and packed weights turn rows of tokens into
//! logits. Knows nothing of requests, text or time.

mod bundled;
mod cache;
mod error;
mod format;
mod gguf;
mod llama;
mod step;

pub use bundled::SLUICE_NANO;
pub use cache::{BlockId, Cache, CacheFormat, CacheShape, POSITIONS};
pub use error::LoadError;
pub use gguf::{Gguf, TensorInfo, Value};
pub use llama::{Llama, LlamaShape};
pub use step::{Row, Scratch};

#[cfg(test)]
mod tests;
