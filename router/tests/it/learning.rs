//! Learning while serving: from no scorer and no certificate to both, by nothing but traffic; kept over a restart; never on
//! too little evidence, and never by feedback.

use crate::support::{EASY_ANSWER, House, complete, easy, sluice};
use router::domain::{RecordLevel, TenantId};
use router::learn::Status;
use router::settings::Settings;
use sluice_proto::v1;
use std::path::Path;

/// The shipped catalog, in which the bundled model has a name that no scorer knows, and one policy.
fn policies(learn: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let catalog = include_str!("../../../policies/models.toml").replace("\"sluice-nano\"", "\"cold\"");
    std::fs::write(folder.path().join("models.toml"), catalog).unwrap();
    let text = format!(
        "name = \"learning\"\n[models]\nsmall = [\"cold\"]\nlarge = [\"openai/gpt-4.1-mini\"]\n[objective]\n\
         goal = \"min-cost\"\nquality_target = 0.7\nconfidence = 0.8\n[shadow]\nshare = 1.0\ndaily = \"1 USD\"\n\
         compare = \"exact\"\n[learn]\nfirst = {learn}\nevery = \"1h\"\n"
    );
    std::fs::write(folder.path().join("learning.toml"), text).unwrap();
    folder
}

fn settings(folder: &Path, data: &Path, level: RecordLevel) -> impl FnOnce(&mut Settings) {
    let (folder, data) = (folder.to_owned(), data.to_owned());
    move |settings| {
        settings.policies_dir = Some(folder);
        settings.data_dir = data;
        settings.default_policy = "learning".to_owned();
        settings.records.insert(TenantId::new("local"), level);
    }
}

/// Two of three are questions that the bundled model answers right, the others it declines.
fn question(number: usize) -> String {
    match number % 3 {
        2 => format!("Prove that there is a prime number above {number} and explain each step."),
        _ => easy(number),
    }
}

fn questions(count: usize) -> Vec<String> {
    (0..count).map(question).collect()
}

/// Asks and waits until the comparison is done.
async fn ask(house: &House, prompt: &str) -> v1::CompleteResponse {
    let mut ask = sluice_proto::client::ask(prompt);
    ask.limits = Some(v1::Limits { max_tokens: Some(8), ..v1::Limits::default() });
    let answer = complete(&mut house.client.clone(), ask).await.unwrap();
    house.app.services().gateway.at_rest().await;
    answer
}

async fn route(house: &House, prompt: &str) -> (v1::Route, String) {
    let decision = ask(house, prompt).await.finished.unwrap().decision.unwrap();
    (decision.route(), decision.reason.unwrap().code)
}

/// Of eight questions that the bundled model answers.
async fn easy_ones_served_locally(house: &House) -> usize {
    let mut local = 0;
    for number in (90..114).step_by(3) {
        local += usize::from(route(house, &question(number)).await.0 == v1::Route::Local);
    }
    local
}

async fn looked(house: &House) -> Status {
    let learning = house.app.services().gateway.learning();
    learning.look().await;
    learning.status("learning").unwrap()
}

