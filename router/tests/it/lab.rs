//! Training by the binary itself: killed in the middle, it goes on as if it had not been.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RECIPE: &str = r#"
name = "tiny"
seed = 1
[data]
licences = ["MIT"]
[network]
vocabulary = 264
width = 64
layers = 2
heads = 2
kv_heads = 1
feed_forward = 64
context = 48
rope_base = 10000.0
norm_epsilon = 1e-5
[training]
tokens = 60000
batch_tokens = 100
peak_rate = 1e-2
warm_up = 200
log_steps = 5
checkpoint_steps = 20
"#;

fn train(folder: &Path, run: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(["train", "model"]).arg(folder.join("recipe.toml")).arg("--data").arg(folder.join("corpus.jsonl"));
    command.arg("--folder").arg(folder.join(run)).env_clear().stdout(Stdio::null());
    command
}

/// The log without what the clock says.
fn log(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds");
        line.to_string()
    };
    text.lines().map(timeless).collect()
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_losses() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
    let line = |n: usize| {
        let (id, prompt, answer) = (n.to_string(), format!("buy {n} things"), ["yes", "no"][n % 2]);
        let row = serde_json::json!({ "id": id, "task": "spam", "licence": "MIT", "prompt": prompt, "answer": answer });
        format!("{row}\n")
    };
    std::fs::write(folder.path().join("corpus.jsonl"), (0..200).map(line).collect::<String>()).unwrap();
    assert!(train(folder.path(), "whole").status().unwrap().success());

    // The vocabulary is trained once: its merges of equal worth may come in any order.
    std::fs::create_dir(folder.path().join("broken")).unwrap();
    std::fs::copy(folder.path().join("whole/tokenizer.json"), folder.path().join("broken/tokenizer.json")).unwrap();
    let mut child = train(folder.path(), "broken").spawn().unwrap();
    let (state, started) = (folder.path().join("broken/state.json"), Instant::now());
    while !state.exists() && child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // That is SIGKILL.
    child.kill().unwrap();
    let ended = child.wait().unwrap();
    assert!(train(folder.path(), "broken").status().unwrap().success(), "after {ended}");
    let (broken, whole) = (folder.path().join("broken"), folder.path().join("whole"));
    assert!(log(&whole).len() > 50);
    assert_eq!(log(&broken), log(&whole));
    let model = |folder: &Path| std::fs::read(folder.join("model.gguf")).unwrap();
    assert!(model(&broken) == model(&whole), "the same weights");
}
