//! Reading safetensors: eight bytes of length, a JSON object with each tensor's type, shape and place, then the data.
//!
//! Files come from anywhere: every place is checked against the bytes there are before anything is read.

use std::collections::HashMap;

use serde::Deserialize;

use super::LoadError;
use super::format::Format;

/// Bytes a header may have; the largest models' take a few megabytes.
const MOST_HEADER: u64 = 100 << 20;

/// Where a tensor lies, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The element type as the file writes it.
    pub kind: String,
    /// Sizes, rows first.
    pub shape: Vec<usize>,
    /// First byte and the one after the last, within the file.
    pub bytes: (usize, usize),
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads a file's head.
///
/// # Errors
/// [`LoadError::Malformed`] for anything that is not sound.
pub fn parse(name: &str, bytes: &[u8]) -> Result<HashMap<String, Place>, LoadError> {
    let malformed = |problem: String| LoadError::Malformed { file: name.to_owned(), problem };
    let cut = || malformed(format!("{} bytes are too few for its head; the file is cut off", bytes.len()));
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut)?;
    let length = u64::from_le_bytes(*length);
    if length > MOST_HEADER {
        return Err(malformed(format!("a head of {length} bytes is claimed; this is not a safetensors file")));
    }
    let head = rest.get(..length as usize).ok_or_else(cut)?;
    let entries: HashMap<String, serde_json::Value> =
        serde_json::from_slice(head).map_err(|error| malformed(format!("its head is no JSON: {error}")))?;
    let (start, data) = (8 + length as usize, (rest.len() - length as usize) as u64);
    let mut places = HashMap::new();
    for (tensor, entry) in entries {
        if tensor == "__metadata__" {
            continue;
        }
        let entry: Entry = serde_json::from_value(entry)
            .map_err(|error| malformed(format!("tensor {tensor}: its entry is unsound: {error}")))?;
        let (from, to) = entry.data_offsets;
        if from > to || to > data {
            return Err(malformed(format!(
                "tensor {tensor} should lie at bytes {from} to {to}, the file holds {data} bytes of tensors; is it cut off?"
            )));
        }
        let shape: Option<Vec<usize>> = entry.shape.iter().map(|size| usize::try_from(*size).ok()).collect();
        let shape = shape.ok_or_else(|| malformed(format!("tensor {tensor} has an impossible shape")))?;
        let bytes = (start + from as usize, start + to as usize);
        places.insert(tensor, Place { kind: entry.dtype, shape, bytes });
    }
    Ok(places)
}

/// The element type by the name in the file, where this build reads it.
pub fn format(kind: &str) -> Option<Format> {
    match kind {
        "F32" => Some(Format::F32),
        "F16" => Some(Format::F16),
        "BF16" => Some(Format::BF16),
        _ => None,
    }
}
