use super::*;
use crate::evidence::certificate::Certificate;
use crate::judge::{Judged, features, fit, prefix_features};

fn side(said: &[(&str, bool)], likeliest: &[u32]) -> Side {
    let forecast = Forecast { tokens: 4, bytes: 8, nats: 8.0, likeliest: likeliest.to_vec(), left_out: 0 };
    Side {
        file_bytes: 100,
        resident_bytes: 50,
        format: "F32".to_owned(),
        tokens_per_second: 10.0,
        text: Some(forecast),
        answers: None,
        report: None,
        said: said.iter().map(|(text, shown)| ((*text).to_owned(), *shown)).collect(),
    }
}

#[test]
fn changes_flips_and_agreement_are_counted() {
    let before = side(&[("a", true), ("b", true), ("HANDOFF", false), ("c", false)], &[1, 2, 3, 4]);
    let mut after = side(&[("a", true), ("HANDOFF", false), ("x", true), ("d", false)], &[1, 2, 3, 5]);
    after.file_bytes = 25;
    let card = Card { before, after, judged: false, choices: false };
    assert_eq!(card.flips(), Some(Flips { n: 4, to_remote: 1, to_local: 1 }));
    assert_eq!(
        (card.flips().unwrap().share(), card.answers_changed(), card.top1_agreement()),
        (0.5, Some(0.75), Some(0.75))
    );
    let told = card.to_json();
    assert_eq!((told["bytes_ratio"].clone(), told["perplexity_ratio"].clone()), (json!(0.25), json!(1.0)));
    assert_eq!(told["before"]["perplexity"]["value"], json!(2f64.exp()));
    assert_eq!(told["routes_flipped"]["to_local"], json!(1));
    let empty = Card { before: side(&[], &[]), after: side(&[], &[]), judged: false, choices: false };
    assert_eq!((empty.flips(), empty.answers_changed(), empty.top1_agreement()), (None, None, None));
}

/// Fitted on drafts of which the surer are good; cut at 0.7.
fn judge() -> JudgeFile {
    let row = |index: usize| {
        let logprob = -0.05 - (index % 40) as f64 / 20.0;
        let tokens = vec![TokenFacts { logprob, margin: Some(-logprob), entropy: Some(-logprob) }; 2 + index % 7];
        let draft = Draft {
            prompt: "is this spam",
            text: "spam",
            tokens: &tokens,
            cut: false,
            prompt_score: Some(0.5),
            valid: None,
            agrees: None,
        };
        let (features, prefix) = (features(&draft), Some(prefix_features(&draft)));
        let suffices = (logprob > -1.0) != (index % 5 == 3);
        Judged { features, prefix, suffices, cluster: index.to_string() }
    };
    let (judge, _) = fit("sluice-nano", &(0..2_000).map(row).collect::<Vec<_>>()).unwrap();
    let solved = include_str!("../../../../policies/balanced.solved.toml");
    let certificate = Certificate { threshold: Some(0.7), ..Certificate::parse(solved).unwrap() };
    JudgeFile { judge, certificate }
}

#[test]
fn a_judge_turns_down_what_is_below_its_threshold() {
    let record = Record {
        id: "r".to_owned(),
        task: "t".to_owned(),
        source: String::new(),
        licence: String::new(),
        prompt: "is this spam: win a prize".to_owned(),
        answer: "spam".to_owned(),
        labels: Vec::new(),
    };
    let answer = |logprob: f32| {
        let mut answer = Answer { text: "spam".to_owned(), ..Answer::default() };
        answer.trace.logprobs = vec![logprob; 2];
        answer.trace.margins = vec![-logprob; 2];
        answer.trace.likeliest = vec![vec![logprob, -9.0]; 2];
        answer
    };
    let exam = |judge| Exam { judge, ..Exam::default() };
    let plain = exam(None);
    assert!(shown(&record, &answer(-3.0), &plain).unwrap());
    let mut cut = answer(-0.1);
    cut.trace.cut = true;
    let declined = Answer { declined: true, ..Answer::default() };
    assert!(!shown(&record, &cut, &plain).unwrap() && !shown(&record, &declined, &plain).unwrap());

    let file = judge();
    let scorer = || PairScorer::bundled().unwrap().unwrap();
    let judged = exam(Some((file.clone(), scorer())));
    assert!(shown(&record, &answer(-0.01), &judged).unwrap());
    assert!(!shown(&record, &answer(-4.0), &judged).unwrap());
    let mut unproven = file;
    unproven.certificate.threshold = None;
    assert!(!shown(&record, &answer(-0.01), &exam(Some((unproven, scorer())))).unwrap());
}
