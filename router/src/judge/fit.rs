//! Fitting a judge on recorded drafts.

use super::Judge;
use super::draft::{COUNT, LENGTH_OFF};
use crate::evidence::calibration::{Calibration, CalibrationError, Scored, auc};

/// A draft that was graded.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Its features, see [`super::features`].
    pub features: [f64; COUNT],
    /// The features of how it began, if it came to [`super::FIRST_LOOK`] tokens.
    pub prefix: Option<[f64; COUNT]>,
    /// Whether it was as good as the large model's answer.
    pub suffices: bool,
    /// Near-duplicates of one prompt have one cluster.
    pub cluster: String,
}

/// Why no judge can be fitted.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum JudgeFitError {
    /// Fewer than can be learnt from.
    #[error("{found} drafts are too few to fit a judge; at least {least} are needed")]
    TooFew {
        /// Drafts given.
        found: usize,
        /// Drafts needed.
        least: usize,
    },
    /// One of the two classes is missing, or a number is none.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
}

/// Drafts that a fit needs.
const LEAST: usize = 60;
/// Parts of the cross-validation that the calibration is fitted on.
const FOLDS: u64 = 5;
/// Weight of the pull of all weights towards 0, in rows.
const RIDGE: f64 = 2.0;
/// Share of the good drafts that stopping early may cost.
const STOPPED_GOOD: f64 = 0.005;

/// Fits a judge of `small`'s drafts. Returns it with the area under the ROC curve of predictions for drafts of clusters that
/// were held out.
///
/// # Errors
/// Too few drafts, or only good or only bad ones.
pub fn fit(small: &str, rows: &[Judged]) -> Result<(Judge, f64), JudgeFitError> {
    if rows.len() < LEAST {
        return Err(JudgeFitError::TooFew { found: rows.len(), least: LEAST });
    }
    let mut held_out = Vec::with_capacity(rows.len());
    for fold in 0..FOLDS {
        let (test, rest): (Vec<&Judged>, Vec<&Judged>) = rows.iter().partition(|row| fold_of(&row.cluster) == fold);
        let model = regress(small, &rest);
        held_out.extend(test.iter().map(|row| Scored { score: model.raw(&row.features), suffices: row.suffices }));
    }
    let mut judge = regress(small, &rows.iter().collect::<Vec<_>>());
    judge.calibration = Calibration::fit(&held_out)?;
    judge.stop_below = stop_below(&judge, rows);
    judge.version = judge.hash();
    Ok((judge, auc(&held_out).unwrap_or(0.5)))
}

fn fold_of(cluster: &str) -> u64 {
    let hash = blake3::hash(cluster.as_bytes());
    hash.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)) % FOLDS
}

/// The raw score below which hardly any good draft begins.
fn stop_below(judge: &Judge, rows: &[Judged]) -> f64 {
    let begun = rows.iter().filter(|row| row.suffices).filter_map(|row| row.prefix);
    let mut good: Vec<f64> = begun.map(|prefix| judge.raw(&prefix)).collect();
    good.sort_by(f64::total_cmp);
    // Of few good drafts the lowest says little: stop nothing.
    if good.len() < 100 { f64::MIN } else { good[(good.len() as f64 * STOPPED_GOOD) as usize] }
}

/// Logistic regression with a ridge, by Newton's method on standardised features.
fn regress(small: &str, rows: &[&Judged]) -> Judge {
    let mut judge = Judge {
        small: small.to_owned(),
        mean: [0.0; COUNT],
        scale: [1.0; COUNT],
        weights: [0.0; COUNT],
        bias: 0.0,
        calibration: Calibration::Platt { slope: 1.0, offset: 0.0 },
        stop_below: f64::MIN,
        version: String::new(),
    };
    for at in 0..COUNT {
        // The length comes before how far it is off, which needs its mean.
        let value = |row: &&Judged| if at == LENGTH_OFF { judge.length_off(&row.features) } else { row.features[at] };
        let known: Vec<f64> = rows.iter().map(value).filter(|value| value.is_finite()).collect();
        let count = known.len().max(1) as f64;
        let mean = known.iter().sum::<f64>() / count;
        let variance = known.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        judge.mean[at] = mean;
        // A feature that never changes stays at its mean, so its weight stays 0.
        judge.scale[at] = if variance > 1e-12 { variance.sqrt() } else { 1.0 };
    }
    let inputs: Vec<[f64; COUNT + 1]> = rows
        .iter()
        .map(|row| std::array::from_fn(|at| if at < COUNT { judge.standard(at, &row.features) } else { 1.0 }))
        .collect();
    let mut weights = [0.0; COUNT + 1];
    for _ in 0..30 {
        let step = newton_step(&inputs, rows, &weights);
        let mut size = 0.0f64;
        for (weight, step) in weights.iter_mut().zip(step) {
            *weight += step;
            size = size.max(step.abs());
        }
        if size < 1e-8 {
            break;
        }
    }
    judge.weights.copy_from_slice(&weights[..COUNT]);
    judge.bias = weights[COUNT];
    judge
}

fn newton_step(inputs: &[[f64; COUNT + 1]], rows: &[&Judged], weights: &[f64; COUNT + 1]) -> [f64; COUNT + 1] {
    let mut slope = [0.0; COUNT + 1];
    let mut curve = [[0.0; COUNT + 1]; COUNT + 1];
    for (at, weight) in weights.iter().enumerate().take(COUNT) {
        slope[at] = -RIDGE * weight;
        curve[at][at] = RIDGE;
    }
    curve[COUNT][COUNT] = 1e-6;
    for (input, row) in inputs.iter().zip(rows) {
        let sum: f64 = input.iter().zip(weights).map(|(value, weight)| value * weight).sum();
        let probability = 1.0 / (1.0 + (-sum.clamp(-30.0, 30.0)).exp());
        let miss = f64::from(u8::from(row.suffices)) - probability;
        let spread = (probability * (1.0 - probability)).max(1e-6);
        for i in 0..=COUNT {
            slope[i] += miss * input[i];
            for j in 0..=COUNT {
                curve[i][j] += spread * input[i] * input[j];
            }
        }
    }
    solve(curve, slope)
}

/// Solves a positive definite system by elimination.
fn solve(mut matrix: [[f64; COUNT + 1]; COUNT + 1], mut right: [f64; COUNT + 1]) -> [f64; COUNT + 1] {
    for column in 0..=COUNT {
        for row in column + 1..=COUNT {
            let factor = matrix[row][column] / matrix[column][column];
            let above = matrix[column];
            for (value, above) in matrix[row].iter_mut().zip(above).skip(column) {
                *value -= factor * above;
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..=COUNT).rev() {
        let known: f64 = (row + 1..=COUNT).map(|column| matrix[row][column] * right[column]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right
}
