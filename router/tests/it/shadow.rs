//! Shadow runs: the other side is asked at the stated share, within a budget, booked apart, and never where it must not be.

use crate::support::{EASY_ANSWER, House, certificate, complete, easy, local, sluice};
use router::domain::{NanoUsd, RecordLevel, RequestId, TenantId};
use router::evidence::certificate::Certificate;
use router::evidence::grading::sampled;
use router::evidence::outcome::OutcomeSource;
use router::ledger::{GradedOutcome, OutcomeFilter};
use router::score::PairScorer;
use router::settings::Settings;
use sluice_proto::v1;
use std::path::Path;
use std::time::Duration;

/// A policy that serves all (`0.0`) or none (`1.1` is out of range, so `1.0`) locally, with shadow runs as given.
fn policies(threshold: f64, shadow: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "name = \"watched\"\n[models]\nsmall = [\"sluice-nano\"]\nlarge = [\"openai/gpt-4.1-mini\"]\n\
         [objective]\ngoal = \"fixed-threshold\"\nthreshold = {threshold}\n[escalate]\nenabled = false\n[shadow]\n{shadow}\n"
    );
    std::fs::write(folder.path().join("watched.toml"), text).unwrap();
    folder
}

fn settings(folder: &Path, level: RecordLevel) -> impl FnOnce(&mut Settings) {
    let folder = folder.to_owned();
    move |settings| {
        settings.policies_dir = Some(folder);
        settings.default_policy = "watched".to_owned();
        settings.records.insert(TenantId::new("local"), level);
    }
}

async fn ask(house: &House, prompt: &str) -> v1::CompleteResponse {
    let mut ask = sluice_proto::client::ask(prompt);
    ask.limits = Some(v1::Limits { max_tokens: Some(8), ..v1::Limits::default() });
    complete(&mut house.client.clone(), ask).await.unwrap()
}

