use super::*;
use crate::evidence::outcome::Outcomes;
use std::fmt::Write as _;

/// Outcomes of two small models: which prompts are hard shows in a word and, less, in length; half of the grades are luck.
fn outcomes(count: usize, offset: usize) -> Outcomes {
    let mut text = String::new();
    for number in offset..offset + count {
        for (model, skill) in [("tiny", 3), ("mini", 4)] {
            let hard = number % 5 >= skill - 1;
            let luck = place("luck", &format!("{number}{model}")) % 10;
            let small = u8::from(if luck < 6 { !hard } else { luck < 8 });
            let about = if hard { "prove the theorem about rings" } else { "name the colour of this flower" };
            let tail = " slowly".repeat(number % 4);
            writeln!(
                text,
                "{{\"id\":\"{model}{number}\",\"source\":\"made\",\"prompt\":\"{about} {number}{tail}\",\"weak_model\":\"{model}\",\"strong_model\":\"big\",\"weak_quality\":{small},\"strong_quality\":1,\"cluster\":\"c{number}\"}}"
            )
            .unwrap();
        }
    }
    Outcomes::parse([("made", text.as_str())]).unwrap()
}

#[test]
fn a_scorer_beats_chance_on_rows_it_has_not_seen() {
    let (train, test) = (outcomes(500, 0), outcomes(300, 500));
    let found = routing(&train.rows, &test.rows, 1, true).unwrap();
    assert_eq!(found.pairs.len(), 2);
    for pair in &found.pairs {
        assert_eq!((pair.n, pair.fitted_on, pair.differs), (300, 500, true));
        let (low, high) = pair.apgr_ci.unwrap();
        let apgr = pair.apgr.unwrap();
        assert!(apgr > 0.6 && low < apgr && apgr < high, "{pair:?}");
        assert!(pair.auc.unwrap() > 0.7 && pair.cpt50 < pair.cpt80);
        assert!(pair.ece < 0.1 && pair.ece_perfect.0 <= pair.ece_perfect.1);
        let [random, _, words, _, oracle] = pair.baselines.as_slice() else { panic!("{pair:?}") };
        assert!((random.unwrap() - 0.5).abs() < 0.1 && words.unwrap() > 0.55 && oracle.unwrap() > apgr);
    }
    assert_eq!(found.mean.pairs, 2);
    assert!(found.mean.gain_ci.0 <= found.mean.gain && found.mean.gain <= found.mean.gain_ci.1);
    assert!(found.mean.best != "oracle" && found.scorer.is_some() && found.notes.is_empty());
    let learnt: Vec<usize> = found.curve.iter().map(|point| point.outcomes).collect();
    assert_eq!(learnt, [100, 300]);
    let again = routing(&train.rows, &test.rows, 1, false).unwrap();
    assert_eq!((again.pairs, again.mean), (found.pairs, found.mean));
}

#[test]
fn prompts_of_the_test_are_not_learnt() {
    let all = outcomes(200, 0);
    let (train, test): (Vec<Outcome>, Vec<Outcome>) = (all.rows.clone(), all.rows[200..].to_vec());
    let found = routing(&train, &test, 1, false).unwrap();
    assert!(found.pairs.iter().all(|pair| pair.fitted_on == 100), "{:?}", found.pairs);
    assert!(found.notes[0].starts_with("200 training rows"), "{:?}", found.notes);
    assert!(matches!(routing(&train[..4], &test[..0], 1, false), Err(RoutingError::NothingInCommon)));
}

#[test]
fn one_class_gives_one_score_and_a_note() {
    let mut train = outcomes(60, 0).rows;
    for row in &mut train {
        row.small_quality = 0.0;
    }
    let test = outcomes(60, 100).rows;
    let found = routing(&train, &test, 1, false).unwrap();
    assert!(found.notes.iter().all(|note| note.contains("no scorer")) && found.notes.len() == 2, "{:?}", found.notes);
    assert!(found.pairs.iter().all(|pair| pair.apgr == Some(0.5) && pair.shares.is_empty()));
}

#[test]
fn a_student_is_measured_with_and_without_its_teacher() {
    let (train, test) = (outcomes(300, 0), outcomes(200, 300));
    let found = students(&train.rows, &test.rows, 1, 0.5).unwrap();
    assert_eq!((found.pairs.len(), found.gains.len()), (2, 3));
    for pair in &found.pairs {
        assert_eq!((pair.n, pair.fitted_on, pair.more_prompts), (200, 300, 0), "both pairs have all prompts");
        let [_, taught, widely, _] = pair.arms;
        assert!(pair.arms.iter().all(|arm| arm.auc.unwrap() > 0.65 && arm.apgr.unwrap() > 0.55), "{pair:?}");
        assert_eq!(taught, widely, "there are no more prompts");
    }
    for (gain, arm) in found.gains.iter().zip(&found.means[1..]) {
        assert!((gain.auc - (arm.auc.unwrap() - found.means[0].auc.unwrap())).abs() < 1e-9, "{gain:?}");
        assert!(gain.auc_ci.0 <= gain.auc && gain.auc <= gain.auc_ci.1 && gain.auc_by_seed.len() == 3, "{gain:?}");
    }
    // Without a say the teacher changes nothing.
    let mute = students(&train.rows, &test.rows, 1, 0.0).unwrap();
    assert_eq!(mute.pairs[0].arms[0], mute.pairs[0].arms[2]);
    assert_eq!(mute.gains[0].apgr_ci, (0.0, 0.0));
    assert!(students(&train.rows, &[], 1, 0.5).is_err());
}
