use super::file::PairFileError;
use super::report::measure_latency;
use super::solve::{SolveFor, certify};
use super::train::{Purpose, TrainError, TrainOptions, TrainedScorer, Way, evidence_for, train};
use super::*;
use crate::evidence::bound::Promise;
use crate::evidence::certificate::Certificate;
use crate::evidence::outcome::{Outcome, OutcomeSource, Recorded};
use local_worker::scorer::FitOptions;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::HashMap;

/// Made-up outcomes: short labelling asks that the small model mostly gets right, and essays and code that it never does.
fn outcomes(count: usize) -> Vec<Outcome> {
    let easy = ["Classify the sentiment", "Which language is this", "Is this message spam", "Name the intent"];
    let hard =
        ["Write an essay about", "Prove the theorem on", "Refactor this Rust code for", "Compare the economies of"];
    let things = ["trains", "banks", "rivers", "films", "phones", "tea", "winter", "cities", "music", "bread"];
    let mut random = StdRng::seed_from_u64(5);
    let mut pick = |from: &[&str]| from[random.random_range(0..from.len())].to_owned();
    let mut random = StdRng::seed_from_u64(6);
    (0..count)
        .map(|id| {
            let easily = random.random_bool(0.6);
            let kind = pick(if easily { &easy } else { &hard });
            let prompt = format!("{kind}: {} and {} {} {}", pick(&things), pick(&things), pick(&things), id % 7);
            let right = easily && random.random_bool(if kind.starts_with("Name") { 0.6 } else { 0.98 });
            Outcome {
                id: format!("o{id}"),
                source: "made".to_owned(),
                domain: if easily { "easy" } else { "hard" }.to_owned(),
                prompt,
                small: "nano".to_owned(),
                large: ANY_LARGE.to_owned(),
                small_quality: f64::from(u8::from(right)),
                large_quality: 1.0,
                cluster: format!("c{}", id / 2),
                split: "train".to_owned(),
                sampling_probability: 1.0,
                graded_by: OutcomeSource::Gold,
                recorded: Recorded::default(),
            }
        })
        .collect()
}

fn linear() -> FitOptions {
    FitOptions { bits: 12, ..FitOptions::default() }
}

fn options() -> TrainOptions {
    TrainOptions {
        pair: Pair::any_large("nano"),
        ways: vec![Way::Linear(linear())],
        outcomes_hash: "0123".to_owned(),
        unlabelled: Vec::new(),
    }
}

fn trained() -> TrainedScorer {
    train(&outcomes(3000), &options()).unwrap()
}

fn solve_for() -> SolveFor {
    SolveFor {
        policy: "balanced".to_owned(),
        policy_hash: "aa".to_owned(),
        promise: Promise { target: 0.95, confidence: 0.95 },
        evidence_hash: "0123".to_owned(),
        date: jiff::civil::date(2026, 11, 23),
    }
}

fn ask(text: &str) -> Vec<Message> {
    vec![Message::text(Role::User, text)]
}

#[test]
fn outcomes_become_a_scorer_with_honest_figures_and_a_certificate() {
    let TrainedScorer { scorer, report, evidence } = trained();
    assert!(report.auc.unwrap() > 0.85, "{:?}", report.auc);
    assert!(report.reliability.ece_debiased < 0.06, "{:?}", report.reliability);
    assert_eq!(report.parts.iter().map(|part| part.rows).sum::<usize>(), 3000);
    let easy = scorer.score(&ask("Is this message spam: tea and bread films 3")).unwrap();
    let hard = scorer.score(&ask("Write an essay about: tea and bread films 3")).unwrap();
    assert!(easy.get() > 0.8 && hard.get() < 0.2, "{easy:?} {hard:?}");

    let certificate = certify(&scorer, &evidence, &solve_for()).unwrap();
    let threshold = certificate.threshold.unwrap();
    assert!(easy.get() >= threshold && hard.get() < threshold, "{certificate:?}");
    assert!(certificate.local_share > 0.3 && certificate.bound <= 0.0);
    assert_eq!(certificate.check("aa", scorer.version()), Ok(()));
    let text = certificate.to_toml().unwrap();
    assert_eq!(Certificate::parse(&text).unwrap(), certificate);
}

