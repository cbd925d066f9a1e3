use super::*;
use crate::catalog::Catalog;
use crate::domain::{Message, Role};
use crate::evidence::certificate::Method;
use crate::policy::live::BreachAction;
use rand::{Rng, SeedableRng, rngs::StdRng};

fn text(action: BreachAction, drift: BreachAction) -> String {
    let step = if [action, drift].contains(&BreachAction::Tighten) { "step = 0.1\n" } else { "" };
    format!(
        "name = \"p\"\n[models]\nsmall = [\"sluice-nano\"]\nlarge = [\"openai/gpt-4.1-mini\"]\n[objective]\n\
         goal = \"min-cost\"\nquality_target = 0.9\nconfidence = 0.9\n[on_breach]\nquality = \"{}\"\ndrift = \"{}\"\n{step}",
        action.as_str(),
        drift.as_str()
    )
}

/// A policy with a certificate of `evidence`, whose reference are `looks`.
fn policy(action: BreachAction, drift: BreachAction, evidence: &str, looks: &[Look]) -> Policy {
    let catalog = Catalog::parse("models.toml", include_str!("../../../policies/models.toml")).unwrap();
    let mut policy = Policy::parse("p.toml", &text(action, drift), &catalog).unwrap();
    let certificate = Certificate {
        policy: "p".to_owned(),
        policy_hash: policy.reference.hash.clone(),
        scorer_version: "v".to_owned(),
        evidence_hash: evidence.to_owned(),
        small: "sluice-nano".to_owned(),
        large: "*".to_owned(),
        threshold: Some(0.6),
        n: 500,
        bound: -0.01,
        confidence: 0.9,
        target: 0.9,
        local_share: 0.5,
        needed: None,
        method: Method::Betting,
        date: "2026-11-24".to_owned(),
        reference: Reference::of(looks),
    };
    policy.certify(Some(Ok(certificate)), Some("v"));
    assert_eq!(policy.threshold(), Some(0.6));
    policy
}

fn pair() -> Pair {
    Pair::new("sluice-nano", "openai/gpt-4.1-mini")
}

/// Half of the requests are served locally; the small model is right with probability `right` there, the large one always.
fn request(random: &mut StdRng, right: f64) -> GradedRequest {
    let local = random.random_bool(0.5);
    let good = random.random_bool(if local { right } else { 0.2 });
    let grades = Graded { small: f64::from(u8::from(good)), large: 1.0, local };
    GradedRequest { pair: pair(), grades, score: Some(if local { 0.8 } else { 0.2 }) }
}

fn look(random: &mut StdRng, words: usize) -> Look {
    let count = random.random_range(words..2 * words);
    let text = vec!["word"; count].join(" ");
    let message = Message::text(Role::User, text);
    Look::of(Some(random.random_range(0.3..0.9)), [message.content().as_str()])
}

fn report(live: &Live, policy: &Policy) -> LiveReport {
    live.report(policy).pop().unwrap()
}

#[test]
fn a_drop_in_quality_leads_to_what_the_policy_says_and_outlives_the_process() {
    for action in [BreachAction::Alarm, BreachAction::Tighten, BreachAction::AllRemote] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("live.json");
        let policy = self::policy(action, BreachAction::Alarm, "e", &[]);
        let live = Live::open(Some(&file)).unwrap();
        let mut random = StdRng::seed_from_u64(3);
        (0..150).for_each(|_| live.graded(&policy, &request(&mut random, 0.95)));
        assert_eq!(live.standing(&policy), Standing::Holds);
        let before = report(&live, &policy);
        assert!(before.breaches.is_empty() && before.graded == 150 && before.promised == (0.9, 0.9));
        let (error, n) = before.calibration.unwrap();
        assert!(n == 150 && error < 0.15, "{error}");
        let kept = before.kept.unwrap();
        assert!(kept.low < 0.97 && kept.high > 0.95 && (0.9..1.0).contains(&kept.value), "{kept:?}");

        let broke = (0..400).position(|_| {
            live.graded(&policy, &request(&mut random, 0.2));
            !report(&live, &policy).breaches.is_empty()
        });
        let broke = broke.expect("a drop from 97 to 60 % is found");
        assert!(broke < 150, "{broke}");
        let after = report(&live, &policy);
        assert!(after.breaches[0].0 == BreachOf::Quality && after.breaches[0].1.contains("refute the promise"));
        let standing = live.standing(&policy);
        match action {
            BreachAction::Alarm => assert_eq!(standing, Standing::Holds),
            BreachAction::Tighten => {
                assert_eq!((standing.clone(), after.graded), (Standing::Tightened(0.1), 0), "tested anew");
            }
            BreachAction::AllRemote => {
                assert!(matches!(&standing, Standing::Withdrawn(why) if why.contains("everything goes remote")));
            }
        }
        // A restart without a word, as after kill -9, and one that saved.
        assert_eq!(Live::open(Some(&file)).unwrap().standing(&policy), standing);
        live.graded(&policy, &request(&mut random, 0.9));
        live.save();
        let again = Live::open(Some(&file)).unwrap();
        assert_eq!(report(&again, &policy), report(&live, &policy));
        // A new certificate starts anew.
        let renewed = self::policy(action, BreachAction::Alarm, "other evidence", &[]);
        assert_eq!((again.standing(&renewed), again.report(&renewed)), (Standing::Holds, Vec::new()));
    }
}

