//! A policy with a scorer of its own that reads long prompts: trained, checked, served, explained; and what holds for it.

use crate::support::House;
use clap::Parser as _;
use router::cli::{Arguments, run};
use router::score::PairScorer;
use sluice_proto::v1;
use std::fmt::Write as _;
use std::path::Path;

/// Outcomes of short and of long asks; what is asked for decides, wherever it stands.
fn outcomes() -> String {
    let mut text = String::new();
    for id in 0..600 {
        let good = id % 2 == 0;
        let ask = if good { "Is this message spam?" } else { "Prove the theorem." };
        let filling =
            "The train leaves the station at six and the tea is cold. ".repeat(if id % 4 < 2 { 0 } else { 5 });
        let prompt = format!("{filling}{ask} Number {}", id % 37);
        let _ = writeln!(
            text,
            "{{\"id\":\"{id}\",\"source\":\"made\",\"prompt\":\"{prompt}\",\"weak_model\":\"sluice-nano\",\"weak_quality\":{},\"cluster\":\"{id}\"}}",
            u8::from(good)
        );
    }
    text
}

fn policy(name: &str, scorer: &str) -> String {
    let shipped = include_str!("../../../policies/balanced.toml").replace("\"balanced\"", &format!("\"{name}\""));
    format!("scorer = \"{scorer}\"\n{shipped}")
}

fn sluice(arguments: &[&str]) -> Result<String, String> {
    let arguments = Arguments::try_parse_from(["sluice"].iter().chain(arguments)).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    let ran = run(arguments, &mut out).map_err(|error| format!("{error:#}"))?;
    let said = String::from_utf8(out).unwrap();
    if ran == std::process::ExitCode::SUCCESS { Ok(said) } else { Err(said) }
}

fn long_prompt() -> String {
    format!("{}Is this message spam? Number 3", "The train leaves the station at six and the tea is cold. ".repeat(5))
}

async fn explain(house: &mut House, prompt: &str) -> v1::ExplainResponse {
    let subject = Some(v1::explain_request::Subject::Ask(sluice_proto::client::ask(prompt)));
    house.client.gateway.explain(v1::ExplainRequest { subject }).await.unwrap().into_inner()
}

