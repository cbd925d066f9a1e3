use super::*;
use local_worker::testing::{END, Script};
use serde_json::{Value, json};

const CHAINS: Script<'static> = Script {
    chains: &[&["a", "yes", END], &["d", "HAND", "OFF", END]],
    decline: Some("HANDOFF"),
    context: 64,
    template: None,
    seed: None,
};

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("dense.gguf"), CHAINS.gguf()).unwrap();
        let rows = [("a", "yes"), ("2 a", "no"), ("d", "HANDOFF")];
        let line = |(prompt, answer): &(&str, &str)| {
            json!({ "id": *prompt, "task": "same_intent", "prompt": *prompt, "answer": *answer }).to_string() + "\n"
        };
        std::fs::write(folder.path().join("suite.jsonl"), rows.iter().map(line).collect::<String>()).unwrap();
        std::fs::write(folder.path().join("text.txt"), "a text, and more of it").unwrap();
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arguments(&self, from: &str, to: &str) -> QuantizeArguments {
        QuantizeArguments {
            model: self.file(from).display().to_string(),
            catalog: None,
            to: to.parse().unwrap(),
            calibrate: None,
            result: ResultArguments {
                out: self.file(&format!("{to}.gguf")),
                requantize: false,
                exam: ExamArguments {
                    suite: vec![self.file("suite.jsonl")],
                    limit: None,
                    max_tokens: 8,
                    choices: false,
                    perplexity: Some(self.file("text.txt")),
                    window: 64,
                    judge: None,
                    threads: 1,
                },
                json: true,
            },
        }
    }
}

/// The same with another result.
fn with(mut arguments: QuantizeArguments, change: impl FnOnce(&mut ResultArguments)) -> QuantizeArguments {
    change(&mut arguments.result);
    arguments
}

fn said(arguments: &QuantizeArguments) -> anyhow::Result<String> {
    let mut out = Vec::new();
    run(arguments, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn a_report_card_tells_both_sides() {
    let bench = Bench::new();
    let arguments = bench.arguments("dense.gguf", "q8_0");
    let card: Value = serde_json::from_str(&said(&arguments).unwrap()).unwrap();
    let (before, after) = (&card["before"], &card["after"]);
    assert_eq!((before["format"].clone(), after["format"].clone()), (json!("F32"), json!("Q8_0")));
    assert_eq!(after["bytes"], json!(std::fs::metadata(&arguments.result.out).unwrap().len()));
    // Eight bits and a half for thirty-two, and heads that stay as they are.
    for name in ["bytes_ratio", "resident_ratio"] {
        let ratio = card[name].as_f64().unwrap();
        assert!((0.25..0.4).contains(&ratio), "{name} {ratio}");
    }
    assert!(before["tokens_per_s"].as_f64().unwrap() > 0.0 && after["tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!((card["perplexity_ratio"].as_f64().unwrap() - 1.0).abs() < 0.05, "{card}");
    assert!(card["top1_agreement"].as_f64().unwrap() > 0.8, "{card}");
    assert_eq!((card["answers_changed"].clone(), card["macro_difference"].clone()), (json!(0.0), json!(0.0)));
    assert_eq!(card["routes_flipped"]["n"], json!(3));
    assert_eq!(card["routes_flipped"]["share"], json!(0.0));
    assert_eq!(after["tasks"][0]["handed_off"], json!(1));

    let words = said(&with(arguments, |result| result.json = false)).unwrap();
    assert!(
        words.contains("weights in memory") && words.contains("routing decisions that flip: 0.00 % of 3"),
        "{words}"
    );
}

#[test]
fn answers_may_be_held_to_labels() {
    let bench = Bench::new();
    let row = json!({ "id": "1", "task": "same_intent", "prompt": "a", "answer": "no", "labels": ["no"] });
    std::fs::write(bench.file("suite.jsonl"), row.to_string()).unwrap();
    let tasks = |choices: bool| {
        let arguments = with(bench.arguments("dense.gguf", "q8_0"), |result| result.exam.choices = choices);
        let card: Value = serde_json::from_str(&said(&arguments).unwrap()).unwrap();
        (card["choices"].clone(), card["before"]["tasks"][0]["value"].clone())
    };
    assert_eq!(tasks(true), (json!(true), json!(1.0)));
    // Left free, the model says "yes", whatever is asked for.
    assert_eq!(tasks(false), (json!(false), json!(0.0)));
}

#[test]
fn eight_bits_may_be_calibrated() {
    let bench = Bench::new();
    let plain = bench.arguments("dense.gguf", "int8");
    assert!(said(&plain).unwrap_err().to_string().contains("--calibrate FILE"));
    std::fs::write(bench.file("long.txt"), "some words to calibrate on, again and again; ".repeat(60)).unwrap();
    let calibrate = Some(bench.file("long.txt"));
    let card: Value =
        serde_json::from_str(&said(&QuantizeArguments { calibrate: calibrate.clone(), ..plain.clone() }).unwrap())
            .unwrap();
    assert_eq!((card["after"]["format"].clone(), card["calibration"]["groups"].clone()), (json!("Q8_0"), json!(4)));
    let short = QuantizeArguments { calibrate: Some(bench.file("text.txt")), ..plain };
    assert!(format!("{:#}", said(&short).unwrap_err()).contains("calibration text is too short"));
    let dense = QuantizeArguments { calibrate, ..bench.arguments("dense.gguf", "f16") };
    assert!(said(&dense).unwrap_err().to_string().contains("leave --calibrate out"));
}

#[test]
fn sources_that_are_quantised_or_the_result_itself_are_refused() {
    let bench = Bench::new();
    said(&bench.arguments("dense.gguf", "q8_0")).unwrap();
    let again = bench.arguments("q8_0.gguf", "q4_0");
    let refused = said(&again).unwrap_err().to_string();
    assert!(refused.contains("its weights are Q8_0 already") && !again.result.out.exists(), "{refused}");
    said(&with(again.clone(), |result| result.requantize = true)).unwrap();
    assert!(again.result.out.exists());
    let same = with(bench.arguments("dense.gguf", "q8_0"), |result| result.out = bench.file("dense.gguf"));
    let before = std::fs::read(bench.file("dense.gguf")).unwrap();
    assert!(said(&same).unwrap_err().to_string().contains("is the source itself"));
    assert_eq!(std::fs::read(bench.file("dense.gguf")).unwrap(), before);
    let nowhere = with(bench.arguments("dense.gguf", "q8_0"), |result| result.out = bench.file("nowhere/x.gguf"));
    assert!(said(&nowhere).unwrap_err().to_string().contains("nowhere/x.gguf"));
}
