//! A judge learns what separates good drafts from bad ones, survives its file, and refuses nonsense.

use super::*;
use crate::evidence::certificate::{Certificate, Method};

fn tokens(logprob: f64, count: usize) -> Vec<TokenFacts> {
    vec![TokenFacts { logprob, margin: Some(-3.0 / logprob), entropy: Some(-logprob) }; count]
}

fn draft<'d>(tokens: &'d [TokenFacts], text: &'d str) -> Draft<'d> {
    Draft { prompt: "name the city", text, tokens, cut: false, prompt_score: Some(0.5), valid: None, agrees: None }
}

/// Drafts of which the surer are good, with every fifth the other way round.
fn rows(count: usize) -> Vec<Judged> {
    let row = |index: usize| {
        let logprob = -0.05 - (index % 40) as f64 / 20.0;
        let tokens = tokens(logprob, 10 + index % 7);
        let draft = draft(&tokens, "the city of Paris");
        Judged {
            features: features(&draft),
            prefix: Some(prefix_features(&draft)),
            suffices: (logprob > -1.0) != (index % 5 == 3),
            cluster: index.to_string(),
        }
    };
    (0..count).map(row).collect()
}

fn certificate() -> Certificate {
    Certificate {
        policy: "p".to_owned(),
        policy_hash: "0123456789abcdef".to_owned(),
        scorer_version: "0123456789abcdef".to_owned(),
        evidence_hash: "0123456789abcdef".to_owned(),
        small: "nano".to_owned(),
        large: "*".to_owned(),
        threshold: Some(0.7),
        n: 100,
        bound: -0.01,
        confidence: 0.95,
        target: 0.95,
        local_share: 0.3,
        needed: None,
        method: Method::Betting,
        date: "2026-11-23".to_owned(),
        reference: None,
    }
}

#[test]
fn sure_drafts_are_better_and_hopeless_ones_are_seen_early() {
    let (judge, auc) = fit("nano", &rows(2_000)).unwrap();
    assert!(auc > 0.7, "{auc}");
    let (sure, unsure) = (tokens(-0.05, 12), tokens(-2.0, 12));
    let (sure, unsure) = (draft(&sure, "Paris"), draft(&unsure, "Paris"));
    let (good, bad) = (judge.judge(&sure).get(), judge.judge(&unsure).get());
    assert!(good > 0.7 && bad < 0.4, "{good} {bad}");
    assert!(!judge.hopeless(&sure));
    let lost = tokens(-19.0, 12);
    assert!(judge.hopeless(&draft(&lost, "Paris")) && !judge.hopeless(&draft(&lost[..4], "Paris")));
    let reasons = judge.reasons(&unsure, 3);
    assert!(reasons.len() == 3 && reasons[0].1.abs() >= reasons[2].1.abs());
}

#[test]
fn another_is_asked_only_where_it_can_change_the_verdict() {
    // Agreement says a lot: of drafts that are as sure as each other, those that another agrees with are good.
    let mut rows = rows(600);
    for (index, row) in rows.iter_mut().enumerate() {
        let agrees = index % 3 != 0;
        row.features[14] = f64::from(u8::from(agrees));
        row.suffices = agrees != (index % 10 == 9);
    }
    let (judge, _) = fit("nano", &rows).unwrap();
    let tokens = tokens(-0.5, 12);
    let draft = draft(&tokens, "the city of Paris");
    let (low, high) = judge.range(&draft);
    assert!(low < 0.4 && high > 0.7, "{low} {high}");
    assert_eq!(judge.verdict(&draft, low), Verdict::Shown(low));
    assert_eq!(judge.verdict(&draft, high + 0.01), Verdict::TurnedDown(high));
    assert_eq!(judge.verdict(&draft, 0.5), Verdict::Undecided);
    for (agrees, expected) in [(0.0, low), (1.0, high)] {
        assert_eq!(judge.judge(&Draft { agrees: Some(agrees), ..draft }).get(), expected);
    }
    // Who never heard of another need not ask one.
    let (deaf, _) = fit("nano", &self::rows(600)).unwrap();
    let (low, high) = deaf.range(&draft);
    assert_eq!(low, high);
}

