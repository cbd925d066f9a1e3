//! Arithmetic on plain slices: matrices packed for this processor's widest integer dot product, and the few vector loops of
//! a transformer. Chosen at run time, so that one portable binary serves every x86-64 and every 64-bit ARM; each fast form
//! has a scalar twin it is tested against. Knows shapes, not models.
//!
//! Every output element is summed in one fixed order, whatever else is computed beside it, so a sequence's numbers do not
//! depend on which others are decoded with it.

mod activation;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dense;
mod exponents;
#[cfg(feature = "lab")]
mod gradient;
mod level;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod product;
mod quantized;
mod scalar;
mod team;
mod vector;

pub use activation::Activations;
pub use attention::{Queries, Weighing, attend};
pub use dense::DenseMatrix;
pub use exponents::{bound_exponents, exponentials_below, query_exponentials, raise};
#[cfg(feature = "lab")]
pub use gradient::{
    Adam, Soft, adam_step, add_and_square, causal_softmax, causal_softmax_backward, cross_entropy, rms_norm_backward,
    rms_norm_forward, rope_neighbours_backward, silu_multiply_backward, soft_divergence,
};
pub use level::Level;
pub use memory::{Kept, Memory, Plain};
#[cfg(feature = "lab")]
pub use product::Precision;
pub use product::{View, ViewMut, product};
pub use quantized::{BLOCK, Kind, QuantizedMatrix, Unit};
pub use team::Team;
pub use vector::{
    add, add_scaled_bytes, add_to_rows, gelu, gelu_exact, gelu_multiply, halve, layer_norm, log_sum_exp, multiply_by,
    products_with_tiles, rms_norm, rms_norm_parts, rope_halves, rope_neighbours, silu_multiply, soft_cap, softmax,
    sum_products, top_two, weigh_neighbours,
};

/// Rows of a matrix that lie interleaved in one tile: one lane each of the widest vector register.
pub const TILE: usize = 16;

/// A weight matrix of `rows` outputs and `cols` inputs, in whichever form its file had it.
#[derive(Debug)]
pub enum Matrix {
    /// Integers with a scale for each block.
    Quantized(QuantizedMatrix),
    /// Floating point.
    Dense(DenseMatrix),
}

impl Matrix {
    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            Self::Quantized(matrix) => matrix.rows(),
            Self::Dense(matrix) => matrix.rows(),
        }
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        match self {
            Self::Quantized(matrix) => matrix.cols(),
            Self::Dense(matrix) => matrix.cols(),
        }
    }

    /// Memory taken, in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Quantized(matrix) => matrix.bytes(),
            Self::Dense(matrix) => matrix.bytes(),
        }
    }

    /// One row as floating point, for looking up embeddings.
    pub fn read_row(&self, row: usize, into: &mut [f32]) {
        match self {
            Self::Quantized(matrix) => matrix.read_row(row, into),
            Self::Dense(matrix) => matrix.read_row(row, into),
        }
    }

    /// `out[m][n] = Σ_k self[n][k] · input[m][k]`; `out` is as long as the input has rows times [`Matrix::rows`].
    pub fn multiply(&self, level: Level, input: &Activations, out: &mut [f32]) {
        debug_assert_eq!(out.len(), input.rows() * self.rows(), "output of a product");
        match self {
            Self::Quantized(matrix) => matrix.multiply(level, input, out),
            Self::Dense(matrix) => matrix.multiply(level, input, out),
        }
    }
}

#[cfg(test)]
mod tests;
