//! The port as strangers, careless clients and monitors see it: roles, tenants, sizes, health at shutdown.

use crate::support::{House, complete, guarded, remote};
use router::app::App;
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

async fn client(app: &App, key: Option<&str>) -> Client {
    Client::connect(&app.url(), key, None).await.unwrap()
}

fn code<T>(outcome: Result<T, Status>) -> Code {
    outcome.err().map_or(Code::Ok, |status| status.code())
}

async fn list(client: &mut Client, tenant: &str) -> Result<Vec<v1::Entry>, Status> {
    let request = v1::ListEntriesRequest { tenant: tenant.to_owned(), ..v1::ListEntriesRequest::default() };
    Ok(client.usage.list_entries(request).await?.into_inner().entries)
}

async fn story(client: &mut Client, id: &str) -> Result<v1::Entry, Status> {
    let subject = Some(v1::explain_request::Subject::EntryId(id.to_owned()));
    Ok(client.gateway.explain(v1::ExplainRequest { subject }).await?.into_inner().entry.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_reaches_what_its_roles_and_tenant_allow() {
    let (house, _folder) = guarded().await;
    let mut serve = client(&house.app, Some("serve")).await;
    let id = complete(&mut serve, remote("Whose is this?")).await.unwrap().request_id;
    // Key; asking; the own tenant's entries; all entries; acme's; the entry of acme by its id; a judgement on it.
    let table = [
        ("serve", Code::Ok, Code::PermissionDenied, Code::PermissionDenied, Code::Ok, Code::Ok),
        ("own", Code::PermissionDenied, Code::Ok, Code::Ok, Code::Ok, Code::PermissionDenied),
        ("all", Code::PermissionDenied, Code::Ok, Code::Ok, Code::Ok, Code::PermissionDenied),
        ("admin", Code::Ok, Code::Ok, Code::Ok, Code::Ok, Code::NotFound),
        ("other", Code::Ok, Code::Ok, Code::PermissionDenied, Code::NotFound, Code::NotFound),
        (
            "stranger",
            Code::Unauthenticated,
            Code::Unauthenticated,
            Code::Unauthenticated,
            Code::Unauthenticated,
            Code::Unauthenticated,
        ),
    ];
    for (key, ask, any, acme, by_id, feedback) in table {
        let mut client = client(&house.app, Some(key)).await;
        assert_eq!(code(complete(&mut client, remote("Whose is this?")).await), ask, "{key} asks");
        assert_eq!(code(list(&mut client, "").await), any, "{key} lists");
        assert_eq!(code(list(&mut client, "acme").await), acme, "{key} lists acme");
        assert_eq!(code(story(&mut client, &id).await), by_id, "{key} reads an entry of acme");
        let judged = v1::SubmitFeedbackRequest {
            entry_id: id.clone(),
            source: v1::FeedbackSource::User.into(),
            value: Some(1.0),
        };
        assert_eq!(code(client.gateway.submit_feedback(judged).await), feedback, "{key} judges");
    }
    let mut own = client(&house.app, Some("own")).await;
    assert!(list(&mut own, "").await.unwrap().iter().all(|entry| entry.tenant == "acme"));
    let mut all = client(&house.app, Some("all")).await;
    assert!(list(&mut all, "").await.unwrap().iter().any(|entry| entry.tenant == "other"));
    house.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_before_the_message_is_read() {
    let (house, _folder) = guarded().await;
    // Above what is decoded at all: only who looks at the key first can answer UNAUTHENTICATED.
    let huge = || sluice_proto::client::ask("x".repeat(30 << 20));
    let mut stranger = client(&house.app, Some("wrong")).await;
    assert_eq!(code(complete(&mut stranger, huge()).await), Code::Unauthenticated);
    let mut known = client(&house.app, Some("serve")).await;
    assert_eq!(code(complete(&mut known, huge()).await), Code::OutOfRange);
    house.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_fits_into_a_client_s_header_limit() {
    let mut house = House::new().await;
    let mut many = sluice_proto::client::ask("x");
    many.messages = vec![v1::Message::default(); 2_000];
    let mut long_policy = sluice_proto::client::ask("x");
    long_policy.policy = "p".repeat(1 << 20);
    let mut long_label = sluice_proto::client::ask("x");
    long_label.labels.insert("ü".repeat(100_000), "x".to_owned());
    for (ask, field) in [(many, "ask.messages[0].role"), (long_policy, "ask.policy"), (long_label, "ask.labels[")] {
        let status = complete(&mut house.client, ask).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert!(violations.iter().any(|violation| violation.field.starts_with(field)), "{violations:?}");
        // gRPC's C core starts to refuse at 8 KiB of metadata.
        assert!(status.details().len() < 4_600 && status.message().len() < 700, "{field}: {status:?}");
    }
    let id = "é".repeat(1 << 20);
    let status = story(&mut house.client, &id).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_watcher_hears_of_the_shutdown_and_does_not_delay_it() {
    let house = House::with(|settings| settings.shutdown_grace = Duration::from_secs(600)).await;
    let channel = tonic::transport::Channel::from_shared(house.app.url()).unwrap().connect().await.unwrap();
    let request = HealthCheckRequest { service: "sluice.v1.GatewayService".to_owned() };
    let mut states = HealthClient::new(channel).watch(request).await.unwrap().into_inner();
    assert_eq!(states.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    drop(house.client);
    let shutdown = house.app.shutdown();
    let watching = async {
        let last = states.next().await.unwrap().unwrap().status();
        (last, states.next().await.is_none())
    };
    let both = async { tokio::join!(shutdown, watching).1 };
    // The limit is far above what it takes and far below the grace: it only ends a test that would hang.
    let (last, ended) = tokio::time::timeout(Duration::from_secs(120), both).await.unwrap();
    assert_eq!(last, ServingStatus::NotServing);
    assert!(ended, "the watch ends");
}
