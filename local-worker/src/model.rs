//! Model files and the forward pass: a GGUF file or a directory with safetensors becomes packed weights and a plain
//! description, and those turn rows of tokens into logits. Each family is one small file that writes the description; the
//! pass is the same for all. Knows nothing of requests, text or time.

mod bert;
mod bundled;
mod cache;
mod config;
mod decoder;
mod directory;
mod error;
mod facts;
mod family;
mod format;
mod gemma;
mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
mod inspect;
mod llama;
mod mapped;
mod names;
mod phi;
mod phi3;
mod quantize;
mod qwen;
mod rotary;
pub(crate) mod safetensors;
mod shape;
mod step;
mod tensors;
mod watch;

pub use bert::{Encoder, EncoderScratch, EncoderShape};
pub use bundled::SLUICE_NANO;
pub use cache::{BlockId, Cache, CacheFormat, CacheShape, POSITIONS};
pub(crate) use config::Config;
pub use decoder::{Decoder, LoadOptions};
pub use directory::Directory;
pub use error::LoadError;
pub(crate) use facts::Facts;
pub(crate) use family::{of_config as plan_of_config, shape_of};
pub(crate) use format::{Format, singles};
pub use gguf::{Gguf, TensorInfo, Value};
pub use inspect::Inspection;
pub use mapped::Mapped;
pub(crate) use names::{Names, Plan};
pub use quantize::Quantize;
pub(crate) use rotary::{base as rotary_base, plain as plain_angles};
pub use shape::{Biases, DecoderShape, Feed, LayerAttention, NormKind, Pairing, Rotary};
pub use step::{Row, Scratch};
pub(crate) use tensors::Tensors;
pub use watch::{Inputs, Site, Watch};

#[cfg(test)]
mod tests;
