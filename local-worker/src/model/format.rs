//! The element types of tensors, and how each becomes a packed matrix. The layouts are those of ggml: blocks of 32
//! weights, or of 256 with eight or sixteen smaller ones inside.

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use crate::kernels::{BLOCK, DenseMatrix, Kind, Matrix, QuantizedMatrix, Unit};

/// An element type this build can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "these are the names everyone knows the formats by")]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Format {
    /// By the number in the file.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// Weights of one block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// The same in candle, for quantising; `None` for formats that are not quantised.
    pub fn candle(self) -> Option<GgmlDType> {
        Some(match self {
            Self::F32 | Self::F16 | Self::BF16 => return None,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_K => GgmlDType::Q4K,
            Self::Q5_K => GgmlDType::Q5K,
            Self::Q6_K => GgmlDType::Q6K,
        })
    }

    /// Whether weights stand for themselves, without blocks.
    pub fn dense(self) -> bool {
        self.block().0 == 1
    }

    /// Bytes of `rows` rows of `cols` weights; `None` where rows are no whole blocks or the number is beyond all bounds.
    pub fn bytes(self, rows: u64, cols: u64) -> Option<u64> {
        let (weights, size) = self.block();
        let whole = cols.is_multiple_of(weights as u64);
        whole.then(|| rows.checked_mul(cols)?.checked_div(weights as u64)?.checked_mul(size as u64)).flatten()
    }

    /// How integers of this format are kept, and their zero point.
    fn packing(self) -> (Kind, i32) {
        match self {
            Self::Q4_0 => (Kind::Four, 8),
            Self::Q4_1 => (Kind::FourMin, 0),
            Self::Q4_K => (Kind::FourMinWide, 0),
            Self::Q5_0 => (Kind::Eight, 16),
            Self::Q5_1 | Self::Q5_K => (Kind::EightMinWide, 0),
            Self::Q6_K => (Kind::EightTwo, 32),
            Self::Q8_0 | Self::F32 | Self::F16 | Self::BF16 => (Kind::Eight, 128),
        }
    }
}

/// Packs `rows` rows of `cols` weights, given as a file has them: row after row, as many bytes as [`Format::bytes`] says.
///
/// # Errors
/// A number is not finite.
pub fn pack(bytes: &[u8], format: Format, rows: usize, cols: usize) -> Result<Matrix, NotFinite> {
    let (weights, size) = format.block();
    if weights == 1 {
        return pack_dense(bytes, format, rows, cols);
    }
    let (kind, zero) = format.packing();
    let mut finite = true;
    let inner = weights / BLOCK;
    let matrix = QuantizedMatrix::pack(rows, cols, kind, zero, |row, block| {
        let at = (row * (cols / weights) + block / inner) * size;
        let unit = unpack(format, &bytes[at..at + size], block % inner);
        finite &= unit.scale.iter().all(|scale| scale.is_finite()) && unit.minimum.is_finite();
        unit
    });
    if finite { Ok(Matrix::Quantized(matrix)) } else { Err(NotFinite) }
}

fn pack_dense(bytes: &[u8], format: Format, rows: usize, cols: usize) -> Result<Matrix, NotFinite> {
    let pairs = bytes.as_chunks::<2>().0;
    let all = |finite: bool, matrix: &dyn Fn() -> DenseMatrix| {
        if finite { Ok(Matrix::Dense(matrix())) } else { Err(NotFinite) }
    };
    match format {
        Format::F16 => all(pairs.iter().all(|pair| f16::from_le_bytes(*pair).is_finite()), &|| {
            DenseMatrix::pack_half(rows, cols, |row, col| f16::from_le_bytes(pairs[row * cols + col]))
        }),
        Format::BF16 => all(pairs.iter().all(|pair| bf16::from_le_bytes(*pair).is_finite()), &|| {
            DenseMatrix::pack_brain(rows, cols, |row, col| bf16::from_le_bytes(pairs[row * cols + col]))
        }),
        _ => {
            let fours = bytes.as_chunks::<4>().0;
            all(fours.iter().all(|four| f32::from_le_bytes(*four).is_finite()), &|| {
                DenseMatrix::pack_single(rows, cols, |row, col| f32::from_le_bytes(fours[row * cols + col]))
            })
        }
    }
}

