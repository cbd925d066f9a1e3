//! Settings: one file, then `SLUICE_*` variables, into one raw struct, into values that can't be wrong. The only place
//! that reads the environment. Unknown keys are errors that name the key and where it came from.

mod hub;
mod raw;

pub use hub::HubSettings;

use crate::backend::remote::Timeouts;
use crate::budget::BudgetLimits;
use crate::domain::{RecordLevel, Residency, TenantId};
use crate::models::LoadWhen;
use crate::telemetry::TelemetryConfig;
use config::{Config, Environment, File, FileFormat, Source as _};
use local_worker::CacheFormat;
use raw::Raw;
use secrecy::SecretString;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Separates levels in variable names: `SLUICE_TARGETS__OPENAI__BASE_URL`.
const SEPARATOR: &str = "__";
/// How often a failed call is repeated where settings say nothing.
const MAX_RETRIES: u32 = 2;

/// A remote target.
#[derive(Clone, Debug)]
pub struct Target {
    /// Base URL of its OpenAI-compatible API, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// Its key.
    pub key: Option<SecretString>,
    /// Time-outs of a call.
    pub timeouts: Timeouts,
    /// How often a failed call is repeated at the same model.
    pub max_retries: u32,
    /// Whether answers are streamed from it.
    pub stream: bool,
}

impl Target {
    /// A target at a base URL, without a key and with the usual time-outs.
    pub fn at(base_url: String) -> Self {
        Self { base_url, key: None, timeouts: Timeouts::default(), max_retries: MAX_RETRIES, stream: true }
    }
}

/// Files of a TLS server.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Folder of ledger and journal.
    pub data_dir: PathBuf,
    /// Folder of policies; `None` uses those inside the binary.
    pub policies_dir: Option<PathBuf>,
    /// Policy where none is named.
    pub default_policy: String,
    /// File of keys; `None` needs none and listens on loopback only.
    pub keys_file: Option<PathBuf>,
    /// Scorer instead of the one inside the binary.
    pub scorer_file: Option<PathBuf>,
    /// Wait for the disk at each journal record.
    pub sync_each: bool,
    /// How long open calls may take to finish at shutdown.
    pub shutdown_grace: Duration,
    /// How often policies and keys are looked at again.
    pub reload_interval: Duration,
    /// TLS files; `None` serves in the clear.
    pub tls: Option<TlsFiles>,
    /// Remote targets by name.
    pub targets: HashMap<String, Target>,
    /// Requests that may wait for a local model.
    pub local_queue: usize,
    /// Requests that a local model decodes together.
    pub local_sequences: usize,
    /// Bytes of keys and values that each local model may hold.
    pub local_cache_bytes: usize,
    /// How local models keep keys and values.
    pub local_cache_format: CacheFormat,
    /// Threads that each local model computes on.
    pub local_threads: usize,
    /// Most bytes of all local models together; `None` is no bound.
    pub local_memory_bytes: Option<u64>,
    /// When local models are loaded.
    pub local_load: LoadWhen,
    /// How long a request waits for a local model that is being loaded.
    pub local_wait: Duration,
    /// Where models are fetched from and kept.
    pub hub: HubSettings,
    /// Most bytes of prompt text.
    pub max_prompt_bytes: usize,
    /// Most requests under way.
    pub max_concurrent: usize,
    /// Budgets by tenant.
    pub tenants: HashMap<TenantId, BudgetLimits>,
    /// Where tenants' requests may be served; anywhere for tenants that are not named or name no region.
    pub residencies: HashMap<TenantId, Residency>,
    /// What is kept of requests beside the books, by tenant; nothing of tenants that are not named.
    pub records: HashMap<TenantId, RecordLevel>,
    /// Bytes of the answer cache.
    pub cache_bytes: u64,
    /// Logs and exporters.
    pub telemetry: TelemetryConfig,
}

/// Settings that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// File or variables can't be read into the known keys.
    #[error("{0}")]
    Unreadable(String),
    /// Values are wrong: all of them.
    #[error("{}", .0.join("\n"))]
    Wrong(Vec<String>),
}

impl Settings {
    /// Reads the file, if one is given, then the process's `SLUICE_*` variables.
    ///
    /// # Errors
    /// Unknown keys, wrong types, wrong values.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        #[allow(clippy::disallowed_methods, reason = "the environment is read here and nowhere else")]
        let variables = std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_")).collect();
        Self::from(file, variables, &|name| {
            #[allow(clippy::disallowed_methods, reason = "keys of targets are named in the settings")]
            std::env::var(name).ok()
        })
    }

    /// Reads a file and given variables; `secret` looks up the variables that hold keys.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from(
        file: Option<&Path>,
        variables: HashMap<String, String>,
        secret: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let unreadable = |error: config::ConfigError| SettingsError::Unreadable(error.to_string());
        let mut builder = Config::builder();
        let mut written = Raw::default();
        if let Some(file) = file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| SettingsError::Unreadable(format!("{}: {error}", file.display())))?;
            // Line and column come from the TOML parser; after merging only the key is known.
            written = toml::from_str(&text)
                .map_err(|error| SettingsError::Unreadable(format!("{}: {error}", file.display())))?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        let names: Vec<String> = variables.keys().cloned().collect();
        let environment =
            Environment::with_prefix("SLUICE").prefix_separator("_").separator(SEPARATOR).try_parsing(true);
        for (key, value) in environment.source(Some(variables)).collect().map_err(unreadable)? {
            builder = builder.set_override(written.spelt(&key), value).map_err(unreadable)?;
        }
        let merged = builder.build().map_err(unreadable)?;
        let raw: Raw = merged.try_deserialize().map_err(|error| {
            let from = if names.is_empty() { String::new() } else { format!(" (variables: {})", names.join(", ")) };
            SettingsError::Unreadable(format!("settings: {error}{from}"))
        })?;
        raw.check(secret)
    }
}

#[cfg(test)]
mod tests;
