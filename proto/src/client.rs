//! A small client over one shared HTTP/2 connection, used by the command line, the demo and the benches.
//!
//! It adds the key to each call and turns the generated clients into one handle; it must not know how requests are
//! routed or what a policy is.

use crate::v1;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is no URL such as `http://127.0.0.1:8470`.
    #[error("`{address}` is no address like http://127.0.0.1:8470: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key has characters that metadata can't hold.
    #[error("the key holds characters that can't be sent; it should be printable ASCII")]
    Key,
    /// Nobody answers.
    #[error("no answer from {address}: {reason}; is `sluice serve` running?")]
    Unreachable {
        /// Where.
        address: String,
        /// What the transport said.
        reason: String,
    },
}

/// Adds `authorization: Bearer KEY` to each call.
#[derive(Clone, Debug, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Bearer>;

/// All services of one gateway; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    /// Answers requests.
    pub gateway: v1::gateway_service_client::GatewayServiceClient<Service>,
    /// Reports usage.
    pub usage: v1::usage_service_client::UsageServiceClient<Service>,
    /// Shows, brings, loads and unloads models.
    pub models: v1::model_service_client::ModelServiceClient<Service>,
    /// Shows and checks policies.
    pub policy: v1::policy_service_client::PolicyServiceClient<Service>,
}

/// Largest message the client takes: answers may be long.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

impl Client {
    /// Connects to `address` (`http://…` or `https://…`, the latter with the web's roots or `ca_pem`), sending `key`.
    pub async fn connect(address: &str, key: Option<&str>, ca_pem: Option<&str>) -> Result<Self, ConnectError> {
        let bad = |reason: String| ConnectError::Address { address: address.to_owned(), reason };
        let mut endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| bad(error.to_string()))?;
        if address.starts_with("https://") {
            let mut tls = ClientTlsConfig::new();
            if let Some(pem) = ca_pem {
                tls = tls.ca_certificate(tonic::transport::Certificate::from_pem(pem));
            }
            endpoint = endpoint.tls_config(tls).map_err(|error| bad(error.to_string()))?;
        }
        let bearer = match key {
            Some(key) => Bearer(Some(format!("Bearer {key}").parse().map_err(|_| ConnectError::Key)?)),
            None => Bearer(None),
        };
        let channel = endpoint
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(|error| ConnectError::Unreachable { address: address.to_owned(), reason: innermost(&error) })?;
        Ok(Self {
            gateway: v1::gateway_service_client::GatewayServiceClient::with_interceptor(
                channel.clone(),
                bearer.clone(),
            )
            .max_decoding_message_size(MAX_MESSAGE_BYTES),
            usage: v1::usage_service_client::UsageServiceClient::with_interceptor(channel.clone(), bearer.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            models: v1::model_service_client::ModelServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            policy: v1::policy_service_client::PolicyServiceClient::with_interceptor(channel, bearer),
        })
    }
}

/// An ask of one user message and defaults for the rest.
pub fn ask(prompt: impl Into<String>) -> v1::Ask {
    v1::Ask {
        messages: vec![v1::Message {
            role: v1::Role::User.into(),
            parts: vec![v1::Part { kind: Some(v1::part::Kind::Text(prompt.into())) }],
        }],
        ..v1::Ask::default()
    }
}

/// A request for the vectors of `texts` by the table inside the gateway's binary.
pub fn embed(texts: impl IntoIterator<Item = impl Into<String>>) -> v1::EmbedRequest {
    v1::EmbedRequest { texts: texts.into_iter().map(Into::into).collect(), ..v1::EmbedRequest::default() }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}
