//! Objectives through the whole gateway: residency, conversations that stay remote, several candidates.

use crate::support::{House, complete};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::path::Path;
use tonic_types::StatusExt as _;

const CATALOG: &str = r#"
[[models]]
id = "sluice-nano"
kind = "bundled"
context = 512
max_output = 64
default_output = 8
capabilities = ["sampling", "stop"]
region = "eu"
[[models]]
id = "us/large"
kind = "remote"
target = "openai"
upstream = "gpt-4.1-mini"
context = 100000
max_output = 1000
default_output = 100
capabilities = ["sampling", "stop", "seed"]
region = "us"
price = { input = "0.40", cached_input = "0.10", output = "1.60", date = "2026-01-01", source = "test" }
[[models]]
id = "eu/large"
kind = "remote"
target = "openai"
upstream = "gpt-4.1-nano"
context = 100000
max_output = 1000
default_output = 100
capabilities = ["sampling", "stop", "seed"]
region = "eu"
price = { input = "0.40", cached_input = "0.10", output = "1.60", date = "2026-01-01", source = "test" }
"#;

/// A policy of a name, with lines before and after its objective.
fn policy(name: &str, before: &str, objective: &str) -> String {
    format!(
        "name = \"{name}\"\n{before}\n[models]\nsmall = [\"sluice-nano\"]\nlarge = [\"us/large\", \"eu/large\"]\n[objective]\n{objective}\n"
    )
}

fn write(folder: &Path, policies: &[(&str, &str, &str)]) {
    std::fs::write(folder.join("models.toml"), CATALOG).unwrap();
    for (name, before, objective) in policies {
        std::fs::write(folder.join(format!("{name}.toml")), policy(name, before, objective)).unwrap();
    }
}

async fn house(policies: &[(&str, &str, &str)]) -> (House, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), policies);
    let house = House::with(|settings| {
        settings.policies_dir = Some(folder.path().to_owned());
        settings.default_policy = policies[0].0.to_owned();
    })
    .await;
    (house, folder)
}

/// Route, model and the reason's code.
fn told(decision: &v1::Decision) -> (v1::Route, String, String) {
    (decision.route(), decision.model.clone(), decision.reason.clone().unwrap().code)
}

async fn decided(client: &mut Client, ask: v1::Ask) -> v1::Decision {
    complete(client, ask).await.unwrap().finished.unwrap().decision.unwrap()
}

fn ask(prompt: &str) -> v1::Ask {
    sluice_proto::client::ask(prompt)
}

/// What the bundled model answers with a short label.
const SURE: &str = "Is this text message spam or ham? See you at the station at six.";

const ALL_REMOTE: &str = "goal = \"fixed-threshold\"\nthreshold = 1.0";
const ALL_LOCAL: &str = "goal = \"fixed-threshold\"\nthreshold = 0.0\n[escalate]\nenabled = false";

#[tokio::test(flavor = "multi_thread")]
async fn a_demand_on_residency_is_kept_or_refused_by_name() {
    let (mut house, _folder) = house(&[("p", "", ALL_REMOTE), ("eu", "regions = [\"eu\"]", ALL_REMOTE)]).await;
    let asks = |policy: &str, regions: &[&str]| v1::Ask {
        policy: policy.to_owned(),
        regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        ..ask("Where am I?")
    };
    assert_eq!(decided(&mut house.client, asks("p", &[])).await.model, "us/large");
    assert_eq!(decided(&mut house.client, asks("eu", &[])).await.model, "eu/large");
    let decision = decided(&mut house.client, asks("p", &["eu"])).await;
    assert_eq!((decision.model.as_str(), decision.residency.as_str()), ("eu/large", "only eu (ask.regions)"));
    let out = decision.candidates.iter().find(|candidate| candidate.model == "us/large").unwrap();
    assert!(out.excluded_by.contains("region us") && out.region == "us", "{}", out.excluded_by);
    let paid = house.simulator.requests().len();
    for asked in [asks("p", &["mars"]), asks("eu", &["us"])] {
        let refused = complete(&mut house.client, asked).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        let details = refused.get_error_details();
        let violation = &details.precondition_failure().unwrap().violations[0];
        assert_eq!((violation.r#type.as_str(), violation.subject.as_str()), ("REGION", "ask.regions"));
        assert_eq!(details.error_info().unwrap().reason, "NO_REGION");
    }
    assert_eq!(house.simulator.requests().len(), paid, "nothing was sent anywhere");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_went_remote_stays_there() {
    let (mut house, folder) = house(&[("p", "sticky = \"escalate-only\"", ALL_LOCAL)]).await;
    let turn = |conversation: &str, placement: v1::Placement| v1::Ask {
        conversation_id: conversation.to_owned(),
        placement: placement.into(),
        ..ask(SURE)
    };
    let auto = v1::Placement::Auto;
    assert_eq!(decided(&mut house.client, turn("a", auto)).await.route(), v1::Route::Local);
    decided(&mut house.client, turn("a", v1::Placement::RemoteOnly)).await;
    let sticky = (v1::Route::Remote, "us/large".to_owned(), "sticky".to_owned());
    assert_eq!(told(&decided(&mut house.client, turn("a", auto)).await), sticky);
    assert_eq!(decided(&mut house.client, turn("b", auto)).await.route(), v1::Route::Local, "another conversation");
    assert_eq!(decided(&mut house.client, turn("", auto)).await.route(), v1::Route::Local, "no conversation");
    let local = decided(&mut house.client, turn("a", v1::Placement::LocalOnly)).await;
    assert_eq!(local.route(), v1::Route::Local, "placement is stronger");
    // The policy says otherwise from its next reading on.
    write(folder.path(), &[("p", "", ALL_LOCAL)]);
    assert!(house.app.services().registry.reload().unwrap());
    assert_eq!(decided(&mut house.client, turn("a", auto)).await.route(), v1::Route::Local);
    house.close().await;
}
