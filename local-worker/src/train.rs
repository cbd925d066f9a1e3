//! Training of small decoders on this machine's own cores (feature `lab`): corpus → vocabulary → network → run → GGUF.
//!
//! Built on candle's automatic differentiation. Only operations with a backward pass are used: several fused ones of
//! candle 0.11 silently drop gradients. Knows nothing of routing or money.

pub mod corpus;
pub mod evaluate;
pub mod export;
pub mod network;
pub mod run;
pub mod vocabulary;
