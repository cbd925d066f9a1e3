use super::*;
use proptest::prelude::*;

const TOPICS: [(&str, f32); 6] = [
    ("Classify the sentiment: what a lovely film", 1.0),
    ("Which language is this: guten Morgen", 1.0),
    ("Is this spam? win a prize now", 1.0),
    ("Prove that every bounded sequence has a limit point", 0.0),
    ("Write a Rust program that parses JSON:\n```rust\n```", 0.0),
    ("What were the causes of the war of 1870?", 0.0),
];

fn fitted(options: FitOptions) -> Scorer {
    let turns: Vec<[Turn<'_>; 1]> = TOPICS.iter().map(|(text, _)| [Turn::user(text)]).collect();
    let examples: Vec<Example<'_>> =
        turns.iter().zip(TOPICS).map(|(turns, (_, target))| Example { turns, target, weight: 1.0 }).collect();
    let mut learner = Learner::new(options).unwrap();
    learner.fit(&examples).unwrap();
    learner.scorer()
}

fn small() -> FitOptions {
    FitOptions { bits: 12, epochs: 30, ..FitOptions::default() }
}

#[test]
fn learns_to_tell_topics_apart() {
    let scorer = fitted(small());
    for (text, target) in TOPICS {
        let score = scorer.score(&[Turn::user(text)]);
        assert_eq!(score > 0.0, target > 0.5, "{text}: {score}");
    }
    let similar = "Classify the sentiment: what a dreadful film";
    assert!(scorer.score(&[Turn::user(similar)]) > 0.0);
}

#[test]
fn the_same_fit_gives_the_same_bytes() {
    let first = fitted(small());
    assert_eq!(first.to_bytes(), fitted(small()).to_bytes());
    let other = fitted(FitOptions { seed: 2, ..small() });
    assert_ne!(first.version(), other.version());
}

#[test]
fn reads_back_what_it_writes() {
    let scorer = fitted(small());
    let bytes = scorer.to_bytes();
    let read = Scorer::from_bytes(&bytes).unwrap();
    assert_eq!(read, scorer);
    assert_eq!(read.version().len(), 16);
    assert_eq!(fitted(FitOptions::default()).to_bytes().len() / 1024, 128);
}

#[test]
fn every_damaged_byte_is_noticed() {
    let scorer = fitted(FitOptions { bits: 10, ..small() });
    let bytes = scorer.to_bytes();
    for place in (0..bytes.len()).step_by(7).chain(bytes.len() - 40..bytes.len()) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x10;
        let error = Scorer::from_bytes(&damaged).unwrap_err();
        let expected = if place < 8 { ScorerFileError::Magic } else { ScorerFileError::Hash };
        assert_eq!(error, expected, "byte {place}");
    }
    for length in [0, 7, 8, 11, 12, 43, 44, 100, bytes.len() - 1] {
        assert!(Scorer::from_bytes(&bytes[..length]).is_err(), "{length} bytes");
    }
    let longer = [bytes.as_slice(), b"x"].concat();
    assert_eq!(Scorer::from_bytes(&longer), Err(ScorerFileError::Hash));
}

/// A file whose hash is right but whose header is not.
fn forged(from: &str, to: &str) -> Vec<u8> {
    let bytes = fitted(FitOptions { bits: 10, ..small() }).to_bytes();
    let length = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[12..12 + length]).unwrap();
    assert!(header.contains(from), "{header}");
    let header = header.replacen(from, to, 1);
    let mut forged = bytes[..8].to_vec();
    forged.extend((header.len() as u32).to_le_bytes());
    forged.extend(header.as_bytes());
    forged.extend(&bytes[12 + length..bytes.len() - 32]);
    let hash = blake3::hash(&forged);
    forged.extend(hash.as_bytes());
    forged
}

