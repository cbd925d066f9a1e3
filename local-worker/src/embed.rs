//! Sentence vectors: text becomes a vector of length one, and texts that mean the same lie near each other. For the nearest
//! recorded prompts of a scorer, for answers kept by meaning, and for clients.
//!
//! [`StaticEmbedder`] looks words up in a table and adds them (Model2Vec, Tulkens and van Dongen 2024): microseconds a text,
//! no arithmetic but sums, blind to the order of words. [`SentenceEncoder`] runs a network of the BERT family: a thousand times
//! slower, and better. Knows text, nothing of who asks or what a score is used for.

mod encoder;
mod table;
mod wordpiece;

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use table::Table;

use crate::kernels::sum_products;
use crate::model::LoadError;

pub use encoder::{Embedding, Pooling, SentenceEncoder};

/// The table compiled into this crate.
static SLUICE_EMBED: &[u8] = include_bytes!("../models/sluice-embed-v0.vectors");

/// Why there are no sentence vectors.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The file can't be read.
    #[error("{file}: {error}")]
    Io {
        /// Its path.
        file: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Another kind of file.
    #[error("{file}: not a table of word vectors: it does not start with SLVECS and version 1")]
    Magic {
        /// Its path.
        file: String,
    },
    /// The file ends early or has bytes too many.
    #[error("{file}: has {found} bytes where {expected} were expected; fetch or make it again")]
    Length {
        /// Its path.
        file: String,
        /// Bytes there should be, as far as is known.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The content is not what was written.
    #[error("{file}: is damaged: its hash does not match; fetch or make it again")]
    Hash {
        /// Its path.
        file: String,
    },
    /// The content says what can't be.
    #[error("{file}: {problem}")]
    Content {
        /// Its path.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An encoder's weights can't be loaded.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The tokenizer can't read a text.
    #[error("text {at} can't be split into tokens: {problem}")]
    Text {
        /// Which, from 0.
        at: usize,
        /// What the tokenizer said.
        problem: String,
    },
}

/// Vectors of texts as sums of the vectors of their words.
#[derive(Debug)]
pub struct StaticEmbedder {
    table: Table,
}

impl StaticEmbedder {
    /// The table compiled into this crate: English, 256 dimensions; see its card, `models/sluice-embed-v0.md`. Takes a few
    /// milliseconds, most of them for the hash.
    ///
    /// # Errors
    /// None that a build which passed its tests can meet.
    pub fn bundled() -> Result<Self, EmbedError> {
        Ok(Self { table: Table::read("sluice-embed-v0.vectors", Cow::Borrowed(SLUICE_EMBED))? })
    }

    /// The table compiled into this crate, unpacked once for all who only read it.
    ///
    /// # Errors
    /// As [`StaticEmbedder::bundled`], each time.
    pub fn shared() -> Result<Arc<Self>, EmbedError> {
        static SHARED: OnceLock<Arc<StaticEmbedder>> = OnceLock::new();
        match SHARED.get() {
            Some(shared) => Ok(Arc::clone(shared)),
            None => {
                let unpacked = Arc::new(Self::bundled()?);
                Ok(Arc::clone(SHARED.get_or_init(|| unpacked)))
            }
        }
    }

    /// A table of one's own, as the recipe of the bundled one writes it.
    ///
    /// # Errors
    /// The file can't be read, is cut off or damaged, or is none.
    pub fn from_file(path: &Path) -> Result<Self, EmbedError> {
        let file = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| EmbedError::Io { file: file.clone(), error })?;
        Ok(Self { table: Table::read(&file, Cow::Owned(bytes))? })
    }

    /// Numbers in a vector.
    pub fn dims(&self) -> usize {
        self.table.dims()
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        self.table.name()
    }

    /// First digits of the hash of the table's file: tables of one version give equal vectors.
    pub fn version(&self) -> &str {
        self.table.version()
    }

    /// Calls `each` with the piece of each token of a text, in order, or with none for a word that can't be put together;
    /// `unusual` as in [`StaticEmbedder::embed_parts`]. Returns how many more unusual words could be looked at.
    pub(crate) fn pieces(&self, text: &str, unusual: usize, each: impl FnMut(Option<u32>)) -> usize {
        self.table.words().pieces(text, unusual, each)
    }

    /// A piece as it is written, and whether it continues a word.
    pub(crate) fn piece(&self, piece: u32) -> (String, bool) {
        self.table.words().text(piece)
    }

    /// The vector of a piece, which is one of the table; as much of it as `out` is long.
    pub(crate) fn row(&self, piece: u32, out: &mut [f32]) {
        out.fill(0.0);
        self.table.add_row(piece, out);
    }

    /// How many pieces there are.
    #[cfg(feature = "lab")]
    pub(crate) fn rows(&self) -> usize {
        self.table.words().len()
    }

    /// Writes the vector of a text, of length one, and returns of how many known tokens it is made. A text without any (empty,
    /// or in a script the table does not have) gives zeros, which are near nothing.
    ///
    /// `out` is usually [`StaticEmbedder::dims`] long. A shorter one gets the leading components, which tell most, at length one
    /// again; of a longer one the rest is zero. Takes time in proportion to the text and no memory for what is plain ASCII.
    pub fn embed(&self, text: &str, out: &mut [f32]) -> usize {
        self.embed_parts(&[text], usize::MAX, out)
    }

    /// The same for several parts of a text together, whose words with other characters than ASCII's count only up to
    /// `unusual` of them: those take a hundred times as long.
    pub fn embed_parts(&self, parts: &[&str], unusual: usize, out: &mut [f32]) -> usize {
        out.fill(0.0);
        let (mut known, mut unusual) = (0, unusual);
        for part in parts {
            unusual = self.table.words().pieces(part, unusual, |piece| {
                if let Some(piece) = piece {
                    self.table.add_row(piece, out);
                    known += 1;
                }
            });
        }
        normalize(out);
        known
    }
}

/// Brings a vector to length one; one of length zero, or not of finite numbers, becomes zeros.
fn normalize(vector: &mut [f32]) {
    let length = similarity(vector, vector).sqrt();
    if length > 0.0 && length.is_finite() {
        vector.iter_mut().for_each(|value| *value /= length);
    } else {
        vector.fill(0.0);
    }
}

/// Cosine of two vectors of length one, within ±1 but for rounding: the sum of products, in lanes that compilers make vector
/// code of. Of vectors of different lengths the shorter one counts.
pub fn similarity(left: &[f32], right: &[f32]) -> f32 {
    let count = left.len().min(right.len());
    sum_products(&left[..count], &right[..count])
}

#[cfg(test)]
mod tests;
