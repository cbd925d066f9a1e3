//! Traces and metrics by OTLP: the real binary sends them to a collector that speaks the real protocol.

use crate::support::serve;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use sluice_proto::client::{Client, ask};
use sluice_proto::v1;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// The part of `opentelemetry.proto.trace.v1` that is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct Traces {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(int64, tag = "3")]
    number: i64,
}

/// The part of `opentelemetry.proto.metrics.v1` that is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct Measures {
    #[prost(message, repeated, tag = "1")]
    resource_metrics: Vec<ResourceMetrics>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceMetrics {
    #[prost(message, repeated, tag = "2")]
    scope_metrics: Vec<ScopeMetrics>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeMetrics {
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<Measure>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Measure {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Accepted {}

#[derive(Clone, Default)]
struct Collected {
    spans: Arc<Mutex<Vec<Span>>>,
    metrics: Arc<Mutex<Vec<String>>>,
}

/// Takes one export of `M`, hands it to `keep`, accepts it.
async fn export<M: prost::Message + Default + 'static>(
    request: Request,
    keep: impl Fn(M) + Send + 'static,
) -> Response {
    let codec = tonic_prost::ProstCodec::<Accepted, M>::default();
    let keep = tower::service_fn(move |request: tonic::Request<M>| {
        keep(request.into_inner());
        std::future::ready(Ok::<_, tonic::Status>(tonic::Response::new(Accepted {})))
    });
    tonic::server::Grpc::new(codec).unary(keep, request).await.map(axum::body::Body::new)
}

async fn traces(State(collected): State<Collected>, request: Request) -> Response {
    export(request, move |traces: Traces| {
        let scopes = traces.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        collected.spans.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
    })
    .await
}

async fn metrics(State(collected): State<Collected>, request: Request) -> Response {
    export(request, move |measures: Measures| {
        let scopes = measures.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        collected.metrics.lock().unwrap().extend(scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name));
    })
    .await
}

async fn collector() -> (String, Collected) {
    let collected = Collected::default();
    let routes = Router::new()
        .route("/opentelemetry.proto.collector.trace.v1.TraceService/Export", post(traces))
        .route("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", post(metrics))
        .with_state(collected.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio_util::task::TaskTracker::new().spawn(async move { axum::serve(listener, routes).await });
    (format!("http://{address}"), collected)
}

/// A process that a failed test leaves no trace of.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
    }
}

/// A gateway process that exports to `endpoint`, and its address.
fn gateway(folder: &std::path::Path, endpoint: &str) -> (Process, String) {
    let (child, address) = serve(|command| {
        command
            .env("SLUICE_LISTEN", "127.0.0.1:0")
            .env("SLUICE_DATA_DIR", folder)
            .env("SLUICE_TELEMETRY__OTLP_ENDPOINT", endpoint)
            .env("SLUICE_TELEMETRY__LOG_FILTER", "warn")
    });
    (Process(child), address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_one_trace_of_the_callers_own() {
    let (endpoint, collected) = collector().await;
    let folder = tempfile::tempdir().unwrap();
    let (mut child, address) = gateway(folder.path(), &endpoint);
    let mut client = Client::connect(&address, None, None).await.unwrap();
    let mut local = ask("intent(banking77): I was charged twice for one purchase");
    local.placement = v1::Placement::LocalOnly.into();
    let mut call = tonic::Request::new(v1::CompleteRequest { ask: Some(local) });
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    call.metadata_mut().insert("traceparent", parent.parse().unwrap());
    // Whether the small model knows the answer or declines is not the matter here.
    let _answered_or_declined = client.gateway.complete(call).await;
    drop(client);
    // An orderly end sends what is left.
    assert!(Command::new("kill").args(["-TERM", &child.0.id().to_string()]).status().unwrap().success());
    let ended = tokio::task::spawn_blocking(move || child.0.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");

    let spans = collected.spans.lock().unwrap().clone();
    let named =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no `{name}` in {spans:#?}"));
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (call, request) = (named("sluice.v1.GatewayService/Complete"), named("request"));
    let attempt = named("chat sluice-nano");
    assert_eq!(hexadecimal(&call.parent_span_id), "b7ad6b7169203331", "the caller's span is the parent");
    for span in [call, request, attempt] {
        assert_eq!(hexadecimal(&span.trace_id), "0af7651916cd43dd8448eb211c80319c", "{}", span.name);
    }
    assert_eq!(request.parent_span_id, call.span_id);
    assert_eq!(attempt.parent_span_id, request.span_id);
    let (internal, server) = (1, 2);
    assert_eq!((call.kind, attempt.kind), (server, internal));
    let value = |key: &str| {
        let attribute = attempt.attributes.iter().find(|attribute| attribute.key == key);
        attribute.and_then(|attribute| attribute.value.clone()).unwrap_or_else(|| panic!("no {key} in {attempt:#?}"))
    };
    assert_eq!(value("gen_ai.operation.name").text, "chat");
    assert_eq!(value("gen_ai.request.model").text, "sluice-nano");
    assert!(value("gen_ai.usage.input_tokens").number > 0);
    let everything = format!("{spans:?}");
    assert!(!everything.contains("charged twice"), "no span carries text of a prompt");
    let metrics = collected.metrics.lock().unwrap().clone();
    for name in ["gen_ai.server.request.duration", "sluice.requests", "sluice.decision.duration"] {
        assert!(metrics.iter().any(|sent| sent == name), "{name} is not in {metrics:?}");
    }
}
