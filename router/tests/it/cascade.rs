//! Drafts under judgement, through the whole gateway: shown when they are good enough, else never seen.

use crate::support::{House, certificate, complete};
use clap::Parser as _;
use router::cli::{Arguments, run};
use router::domain::{RecordLevel, TenantId};
use router::evidence::certificate::Certificate;
use router::judge::{Draft, FIRST_LOOK, JudgeFile, Judged, TokenFacts, features, fit, prefix_features};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::path::Path;

const POLICY: &str = r#"
name = "judged"
description = "Every draft is judged."
[models]
small = ["sluice-nano"]
large = ["openai/gpt-4.1-mini"]
[objective]
goal = "min-cost"
quality_target = 0.9
confidence = 0.95
[escalate]
enabled = true
stream = "first-byte"
"#;

/// A judge that likes drafts whose tokens are sure.
fn rows() -> Vec<Judged> {
    let row = |index: usize| {
        let logprob = -0.01 - (index % 50) as f64 / 10.0;
        let tokens = vec![TokenFacts { logprob, margin: Some(1.0), entropy: None }; FIRST_LOOK];
        let draft = Draft {
            prompt: "x",
            text: "y",
            tokens: &tokens,
            cut: false,
            prompt_score: None,
            valid: None,
            agrees: None,
        };
        let suffices = (logprob > -2.5) != (index % 7 == 3);
        let prefix = Some(prefix_features(&draft));
        Judged { features: features(&draft), prefix, suffices, cluster: index.to_string() }
    };
    (0..1_000).map(row).collect()
}

/// A folder with the policy and its judge, whose threshold is `threshold`.
fn policies(threshold: Option<f64>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (judge, _) = fit("sluice-nano", &rows()).unwrap();
    let certificate = certificate("judged", POLICY, judge.version(), threshold);
    let certificate = Certificate { confidence: 0.95, local_share: 0.5, ..certificate };
    std::fs::write(folder.path().join("judged.toml"), POLICY).unwrap();
    std::fs::write(folder.path().join("judged.judge.toml"), JudgeFile { judge, certificate }.to_toml().unwrap())
        .unwrap();
    folder
}

async fn house(folder: &Path) -> House {
    House::with(|settings| {
        settings.policies_dir = Some(folder.to_owned());
        settings.default_policy = "judged".to_owned();
    })
    .await
}

async fn ask(client: &mut Client, prompt: &str) -> v1::CompleteResponse {
    complete(client, sluice_proto::client::ask(prompt)).await.unwrap()
}

