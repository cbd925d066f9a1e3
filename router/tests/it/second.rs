//! Second opinions on drafts, through the whole gateway: asked only where they can change the verdict, booked, and never shown.

use crate::support::{House, certificate, complete, sluice};
use local_worker::testing::{END, Script};
use router::evidence::certificate::Certificate;
use router::judge::{Draft, FIRST_LOOK, Judge, JudgeFile, Judged, TokenFacts, features, fit, prefix_features};
use router::policy::Policy;
use sluice_proto::v1;
use std::path::Path;
use std::time::Duration;

fn policy(second: &str, more: &str) -> String {
    format!(
        "name = \"asking\"\ndescription = \"Asks twice.\"\n{more}\n[models]\nsmall = [\"one\"]\n\
         large = [\"openai/gpt-4.1-mini\"]\n[objective]\ngoal = \"min-cost\"\nquality_target = 0.9\nconfidence = 0.95\n\
         [escalate]\nsecond = \"{second}\"\n"
    )
}

/// A judge that thinks well of drafts that somebody agrees with, and of others only if their tokens are very sure.
fn judge() -> Judge {
    let row = |index: usize| {
        let (agrees, sure) = (index % 2, index.is_multiple_of(5));
        let logprob = if sure { -0.001 } else { -0.5 };
        let tokens = vec![TokenFacts { logprob, margin: None, entropy: None }; FIRST_LOOK];
        let draft = Draft {
            prompt: "x",
            text: "y",
            tokens: &tokens,
            cut: false,
            prompt_score: None,
            valid: None,
            agrees: Some(agrees as f64),
        };
        let suffices = (agrees == 1) != (index % 11 == 7);
        Judged { features: features(&draft), prefix: None, suffices, cluster: index.to_string() }
    };
    fit("one", &(0..600).map(row).collect::<Vec<_>>()).unwrap().0
}

/// A folder with two scripted models: `one` answers `a` and `b` with yes, `two` differs at `b` and never ends at `c`.
fn policies(second: &str, threshold: f64, more: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| std::fs::write(folder.path().join(name), text).unwrap();
    let model = |chains: &[&[&str]]| Script { chains, context: 32_768, ..Script::default() }.gguf();
    write("one.gguf", &model(&[&["a", "yes", END], &["b", "yes"], &["c", "yes"]]));
    write("two.gguf", &model(&[&["a", "yes", END], &["b", "no", END], &["c", "z", "z"]]));
    let entry = |id: &str, region: &str| {
        let path = folder.path().join(format!("{id}.gguf"));
        format!(
            "[[models]]\nid = \"{id}\"\nkind = \"file\"\npath = \"{}\"\ncontext = 32768\nmax_output = 30000\n\
             default_output = 30000\n{region}capabilities = [\"logprobs\", \"sampling\", \"seed\"]\n",
            path.display()
        )
    };
    let shipped = include_str!("../../../policies/models.toml")
        .replace("kind = \"remote\"", "kind = \"remote\"\nregion = \"eu\"");
    let catalog = [shipped, entry("one", "region = \"eu\"\n"), entry("two", "")].concat();
    write("models.toml", catalog.as_bytes());
    let text = policy(second, more);
    let judge = judge();
    let certificate = certificate("asking", &text, judge.version(), Some(threshold));
    let certificate = Certificate { small: "one".to_owned(), confidence: 0.95, local_share: 0.5, ..certificate };
    write("asking.toml", text.as_bytes());
    write("asking.judge.toml", JudgeFile { judge, certificate }.to_toml().unwrap().as_bytes());
    folder
}

async fn house(folder: &Path) -> House {
    House::with(|settings| {
        settings.policies_dir = Some(folder.to_owned());
        settings.default_policy = "asking".to_owned();
        settings.local_cache_bytes = 64 << 20;
    })
    .await
}

