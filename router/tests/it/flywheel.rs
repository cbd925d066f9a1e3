//! From recorded traffic to a small model of one's own: what may be taken out of the ledger, and what is left where it is.

use crate::support::{EASY_ANSWER, House, certificate, complete, easy, guarded_with, remote, sluice};
use router::domain::{RecordLevel, TenantId};
use router::ledger::OutcomeFilter;
use router::score::PairScorer;
use router::settings::Settings;
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The bundled model, trained on for two steps.
const RECIPE: &str = "name = \"student\"\nseed = 1\n[data]\nlicences = [\"tenant\"]\nlong_records = \"skip\"\n[training]\n\
                      tokens = 400\nbatch_tokens = 200\npeak_rate = 1e-5\nwarm_up = 100\ncheckpoint_steps = 1\n";

/// The same, which says what it starts from.
fn starting(folder: &Path) -> String {
    std::fs::write(folder.join("nano.gguf"), local_worker::model::SLUICE_NANO.unwrap()).unwrap();
    format!("{RECIPE}[start]\nmodel = \"nano.gguf\"\n")
}

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
    let recipe = starting(folder.path());
    std::fs::write(file("recipe.toml"), &recipe).unwrap();
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
    // The space keeps it out of the cache.
    ask(&house, remote("Twice? ")).await;
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
    let again = distill("text", "run", &["--feedback-above", "0.5"]).unwrap();
    assert!(again.contains("taken before"), "a run that goes on learns the same: {again}");
    let error = distill("text", "run", &[]).unwrap_err();
    assert!(error.contains("holds a run with notes.ledger.feedback_above 0.5 in place of null"), "{error}");
    assert!(distill("nowhere", "other", &[]).unwrap_err().contains("--from-ledger: there is no folder"));

    // Whose recordings are forgotten teaches nobody any more, and who recorded no text never did.
    let error = distill("text", "other", &["--tenant", "nobody"]).unwrap_err();
    assert!(error.contains("no request was recorded with its text, of 0"), "{error}");
    let error = distill("text", "other", &["--feedback-above", "7"]).unwrap_err();
    assert!(error.contains("--feedback-above must be from 0 to 1"), "{error}");
    std::fs::write(file("recipe.toml"), recipe.replace("\"tenant\"", "\"MIT\"")).unwrap();
    let error = distill("text", "third", &[]).unwrap_err();
    assert!(error.contains("transcripts.jsonl:1: licence: `tenant`"), "{error}");
    std::fs::write(file("recipe.toml"), &recipe).unwrap();
    let error = distill("text", "third", &["--tenant", "nobody"]).unwrap_err();
    assert!(error.contains("no request was recorded"), "what a refused start took is not another's: {error}");
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
    std::fs::write(&recipe, starting(folder.path())).unwrap();
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

/// A policy that keeps everything local by a certificate, and lets a candidate take the small model's place.
fn policies(gate: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "name = \"turning\"\n[models]\nsmall = [\"sluice-nano\"] # as shipped\nlarge = [\"openai/gpt-4.1-mini\"]\n\
         [objective]\ngoal = \"min-cost\"\nquality_target = 0.9\nconfidence = 0.9\n[shadow]\nshare = 1.0\n\
         daily = \"1 USD\"\ncompare = \"exact\"\n{gate}"
    );
    std::fs::write(folder.path().join("turning.toml"), &text).unwrap();
    std::fs::write(folder.path().join("models.toml"), include_str!("../../../policies/models.toml")).unwrap();
    let scorer = PairScorer::bundled().unwrap().unwrap();
    let certificate = certificate("turning", &text, scorer.version(), Some(0.0));
    std::fs::write(folder.path().join("turning.solved.toml"), certificate.to_toml().unwrap()).unwrap();
    folder
}

const GATE: &str = "[flywheel]\ngraded = 20\nconfidence = 0.8\nmargin = 0.3\nmax_slower = 1000\n";

/// What is learnt from, and what is asked while the candidate is tried.
const RECORDED: usize = 30;
const ASKED: usize = 28;

/// A gateway with that policy, whose large model has answered what is learnt from.
async fn recorded(policies: &Path, data: &Path) -> House {
    let questions: Vec<String> = (0..RECORDED + ASKED + 10).map(easy).collect();
    let answers: Vec<(&str, &str)> = questions.iter().map(|question| (question.as_str(), EASY_ANSWER)).collect();
    let policies = policies.to_owned();
    let keeping = keeping(data, RecordLevel::Text);
    let change = |settings: &mut Settings| {
        keeping(settings);
        settings.policies_dir = Some(policies);
        settings.default_policy = "turning".to_owned();
    };
    let house = House::knowing(&answers, change).await;
    for question in &questions[..RECORDED] {
        ask(&house, remote(question)).await;
    }
    house.app.services().gateway.at_rest().await;
    // Another process reads the store, which takes the journal's entries in batches.
    house.app.services().ledger.flush().await;
    house
}

