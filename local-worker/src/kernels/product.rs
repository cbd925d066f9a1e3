//! Products of single-precision matrices for training and for encoders that score prompts: the `gemm` crate behind views whose
//! bounds are checked.
//!
//! One thread a product: training gives each thread records of its own, so that none waits for another inside a step.
#![allow(unsafe_code, reason = "the crate takes pointers; the views prove that every place is inside a slice")]

#[cfg(all(target_arch = "x86_64", feature = "lab"))]
mod brief;

/// What the factors of a product are multiplied as; sums are single.
#[cfg(feature = "lab")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bfloat16, about twice as fast; as they are on processors without AVX-512 BF16.
    Bf16,
}

#[cfg(feature = "lab")]
impl Precision {
    /// The product of factors of this kind, as the function `product` gives it.
    ///
    /// # Panics
    /// The sizes don't match.
    pub fn product(self, out: ViewMut<'_>, left: View<'_>, right: View<'_>, factor: f32, add: bool) {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Bf16 && brief::possible() {
            check(out.places, left.places, right.places);
            return brief::product(out, left, right, factor, add);
        }
        product(out, left, right, factor, add);
    }
}

/// Places of a matrix in a slice: `row · row_step + column · column_step`.
#[derive(Clone, Copy, Debug)]
struct Places {
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl Places {
    fn fit(&self, length: usize) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.row_step + (self.columns - 1) * self.column_step < length
    }
}

/// A matrix in a slice.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    values: &'a [f32],
    places: Places,
}

impl<'a> View<'a> {
    /// `rows` of `columns` values, a row beginning every `step` values.
    ///
    /// # Panics
    /// The slice is too short.
    pub fn new(values: &'a [f32], rows: usize, columns: usize, step: usize) -> Self {
        let places = Places { rows, columns, row_step: step, column_step: 1 };
        assert!(places.fit(values.len()), "{places:?} in {} values", values.len());
        Self { values, places }
    }

    /// The same, rows as columns.
    pub fn transposed(self) -> Self {
        let Places { rows, columns, row_step, column_step } = self.places;
        Self { places: Places { rows: columns, columns: rows, row_step: column_step, column_step: row_step }, ..self }
    }
}

/// A matrix in a slice, to be written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    values: &'a mut [f32],
    places: Places,
}

impl<'a> ViewMut<'a> {
    /// See [`View::new`].
    ///
    /// # Panics
    /// The slice is too short, or rows overlap.
    pub fn new(values: &'a mut [f32], rows: usize, columns: usize, step: usize) -> Self {
        let places = Places { rows, columns, row_step: step, column_step: 1 };
        assert!(places.fit(values.len()) && step >= columns, "{places:?} in {} values", values.len());
        Self { values, places }
    }
}

fn check(to: Places, a: Places, b: Places) {
    assert!(a.rows == to.rows && b.columns == to.columns && a.columns == b.rows, "{a:?} times {b:?} is no {to:?}");
}

/// `out = factor · left · right`, or `out += …` if `add`.
///
/// # Panics
/// The sizes don't match.
pub fn product(out: ViewMut<'_>, left: View<'_>, right: View<'_>, factor: f32, add: bool) {
    let (to, a, b) = (out.places, left.places, right.places);
    check(to, a, b);
    // SAFETY: the views' constructors proved that all places are inside their slices, and the slices outlive the call.
    unsafe {
        gemm::gemm(
            to.rows,
            to.columns,
            a.columns,
            out.values.as_mut_ptr(),
            to.column_step as isize,
            to.row_step as isize,
            add,
            left.values.as_ptr(),
            a.column_step as isize,
            a.row_step as isize,
            right.values.as_ptr(),
            b.column_step as isize,
            b.row_step as isize,
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * step).sin()).collect()
    }

    #[test]
    fn products_are_those_of_the_textbook_in_any_orientation() {
        let (m, n, k) = (5, 7, 3);
        let (a, b) = (values(m * (k + 2), 0.7), values(n * (k + 1), 1.3));
        let mut out = vec![1.0; m * (n + 4)];
        for add in [false, true] {
            let right = View::new(&b, n, k, k + 1).transposed();
            product(ViewMut::new(&mut out, m, n, n + 4), View::new(&a, m, k, k + 2), right, 0.5, add);
            let times = if add { 2.0 } else { 1.0 };
            for (i, row) in out.chunks(n + 4).enumerate() {
                for j in 0..n {
                    let sum: f32 = (0..k).map(|x| a[i * (k + 2) + x] * b[j * (k + 1) + x]).sum();
                    assert!((row[j] - times * 0.5 * sum).abs() < 1e-6, "{i} {j}");
                }
                assert_eq!(row[n..], [1.0; 4], "what lies between rows stays");
            }
        }
    }

    #[cfg(feature = "lab")]
    #[test]
    fn rounded_factors_give_the_product_of_what_they_are_rounded_to() {
        let brief = |values: &[f32]| values.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect::<Vec<f32>>();
        for (m, n, k) in [(1, 1, 1), (13, 33, 7), (25, 600, 34), (200, 47, 1031)] {
            if cfg!(miri) && m * n * k > 5000 {
                continue;
            }
            let (a, b) = (values(m * k, 0.7), values(n * k, 1.3));
            for (turn_left, turn_right, add) in [(false, false, true), (true, false, false), (false, true, true)] {
                // Rounded before, so that a processor without the instructions passes too.
                let (a, b) = (brief(&a), brief(&b));
                let left = if turn_left { View::new(&a, k, m, m).transposed() } else { View::new(&a, m, k, k) };
                let right = if turn_right { View::new(&b, n, k, k).transposed() } else { View::new(&b, k, n, n) };
                let (mut exact, mut rounded) = (vec![1.0; m * (n + 3)], vec![1.0; m * (n + 3)]);
                for _ in 0..2 {
                    product(ViewMut::new(&mut exact, m, n, n + 3), left, right, 0.5, add);
                    Precision::Bf16.product(ViewMut::new(&mut rounded, m, n, n + 3), left, right, 0.5, add);
                }
                for (one, other) in exact.iter().zip(&rounded) {
                    assert!((one - other).abs() < 1e-4 * (k as f32).sqrt(), "{m} {n} {k}: {one} {other}");
                }
            }
        }
    }

    #[cfg(feature = "lab")]
    #[test]
    fn no_number_stays_none_when_rounded() {
        let mut out = [0.0; 4];
        let left = View::new(&[f32::NAN, 1.0, f32::INFINITY, 1.0], 2, 2, 2);
        Precision::Bf16.product(ViewMut::new(&mut out, 2, 2, 2), left, View::new(&[1.0; 4], 2, 2, 2), 1.0, false);
        assert!(out[..2].iter().all(|x| x.is_nan()) && out[2..].iter().all(|x| *x == f32::INFINITY), "{out:?}");
    }

    #[test]
    #[should_panic(expected = "in 11 values")]
    fn a_view_outside_its_slice_is_refused() {
        View::new(&[0.0; 11], 3, 4, 4);
    }
}
