//! Pure values that every other module speaks in: requests, answers, decisions, money. No I/O, no serde, no clocks:
//! wire and storage shapes live beside the code that reads and writes them.

pub mod answer;
pub mod decision;
pub mod money;
pub mod recording;
pub mod request;
pub mod residency;

pub use answer::{AnswerText, Chunk, Finish, FinishReason, TokenAlternative, TokenLogprob, Usage};
pub use decision::{
    Arm, Candidate, Constraints, Decision, EntryStatus, ExcludedBy, PolicyRef, Predicted, Reason, ReasonCode, Route,
    Score, ScoreOutOfRange,
};
pub use money::{Cost, CostBasis, MoneyError, NanoUsd, PicoUsdPerToken};
pub use recording::{FirstChoice, RecordLevel, Recording};
pub use request::{
    AttemptId, Labels, Limits, Message, ModelId, Part, Placement, PlacementConflict, Request, RequestId,
    ResponseFormat, Role, TenantId,
};
pub use residency::Residency;
