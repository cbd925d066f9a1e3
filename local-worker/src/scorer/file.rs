//! The scorer as bytes: magic, a JSON header, 16-bit weights, a blake3 hash of all that.
//!
//! The hash is checked before anything is believed, and its first digits are the scorer's version: two files with the same
//! version score alike. A file made with other features than this build computes is refused, because its weights would mean
//! nothing.

use super::Scorer;
use super::features::FEATURES_VERSION;
use super::memory::ROW_BYTES;
use super::sense::{Sense, SenseHeader};
use super::surface::SURFACE;
use super::trees::Trees;
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"SLSCORE\x01";
const HASH_BYTES: usize = 32;

/// Table sizes that are accepted, as powers of two.
pub(super) const BITS: std::ops::RangeInclusive<u32> = 10..=18;

/// Why bytes are no scorer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScorerFileError {
    /// Not a scorer file at all.
    #[error("not a scorer file: it does not start with SLSCORE and version 1")]
    Magic,
    /// The file ends early or has bytes too many.
    #[error("scorer file has {found} bytes where {expected} were expected; fetch or train it again")]
    Length {
        /// Bytes there should be, as far as is known.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The content is not what was written.
    #[error("scorer file is damaged: its hash does not match; fetch or train it again")]
    Hash,
    /// The header cannot be used.
    #[error("scorer file has a header this build cannot use: {0}")]
    Header(String),
    /// Made with other features.
    #[error(
        "scorer file was made with features version {found}, this build computes {FEATURES_VERSION}; train it again"
    )]
    Features {
        /// Version in the file.
        found: u32,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    features: u32,
    bits: u32,
    scale: f32,
    surface: Vec<f32>,
    seen: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    halves: bool,
    #[serde(default, skip_serializing_if = "Trees::is_empty")]
    trees: Trees,
    /// What reads the sentence vector; its rows stand behind the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sense: Option<SenseHeader>,
}

impl Scorer {
    /// The bytes of the scorer's file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = Header {
            features: FEATURES_VERSION,
            bits: self.bits(),
            scale: self.scale,
            surface: self.surface.to_vec(),
            seen: self.seen,
            halves: self.halves,
            trees: self.trees.clone(),
            sense: self.sense.as_ref().map(Sense::header),
        };
        // A struct of numbers and a list of numbers always becomes JSON.
        let header = serde_json::to_vec(&header).unwrap_or_default();
        let mut bytes = MAGIC.to_vec();
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(&header);
        for weight in &self.weights {
            bytes.extend(weight.to_le_bytes());
        }
        if let Some(sense) = &self.sense {
            bytes.extend(sense.memory.to_bytes());
        }
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes
    }

    /// Reads what [`Scorer::to_bytes`] wrote.
    ///
    /// # Errors
    /// Anything that is not exactly such a file, by kind.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ScorerFileError> {
        let found = bytes.len();
        if !bytes.starts_with(MAGIC) {
            return Err(ScorerFileError::Magic);
        }
        let short = |expected| ScorerFileError::Length { expected, found };
        let least = MAGIC.len() + 4 + HASH_BYTES;
        let (body, hash) = bytes
            .split_last_chunk::<HASH_BYTES>()
            .filter(|(body, _)| body.len() >= MAGIC.len() + 4)
            .ok_or(short(least))?;
        let (length, rest) = body.get(MAGIC.len()..).and_then(<[u8]>::split_first_chunk::<4>).ok_or(short(least))?;
        let length = u32::from_le_bytes(*length) as usize;
        let computed = blake3::hash(body);
        if computed != *hash {
            return Err(ScorerFileError::Hash);
        }
        let (header, weights) = rest.split_at_checked(length).ok_or(short(least + length))?;
        let header = Header::parse(header)?;
        let table = 2 << header.bits;
        let expected = least + length + table + header.sense.as_ref().map_or(0, |sense| sense.rows * ROW_BYTES);
        if found != expected {
            return Err(short(expected));
        }
        let (weights, remembered) = weights.split_at_checked(table).ok_or(short(expected))?;
        let weights = weights.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
        header.scorer(weights, remembered, computed)
    }

    /// Builds a scorer from weights in full precision, rounds them to 16 bits and names its version.
    pub(super) fn rounded(hashed: &[f32], surface: [f32; SURFACE], seen: u64, halves: bool) -> Self {
        let largest = hashed.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
        let scale = (largest / f32::from(i16::MAX)).max(f32::MIN_POSITIVE);
        let weights = hashed.iter().map(|weight| (weight / scale).round() as i16).collect();
        let (trees, sense, version) = (Trees::default(), None, String::new());
        Self { weights, scale, surface, seen, halves, trees, sense, version }.named()
    }

    /// The same with trees over shapes and with what reads the sentence vector.
    pub(super) fn with(self, trees: Trees, sense: Option<Sense>) -> Self {
        Self { trees, sense, ..self }.named()
    }

    fn named(mut self) -> Self {
        let bytes = self.to_bytes();
        let body = bytes.len() - HASH_BYTES;
        self.version = version(blake3::hash(bytes.get(..body).unwrap_or_default()));
        self
    }
}

impl Header {
    fn parse(json: &[u8]) -> Result<Self, ScorerFileError> {
        let header: Self = serde_json::from_slice(json).map_err(|error| ScorerFileError::Header(error.to_string()))?;
        if header.features != FEATURES_VERSION {
            return Err(ScorerFileError::Features { found: header.features });
        }
        if !BITS.contains(&header.bits) {
            let problem = format!("table of 2^{} weights, which is not within 2^10 and 2^18", header.bits);
            return Err(ScorerFileError::Header(problem));
        }
        let finite = header.scale.is_finite() && header.surface.iter().all(|weight| weight.is_finite());
        if !finite {
            return Err(ScorerFileError::Header("a weight is not a number".to_owned()));
        }
        if header.sense.as_ref().is_some_and(|sense| !sense.sound()) {
            return Err(ScorerFileError::Header("more remembered prompts than any scorer has".to_owned()));
        }
        if !header.trees.sound() {
            return Err(ScorerFileError::Header("a tree splits on what is not there".to_owned()));
        }
        Ok(header)
    }

    fn scorer(self, weights: Box<[i16]>, remembered: &[u8], hash: blake3::Hash) -> Result<Scorer, ScorerFileError> {
        let surface = self.surface.try_into().map_err(|surface: Vec<f32>| {
            let problem = format!("{} surface weights, this build has {SURFACE}", surface.len());
            ScorerFileError::Header(problem)
        })?;
        Ok(Scorer {
            weights,
            scale: self.scale,
            surface,
            seen: self.seen,
            halves: self.halves,
            trees: self.trees,
            sense: self.sense.map(|sense| sense.sense(remembered)).transpose()?,
            version: version(hash),
        })
    }
}

fn version(hash: blake3::Hash) -> String {
    hash.to_hex().chars().take(16).collect()
}
