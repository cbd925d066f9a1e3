//! Orders by drafts are better where drafts tell more, and the figures say so without having seen the rows.

use super::*;
use crate::evidence::outcome::{OutcomeSource, Recorded};

fn outcome(id: usize, small: &str, quality: f64, split: &str) -> Outcome {
    Outcome {
        id: format!("{id} {small}"),
        source: "made".to_owned(),
        domain: String::new(),
        prompt: format!("question {} of kind {}", id % 97, id % 2),
        small: small.to_owned(),
        large: "large".to_owned(),
        small_quality: quality,
        large_quality: 1.0,
        cluster: id.to_string(),
        split: split.to_owned(),
        sampling_probability: 1.0,
        graded_by: OutcomeSource::Gold,
        recorded: Recorded::default(),
    }
}

/// A draft that is right in half of the cases, which the second agrees with and the tokens tell in most; the third says nothing.
fn case(id: usize, split: &str) -> Case {
    let right = (id / 2).is_multiple_of(2);
    let lucky = id % 10 == 7;
    let logprob = if right != (id % 9 == 4) { -0.1 } else { -1.0 };
    Case {
        outcome: outcome(id, "small", f64::from(u8::from(right)), split),
        text: "seven".to_owned(),
        tokens: vec![TokenFacts { logprob, margin: None, entropy: None }; 3],
        cut: false,
        others: vec![("second".to_owned(), f64::from(u8::from(right != lucky))), ("third".to_owned(), 1.0)],
    }
}

fn value(measured: &Measured, rule: &str) -> f64 {
    measured.rules.iter().find(|figures| figures.rule.name == rule).unwrap().apgr.0.unwrap()
}

#[test]
fn looking_at_drafts_recovers_more_than_the_prompt_and_is_charged() {
    let mut cases: Vec<Case> = (0..400).map(|id| case(id, "train")).collect();
    cases.extend((400..500).map(|id| case(id, "dev")));
    let found = cascade(&cases, &OF_ANSWERS, 1).unwrap();
    let pair = &found.pairs[0];
    assert_eq!((pair.folds.n, pair.apart.as_ref().unwrap().n), (400, 100));
    assert_eq!(pair.second, [("second".to_owned(), 5)], "the telling one is chosen in every fold");
    for measured in [&pair.folds, pair.apart.as_ref().unwrap()] {
        let (prompt, agreement, both) =
            (value(measured, "prompt"), value(measured, "agreement"), value(measured, "both"));
        assert!(prompt < 0.6 && agreement > 0.65 && both > 0.65, "{prompt} {agreement} {both}");
        let both = &measured.rules[2];
        let (gain, (low, high)) = (both.gain.0.unwrap(), both.gain.1.unwrap());
        assert!(low > 0.0 && low <= gain && gain <= high, "{gain} in {low} to {high}");
        assert!(both.undecided.is_some_and(|share| (0.0..=1.0).contains(&share)));
        assert_eq!(measured.rules.iter().map(|figures| figures.asked).collect::<Vec<_>>(), [0, 2, 2, 2, 3]);
    }
    assert_eq!(pair.others[1].apgr, Some(0.5), "who always agrees says nothing");
    assert!(pair.others[0].quality.is_none(), "it was not graded itself");
    assert_eq!(found.mean.len(), OF_ANSWERS.len());
}

#[test]
fn drafts_without_a_split_are_dealt_to_folds_and_their_tokens_looked_at() {
    let cases: Vec<Case> = (0..300).map(|id| case(id, "dev")).collect();
    let rules = [&OF_DRAFTS[..], &OF_SECONDS[..]].concat();
    let found = cascade(&cases, &rules, 1).unwrap();
    let pair = &found.pairs[0];
    assert!(pair.apart.is_none() && pair.folds.n == 300);
    let of = |rule| value(&pair.folds, rule);
    assert!(of("certainty") > 0.65 && of("judge") > 0.65, "{} {}", of("certainty"), of("judge"));
    assert!(of("judge_second") > of("judge") && of("judge") > of("prompt") + 0.05);
}

#[test]
fn a_pair_that_teaches_nothing_is_named() {
    let mut cases: Vec<Case> = (0..100).map(|id| case(id, "train")).collect();
    cases.iter_mut().for_each(|case| case.outcome.small_quality = 1.0);
    let refused = cascade(&cases, &OF_ANSWERS, 1).unwrap_err();
    assert!(refused.starts_with("made: small: left out: "), "{refused}");
}
