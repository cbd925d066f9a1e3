use super::*;
use std::fmt::Write as _;

/// Rows of one pair: the first of two kinds of score is nearly always right, the second seldom.
fn rows(count: usize, extra: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for id in 0..count {
        let easy = id % 2 == 0;
        let right = u8::from(easy && id % 40 != 0 || id % 7 == 0);
        let large = u8::from(id % 23 != 0);
        let _ = writeln!(
            text,
            "{{\"id\":\"{id}\",\"source\":\"made\",\"prompt\":\"ask {id}\",\"weak_model\":\"tiny\",\"strong_model\":\"huge\",\"weak_quality\":{right},\"strong_quality\":{large},\"cluster\":\"c{id}\"{}}}",
            extra(id)
        );
    }
    text
}

fn scored(id: usize) -> String {
    format!(
        ",\"score\":{},\"label\":\"{}\"",
        if id.is_multiple_of(2) { 0.9 } else { 0.2 },
        if id % 4 < 2 { "eu" } else { "us" }
    )
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn arguments(&self, bytes: impl AsRef<[u8]>) -> TuneArguments {
        let file = self.0.path().join("outcomes.jsonl");
        std::fs::write(&file, bytes).unwrap();
        TuneArguments {
            from_ledger: None,
            tenant: String::new(),
            outcomes: vec![file],
            validate: None,
            target: 0.95,
            confidence: 0.95,
            policy: None,
            catalog: None,
            segment: None,
            coverage: None,
            sample: 400,
            json: true,
        }
    }
}

