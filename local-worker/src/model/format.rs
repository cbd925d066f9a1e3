//! The element types of tensors, and how each becomes a packed matrix. The layouts are those of ggml: blocks of 32
//! weights, or of 256 with eight or sixteen smaller ones inside.

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use crate::kernels::{BLOCK, DenseMatrix, Kind, Matrix, Memory, QuantizedMatrix, Unit};

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
}

/// Packs `rows` rows of `cols` weights, given as a file has them: row after row, as many bytes as [`Format::bytes`] says.
///
/// # Errors
/// A number is not finite.
pub fn pack(
    memory: &mut Memory,
    bytes: &[u8],
    format: Format,
    (rows, cols): (usize, usize),
) -> Result<Matrix, NotFinite> {
    let source = Source { bytes, rows, cols };
    match format {
        Format::F32 | Format::F16 | Format::BF16 => pack_dense(memory, bytes, format, (rows, cols)),
        Format::Q4_0 => source.pack(memory, Kind::Four, |block: &[u8; 18], _| Unit {
            words: nibbles(part(block, 2)),
            scale: half(block, 0),
            ..Unit::default()
        }),
        Format::Q4_1 => source.pack(memory, Kind::FourMin, |block: &[u8; 20], _| Unit {
            words: nibbles(part(block, 4)),
            scale: half(block, 0),
            minimum: half(block, 2),
            ..Unit::default()
        }),
        Format::Q5_0 => source.pack(memory, Kind::Five, |block: &[u8; 22], _| Unit {
            words: fifths(part(block, 2), part(block, 6)),
            scale: half(block, 0),
            ..Unit::default()
        }),
        Format::Q5_1 => source.pack(memory, Kind::FiveMin, |block: &[u8; 24], _| Unit {
            words: fifths(part(block, 4), part(block, 8)),
            scale: half(block, 0),
            minimum: half(block, 2),
            ..Unit::default()
        }),
        Format::Q8_0 => source.pack(memory, Kind::Eight, |block: &[u8; 34], _| {
            let words = part::<34, 32>(block, 2).as_chunks::<4>().0;
            let words = std::array::from_fn(|at| u32::from_le_bytes(words[at]) ^ 0x8080_8080);
            Unit { words, scale: half(block, 0), ..Unit::default() }
        }),
        Format::Q4_K => source.pack(memory, Kind::FourSuper, |block: &[u8; 144], inner| {
            let q = halves(part(block, 16), inner);
            scaled(block, inner, Kind::FourSuper.words(&q))
        }),
        Format::Q5_K => source.pack(memory, Kind::FiveSuper, |block: &[u8; 176], inner| {
            let (mut q, high) = (halves(part(block, 48), inner), part::<176, 32>(block, 16));
            for (q, high) in q.iter_mut().zip(high) {
                *q |= ((high >> inner) & 1) << 4;
            }
            scaled(block, inner, Kind::FiveSuper.words(&q))
        }),
        Format::Q6_K => source.pack(memory, Kind::SixSuper, sixths),
    }
}

/// A matrix as a file has it.
struct Source<'file> {
    bytes: &'file [u8],
    rows: usize,
    cols: usize,
}

impl Source<'_> {
    /// Packs it; `unit` makes the `inner`-th 32 weights of a block of the file.
    #[inline(always)]
    fn pack<const SIZE: usize>(
        &self,
        memory: &mut Memory,
        kind: Kind,
        unit: impl Fn(&[u8; SIZE], usize) -> Unit,
    ) -> Result<Matrix, NotFinite> {
        let blocks = self.bytes.as_chunks::<SIZE>().0;
        let (inner, per_row) = (kind.group() / BLOCK, self.cols / kind.group());
        let mut finite = true;
        let matrix = QuantizedMatrix::pack(memory, (self.rows, self.cols), kind, |row, block| {
            let unit = unit(&blocks[row * per_row + block / inner], block % inner);
            finite &= unit.scale.is_finite() & unit.minimum.is_finite();
            unit
        });
        if finite { Ok(Matrix::Quantized(matrix)) } else { Err(NotFinite) }
    }
}

