//! Integration tests of the router: the real binary's parts, real protocols, in-process fakes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on should say where")]

mod bad_models;
mod cascade;
mod ceiling;
mod crash;
mod edge;
mod embed;
mod experiment;
#[cfg(feature = "lab")]
mod flywheel;
mod house;
mod hub;
#[cfg(feature = "lab")]
mod lab;
mod learning;
#[cfg(feature = "lab")]
mod long;
mod metrics;
mod models;
mod objectives;
mod otlp;
mod path;
mod port;
mod replay;
mod second;
mod shadow;
mod start;
mod support;
