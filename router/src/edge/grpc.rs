//! The services of `sluice.v1`: wire messages in, domain calls, wire messages out.

pub mod ask;
mod embed;
mod gateway;
mod models;
mod policy;
mod usage;
pub mod wire;

use super::auth::{Caller, KeyRole, Keys};
use super::status;
use crate::budget::Budgets;
use crate::gateway::Gateway;
use crate::ledger::Ledger;
use crate::models::Models;
use crate::policy::Registry;
use sluice_proto::v1;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use v1::gateway_service_server::GatewayServiceServer;
use v1::model_service_server::ModelServiceServer;
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
    /// Models that may run in this process.
    pub models: Arc<Models>,
    /// Most bytes of prompt text in a request.
    pub max_prompt_bytes: usize,
}

/// Room above the prompt limit, so that a prompt that is too long gets an error that names the field.
const DECODE_SLACK: usize = 16 << 20;

/// What health answers for; the empty name is the whole server.
const HEALTHY: [&str; 5] = [
    "",
    GatewayServiceServer::<Services>::NAME,
    UsageServiceServer::<Services>::NAME,
    PolicyServiceServer::<Services>::NAME,
    ModelServiceServer::<Services>::NAME,
];

impl Services {
    /// All routes of the gRPC server: services, health, reflection v1 and v1alpha. When `stopping` fires, health says
    /// so.
    ///
    /// # Errors
    /// The descriptor set can't be read: a fault of the build.
    pub async fn routes(
        &self,
        stopping: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Routes, tonic_reflection::server::Error> {
        let (health, health_service) = tonic_health::server::health_reporter();
        for name in HEALTHY {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        tasks.spawn(end_health(health, stopping));
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(sluice_proto::DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let largest = self.max_prompt_bytes.saturating_add(DECODE_SLACK);
        let gateway = GatewayServiceServer::new(self.clone()).max_decoding_message_size(largest);
        let mut routes = Routes::builder();
        routes
            .add_service(InterceptedService::new(gateway, self.doorman()))
            .add_service(InterceptedService::new(UsageServiceServer::new(self.clone()), self.doorman()))
            .add_service(InterceptedService::new(PolicyServiceServer::new(self.clone()), self.doorman()))
            .add_service(InterceptedService::new(ModelServiceServer::new(self.clone()), self.doorman()))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        Ok(routes.routes())
    }

    /// Refuses strangers before their message is read: it may be large, and memory is for those who have a key. Roles
    /// are checked by each call.
    fn doorman(&self) -> impl FnMut(tonic::Request<()>) -> Result<tonic::Request<()>, Status> + Clone + use<> {
        let keys = Arc::clone(&self.keys);
        move |call| {
            let known = keys.caller(authorization(call.metadata())).is_some();
            if known { Ok(call) } else { Err(status::unauthenticated()) }
        }
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
        self.keys.caller(authorization(metadata)).ok_or_else(status::unauthenticated)
    }
}

fn authorization(metadata: &MetadataMap) -> Option<&str> {
    metadata.get("authorization")?.to_str().ok()
}

/// Says that no more is served and ends the streams of watchers: an endless one would hold up the shutdown. Whoever asks
/// after that still hears that no more is served.
async fn end_health(mut health: HealthReporter, stopping: CancellationToken) {
    stopping.cancelled().await;
    for name in HEALTHY {
        health.set_service_status(name, ServingStatus::NotServing).await;
        health.clear_service_status(name).await;
        health.set_service_status(name, ServingStatus::NotServing).await;
    }
}