fn pack_dense(memory: &mut Memory, bytes: &[u8], format: Format, size: (usize, usize)) -> Result<Matrix, NotFinite> {
    let cols = size.1;
    let pairs = bytes.as_chunks::<2>().0;
    let all = |finite: bool, matrix: &mut dyn FnMut() -> DenseMatrix| {
        if finite { Ok(Matrix::Dense(matrix())) } else { Err(NotFinite) }
    };
    match format {
        Format::F16 => all(pairs.iter().all(|pair| f16::from_le_bytes(*pair).is_finite()), &mut || {
            DenseMatrix::pack_half(memory, size, |row, col| f16::from_le_bytes(pairs[row * cols + col]))
        }),
        Format::BF16 => all(pairs.iter().all(|pair| bf16::from_le_bytes(*pair).is_finite()), &mut || {
            DenseMatrix::pack_brain(memory, size, |row, col| bf16::from_le_bytes(pairs[row * cols + col]))
        }),
        _ => {
            let fours = bytes.as_chunks::<4>().0;
            all(fours.iter().all(|four| f32::from_le_bytes(*four).is_finite()), &mut || {
                DenseMatrix::pack_single(memory, size, |row, col| f32::from_le_bytes(fours[row * cols + col]))
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

/// `N` bytes from `at` on; `at` is a constant within the block.
#[inline(always)]
fn part<const SIZE: usize, const N: usize>(block: &[u8; SIZE], at: usize) -> &[u8; N] {
    debug_assert!(at + N <= SIZE, "part of a block");
    block[at..].first_chunk().unwrap_or(&[0; N])
}

#[inline(always)]
fn half<const SIZE: usize>(block: &[u8; SIZE], at: usize) -> f16 {
    f16::from_le_bytes(*part(block, at))
}

/// Sixteen bytes: the first sixteen weights low, the last sixteen high, which is how they are packed.
#[inline(always)]
fn nibbles(bytes: &[u8; 16]) -> [u32; 8] {
    let words = bytes.as_chunks::<4>().0;
    std::array::from_fn(|at| words.get(at).map_or(0, |word| u32::from_le_bytes(*word)))
}

/// The same with a fifth bit for each weight.
#[inline(always)]
fn fifths(high: &[u8; 4], low: &[u8; 16]) -> [u32; 8] {
    let mut words = nibbles(low);
    let high = u32::from_le_bytes(*high);
    for byte in 0..4 {
        // Every fourth bit, pushed together.
        let mut bits = (high >> byte) & 0x1111_1111;
        bits = (bits | bits >> 3) & 0x0303_0303;
        bits = (bits | bits >> 6) & 0x000f_000f;
        words[4] |= ((bits | bits >> 12) & 0xff) << (byte * 8);
    }
    words
}

/// Q4_K and Q5_K: of every 32 bytes the low halves are one 32 weights, the high halves the next.
#[inline(always)]
fn halves(bytes: &[u8; 128], inner: usize) -> [u8; BLOCK] {
    let bytes = bytes.as_chunks::<32>().0[inner / 2];
    std::array::from_fn(|at| (bytes[at] >> (inner % 2 * 4)) & 15)
}

/// Q4_K and Q5_K: two halves, and twelve bytes with eight 6-bit scales and eight 6-bit minima.
#[inline(always)]
fn scaled<const SIZE: usize>(block: &[u8; SIZE], inner: usize, words: [u32; 8]) -> Unit {
    let packed: &[u8; 12] = part(block, 4);
    let (scale, minimum) = if inner < 4 {
        (packed[inner] & 63, packed[inner + 4] & 63)
    } else {
        let both = packed[inner + 4];
        ((both & 15) | (packed[inner - 4] >> 6) << 4, (both >> 4) | (packed[inner] >> 6) << 4)
    };
    Unit {
        words,
        scale: half(block, 0),
        minimum: half(block, 2),
        small_scale: [scale as i8; 2],
        // What the file takes off.
        small_minimum: -(minimum as i8),
    }
}

/// Q6_K: low halves, pairs of bits above them, and sixteen scales.
#[inline(always)]
fn sixths(block: &[u8; 210], inner: usize) -> Unit {
    let (side, quarter) = (inner / 4, inner % 4);
    let low = part::<210, 128>(block, 0).as_chunks::<32>().0[side * 2 + quarter % 2];
    let high = part::<210, 64>(block, 128).as_chunks::<32>().0[side];
    let q = std::array::from_fn(|at| ((low[at] >> (quarter / 2 * 4)) & 15) | ((high[at] >> (quarter * 2)) & 3) << 4);
    let scales = part::<210, 16>(block, 192);
    Unit {
        words: Kind::SixSuper.words(&q),
        scale: half(block, 208),
        small_scale: [scales[inner * 2] as i8, scales[inner * 2 + 1] as i8],
        ..Unit::default()
    }
}
