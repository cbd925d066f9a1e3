//! What the model lab tells of a model: scores on a suite with their intervals, and what a change to its weights did to it.
//! The measuring itself is the local worker's; nothing here knows of files or command lines.

pub mod card;
pub mod cascade;
pub mod report;

pub use card::{Card, Exam};
pub use report::{Report, Score, TaskReport};
