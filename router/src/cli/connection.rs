//! Where a client verb finds the gateway, and how it shows a refusal.

use anyhow::Context as _;
use clap::Args;
use prost::Message as _;
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::path::PathBuf;
use tonic::Status;
use tonic_types::StatusExt as _;

/// Where the gateway is and who asks.
#[derive(Clone, Debug, Args)]
pub struct Connection {
    /// Address of the gateway.
    #[arg(long, default_value = "http://127.0.0.1:8470", value_name = "URL")]
    pub address: String,
    /// File that holds the key, if the gateway wants one.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// PEM file of the authority that signed the gateway's certificate.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

impl Connection {
    /// Connects.
    pub async fn open(&self) -> anyhow::Result<Client> {
        let read = |path: &Option<PathBuf>| -> anyhow::Result<Option<String>> {
            let Some(path) = path else { return Ok(None) };
            let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
            Ok(Some(text))
        };
        let key = read(&self.key_file)?;
        let authority = read(&self.ca_file)?;
        Ok(Client::connect(&self.address, key.as_deref().map(str::trim), authority.as_deref()).await?)
    }
}

/// A refusal with all that its details say, for a terminal.
pub fn describe(status: &Status) -> anyhow::Error {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let details = status.get_error_details();
    for violation in details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default() {
        text.push_str(&format!("\n  {}: {}", violation.field, violation.description));
    }
    for violation in details.quota_failure().map(|quota| quota.violations.as_slice()).unwrap_or_default() {
        text.push_str(&format!("\n  {}: {}", violation.subject, violation.description));
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        text.push_str(&format!("\n  retry in {:.1} s", delay.as_secs_f64()));
    }
    if let Some(report) = failure_report(status) {
        let cost = report.cost.unwrap_or_default();
        text.push_str(&format!("\n  request {}, cost {}", report.request_id, super::table::money(cost.nano_usd)));
    }
    anyhow::Error::msg(text)
}

/// The failure report among a status's details, if there is one.
pub fn failure_report(status: &Status) -> Option<v1::FailureReport> {
    let decoded = tonic_types::pb::Status::decode(status.details()).ok()?;
    let any = decoded.details.into_iter().find(|any| any.type_url.ends_with("/sluice.v1.FailureReport"))?;
    v1::FailureReport::decode(any.value.as_slice()).ok()
}
