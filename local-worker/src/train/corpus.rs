//! Instruction records → packed rows of tokens with a weight for each target.

use super::vocabulary::Vocabulary;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// One instruction record of the corpus.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Record {
    /// Unique id.
    pub id: String,
    /// Name of the task.
    pub task: String,
    /// Where the text comes from.
    pub source: String,
    /// Licence of the text.
    pub licence: String,
    /// What is asked.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
}

/// What can be wrong with a corpus.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The file can't be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line is no record.
    #[error("{path}:{line}: {reason}")]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// No record is left.
    #[error("{path}: no record of the wanted tasks")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads gzipped JSON lines; a record whose licence is not in `licences` is an error that names its line.
pub fn read(path: &Path, licences: &[String]) -> Result<Vec<Record>, CorpusError> {
    let unreadable = |error| CorpusError::Unreadable { path: path.to_owned(), error };
    let file = File::open(path).map_err(unreadable)?;
    let mut records = Vec::new();
    for (index, line) in BufReader::new(flate2::read::GzDecoder::new(file)).lines().enumerate() {
        let bad = |reason: String| CorpusError::BadRecord { path: path.to_owned(), line: index + 1, reason };
        let record: Record =
            serde_json::from_str(&line.map_err(unreadable)?).map_err(|error| bad(error.to_string()))?;
        if !licences.is_empty() && !licences.contains(&record.licence) {
            return Err(bad(format!("licence `{}` is not among the allowed ones", record.licence)));
        }
        records.push(record);
    }
    if records.is_empty() {
        return Err(CorpusError::Empty { path: path.to_owned() });
    }
    Ok(records)
}

/// The share of a stable hash of the normalised prompt, in [0, 1): decides what is held out.
pub fn hash_share(prompt: &str) -> f64 {
    let normal: String = prompt.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let hash = blake3::hash(normal.as_bytes());
    let mut first = [0_u8; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Chooses what to train on: records of served tasks as they are, and a sample of the others answered by the decline
/// text; `holdout` of the served ones is kept apart by hash of the prompt.
pub fn choose(
    records: Vec<Record>,
    served: &[String],
    declined: usize,
    decline: &str,
    holdout: f64,
    seed: u64,
) -> Vec<Record> {
    let mut generator = rand::rngs::StdRng::seed_from_u64(seed);
    let mut chosen = Vec::new();
    let mut others: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records {
        if hash_share(&record.prompt) < holdout {
            continue;
        }
        if served.contains(&record.task) {
            chosen.push(record);
        } else {
            others.entry(record.task.clone()).or_default().push(record);
        }
    }
    let share = declined / others.len().max(1);
    for (_, mut group) in others {
        group.shuffle(&mut generator);
        chosen.extend(group.into_iter().take(share).map(|record| Record { answer: decline.to_owned(), ..record }));
    }
    chosen
}

/// A training row: `length` inputs, as many targets, and a weight for each target.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Token ids.
    pub inputs: Vec<u32>,
    /// The token after each.
    pub targets: Vec<u32>,
    /// Weight of each target in the loss.
    pub weights: Vec<f32>,
}

/// Packs records, in random order, into rows of `length` tokens. Longer records are left out. The rest of a row that
/// the next record does not fit is padding of weight 0.
pub fn pack(records: &[Record], vocabulary: &Vocabulary, length: usize, prompt_weight: f32, seed: u64) -> Vec<Row> {
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
    let mut rows = Vec::new();
    let (mut tokens, mut weights): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    for index in order {
        let (prompt, answer) = vocabulary.example(&records[index].prompt, &records[index].answer);
        if prompt.len() + answer.len() > length {
            continue;
        }
        if tokens.len() + prompt.len() + answer.len() > length + 1 {
            rows.push(row(&mut tokens, &mut weights, length, vocabulary.end));
        }
        weights.extend(prompt.iter().map(|_| prompt_weight));
        weights.extend(answer.iter().map(|_| 1.0));
        tokens.extend(prompt);
        tokens.extend(answer);
    }
    if tokens.len() > 1 {
        rows.push(row(&mut tokens, &mut weights, length, vocabulary.end));
    }
    rows
}

fn row(tokens: &mut Vec<u32>, weights: &mut Vec<f32>, length: usize, padding: u32) -> Row {
    tokens.resize(length + 1, padding);
    weights.resize(length + 1, 0.0);
    let row = Row { inputs: tokens[..length].to_vec(), targets: tokens[1..].to_vec(), weights: weights[1..].to_vec() };
    tokens.clear();
    weights.clear();
    row
}