/// A tensor holds a number that is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite;

/// Numbers of a dense format in single precision.
pub fn singles(bytes: &[u8], format: Format) -> Vec<f32> {
    match format {
        Format::F16 => bytes.as_chunks::<2>().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect(),
        Format::BF16 => bytes.as_chunks::<2>().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
    }
}

fn pair(bytes: &[u8], at: usize) -> [u8; 2] {
    [bytes[at], bytes[at + 1]]
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes(pair(bytes, at)).to_f32()
}

/// The `inner`-th 32 weights of a block.
fn unpack(format: Format, bytes: &[u8], inner: usize) -> Unit {
    match format {
        Format::Q4_0 => Unit { q: nibbles(&bytes[2..18]), scale: [half_at(bytes, 0); 2], minimum: 0.0 },
        Format::Q4_1 => Unit { q: nibbles(&bytes[4..20]), scale: [half_at(bytes, 0); 2], minimum: half_at(bytes, 2) },
        Format::Q5_0 => Unit { q: fifths(&bytes[2..6], &bytes[6..22]), scale: [half_at(bytes, 0); 2], minimum: 0.0 },
        Format::Q5_1 => {
            Unit { q: fifths(&bytes[4..8], &bytes[8..24]), scale: [half_at(bytes, 0); 2], minimum: half_at(bytes, 2) }
        }
        Format::Q4_K => {
            let q = std::array::from_fn(|i| (bytes[16 + inner / 2 * 32 + i] >> (inner % 2 * 4)) & 15);
            scaled(bytes, inner, q)
        }
        Format::Q5_K => {
            let q = std::array::from_fn(|i| {
                let low = (bytes[48 + inner / 2 * 32 + i] >> (inner % 2 * 4)) & 15;
                low | ((bytes[16 + i] >> inner) & 1) << 4
            });
            scaled(bytes, inner, q)
        }
        Format::Q6_K => {
            let (half, quarter) = (inner / 4, inner % 4);
            let q = std::array::from_fn(|i| {
                let low = (bytes[half * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4)) & 15;
                low | ((bytes[128 + half * 32 + i] >> (quarter * 2)) & 3) << 4
            });
            let scale = |part: usize| half_at(bytes, 208) * f32::from(bytes[192 + inner * 2 + part] as i8);
            Unit { q, scale: [scale(0), scale(1)], minimum: 0.0 }
        }
        Format::Q8_0 | Format::F32 | Format::F16 | Format::BF16 => {
            Unit { q: std::array::from_fn(|i| bytes[2 + i] ^ 0x80), scale: [half_at(bytes, 0); 2], minimum: 0.0 }
        }
    }
}

/// Sixteen bytes: the first sixteen weights low, the last sixteen high.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| (bytes[i % 16] >> (i / 16 * 4)) & 15)
}

fn fifths(high: &[u8], low: &[u8]) -> [u8; BLOCK] {
    let mut q = nibbles(low);
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((high[i / 8] >> (i % 8)) & 1) << 4;
    }
    q
}

/// Q4_K and Q5_K: two halves, and twelve bytes with eight 6-bit scales and eight 6-bit minima.
fn scaled(bytes: &[u8], inner: usize, q: [u8; BLOCK]) -> Unit {
    let packed = &bytes[4..16];
    let (scale, minimum) = if inner < 4 {
        (packed[inner] & 63, packed[inner + 4] & 63)
    } else {
        let both = packed[inner + 4];
        ((both & 15) | (packed[inner - 4] >> 6) << 4, (both >> 4) | (packed[inner] >> 6) << 4)
    };
    let scale = half_at(bytes, 0) * f32::from(scale);
    Unit { q, scale: [scale; 2], minimum: -half_at(bytes, 2) * f32::from(minimum) }
}
