//! The table as bytes: magic, a JSON header, the pieces line by line, a scale for each row, the rows as 8-bit integers, a
//! blake3 hash of all that. A row's scale holds how much its word tells, so that a text is a plain sum.
//!
//! The hash is checked before anything is believed, and its first digits are the table's version.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::EmbedError;
use super::wordpiece::WordPiece;
use crate::kernels::{Level, add_scaled_bytes};

const MAGIC: &[u8; 8] = b"SLVECS\x00\x01";
const HASH_BYTES: usize = 32;
/// Dimensions that are accepted.
const DIMS: std::ops::RangeInclusive<usize> = 1..=4096;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    dims: usize,
    rows: usize,
    vocabulary_bytes: usize,
}

/// Pieces of words and their vectors.
#[derive(Debug)]
pub struct Table {
    name: String,
    version: String,
    dims: usize,
    words: WordPiece,
    scales: Vec<f32>,
    level: Level,
    file: Cow<'static, [u8]>,
    /// Where rows begin in the file.
    rows: usize,
}

impl Table {
    /// Reads what [`write_table`] wrote.
    pub fn read(file: &str, bytes: Cow<'static, [u8]>) -> Result<Self, EmbedError> {
        let found = bytes.len() as u64;
        let named = || file.to_owned();
        if !bytes.starts_with(MAGIC) {
            return Err(EmbedError::Magic { file: named() });
        }
        let short = |expected: usize| EmbedError::Length { file: named(), expected: expected as u64, found };
        let least = MAGIC.len() + 4 + HASH_BYTES;
        let (body, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or_else(|| short(least))?;
        let computed = blake3::hash(body);
        if computed != *hash {
            return Err(EmbedError::Hash { file: named() });
        }
        let content = |problem: String| EmbedError::Content { file: named(), problem };
        let rest = body.get(MAGIC.len()..).and_then(<[u8]>::split_first_chunk::<4>);
        let (length, rest) = rest.ok_or_else(|| short(least))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (header, rest) = rest.split_at_checked(length).ok_or_else(|| short(least + length))?;
        let header = Header::parse(header).map_err(content)?;
        let expected = header.bytes().and_then(|bytes| bytes.checked_add(least + length));
        let expected = expected.ok_or_else(|| content("its header claims more than any file holds".to_owned()))?;
        if expected as u64 != found {
            return Err(short(expected));
        }
        let (vocabulary, rest) = rest.split_at(header.vocabulary_bytes);
        let words = pieces(vocabulary, header.rows).map_err(content)?;
        let scales = rest.as_chunks::<4>().0.iter().take(header.rows);
        let scales: Vec<f32> = scales.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if let Some(row) = scales.iter().position(|scale| !scale.is_finite()) {
            return Err(content(format!("the scale of row {row} is not a number")));
        }
        let rows = expected - HASH_BYTES - header.rows * header.dims;
        let version = computed.to_hex().chars().take(16).collect();
        Ok(Self {
            name: header.name,
            version,
            dims: header.dims,
            words,
            scales,
            level: Level::detect(),
            file: bytes,
            rows,
        })
    }

    pub fn dims(&self) -> usize {
        self.dims
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn words(&self) -> &WordPiece {
        &self.words
    }

    /// Adds as much of a row as `sum` is long.
    pub fn add_row(&self, row: u32, sum: &mut [f32]) {
        let row = row as usize;
        let from = self.rows + row * self.dims;
        add_scaled_bytes(self.level, sum, &self.file[from..from + self.dims], self.scales[row]);
    }
}

impl Header {
    fn parse(json: &[u8]) -> Result<Self, String> {
        let header: Self =
            serde_json::from_slice(json).map_err(|error| format!("its header can't be used: {error}"))?;
        if !DIMS.contains(&header.dims) {
            return Err(format!("its header says {} dimensions, not 1 to 4096", header.dims));
        }
        Ok(header)
    }

    /// Bytes after the header and before the hash.
    fn bytes(&self) -> Option<usize> {
        self.rows.checked_mul(self.dims + size_of::<f32>())?.checked_add(self.vocabulary_bytes)
    }
}

fn pieces(vocabulary: &[u8], rows: usize) -> Result<WordPiece, String> {
    let text = std::str::from_utf8(vocabulary).map_err(|error| format!("its vocabulary is not UTF-8: {error}"))?;
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() != rows {
        return Err(format!("its vocabulary has {} lines for {rows} rows", lines.len()));
    }
    WordPiece::new(lines.into_iter())
        .map_err(|bad| format!("line {} of its vocabulary {}", bad.number + 1, bad.problem))
}
