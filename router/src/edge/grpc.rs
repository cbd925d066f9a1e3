//! The services of `sluice.v1`: wire messages in, domain calls, wire messages out.

pub mod ask;
mod gateway;
mod policy;
mod usage;
pub mod wire;

use super::auth::{Caller, KeyRole, Keys};
use super::status;
use crate::budget::Budgets;
use crate::gateway::Gateway;
use crate::ledger::Ledger;
use crate::policy::Registry;
use sluice_proto::v1;
use std::sync::Arc;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use v1::gateway_service_server::GatewayServiceServer;
use v1::policy_service_server::PolicyServiceServer;
use v1::usage_service_server::UsageServiceServer;

/// What the services are built of; cheap to clone.
#[derive(Clone)]
pub struct Services {
    /// Answers requests.
    pub gateway: Arc<Gateway>,
    /// Knows what happened.
    pub ledger: Arc<Ledger>,
    /// Policies in force.
    pub registry: Arc<Registry>,
    /// Budgets as they stand.
    pub budgets: Arc<Budgets>,
    /// Who may ask.
    pub keys: Arc<Keys>,
    /// Most bytes of prompt text in a request.
    pub max_prompt_bytes: usize,
}

/// Room above the prompt limit, so that a prompt that is too long gets an error that names the field.
const DECODE_SLACK: usize = 16 << 20;

impl Services {
    /// All routes of the gRPC server: services, health, reflection v1 and v1alpha.
    ///
    /// # Errors
    /// The descriptor set can't be read: a fault of the build.
    pub async fn routes(&self) -> Result<Routes, tonic_reflection::server::Error> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<GatewayServiceServer<Self>>().await;
        health.set_serving::<UsageServiceServer<Self>>().await;
        health.set_serving::<PolicyServiceServer<Self>>().await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(sluice_proto::DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let largest = self.max_prompt_bytes.saturating_add(DECODE_SLACK);
        let mut routes = Routes::builder();
        routes
            .add_service(GatewayServiceServer::new(self.clone()).max_decoding_message_size(largest))
            .add_service(UsageServiceServer::new(self.clone()))
            .add_service(PolicyServiceServer::new(self.clone()))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        Ok(routes.routes())
    }

    /// Who asks, if the key has the role.
    pub(super) fn caller(&self, metadata: &MetadataMap, role: KeyRole) -> Result<Arc<Caller>, Status> {
        let caller = self.any_caller(metadata)?;
        if caller.may(role) {
            return Ok(caller);
        }
        Err(status::denied(format!("the key lacks the role for this call ({role:?})")))
    }

    /// Who asks, whatever the roles.
    pub(super) fn any_caller(&self, metadata: &MetadataMap) -> Result<Arc<Caller>, Status> {
        let authorization = metadata.get("authorization").and_then(|value| value.to_str().ok());
        self.keys.caller(authorization).ok_or_else(status::unauthenticated)
    }
}
