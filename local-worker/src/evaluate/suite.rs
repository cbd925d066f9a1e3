//! Records of a suite: JSON lines, gzipped or not, one question with its right answer each.
//!
//! A suite comes from anywhere, so whatever is wrong with it is told with file and line, before any model is asked.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// One question and its right answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Record {
    /// Unique id.
    pub id: String,
    /// Name of the task, which decides the metric.
    pub task: String,
    /// Where the text comes from; empty if the record does not say.
    #[serde(default)]
    pub source: String,
    /// Licence of the text; empty if the record does not say.
    #[serde(default)]
    pub licence: String,
    /// What is asked.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// Labels the answer is one of, where the list is closed.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// What can be wrong with a suite or a corpus.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The file can't be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line can't be read: the file is cut off, damaged, or no text.
    #[error("{path}:{line}: {error}; is the file cut off or damaged?")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
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
    /// Records of several files have one id, and answers are given by id.
    #[error("id `{id}` is that of several records: nobody can tell which one was answered; give each record its own")]
    SharedId {
        /// The id.
        id: String,
    },
    /// There is no record.
    #[error("{path}: no record; each line must be a JSON object with id, task, prompt and answer")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a file of records, gzipped or not (told by its first bytes). `accept` looks at each record; what it says is wrong
/// is told with the record's line. Blank lines are passed over, and so is a byte order mark. An empty answer is taken: who has
/// the questions answered by a teacher has none yet.
///
/// # Errors
/// The file can't be read or holds no record, or one of its lines is damaged, is no record, has the id of an earlier one, or
/// was not accepted.
pub fn read(path: &Path, accept: impl Fn(&Record) -> Result<(), String>) -> Result<Vec<Record>, SuiteError> {
    let unreadable = |error| SuiteError::Unreadable { path: path.to_owned(), error };
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    let zipped = file.fill_buf().map_err(unreadable)?.starts_with(&[0x1f, 0x8b]);
    let source: Box<dyn Read> = if zipped { Box::new(flate2::read::MultiGzDecoder::new(file)) } else { Box::new(file) };
    let (mut records, mut lines) = (Vec::new(), HashMap::new());
    for (index, line) in BufReader::new(source).lines().enumerate() {
        let line = line.map_err(|error| SuiteError::Damaged { path: path.to_owned(), line: index + 1, error })?;
        let line = if index == 0 { line.trim_start_matches('\u{feff}') } else { &line };
        if line.trim().is_empty() {
            continue;
        }
        let bad = |reason: String| SuiteError::BadRecord { path: path.to_owned(), line: index + 1, reason };
        let record: Record = parse(line).map_err(bad)?;
        for (field, text) in [("id", &record.id), ("task", &record.task), ("prompt", &record.prompt)] {
            if text.trim().is_empty() {
                return Err(bad(format!("{field} is empty")));
            }
        }
        accept(&record).map_err(bad)?;
        if let Some(earlier) = lines.insert(record.id.clone(), index + 1) {
            return Err(bad(format!("id `{}` is that of line {earlier} too; give each record its own", record.id)));
        }
        records.push(record);
    }
    if records.is_empty() { Err(SuiteError::Empty { path: path.to_owned() }) } else { Ok(records) }
}

/// One line of JSON; what is wrong with it begins with the field, where one is of the wrong type.
///
/// # Errors
/// It is no such object.
pub fn parse<T: serde::de::DeserializeOwned>(line: &str) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let in_field = error.inner().is_data() && error.path().iter().next().is_some();
        if in_field { format!("{}: {}", error.path(), error.inner()) } else { error.inner().to_string() }
    })?;
    json.end().map_err(|error| error.to_string())?;
    Ok(parsed)
}

/// At most `limit` of the records, in their order: those whose ids hash lowest, so that a file sorted by task gives some of
/// each, the same ones each time.
pub fn sample(records: Vec<Record>, limit: usize) -> Vec<Record> {
    if records.len() <= limit {
        return records;
    }
    let mut places: Vec<(blake3::Hash, usize)> =
        records.iter().enumerate().map(|(at, record)| (blake3::hash(record.id.as_bytes()), at)).collect();
    places.sort_by(|one, other| (one.0.as_bytes(), one.1).cmp(&(other.0.as_bytes(), other.1)));
    let mut taken = vec![false; records.len()];
    places.iter().take(limit).for_each(|(_, at)| taken[*at] = true);
    records.into_iter().zip(taken).filter_map(|(record, taken)| taken.then_some(record)).collect()
}

