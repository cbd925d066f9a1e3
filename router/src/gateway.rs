//! One request, start to end: constrain → cache → score → decide → hold, journal, attempt → meter → record.
//!
//! The gateway speaks domain words only; protocols live in `edge`, implementations are handed in by `app`.

pub mod reply;

pub use reply::{
    BudgetWindow, Explanation, FailureReport, GatewayError, GatewayErrorKind, Reply, ReplyEvent, ReplyStream, Summary,
};
