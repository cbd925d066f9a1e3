use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

const PROMISE: Promise = Promise { target: 0.95, confidence: 0.95 };

#[test]
fn clopper_pearson_solves_the_binomial_tail() {
    // The tail summed term by term, with nothing in common with the solver.
    let tail = |hits: usize, n: usize, rate: f64| -> f64 {
        let mut term = (1.0 - rate).powi(n as i32);
        let mut sum = term;
        for k in 1..=hits {
            term *= (n - k + 1) as f64 / k as f64 * rate / (1.0 - rate);
            sum += term;
        }
        sum
    };
    for (hits, n, alpha) in
        [(0, 59, 0.05), (1, 10, 0.05), (5, 50, 0.05), (37, 800, 0.05), (3, 1000, 0.01), (9, 10, 0.1)]
    {
        let upper = clopper_pearson_upper(hits, n, alpha);
        assert!((tail(hits, n, upper) - alpha).abs() < 1e-9, "{hits} of {n}");
    }
    assert!((clopper_pearson_upper(0, 59, 0.05) - (1.0 - 0.05_f64.powf(1.0 / 59.0))).abs() < 1e-12);
    assert_eq!(clopper_pearson_upper(10, 10, 0.05), 1.0);
    assert_eq!(clopper_pearson_upper(0, 0, 0.05), 1.0);
}

/// A synthetic recorded set to draw from. `shift` moves how well the small model does at every score.
fn population(shift: f64, graded_large: bool) -> Vec<Evidence> {
    let mut random = StdRng::seed_from_u64(7);
    (0..4000)
        .map(|_| {
            let score: f64 = random.random_range(0.0..1.0);
            let right = random.random_bool((1.2 * score + shift).clamp(0.0, 1.0));
            let large = !graded_large || random.random_bool(0.9);
            Evidence { score, small: f64::from(u8::from(right)), large: f64::from(u8::from(large)), weight: 1.0 }
        })
        .collect()
}

/// A set in which every wrong proof is as close to the truth as can be: most of the traffic has one score, and serving it
/// locally breaks the promise by a hair.
fn knife_edge(graded_large: bool) -> Vec<Evidence> {
    let row =
        |score: f64, small: bool, large: f64| Evidence { score, small: f64::from(u8::from(small)), large, weight: 1.0 };
    let mut rows: Vec<Evidence> = (0..800).map(|_| row(0.95, true, 1.0)).collect();
    let losses = |rows: &[Evidence]| mean_loss(rows, 0.9, PROMISE.target);
    rows.extend((0..2800).map(|_| row(0.9, true, 1.0)));
    let large = if graded_large { 0.97 } else { 1.0 };
    rows.extend((0..400).map(|_| row(0.5, false, large)));
    // One more wrong answer at a time, until the promise is broken.
    for place in 800..3600 {
        rows[place].small = 0.0;
        if losses(&rows) > 0.0 {
            break;
        }
    }
    rows
}

fn mean_loss(rows: &[Evidence], threshold: f64, target: f64) -> f64 {
    rows.iter().map(|row| row.loss(threshold, target)).sum::<f64>() / rows.len() as f64
}

/// Draws with replacement: the share of solutions that break the promise in the population, and the mean local share.
fn trial(population: &[Evidence], n: usize, draws: u64) -> (f64, f64) {
    let (mut broken, mut local) = (0.0, 0.0);
    for seed in 0..draws {
        let mut random = StdRng::seed_from_u64(seed);
        let sample: Vec<Evidence> = (0..n).map(|_| population[random.random_range(0..population.len())]).collect();
        let solution = solve(&sample, PROMISE).unwrap();
        if let Some(threshold) = solution.threshold {
            broken += f64::from(u8::from(mean_loss(population, threshold, PROMISE.target) > 0.0));
            local += population.iter().filter(|row| row.score >= threshold).count() as f64 / population.len() as f64;
        }
    }
    (broken / draws as f64, local / draws as f64)
}

/// The most that may stay local if the whole population is known.
fn oracle(population: &[Evidence]) -> f64 {
    let kept = grid().take_while(|threshold| mean_loss(population, *threshold, PROMISE.target) <= 0.0);
    let threshold = kept.last().unwrap();
    population.iter().filter(|row| row.score >= threshold).count() as f64 / population.len() as f64
}

#[test]
fn promises_are_kept_at_the_stated_confidence_and_not_by_doing_nothing() {
    const DRAWS: u64 = 500;
    let allowed = 0.05 + 3.0 * (0.05_f64 * 0.95 / DRAWS as f64).sqrt();
    for graded_large in [false, true] {
        let ordinary = population(0.0, graded_large);
        let (broken, local) = trial(&ordinary, 800, DRAWS);
        assert!(broken <= allowed, "large graded {graded_large}: {broken} broken");
        let most = oracle(&ordinary);
        assert!(local > 0.6 * most, "large graded {graded_large}: {local} local of {most}");

        let edge = knife_edge(graded_large);
        let (broken, local) = trial(&edge, 800, DRAWS);
        assert!(broken <= allowed, "knife edge, large graded {graded_large}: {broken} broken");
        // What is safe is found: a fifth of the traffic scores 0.95 and is always right.
        assert!(local > 0.15, "knife edge, large graded {graded_large}: {local} local");
    }
}

