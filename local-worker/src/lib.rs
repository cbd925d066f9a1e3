//! Small language models, in process.
mod kernels;
pub mod model;
pub mod tokenizer;
pub mod template;
pub mod engine;
#[doc(hidden)]
pub mod testing;
pub mod scorer;
#[cfg(feature = "lab")]
pub mod train;

pub use engine::{
    ChatMessage, Event, FinishReason, Finished, GenerateError, GenerateRequest, Generation, Health, LoadSnapshot,
    ModelInfo, ModelSource, SubmitError, Usage, UsageMeter, Worker, WorkerConfig,
};
pub use model::LoadError;