async fn certificate(house: &House) -> String {
    let listed = house.client.clone().policy.list(v1::ListRequest::default()).await.unwrap().into_inner();
    listed.policies[0].certificate.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_a_certificate_that_outlives_the_process() {
    const ASKED: usize = 90;
    let (folder, data) = (policies("40"), tempfile::tempdir().unwrap());
    let questions = questions(ASKED + 30);
    let answers: Vec<(&str, &str)> = questions.iter().map(|question| (question.as_str(), EASY_ANSWER)).collect();
    let change = || settings(folder.path(), data.path(), RecordLevel::Text);
    let house = House::knowing(&answers, change()).await;
    let mut scorers = Vec::new();
    for (number, question) in questions.iter().take(ASKED).enumerate() {
        let (route, code) = route(&house, question).await;
        if number < 40 {
            assert_eq!((route, code.as_str()), (v1::Route::Remote, "no_certificate"), "it starts cold");
        }
        if number % 10 == 9 {
            let status = looked(&house).await;
            assert_eq!(status.counts.fit + status.counts.evidence, number as u64 + 1, "each outcome counts once");
            scorers.extend(status.scorer);
        }
    }
    scorers.dedup();
    assert!(!scorers.is_empty(), "a scorer was fitted");
    let status = looked(&house).await;
    assert!(status.threshold.is_some() && (0.4..0.9).contains(&status.local_share), "{status:?}");
    let told = certificate(&house).await;
    assert!(told.starts_with("valid; learnt from 90 outcomes"), "{told}");
    let address = house.app.url();
    let listed = tokio::task::spawn_blocking(move || sluice(&["policy", "list", "--address", &address])).await.unwrap();
    assert!(listed.unwrap().contains("default: local from score"));
    // Questions it has not seen: what it is good at stays, the others go.
    let mut local = 0;
    for question in &questions[ASKED..] {
        let (route, _) = route(&house, question).await;
        local += usize::from(route == v1::Route::Local);
        assert!(route != v1::Route::Local || question.starts_with("category?"), "{question}");
    }
    assert!(local >= 12, "{local} of the 20 easy ones");
    let metrics = reqwest::get(format!("{}/metrics", house.app.url())).await.unwrap().text().await.unwrap();
    assert!(metrics.lines().any(|line| line.starts_with("sluice_learn_local_share") && !line.ends_with(" 0")));
    let before = looked(&house).await;
    house.close().await;

    // The user's folder is as it was; the certificate is in force from the first request after a restart.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    let house = House::knowing(&answers, change()).await;
    assert_eq!(house.app.services().gateway.learning().status("learning").unwrap(), before);
    assert!(easy_ones_served_locally(&house).await > 0);
    let page = reqwest::get(format!("{}/api/policies", house.app.url())).await.unwrap().text().await.unwrap();
    assert!(page.contains("learnt from 120 outcomes"), "{page}");

    // Another text of the policy: the certificate no longer speaks for it, and is solved again from the same outcomes.
    let file = folder.path().join("learning.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("description = \"changed\"\n{text}")).unwrap();
    assert!(house.app.services().registry.reload().unwrap());
    assert_eq!(route(&house, &question(3_003)).await, (v1::Route::Remote, "no_certificate".to_owned()));
    let again = looked(&house).await;
    assert!(again.starts > before.starts && again.threshold.is_some(), "{again:?}");
    assert!(easy_ones_served_locally(&house).await > 0);
    // Its simulator's bill begins after the restart, the ledger's does not.
    drop(house);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_little_evidence_stays_remote_and_says_how_much_is_missing() {
    let (folder, data) = (policies("40"), tempfile::tempdir().unwrap());
    let questions = questions(66);
    // The small model is right once in three times: that can't be promised.
    let answers: Vec<(&str, &str)> = questions
        .iter()
        .enumerate()
        .map(|(number, question)| (question.as_str(), if number % 3 == 0 { EASY_ANSWER } else { "something else" }))
        .collect();
    let house = House::knowing(&answers, settings(folder.path(), data.path(), RecordLevel::Text)).await;
    assert!(certificate(&house).await.contains("learning: all remote after 0 outcomes, about 4"), "before any");
    for question in &questions[..20] {
        let answer = ask(&house, question).await;
        // Praise is no evidence.
        let source = v1::FeedbackSource::User.into();
        let feedback = v1::SubmitFeedbackRequest { entry_id: answer.request_id, source, value: Some(1.0) };
        house.client.clone().gateway.submit_feedback(feedback).await.unwrap();
    }
    let status = looked(&house).await;
    assert_eq!((status.scorer.clone(), status.counts.fit + status.counts.evidence), (None, 20));
    assert!((18..60).contains(&status.needed.unwrap()), "{status:?}");
    assert!(certificate(&house).await.contains("more are needed"));
    for question in &questions[20..] {
        assert_eq!(route(&house, question).await.0, v1::Route::Remote);
    }
    let status = looked(&house).await;
    assert!(status.scorer.is_some() && status.threshold.is_none(), "{status:?}");
    let told = certificate(&house).await;
    assert!(told.contains("learning: all remote after 66 outcomes"), "{told}");
    assert_eq!(route(&house, &question(0)).await, (v1::Route::Remote, "no_certificate".to_owned()));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_text_is_not_recorded_is_not_learnt_from() {
    let (folder, data) = (policies("40"), tempfile::tempdir().unwrap());
    let questions = questions(12);
    let answers: Vec<(&str, &str)> = questions.iter().map(|question| (question.as_str(), EASY_ANSWER)).collect();
    let house = House::knowing(&answers, settings(folder.path(), data.path(), RecordLevel::Features)).await;
    for question in &questions {
        assert_eq!(route(&house, question).await.0, v1::Route::Remote);
    }
    let counts = looked(&house).await.counts;
    assert_eq!((counts.fit, counts.evidence, counts.unusable), (0, 0, 12));
    house.close().await;
}

/// What the small model is given for a question.
fn score(answer: &v1::CompleteResponse) -> f64 {
    let decision = answer.finished.as_ref().unwrap().decision.as_ref().unwrap();
    decision.candidates.iter().find_map(|candidate| candidate.score).unwrap()
}

/// A reader's word counts from the next question on, for its tenant, where the text was recorded.
#[tokio::test(flavor = "multi_thread")]
async fn feedback_moves_the_next_score_where_text_is_recorded() {
    for (level, moves) in [(RecordLevel::Text, true), (RecordLevel::Features, false)] {
        let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let policy = "name = \"learning\"\n[models]\nsmall = [\"sluice-nano\"]\nlarge = [\"openai/gpt-4.1-mini\"]\n\
                      [objective]\ngoal = \"fixed-threshold\"\nthreshold = 0.0\n[escalate]\nenabled = false\n";
        std::fs::write(folder.path().join("learning.toml"), policy).unwrap();
        let house = House::knowing(&[], settings(folder.path(), data.path(), level)).await;
        let before = score(&ask(&house, &question(0)).await);
        for number in (0..36).step_by(3) {
            let entry_id = ask(&house, &question(number)).await.request_id;
            let source = v1::FeedbackSource::User.into();
            let feedback = v1::SubmitFeedbackRequest { entry_id, source, value: Some(0.0) };
            // Saying it again changes nothing.
            for expected in [v1::FeedbackOutcome::Recorded, v1::FeedbackOutcome::Unchanged] {
                let heard = house.client.clone().gateway.submit_feedback(feedback.clone()).await.unwrap().into_inner();
                assert_eq!(heard.outcome(), expected);
            }
        }
        let after = score(&ask(&house, &question(0)).await);
        assert_eq!(after < 0.8 * before, moves, "{level:?}: {before} {after}");
        assert!(moves || after == before, "{before} {after}");
        house.close().await;
    }
}
