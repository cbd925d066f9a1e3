//! Chances, penalties and masks on vocabularies of four tokens.

use super::*;

const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    seed: Some(7),
    alternatives: 0,
};

const CHANCE: Sampling = Sampling { temperature: 1.0, ..GREEDY };

fn logits() -> [f32; 4] {
    [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()]
}

/// How often each token comes; each draw is a request's first, with the next seed.
fn frequencies(sampling: &Sampling, mask: Option<&[u32]>) -> Vec<f64> {
    let mut scratch = SampleScratch::default();
    let mut counts = vec![0.0; 4];
    let mut sampler = Sampler::new(sampling.clone(), &[]);
    let allowed = mask.map(|words| Allowed { words, or_likeliest: None });
    for _ in 0..20_000 {
        let choice = sampler.choose(Level::Scalar, &logits(), allowed, &mut scratch).unwrap();
        counts[choice.id as usize] += 1.0 / 20_000.0;
    }
    counts
}

#[test]
fn chances_are_those_of_the_softmax_within_what_is_kept() {
    let check = |sampling: Sampling, mask: Option<&[u32]>, expected: [f64; 4]| {
        for (got, want) in frequencies(&sampling, mask).into_iter().zip(expected) {
            assert!((got - want).abs() < 0.015, "{sampling:?} {mask:?}: {got} for {want}");
            assert!(want > 0.0 || got == 0.0, "{sampling:?} {mask:?}: {got} for none");
        }
    };
    check(GREEDY, None, [1.0, 0.0, 0.0, 0.0]);
    check(CHANCE, None, [0.5, 0.3, 0.15, 0.05]);
    check(Sampling { top_p: 0.79, ..CHANCE }, None, [0.625, 0.375, 0.0, 0.0]);
    check(Sampling { top_p: 0.01, ..CHANCE }, None, [1.0, 0.0, 0.0, 0.0]);
    let squares = 0.25 + 0.09 + 0.0225 + 0.0025;
    let half = [0.25 / squares, 0.09 / squares, 0.0225 / squares, 0.0025 / squares];
    check(Sampling { temperature: 0.5, ..CHANCE }, None, half);
    check(Sampling { top_k: 1, ..CHANCE }, None, [1.0, 0.0, 0.0, 0.0]);
    check(Sampling { top_k: 2, ..CHANCE }, None, [0.625, 0.375, 0.0, 0.0]);
    check(Sampling { top_k: 9, ..CHANCE }, None, [0.5, 0.3, 0.15, 0.05]);
    // Of three with masses 0.526, 0.316, 0.158, two have more than 0.8.
    check(Sampling { top_k: 3, top_p: 0.8, ..CHANCE }, None, [0.625, 0.375, 0.0, 0.0]);
    check(Sampling { min_p: 0.29, ..CHANCE }, None, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]);
    check(Sampling { min_p: 1.0, ..CHANCE }, None, [1.0, 0.0, 0.0, 0.0]);
    check(CHANCE, Some(&[0b1010]), [0.0, 0.3 / 0.35, 0.0, 0.05 / 0.35]);
    check(GREEDY, Some(&[0b1100]), [0.0, 0.0, 1.0, 0.0]);
    check(Sampling { top_k: 1, ..CHANCE }, Some(&[0b1010]), [0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn a_mask_that_forbids_all_is_told() {
    let mut scratch = SampleScratch::default();
    for (sampling, mask) in [(GREEDY, &[0][..]), (CHANCE, &[]), (CHANCE, &[0b1_0000])] {
        let allowed = Allowed { words: mask, or_likeliest: None };
        let choice = Sampler::new(sampling, &[]).choose(Level::Scalar, &logits(), Some(allowed), &mut scratch);
        assert_eq!(choice, Err(NoChoice::NothingAllowed));
    }
}

#[test]
fn one_more_token_may_come_where_the_model_finds_it_likeliest() {
    let mut scratch = SampleScratch::default();
    for (extra, chosen) in [(None, 2), (Some(0), 0), (Some(1), 2), (Some(9), 2)] {
        let allowed = Allowed { words: &[0b1100], or_likeliest: extra };
        let choice = Sampler::new(GREEDY, &[]).choose(Level::Scalar, &logits(), Some(allowed), &mut scratch).unwrap();
        assert_eq!(choice.id, chosen, "{extra:?}");
    }
}

#[test]
fn penalties_weigh_what_was_said() {
    let check = |sampling: Sampling, prompt: &[u32], logits: [f32; 4], expected: &[u32]| {
        let mut sampler = Sampler::new(sampling.clone(), prompt);
        let mut scratch = SampleScratch::default();
        let chosen: Vec<u32> = (0..expected.len())
            .map(|_| sampler.choose(Level::Scalar, &logits, None, &mut scratch).unwrap().id)
            .collect();
        assert_eq!(chosen, expected, "{sampling:?}");
    };
    let falling = [4.0, 3.0, 1.0, -1.0];
    check(GREEDY, &[0], falling, &[0, 0, 0]);
    check(Sampling { repetition_penalty: 1.5, ..GREEDY }, &[], falling, &[0, 1, 0]);
    check(Sampling { repetition_penalty: 1.5, ..GREEDY }, &[0], falling, &[1, 0, 0]);
    check(Sampling { repetition_penalty: 3.0, ..GREEDY }, &[0, 1], [-0.5, -0.6, -1.4, -9.0], &[2, 0, 0]);
    check(Sampling { presence_penalty: 1.5, ..GREEDY }, &[0], falling, &[0, 1, 0, 0]);
    check(Sampling { frequency_penalty: 0.75, ..GREEDY }, &[0], falling, &[0, 0, 1, 0, 1, 0, 1]);
    check(Sampling { frequency_penalty: -2.0, ..GREEDY }, &[], falling, &[0, 0, 0]);
}

#[test]
fn a_choice_tells_its_probability_and_margin_and_refuses_what_is_no_number() {
    let mut scratch = SampleScratch::default();
    let mut choose = |logits: &[f32]| Sampler::new(GREEDY, &[]).choose(Level::detect(), logits, None, &mut scratch);
    let choice = choose(&[0.25f32.ln(), 0.75f32.ln()]).unwrap();
    assert_eq!(choice.id, 1);
    assert!((choice.logprob - 0.75f32.ln()).abs() < 1e-5 && (choice.margin - 3f32.ln()).abs() < 1e-5);
    assert_eq!(choose(&[0.0, f32::NAN]), Err(NoChoice::NotANumber));
    assert_eq!(choose(&[f32::NAN; 40]), Err(NoChoice::NotANumber));
}

#[test]
fn alternatives_are_the_model_s_own_whatever_is_allowed() {
    let mut scratch = SampleScratch::default();
    for (wanted, ids) in [(0, &[][..]), (1, &[0]), (3, &[0, 1, 2]), (9, &[0, 1, 2, 3])] {
        let mut sampler = Sampler::new(Sampling { alternatives: wanted, repetition_penalty: 2.0, ..GREEDY }, &[0, 1]);
        let allowed = Allowed { words: &[0b1000], or_likeliest: None };
        let choice = sampler.choose(Level::Scalar, &logits(), Some(allowed), &mut scratch).unwrap();
        assert_eq!(choice.id, 3);
        assert!((choice.logprob - 0.05f32.ln()).abs() < 1e-5 && (choice.margin - (5f32 / 3.0).ln()).abs() < 1e-5);
        let told: Vec<u32> = sampler.alternatives().iter().map(|(id, _)| *id).collect();
        assert_eq!(told, ids);
        for (id, logprob) in sampler.alternatives() {
            assert!((logprob - logits()[*id as usize]).abs() < 1e-5);
        }
    }
}
