//! Instruction records → packed rows of tokens with a weight for each target.

use super::TrainError;
use super::recipe::Recipe;
use super::run::Row;
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

/// Reads gzipped JSON lines; a record whose licence is not in `licences` is an error that names its line. With no
/// licences at all any will do: for grading, never for training.
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

/// Chooses what to train on: records of served tasks as they are, and as many of every other task as make up the recipe's
/// declined ones, answered by the decline text. A share of all is held out by hash of the prompt.
pub fn choose(records: Vec<Record>, recipe: &Recipe) -> Vec<Record> {
    let mut generator = rand::rngs::StdRng::seed_from_u64(recipe.seed);
    let mut chosen = Vec::new();
    let mut others: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records {
        if hash_share(&record.prompt) < recipe.holdout_share {
            continue;
        }
        if recipe.served_tasks.contains(&record.task) {
            chosen.push(record);
        } else {
            others.entry(record.task.clone()).or_default().push(record);
        }
    }
    let share = recipe.declined_records / others.len().max(1);
    for (_, mut group) in others {
        group.shuffle(&mut generator);
        let declined = |record| Record { answer: recipe.decline.clone(), ..record };
        chosen.extend(group.into_iter().take(share).map(declined));
    }
    chosen
}

/// Packs records, in random order, into rows of the recipe's length. Longer records are left out. The rest of a row that
/// the next record does not fit is padding of weight 0.
pub fn pack(records: &[Record], vocabulary: &Vocabulary, recipe: &Recipe) -> Result<Vec<Row>, TrainError> {
    let (length, prompt_weight) = (recipe.row_length, recipe.prompt_weight);
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(recipe.seed));
    let mut rows = Vec::new();
    let (mut tokens, mut weights): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    for index in order {
        let (prompt, answer) = vocabulary.example(&records[index].prompt, &records[index].answer)?;
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
    Ok(rows)
}

fn row(tokens: &mut Vec<u32>, weights: &mut Vec<f32>, length: usize, padding: u32) -> Row {
    tokens.resize(length + 1, padding);
    weights.resize(length + 1, 0.0);
    let row = Row { inputs: tokens[..length].to_vec(), targets: tokens[1..].to_vec(), weights: weights[1..].to_vec() };
    tokens.clear();
    weights.clear();
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn record(task: &str, prompt: &str, answer: &str) -> Record {
        let text = str::to_owned;
        Record {
            id: text("r"),
            task: text(task),
            source: text("s"),
            licence: text("MIT"),
            prompt: text(prompt),
            answer: text(answer),
        }
    }

    fn file(lines: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file.reopen().unwrap(), flate2::Compression::fast());
        encoder.write_all(lines.as_bytes()).unwrap();
        encoder.finish().unwrap();
        file
    }

    const LINE: &str = r#"{"id":"1","task":"spam","source":"s","licence":"MIT","prompt":"p","answer":"a"}"#;

    #[test]
    fn bad_corpora_are_refused_by_line() {
        let other = LINE.replace("MIT", "unstated");
        let cases = [
            (format!("{LINE}\n{{}}\n"), ":2: missing field"),
            (format!("{LINE}\n{other}\n"), ":2: licence `unstated` is not among the allowed ones"),
            (String::new(), "no record"),
        ];
        for (lines, expected) in cases {
            let error = read(file(&lines).path(), &["MIT".to_owned()]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let missing = read(Path::new("nowhere/train.jsonl.gz"), &[]).unwrap_err();
        assert!(matches!(&missing, CorpusError::Unreadable { .. }), "{missing}");
        assert_eq!(read(file(LINE).path(), &["MIT".to_owned()]).unwrap().len(), 1);
    }

    #[test]
    fn other_tasks_are_declined_and_a_share_is_held_out() {
        let recipe = Recipe { declined_records: 20, holdout_share: 0.2, ..crate::train::recipe::tests::recipe() };
        let mut records: Vec<Record> = (0..500).map(|n| record("spam", &format!("buy {n}"), "spam")).collect();
        records.extend((0..500).map(|n| record(["topic", "ner"][n % 2], &format!("what {n}"), "x")));
        let chosen = choose(records, &recipe);
        let (served, others): (Vec<_>, Vec<_>) = chosen.iter().partition(|record| record.task == "spam");
        assert!((360..440).contains(&served.len()), "{}", served.len());
        assert!(served.iter().all(|record| record.answer == "spam" && hash_share(&record.prompt) >= 0.2));
        assert_eq!(others.len(), 20);
        assert!(others.iter().all(|record| record.answer == recipe.decline));
        assert_eq!(hash_share("Buy, 7!"), hash_share("buy 7"), "case and marks don't decide");
    }

    #[test]
    fn rows_hold_whole_records_and_weigh_answers() {
        let recipe = Recipe { row_length: 24, prompt_weight: 0.25, ..crate::train::recipe::tests::recipe() };
        let records: Vec<Record> = (0..9)
            .map(|n| record("spam", &format!("win {n}"), "yes"))
            .chain([record("x", &"long ".repeat(90), "no")])
            .collect();
        let texts = records.iter().map(|record| format!("{} {}", record.prompt, record.answer)).collect::<Vec<_>>();
        let vocabulary = Vocabulary::train(texts.into_iter(), 280).unwrap();
        let rows = pack(&records, &vocabulary, &recipe).unwrap();
        let mut answers = 0;
        for row in &rows {
            assert_eq!((row.inputs.len(), row.targets.len(), row.weights.len()), (24, 24, 24));
            assert_eq!(row.inputs[1..], row.targets[..23]);
            assert!(row.weights.iter().all(|weight| [0.0, 0.25, 1.0].contains(weight)));
            let ends = row.targets.iter().zip(&row.weights);
            answers += ends.filter(|(token, weight)| **token == vocabulary.end && **weight == 1.0).count();
        }
        assert_eq!(answers, 9, "the end of every answer is learnt, the long record is left out");
    }
}