fn train(folder: &Path) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    std::fs::write(file("outcomes.jsonl"), outcomes()).unwrap();
    std::fs::write(file("models.toml"), include_str!("../../../policies/models.toml")).unwrap();
    std::fs::write(file("long.toml"), policy("long", "own.scorer")).unwrap();
    let train = |out: &str| {
        sluice(&[
            "train",
            "scorer",
            "--kind",
            "performer",
            "--from-tokens",
            "60",
            "--outcomes",
            &file("outcomes.jsonl"),
            "--out",
            &file(out),
            "--solve",
            &file("long.toml"),
        ])
    };
    let refused = train("other.scorer").unwrap_err();
    assert!(refused.contains("it is scored by own.scorer") && refused.contains("--out"), "{refused}");
    train("own.scorer").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_scored_by_its_own_encoder_and_its_certificate_holds_for_that_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let said = tokio::task::spawn_blocking(move || train(&path)).await.unwrap();
    assert!(said.contains("Performer encoder (64 random features a head) from 60 tokens on, n-grams below"), "{said}");
    assert!(said.contains("encoder, pass 1 of") && said.contains("scores from"), "{said}");
    let scorer = PairScorer::read(&folder.path().join("own.scorer")).unwrap();

    // What check says; also of what can't be.
    let checked = sluice(&["policy", "check", &file("long.toml")]).unwrap();
    assert!(
        checked.contains(&format!("scored by own.scorer, version {}: Performer encoder", scorer.version())),
        "{checked}"
    );
    for (name, why) in [("none.scorer", "none.scorer: "), ("models.toml", "no name of a scorer file")] {
        std::fs::write(file("bad.toml"), policy("bad", name)).unwrap();
        let refused = sluice(&["policy", "check", &file("bad.toml")]).unwrap_err();
        assert!(refused.contains("bad.toml:1:10") && refused.contains(why), "{refused}");
    }
    std::fs::write(file("damaged.scorer"), &scorer.to_bytes()[..1000]).unwrap();
    std::fs::write(file("bad.toml"), policy("bad", "damaged.scorer")).unwrap();
    let refused = sluice(&["policy", "check", &file("bad.toml")]).unwrap_err();
    assert!(refused.contains("damaged.scorer: scorer file is damaged"), "{refused}");
    std::fs::remove_file(file("bad.toml")).unwrap();

    // Beside it the same policy without a scorer of its own, and one whose certificate was made for the other's scorer.
    std::fs::write(file("plain.toml"), policy("plain", "own.scorer").replace("scorer = \"own.scorer\"\n", "")).unwrap();
    let solved = std::fs::read_to_string(file("long.solved.toml")).unwrap();
    std::fs::write(file("plain.solved.toml"), solved.replace("\"long\"", "\"plain\"")).unwrap();
    let policies = folder.path().to_owned();
    let mut house = House::with(|settings| {
        settings.policies_dir = Some(policies);
        settings.default_policy = "long".to_owned();
    })
    .await;
    let told = explain(&mut house, &long_prompt()).await;
    assert_eq!(told.certificate, "valid");
    let decision = told.decision.unwrap();
    assert_eq!(decision.scorer_version, scorer.version());
    assert_eq!(decision.route(), v1::Route::Local, "{decision:?}");
    let strongest = decision.reason.unwrap().strongest;
    assert!(
        strongest[0].starts_with("scored by a Performer encoder (64 random features a head) over "),
        "{strongest:?}"
    );
    let short = explain(&mut house, "Is this message spam? Number 3").await.decision.unwrap();
    assert_eq!(short.scorer_version, scorer.version(), "one scorer, one version");
    assert!(short.reason.unwrap().strongest.iter().all(|reason| !reason.contains("scored by")));
    let registry = house.app.services().registry.clone();
    let plain = registry.snapshot().policy(Some("plain")).unwrap();
    assert!(plain.filed().is_none() && plain.threshold().is_none(), "{:?}", plain.certificate());

    // Another scorer in the file's place: the certificate no longer speaks, everything is remote.
    PairScorer::bundled().unwrap().unwrap().write(&folder.path().join("own.scorer")).unwrap();
    assert!(registry.reload().unwrap());
    let told = explain(&mut house, &long_prompt()).await;
    assert!(told.certificate.contains("scorer"), "{}", told.certificate);
    assert_eq!(told.decision.unwrap().route(), v1::Route::Remote);
    // None at all: the last good policies stay in force, and it is said why.
    std::fs::remove_file(file("own.scorer")).unwrap();
    let why = registry.reload().unwrap_err().to_string();
    assert!(why.contains("long.toml:1:10") && why.contains("own.scorer"), "{why}");
    assert!(registry.snapshot().policy(None).unwrap().filed().is_some());
    house.close().await;
}

#[test]
fn what_can_not_be_trained_or_measured_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none").display().to_string();
    let here = folder.path().display().to_string();
    for (arguments, why) in [
        (&["train", "scorer", "--kind", "transformer", "--outcomes", "x", "--out", "y"][..], "performer"),
        (&["train", "scorer", "--from-tokens", "9", "--outcomes", "x", "--out", "y"], "add --kind performer"),
        (&["eval", "performer"], "--train"),
        (&["eval", "performer", "--train", &missing], "none"),
        (&["eval", "performer", "--train", &here], "holds no outcomes"),
        (&["eval", "performer", "--speed-only", "--lengths", "9000"], "not within 1 and 8192"),
        (&["eval", "performer", "--speed-only", "--train", &here], "cannot be used with"),
    ] {
        let refused = sluice(arguments).unwrap_err();
        assert!(refused.contains(why), "{arguments:?}: {refused}");
    }
}
