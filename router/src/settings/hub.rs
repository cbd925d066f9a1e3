//! The table `hub`: where models are fetched from, with which token, and where they are kept.

use super::raw::Wrong;
use local_worker::model::hub::HubConfig;
use secrecy::SecretString;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub that models come from.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Its address.
    pub endpoint: String,
    /// Folder that models are kept in; `models` in the data folder if absent.
    pub cache_dir: Option<PathBuf>,
    /// The token it knows us by.
    pub token: Option<SecretString>,
    /// Whether the network may not be used.
    pub offline: bool,
    /// Longest silence of a connection.
    pub idle_timeout: Duration,
}

impl HubSettings {
    /// What the client of the hub is built of.
    pub fn config(&self, data_dir: &Path) -> HubConfig {
        let cache = self.cache_dir.clone().unwrap_or_else(|| data_dir.join(FOLDER));
        HubConfig {
            endpoint: self.endpoint.clone(),
            token: self.token.clone(),
            offline: self.offline,
            idle_timeout: self.idle_timeout,
            ..HubConfig::new(cache)
        }
    }
}

/// Folder of models within `data_dir`.
const FOLDER: &str = "models";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHub {
    endpoint: Option<String>,
    cache_dir: Option<PathBuf>,
    token_env: Option<String>,
    token_file: Option<PathBuf>,
    offline: bool,
    idle_seconds: Option<f64>,
}

impl RawHub {
    pub(super) fn check(self, secret: &dyn Fn(&str) -> Option<String>, wrong: &mut Wrong) -> HubSettings {
        let usual = HubConfig::new(PathBuf::new());
        let token = wrong.secret(["hub.token_env", "hub.token_file"], self.token_env, self.token_file, secret);
        let endpoint = self.endpoint.unwrap_or(usual.endpoint);
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            wrong.add("hub.endpoint", format!("`{endpoint}` should begin with https:// or http://"));
        }
        let idle_timeout = wrong.seconds("hub.idle_seconds", self.idle_seconds, usual.idle_timeout);
        let (cache_dir, token, offline) = (self.cache_dir, token.map(SecretString::from), self.offline);
        HubSettings { endpoint, cache_dir, token, offline, idle_timeout }
    }
}