/// The code and the detail of the reason, and the models of the attempts with how they ended, in order.
async fn asked(house: &mut House, prompt: &str) -> ((String, String), Vec<(String, String)>) {
    let answer = complete(&mut house.client, sluice_proto::client::ask(prompt)).await.unwrap();
    let reason = answer.finished.unwrap().decision.unwrap().reason.unwrap();
    let entry = entries(house).await.remove(0);
    let input: i64 = entry.attempts.iter().map(|attempt| attempt.usage.unwrap().input_tokens).sum();
    assert_eq!(entry.usage.unwrap().input_tokens, input, "all attempts are booked");
    ((reason.code, reason.detail), attempts(&entry))
}

fn attempts(entry: &v1::Entry) -> Vec<(String, String)> {
    entry.attempts.iter().map(|attempt| (attempt.model.clone(), attempt.status.clone())).collect()
}

async fn entries(house: &House) -> Vec<v1::Entry> {
    let mut usage = house.client.usage.clone();
    usage.list_entries(v1::ListEntriesRequest::default()).await.unwrap().into_inner().entries
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(model, status)| ((*model).to_owned(), (*status).to_owned())).collect()
}

/// A threshold that drafts reach only if somebody agrees.
const UNDECIDED: f64 = 0.5;

#[tokio::test(flavor = "multi_thread")]
async fn another_sample_that_agrees_lets_the_draft_out_and_is_booked() {
    let folder = policies("sample", UNDECIDED, "");
    let mut house = house(folder.path()).await;
    let ((code, detail), attempts) = asked(&mut house, "a").await;
    assert_eq!(code, "draft_accepted", "{detail}");
    assert!(detail.contains("a second opinion agrees"), "{detail}");
    assert_eq!(attempts, pairs(&[("one", "ok"), ("one", "ok")]));
    assert!(house.simulator.requests().is_empty(), "nobody was paid");
    let metrics = reqwest::get(format!("{}/metrics", house.app.url())).await.unwrap().text().await.unwrap();
    let counted = metrics.lines().find(|line| line.starts_with("sluice_draft_second_opinions_total{")).unwrap();
    assert!(counted.contains("said=\"agrees\"") && counted.ends_with(" 1"), "{counted}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_that_differs_escalates_and_nobody_sees_what_it_said() {
    let folder = policies("two", UNDECIDED, "");
    let mut house = house(folder.path()).await;
    let ((code, detail), attempts) = asked(&mut house, "b").await;
    assert_eq!(code, "draft_rejected", "{detail}");
    assert!(detail.contains("a second opinion differs"), "{detail}");
    let expected = [("one", "declined"), ("two", "ok"), ("openai/gpt-4.1-mini", "ok")];
    let mut found = attempts;
    found.sort();
    let mut expected = pairs(&expected);
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(house.simulator.requests().len(), 1);
    let ((code, _), attempts) = asked(&mut house, "a").await;
    assert_eq!((code.as_str(), attempts.len()), ("draft_accepted", 2), "here the two agree");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_where_the_verdict_is_certain_or_residency_forbids_it() {
    for (threshold, code) in [(0.0, "draft_accepted"), (1.0, "draft_rejected")] {
        let folder = policies("two", threshold, "");
        let mut house = house(folder.path()).await;
        let ((found, detail), attempts) = asked(&mut house, "b").await;
        assert_eq!(found, code, "{detail}");
        assert!(attempts.iter().all(|(model, _)| model != "two"), "{attempts:?}");
        house.close().await;
    }
    let folder = policies("two", UNDECIDED, "regions = [\"eu\"]");
    let mut house = house(folder.path()).await;
    let ((code, _), attempts) = asked(&mut house, "a").await;
    assert_eq!(code, "draft_rejected", "whoever says nothing does not agree");
    assert!(attempts.iter().all(|(model, _)| model != "two"), "{attempts:?}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_ends_whoever_is_asked() {
    let folder = policies("two", UNDECIDED, "");
    let mut house = house(folder.path()).await;
    let request = v1::StreamCompleteRequest { ask: Some(sluice_proto::client::ask("c")) };
    let mut events = house.client.gateway.stream_complete(request).await.unwrap().into_inner();
    let first = events.message().await.unwrap().unwrap().event.unwrap();
    assert!(matches!(first, v1::stream_complete_response::Event::Started(_)));
    let running = async |house: &House| {
        let mut models = house.client.models.clone();
        let told = models.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
        told.iter().filter(|model| model.name == "two").map(|model| model.running).sum::<i32>()
    };
    while running(&house).await == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(events);
    let entry = loop {
        match entries(&house).await.pop() {
            Some(entry) => break entry,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!(entry.status, "cancelled");
    assert_eq!(attempts(&entry), pairs(&[("one", "cancelled"), ("two", "cancelled")]));
    assert!(house.simulator.requests().is_empty());
    while running(&house).await > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    house.close().await;
}

/// A policy whose judge thinks that drafts of sure tokens are bad, as those of scripted models are.
fn suspicious(stream: &str, threshold: f64) -> tempfile::TempDir {
    let folder = policies("sample", threshold, "");
    let text = policy("sample", "").replace("second = \"sample\"", &format!("stream = \"{stream}\""));
    let row = |index: usize| {
        let bad = index.is_multiple_of(2);
        let logprob = if bad { -0.001 * (index % 50) as f64 } else { -1.0 - (index % 40) as f64 / 20.0 };
        let tokens = vec![TokenFacts { logprob, margin: None, entropy: None }; FIRST_LOOK];
        let draft = Draft {
            prompt: "x",
            text: "y",
            tokens: &tokens,
            cut: false,
            prompt_score: None,
            valid: None,
            agrees: None,
        };
        let prefix = Some(prefix_features(&draft));
        Judged { features: features(&draft), prefix, suffices: !bad, cluster: index.to_string() }
    };
    let (judge, _) = fit("one", &(0..600).map(row).collect::<Vec<_>>()).unwrap();
    let file = std::fs::read_to_string(folder.path().join("asking.judge.toml")).unwrap();
    let certificate = Certificate {
        policy_hash: Policy::hash(&text),
        scorer_version: judge.version().to_owned(),
        ..JudgeFile::parse(&file).unwrap().certificate
    };
    std::fs::write(folder.path().join("asking.toml"), &text).unwrap();
    let file = JudgeFile { judge, certificate }.to_toml().unwrap();
    std::fs::write(folder.path().join("asking.judge.toml"), file).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hopeless_draft_is_stopped_early_and_what_it_used_is_booked() {
    let folder = suspicious("safety", 0.0);
    std::fs::write(
        folder.path().join("one.gguf"),
        Script { chains: &[&["a", "y", "y"]], context: 32_768, ..Script::default() }.gguf(),
    )
    .unwrap();
    let mut house = house(folder.path()).await;
    // Finished, any draft would be let out; this one would have 30,000 tokens.
    let ((code, detail), attempts) = asked(&mut house, "a").await;
    assert_eq!(code, "draft_rejected", "{detail}");
    assert!(detail.contains("hopeless after 8 tokens"), "{detail}");
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    let entry = entries(&house).await.remove(0);
    let draft = entry.attempts.iter().find(|attempt| attempt.model == "one").unwrap();
    assert_eq!((draft.status.as_str(), draft.error.as_str()), ("declined", "draft_rejected"));
    let used = draft.usage.unwrap();
    assert!(used.output_tokens >= 8 && used.output_tokens < 5_000 && used.input_tokens > 0, "{used:?}");
    assert!(draft.latency_ms > 0.0 && entry.latency_ms >= draft.latency_ms);
    house.close().await;
}

/// What a stream tells: routes and reasons of decisions, and texts, in order.
async fn streamed(house: &mut House, prompt: &str) -> Vec<String> {
    let request = v1::StreamCompleteRequest { ask: Some(sluice_proto::client::ask(prompt)) };
    let mut events = house.client.gateway.stream_complete(request).await.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        match event.event.unwrap() {
            v1::stream_complete_response::Event::Started(started) => {
                told.push(started.decision.unwrap().reason.unwrap().code);
            }
            v1::stream_complete_response::Event::Delta(delta) => match delta.kind {
                Some(v1::delta::Kind::Text(text)) => told.push(format!("text {text}")),
                other => panic!("{other:?}"),
            },
            v1::stream_complete_response::Event::Finished(finished) => {
                told.push(finished.decision.unwrap().reason.unwrap().code);
            }
            v1::stream_complete_response::Event::Rerouted(rerouted) => {
                told.push(rerouted.decision.unwrap().reason.unwrap().code);
            }
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_wants_safety_shows_nothing_before_the_verdict_and_one_that_wants_its_first_byte_has_no_draft() {
    let folder = suspicious("safety", 0.0);
    let mut house = self::house(folder.path()).await;
    let told = streamed(&mut house, "a").await;
    let text = told.iter().position(|told| told == "text yes").unwrap();
    let verdict = told.iter().position(|told| told == "draft_accepted").unwrap();
    assert!(verdict < text && told[0] == "draft", "{told:?}");
    house.close().await;

    let folder = suspicious("safety", 1.0);
    let mut house = self::house(folder.path()).await;
    let told = streamed(&mut house, "a").await;
    assert!(
        told.iter().any(|told| told == "draft_rejected") && !told.iter().any(|told| told == "text yes"),
        "{told:?}"
    );
    house.close().await;

    let folder = suspicious("first-byte", 0.0);
    let mut house = self::house(folder.path()).await;
    let told = streamed(&mut house, "a").await;
    assert!(told[0] != "draft" && !told.iter().any(|told| told.starts_with("draft")), "{told:?}");
    house.close().await;
}

/// Recorded drafts of `one`, of which those that another sample agrees with are mostly right.
fn drafts() -> String {
    let row = |index: usize| {
        let (agrees, lucky) = (index.is_multiple_of(2), index % 13 == 5);
        let other = if agrees { "yes" } else { "no" };
        let quality = u8::from(agrees != lucky);
        format!(
            "{{\"id\":\"{index}\",\"source\":\"made\",\"prompt\":\"question {index}\",\"weak_model\":\"one\",\
             \"weak_quality\":{quality},\"cluster\":\"{index}\",\"draft\":{{\"text\":\"Yes.\",\"logprobs\":[-0.1,-0.{}],\
             \"second\":{{\"by\":\"sample\",\"text\":\"{other}\"}}}}}}\n",
            1 + index % 7
        )
    };
    (0..3_000).map(row).collect()
}

#[test]
fn a_judge_is_trained_for_what_its_policy_asks() {
    let folder = policies("sample", UNDECIDED, "");
    let file = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(file("drafts.jsonl"), drafts()).unwrap();
    let alone = policy("sample", "").replace("second = \"sample\"", "enabled = true").replace("asking", "alone");
    std::fs::write(file("alone.toml"), &alone).unwrap();
    let train = |policies: &[&str]| {
        let policies: Vec<String> = policies.iter().map(|name| file(name)).collect();
        let drafts = file("drafts.jsonl");
        let words = ["train", "judge", "--small", "one", "--drafts", &drafts, "--solve"];
        sluice(&words.into_iter().chain(policies.iter().map(String::as_str)).collect::<Vec<_>>())
    };
    let told = train(&["asking.toml", "alone.toml"]).unwrap();
    assert!(told.contains("and second opinions of sample, AUC 0.9"), "{told}");
    assert!(told.contains("sample: asked about "), "{told}");
    let of = |name: &str| JudgeFile::parse(&std::fs::read_to_string(file(name)).unwrap()).unwrap();
    let (asking, alone) = (of("asking.judge.toml"), of("alone.judge.toml"));
    assert_ne!(asking.judge.version(), alone.judge.version());
    // Half of the drafts are right: whoever can't tell which may show a fifth of them, as a coin would.
    assert!(asking.certificate.threshold.is_some() && asking.certificate.local_share > 0.4, "{:?}", asking.certificate);
    assert!(alone.certificate.local_share < 0.25, "{:?}", alone.certificate);
    std::fs::write(file("asking.toml"), policy("two", "")).unwrap();
    let refused = train(&["asking.toml"]).unwrap_err();
    assert!(refused.contains("no second opinion of `two`") && refused.contains("--second two"), "{refused}");
}
