//! Ridge regression over sparse rows, by conjugate gradients on the normal equations (Hestenes and Stiefel, 1952).
//!
//! Chosen because the table has more columns than there are rows, nothing dense has to be stored, and the same rows give
//! the same weights.

/// The columns of a row that are not 0, with their values.
pub type Row = Vec<(u32, f32)>;

/// Enough for about three digits: what is fitted is noisier than that.
const STEPS: usize = 40;
const ENOUGH: f64 = 1e-6;

/// The weights `w` and bias that make `sum weight * (target - bias - w . row)^2 + alpha * |w|^2` least, of a table with
/// `columns` columns; the bias, last, is not held back. Rows, targets and weights go together.
pub fn ridge(rows: &[&Row], targets: &[f32], weights: &[f32], alpha: f32, columns: usize) -> Vec<f32> {
    // Only columns that occur are worked on: a table is much larger than what a few hundred rows use of it.
    let mut place = vec![u32::MAX; columns];
    let mut used = Vec::new();
    let mut compact = |row: &&Row| -> Row {
        let slot = |(column, value): &(u32, f32)| {
            let place = place.get_mut(*column as usize)?;
            if *place == u32::MAX {
                *place = used.len() as u32;
                used.push(*column);
            }
            Some((*place, *value))
        };
        row.iter().filter_map(slot).collect()
    };
    let rows: Vec<Row> = rows.iter().map(&mut compact).collect();
    let solved = solve(&rows, targets, weights, alpha, used.len());
    let mut solution = vec![0.0; columns + 1];
    for (column, weight) in used.iter().zip(&solved) {
        if let Some(to) = solution.get_mut(*column as usize) {
            *to = *weight;
        }
    }
    if let (Some(to), Some(bias)) = (solution.last_mut(), solved.last()) {
        *to = *bias;
    }
    solution
}

fn solve(rows: &[Row], targets: &[f32], weights: &[f32], alpha: f32, columns: usize) -> Vec<f32> {
    let mut solution = vec![0.0; columns + 1];
    let mut residual = vec![0.0; columns + 1];
    for ((row, target), weight) in rows.iter().zip(targets).zip(weights) {
        spread(&mut residual, row, target * weight);
    }
    let mut direction = residual.clone();
    let mut length = square(&residual);
    let enough = length * ENOUGH;
    for _ in 0..STEPS {
        if length <= enough {
            break;
        }
        let mut image: Vec<f32> = direction.iter().map(|value| value * alpha).collect();
        if let Some(bias) = image.last_mut() {
            *bias = 0.0;
        }
        for (row, weight) in rows.iter().zip(weights) {
            spread(&mut image, row, dot(&direction, row) * weight);
        }
        let curve: f64 = direction.iter().zip(&image).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        if curve <= 0.0 {
            break;
        }
        let step = (length / curve) as f32;
        for (((solution, direction), residual), image) in
            solution.iter_mut().zip(&direction).zip(&mut residual).zip(&image)
        {
            *solution += step * direction;
            *residual -= step * image;
        }
        let after = square(&residual);
        let keep = (after / length) as f32;
        for (direction, residual) in direction.iter_mut().zip(&residual) {
            *direction = residual + keep * *direction;
        }
        length = after;
    }
    solution
}

/// A row times weights, plus the bias.
pub fn dot(weights: &[f32], row: &Row) -> f32 {
    let weight = |slot: u32| weights.get(slot as usize).copied().unwrap_or(0.0);
    row.iter().map(|(slot, value)| weight(*slot) * value).sum::<f32>() + weights.last().copied().unwrap_or(0.0)
}

fn spread(sums: &mut [f32], row: &Row, by: f32) {
    for (slot, value) in row {
        if let Some(sum) = sums.get_mut(*slot as usize) {
            *sum += value * by;
        }
    }
    if let Some(bias) = sums.last_mut() {
        *bias += by;
    }
}

fn square(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_what_can_be_solved_by_hand() {
        // One column of ones and minus ones, targets 3 and -1: bias 1; 2 rows * 2 / (2 + alpha).
        let rows: [Row; 2] = [vec![(0, 1.0)], vec![(0, -1.0)]];
        let rows: Vec<&Row> = rows.iter().collect();
        let solved = ridge(&rows, &[3.0, -1.0], &[1.0, 1.0], 2.0, 1);
        assert!((solved[0] - 1.0).abs() < 1e-4 && (solved[1] - 1.0).abs() < 1e-4, "{solved:?}");
        // A row that counts three times is three rows.
        let weighed = ridge(&rows, &[3.0, -1.0], &[3.0, 1.0], 2.0, 1);
        let twins = [rows[0], rows[0], rows[0], rows[1]];
        let repeated = ridge(&twins, &[3.0, 3.0, 3.0, -1.0], &[1.0; 4], 2.0, 1);
        assert!((weighed[0] - repeated[0]).abs() < 1e-4 && (weighed[1] - repeated[1]).abs() < 1e-4);
        assert!((dot(&solved, rows[0]) - 2.0).abs() < 1e-4);
    }

    #[test]
    fn nothing_to_learn_gives_the_mean() {
        let rows: [Row; 3] = [vec![], vec![], vec![]];
        let solved = ridge(&rows.iter().collect::<Vec<_>>(), &[1.0, 2.0, 6.0], &[1.0; 3], 1.0, 4);
        assert!((solved[4] - 3.0).abs() < 1e-4, "{solved:?}");
        assert_eq!(ridge(&[], &[], &[], 1.0, 1), [0.0, 0.0]);
    }
}
