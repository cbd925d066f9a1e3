use super::*;
use std::fmt::Write as _;

/// Outcomes of two pairs on the same prompts; what is asked for decides.
fn outcomes() -> String {
    let mut text = String::new();
    for id in 0..360 {
        let good = id % 2 == 0;
        let ask = if good { "Is this message spam" } else { "Prove the theorem on" };
        for (small, right) in [("a", good), ("b", good && id % 10 > 1)] {
            let split = if id < 260 { "train" } else { "dev" };
            let _ = writeln!(
                text,
                "{{\"id\":\"{small}{id}\",\"source\":\"made\",\"prompt\":\"{ask} number {}\",\"weak_model\":\"{small}\",\"strong_model\":\"l\",\
                 \"weak_quality\":{},\"strong_quality\":1,\"cluster\":\"{id}\",\"split\":\"{split}\"}}",
                id * 7 % 360,
                u8::from(right)
            );
        }
    }
    text
}

#[test]
fn everything_is_measured_told_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.jsonl"), outcomes()).unwrap();
    let svg = folder.path().join("plot.svg");
    let arguments = |json: bool| PerformerArguments {
        train: Some(folder.path().to_owned()),
        test: None,
        speed_only: false,
        lengths: vec![16, 64],
        epochs: Some(4),
        seed: 1,
        svg: Some(svg.clone()),
        json,
        probe: None,
    };
    let mut said = Vec::new();
    run(&arguments(true), &mut said).unwrap();
    let told: Value = serde_json::from_slice(&said).unwrap();
    let quality = &told["quality"];
    assert_eq!((&quality["pairs_counted"], quality["pairs"].as_array().unwrap().len()), (&json!(2), 2));
    for (place, name) in ["performer", "softmax"].into_iter().enumerate() {
        let encoder = &quality["encoders"][place];
        assert_eq!(encoder["name"], name);
        assert!(encoder["apgr"].as_f64().unwrap() > 0.6, "{quality}");
        let interval = encoder["over_static"]["ci"].as_array().unwrap();
        assert!(interval[0].as_f64().unwrap() <= encoder["over_static"]["gain"].as_f64().unwrap());
    }
    assert!(
        quality["encoders"][0]["over_performer"].is_null() && quality["encoders"][1]["over_performer"]["gain"].is_f64()
    );
    let lengths = told["speed"]["lengths"].as_array().unwrap();
    assert_eq!(lengths.iter().map(|row| row["tokens"].as_u64().unwrap()).collect::<Vec<_>>(), [16, 64]);
    assert!(lengths[1]["softmax"]["buffer_bytes"].as_u64() > lengths[0]["softmax"]["buffer_bytes"].as_u64());
    assert_eq!(lengths[0]["static"]["buffer_bytes"], 0);
    for line in told["approximation"]["lines"].as_array().unwrap() {
        let errors: Vec<f64> =
            line["relative_errors"].as_array().unwrap().iter().map(|error| error.as_f64().unwrap()).collect();
        // The larger the norms, the slower: at a norm of 1 64 times the features make a small part of the error.
        let least = if line["norm"].as_f64().unwrap() < 1.1 { 0.5 } else { 1.0 };
        assert!(errors.len() == 7 && errors[6] < least * errors[0], "{line}");
    }
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n"));
    assert!(drawn.contains("trained Performer") && !drawn.contains("NaN") && !drawn.contains("http://localhost"));
    assert!(drawn.matches("<polyline").count() >= 3 + 2 + 6, "every line is there");
}

#[test]
fn time_alone_needs_no_outcomes() {
    let arguments = PerformerArguments {
        train: None,
        test: None,
        speed_only: true,
        lengths: vec![32],
        epochs: None,
        seed: 1,
        svg: None,
        json: false,
        probe: None,
    };
    let mut said = Vec::new();
    run(&arguments, &mut said).unwrap();
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("performer, ms") && said.contains("no length at which one overtakes the other"), "{said}");
    let mut told = Vec::new();
    run(&PerformerArguments { probe: Some(Kind::Softmax), ..arguments }, &mut told).unwrap();
    let told: Value = serde_json::from_slice(&told).unwrap();
    assert!(told["score"].is_f64(), "{told}");
}

#[test]
fn the_crossing_lies_where_the_lines_meet() {
    let row = |tokens: usize, performer: u64, softmax: u64| speed::Row {
        tokens,
        times: [1, performer, softmax].map(Duration::from_micros),
        bytes: [0; 3],
        resident: [None; 3],
    };
    let crossing = |rows: Vec<speed::Row>| Speed { rows }.crossing();
    // Performer t, softmax t²/400: they meet at 400.
    let found = crossing(vec![row(100, 100, 25), row(200, 200, 100), row(800, 800, 1600)]).unwrap();
    assert!((found - 400.0).abs() < 1.0, "{found}");
    assert_eq!(crossing(vec![row(100, 100, 25), row(200, 200, 100)]), None);
    assert_eq!(crossing(Vec::new()), None);
}
