//! Objectives through the whole gateway: residency, conversations that stay remote, several candidates.

use crate::support::{House, complete};
use router::domain::PicoUsdPerToken;
use router::settings::Target;
use router::simulate::{Prices, Simulator, SimulatorConfig};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
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

const SLOW: &str = r#"
[[models]]
id = "slow/large"
kind = "remote"
target = "slow"
upstream = "slow"
context = 100000
max_output = 1000
default_output = 100
price = { input = "0", cached_input = "0", output = "0", date = "2026-01-01", source = "test" }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_seen_to_be_slow_is_passed_over() {
    let stop = CancellationToken::new();
    let free = Prices {
        input: PicoUsdPerToken::new(0),
        cached_input: PicoUsdPerToken::new(0),
        output: PicoUsdPerToken::new(0),
    };
    let config =
        SimulatorConfig { prices: free, first_token_delay: Duration::from_millis(2_500), ..SimulatorConfig::default() };
    let slow = Simulator::start(config, &TaskTracker::new(), stop.clone()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("models.toml"), format!("{CATALOG}{SLOW}")).unwrap();
    let text = |name: &str, large: &str, when_late: &str| {
        format!(
            "name = \"{name}\"\n[models]\nlarge = {large}\n[objective]\ngoal = \"fixed-threshold\"\nthreshold = 0.5\n\
             max_latency = \"2s\"\nwhen_late = \"{when_late}\"\n"
        )
    };
    let both = "[\"slow/large\", \"us/large\"]";
    for (name, large, when_late) in [("both", both, "quality"), ("alone", "[\"slow/large\"]", "refuse")] {
        std::fs::write(folder.path().join(format!("{name}.toml")), text(name, large, when_late)).unwrap();
    }
    let mut house = House::with(|settings| {
        settings.policies_dir = Some(folder.path().to_owned());
        settings.default_policy = "both".to_owned();
        settings.targets.insert("slow".to_owned(), Target::at(slow.base_url()));
    })
    .await;
    // Nothing is known yet: the first in order serves, however long it takes.
    let first = (0..20).map(|_| {
        let mut client = house.client.clone();
        async move { told(&decided(&mut client, ask("Take your time.")).await).1 }
    });
    let served = futures_util::future::join_all(first).await;
    assert!(served.iter().all(|model| model == "slow/large"), "{served:?}");
    let decision = decided(&mut house.client, ask("Hurry.")).await;
    assert_eq!(told(&decision), (v1::Route::Remote, "us/large".to_owned(), "latency_ceiling".to_owned()));
    let passed_over = &decision.candidates[0];
    assert!(passed_over.excluded_by.contains("over max_latency 2.00 s"), "{}", passed_over.excluded_by);
    assert!(passed_over.predicted_total_ms.unwrap() >= 2_500.0);
    let refused =
        complete(&mut house.client, v1::Ask { policy: "alone".to_owned(), ..ask("Hurry.") }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "LATE");
    house.close().await;
    stop.cancel();
}