#[test]
fn a_promise_that_is_kept_is_seldom_called_broken() {
    const RUNS: u64 = 60;
    let policy = policy(BreachAction::AllRemote, BreachAction::Alarm, "e", &[]);
    // Half at 0.8, half at 1: just nine tenths.
    let broken = (0..RUNS).filter(|seed| {
        let live = Live::default();
        let mut random = StdRng::seed_from_u64(*seed);
        (0..400).for_each(|_| live.graded(&policy, &request(&mut random, 0.8)));
        live.standing(&policy) != Standing::Holds
    });
    let broken = broken.count() as f64;
    assert!(broken <= (0.1 + 3.0 * (0.09_f64 / RUNS as f64).sqrt()) * RUNS as f64, "{broken} of {RUNS}");
}

#[test]
fn other_requests_than_those_it_was_solved_on_are_told() {
    let mut random = StdRng::seed_from_u64(5);
    let known: Vec<Look> = (0..400).map(|_| look(&mut random, 20)).collect();
    for (reference, words) in [(known.as_slice(), "those it was solved on"), (&[], "the first it saw")] {
        let policy = policy(BreachAction::Alarm, BreachAction::AllRemote, "e", reference);
        let live = Live::default();
        (0..2 * PROBED).for_each(|_| live.saw(&policy, &pair(), look(&mut random, 20)));
        assert_eq!(live.standing(&policy), Standing::Holds);
        assert!(report(&live, &policy).shifts.iter().all(|(_, shift)| *shift < 0.1));
        (0..2 * PROBED).for_each(|_| live.saw(&policy, &pair(), look(&mut random, 200)));
        let breaches = report(&live, &policy).breaches;
        assert_eq!(breaches.len(), 1, "told once");
        assert!(breaches[0].0 == BreachOf::Drift && breaches[0].1.contains(words) && breaches[0].1.contains("bytes"));
        assert!(matches!(live.standing(&policy), Standing::Withdrawn(_)));
    }
}

#[test]
fn a_policy_without_a_promise_is_not_watched_and_a_damaged_file_is_refused() {
    let catalog = Catalog::parse("models.toml", include_str!("../../../policies/models.toml")).unwrap();
    let uncertified = Policy::parse("p.toml", &text(BreachAction::AllRemote, BreachAction::Alarm), &catalog).unwrap();
    let live = Live::default();
    live.graded(&uncertified, &request(&mut StdRng::seed_from_u64(1), 0.1));
    assert!(live.report(&uncertified).is_empty() && Live::promise(&uncertified).is_none());

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("live.json");
    let policy = policy(BreachAction::AllRemote, BreachAction::Alarm, "e", &[]);
    let kept = Live::open(Some(&file)).unwrap();
    kept.graded(&policy, &request(&mut StdRng::seed_from_u64(1), 0.9));
    kept.save();
    let good = std::fs::read_to_string(&file).unwrap();
    for bad in [
        good[..good.len() / 2].to_owned(),
        good.replace("\"schema\":1", "\"schema\":9"),
        good.replace("\"raised\":0.0", "\"raised\":-1.0"),
    ] {
        std::fs::write(&file, bad).unwrap();
        let error = Live::open(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("live.json") && error.contains("remove it"), "{error}");
    }
}