fn solved(arguments: &TuneArguments) -> Value {
    let mut out = Vec::new();
    run(arguments, &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

fn refused(bytes: impl AsRef<[u8]>) -> String {
    let folder = Folder::new();
    run(&folder.arguments(bytes), &mut Vec::new()).unwrap_err().to_string()
}

#[test]
fn recorded_scores_are_certified_and_checked_elsewhere() {
    let folder = Folder::new();
    let mut arguments = folder.arguments(rows(2000, scored));
    let value = solved(&arguments);
    let threshold = value["threshold"].as_f64().unwrap();
    assert!((0.2..=0.9).contains(&threshold) && threshold > 0.2, "{value}");
    assert!(value["bound"].as_f64().unwrap() <= 0.0);
    assert_eq!(value["promised"], json!({ "quality_share": 0.95, "confidence": 0.95 }));
    let realised = &value["realised"];
    assert!(realised["quality_share"].as_f64().unwrap() > 0.95 && realised["se"].as_f64().unwrap() > 0.0, "{value}");
    assert!((0.4..0.6).contains(&realised["local_share"].as_f64().unwrap()));
    let apart = realised["n"].as_u64().unwrap();
    assert!((300..500).contains(&apart) && value["n"].as_u64().unwrap() + apart == 2000, "{value}");

    arguments.validate = Some(arguments.outcomes[0].clone());
    arguments.segment = Some(Segment::Label);
    let value = solved(&arguments);
    assert_eq!((value["n"].as_u64(), value["realised"]["n"].as_u64()), (Some(2000), Some(2000)));
    let segments = value["segments"].as_array().unwrap();
    let names: Vec<&str> = segments.iter().map(|segment| segment["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["eu", "us"]);
    assert!(segments.iter().all(|segment| (segment["confidence"].as_f64().unwrap() - 0.975).abs() < 1e-9));

    arguments.json = false;
    let mut out = Vec::new();
    run(&arguments, &mut out).unwrap();
    let said = String::from_utf8(out).unwrap();
    assert!(
        said.contains("tiny / huge: 95.0 % of quality at 95.0 % confidence") && said.contains("in hindsight"),
        "{said}"
    );
}

#[test]
fn without_scores_a_scorer_is_fitted_on_other_clusters() {
    let folder = Folder::new();
    let words = |text: String| {
        let kind = |line: &str| if line.contains("\"weak_quality\":1") { "spell" } else { "derive" }.to_owned();
        text.lines().map(|line| line.replace("ask", &kind(line)) + "\n").collect::<String>()
    };
    let value = solved(&folder.arguments(words(rows(1500, |_| String::new()))));
    assert!(value["threshold"].is_number(), "{value}");
    assert!((500..900).contains(&value["n"].as_u64().unwrap()), "{value}");
    assert!(value["realised"]["local_share"].as_f64().unwrap() > 0.3, "{value}");
}

#[test]
fn too_little_and_one_sided_evidence_is_told_in_words() {
    let folder = Folder::new();
    let ten = solved(&folder.arguments(rows(10, scored)));
    assert_eq!((ten["threshold"].clone(), ten["realised"]["local_share"].as_f64()), (Value::Null, Some(0.0)));
    assert!(ten["needed"].as_u64().unwrap() >= 49, "{ten}");

    let unscored = solved(&folder.arguments(rows(10, |_| String::new())));
    assert!(unscored["threshold"].is_null() && unscored["needed"].as_u64() > Some(50), "{unscored}");
    assert!(unscored["notes"][0].as_str().unwrap().contains("no scorer from"), "{unscored}");

    let always = rows(900, |_| String::new()).replace("\"weak_quality\":0", "\"weak_quality\":1");
    let always = solved(&folder.arguments(always));
    assert_eq!(always["realised"]["local_share"].as_f64(), Some(1.0), "{always}");

    let never = rows(900, |_| String::new()).replace("\"weak_quality\":1", "\"weak_quality\":0");
    let never = solved(&folder.arguments(never));
    // A twentieth may be lost: a coin may give away that much and no more.
    assert!(never["hindsight"]["random"].as_f64().unwrap() < 0.06, "{never}");
    assert!(never["realised"]["local_share"].as_f64().unwrap() < 0.06, "{never}");
}

#[test]
fn bad_files_are_refused_with_what_to_do() {
    let good = rows(30, scored);
    let twice = refused(format!("{good}{}", rows(1, scored)));
    assert!(twice.contains("outcomes.jsonl:31: id") && twice.contains("ids are unique"), "{twice}");
    let nan = refused(good.replacen("\"weak_quality\":1", "\"weak_quality\":NaN", 1));
    assert!(nan.contains("outcomes.jsonl:1: row"), "{nan}");
    let torn = refused(&good[..good.len() - 30]);
    assert!(torn.contains("the file ends within this row") && torn.contains("restore or remove it"), "{torn}");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(good.as_bytes()).unwrap();
    let packed = gzip.finish().unwrap();
    let cut = refused(&packed[..packed.len() / 2]);
    assert!(cut.contains("cannot be read whole") && cut.contains("restore it"), "{cut}");
    let score = refused(good.replacen("\"score\":0.9", "\"score\":9", 1));
    assert!(score.contains("score: 9 is not within 0 and 1"), "{score}");
    let some = refused(good.replacen("\"score\":0.9,", "", 1));
    assert!(some.contains("29 of the 30 outcomes for tiny / huge have a score"), "{some}");
    assert!(refused("").contains("holds no outcomes"));
}

#[test]
fn clocks_that_go_backwards_are_handled_and_named() {
    let folder = Folder::new();
    let at = |forwards: bool| {
        move |id: usize| format!("{},\"at_ms\":{}", scored(id), if forwards || id != 7 { 1000 + id } else { 3 })
    };
    let before = solved(&folder.arguments(rows(800, at(true))));
    let after = solved(&folder.arguments(rows(800, at(false))));
    assert_eq!(before["notes"], json!([]));
    assert!(after["notes"][0].as_str().unwrap().contains("outcomes.jsonl:8: at_ms goes backwards (1 rows)"), "{after}");
    assert_eq!(before["threshold"], after["threshold"]);
}

#[test]
fn pairs_are_solved_apart_and_a_policy_wants_known_models() {
    let folder = Folder::new();
    let text = rows(600, scored)
        + &rows(600, scored).replace("tiny", "small").replace("\"weak_quality\":0", "\"weak_quality\":1");
    let mut arguments = folder.arguments(text);
    let value = solved(&arguments);
    assert_eq!(value["pairs"].as_array().unwrap().len(), 2);
    assert_eq!((&value["weak_model"], &value["pairs"][1]["weak_model"]), (&json!("tiny"), &json!("small")));
    assert_eq!(value["pairs"][1]["realised"]["local_share"].as_f64(), Some(1.0), "{value}");
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    arguments.policy = Some(policies.join("balanced.toml"));
    let error = run(&arguments, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("tiny is none of its small models"), "{error}");
}

#[test]
fn seldom_recorded_rows_weigh_more() {
    // Wrong answers were recorded at a tenth of their rate: taken at face value the small model would look good enough.
    let folder = Folder::new();
    let text: String = rows(3000, |_| ",\"score\":0.5".to_owned())
        .lines()
        .enumerate()
        .map(|(id, line)| {
            let wrong = id % 40 == 1;
            let line = line.replace("\"strong_quality\":0", "\"strong_quality\":1");
            let quality = if wrong { "\"weak_quality\":0" } else { "\"weak_quality\":1" };
            let line = line.replace("\"weak_quality\":0", quality).replace("\"weak_quality\":1", quality);
            let probability = if wrong { 0.1 } else { 1.0 };
            line.replace(",\"score\"", &format!(",\"sampling_probability\":{probability},\"score\"")) + "\n"
        })
        .collect();
    let naive = solved(&folder.arguments(text.replace("\"sampling_probability\":0.1", "\"sampling_probability\":1")));
    assert_eq!(naive["realised"]["local_share"].as_f64(), Some(1.0), "{naive}");
    let weighted = solved(&folder.arguments(text));
    assert!(weighted["threshold"].is_null(), "{weighted}");
}

#[test]
fn drawn_certificates_keep_their_confidence_on_a_small_population() {
    let folder = Folder::new();
    let mut arguments = folder.arguments(rows(900, scored));
    arguments.coverage = Some(150);
    let value = solved(&arguments);
    let pair = &value["pairs"][0];
    assert!(pair["broken"].as_f64() <= pair["allowed"].as_f64(), "{value}");
    assert!(pair["local_share"].as_f64().unwrap() >= 0.5 * pair["hindsight"]["threshold"].as_f64().unwrap(), "{value}");
    assert_eq!(value["kept"], json!(true));
}
