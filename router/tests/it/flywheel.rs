//! From recorded traffic to a small model of one's own: what may be taken out of the ledger, and what is left where it is.

use crate::support::{House, complete, guarded_with, remote, sluice};
use router::domain::{RecordLevel, TenantId};
use router::settings::Settings;
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::path::Path;

/// A student of a few thousand weights.
const RECIPE: &str = r#"
name = "tiny"
seed = 1
[data]
licences = ["tenant"]
long_records = "skip"
[network]
vocabulary = 264
width = 64
layers = 1
heads = 2
kv_heads = 1
feed_forward = 64
context = 128
rope_base = 10000.0
norm_epsilon = 1e-5
[training]
tokens = 2000
batch_tokens = 200
peak_rate = 1e-2
warm_up = 200
"#;

fn keeping(data: &Path, level: RecordLevel) -> impl FnOnce(&mut Settings) {
    let data = data.to_owned();
    move |settings| {
        settings.data_dir = data;
        settings.records.insert(TenantId::new("local"), level);
    }
}

async fn ask(house: &House, ask: v1::Ask) -> String {
    complete(&mut house.client.clone(), ask).await.unwrap().request_id
}

#[tokio::test(flavor = "multi_thread")]
async fn transcripts_are_taken_with_consent_masked_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(file("recipe.toml"), RECIPE).unwrap();
    let answers = [
        ("Who is ada@example.org?", "Ada, card 4111 1111 1111 1111."),
        ("Tell me a secret.", "None."),
        ("Twice?", "Yes."),
        ("Poor?", "No."),
    ];
    let house = House::knowing(&answers, keeping(&folder.path().join("text"), RecordLevel::Text)).await;
    for (question, _) in &answers[..3] {
        ask(&house, remote(question)).await;
    }
    ask(&house, remote("Twice?")).await;
    let poor = ask(&house, remote("Poor?")).await;
    let feedback =
        v1::SubmitFeedbackRequest { entry_id: poor, source: v1::FeedbackSource::User.into(), value: Some(0.2) };
    house.client.clone().gateway.submit_feedback(feedback).await.unwrap();
    // What is answered by the small model, what is cut off, and what has instructions is no example.
    ask(&house, crate::support::local("Is this text message spam or ham? See you at 7.")).await;
    let mut short = remote("Count to a hundred.");
    short.limits = Some(v1::Limits { temperature: Some(0.0), max_tokens: Some(1), ..v1::Limits::default() });
    ask(&house, short).await;
    let mut instructed = remote("Twice!");
    let system = v1::Message { role: v1::Role::System.into(), ..instructed.messages[0].clone() };
    instructed.messages.insert(0, system);
    ask(&house, instructed).await;
    // One of its turns had to stay here, so nothing of the conversation leaves.
    let mut private = crate::support::local("Is this text message spam or ham? See you at 8.");
    private.conversation_id = "private".to_owned();
    ask(&house, private).await;
    let mut later = remote("And who is Bob?");
    later.conversation_id = "private".to_owned();
    ask(&house, later).await;
    house.close().await;

    let distill = |data: &str, run: &str, more: &[&str]| {
        let (data, run) = (file(data), file(run));
        let recipe = file("recipe.toml");
        let words = ["distill", &recipe, "--from-ledger", &data, "--folder", &run];
        sluice(&[&words[..], more].concat())
    };
    let said = distill("text", "run", &["--feedback-above", "0.5"]).unwrap();
    assert!(said.contains("3 answers of large models taken; masked in them: 1 <CARD>, 1 <EMAIL>"), "{said}");
    for left_out in [
        "(poor feedback)",
        "(the same was asked again later)",
        "(answered by a small model)",
        "(answer cut off)",
        "(several turns or instructions)",
        "3 (had to stay local)",
    ] {
        // Local-only requests are told apart from what a small model answered by choice.
        let expected = left_out != "(answered by a small model)";
        assert_eq!(said.contains(left_out), expected, "{left_out}: {said}");
    }
    let taken = std::fs::read_to_string(file("run/transcripts.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> = taken.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = |row: &serde_json::Value| {
        (row["prompt"].as_str().unwrap().to_owned(), row["answer"].as_str().unwrap().to_owned())
    };
    assert_eq!(told(&rows[0]), ("Who is <EMAIL>?".to_owned(), "Ada, card <CARD>.".to_owned()));
    assert_eq!((rows[0]["licence"].as_str(), rows[0]["source"].as_str()), (Some("tenant"), Some("local")));
    for private in ["4111", "ada@", "spam", "Bob", "Poor"] {
        assert!(!taken.contains(private), "{private}: {taken}");
    }
    assert!(folder.path().join("run/model.gguf").is_file(), "it was trained on them");
    assert!(distill("text", "run", &[]).unwrap().contains("taken before"), "a run that goes on learns the same");

    // Whose recordings are forgotten teaches nobody any more, and who recorded no text never did.
    let error = distill("text", "other", &["--tenant", "nobody"]).unwrap_err();
    assert!(error.contains("no request was recorded with its text, of 0"), "{error}");
    let error = distill("text", "other", &["--feedback-above", "7"]).unwrap_err();
    assert!(error.contains("--feedback-above must be from 0 to 1"), "{error}");
    let refused = RECIPE.replace("\"tenant\"", "\"MIT\"");
    std::fs::write(file("recipe.toml"), refused).unwrap();
    let error = distill("text", "third", &[]).unwrap_err();
    assert!(error.contains("transcripts.jsonl:1: licence `tenant`"), "{error}");
    std::fs::write(file("recipe.toml"), RECIPE).unwrap();
    sluice(&["replay", "--data-dir", &file("text"), "--forget", "local"]).unwrap();
    let error = distill("text", "other", &[]).unwrap_err();
    assert!(error.contains("no request was recorded with its text, of 10"), "{error}");
    let house = House::knowing(&answers, keeping(&folder.path().join("features"), RecordLevel::Features)).await;
    ask(&house, remote("Twice?")).await;
    house.close().await;
    assert!(distill("features", "other", &[]).unwrap_err().contains("no request was recorded with its text, of 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_learnt_from_together_only_where_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let recipe = folder.path().join("recipe.toml").display().to_string();
    std::fs::write(&recipe, RECIPE).unwrap();
    let (house, _keys) = guarded_with(|settings| {
        settings.data_dir.clone_from(&data);
        for tenant in ["acme", "other"] {
            settings.records.insert(TenantId::new(tenant), RecordLevel::Text);
        }
    })
    .await;
    for key in ["serve", "other"] {
        let mut client = Client::connect(&house.app.url(), Some(key), None).await.unwrap();
        complete(&mut client, remote("What is our plan?")).await.unwrap();
    }
    house.app.shutdown().await;
    let distill = |run: &str, more: &[&str]| {
        let (data, run) = (data.display().to_string(), folder.path().join(run).display().to_string());
        sluice(&[&["distill", &recipe, "--from-ledger", &data, "--folder", &run], more].concat())
    };
    let error = distill("run", &[]).unwrap_err();
    assert!(error.contains("acme, other may repeat to one what another one said"), "{error}");
    assert!(!folder.path().join("run").exists(), "nothing was written");
    assert!(distill("one", &["--tenant", "acme"]).unwrap().contains("1 answers of large models taken"));
    assert!(distill("both", &["--across-tenants"]).unwrap().contains("2 answers of large models taken"));
}
