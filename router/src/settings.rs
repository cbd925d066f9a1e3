//! Settings: one file, then `SLUICE_*` variables, into one raw struct, into values that can't be wrong. The only place
//! that reads the environment. Unknown keys are errors that name the key and where it came from.

use crate::backend::remote::Timeouts;
use crate::budget::BudgetLimits;
use crate::domain::{NanoUsd, TenantId};
use crate::telemetry::{LogFormat, TelemetryConfig};
use config::{Config, Environment, File, FileFormat};
use secrecy::SecretString;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Separates levels in variable names: `SLUICE_TARGETS__OPENAI__BASE_URL`.
const SEPARATOR: &str = "__";
/// How often a failed call is repeated where settings say nothing.
const MAX_RETRIES: u32 = 2;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    listen: Option<String>,
    data_dir: Option<PathBuf>,
    policies_dir: Option<PathBuf>,
    default_policy: Option<String>,
    keys_file: Option<PathBuf>,
    scorer_file: Option<PathBuf>,
    durability: Option<String>,
    shutdown_grace_seconds: Option<u64>,
    reload_seconds: Option<u64>,
    tls: Option<RawTls>,
    targets: BTreeMap<String, RawTarget>,
    local: RawLocal,
    limits: RawLimits,
    tenants: BTreeMap<String, RawTenant>,
    cache: RawCache,
    telemetry: RawTelemetry,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTarget {
    // Wanted, but it may come from a variable while the rest comes from the file.
    base_url: Option<String>,
    api_key_env: Option<String>,
    api_key_file: Option<PathBuf>,
    connect_seconds: Option<f64>,
    first_byte_seconds: Option<f64>,
    idle_seconds: Option<f64>,
    total_seconds: Option<f64>,
    max_retries: Option<u32>,
    stream: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLocal {
    queue: Option<usize>,
    sequences: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    max_prompt_bytes: Option<usize>,
    max_concurrent_requests: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTenant {
    daily: Option<String>,
    monthly: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCache {
    max_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTelemetry {
    log_format: Option<String>,
    log_filter: Option<String>,
    otlp_endpoint: Option<String>,
}

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
    /// Most bytes of prompt text.
    pub max_prompt_bytes: usize,
    /// Most requests under way.
    pub max_concurrent: usize,
    /// Budgets by tenant.
    pub tenants: HashMap<TenantId, BudgetLimits>,
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
        if let Some(file) = file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| SettingsError::Unreadable(format!("{}: {error}", file.display())))?;
            // Line and column come from the TOML parser; after merging only the key is known.
            toml::from_str::<Raw>(&text)
                .map_err(|error| SettingsError::Unreadable(format!("{}: {error}", file.display())))?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        let names: Vec<String> = variables.keys().cloned().collect();
        let environment =
            Environment::with_prefix("SLUICE").prefix_separator("_").separator(SEPARATOR).try_parsing(true);
        let merged = builder.add_source(environment.source(Some(variables))).build().map_err(unreadable)?;
        let raw: Raw = merged.try_deserialize().map_err(|error| {
            let from = if names.is_empty() { String::new() } else { format!(" (variables: {})", names.join(", ")) };
            SettingsError::Unreadable(format!("settings: {error}{from}"))
        })?;
        raw.check(secret)
    }
}

/// Collects wrong values.
struct Wrong(Vec<String>);

impl Wrong {
    fn add(&mut self, key: &str, message: impl std::fmt::Display) {
        self.0.push(format!("{key}: {message}"));
    }

    fn at_least_one<N: PartialOrd + From<u8>>(&mut self, key: &str, value: Option<N>, otherwise: N) -> N {
        match value {
            Some(value) if value < N::from(1) => {
                self.add(key, "must be at least 1");
                otherwise
            }
            Some(value) => value,
            None => otherwise,
        }
    }

    fn seconds(&mut self, key: &str, value: Option<f64>, otherwise: Duration) -> Duration {
        match value.map(Duration::try_from_secs_f64) {
            Some(Ok(duration)) if duration > Duration::ZERO => duration,
            Some(_) => {
                self.add(key, "must be a positive number of seconds");
                otherwise
            }
            None => otherwise,
        }
    }

    fn money(&mut self, key: &str, text: Option<String>) -> Option<NanoUsd> {
        let text = text?;
        let amount = text.strip_suffix("USD").map(str::trim_end).unwrap_or(&text);
        match NanoUsd::from_decimal_usd(amount) {
            Ok(amount) => Some(amount),
            Err(error) => {
                self.add(key, format!("{error}; write it like \"25 USD\""));
                None
            }
        }
    }
}

impl Raw {
    fn check(self, secret: &dyn Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
        let mut wrong = Wrong(Vec::new());
        let listen_text = self.listen.unwrap_or_else(|| "127.0.0.1:8470".to_owned());
        let listen = listen_text.parse::<SocketAddr>();
        let listen =
            listen.map_err(|_| wrong.add("listen", format!("`{listen_text}` is no address like 127.0.0.1:8470"))).ok();
        if let Some(listen) = listen
            && self.keys_file.is_none()
            && !listen.ip().is_loopback()
        {
            let message = "without `keys_file` only loopback addresses are allowed; set one, or listen on 127.0.0.1";
            wrong.add("listen", format!("{listen}: {message}"));
        }
        let sync_each = match self.durability.as_deref() {
            None | Some("process") => false,
            Some("power") => true,
            Some(other) => {
                wrong.add("durability", format!("`{other}` is neither `process` nor `power`"));
                false
            }
        };
        let format = match self.telemetry.log_format.as_deref() {
            None | Some("pretty") => LogFormat::Pretty,
            Some("json") => LogFormat::Json,
            Some(other) => {
                wrong.add("telemetry.log_format", format!("`{other}` is neither `pretty` nor `json`"));
                LogFormat::Pretty
            }
        };
        let targets = self.targets.into_iter().map(|(name, raw)| {
            let target = raw.check(&name, secret, &mut wrong);
            (name, target)
        });
        let targets = targets.collect();
        let tenants = self.tenants.into_iter().map(|(name, raw)| {
            let limits = BudgetLimits {
                daily: wrong.money(&format!("tenants.{name}.daily"), raw.daily),
                monthly: wrong.money(&format!("tenants.{name}.monthly"), raw.monthly),
            };
            (TenantId::new(name), limits)
        });
        let tenants = tenants.collect();
        let local_queue = wrong.at_least_one("local.queue", self.local.queue.map(|n| n as u64), 64);
        let local_sequences = wrong.at_least_one("local.sequences", self.local.sequences.map(|n| n as u64), 8);
        let max_prompt_bytes =
            wrong.at_least_one("limits.max_prompt_bytes", self.limits.max_prompt_bytes.map(|n| n as u64), 4 << 20);
        let max_concurrent = wrong.at_least_one(
            "limits.max_concurrent_requests",
            self.limits.max_concurrent_requests.map(|n| n as u64),
            1024,
        );
        let reload_seconds = wrong.at_least_one("reload_seconds", self.reload_seconds, 5);
        let tls = self.tls.and_then(|tls| tls.check(&mut wrong));
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let (Some(listen), true) = (listen, wrong.0.is_empty()) else { return Err(SettingsError::Wrong(wrong.0)) };
        Ok(Settings {
            listen,
            data_dir: self.data_dir.unwrap_or_else(|| "sluice-data".into()),
            policies_dir: self.policies_dir,
            default_policy: self.default_policy.unwrap_or_else(|| "balanced".to_owned()),
            keys_file: self.keys_file,
            scorer_file: self.scorer_file,
            sync_each,
            shutdown_grace: Duration::from_secs(self.shutdown_grace_seconds.unwrap_or(20)),
            reload_interval: Duration::from_secs(reload_seconds),
            tls,
            targets,
            local_queue: size(local_queue),
            local_sequences: size(local_sequences),
            max_prompt_bytes: size(max_prompt_bytes),
            max_concurrent: size(max_concurrent),
            tenants,
            cache_bytes: self.cache.max_bytes.unwrap_or(64 << 20),
            telemetry: TelemetryConfig {
                format,
                filter: self.telemetry.log_filter.unwrap_or_else(|| "info".to_owned()),
                otlp_endpoint: self.telemetry.otlp_endpoint,
            },
        })
    }
}

impl RawTls {
    fn check(self, wrong: &mut Wrong) -> Option<TlsFiles> {
        let mut there = |key: &str, file: Option<PathBuf>| {
            if file.is_none() {
                wrong.add(key, "is missing; TLS needs both `tls.certificate` and `tls.key`, PEM files");
            }
            file
        };
        let (certificate, key) = (there("tls.certificate", self.certificate), there("tls.key", self.key));
        Some(TlsFiles { certificate: certificate?, key: key? })
    }
}

impl RawTarget {
    fn check(self, name: &str, secret: &dyn Fn(&str) -> Option<String>, wrong: &mut Wrong) -> Target {
        let key = |field: &str| format!("targets.{name}.{field}");
        let base_url = self.base_url.unwrap_or_default();
        if base_url.is_empty() {
            wrong.add(&key("base_url"), "is missing; write it like \"https://api.openai.com/v1\"");
        } else if !base_url.starts_with("http://") && !base_url.starts_with("https://") {
            wrong.add(&key("base_url"), format!("`{base_url}` should begin with https:// or http://"));
        }
        let secret = match (&self.api_key_env, &self.api_key_file) {
            (Some(_), Some(_)) => {
                wrong.add(&key("api_key_env"), "is set beside `api_key_file`; keep one of the two");
                None
            }
            (Some(variable), None) => {
                let value = secret(variable).filter(|value| !value.is_empty());
                if value.is_none() {
                    wrong.add(&key("api_key_env"), format!("the variable {variable} is not set or empty"));
                }
                value
            }
            (None, Some(file)) => match std::fs::read_to_string(file) {
                Ok(text) if text.trim().is_empty() => {
                    wrong.add(&key("api_key_file"), format!("{} is empty", file.display()));
                    None
                }
                Ok(text) => Some(text.trim().to_owned()),
                Err(error) => {
                    wrong.add(&key("api_key_file"), format!("{}: {error}", file.display()));
                    None
                }
            },
            (None, None) => None,
        };
        let usual = Timeouts::default();
        Target {
            base_url: base_url.trim_end_matches('/').to_owned(),
            key: secret.map(SecretString::from),
            timeouts: Timeouts {
                connect: wrong.seconds(&key("connect_seconds"), self.connect_seconds, usual.connect),
                first_byte: wrong.seconds(&key("first_byte_seconds"), self.first_byte_seconds, usual.first_byte),
                idle: wrong.seconds(&key("idle_seconds"), self.idle_seconds, usual.idle),
                total: wrong.seconds(&key("total_seconds"), self.total_seconds, usual.total),
            },
            max_retries: self.max_retries.unwrap_or(MAX_RETRIES),
            stream: self.stream.unwrap_or(true),
        }
    }
}

#[cfg(test)]
mod tests;
