use super::*;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Requests with scores and costs at the large model; the cost of each at a threshold.
fn steps(rows: &[(f64, f64)]) -> impl Iterator<Item = (f64, Vec<Spent>)> + '_ {
    (0..=100).map(|step| f64::from(step) / 100.0).map(|threshold| {
        let usd = |(score, usd): &(f64, f64)| if *score >= threshold { 0.0 } else { *usd };
        (threshold, rows.iter().map(|row| Spent { usd: usd(row), weight: 1.0 }).collect())
    })
}

/// Uniform scores; costs of 0.2 or 0.6 of the most, whatever the score.
fn rows(seed: u64, n: usize) -> Vec<(f64, f64)> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| (rng.random::<f64>(), if rng.random::<bool>() { 0.2 } else { 0.6 })).collect()
}

#[test]
fn more_evidence_allows_a_higher_threshold_and_a_dear_ceiling_all() {
    // Everything remote costs 0.4 on average: a ceiling of 0.1 is worth a threshold of a quarter.
    let at = |n: usize, ceiling: f64| solve(steps(&rows(1, n)), ceiling, 1.0, 0.95);
    let few = at(10, 0.1);
    let (some, many) = (at(300, 0.1), at(10_000, 0.1));
    assert_eq!(few.threshold, None, "{few:?}");
    assert!(few.bound > 0.1);
    let (some_at, many_at) = (some.threshold.unwrap(), many.threshold.unwrap());
    assert!(some_at > 0.05 && some_at < many_at && many_at < 0.25, "{some_at} {many_at}");
    assert!(many.mean <= many.bound && many.bound <= 0.1 + 1e-6, "{many:?}");
    assert_eq!(at(10, 1.0).threshold, Some(1.0), "a ceiling that no request can exceed needs no proof");
    assert_eq!(solve(steps(&[]), 1.0, 1.0, 0.95).threshold, None);
}

#[test]
fn the_ceiling_is_broken_no_more_often_than_stated() {
    // Scores are uniform, so the true mean cost at a threshold is 0.4 of it.
    let draws = 400;
    let broken = (0..draws).filter(|seed| {
        let found = solve(steps(&rows(*seed, 200)), 0.1, 1.0, 0.9);
        found.threshold.is_some_and(|threshold| 0.4 * threshold > 0.1)
    });
    let share = broken.count() as f64 / draws as f64;
    assert!(share <= 0.1 + 3.0 * (0.1_f64 * 0.9 / draws as f64).sqrt(), "{share}");
}

fn certificate() -> SpendingCertificate {
    SpendingCertificate {
        schema: SPENDING_SCHEMA,
        goal: SpendingCertificate::goal(),
        policy: "p".to_owned(),
        policy_hash: "aa".to_owned(),
        scorer_version: "bb".to_owned(),
        evidence_hash: "cc".to_owned(),
        small: "s".to_owned(),
        large: "l".to_owned(),
        threshold: Some(0.25),
        n: 900,
        paid: 300,
        ceiling_usd_per_1000: 0.4,
        mean_usd_per_1000: 0.36,
        bound_usd_per_1000: 0.39,
        most_usd: 0.004,
        confidence: 0.95,
        local_share: 0.75,
        date: "2026-11-24".to_owned(),
    }
}

#[test]
fn a_certificate_reads_back_and_one_that_cannot_be_right_does_not() {
    let good = certificate().to_toml().unwrap();
    assert_eq!(SpendingCertificate::parse(&good).unwrap(), certificate());
    let none = SpendingCertificate { threshold: None, ..certificate() };
    assert_eq!(SpendingCertificate::parse(&none.to_toml().unwrap()).unwrap(), none);
    let table = [
        ("threshold = 0.25", "threshold = 1.5", "threshold 1.5 is not within"),
        ("bound_usd_per_1000 = 0.39", "bound_usd_per_1000 = 0.41", "above the ceiling"),
        ("bound_usd_per_1000 = 0.39", "bound_usd_per_1000 = nan", "is no amount"),
        ("most_usd = 0.004", "most_usd = -1.0", "is no amount"),
        ("confidence = 0.95", "confidence = 1.0", "confidence 1 is not"),
        ("\"max-quality\"", "\"min-cost\"", "goal \"min-cost\""),
        ("schema = 1", "schema = 2", "schema 2"),
        ("2026-11-24", "soon", "date \"soon\""),
        ("n = 900\n", "", "missing field `n`"),
    ];
    for (from, to, expected) in table {
        assert!(good.contains(from), "{from}");
        let error = SpendingCertificate::parse(&good.replace(from, to)).unwrap_err();
        assert!(error.to_string().contains(expected), "{to}: {error}");
    }
    let quality = include_str!("../../../../policies/balanced.solved.toml");
    assert!(SpendingCertificate::parse(quality).unwrap_err().to_string().contains("about quality"));
    assert!(certificate().check("aa", "bb").is_ok());
    assert!(certificate().check("ab", "bb").is_err() && certificate().check("aa", "b").is_err());
}