#[test]
fn lengths_that_are_not_expected_tell_both_ways() {
    // Good drafts have about ten tokens: shorter and longer ones are bad.
    let row = |index: usize| {
        let tokens = tokens(-0.5, [2, 9, 10, 11, 60][index % 5]);
        let draft = draft(&tokens, "the city of Paris");
        let suffices = (9..=11).contains(&tokens.len());
        Judged { features: features(&draft), prefix: None, suffices, cluster: index.to_string() }
    };
    let rows: Vec<Judged> = (0..500).map(row).collect();
    let (judge, auc) = fit("nano", &rows).unwrap();
    assert!(auc > 0.95, "{auc}");
    let of = |count: usize| judge.judge(&draft(&tokens(-0.5, count), "the city of Paris")).get();
    assert!(of(10) > 0.8 && of(2) < 0.3 && of(60) < 0.3, "{} {} {}", of(2), of(10), of(60));
}

#[test]
fn json_that_is_asked_for_in_words_is_looked_at() {
    let of = |prompt, text, valid| features(&Draft { prompt, text, valid, ..draft(&[], "") })[13];
    assert_eq!(of("Answer as JSON.", "{\"a\": 1}", None), 1.0);
    assert_eq!(of("Answer as JSON.", "{\"a\": ", None), 0.0);
    assert_eq!(of("Answer as JSON.", "{\"a\": ", Some(true)), 1.0);
    assert!(of("Answer.", "{", None).is_nan());
    assert!(prefix_features(&Draft { prompt: "JSON", ..draft(&[], "{") })[13].is_nan(), "a beginning is never whole");
}

#[test]
fn a_file_gives_the_same_judge() {
    let (judge, _) = fit("nano", &rows(500)).unwrap();
    let file = JudgeFile { judge, certificate: certificate() };
    let read = JudgeFile::parse(&file.to_toml().unwrap()).unwrap();
    assert_eq!(read, file);
    assert_eq!(read.judge.version().len(), 16);
}

#[test]
fn what_cannot_be_learnt_or_read_is_refused() {
    assert_eq!(fit("nano", &rows(10)).unwrap_err(), JudgeFitError::TooFew { found: 10, least: 60 });
    let mut good = rows(100);
    good.iter_mut().for_each(|row| row.suffices = true);
    assert!(matches!(fit("nano", &good), Err(JudgeFitError::Calibration(_))));

    let (judge, _) = fit("nano", &rows(500)).unwrap();
    let text = JudgeFile { judge, certificate: certificate() }.to_toml().unwrap();
    let check = |from: &str, to: &str, says: &str| {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        let error = JudgeFile::parse(&changed).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    check("schema = 1\nsmall", "schema = 9\nsmall", "schema 9");
    check("\"cut\"", "\"length\"", "`features`");
    check("bias = ", "bias = nan # ", "bias");
    check("threshold = 0.7", "threshold = 1.7", "[certificate]");
    check("small = \"nano\"\nfeatures", "tiny = 1\nfeatures", "tiny");
}

#[test]
fn features_of_nothing_are_unknown_and_judged_all_the_same() {
    let values = features(&draft(&[], ""));
    assert!(values[0].is_nan() && values[9] == 0.0);
    let (judge, _) = fit("nano", &rows(500)).unwrap();
    let score = judge.judge(&draft(&[], "")).get();
    assert!((0.0..=1.0).contains(&score));
    let poisoned = [TokenFacts { logprob: f64::NAN, margin: None, entropy: Some(f64::INFINITY) }];
    assert!((0.0..=1.0).contains(&judge.judge(&draft(&poisoned, "x")).get()));
}

#[test]
fn repetition_and_copies_are_counted() {
    let repeated = features(&draft(&[], "a b c a b c a b c"));
    assert!((repeated[9] - 4.0 / 9.0).abs() < 1e-12, "{}", repeated[9]);
    assert_eq!(features(&draft(&[], "The City, London"))[11], 2.0 / 3.0);
}

#[test]
fn entropy_counts_the_rest_as_one_token() {
    let half = 0.5f64.ln();
    assert!((TokenFacts::entropy_of([half, half].into_iter()) - 2.0f64.ln()).abs() < 1e-9);
    assert!((TokenFacts::entropy_of([half].into_iter()) - 2.0f64.ln()).abs() < 1e-9);
    assert!(TokenFacts::entropy_of([0.0].into_iter()).abs() < 1e-9);
}
