use super::*;

fn row(score: f64, small: f64, large: f64) -> Evidence {
    Evidence { score, small, large, weight: 1.0 }
}

#[test]
fn realised_and_hindsight_by_hand() {
    let rows = [row(0.9, 1.0, 1.0), row(0.8, 0.0, 1.0), row(0.3, 1.0, 0.0), row(0.1, 1.0, 1.0)];
    let some = realised(&rows, Some(0.8));
    assert!((some.quality_share - 2.0 / 3.0).abs() < 1e-12 && (some.local_share - 0.5).abs() < 1e-12);
    // Residuals 1 - 2/3, 0 - 2/3, 0, 1 - 2/3 over a large mean of 3/4.
    let expected = ((1.0 / 9.0 + 4.0 / 9.0 + 1.0 / 9.0) / 3.0 / 4.0_f64).sqrt() / 0.75;
    assert!((some.se - expected).abs() < 1e-12);
    let none = realised(&rows, None);
    assert_eq!((none.quality_share, none.se, none.local_share), (1.0, 0.0, 0.0));
    assert_eq!(realised(&[], Some(0.5)).n, 0);

    let best = hindsight(&rows, 0.95);
    // All local keeps 3 of 3 right; choosing each takes all but needs none left out either.
    assert_eq!((best.threshold, best.oracle, best.random), (1.0, 1.0, 1.0));
    let worse = [row(0.9, 1.0, 1.0), row(0.5, 0.0, 1.0)];
    let best = hindsight(&worse, 0.9);
    assert!((best.threshold - 0.5).abs() < 1e-12 && (best.oracle - 0.5).abs() < 1e-12);
    assert!((best.random - 0.2).abs() < 1e-12);
}
