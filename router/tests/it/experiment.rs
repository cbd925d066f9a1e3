//! Experiments: whole conversations on one side, told by the answer and the ledger, compared by replay.

use crate::support::{House, complete};
use clap::Parser as _;
use router::cli::{Arguments, run};
use router::domain::{RecordLevel, TenantId};
use serde_json::Value;
use sluice_proto::v1;
use std::collections::BTreeMap;
use std::path::Path;

fn policy(name: &str, threshold: &str, rest: &str) -> String {
    format!(
        "name = \"{name}\"\n[models]\nsmall = [\"sluice-nano\"]\nlarge = [\"openai/gpt-4.1-mini\"]\n[objective]\n\
         goal = \"fixed-threshold\"\nthreshold = {threshold}\n{rest}"
    )
}

const EXPERIMENT: &str = "[experiment]\ncandidate = \"new\"\nshare = 0.5\n";

fn write(folder: &Path, experiment: &str) {
    std::fs::write(folder.join("old.toml"), policy("old", "1.0", experiment)).unwrap();
    std::fs::write(folder.join("new.toml"), policy("new", "0.0", "")).unwrap();
}

fn sluice(arguments: &[&str]) -> Result<String, String> {
    let arguments = Arguments::try_parse_from(["sluice"].iter().chain(arguments).map(|word| (*word).to_owned()));
    // Verbs bring their own runtime.
    let thread = std::thread::spawn(move || {
        let mut out = Vec::new();
        run(arguments.unwrap(), &mut out).map_err(|error| format!("{error:#}")).map(|_| String::from_utf8(out).unwrap())
    });
    thread.join().unwrap()
}

fn ask(conversation: &str, number: usize) -> v1::Ask {
    let prompt = format!("Is this text message spam or ham? See you at the station at {number} past six.");
    v1::Ask { conversation_id: conversation.to_owned(), ..sluice_proto::client::ask(prompt) }
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_keep_their_side_and_replay_compares_the_sides() {
    let (policies, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(policies.path(), EXPERIMENT);
    let data = folder.path().join("kept");
    let mut house = House::with(|settings| {
        settings.policies_dir = Some(policies.path().to_owned());
        settings.default_policy = "old".to_owned();
        settings.records.insert(TenantId::new("local"), RecordLevel::Features);
        settings.data_dir = data.clone();
    })
    .await;
    let mut sides: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for number in 0..60 {
        let conversation = format!("c{}", number % 20);
        let answer = complete(&mut house.client, ask(&conversation, number)).await.unwrap();
        let decision = answer.finished.unwrap().decision.unwrap();
        assert_eq!(decision.experiment, "old");
        let expected = match decision.arm.as_str() {
            "candidate" => ("new", v1::Route::Local),
            _ => ("old", v1::Route::Remote),
        };
        assert_eq!((decision.policy_name.as_str(), decision.route()), expected);
        sides.entry(conversation).or_default().push(decision.arm);
        let feedback = v1::SubmitFeedbackRequest {
            entry_id: answer.request_id,
            source: v1::FeedbackSource::Metric.into(),
            value: Some(1.0),
        };
        house.client.gateway.submit_feedback(feedback).await.unwrap();
    }
    assert!(sides.values().all(|arms| arms.iter().all(|arm| *arm == arms[0])), "{sides:?}");
    let candidates = sides.values().filter(|arms| arms[0] == "candidate").count();
    assert!((3..=17).contains(&candidates), "about half of 20: {candidates}");
    // A policy that is asked for by name and runs no experiment is on no side.
    let plain = v1::Ask { policy: "new".to_owned(), ..ask("c0", 0) };
    let decision = complete(&mut house.client, plain).await.unwrap().finished.unwrap().decision.unwrap();
    assert_eq!((decision.experiment.as_str(), decision.arm.as_str()), ("", ""));
    house.close().await;

    let (dir, data) = (policies.path().display().to_string(), data.display().to_string());
    let page = folder.path().join("page.html").display().to_string();
    let common = ["replay", "--policies-dir", &dir, "--policy", "new", "--data-dir", &data];
    let report: Value =
        serde_json::from_str(&sluice(&[&common[..], &["--json", "--html", &page]].concat()).unwrap()).unwrap();
    let found = &report["experiments"][0];
    assert_eq!((found["experiment"].as_str(), report["experiments"].as_array().unwrap().len()), (Some("old"), 1));
    let (control, candidate) = (&found["control"], &found["candidate"]);
    assert_eq!(candidate["conversations"].as_u64(), Some(candidates as u64));
    assert_eq!(control["requests"].as_u64().unwrap() + candidate["requests"].as_u64().unwrap(), 60);
    assert_eq!((&candidate["usd_per_1000"]["value"], &candidate["policies"][0]), (&0.0.into(), &"new".into()));
    assert!(found["usd_per_1000_difference"]["high"].as_f64().unwrap() < 0.0, "{found}");
    assert_eq!(found["local_share_difference"]["value"].as_f64(), Some(1.0));
    let table = sluice(&common).unwrap();
    assert!(table.contains("experiment of old, which tries new") && table.contains("candidate − control"), "{table}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("Experiment of old") && html.contains("candidate: new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_experiment_without_its_candidate_is_a_problem_with_its_place() {
    let policies = tempfile::tempdir().unwrap();
    write(policies.path(), &EXPERIMENT.replace("\"new\"", "\"knew\""));
    let file = policies.path().join("old.toml").display().to_string();
    let told = sluice(&["policy", "check", &file]).unwrap();
    assert!(told.contains("there is no policy `knew`") && told.contains("did you mean `new`?"), "{told}");
    assert!(told.contains("old.toml:9:13") || told.contains("old.toml:8:13"), "line and column: {told}");
    write(policies.path(), EXPERIMENT);
    assert!(sluice(&["policy", "check", &file]).unwrap().contains("good"));
    let mut house = House::with(|settings| {
        settings.policies_dir = Some(policies.path().to_owned());
        settings.default_policy = "old".to_owned();
    })
    .await;
    write(policies.path(), &EXPERIMENT.replace("\"new\"", "\"knew\""));
    let error = house.app.services().registry.reload().unwrap_err().to_string();
    assert!(error.contains("experiment.candidate"), "{error}");
    // The last good ones stay in force.
    let answer = complete(&mut house.client, ask("c", 1)).await.unwrap();
    assert_eq!(answer.finished.unwrap().decision.unwrap().experiment, "old");
    house.close().await;
}