fn recipe(folder: &Path) -> PathBuf {
    let file = folder.join("student.toml");
    std::fs::write(&file, RECIPE).unwrap();
    file
}

fn turn(policies: &Path, data: &Path, run: &Path, recipe: &Path) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let words = [("--policies-dir", policies), ("--data-dir", data), ("--folder", run), ("--recipe", recipe)];
    let mut turn = vec!["flywheel".to_owned(), "--policy".to_owned(), "turning".to_owned()];
    turn.extend(words.into_iter().flat_map(|(name, value)| [name.to_owned(), path(value)]));
    turn
}

async fn called(words: &[String]) -> Result<String, String> {
    let words = words.to_vec();
    let call = move || sluice(&words.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(call).await.unwrap()
}

fn run_of(folder: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("flywheel.json")).unwrap()).unwrap()
}

/// Waits for a model that the policies name by now.
async fn loaded(house: &House, model: &str) {
    for _ in 0..600 {
        if house.app.workers().iter().any(|(id, _)| id.as_str() == model) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{model} was not loaded");
}

/// Which model is chosen for a question, and why.
async fn decided(house: &House, number: usize) -> (String, String) {
    let answer = complete(&mut house.client.clone(), sluice_proto::client::ask(easy(number))).await.unwrap();
    house.app.services().gateway.at_rest().await;
    let decision = answer.finished.unwrap().decision.unwrap();
    (decision.model, decision.reason.unwrap().code)
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_traffic_becomes_a_model_that_is_tried_promoted_and_taken_back() {
    let (folder, kept) = (policies(GATE), tempfile::tempdir().unwrap());
    let (file, data, run) = (folder.path().join("turning.toml"), kept.path().join("data"), kept.path().join("run"));
    let before = std::fs::read_to_string(&file).unwrap();
    let house = recorded(folder.path(), &data).await;
    let words = turn(folder.path(), &data, &run, &recipe(run.parent().unwrap()));
    let said = called(&words).await.unwrap();
    for part in
        ["30 answers of large models taken", "compressed to Q8_0", "measured: macro average", "tried: ", "shadowing"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let candidate = run_of(&run)["tried"]["model"].as_str().unwrap().to_owned();
    assert!(candidate.starts_with("sluice-nano~"), "{candidate}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before, "what is promised stays as it is");

    // The gateway takes it in, and shows it to nobody.
    assert!(house.app.services().registry.reload().unwrap());
    loaded(&house, &candidate).await;
    for number in RECORDED..RECORDED + ASKED {
        let (model, code) = decided(&house, number).await;
        assert_eq!((model.as_str(), code.as_str()), ("sluice-nano", "score_above_threshold"));
        if number == RECORDED {
            let said = called(&words).await.unwrap();
            assert!(said.contains("more graded shadow answers are needed"), "{said}");
        }
    }
    let ledger = &house.app.services().ledger;
    let of = |candidates| OutcomeFilter { candidates, ..OutcomeFilter::default() };
    let (serving, tried) = (ledger.outcomes(&of(false)).await.unwrap(), ledger.outcomes(&of(true)).await.unwrap());
    assert_eq!((serving.len(), tried.len()), (ASKED, ASKED));
    assert!(tried.iter().all(|outcome| outcome.small.as_str() == candidate && outcome.candidate));
    assert_eq!(ledger.outcomes_after(0, 1_000).await.unwrap().len(), ASKED, "nothing is learnt of a candidate");

    // Weights that are not those that were tried serve nobody.
    let made = PathBuf::from(run_of(&run)["candidate"]["model"]["file"].as_str().unwrap());
    let aside = made.with_extension("aside");
    std::fs::rename(&made, &aside).unwrap();
    std::fs::write(&made, "GGUF").unwrap();
    let error = called(&words).await.unwrap_err();
    assert!(error.contains("candidate.gguf") && error.contains("not what the run wrote down"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    std::fs::rename(&aside, &made).unwrap();

    let said = called(&words).await.unwrap();
    assert!(said.contains(&format!("promoted: {candidate} in the place of sluice-nano")), "{said}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, before.replace("\"sluice-nano\"", &format!("\"{candidate}\"")));
    assert!(house.app.services().registry.reload().unwrap());
    let certificate = |list: v1::ListResponse| list.policies[0].certificate.clone();
    let listed = async || house.client.clone().policy.list(v1::ListRequest::default()).await.unwrap().into_inner();
    assert!(certificate(listed().await).contains("solve it again"), "what was proven of the old model ended");
    let number = RECORDED + ASKED;
    assert_eq!(decided(&house, number).await, ("openai/gpt-4.1-mini".to_owned(), "no_certificate".to_owned()));
    let asked = complete(&mut house.client.clone(), crate::support::local(&easy(number))).await.unwrap();
    assert_eq!(asked.finished.unwrap().decision.unwrap().model, candidate);
    assert!(called(&words).await.unwrap().contains("promoted: "), "called again it does nothing");

    let back = ["flywheel", "rollback", "--folder"].map(str::to_owned).into_iter();
    let back: Vec<String> = back.chain([run.display().to_string()]).collect();
    assert!(called(&back).await.unwrap().contains("sluice-nano serves again"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    assert!(house.app.services().registry.reload().unwrap());
    loaded(&house, "sluice-nano").await;
    assert_eq!(decided(&house, number + 1).await, ("sluice-nano".to_owned(), "score_above_threshold".to_owned()));
    let catalog = std::fs::read_to_string(folder.path().join("models.toml")).unwrap();
    assert!(!catalog.contains(&candidate) && !folder.path().join("turning.candidate.toml").exists());
    assert!(called(&back).await.unwrap().contains("nothing to take back: the run is rolled back"));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_killed_after_each_step_comes_to_the_same_candidate() {
    let (folder, other, data) = (policies(GATE), policies(GATE), tempfile::tempdir().unwrap());
    let (whole, broken) = (data.path().join("whole"), data.path().join("broken"));
    let (recipe, data) = (recipe(data.path()), data.path().join("data"));
    recorded(folder.path(), &data).await.close().await;
    called(&turn(folder.path(), &data, &whole, &recipe)).await.unwrap();

    let words = turn(other.path(), &data, &broken, &recipe);
    let state = broken.join("flywheel.json");
    let steps = |run: &serde_json::Value| {
        ["corpus", "student", "candidate", "card", "tried"].iter().filter(|step| !run[**step].is_null()).count()
    };
    let mut kills = 0;
    for _ in 0..20 {
        let before = if state.exists() { steps(&run_of(&broken)) } else { 0 };
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        let mut child = command.args(&words).env_clear().stdout(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(120) {
            if state.exists() && steps(&run_of(&broken)) > before {
                kills += 1;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // That is SIGKILL, unless it was done.
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        if ended.success() && run_of(&broken)["stage"] == "shadowing" {
            break;
        }
    }
    assert!(kills >= 3, "{kills}");
    let (one, two) = (run_of(&whole), run_of(&broken));
    assert_eq!((&two["stage"], &two["tried"]["model"]), (&serde_json::json!("shadowing"), &one["tried"]["model"]));
    assert_eq!(two["candidate"]["model"]["blake3"], one["candidate"]["model"]["blake3"], "the same weights");

    // A folder of another run, or one whose files were changed, is told.
    let mut changed = words.clone();
    changed.extend(["--tenant", "acme"].map(str::to_owned));
    let error = called(&changed).await.unwrap_err();
    assert!(error.contains("holds another run") && error.contains("tenant"), "{error}");
    // A trial that is not over can be taken back too.
    let back = ["flywheel", "rollback", "--folder", broken.to_str().unwrap()].map(str::to_owned);
    assert!(called(&back).await.unwrap().contains("rolled back"));
    assert!(!other.path().join("turning.candidate.toml").exists());
    let error = called(&["flywheel", "rollback", "--folder", "/nowhere"].map(str::to_owned)).await.unwrap_err();
    assert!(error.contains("holds no run"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_turn_says_why() {
    let data = tempfile::tempdir().unwrap();
    let (recipe, run) = (recipe(data.path()), data.path().join("run"));
    let ungated = policies("");
    let data = data.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let error = called(&turn(ungated.path(), &data, &run, &recipe)).await.unwrap_err();
    assert!(error.contains("policy `turning`") && error.contains("add [flywheel]"), "{error}");
    let gated = policies(GATE);
    let error = called(&turn(gated.path(), &data, &run, &recipe)).await.unwrap_err();
    assert!(error.contains("ledger.sqlite"), "{error}");
    let house = House::with(keeping(&data, RecordLevel::None)).await;
    ask(&house, remote("Hello?")).await;
    house.close().await;
    let error = called(&turn(gated.path(), &data, &run, &recipe)).await.unwrap_err();
    assert!(error.contains("no request was recorded with its text, of 1"), "{error}");
    assert_eq!(run_of(&run)["stage"], "preparing", "it can go on once there is something to learn");
    let wrong = gated.path().join("none");
    let error = called(&turn(&wrong, &data, &run, &recipe)).await.unwrap_err();
    assert!(error.contains("none"), "{error}");
}
