//! The table `hub`: where models are fetched from, with which token, and where they are kept.

use super::raw::Wrong;
use local_worker::model::hub::HubConfig;
use secrecy::SecretString;
use serde::Deserialize;
use std::path::{Path, PathBuf};

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
    pub(super) fn check(
        self,
        data_dir: &Path,
        secret: &dyn Fn(&str) -> Option<String>,
        wrong: &mut Wrong,
    ) -> HubConfig {
        let usual = HubConfig::new(self.cache_dir.unwrap_or_else(|| data_dir.join(FOLDER)));
        let token = wrong.secret(["hub.token_env", "hub.token_file"], self.token_env, self.token_file, secret);
        let endpoint = self.endpoint.unwrap_or_else(|| usual.endpoint.clone());
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            wrong.add("hub.endpoint", format!("`{endpoint}` should begin with https:// or http://"));
        }
        let idle_timeout = wrong.seconds("hub.idle_seconds", self.idle_seconds, usual.idle_timeout);
        HubConfig { endpoint, token: token.map(SecretString::from), offline: self.offline, idle_timeout, ..usual }
    }
}
