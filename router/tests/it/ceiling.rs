//! A ceiling on the mean cost of a request, through the whole gateway: solved from recorded traffic, held whatever comes,
//! also over a restart.

use crate::support::{House, complete};
use clap::Parser as _;
use router::cli::{Arguments, run};
use router::domain::{RecordLevel, TenantId};
use sluice_proto::v1;
use std::path::Path;

const MODELS: &str = "[models]\nsmall = [\"sluice-nano\"]\nlarge = [\"openai/gpt-4.1-mini\"]\n";
/// Nano-USD that a request earns.
const EARNED: i64 = 20_000;

fn write(folder: &Path) {
    // All remote, so that what each request costs there is recorded, whatever is drawn.
    let records = format!("name = \"records\"\n{MODELS}[objective]\ngoal = \"fixed-threshold\"\nthreshold = 1.0\n");
    std::fs::write(folder.join("records.toml"), records).unwrap();
    let most = format!(
        "name = \"most\"\n{MODELS}[objective]\ngoal = \"max-quality\"\nmax_cost = \"0.02 USD / 1k requests\"\n"
    );
    std::fs::write(folder.join("most.toml"), most).unwrap();
}

async fn house(policies: &Path, data: &Path) -> House {
    House::with(|settings| {
        settings.policies_dir = Some(policies.to_owned());
        settings.default_policy = "most".to_owned();
        settings.records.insert(TenantId::new("local"), RecordLevel::Text);
        settings.data_dir = data.to_owned();
    })
    .await
}

/// Every third prompt is a hard one; the others the bundled model answers with a label.
fn prompt(number: usize) -> String {
    match number % 3 {
        0 => format!("Prove that there are infinitely many primes of the form 4k + {number}."),
        _ => format!("Is this text message spam or ham? See you at the station at {number} past six."),
    }
}

fn ask(policy: &str, number: usize) -> v1::Ask {
    let limits = Some(v1::Limits { max_tokens: Some(16), ..v1::Limits::default() });
    v1::Ask { policy: policy.to_owned(), limits, ..sluice_proto::client::ask(prompt(number)) }
}

fn solve(policies: &Path, data: &Path) -> String {
    let policy = policies.join("most.toml");
    let words = ["sluice", "replay", "--solve", "--policy"].map(str::to_owned).into_iter();
    let paths = [&policy, &"--data-dir".into(), &data.to_owned()].map(|path| path.display().to_string());
    let arguments = Arguments::try_parse_from(words.chain(paths)).unwrap();
    // Verbs bring their own runtime.
    let thread = std::thread::spawn(move || {
        let mut out = Vec::new();
        run(arguments, &mut out).map_err(|error| format!("{error:#}")).map(|_| String::from_utf8(out).unwrap())
    });
    thread.join().unwrap().unwrap()
}

fn code(decision: &v1::Decision) -> String {
    decision.reason.clone().unwrap().code
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mean_cost_stays_under_the_ceiling_and_the_allowance_survives_a_restart() {
    let (policies, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(policies.path());
    let mut house = house(policies.path(), data.path()).await;
    for number in 0..90 {
        complete(&mut house.client, ask("records", number)).await.unwrap();
    }
    let answer = complete(&mut house.client, ask("most", 1)).await.unwrap();
    let decision = answer.finished.unwrap().decision.unwrap();
    assert_eq!((decision.route(), code(&decision).as_str()), (v1::Route::Local, "no_certificate"), "safe for money");

    let told = solve(policies.path(), data.path());
    assert!(told.contains("stay local") && told.contains("under the ceiling of 0.02 USD"), "{told}");
    assert!(house.app.services().registry.reload().unwrap());

    let before = house.simulator.total().nanos();
    // First a mixture, then hard ones only, for which there is not enough money.
    let numbers = (0..60).chain((60..120).map(|number| 3 * number));
    let mut codes = Vec::new();
    for (done, number) in numbers.enumerate() {
        match complete(&mut house.client, ask("most", number)).await {
            Ok(answer) => codes.push(code(&answer.finished.unwrap().decision.unwrap())),
            // A declined draft may only escalate if there is money for it.
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
                codes.push("refused".to_owned());
            }
        }
        let spent = house.simulator.total().nanos() - before;
        // One request came before these.
        assert!(spent <= EARNED * (done as i64 + 2), "{spent} for {} requests", done + 2);
    }
    let count = |wanted: &str| codes.iter().filter(|code| *code == wanted).count();
    assert!(count("score_below_threshold") > 10, "money was spent: {codes:?}");
    assert!(
        count("score_above_threshold") > 10 && count("cost_ceiling") + count("refused") > 10,
        "and kept: {codes:?}"
    );

    // Requests that cost nothing earn for those to come, over a restart too.
    for number in 0..30 {
        let asked = v1::Ask { placement: v1::Placement::LocalOnly.into(), ..ask("most", 3 * number + 1) };
        complete(&mut house.client, asked).await.unwrap();
    }
    let House { app, client, .. } = house;
    drop(client);
    app.shutdown().await;
    let mut house = self::house(policies.path(), data.path()).await;
    let answer = complete(&mut house.client, ask("most", 0)).await.unwrap();
    let decision = answer.finished.unwrap().decision.unwrap();
    assert_eq!((decision.route(), code(&decision).as_str()), (v1::Route::Remote, "score_below_threshold"));
    let House { app, client, .. } = house;
    drop(client);
    app.shutdown().await;
}
