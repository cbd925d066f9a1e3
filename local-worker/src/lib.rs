//! Small language models, in process.
mod kernels;
pub mod files;
pub mod model;
pub mod embed;
pub mod tokenizer;
pub mod template;
pub mod engine;
pub mod compress;
pub mod evaluate;
#[doc(hidden)]
pub mod testing;
pub mod scorer;
#[cfg(feature = "lab")]
pub mod train;
#[cfg(feature = "lab")]
pub mod prune;

pub use engine::{
    Alternative, CacheFormat, ChatMessage, Constraint, Event, FinishReason, Finished, GenerateError, GenerateRequest,
    Generation, Health, LoadSnapshot, MAX_ALTERNATIVES, ModelInfo, ModelSource, SubmitError, TokenDetail, Usage,
    UsageMeter, Worker, WorkerConfig, processor_time,
};
pub use model::LoadError;