#[test]
fn methods_follow_the_kind_of_grades() {
    assert_eq!(solve(&population(0.0, false), PROMISE).unwrap().method, Method::ExactBinomial);
    assert_eq!(solve(&population(0.0, true), PROMISE).unwrap().method, Method::Betting);
    let mut graded = population(0.0, false);
    graded[0].small = 0.5;
    assert_eq!(solve(&graded, PROMISE).unwrap().method, Method::Betting);
}

#[test]
fn a_solution_is_consistent() {
    for graded_large in [false, true] {
        let evidence = population(0.0, graded_large);
        let solution = solve(&evidence, PROMISE).unwrap();
        let threshold = solution.threshold.unwrap();
        assert!(solution.bound <= 0.0 && solution.bound >= mean_loss(&evidence, threshold, 0.95));
        assert_eq!(solution.n, 4000);
        assert_eq!(solution.needed, None);
        assert!(solution.local_share > 0.05 && solution.local_share < 1.0);
        let surer = Promise { confidence: 0.999, ..PROMISE };
        assert!(solve(&evidence, surer).unwrap().threshold.unwrap() >= threshold);
        let stricter = Promise { target: 0.99, ..PROMISE };
        assert!(solve(&evidence, stricter).unwrap().threshold.unwrap() > threshold);
    }
}

#[test]
fn too_little_evidence_means_remote_and_says_how_much_more() {
    for graded_large in [false, true] {
        let good = population(0.0, graded_large);
        for n in [0, 1, 20] {
            let solution = solve(&good[..n], PROMISE).unwrap();
            assert_eq!((solution.threshold, solution.local_share), (None, 0.0), "{n} rows");
            assert!(solution.bound > 0.0);
        }
        let solution = solve(&good[..20], PROMISE).unwrap();
        let needed = solution.needed.unwrap();
        assert!((20..600).contains(&needed), "large graded {graded_large}: {needed}");
        let enough = (20 + 2 * needed) as usize;
        assert!(solve(&good[..enough], PROMISE).unwrap().threshold.is_some());
    }
}

#[test]
fn a_small_model_that_fails_where_it_scores_high_stays_unused() {
    let evidence: Vec<Evidence> = population(0.0, false)
        .into_iter()
        .map(|row| Evidence { small: 1.0 - row.small, score: if row.score > 0.5 { 1.0 } else { row.score }, ..row })
        .collect();
    let solution = solve(&evidence, PROMISE).unwrap();
    assert_eq!((solution.threshold, solution.needed), (None, None));
    assert!(solution.bound > 0.0);
}

#[test]
fn a_threshold_that_nothing_reaches_is_none() {
    let evidence = vec![Evidence { score: 0.0, small: 0.0, large: 1.0, weight: 1.0 }; 500];
    let solution = solve(&evidence, PROMISE).unwrap();
    assert_eq!(solution.threshold, None);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let good = Evidence { score: 0.5, small: 1.0, large: 1.0, weight: 1.0 };
    for bad in [Evidence { score: f64::NAN, ..good }, Evidence { small: 1.1, ..good }, Evidence { large: -0.1, ..good }]
    {
        assert_eq!(solve(&[good, bad], PROMISE), Err(BoundError::Evidence { place: 1 }));
    }
    for promise in [
        Promise { target: 0.0, ..PROMISE },
        Promise { target: 1.1, ..PROMISE },
        Promise { confidence: 1.0, ..PROMISE },
        Promise { confidence: f64::NAN, ..PROMISE },
    ] {
        assert!(matches!(solve(&[good], promise), Err(BoundError::Promise { .. })));
    }
}

#[test]
fn the_betting_bound_covers_and_tightens() {
    let mut random = StdRng::seed_from_u64(11);
    let mut missed = 0;
    let mut widths = Vec::new();
    for n in [100, 1000] {
        let mut width = 0.0;
        for _ in 0..300 {
            let evidence: Vec<Evidence> = (0..n)
                .map(|_| Evidence { score: 1.0, small: random.random_range(0.8..=1.0), large: 1.0, weight: 1.0 })
                .collect();
            // The small model's mean quality is 0.9: the mean loss is 0.05.
            let losses = Losses { evidence: &evidence, threshold: 0.5, target: 0.95 };
            let upper = losses.upper_mean(0.05);
            missed += i32::from(upper < 0.05);
            width += (upper - 0.05) / 300.0;
        }
        widths.push(width);
    }
    assert!(missed <= 45, "{missed} of 600 bounds lie below the mean");
    assert!(widths[1] < 0.02 && widths[1] < widths[0] / 2.0, "{widths:?}");
}
