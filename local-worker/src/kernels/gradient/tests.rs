use super::super::{Level, rope_neighbours, silu_multiply};
use super::*;

const COUNT: usize = 40;

fn values(step: f32) -> Vec<f32> {
    (0..COUNT).map(|index| (index as f32 * step + step).sin() * 1.5).collect()
}

/// Compares a gradient with differences of a scalar that `loss` makes of the input.
fn check(name: &str, input: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
    let mut moved = input.to_vec();
    for (place, found) in gradient.iter().enumerate() {
        let mut at = |change: f32| {
            moved[place] = input[place] + change;
            let loss = loss(&moved);
            moved[place] = input[place];
            loss
        };
        let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
        let off = (slope - f64::from(*found)).abs();
        assert!(off < 2e-3 * (1.0 + slope.abs()), "{name}, place {place}: {slope} by differences, {found} found");
    }
}

/// What `out` is worth: its sum weighted by `by`.
fn worth(out: &[f32], by: &[f32]) -> f64 {
    out.iter().zip(by).map(|(out, by)| f64::from(*out) * f64::from(*by)).sum()
}

#[test]
fn norms_and_gates_pull_as_differences_say() {
    let (x, weight, dout) = (values(0.7), values(1.1), values(0.4));
    for level in Level::available() {
        let norm = |x: &[f32], weight: &[f32]| {
            let mut out = vec![0.0; COUNT];
            let factor = rms_norm_forward(level, x, weight, 1e-5, &mut out);
            (out, factor)
        };
        let (mut dx, mut dweight) = (vec![1.0; COUNT], vec![0.0; COUNT]);
        rms_norm_backward(level, &x, &weight, norm(&x, &weight).1, &dout, &mut dx, &mut dweight);
        dx.iter_mut().for_each(|dx| *dx -= 1.0);
        check("norm, input", &x, &dx, |x| worth(&norm(x, &weight).0, &dout));
        check("norm, weight", &weight, &dweight, |weight| worth(&norm(&x, weight).0, &dout));

        let gated = |gate: &[f32], up: &[f32]| {
            let mut out = vec![0.0; COUNT];
            silu_multiply(level, gate, up, &mut out);
            out
        };
        let (mut dgate, mut dup) = (x.clone(), weight.clone());
        silu_multiply_backward(level, &mut dgate, &mut dup, &dout);
        check("gate", &x, &dgate, |gate| worth(&gated(gate, &weight), &dout));
        check("up", &weight, &dup, |up| worth(&gated(&x, up), &dout));
    }
}

#[test]
fn shares_angles_and_losses_pull_as_differences_say() {
    let (scores, dout) = (values(0.9)[..36].to_vec(), values(0.4)[..36].to_vec());
    for level in Level::available() {
        let shares = |scores: &[f32]| {
            let mut shares = scores.to_vec();
            causal_softmax(level, &mut shares, 6);
            shares
        };
        let kept = shares(&scores);
        assert!((0..36).all(|place| (place % 6 > place / 6) == (kept[place] == 0.0)));
        let mut dscores = dout.clone();
        causal_softmax_backward(level, &kept, &mut dscores, 6, 1.0);
        check("softmax", &scores, &dscores, |scores| worth(&shares(scores), &dout));

        let (cosines, sines): (Vec<f32>, Vec<f32>) = (0..6).map(|i| ((i as f32).cos(), (i as f32).sin())).unzip();
        let mut dturned = dout.clone();
        rope_neighbours_backward(level, &mut dturned, 12, &cosines, &sines);
        check("angles", &scores, &dturned, |values| {
            let mut values = values.to_vec();
            rope_neighbours(level, &mut values, 12, &cosines, &sines);
            worth(&values, &dout)
        });

        let mut dlogits = scores.clone();
        let loss = cross_entropy(level, &mut dlogits, 7, 0.5);
        let expected = scores.iter().map(|s| f64::from(*s).exp()).sum::<f64>().ln() - f64::from(scores[7]);
        assert!((f64::from(loss) - expected).abs() < 1e-5);
        check("loss", &scores, &dlogits, |logits| 0.5 * f64::from(cross_entropy(level, &mut logits.to_vec(), 7, 1.0)));

        let soft = Soft { ids: &[3, 9, 30], shares: &[0.5, 0.25, 0.25], temperature: 2.0, weight: 0.5 };
        let mut pulled = vec![0.0; 36];
        soft_divergence(level, &scores, soft, &mut [0.0; 36], &mut pulled);
        check("teacher", &scores, &pulled, |logits| {
            0.5 * f64::from(soft_divergence(level, logits, soft, &mut [0.0; 36], &mut [0.0; 36]))
        });
    }
}

#[test]
fn adam_moves_as_its_paper_says() {
    let adam =
        Adam { rate: 0.1 / (1.0 - 0.9), keep: 0.99, beta1: 0.9, beta2: 0.98, correction2: 1.0 / 0.02, scale: 0.5 };
    for level in Level::available() {
        let (mut weights, mut first, mut second) = (vec![1.0; 3], vec![0.0; 3], vec![0.0; 3]);
        adam_step(level, adam, &mut weights, &[2.0, -4.0, 0.0], &mut first, &mut second);
        for (weight, expected) in weights.iter().zip([0.89, 1.09, 0.99]) {
            assert!((weight - expected).abs() < 1e-5, "the first step moves by the rate against the sign: {weight}");
        }
        assert!((first[1] + 0.2).abs() < 1e-6 && (second[1] - 0.08).abs() < 1e-6);
        let mut sum = vec![1.0, 2.0, 3.0];
        assert_eq!(add_and_square(level, &mut sum, &[1.0, 0.0, -1.0]), 12.0);
    }
}
