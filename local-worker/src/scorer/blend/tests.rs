use super::*;
use crate::scorer::Speaker;

/// Prompts on which the small model is better, as good or worse by word and by number, with some noise.
fn made(count: usize) -> Vec<(String, f32)> {
    let made = |number: usize| {
        let sum = number.is_multiple_of(3);
        let hard = number % 7 < 3;
        let about = if sum { "Add up the numbers" } else { "Name the capital of the country" };
        let long = if hard { " and then explain every step of it in a proof. Write it down. Be brief" } else { "" };
        let noise = number.wrapping_mul(2_654_435_761) >> 7;
        let advantage = f32::from(i8::from(!sum) - i8::from(hard)) * if noise.is_multiple_of(5) { 0.0 } else { 1.0 };
        (format!("{about} {}{long}, number {number}", number * 37 % 101), advantage)
    };
    (0..count).map(made).collect()
}

fn blend(made: &[(String, f32)]) -> Blend {
    let turns: Vec<[Turn<'_>; 1]> = made.iter().map(|(text, _)| [Turn::user(text)]).collect();
    let case = |(group, (turns, (_, advantage))): (usize, (_, &(String, f32)))| Case {
        turns,
        advantage: *advantage,
        shared: *advantage,
        weight: 1.0,
        group: group as u64,
        remembered: true,
    };
    let turns = turns.iter().map(|turns| turns.as_slice());
    let cases: Vec<Case<'_>> = turns.zip(made).enumerate().map(case).collect();
    fit(&cases, &Pool::default(), 1).unwrap()
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (x, y) = (mean(a), mean(b));
    let cross: f64 = a.iter().zip(b).map(|(a, b)| (a - x) * (b - y)).sum();
    let square = |values: &[f64], mean: f64| values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    cross / (square(a, x) * square(b, y)).sqrt()
}

#[test]
fn held_out_scores_foretell_advantage() {
    let made = made(400);
    let blend = blend(&made);
    let advantages: Vec<f64> = made.iter().map(|(_, advantage)| f64::from(*advantage)).collect();
    let found = correlation(&blend.held_out, &advantages);
    assert!(found > 0.75, "{found}");
    assert!(blend.shares.iter().all(|(_, share)| *share >= 0.0));
    // The prior alone would leave no more than a quarter.
    assert!(blend.shares.iter().map(|(_, share)| share).sum::<f32>() > 0.6, "{:?}", blend.shares);
}

/// The scorer that is served computes what the parts were weighed by, up to 16-bit weights.
#[test]
fn the_scorer_is_the_blend_of_its_parts() {
    let made = made(150);
    let turns: Vec<[Turn<'_>; 1]> = made.iter().map(|(text, _)| [Turn::user(text)]).collect();
    let case = |(group, (turns, (_, advantage))): (usize, (_, &(String, f32)))| Case {
        turns,
        advantage: *advantage,
        shared: advantage * 0.5,
        weight: 1.0 + (group % 3) as f32,
        group: group as u64,
        remembered: true,
    };
    let cases: Vec<Case<'_>> = turns.iter().map(|turns| turns.as_slice()).zip(&made).enumerate().map(case).collect();
    let rows = Rows::of(&cases).unwrap();
    let nearness = near::nearness(&rows);
    let embedder = StaticEmbedder::shared().unwrap();
    let all: Vec<usize> = (0..cases.len()).collect();
    let values: Vec<[f32; PARTS]> =
        (0..cases.len()).map(|place| std::array::from_fn(|part| (place * (part + 3) % 17) as f32)).collect();
    let shares = Shares::of(&values, &rows);
    let commons: Vec<Common<'_>> =
        cases.iter().map(|case| Common { turns: case.turns, shared: -case.shared, group: case.group }).collect();
    let pool = Pool::fit(&commons).unwrap();
    let fitted = || rows.parts(&all, pool.without(None), (3, nearness));
    let (parts, same) = (fitted(), fitted());
    let scorer = parts.scorer(&shares, 1).unwrap();
    let system = Turn { speaker: Speaker::System, text: "Be brief. Be brief, be very brief." };
    let long = "again and again and again ".repeat(30);
    for turns in [vec![Turn::user(&made[4].0)], vec![system, Turn::user("again and again?")], vec![Turn::user(&long)]] {
        let wanted = shares.blended(&same.values(&View::of(&embedder, &turns)));
        assert!((scorer.score(&turns) - wanted).abs() < 2e-3, "{} {wanted}", scorer.score(&turns));
    }
    let read = Scorer::from_bytes(&scorer.to_bytes()).unwrap();
    assert_eq!(read, scorer);
}

#[test]
fn reasons_name_words_and_shapes() {
    let blend = blend(&made(400));
    let text = "Add up the numbers 3 and 4 and then explain every step of it in a proof. Write it down. Be brief";
    let reasons = blend.scorer.reasons(&[Turn::user(text)], 40);
    assert!(reasons.iter().any(|reason| reason.what.starts_with('"')), "{reasons:?}");
    assert!(reasons.iter().all(|reason| reason.push.is_finite()));
}

#[test]
fn what_cannot_be_learnt_from_is_refused() {
    let turns = [Turn::user("a")];
    let case = Case { turns: &turns, advantage: 0.0, shared: 0.0, weight: 1.0, group: 1, remembered: true };
    let error = |cases: &[Case<'_>]| fit(cases, &Pool::default(), 1).unwrap_err();
    assert_eq!(error(&[]), FitError::Empty);
    assert_eq!(error(&[case, case]), FitError::OneGroup { cases: 2 });
    let other = Case { group: 2, ..case };
    for broken in [
        Case { advantage: f32::NAN, ..case },
        Case { advantage: 1.5, ..case },
        Case { weight: 0.0, ..case },
        Case { shared: f32::INFINITY, ..case },
    ] {
        assert!(matches!(error(&[other, broken]), FitError::Example { place: 1, .. }));
    }
    // All alike: nothing to tell apart, and no part is worth anything.
    let alike = fit(&[case, other], &Pool::default(), 1).unwrap();
    assert!(alike.shares.iter().all(|(_, share)| *share == 0.0), "{:?}", alike.shares);
    assert_eq!(alike.scorer.score(&turns), 0.0);
}
