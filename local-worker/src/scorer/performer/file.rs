//! The encoder as bytes: magic, a version, a JSON header, weights and random rows in single precision, a blake3 hash of all
//! that, whose first digits are the encoder's version.

use super::Performer;
use super::network::{Attention, Network, Shape};
use crate::embed::StaticEmbedder;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const MAGIC: &[u8; 7] = b"SLPERF\0";
const VERSION: u8 = 1;
const HASH_BYTES: usize = 32;

/// Weights beyond this are no trained encoder's; below it nothing overflows.
const LARGEST: f32 = 1e4;

/// Why bytes are no encoder.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PerformerFileError {
    /// Not an encoder at all.
    #[error("not an encoder for scores: it does not start with SLPERF")]
    Magic,
    /// Written by another build.
    #[error("encoder file has version {found}, this build reads version {VERSION}; train it again")]
    Version {
        /// What the file says.
        found: u8,
    },
    /// The file ends early or has bytes too many.
    #[error("encoder file has {found} bytes where {expected} were expected; fetch or train it again")]
    Length {
        /// Bytes there should be, as far as is known.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The content is not what was written.
    #[error("encoder file is damaged: its hash does not match; fetch or train it again")]
    Hash,
    /// The header or a number cannot be used.
    #[error("encoder file can't be used by this build: {0}")]
    Content(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// Version of the table of word vectors.
    vectors: String,
    shape: Shape,
}

impl Performer {
    /// Joins an encoder and the table it reads, and gives it the version of its content.
    pub(super) fn named(network: Network, embedder: Arc<StaticEmbedder>) -> Self {
        let mut made = Self { network, embedder, version: String::new() };
        let bytes = made.to_bytes();
        let body = bytes.len() - HASH_BYTES;
        made.version = version(blake3::hash(bytes.get(..body).unwrap_or_default()));
        made
    }

    /// The bytes of the encoder's file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = Header { vectors: self.embedder.version().to_owned(), shape: self.network.shape };
        // A struct of texts and numbers always becomes JSON.
        let header = serde_json::to_vec(&header).unwrap_or_default();
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header);
        for number in self.network.weights.iter().chain(self.network.features.iter().flatten()) {
            bytes.extend(number.to_le_bytes());
        }
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes
    }

    /// Reads what [`Performer::to_bytes`] wrote.
    ///
    /// # Errors
    /// Anything that is not exactly such a file, by kind.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PerformerFileError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(PerformerFileError::Magic)?;
        let found = bytes.len();
        let short = |expected| PerformerFileError::Length { expected, found };
        let least = MAGIC.len() + 1 + 4 + HASH_BYTES;
        match rest.first() {
            None => return Err(short(least)),
            Some(&VERSION) => {}
            Some(&found) => return Err(PerformerFileError::Version { found }),
        }
        if found < least {
            return Err(short(least));
        }
        let (body, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or(short(least))?;
        let computed = blake3::hash(body);
        if computed != *hash {
            return Err(PerformerFileError::Hash);
        }
        let rest = body.get(MAGIC.len() + 1..).unwrap_or_default();
        let (length, rest) = rest.split_first_chunk::<4>().ok_or(short(least))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (header, numbers) = rest.split_at_checked(length).ok_or(short(least.saturating_add(length)))?;
        let content = PerformerFileError::Content;
        let Header { vectors, shape } = serde_json::from_slice(header).map_err(|error| content(error.to_string()))?;
        if let Some(problem) = shape.problem() {
            return Err(content(problem));
        }
        let embedder = StaticEmbedder::shared().map_err(|error| content(error.to_string()))?;
        if vectors != embedder.version() {
            let now = embedder.version();
            return Err(content(format!(
                "it was made with the word vectors {vectors}, this build has {now}; train it again"
            )));
        }
        let random = match shape.attention {
            Attention::Softmax => 0,
            Attention::Favor { features } => features * shape.head(),
        };
        let weights = shape.places(1).end;
        let expected = least + length + size_of::<f32>() * (weights + shape.layers * random);
        if found != expected {
            return Err(short(expected));
        }
        let numbers: Vec<f32> = numbers.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if let Some(place) = numbers.iter().position(|number| number.is_nan() || number.abs() > LARGEST) {
            return Err(content(format!("number {place} is {}, not within ±{LARGEST}", numbers[place])));
        }
        let (weights, random_rows) = numbers.split_at(weights);
        let features = match random {
            0 => Vec::new(),
            random => random_rows.chunks_exact(random).map(<[f32]>::to_vec).collect(),
        };
        let network = Network { shape, weights: weights.to_vec(), features };
        Ok(Self { network, embedder, version: version(computed) })
    }
}

fn version(hash: blake3::Hash) -> String {
    hash.to_hex().chars().take(16).collect()
}