/// The share of a stable hash of the normalised prompt, in [0, 1): decides what is held out.
pub fn hash_share(prompt: &str) -> f64 {
    let normal: String = prompt.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let hash = blake3::hash(normal.as_bytes());
    let mut first = [0_u8; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write as _;

    /// A record with an id of its prompt.
    pub fn record(task: &str, prompt: &str, answer: &str) -> Record {
        let text = str::to_owned;
        Record {
            id: text(prompt),
            task: text(task),
            source: text("made"),
            licence: text("MIT"),
            prompt: text(prompt),
            answer: text(answer),
            labels: Vec::new(),
        }
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn zipped(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    const LINE: &str = r#"{"id":"1","task":"spam","source":"s","licence":"MIT","prompt":"p","answer":"a"}"#;

    fn fault(bytes: &[u8]) -> String {
        let file = file(bytes);
        let error = read(file.path(), |_| Ok(())).unwrap_err().to_string();
        error.strip_prefix(&file.path().display().to_string()).unwrap_or_else(|| panic!("{error}")).to_owned()
    }

    #[test]
    fn plain_and_zipped_files_are_read_and_faults_named_by_line() {
        let other = LINE.replace("\"1\"", "\"2\"");
        for bytes in [format!("\u{feff}{LINE}").into_bytes(), zipped(&format!("{LINE}\n\n{other}\n"))] {
            assert_eq!(read(file(&bytes).path(), |_| Ok(())).unwrap()[0].answer, "a");
        }
        let twice = fault(format!("{LINE}\n{other}\n\n{LINE}\n").as_bytes());
        assert_eq!(twice, ":4: id `1` is that of line 1 too; give each record its own");
        let number = fault(LINE.replace("\"a\"", "7").as_bytes());
        assert!(number.starts_with(":1: answer: invalid type: integer `7`, expected a string"), "{number}");
        let label = fault(LINE.replace("\"a\"", "\"a\",\"labels\":[\"x\",null]").as_bytes());
        assert!(label.starts_with(":1: labels[1]: invalid type: null"), "{label}");
        assert!(fault(format!("{LINE} x").as_bytes()).contains(":1: trailing characters"));
        assert!(fault(b"").contains("no record"));
        assert!(fault(&zipped("\n")).contains("no record"));
        assert!(fault(format!("{LINE}\n{{\"id\":\"2\"").as_bytes()).starts_with(":2: EOF while parsing"), "torn line");
        assert!(fault(LINE.replace("\"answer\"", "\"answr\"").as_bytes()).contains(":1: missing field `answer`"));
        assert!(fault(LINE.replace("\"p\"", "\" \"").as_bytes()).contains(":1: prompt is empty"));
        assert!(fault(format!("{LINE}\n\u{0}\u{1}").as_bytes()).starts_with(":2: "));
        let many: String = (0..50).map(|n| LINE.replace("\"1\"", &format!("\"{n}\"")) + "\n").collect();
        let whole = zipped(&many);
        assert!(fault(&whole[..whole.len() - 12]).contains("cut off"), "torn archive");
        assert!(fault(&[LINE.as_bytes(), b"\n\xff\xfe"].concat()).starts_with(":2: "), "no text");
        let refused = read(file(LINE.as_bytes()).path(), |_| Err("no".to_owned())).unwrap_err();
        assert!(refused.to_string().ends_with(":1: no"), "{refused}");
        let missing = read(Path::new("nowhere/suite.jsonl"), |_| Ok(())).unwrap_err();
        assert!(matches!(missing, SuiteError::Unreadable { .. }), "{missing}");
    }

    #[test]
    fn a_sample_keeps_the_order_and_takes_of_every_part() {
        let all: Vec<Record> = (0..200).map(|n| record(["a", "b"][n / 100], &format!("prompt {n:03}"), "x")).collect();
        let some = sample(all.clone(), 40);
        assert_eq!((some.len(), sample(all.clone(), 40)), (40, some.clone()));
        assert!(some.windows(2).all(|pair| pair[0].id < pair[1].id));
        let first = some.iter().filter(|record| record.task == "a").count();
        assert!((10..=30).contains(&first), "{first}");
        assert_eq!(sample(all.clone(), 500), all);
    }
}
