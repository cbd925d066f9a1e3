//! The vector loops of attention by positive random features: exponents are bounded, brought below a peak and only then
//! raised, so that nothing overflows whatever the norms are.

use super::vector::{exponential, leveled, softmax_terms};

/// Exponents beyond this are as good as infinite; sums of two of them are still numbers.
const MOST: f32 = 1e30;

/// An exponent within ±[`MOST`]; what is no number counts as the least.
#[inline(always)]
fn bounded(exponent: f32) -> f32 {
    let exponent = if exponent > -MOST { exponent } else { -MOST };
    if exponent < MOST { exponent } else { MOST }
}

leveled! {
    /// `x − less`, bounded, in its place.
    pub fn bound_exponents(values: &mut [f32], less: f32) {
        for value in values {
            *value = bounded(*value - less);
        }
    }
}

leveled! {
    /// Raises each peak to the value at its place where that is higher.
    pub fn raise(peaks: &mut [f32], values: &[f32]) {
        for (peak, value) in peaks.iter_mut().zip(values) {
            *peak = if *value > *peak { *value } else { *peak };
        }
    }
}

leveled! {
    /// `e^(x − peak)` in its place, each with a peak of its own; adds them to `totals`.
    pub fn exponentials_below(values: &mut [f32], peaks: &[f32], totals: &mut [f32]) {
        for ((value, peak), total) in values.iter_mut().zip(peaks).zip(totals) {
            *value = exponential(*value - peak);
            *total += *value;
        }
    }
}

leveled! {
    /// `e^(x + peak − the largest of these sums)` in its place: the largest becomes 1.
    pub fn query_exponentials(values: &mut [f32], peaks: &[f32]) {
        for (value, peak) in values.iter_mut().zip(peaks) {
            *value = bounded(*value) + peak;
        }
        softmax_terms(values);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn exponents_stay_numbers_at_every_level() {
        for level in Level::available() {
            let mut values = [1.0, -2.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
            bound_exponents(level, &mut values, 0.5);
            assert_eq!(values, [0.5, -2.5, MOST, -MOST, -MOST]);
            let mut peaks = [0.0; 5];
            raise(level, &mut peaks, &values);
            assert_eq!(peaks, [0.5, 0.0, MOST, 0.0, 0.0]);
            let mut totals = [1.0; 5];
            exponentials_below(level, &mut values, &peaks, &mut totals);
            let wanted = [1.0, (-2.5f32).exp(), 1.0, 0.0, 0.0];
            for ((value, total), wanted) in values.iter().zip(totals).zip(wanted) {
                assert!((value - wanted).abs() < 1e-6 && (total - 1.0 - wanted).abs() < 1e-6, "{values:?}");
            }
            let mut values = [f32::NAN, 3.0, 1.0];
            query_exponentials(level, &mut values, &[0.0, -1.0, 2.0]);
            assert!(values[0] < 1e-30 && (values[1] - (-1.0f32).exp()).abs() < 1e-6 && values[2] == 1.0, "{values:?}");
        }
    }
}