#[test]
fn the_report_prints_every_figure() {
    let TrainedScorer { scorer, report, .. } = trained();
    let latencies = measure_latency(&scorer, ["short"]).unwrap();
    assert_eq!(latencies.iter().map(|latency| latency.tokens).collect::<Vec<_>>(), [100, 500, 2000, 8000]);
    assert!(latencies.iter().all(|latency| latency.p50 <= latency.p99));
    let text = report.markdown(&latencies);
    for expected in
        ["| AUC | 0.", "15 equal-mass bins, debiased", "| 15 | ", "made / easy", "| 8000 |", scorer.version()]
    {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
}

#[test]
fn training_is_deterministic_and_versions_follow_content() {
    let first = trained();
    assert_eq!(first.scorer.to_bytes(), trained().scorer.to_bytes());
    let other = TrainOptions { ways: vec![Way::Linear(FitOptions { seed: 9, ..linear() })], ..options() };
    let other = train(&outcomes(3000), &other).unwrap();
    assert_ne!(first.scorer.version(), other.scorer.version());
}

#[test]
fn the_way_of_fitting_that_ranks_best_is_used() {
    let rows = outcomes(1200);
    // One of the two learns nothing: its penalty is too high for any weight.
    let useless = Way::Linear(FitOptions { l1: 1e6, ..linear() });
    let of = |ways: Vec<Way>| train(&rows, &TrainOptions { ways, ..options() }).unwrap().scorer;
    let (plain, blend) = (Way::Linear(linear()), Way::Blend { seed: 1 });
    for useful in [plain, blend] {
        let alone = of(vec![useful]);
        assert_eq!(of(vec![useless, useful]).version(), alone.version());
        assert_eq!(of(vec![useful, useless]).version(), alone.version());
    }
    // What the large model would gain falls with the score, and the file keeps it.
    let scorer = of(vec![blend]);
    let gain = |text: &str| scorer.expected_gain(&ask(text)).unwrap();
    assert!(gain("Is this message spam: tea") + 0.4 < gain("Write an essay about: tea"));
    assert!(PairScorer::from_bytes(&scorer.to_bytes()).unwrap() == scorer, "the file loses digits");
}

#[test]
fn no_cluster_serves_two_purposes_and_evidence_has_one_row_a_cluster() {
    let rows = outcomes(3000);
    let mut sizes: HashMap<Purpose, usize> = HashMap::new();
    for cluster in 0..1500 {
        *sizes.entry(Purpose::of(&format!("c{cluster}"))).or_default() += 1;
    }
    for (purpose, expected) in [(Purpose::Fit, 750), (Purpose::Calibrate, 300), (Purpose::Certify, 450)] {
        assert!(sizes[&purpose].abs_diff(expected) < 60, "{purpose:?}: {}", sizes[&purpose]);
    }
    assert_eq!(trained().evidence.len(), sizes[&Purpose::Certify]);
    let scorer = trained().scorer;
    assert_eq!(evidence_for(&scorer, &rows).unwrap(), trained().evidence);
}

#[test]
fn evidence_is_thinned_to_equal_sampling() {
    let mut rows = outcomes(3000);
    for row in &mut rows {
        // Easy rows were recorded four times as often.
        row.sampling_probability = if row.domain == "easy" { 1.0 } else { 0.25 };
    }
    let scorer = trained().scorer;
    let even = evidence_for(&scorer, &outcomes(3000)).unwrap();
    let thinned = evidence_for(&scorer, &rows).unwrap();
    let high = |evidence: &[crate::evidence::bound::Evidence]| {
        evidence.iter().filter(|row| row.score > 0.5).count() as f64 / evidence.len() as f64
    };
    assert!(thinned.len() < even.len() * 9 / 10);
    assert!(high(&thinned) < high(&even) - 0.1, "{} {}", high(&thinned), high(&even));
}

#[test]
fn what_cannot_be_trained_on_is_named() {
    let rows = outcomes(600);
    let other = TrainOptions { pair: Pair::new("nano", "big"), ..options() };
    let error = train(&rows, &other).unwrap_err();
    assert_eq!(error.to_string(), "no outcomes for nano / big; the rows are about nano");
    let mut all_good = rows.clone();
    for row in &mut all_good {
        row.small_quality = 1.0;
    }
    assert!(matches!(train(&all_good, &options()), Err(TrainError::OneClass { part: "fitting", .. })));
    assert!(train(&[], &options()).is_err());
}

#[test]
fn few_outcomes_certify_nothing_but_say_how_many_more() {
    let rows = outcomes(120);
    let TrainedScorer { scorer, evidence, .. } = train(&rows, &options()).unwrap();
    let certificate = certify(&scorer, &evidence, &solve_for()).unwrap();
    assert_eq!(certificate.threshold, None);
    assert!(certificate.needed.is_none_or(|needed| needed > 20));
    let read = Certificate::parse(&certificate.to_toml().unwrap()).unwrap();
    assert_eq!(read.threshold, None);
}

#[test]
fn files_are_read_back_and_damage_is_noticed() {
    let scorer = trained().scorer;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nano.scorer");
    scorer.write(&file).unwrap();
    scorer.write(&file).unwrap();
    let read = PairScorer::read(&file).unwrap();
    assert_eq!(read, scorer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let bytes = scorer.to_bytes();
    for place in [9, 40, 300, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        assert!(matches!(PairScorer::from_bytes(&damaged), Err(PairFileError::Hash)), "byte {place}");
    }
    for length in [8, 39, 40, 44, bytes.len() - 1] {
        assert!(matches!(PairScorer::from_bytes(&bytes[..length]), Err(PairFileError::Hash)), "{length} bytes");
    }
    assert!(matches!(PairScorer::from_bytes(b"GGUF"), Err(PairFileError::Magic)));
    assert!(matches!(PairScorer::from_bytes(b""), Err(PairFileError::Magic)));
    let missing = PairScorer::read(&folder.path().join("none.scorer")).unwrap_err();
    assert!(missing.to_string().contains("none.scorer"));
}

#[test]
fn the_bundled_scorer_is_for_the_bundled_model() {
    let bundled = PairScorer::bundled().unwrap();
    if let Some(scorer) = bundled {
        assert_eq!(scorer.pair(), &Pair::any_large("sluice-nano"));
        let spam =
            scorer.score(&ask("Is this message spam or ham?\nWINNER!! Claim your prize now, call 0800 123")).unwrap();
        let essay = scorer.score(&ask("Write an essay about the causes of the French Revolution.")).unwrap();
        assert!(spam.get() > essay.get() && essay.get() < 0.2, "{spam:?} {essay:?}");
    }
}

#[test]
fn maps_that_do_not_rise_are_refused() {
    let scorer = trained().scorer;
    let bad = [
        Calibration::Platt { slope: -1.0, offset: 0.0 },
        Calibration::Isotonic(vec![]),
        Calibration::Isotonic(vec![(0.0, 0.9), (1.0, 0.1)]),
        Calibration::Isotonic(vec![(0.0, 0.1), (1.0, 1.1)]),
        Calibration::Isotonic(vec![(1.0, 0.1), (0.0, 0.9)]),
    ];
    for calibration in bad {
        let forged = PairScorer::new(scorer.pair.clone(), scorer.raw.scorer.clone(), calibration, String::new());
        let error = PairScorer::from_bytes(&forged.to_bytes()).unwrap_err();
        assert!(matches!(error, PairFileError::Header(_)), "{error}");
    }
}

#[test]
fn the_registry_prefers_the_exact_pair_and_swaps_whole() {
    let any = trained().scorer;
    let exact = PairScorer { pair: Pair::new("nano", "big"), version: "exact".to_owned(), ..any.clone() };
    let scorers = Scorers::new([any.clone(), exact]);
    assert_eq!(scorers.get("nano", "big").unwrap().version(), "exact");
    let held = scorers.get("nano", "other").unwrap();
    assert_eq!(held.version(), any.version());
    let missing = scorers.get("micro", "big").unwrap_err();
    assert_eq!(missing, ScoreError::NoScorer(Pair::new("micro", "big")));

    let newer = PairScorer { version: "newer".to_owned(), ..any.clone() };
    assert_eq!(scorers.swap(newer).unwrap().version(), any.version());
    assert_eq!(scorers.get("nano", "other").unwrap().version(), "newer");
    assert_eq!(held.version(), any.version());
    assert_eq!(scorers.all().len(), 2);
}

#[test]
fn reasons_speak_of_the_request() {
    let scorer = trained().scorer;
    let reasons = scorer.reasons(&ask("Write an essay about: trains and tea rivers 1"), 3);
    assert_eq!(reasons.len(), 3);
    assert!(reasons.iter().any(|reason| reason.push < 0.0), "{reasons:?}");
}

/// What is like nothing seen gets no more than what is hard among the seen, however its words and lengths look.
#[test]
fn far_from_all_that_was_seen_the_safe_side_wins() {
    let options = TrainOptions { ways: vec![Way::Blend { seed: 1 }], ..options() };
    let scorer = train(&outcomes(800), &options).unwrap().scorer;
    let known = ask("Is this message spam: tea and music bread 3");
    let near = scorer.neighbours(&known).unwrap();
    assert!(near.familiar == 1.0 && near.count > 0 && near.agreement >= 0.5, "{near:?}");
    assert_eq!(scorer.drawn_down(&known), 0.0);
    let hard = scorer.calibration().apply(scorer.hard.unwrap());
    assert!(scorer.score(&known).unwrap().get() > hard);
    for strange in
        ["これはスパムですか", "ὦ ξεῖν᾽, ἀγγέλλειν Λακεδαιμονίοις", "kubectl rollout restart nginx-ingress 0x7f3a", ""]
    {
        let asked = ask(strange);
        let near = scorer.neighbours(&asked).unwrap();
        assert!(near.familiar < 0.5, "{strange}: {near:?}");
        let score = scorer.score(&asked).unwrap().get();
        let plain = scorer.calibration().apply(scorer.raw.scorer.score(&turns(&asked)));
        assert!(score <= hard.max(hard + (plain - hard) * 0.75) + 1e-6, "{strange}: {score} of {plain}, hard {hard}");
        assert!((scorer.drawn_down(&asked) - (plain - score).max(0.0)).abs() < 1e-6);
    }
    // It is in the file.
    let read = PairScorer::from_bytes(&scorer.to_bytes()).unwrap();
    assert_eq!(read, scorer);
    assert_eq!(read.score(&known), scorer.score(&known));
    let reasons = scorer.reasons(&known, 40);
    let told = reasons.iter().any(|reason| reason.what.contains("recorded prompts near"));
    assert!(told || near.push == 0.0, "{reasons:?}");
}

/// A scorer for several tenants keeps no vector of a tenant's prompt.
#[test]
fn a_tenants_prompts_are_not_remembered() {
    let options = TrainOptions { ways: vec![Way::Blend { seed: 1 }], ..options() };
    let mut rows = outcomes(600);
    for row in &mut rows {
        row.recorded.tenant = "acme".to_owned();
    }
    let scorer = train(&rows, &options).unwrap().scorer;
    let known = ask("Is this message spam: tea and music bread 3");
    let near = scorer.neighbours(&known).unwrap();
    assert_eq!((near.count, near.push, near.familiar), (0, 0.0, 1.0));
    assert_eq!(scorer.drawn_down(&known), 0.0);
}

/// From a length on the encoder scores, below it n-grams; the file keeps both, and a damaged encoder is told by name.
#[cfg(feature = "lab")]
#[test]
fn an_encoder_scores_what_is_long_and_is_part_of_the_file() {
    use super::performer::fit_long;
    use super::train::train_with;
    use local_worker::scorer::performer::train::TrainOptions as EncoderOptions;
    use local_worker::scorer::performer::{Attention, PerformerFileError, Shape};
    let mut rows = outcomes(900);
    // What another model made of the same prompts helps, and is learnt as another task.
    let other = rows.iter().map(|row| Outcome { small: "other".to_owned(), id: format!("x{}", row.id), ..row.clone() });
    rows.extend(other.collect::<Vec<_>>());
    let attention = Attention::Favor { features: 16 };
    let encoder = EncoderOptions {
        shape: Shape { width: 16, layers: 1, heads: 2, inner: 16, attention },
        epochs: 8,
        ..EncoderOptions::usual(attention, 1)
    };
    let mut passes = 0;
    let mut fit = |rows: &[&Outcome], pair: &Pair| fit_long(rows, pair, 14, &encoder, |_| passes += 1);
    let TrainedScorer { scorer, report, .. } = train_with(&rows, &options(), Some(&mut fit)).unwrap();
    assert_eq!(passes, 8);
    assert!(report.auc.unwrap() > 0.75, "{report:?}");
    assert!(
        report.markdown(&[]).contains("scored by: Performer encoder (16 random features a head) from 14 tokens on")
    );

    let short = ask("Is this message spam: tea");
    let long = ask("Is this message spam: tea and music bread and rivers and winter and bread 3");
    assert!(!scorer.is_slow(&short) && scorer.is_slow(&long));
    assert_eq!((scorer.read_by(&short), scorer.raw(&turns(&short))), (None, scorer.raw.scorer.score(&turns(&short))));
    let tokens = scorer.raw.long.as_ref().unwrap().encoder.tokens(&turns(&long)).len();
    assert!(tokens > 14 && scorer.read_by(&long).unwrap().ends_with(&format!("over {tokens} tokens")));
    let encoder = &scorer.raw.long.as_ref().unwrap().encoder;
    assert_eq!(scorer.raw(&turns(&long)), encoder.score(&turns(&long)));
    let hard = ask("Prove the theorem on: tea and music bread and rivers and winter and bread 3");
    assert!(scorer.score(&long).unwrap().get() > scorer.score(&hard).unwrap().get());

    let bytes = scorer.to_bytes();
    let read = PairScorer::from_bytes(&bytes).unwrap();
    assert_eq!((&read, read.version()), (&scorer, scorer.version()));
    let without = PairScorer::new(
        scorer.pair().clone(),
        scorer.raw.scorer.clone(),
        scorer.calibration().clone(),
        scorer.outcomes.clone(),
    );
    assert_ne!(without.version(), scorer.version(), "an encoder makes another scorer");
    let error = |bytes: &[u8]| PairScorer::from_bytes(bytes).unwrap_err();
    assert!(matches!(error(&bytes[..bytes.len() - 9]), PairFileError::Hash));
    assert!(matches!(error(&encoder.to_bytes()), PairFileError::Magic), "an encoder alone is no scorer of a pair");
    // Sealed again around an encoder of another version.
    let mut body = bytes[..bytes.len() - 32].to_vec();
    let at = body.windows(7).position(|window| window == b"SLPERF\0").unwrap();
    body[at + 7] = 2;
    body.extend(blake3::hash(&body).as_bytes());
    let PairFileError::Encoder(PerformerFileError::Version { found: 2 }) = error(&body) else { panic!("a version") };
}
