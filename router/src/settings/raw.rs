//! Settings as they are written, and the checks that make them values: every wrong one is reported, by its key.

use super::hub::RawHub;
use super::{MAX_RETRIES, Settings, SettingsError, Target, TlsFiles};
use crate::backend::remote::Timeouts;
use crate::budget::BudgetLimits;
use crate::domain::{NanoUsd, RecordLevel, Residency, TenantId};
use crate::models::LoadWhen;
use crate::telemetry::{LogFormat, TelemetryConfig};
use local_worker::CacheFormat;
use secrecy::SecretString;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
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
    hub: RawHub,
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
    cache_bytes: Option<u64>,
    cache_format: Option<String>,
    threads: Option<usize>,
    memory_bytes: Option<u64>,
    load: Option<String>,
    wait_seconds: Option<f64>,
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
    record: Option<String>,
    regions: Option<Vec<String>>,
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

/// Collects wrong values.
pub(super) struct Wrong(Vec<String>);

impl Wrong {
    pub(super) fn add(&mut self, key: &str, message: impl std::fmt::Display) {
        self.0.push(format!("{key}: {message}"));
    }

    /// Where to listen; beyond loopback only with keys.
    fn address(&mut self, text: Option<String>, keys: bool) -> Option<SocketAddr> {
        let text = text.unwrap_or_else(|| "127.0.0.1:8470".to_owned());
        let Ok(address) = text.parse::<SocketAddr>() else {
            self.add("listen", format!("`{text}` is no address like 127.0.0.1:8470"));
            return None;
        };
        if !keys && !address.ip().is_loopback() {
            let message = "without `keys_file` only loopback addresses are allowed; set one, or listen on 127.0.0.1";
            self.add("listen", format!("{address}: {message}"));
        }
        Some(address)
    }

    /// What a word stands for; the first where none is given or the word is unknown.
    fn word<T>(&mut self, key: &str, word: Option<&str>, known: [(&str, T); 2]) -> T {
        let [(first, otherwise), (second, other)] = known;
        match word {
            Some(word) if word == second => return other,
            Some(word) if word != first => self.add(key, format!("`{word}` is neither `{first}` nor `{second}`")),
            _ => {}
        }
        otherwise
    }

    /// How much of a tenant's requests is kept; nothing where it is not said.
    fn record(&mut self, key: &str, word: Option<&str>) -> RecordLevel {
        let Some(word) = word else { return RecordLevel::None };
        RecordLevel::parse(word).unwrap_or_else(|| {
            self.add(key, format!("`{word}` is none of `none`, `features`, `text`"));
            RecordLevel::None
        })
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

    pub(super) fn seconds(&mut self, key: &str, value: Option<f64>, otherwise: Duration) -> Duration {
        match value.map(Duration::try_from_secs_f64) {
            Some(Ok(duration)) if duration > Duration::ZERO => duration,
            Some(_) => {
                self.add(key, "must be a positive number of seconds");
                otherwise
            }
            None => otherwise,
        }
    }

    /// A secret from the variable or the file that is named.
    pub(super) fn secret(
        &mut self,
        [variable_key, file_key]: [&str; 2],
        variable: Option<String>,
        file: Option<PathBuf>,
        look_up: &dyn Fn(&str) -> Option<String>,
    ) -> Option<String> {
        match (variable, file) {
            (Some(_), Some(_)) => {
                self.add(variable_key, format!("is set beside `{}`; keep one of the two", last(file_key)));
                None
            }
            (Some(variable), None) => {
                let value = look_up(&variable).filter(|value| !value.is_empty());
                if value.is_none() {
                    self.add(variable_key, format!("the variable {variable} is not set or empty"));
                }
                value
            }
            (None, Some(file)) => match std::fs::read_to_string(&file) {
                Ok(text) if text.trim().is_empty() => {
                    self.add(file_key, format!("{} is empty", file.display()));
                    None
                }
                Ok(text) => Some(text.trim().to_owned()),
                Err(error) => {
                    self.add(file_key, format!("{}: {error}", file.display()));
                    None
                }
            },
            (None, None) => None,
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

/// The last part of a key.
fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

impl Raw {
    /// The key of a variable with the name of a tenant or target as the file spells it: variables come in lower case, and
    /// a budget for `acme` would leave `Acme` without one.
    pub(super) fn spelt(&self, key: &str) -> String {
        let mut levels = key.splitn(3, '.');
        let (Some(table), Some(name), Some(rest)) = (levels.next(), levels.next(), levels.next()) else {
            return key.to_owned();
        };
        let same = |known: &&String| known.eq_ignore_ascii_case(name);
        let known = match table {
            "tenants" => self.tenants.keys().find(same),
            "targets" => self.targets.keys().find(same),
            _ => None,
        };
        known.map_or_else(|| key.to_owned(), |known| format!("{table}.{known}.{rest}"))
    }

    pub(super) fn check(self, secret: &dyn Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
        let mut wrong = Wrong(Vec::new());
        let listen = wrong.address(self.listen, self.keys_file.is_some());
        let sync_each = wrong.word("durability", self.durability.as_deref(), [("process", false), ("power", true)]);
        let formats = [("pretty", LogFormat::Pretty), ("json", LogFormat::Json)];
        let format = wrong.word("telemetry.log_format", self.telemetry.log_format.as_deref(), formats);
        let targets = self.targets.into_iter().map(|(name, raw)| {
            let target = raw.check(&name, secret, &mut wrong);
            (name, target)
        });
        let targets = targets.collect();
        let records = self.tenants.iter().map(|(name, raw)| {
            (TenantId::new(name.as_str()), wrong.record(&format!("tenants.{name}.record"), raw.record.as_deref()))
        });
        let records = records.collect();
        let mut residencies = HashMap::new();
        for (name, raw) in &self.tenants {
            let Some(regions) = &raw.regions else { continue };
            if regions.is_empty() {
                wrong.add(
                    &format!("tenants.{name}.regions"),
                    "names no region; leave the key out to allow all".to_owned(),
                );
            }
            residencies.insert(TenantId::new(name.as_str()), Residency::only("tenants.regions", regions.clone()));
        }
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
        let local_threads = wrong.at_least_one("local.threads", self.local.threads.map(|n| n as u64), 1);
        let local_cache = wrong.at_least_one("local.cache_bytes", self.local.cache_bytes, 512 << 20);
        let formats = [("f16", CacheFormat::Half), ("f32", CacheFormat::Single)];
        let local_cache_format = wrong.word("local.cache_format", self.local.cache_format.as_deref(), formats);
        let local_memory =
            self.local.memory_bytes.map(|bytes| wrong.at_least_one("local.memory_bytes", Some(bytes), 1));
        let whens = [("start", LoadWhen::Start), ("demand", LoadWhen::Demand)];
        let local_load = wrong.word("local.load", self.local.load.as_deref(), whens);
        let local_wait = wrong.seconds("local.wait_seconds", self.local.wait_seconds, Duration::from_secs(20));
        let hub = self.hub.check(secret, &mut wrong);
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
            local_cache_bytes: size(local_cache),
            local_cache_format,
            local_threads: size(local_threads),
            local_memory_bytes: local_memory,
            local_load,
            local_wait,
            hub,
            max_prompt_bytes: size(max_prompt_bytes),
            max_concurrent: size(max_concurrent),
            tenants,
            residencies,
            records,
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
        let names = [key("api_key_env"), key("api_key_file")];
        let secret = wrong.secret([&names[0], &names[1]], self.api_key_env, self.api_key_file, secret);
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