/// The outcomes once there are `count` of them.
async fn outcomes(house: &House, count: usize) -> Vec<GradedOutcome> {
    for _ in 0..500 {
        let found = house.app.services().ledger.outcomes(&OutcomeFilter::default()).await.unwrap();
        if found.len() >= count {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("there never were {count} outcomes")
}

/// Sums by route.
async fn usage(house: &House) -> Vec<v1::SummaryRow> {
    let request = v1::SummarizeRequest { group_by: v1::GroupBy::Route.into(), ..v1::SummarizeRequest::default() };
    house.client.clone().usage.summarize(request).await.unwrap().into_inner().rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_share_is_also_asked_of_the_large_model_and_booked_apart() {
    let folder = policies(0.0, "share = 0.4\ndaily = \"1 USD\"\ncompare = \"exact\"");
    let house =
        House::knowing(&[(easy(3).as_str(), EASY_ANSWER)], settings(folder.path(), RecordLevel::Features)).await;
    let mut expected = 0;
    for number in 0..40 {
        let answer = ask(&house, &easy(number)).await;
        let decision = answer.finished.unwrap().decision.unwrap();
        assert_eq!(decision.route(), v1::Route::Local);
        expected += usize::from(sampled(&answer.request_id, 0.4));
        outcomes(&house, expected).await;
    }
    let found = outcomes(&house, expected).await;
    assert_eq!(found.len(), expected, "just the sampled ones");
    assert!((5..30).contains(&expected), "{expected} of 40");
    for outcome in &found {
        assert!(outcome.local && outcome.sampling_probability == 0.4 && outcome.score.is_some());
        assert_eq!((outcome.graded_by, outcome.large_quality), (OutcomeSource::Metric, 1.0));
        assert_eq!((outcome.small.as_str(), outcome.large.as_str()), ("sluice-nano", "openai/gpt-4.1-mini"));
        let story = house.app.services().ledger.story(None, outcome.entry).await.unwrap();
        assert!(story.entry.shadow_of.is_none());
    }
    assert_eq!(house.simulator.requests().len(), expected);
    let rows = usage(&house).await;
    let [own, shadow] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((own.group.as_str(), own.requests, own.shadow_runs), ("local", 40, 0));
    assert!(own.cost.iter().all(|cost| cost.nano_usd == 0));
    assert_eq!((shadow.group.as_str(), shadow.requests, shadow.shadow_runs), ("shadow", 0, expected as i64));
    assert_eq!(NanoUsd::new(shadow.shadow_nano_usd), house.simulator.total());
    assert!(shadow.shadow_nano_usd > 0 && shadow.saved_nano_usd == -shadow.shadow_nano_usd, "{shadow:?}");
    let all = v1::ListEntriesRequest { page_size: 200, ..v1::ListEntriesRequest::default() };
    let listed = house.client.clone().usage.list_entries(all).await.unwrap().into_inner();
    let beside: Vec<&v1::Entry> = listed.entries.iter().filter(|entry| !entry.shadow_of.is_empty()).collect();
    assert_eq!(beside.len(), expected);
    let [attempt] = beside[0].attempts.as_slice() else { panic!("{:?}", beside[0]) };
    assert!(attempt.hold_nano_usd >= attempt.cost.unwrap().nano_usd && attempt.cost.unwrap().nano_usd > 0);
    assert!(RequestId::parse(&beside[0].shadow_of).is_some());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_days_budget_of_shadow_runs_holds_also_after_a_restart() {
    let folder = policies(0.0, "share = 1.0\ndaily = \"0.0001 USD\"\ncompare = \"exact\"");
    let data = tempfile::tempdir().unwrap();
    let change = |settings: &mut Settings| {
        settings.data_dir = data.path().join("kept");
        self::settings(folder.path(), RecordLevel::Text)(settings);
    };
    let house = House::with(change).await;
    let mut refused = false;
    for number in 0..30 {
        let before = house.simulator.requests().len();
        ask(&house, &easy(number)).await;
        // Each either comes to an outcome, or is refused for good.
        for _ in 0..300 {
            let text = reqwest::get(format!("{}/metrics", house.app.url())).await.unwrap().text().await.unwrap();
            refused |=
                text.lines().any(|line| line.starts_with("sluice_shadow_runs_total") && line.contains("\"budget\""));
            let ended: f64 = text
                .lines()
                .filter(|line| line.starts_with("sluice_shadow_runs_total"))
                .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
                .sum();
            if ended as usize > number {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!refused || house.simulator.requests().len() == before, "a refused run calls nobody");
        if refused {
            break;
        }
    }
    let spent = house.simulator.total();
    assert!(refused && spent > NanoUsd::ZERO && spent <= NanoUsd::new(100_000), "{spent} spent");
    house.close().await;
    let house = House::with(change).await;
    ask(&house, &easy(99)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(house.simulator.requests().is_empty(), "what was spent before is remembered");
    drop(house);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_large_model_serves_drafts_cost_nothing_upstream_and_a_model_judges() {
    let shadow = "share = 1.0\ndaily = \"1 USD\"\ncompare = \"judge\"\njudge = \"openai/gpt-4.1-mini\"";
    let folder = policies(1.0, shadow);
    let (same, other) = (easy(1), easy(2));
    let answers = [(same.as_str(), EASY_ANSWER), (other.as_str(), "No, surely not.")];
    let house = House::knowing(&answers, settings(folder.path(), RecordLevel::Features)).await;
    let answer = ask(&house, &same).await;
    assert_eq!(answer.finished.unwrap().decision.unwrap().route(), v1::Route::Remote);
    let found = outcomes(&house, 1).await;
    assert_eq!((found[0].small_quality, found[0].large_quality), (0.5, 0.5), "the same answer is a tie, unasked");
    assert_eq!(house.simulator.requests().len(), 1, "a draft is free, and so is a tie");

    ask(&house, &other).await;
    let found = outcomes(&house, 2).await;
    let other = found.iter().find(|outcome| outcome.small_quality != 0.5).unwrap();
    assert_eq!((other.small_quality, other.large_quality, other.local), (0.0, 1.0, false));
    assert_eq!(house.simulator.requests().len(), 4, "both orders");
    assert_eq!(other.graded_by, OutcomeSource::Judge);
    let rows = usage(&house).await;
    assert_eq!(rows.iter().find(|row| row.group == "shadow").unwrap().shadow_runs, 2);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_stay_local_or_leaves_no_record_has_no_shadow() {
    let shadow = "share = 1.0\ndaily = \"1 USD\"\ncompare = \"exact\"";
    for (level, ask_locally) in [(RecordLevel::None, false), (RecordLevel::Text, true)] {
        let folder = policies(0.0, shadow);
        let house = House::with(settings(folder.path(), level)).await;
        match ask_locally {
            true => drop(complete(&mut house.client.clone(), local(&easy(1))).await.unwrap()),
            false => drop(ask(&house, &easy(1)).await),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(house.simulator.requests().is_empty());
        assert!(outcomes(&house, 0).await.is_empty());
        house.close().await;
    }
}

/// A policy that keeps everything local by a certificate, and withdraws it when graded requests refute it.
fn certified(evidence: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = "name = \"watched\"\n[models]\nsmall = [\"sluice-nano\"]\nlarge = [\"openai/gpt-4.1-mini\"]\n[objective]\n\
                goal = \"min-cost\"\nquality_target = 0.9\nconfidence = 0.9\n[shadow]\nshare = 1.0\ndaily = \"1 USD\"\n\
                compare = \"exact\"\n[on_breach]\nquality = \"all-remote\"\n";
    std::fs::write(folder.path().join("watched.toml"), text).unwrap();
    certify(folder.path(), text, evidence);
    folder
}

fn certify(folder: &Path, policy: &str, evidence: &str) {
    let scorer = PairScorer::bundled().unwrap().unwrap();
    let certificate = Certificate {
        evidence_hash: evidence.to_owned(),
        ..certificate("watched", policy, scorer.version(), Some(0.0))
    };
    std::fs::write(folder.join("watched.solved.toml"), certificate.to_toml().unwrap()).unwrap();
}

async fn decided(house: &House, number: usize) -> (v1::Route, String) {
    let decision = ask(house, &easy(number)).await.finished.unwrap().decision.unwrap();
    (decision.route(), decision.reason.unwrap().code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_in_quality_withdraws_the_certificate_until_there_is_a_new_one() {
    const GOOD: usize = 12;
    let folder = certified("first");
    let data = tempfile::tempdir().unwrap();
    let change = |settings: &mut Settings| {
        settings.data_dir = data.path().join("kept");
        self::settings(folder.path(), RecordLevel::Features)(settings);
    };
    let questions: Vec<String> = (0..60).map(easy).collect();
    // Later the large model knows better than the small one.
    let answer = |number: usize| if number < GOOD { EASY_ANSWER } else { "spam" };
    let answers: Vec<(&str, &str)> =
        questions.iter().enumerate().map(|(number, question)| (question.as_str(), answer(number))).collect();
    let mut house = House::knowing(&answers, change).await;
    let mut withdrawn_at = None;
    for number in 0..60 {
        let (route, code) = decided(&house, number).await;
        if route == v1::Route::Remote {
            assert_eq!(code, "quality_breach");
            withdrawn_at = Some(number);
            break;
        }
        assert_eq!(code, "score_above_threshold");
        outcomes(&house, number + 1).await;
        // The outcome is in the ledger a moment before the checks have it.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let withdrawn_at = withdrawn_at.expect("it was withdrawn");
    assert!((GOOD + 2..GOOD + 25).contains(&withdrawn_at), "after {withdrawn_at}");
    let explained =
        v1::ExplainRequest { subject: Some(v1::explain_request::Subject::Ask(sluice_proto::client::ask(easy(50)))) };
    let explained = house.client.gateway.explain(explained).await.unwrap().into_inner();
    assert!(explained.certificate.starts_with("withdrawn by live checks: "), "{}", explained.certificate);
    assert_eq!(explained.decision.unwrap().reason.unwrap().code, "quality_breach");
    let page = reqwest::get(format!("{}/api/policies", house.app.url())).await.unwrap().text().await.unwrap();
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    let live = &page["policies"][0]["live"][0];
    assert_eq!((live["promised"].as_f64(), live["standing"].as_str()), (Some(0.9), Some("withdrawn")), "{page}");
    assert!(live["breaches"][0]["why"].as_str().unwrap().contains("refute the promise"));
    house.close().await;

    // A restart brings nothing back; a new certificate does.
    let house = House::knowing(&answers, change).await;
    assert_eq!(decided(&house, 51).await, (v1::Route::Remote, "quality_breach".to_owned()));
    let policy = std::fs::read_to_string(folder.path().join("watched.toml")).unwrap();
    certify(folder.path(), &policy, "second");
    assert!(house.app.services().registry.reload().unwrap());
    assert_eq!(decided(&house, 1).await, (v1::Route::Local, "score_above_threshold".to_owned()));
    drop(house);
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_of_the_ledger_tune_replay_and_train() {
    const ROWS: usize = 60;
    let folder = policies(0.0, "share = 1.0\ndaily = \"1 USD\"\ncompare = \"exact\"");
    let data = tempfile::tempdir().unwrap();
    let change = |settings: &mut Settings| {
        settings.data_dir = data.path().join("kept");
        self::settings(folder.path(), RecordLevel::Text)(settings);
    };
    let questions: Vec<String> = (0..ROWS).map(easy).collect();
    // Every third is told otherwise by the large model.
    let answer = |number: usize| if number.is_multiple_of(3) { "spam" } else { EASY_ANSWER };
    let answers: Vec<(&str, &str)> =
        questions.iter().enumerate().map(|(number, question)| (question.as_str(), answer(number))).collect();
    let house = House::knowing(&answers, change).await;
    for number in 0..ROWS {
        let id = ask(&house, &easy(number)).await.request_id;
        outcomes(&house, number + 1).await;
        if number < 5 {
            // Feedback on what was graded adds no second row.
            let source = v1::FeedbackSource::User.into();
            let feedback = v1::SubmitFeedbackRequest { entry_id: id, source, value: Some(1.0) };
            house.client.clone().gateway.submit_feedback(feedback).await.unwrap();
        }
    }
    house.close().await;
    let data = data.path().join("kept");
    let data = data.to_str().unwrap();

    let tuned = sluice(&["tune", "--from-ledger", data, "--target", "0.5", "--json"]).unwrap();
    let tuned: serde_json::Value = serde_json::from_str(&tuned).unwrap();
    assert_eq!((tuned["n"].as_u64(), tuned["realised"]["n"].as_u64().is_some()), (Some(47), true), "{tuned}");
    let notes = tuned["notes"].to_string();
    assert!(notes.contains("60 outcomes of") && notes.contains("0 more lack"), "{notes}");

    let dir = folder.path().to_str().unwrap();
    let replayed =
        sluice(&["replay", "--policy", "watched", "--policies-dir", dir, "--data-dir", data, "--json"]).unwrap();
    let replayed: serde_json::Value = serde_json::from_str(&replayed).unwrap();
    let figures = &replayed["policies"][0];
    assert_eq!(
        (figures["requests"].as_u64(), figures["graded"].as_u64()),
        (Some(60), Some(60)),
        "no shadow run is a request"
    );
    let quality = figures["quality"]["doubly_robust"]["bounds"]["value"].as_f64().unwrap();
    assert!((quality - 2.0 / 3.0).abs() < 0.01, "{quality}");

    let out = folder.path().join("own.scorer");
    let train =
        ["train", "scorer", "--from-ledger", data, "--tenant", "local", "--feedback", "--out", out.to_str().unwrap()];
    let said = sluice(&train).unwrap();
    assert!(said.contains("60 outcomes of") && said.contains("(0 of them feedback)"), "{said}");
    assert!(PairScorer::read(&out).is_ok());
    let error = sluice(&["train", "scorer", "--from-ledger", data, "--tenant", "nobody", "--out", "x"]).unwrap_err();
    assert!(error.contains("no outcomes to use"), "{error}");
}
