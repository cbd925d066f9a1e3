//! Traffic served, recorded and decided again: by the ledger, by an exported log, and after it was forgotten.

use crate::support::{self, House, complete};
use router::domain::{RecordLevel, TenantId};
use serde_json::Value;
use sluice_proto::v1;
use std::path::Path;

const EXPLORES: &str = r#"
name = "explores"
description = "Half of what is bound for the large model is tried locally."
[models]
small = ["sluice-nano"]
large = ["openai/gpt-4.1-mini"]
[objective]
goal = "fixed-threshold"
threshold = 1.0
[exploration]
share = 0.5
"#;

const LARGE: &str = r#"
name = "large"
description = "Everything on the large model."
[models]
small = ["sluice-nano"]
large = ["openai/gpt-4.1-mini"]
[objective]
goal = "fixed-threshold"
threshold = 1.0
"#;

fn sluice(arguments: &[&str]) -> Result<String, String> {
    support::sluice(&[&["replay"], arguments].concat())
}

async fn serve(level: RecordLevel, policies: &Path, requests: usize) -> (tempfile::TempDir, String) {
    std::fs::write(policies.join("explores.toml"), EXPLORES).unwrap();
    std::fs::write(policies.join("large.toml"), LARGE).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("kept");
    let house = House::with(|settings| {
        settings.policies_dir = Some(policies.to_owned());
        settings.default_policy = "explores".to_owned();
        settings.records.insert(TenantId::new("local"), level);
        settings.data_dir = data.clone();
    })
    .await;
    for number in 0..requests {
        let mut client = house.client.clone();
        let ask = sluice_proto::client::ask(format!("Say number {number} in words."));
        let answer = complete(&mut client, ask).await.unwrap();
        let feedback = v1::SubmitFeedbackRequest {
            entry_id: answer.request_id,
            source: v1::FeedbackSource::Metric.into(),
            value: Some(1.0),
        };
        client.gateway.submit_feedback(feedback).await.unwrap();
    }
    house.close().await;
    (folder, data.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_traffic_is_decided_again_and_can_be_forgotten() {
    let policies = tempfile::tempdir().unwrap();
    let (folder, data) = serve(RecordLevel::Text, policies.path(), 24).await;
    let dir = policies.path().to_str().unwrap();
    let page = folder.path().join("page.html");
    let common = ["--policies-dir", dir, "--policy", "large", "--against", "explores", "--json"];
    let report = |from: &[&str]| -> Value {
        let text = sluice(&[&common[..], from].concat()).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let by_ledger = report(&["--data-dir", &data, "--html", page.to_str().unwrap()]);
    let [large, explores] = &by_ledger["policies"].as_array().unwrap()[..] else { panic!("{by_ledger}") };
    assert_eq!((large["requests"].as_u64(), large["graded"].as_u64()), (Some(24), Some(24)));
    assert_eq!(large["local_share"]["value"], 0.0);
    assert_eq!(explores["local_share"]["value"], 0.5);
    // Every request could have gone either way, so nothing is untried; the policy that served is its own best witness.
    assert_eq!((large["untried"].as_f64(), explores["untried"].as_f64()), (Some(0.0), Some(0.0)));
    assert!((explores["effective"].as_f64().unwrap() - 24.0).abs() < 1e-9);
    let quality = &large["quality"]["doubly_robust"]["bounds"];
    // A dozen right answers out of a dozen: neither certain nor unknown.
    let low = quality["low"].as_f64().unwrap();
    assert!((0.2..0.95).contains(&low) && quality["high"].as_f64().unwrap() >= 1.0 - 1e-9, "{quality}");
    let logged_local = by_ledger["logged"]["local_share"]["value"].as_f64().unwrap();
    let changed = by_ledger["changed"].as_u64().unwrap();
    assert_eq!(changed as f64, (logged_local * 24.0).round(), "what was explored would be remote");
    assert!(changed > 0 && changed < 24, "a fair coin: {changed}");
    assert!(by_ledger["changes"][0]["reason"].as_str().unwrap().starts_with("score_below_threshold"));
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg") && html.contains("USD per 1,000 requests") && !html.contains("<script"));
    assert!(!html.contains("http://") && !html.contains("https://"), "no asset from outside");

    let log = folder.path().join("log.jsonl");
    sluice(&["--data-dir", &data, "--export", log.to_str().unwrap()]).unwrap();
    let by_log = report(&["--log", log.to_str().unwrap()]);
    // Times in JSON may differ in their last bit.
    for (one, other) in [(&by_log["policies"][0], large), (&by_log["policies"][1], explores)] {
        for figure in ["requests", "graded", "quality", "usd_per_1000", "local_share", "untried", "frontier"] {
            assert_eq!(one[figure], other[figure], "{figure}");
        }
    }

    let unknown = sluice(&["--policies-dir", dir, "--policy", "larg", "--data-dir", &data]).unwrap_err();
    assert_eq!(unknown, "there is no policy `larg`; there are explores, large");
    assert!(sluice(&["--forget", "local", "--data-dir", &data]).unwrap().starts_with("forgot 24 requests"));
    let error = sluice(&["--policies-dir", dir, "--policy", "large", "--data-dir", &data]).unwrap_err();
    assert!(error.contains("none of 24 requests") && error.contains("24 recorded at level none"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn features_are_enough_for_the_same_scorer_and_hold_no_text() {
    let policies = tempfile::tempdir().unwrap();
    let (folder, data) = serve(RecordLevel::Features, policies.path(), 6).await;
    let dir = policies.path().to_str().unwrap();
    let log = folder.path().join("log.jsonl");
    sluice(&["--data-dir", &data, "--export", log.to_str().unwrap()]).unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("in words"), "text was recorded");
    sluice(&["--policies-dir", dir, "--policy", "large", "--log", log.to_str().unwrap()]).unwrap();
    // Another scorer's scores are no help without text: it says so, and how many.
    let mut first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    first["scorer"] = "another".into();
    let rest: Vec<&str> = text.lines().skip(1).collect();
    std::fs::write(&log, format!("{first}\n{}\n", rest.join("\n"))).unwrap();
    let table = sluice(&["--policies-dir", dir, "--policy", "large", "--log", log.to_str().unwrap()]).unwrap();
    assert!(table.contains("1 left out, scored by another scorer and without text"), "{table}");
}
