//! How much each part of a blend counts.

use super::{PARTS, PRIOR_ROWS, PRIOR_SHARES, Rows, standard};

/// How the parts are blended.
pub(super) struct Shares {
    /// What each part is worth once its values have deviation 1.
    pub worth: [f64; PARTS],
    /// By what each part's plain values are multiplied.
    pub factors: [f64; PARTS],
}

impl Shares {
    /// Least squares with shares that are not negative, by coordinate descent.
    pub(super) fn of(values: &[[f32; PARTS]], rows: &Rows) -> Self {
        let column = |part: usize| values.iter().map(move |values| values[part]);
        let columns: [Vec<f32>; PARTS] = std::array::from_fn(|part| standard(column(part), &rows.weights));
        let product = |a: &[f32], b: &[f32]| -> f64 {
            let terms =
                a.iter().zip(b).zip(&rows.weights).map(|((a, b), weight)| f64::from(a * b) * f64::from(*weight));
            terms.sum()
        };
        let mut worth = PRIOR_SHARES;
        for _ in 0..200 {
            for part in 0..PARTS {
                let mut wanted = product(&columns[part], &rows.own) + PRIOR_ROWS * PRIOR_SHARES[part];
                for (other, share) in worth.iter().enumerate().filter(|(other, _)| *other != part) {
                    wanted -= share * product(&columns[part], &columns[other]);
                }
                worth[part] = (wanted / (product(&columns[part], &columns[part]) + PRIOR_ROWS)).max(0.0);
            }
        }
        let total: f64 = rows.weights.iter().map(|weight| f64::from(*weight)).sum();
        let factors = std::array::from_fn(|part| {
            let mean = column(part).zip(&rows.weights).map(|(v, w)| f64::from(v * w)).sum::<f64>() / total;
            let spread = column(part)
                .zip(&rows.weights)
                .map(|(v, w)| (f64::from(v) - mean).powi(2) * f64::from(*w))
                .sum::<f64>();
            let deviation = (spread / total).sqrt();
            if deviation > 1e-6 { worth[part] / deviation } else { 0.0 }
        });
        for (worth, factor) in worth.iter_mut().zip(factors) {
            if factor == 0.0 {
                *worth = 0.0;
            }
        }
        Self { worth, factors }
    }

    pub(super) fn blended(&self, values: &[f32; PARTS]) -> f64 {
        values.iter().zip(self.factors).map(|(value, factor)| f64::from(*value) * factor).sum()
    }
}
