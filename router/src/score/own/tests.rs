use super::super::Scorers;
use super::*;
use crate::domain::Role;
use crate::evidence::calibration::Calibration;
use local_worker::scorer::{Example, FitOptions, Learner};

/// Scorers with one for `s / l` that says `probability` of everything.
fn scorers(probability: f64) -> Scorers {
    let turns = [Turn::user("a")];
    let mut learner = Learner::new(FitOptions { bits: 10, ..FitOptions::default() }).unwrap();
    let example = |target| Example { turns: &turns, target, weight: 1.0 };
    learner.fit(&[example(1.0), example(0.0)]).unwrap();
    let calibration = Calibration::Isotonic(vec![(0.0, probability)]);
    Scorers::new([PairScorer::new(pair(), learner.scorer(), calibration, String::new())])
}

fn pair() -> Pair {
    Pair::new("s", "l")
}

fn observe(scorers: &Scorers, tenant: &str, prompt: &str, small_quality: f64) {
    let pair = pair();
    let observed = Observed { tenant, pair: &pair, prompt, small_quality, large_quality: 1.0 };
    scorers.observe(&scorers.get("s", "l").unwrap(), &observed).unwrap();
}

fn scoring(scorers: &Scorers, tenant: &str, prompt: &str) -> Scoring {
    let scorer = scorers.get("s", "l").unwrap();
    scorers.scoring(&scorer, tenant, &pair(), &[Message::text(Role::User, prompt)]).unwrap()
}

#[test]
fn a_tenants_outcomes_count_at_once_and_for_nobody_else() {
    let scorers = scorers(0.5);
    assert_eq!(scoring(&scorers, "acme", "How many apples has Ann?").own, None);
    for number in 0..40 {
        observe(&scorers, "acme", &format!("How many apples are left after {number} days?"), 0.0);
        observe(&scorers, "acme", &format!("Translate sentence {number} to French: the weather is fine"), 1.0);
    }
    let sums = scoring(&scorers, "acme", "How many apples are left after a year?");
    let words = scoring(&scorers, "acme", "Translate to French: the weather is bad");
    assert!(sums.learnt().get() < 0.2 && words.learnt().get() > 0.8, "{sums:?} {words:?}");
    // What was proven of the fitted score holds for lower ones only.
    assert_eq!((sums.proven(), words.proven()), (sums.learnt(), words.fitted));
    let own = sums.own.unwrap();
    assert!(own.near >= 20 && own.sufficed == 0 && own.trust > 0.9, "{own:?}");
    // Far from all of it, the fitted score stays.
    let far = scoring(&scorers, "acme", "kubectl rollout restart deployment nginx");
    assert!((far.learnt().get() - 0.5).abs() < 0.1, "{far:?}");
    // Another tenant never hears of it, nor does a request without one, nor another pair.
    for stranger in ["globex", "", "acm", "acme2"] {
        let other = scoring(&scorers, stranger, "How many apples are left after a year?");
        assert_eq!((other.own, other.learnt().get()), (None, 0.5), "{stranger}");
    }
    let scorer = scorers.get("s", "l").unwrap();
    let asked = [Message::text(Role::User, "How many apples are left?")];
    assert_eq!(scorers.scoring(&scorer, "acme", &Pair::new("s", "other"), &asked).unwrap().own, None);
}

/// Outcomes that near ones do not foretell: the fitted score is right, and stays.
#[test]
fn a_memory_that_does_not_help_is_not_used() {
    let scorers = scorers(0.7);
    let mut spread: f64 = 0.0;
    for number in 0..400_u64 {
        let luck = crate::score::train::place("luck", &number.to_string()) % 10;
        let prompt = format!("How many apples are left after {} days?", number % 50);
        if number > 100 {
            spread = spread.max((scoring(&scorers, "t", &prompt).learnt().get() - 0.7).abs());
        }
        observe(&scorers, "t", &prompt, f64::from(u8::from(luck < 7)));
    }
    assert!(spread < 0.15, "{spread}");
}

#[test]
fn odd_grades_and_nameless_tenants_are_not_kept_and_memories_are_bounded() {
    let scorers = scorers(0.5);
    for quality in [f64::NAN, -0.1, 1.1] {
        observe(&scorers, "acme", "How many apples?", quality);
    }
    observe(&scorers, "", "How many apples?", 1.0);
    assert!(scorers.own.kept.lock().unwrap().memories.is_empty());
    for number in 0..MOST_MEMORIES + 5 {
        observe(&scorers, &format!("tenant {number}"), "How many apples?", 1.0);
        observe(&scorers, "steady", "How many apples?", 1.0);
    }
    let kept = scorers.own.kept.lock().unwrap();
    assert_eq!(kept.memories.len(), MOST_MEMORIES);
    assert!(kept.memories.keys().any(|(tenant, _)| tenant == "steady"));
    assert!(!kept.memories.keys().any(|(tenant, _)| tenant == "tenant 0"));
}
