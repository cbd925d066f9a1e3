use super::*;
use crate::evaluate::suite::tests::record;
use crate::train::recipe::Start;

fn recipe() -> Recipe {
    let text = r#"
        name = "tiny"
        seed = 1
        format = "f32"
        [data]
        licences = ["MIT"]
        holdout_share = 0.2
        prompt_weight = 0.1
        [network]
        vocabulary = 264
        width = 32
        layers = 1
        heads = 2
        kv_heads = 1
        feed_forward = 32
        context = 48
        rope_base = 10000.0
        norm_epsilon = 1e-5
        [training]
        tokens = 4000
        batch_tokens = 100
        peak_rate = 1e-2
        warm_up = 200
        checkpoint_steps = 5
        evaluate_steps = 5
    "#;
    toml::from_str(text).unwrap()
}

fn corpus(folder: &Path, licence: &str) -> Files {
    let line = |n: usize| {
        let record = record("spam", &format!("buy {n} things now"), ["yes", "no"][n % 2]);
        json!({
            "id": record.id, "task": record.task, "source": "made", "licence": licence, "prompt": record.prompt,
            "answer": record.answer,
        })
        .to_string()
    };
    let path = folder.join(format!("{licence}.jsonl"));
    std::fs::write(&path, (0..100).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    Files { train: vec![path], ..Files::default() }
}

#[test]
fn a_run_folder_holds_the_model_and_what_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let (files, run) = (corpus(folder.path(), "MIT"), folder.path().join("run"));
    let prepared = Prepared::new(recipe(), &files, &run, Value::Null).unwrap();
    let plan = prepared.plan();
    assert!((60..100).contains(&plan.records) && plan.records + plan.dev == 100, "{plan:?}");
    let path = prepared.run(&Lesson::default(), &mut |_| {}).unwrap();
    for file in ["run.json", "tokenizer.json", "log.jsonl", "loss.svg", "state.json", "model.gguf"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let told: Value = serde_json::from_str(&std::fs::read_to_string(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(told["recipe"]["seed"], 1);
    assert_eq!(told["data"][0]["blake3"], blake3::hash(&std::fs::read(&files.train[0]).unwrap()).to_hex().as_str());

    // A template has to show what is asked.
    let deaf = Start { model: Some(path.clone()), chat_template: Some("hello".to_owned()), ..Start::default() };
    let deaf = Recipe { network: None, start: deaf, ..recipe() };
    let error = Prepared::new(deaf, &files, &folder.path().join("deaf"), Value::Null).err().unwrap().to_string();
    assert!(error.contains("start.chat_template does not show"), "{error}");

    // A model to start from brings sizes and vocabulary, and another run does not mix with this one.
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>".to_owned();
    let start = Start { model: Some(path), context: Some(40), chat_template: Some(template.clone()), vectors: None };
    let further = Recipe { network: None, start, ..recipe() };
    let error = Prepared::new(further.clone(), &files, &run, Value::Null).err().unwrap().to_string();
    assert!(error.contains("holds a run with recipe.network") && error.contains("another folder"), "{error}");
    let second = folder.path().join("second");
    let prepared = Prepared::new(further, &files, &second, Value::Null).unwrap();
    assert_eq!((prepared.network().shape.feed_forward, prepared.network().shape.context), (32, 40));
    assert_eq!(prepared.metadata()["tokenizer.chat_template"].to_string().unwrap(), &template);
    let mut losses = Vec::new();
    prepared
        .run(&Lesson::default(), &mut |event| {
            if let Event::Dev(look) = event {
                losses.push(look.loss);
            }
        })
        .unwrap();
    assert!(losses[0] < 4.0, "it goes on from what was learnt, not from ln 264: {losses:?}");
}

#[test]
fn a_run_may_be_made_longer_until_its_rate_falls() {
    let folder = tempfile::tempdir().unwrap();
    let (files, run) = (corpus(folder.path(), "MIT"), folder.path().join("run"));
    let of = |tokens: u64, fall: u64| {
        let mut recipe = recipe();
        (recipe.training.tokens, recipe.training.fall) = (tokens, Some(fall));
        recipe
    };
    let open = |recipe: Recipe| Prepared::new(recipe, &files, &run, Value::Null).and_then(|prepared| prepared.note());
    open(of(4000, 1000)).unwrap();
    let log = |seen: u64| std::fs::write(run.join("log.jsonl"), format!("{{\"step\":9,\"tokens\":{seen}}}\n")).unwrap();
    log(2900);
    open(of(9000, 1000)).unwrap();
    log(7900);
    open(of(9000, 1000)).unwrap();
    let error = open(of(8000, 1000)).unwrap_err().to_string();
    assert!(
        error.contains("recipe.training.tokens 9000 in place of 8000"),
        "by then it should have begun to fall: {error}"
    );
    log(8100);
    let error = open(of(20_000, 1000)).unwrap_err().to_string();
    assert!(error.contains("recipe.training.tokens"), "it falls already: {error}");
    assert!(open(of(9000, 2000)).unwrap_err().to_string().contains("recipe.training.fall"));
}

#[test]
fn wrong_input_is_told_before_anything_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let error =
        |recipe: Recipe, files: &Files| Prepared::new(recipe, files, &run, Value::Null).err().unwrap().to_string();
    let text = error(recipe(), &corpus(folder.path(), "unstated"));
    assert!(text.contains(":1: licence: `unstated`"), "{text}");
    let files = corpus(folder.path(), "MIT");
    let mut other = recipe();
    other.data.tasks = vec!["sentiment".to_owned()];
    assert!(error(other, &files).contains("no record is of a task"));
    let empty = folder.path().join("empty.jsonl");
    std::fs::write(&empty, "").unwrap();
    assert!(error(recipe(), &Files { train: vec![empty], ..Files::default() }).contains("no record"));
    assert!(!run.exists(), "nothing was written");
    let mut short = recipe();
    short.network.as_mut().unwrap().context = 4;
    let text = error(short, &files);
    assert!(text.contains("tokens, the context 4") && text.contains("long_records"), "{text}");
    std::fs::remove_dir_all(&run).unwrap();
    let mut large = recipe();
    large.network.as_mut().unwrap().vocabulary = 5000;
    let text = error(large, &files);
    assert!(text.contains("where the recipe wants 5000") && text.contains("ask for fewer"), "{text}");
    // What such a start left behind is of no run, and one at a time is made here.
    std::fs::write(run.join("tokenizer.json"), "{}").unwrap();
    let prepared = Prepared::new(recipe(), &files, &run, Value::Null).unwrap();
    assert!(matches!(Prepared::new(recipe(), &files, &run, Value::Null), Err(TrainError::InUse { .. })));
    prepared.note().unwrap();
    drop(prepared);
    let own = std::fs::read_to_string(run.join("tokenizer.json")).unwrap();
    std::fs::write(run.join("tokenizer.json"), "{}").unwrap();
    let text = error(recipe(), &files);
    assert!(text.contains("vocabulary: ") && text.contains("tokenizer.json: "), "a tokenizer that is none: {text}");
    std::fs::write(run.join("tokenizer.json"), format!("{own}\n")).unwrap();
    let text = error(recipe(), &files);
    assert!(text.contains("holds a run with vocabulary.blake3"), "the tokenizer of another run: {text}");
    std::fs::remove_file(run.join("tokenizer.json")).unwrap();
    Prepared::new(recipe(), &files, &run, Value::Null).unwrap();
    assert_eq!(std::fs::read_to_string(run.join("tokenizer.json")).unwrap(), own, "made again of the same records");
}