/// A spam question, which the bundled model answers with a short label, surely.
const SURE: &str = "Is this text message spam or ham? See you at the station at six.";

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_reaches_the_threshold_is_shown_and_costs_nothing() {
    let folder = policies(Some(0.0));
    let mut house = house(folder.path()).await;
    let answer = ask(&mut house.client, SURE).await;
    let decision = answer.finished.unwrap().decision.unwrap();
    assert_eq!(decision.route(), v1::Route::Cascade);
    assert_eq!((decision.model.as_str(), decision.reason.unwrap().code.as_str()), ("sluice-nano", "draft_accepted"));
    assert_eq!(decision.threshold, Some(0.0));
    assert!(house.simulator.requests().is_empty(), "nobody was paid");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_below_the_threshold_is_never_seen_and_is_booked() {
    let folder = policies(Some(1.0));
    let mut house = house(folder.path()).await;
    let answer = ask(&mut house.client, SURE).await;
    let finished = answer.finished.unwrap();
    let decision = finished.decision.unwrap();
    assert_eq!(decision.route(), v1::Route::Cascade);
    let reason = decision.reason.unwrap();
    assert_eq!((decision.model.as_str(), reason.code.as_str()), ("openai/gpt-4.1-mini", "draft_rejected"));
    assert!(reason.detail.contains("below 1.000; nothing of it was shown") || reason.detail.contains("below 1.000 ("));
    assert!(finished.usage.unwrap().input_tokens > 0);
    assert_eq!(house.simulator.requests().len(), 1);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_threshold_or_for_a_stream_that_wants_its_first_byte_nothing_is_drafted() {
    let folder = policies(None);
    let mut house = house(folder.path()).await;
    let answer = ask(&mut house.client, SURE).await;
    let decision = answer.finished.unwrap().decision.unwrap();
    assert_eq!(decision.route(), v1::Route::Remote, "no evidence, no draft");
    house.close().await;

    let folder = policies(Some(0.0));
    // Whoever changes a policy hears that its judge is out of force.
    std::fs::write(folder.path().join("judged.toml"), POLICY.replace("Every", "Each")).unwrap();
    let mut house = self::house(folder.path()).await;
    let subject = Some(v1::explain_request::Subject::Ask(sluice_proto::client::ask(SURE)));
    let told = house.client.gateway.explain(v1::ExplainRequest { subject }).await.unwrap().into_inner();
    assert!(told.certificate.contains("its judge is not used: "), "{}", told.certificate);
    assert_eq!(told.decision.unwrap().route(), v1::Route::Remote);
    house.close().await;

    let folder = policies(Some(0.0));
    let mut house = self::house(folder.path()).await;
    let request = v1::StreamCompleteRequest { ask: Some(sluice_proto::client::ask(SURE)) };
    let mut events = house.client.gateway.stream_complete(request).await.unwrap().into_inner();
    let mut routes = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(v1::stream_complete_response::Event::Started(started)) = event.event {
            routes.push(started.decision.unwrap().route());
        }
    }
    assert_eq!(routes, [v1::Route::Remote], "the stream's first byte wins, and the prompt has no certificate");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_knows_that_a_policy_of_a_file_is_judged() {
    let (folder, kept) = (policies(Some(0.0)), tempfile::tempdir().unwrap());
    let mut house = House::with(|settings| {
        settings.policies_dir = Some(folder.path().to_owned());
        settings.default_policy = "judged".to_owned();
        settings.records.insert(TenantId::new("local"), RecordLevel::Features);
        settings.data_dir = kept.path().to_owned();
    })
    .await;
    for _ in 0..6 {
        let answer = ask(&mut house.client, SURE).await;
        let decision = answer.finished.unwrap().decision.unwrap();
        assert_eq!(decision.reason.unwrap().code, "draft_accepted");
    }
    house.close().await;
    let replayed = |policy: String| -> serde_json::Value {
        let data = kept.path().display().to_string();
        let dir = folder.path().display().to_string();
        let words = ["sluice", "replay", "--json", "--policies-dir", &dir, "--data-dir", &data, "--policy", &policy];
        let arguments = Arguments::try_parse_from(words.map(str::to_owned)).unwrap();
        // Verbs bring their own runtime.
        let thread = std::thread::spawn(move || {
            let mut out = Vec::new();
            run(arguments, &mut out).map(|_| serde_json::from_slice(&out).unwrap())
        });
        thread.join().unwrap().unwrap()
    };
    for policy in ["judged".to_owned(), folder.path().join("judged.toml").display().to_string()] {
        let report = replayed(policy);
        let figures = &report["policies"][0];
        // A draft is made here, and has been tried whenever it was logged.
        assert_eq!(figures["local_share"]["value"].as_f64(), Some(1.0), "{figures}");
        assert_eq!((figures["untried"].as_f64(), report["changed"].as_u64()), (Some(0.0), Some(0)), "{figures}");
    }
    // Without its judge the same policy sends all remote, which was never tried.
    std::fs::remove_file(folder.path().join("judged.judge.toml")).unwrap();
    let report = replayed(folder.path().join("judged.toml").display().to_string());
    assert_eq!(report["policies"][0]["local_share"]["value"].as_f64(), Some(0.0));
    assert_eq!((report["policies"][0]["untried"].as_f64(), report["changed"].as_u64()), (Some(1.0), Some(6)));
}
