//! Sluice: a gateway that scores each request, serves it on a small model in this process or forwards it to a large
//! remote one, and says why and for how much.
//!
//! Modules are declared in dependency order: **a module uses only modules declared above it** (a test keeps this).

pub mod domain;
pub mod telemetry;
pub mod files;
pub mod toml_file;
pub mod catalog;
pub mod budget;
pub mod evidence;
pub mod score;
pub mod judge;
pub mod policy;
pub mod simulate;
pub mod backend;
pub mod models;
pub mod encoders;
pub mod latency;
pub mod cache;
pub mod ledger;
pub mod replay;
pub mod learn;
pub mod lab;
pub mod flywheel;
pub mod gateway;
pub mod settings;
pub mod edge;
pub mod app;
pub mod cli;
