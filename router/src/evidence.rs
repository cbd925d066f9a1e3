//! Recorded outcomes and the statistics on them.
//!
//! Everything here is pure: rows in, numbers out. It knows qualities, scores and losses; it must not know policies, backends,
//! the ledger or the wire, because the same functions judge a scorer at training time, a policy at `tune` and live traffic.

mod betting;
pub mod bootstrap;
pub mod bound;
pub mod calibration;
pub mod certificate;
pub mod estimate;
pub mod drift;
pub mod frontier;
pub mod grading;
pub mod live;
pub mod outcome;
pub mod paired;
pub mod spending;
mod special;
pub mod watch;
