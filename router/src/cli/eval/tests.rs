use super::*;
use crate::cli::quantize::ExamArguments;
use local_worker::testing::{END, Script};

/// `a` is answered with `yes`, `d` declined, `j` gives JSON.
const CHAINS: Script<'static> = Script {
    chains: &[&["a", "yes", END], &["d", "HAND", "OFF", END], &["j", "{\"city\":", "\"Rome\"}", END]],
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
        std::fs::write(folder.path().join("model.gguf"), CHAINS.gguf()).unwrap();
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.file(name), text).unwrap();
        self.file(name)
    }

    fn arguments(&self, suite: &[PathBuf]) -> ModelArguments {
        ModelArguments {
            model: self.file("model.gguf").display().to_string(),
            catalog: None,
            suite: suite.to_vec(),
            limit: None,
            choices: false,
            max_tokens: 16,
            perplexity: None,
            answer_perplexity: false,
            window: 64,
            threads: 1,
            answers: None,
            drafts: drafts::DraftArguments::default(),
            json: true,
        }
    }
}

fn said(arguments: &ModelArguments) -> anyhow::Result<String> {
    let mut out = Vec::new();
    model(arguments, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn refusal(arguments: &ModelArguments) -> String {
    format!("{:#}", said(arguments).unwrap_err())
}

fn line(id: usize, task: &str, prompt: &str, answer: &str) -> String {
    let row = json!({ "id": id.to_string(), "task": task, "source": "s", "licence": "MIT", "prompt": prompt, "answer": answer });
    format!("{row}\n")
}

fn lines() -> String {
    let rows = [
        ("same_intent", "1 a", "yes"),
        ("same_intent", "2 a", "no"),
        ("handoff", "d", "HANDOFF"),
        ("slots_json", "j", r#"{"city":"rome","date":null}"#),
        ("topic", &"x".repeat(90), "y"),
    ];
    rows.iter().enumerate().map(|(id, (task, prompt, answer))| line(id, task, prompt, answer)).collect()
}

#[test]
fn scores_and_perplexities_are_told_as_json_and_as_a_table() {
    let bench = Bench::new();
    let suite = bench.write("suite.jsonl", &lines());
    let arguments = ModelArguments {
        perplexity: Some(bench.write("text.txt", "some text to foretell")),
        answer_perplexity: true,
        answers: Some(bench.file("answers.jsonl")),
        ..bench.arguments(&[suite])
    };
    let told: Value = serde_json::from_str(&said(&arguments).unwrap()).unwrap();
    let task = |at: usize| told["tasks"][at].clone();
    assert_eq!(
        (0..4).map(|at| task(at)["task"].as_str().unwrap().to_owned()).collect::<Vec<_>>(),
        ["handoff", "same_intent", "slots_json", "topic"]
    );
    assert_eq!(
        (task(0)["value"].clone(), task(1)["value"].clone(), task(2)["value"].clone(), task(3)["value"].clone()),
        (json!(1.0), json!(0.5), json!(1.0), json!(0.0))
    );
    assert_eq!(task(1)["n"], json!(2));
    assert!(task(1)["ci"][0].as_f64().unwrap() <= 0.5 && task(1)["ci"][1].as_f64().unwrap() >= 0.5);
    assert_eq!((told["macro"]["value"].clone(), told["too_long"].clone()), (json!(0.625), json!(1)));
    assert!(told["tokens_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(told["json_parses"], json!({ "n": 1, "value": 1.0 }));
    assert_eq!(told["perplexity"]["tokens"], json!(20));
    assert_eq!(told["answer_perplexity"]["left_out"], json!(1));
    assert!(told["answer_perplexity"]["value"].as_f64().unwrap() > 1.0);
    assert_eq!(std::fs::read_to_string(bench.file("answers.jsonl")).unwrap().lines().count(), 5);

    let table = said(&ModelArguments { json: false, ..arguments }).unwrap();
    assert!(table.contains("macro average over 4 tasks: 62.5 %"), "{table}");
    assert!(table.contains("1 prompts longer than the context") && table.contains("perplexity of text: "), "{table}");
}

#[test]
fn what_is_read_is_not_written_over_and_what_was_measured_is_told_anyway() {
    let bench = Bench::new();
    let suite = bench.write("suite.jsonl", &lines());
    let to = |answers: PathBuf, drafts: Option<PathBuf>| ModelArguments {
        answers: Some(answers),
        drafts: drafts::DraftArguments { drafts, ..drafts::DraftArguments::default() },
        ..bench.arguments(std::slice::from_ref(&suite))
    };
    let told = refusal(&to(suite.clone(), None));
    assert!(told.contains("--answers: ") && told.contains("name another file"), "{told}");
    assert!(refusal(&to(bench.file("model.gguf"), None)).contains("--answers"));
    assert!(refusal(&to(bench.file("one"), Some(bench.file("one")))).contains("--drafts"));
    assert_eq!(std::fs::read_to_string(&suite).unwrap(), lines());

    let mut out = Vec::new();
    let error = model(&to(bench.folder.path().to_owned(), None), &mut out).unwrap_err();
    assert!(format!("{error:#}").contains("no regular file"), "{error:#}");
    assert!(String::from_utf8(out).unwrap().contains("\"macro\""), "the figures are told");
}

#[test]
fn two_models_are_held_against_each_other() {
    let bench = Bench::new();
    let suite = bench.write("suite.jsonl", &lines());
    let text = bench.write("text.txt", "some text to foretell");
    let other: &[&[&str]] = &[&["a", "no", END], &["d", "HAND", "OFF", END], &["j", "{\"city\":", "\"Rome\"}", END]];
    std::fs::write(bench.file("other.gguf"), Script { chains: other, ..CHAINS }.gguf()).unwrap();
    let model = |name: &str| bench.file(name).display().to_string();
    let exam = ExamArguments {
        suite: vec![suite],
        limit: None,
        max_tokens: 16,
        choices: false,
        perplexity: Some(text),
        window: 64,
        judge: None,
        threads: 1,
    };
    let arguments = card::CardArguments {
        before: model("model.gguf"),
        after: model("other.gguf"),
        catalog: None,
        exam,
        json: true,
    };
    let said = |arguments: &card::CardArguments| {
        let mut out = Vec::new();
        card::run(arguments, &mut out).map(|_| String::from_utf8(out).unwrap())
    };
    let told: Value = serde_json::from_str(&said(&arguments).unwrap()).unwrap();
    assert_eq!(told["answers_changed"], json!(0.4), "{told}");
    assert_eq!(
        (told["before"]["macro"]["value"].clone(), told["routes_flipped"]["n"].clone()),
        (json!(0.625), json!(5))
    );
    assert!(told["after"]["perplexity"]["value"].as_f64().unwrap() > 1.0);
    let table = said(&card::CardArguments { json: false, ..arguments.clone() }).unwrap();
    assert!(table.contains("other.gguf beside") && table.contains("answers that changed: 40.00 %"), "{table}");
    let error = said(&card::CardArguments { after: model("none.gguf"), ..arguments }).unwrap_err();
    assert!(format!("{error:#}").contains("none.gguf"), "{error:#}");
}

#[test]
fn a_limit_takes_the_same_records_each_time_and_text_alone_will_do() {
    let bench = Bench::new();
    let rows: String = (0..40).map(|id| line(id, "same_intent", "a", if id < 20 { "yes" } else { "no" })).collect();
    let suite = bench.write("suite.jsonl", &rows);
    let arguments = ModelArguments { limit: Some(7), ..bench.arguments(&[suite]) };
    let values = |told: String| {
        let told: Value = serde_json::from_str(&told).unwrap();
        (told["tasks"][0]["n"].clone(), told["tasks"][0]["value"].clone())
    };
    let first = values(said(&arguments).unwrap());
    assert_eq!((first.0.clone(), values(said(&arguments).unwrap())), (json!(7), first));
    let text = Some(bench.write("text.txt", "some text"));
    let told: Value =
        serde_json::from_str(&said(&ModelArguments { perplexity: text, ..bench.arguments(&[]) }).unwrap()).unwrap();
    assert_eq!((told["tasks"].clone(), told["perplexity"]["tokens"].clone()), (json!([]), json!(8)));
}

#[test]
fn bad_input_is_told_by_file_and_line() {
    let bench = Bench::new();
    let good = bench.write("good.jsonl", &lines());
    let cases = [
        (format!("{}{{\"id\":\"9\",", lines()), "bad.jsonl:6: "),
        (line(1, "topic", "a", "b").replace("\"prompt\"", "\"promt\""), "bad.jsonl:1: missing field `prompt`"),
        (line(1, "slots_json", "a", "b"), "bad.jsonl:1: answer of task slots_json is no JSON object"),
        (String::new(), "bad.jsonl: no record"),
    ];
    for (text, expected) in cases {
        let bad = bench.write("bad.jsonl", &text);
        let told = refusal(&bench.arguments(&[good.clone(), bad]));
        assert!(told.contains(expected), "{told}");
    }
    let named = |model: &str| {
        refusal(&ModelArguments { model: model.to_owned(), ..bench.arguments(std::slice::from_ref(&good)) })
    };
    assert!(named("nothing-such").contains("neither a file or folder nor a local model of models.toml (sluice-nano"));
    assert!(named(&bench.write("torn.gguf", "GGUF").display().to_string()).contains("torn.gguf"));
    let absent = refusal(&bench.arguments(&[bench.file("absent.jsonl")]));
    assert!(absent.contains("absent.jsonl"), "{absent}");
    let short = ModelArguments { perplexity: Some(bench.write("short.txt", "x")), ..bench.arguments(&[]) };
    assert!(refusal(&short).contains("short.txt: the text has 1 tokens"), "{}", refusal(&short));
}

#[test]
fn the_bundled_model_is_found_by_its_name() {
    assert_eq!(source::find("sluice-nano", None).unwrap(), ModelSource::Bundled);
    let bench = Bench::new();
    let remote = bench.write("models.toml", include_str!("../../../../policies/models.toml"));
    let catalog =
        crate::catalog::Catalog::parse("models.toml", include_str!("../../../../policies/models.toml")).unwrap();
    let other = catalog.models().find(|model| matches!(model.place, crate::catalog::Place::Remote { .. })).unwrap();
    let told = source::find(other.id.as_str(), Some(&remote)).unwrap_err().to_string();
    assert!(told.contains("only models of this process"), "{told}");
}

#[test]
fn drafts_are_recorded_with_a_second_opinion_and_can_be_read() {
    let bench = Bench::new();
    let other = Script { chains: &[&["a", "no", END], &["d", "yes", END], &["j", "{}", END]], ..CHAINS };
    std::fs::write(bench.file("other.gguf"), other.gguf()).unwrap();
    let suite = bench.write("suite.jsonl", &lines());
    let with = |second: &str, tasks: &[&str]| {
        let file = bench.file("drafts.jsonl");
        let drafts = drafts::DraftArguments {
            drafts: Some(file.clone()),
            second: Some(second.to_owned()),
            tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
            ..drafts::DraftArguments::default()
        };
        said(&ModelArguments { drafts, ..bench.arguments(std::slice::from_ref(&suite)) }).unwrap();
        crate::judge::parse_drafts("drafts.jsonl", &read(&file).unwrap()).unwrap().0
    };
    let rows = with(&bench.file("other.gguf").display().to_string(), &[]);
    let told: Vec<_> =
        rows.iter().map(|row| (row.text.as_str(), row.outcome.small_quality, row.agrees, row.declined)).collect();
    assert_eq!(
        told,
        [
            ("yes", 1.0, Some(0.0), false),
            ("yes", 0.0, Some(0.0), false),
            ("", 0.0, Some(0.0), true),
            ("{\"city\":\"Rome\"}", 0.0, Some(0.0), false),
            ("", 0.0, Some(0.0), false),
        ]
    );
    assert!(
        rows.iter()
            .all(|row| row.outcome.small == "model" && row.second == "other" && row.outcome.large_quality == 1.0)
    );
    assert!(rows[0].tokens.iter().all(|token| token.margin.is_some() && token.entropy.is_some()));
    let rows = with("sample", &["same_intent"]);
    assert_eq!(
        rows.iter().map(|row| (row.agrees, row.second.as_str())).collect::<Vec<_>>(),
        [(Some(1.0), "sample"); 2]
    );
}

#[test]
fn records_are_chosen_by_task_and_by_what_a_recipe_held_out() {
    let bench = Bench::new();
    let suite = bench.write("suite.jsonl", &lines());
    let refused = |drafts: drafts::DraftArguments| {
        refusal(&ModelArguments { drafts, ..bench.arguments(std::slice::from_ref(&suite)) })
    };
    let unknown = refused(drafts::DraftArguments { tasks: vec!["spam".to_owned()], ..Default::default() });
    assert!(unknown.contains("no task `spam`; it has handoff, same_intent, slots_json, topic"), "{unknown}");
    let held_out = |share: f64| {
        let recipe = format!("seed = 1\n[data]\nholdout_share = {share:?}\ntasks = [\"topic\"]\n");
        Some(bench.write("recipe.toml", &recipe))
    };
    let none = refused(drafts::DraftArguments { held_out: held_out(0.0), ..Default::default() });
    assert!(none.contains("recipe.toml held none of the records out"), "{none}");
    let drafts = drafts::DraftArguments { held_out: held_out(1.0), ..Default::default() };
    let told: Value = serde_json::from_str(
        &said(&ModelArguments { drafts, ..bench.arguments(std::slice::from_ref(&suite)) }).unwrap(),
    )
    .unwrap();
    assert_eq!((told["tasks"].as_array().unwrap().len(), &told["tasks"][0]["task"]), (1, &json!("topic")));
}