#[test]
fn a_right_hash_over_a_wrong_header_is_refused() {
    let table = [
        ("\"features\":1", "\"features\":9", "features version 9"),
        ("\"bits\":10", "\"bits\":40", "2^40"),
        ("\"bits\":10", "\"bits\":11", "bytes where"),
        ("\"scale\":", "\"scale\":null,\"x\":", "header"),
        ("\"surface\":[", "\"surface\":[0.0,", "surface weights"),
    ];
    for (from, to, expected) in table {
        let error = Scorer::from_bytes(&forged(from, to)).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn resuming_keeps_the_weights_and_later_examples_move_them() {
    let scorer = fitted(small());
    let mut learner = Learner::resume(&scorer, small(), 1.0).unwrap();
    let text = [Turn::user("Translate this poem into Finnish")];
    let same = learner.scorer();
    for (topic, _) in TOPICS {
        let turns = [Turn::user(topic)];
        assert!((same.score(&turns) - scorer.score(&turns)).abs() < 0.01);
    }
    let before = scorer.score(&text);
    let example = Example { turns: &text, target: 0.0, weight: 1.0 };
    for _ in 0..20 {
        learner.partial_fit(&[example]).unwrap();
    }
    let after = learner.scorer();
    assert!(after.score(&text) < before - 0.5, "{before} to {}", after.score(&text));
    assert_eq!(after.seen(), scorer.seen() + 20);
}

#[test]
fn what_cannot_be_learnt_is_refused() {
    let turns = [Turn::user("x")];
    let mut learner = Learner::new(small()).unwrap();
    let untouched = learner.scorer();
    assert_eq!(learner.fit(&[]), Err(FitError::Empty));
    for (target, weight) in [(f32::NAN, 1.0), (1.5, 1.0), (-0.1, 1.0), (1.0, 0.0), (1.0, f32::INFINITY)] {
        let good = Example { turns: &turns, target: 1.0, weight: 1.0 };
        let bad = Example { turns: &turns, target, weight };
        let error = learner.fit(&[good, bad]).unwrap_err();
        assert!(matches!(error, FitError::Example { place: 1, .. }));
    }
    assert_eq!(learner.scorer(), untouched);
    for options in [
        FitOptions { bits: 30, ..small() },
        FitOptions { epochs: 0, ..small() },
        FitOptions { rate: 0.0, ..small() },
        FitOptions { l1: f32::NAN, ..small() },
        FitOptions { l2: -1.0, ..small() },
    ] {
        assert!(matches!(Learner::new(options), Err(FitError::Option { .. })));
    }
}

#[test]
fn reasons_name_what_moved_the_score() {
    let scorer = fitted(small());
    let for_it = scorer.reasons(&[Turn::user(TOPICS[0].0)], 5);
    assert_eq!(for_it.len(), 5);
    assert!(for_it.windows(2).all(|pair| pair[0].push.abs() >= pair[1].push.abs()));
    assert!(for_it.iter().any(|reason| reason.what == "\"sentiment\"" && reason.push > 0.0), "{for_it:?}");
    let against = scorer.reasons(&[Turn::user(TOPICS[3].0)], 40);
    assert!(against.iter().any(|reason| reason.what == "\"bounded\"" && reason.push < 0.0), "{against:?}");
}

#[test]
fn the_whole_conversation_counts() {
    let scorer = fitted(small());
    let question = Turn::user("and this one?");
    let alone = scorer.score(&[question]);
    let context = Turn { speaker: Speaker::System, text: "You grade proofs." };
    assert_ne!(scorer.score(&[context, question]), alone);
    assert_ne!(scorer.score(&[question, question]), alone);
    assert!(scorer.score(&[]).is_finite());
}

proptest! {
    #[test]
    fn any_text_has_a_finite_score_that_never_changes(text in "\\PC{0,400}", tail in "(?s).{0,40}") {
        let scorer = fitted(FitOptions { bits: 10, epochs: 1, ..small() });
        let turns = [Turn::user(&text), Turn { speaker: Speaker::Assistant, text: &tail }];
        let score = scorer.score(&turns);
        prop_assert!(score.is_finite());
        prop_assert_eq!(score, scorer.score(&turns));
        prop_assert!(scorer.reasons(&turns, 3).len() <= 3);
    }
}
