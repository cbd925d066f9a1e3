//! Recorded outcomes: how well a small and a large model answered the same prompt.
//!
//! Rows are JSON objects, one a line, plain or gzipped. Evidence that is wrong is worse than none, so a file is read whole or
//! not at all, and every bad row is named by file, line and field. Reading is the only I/O in `evidence`.

use serde::Deserialize;
use std::collections::HashSet;
use std::io::Read as _;
use std::path::Path;

/// Where a quality came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeSource {
    /// Compared with a known right answer.
    Gold,
    /// A judging model.
    Judge,
    /// Feedback of a user.
    User,
    /// An automatic measure.
    Metric,
}

impl OutcomeSource {
    /// The word in files and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gold => "gold",
            Self::Judge => "judge",
            Self::User => "user",
            Self::Metric => "metric",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Gold, Self::Judge, Self::User, Self::Metric].into_iter().find(|source| source.as_str() == word)
    }
}

/// Quality of a small and a large model's answers to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Unique among the rows of its pair.
    pub id: String,
    /// The data set.
    pub source: String,
    /// The task or subject within it.
    pub domain: String,
    /// What was asked.
    pub prompt: String,
    /// The small model.
    pub small: String,
    /// The large model.
    pub large: String,
    /// Quality of the small model's answer, in `[0, 1]`.
    pub small_quality: f64,
    /// Quality of the large model's answer, in `[0, 1]`; 1 where only the small model was graded.
    pub large_quality: f64,
    /// Names the group of near-duplicates; groups are never torn apart.
    pub cluster: String,
    /// The part the file's makers put it in.
    pub split: String,
    /// How likely the row was to be recorded, in `(0, 1]`.
    pub sampling_probability: f64,
    /// Where the quality came from.
    pub graded_by: OutcomeSource,
    /// What the recorder knew besides.
    pub recorded: Recorded,
}

/// What a recorder may know of a row besides its grades.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recorded {
    /// The calibrated score the row was given when it was recorded, in `[0, 1]`.
    pub score: Option<f64>,
    /// Whose request it was; empty if unknown.
    pub tenant: String,
    /// The residency or task label of the request; empty if none.
    pub label: String,
    /// When it was recorded, in milliseconds since 1970.
    pub at_ms: Option<i64>,
    /// Tokens of the small model's answer.
    pub small_tokens: Option<u32>,
}

impl Outcome {
    /// Whether the small model was at least as good: the event that scores predict.
    pub fn small_suffices(&self) -> bool {
        self.small_quality >= self.large_quality
    }
}

/// Rows with the hash of the files they came from.
#[derive(Debug, Clone)]
pub struct Outcomes {
    /// The rows in file order.
    pub rows: Vec<Outcome>,
    /// blake3 over the unpacked files, 16 hex digits.
    pub hash: String,
    /// What is odd but does no harm, in words for whoever keeps the files.
    pub notes: Vec<String>,
}

/// One bad row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {field}: {problem}")]
pub struct RowProblem {
    /// The file as it was named.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// The field, or `row` where the line is no row at all.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Why outcomes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OutcomeError {
    /// The file cannot be read or unpacked.
    #[error("{file} cannot be read whole: {error}; if it was cut off, restore it or export it again")]
    Unreadable {
        /// The file as it was named.
        file: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// Bad rows, the first [`MOST_PROBLEMS`] of them.
    #[error("{}", .0.iter().map(RowProblem::to_string).collect::<Vec<_>>().join("\n"))]
    Rows(Vec<RowProblem>),
    /// No rows.
    #[error("{file} holds no outcomes; it should hold one JSON object a line")]
    Empty {
        /// The file as it was named.
        file: String,
    },
}

/// Bad rows reported before reading stops.
pub const MOST_PROBLEMS: usize = 20;

impl Outcomes {
    /// Reads files of outcomes, gzipped or not.
    ///
    /// # Errors
    /// A file that cannot be read or is empty, and bad rows; nothing is returned then.
    pub fn read(files: &[&Path]) -> Result<Self, OutcomeError> {
        let mut texts = Vec::new();
        for file in files {
            let name = file.display().to_string();
            let text = unpack(file).map_err(|error| OutcomeError::Unreadable { file: name.clone(), error })?;
            texts.push((name, text));
        }
        Self::parse(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// Reads named texts.
    ///
    /// # Errors
    /// As [`Outcomes::read`], without the files.
    pub fn parse<'text>(texts: impl IntoIterator<Item = (&'text str, &'text str)>) -> Result<Self, OutcomeError> {
        let mut reader = Reader::default();
        let mut hash = blake3::Hasher::new();
        for (file, text) in texts {
            hash.update(text.as_bytes());
            let before = reader.rows.len() + reader.problems.len();
            reader.text(file, text);
            if reader.rows.len() + reader.problems.len() == before {
                return Err(OutcomeError::Empty { file: file.to_owned() });
            }
        }
        if !reader.problems.is_empty() {
            reader.problems.truncate(MOST_PROBLEMS);
            return Err(OutcomeError::Rows(reader.problems));
        }
        if reader.rows.is_empty() {
            return Err(OutcomeError::Empty { file: "no file".to_owned() });
        }
        let hash = hash.finalize().to_hex().chars().take(16).collect();
        Ok(Self { rows: reader.rows, hash, notes: reader.notes })
    }
}

/// The text of a file, unpacked if it begins like gzip.
///
/// # Errors
/// It can't be read, or is no text.
pub fn unpack(file: &Path) -> std::io::Result<String> {
    let bytes = std::fs::read(file)?;
    let bytes = if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut unpacked)?;
        unpacked
    } else {
        bytes
    };
    String::from_utf8(bytes).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

/// A row as it stands in the file. Keys this build does not know are the recorder's own notes.
#[derive(Deserialize)]
struct RawOutcome {
    id: String,
    source: String,
    #[serde(default)]
    domain: String,
    prompt: String,
    weak_model: String,
    #[serde(default)]
    strong_model: Option<String>,
    weak_quality: f64,
    #[serde(default)]
    strong_quality: Option<f64>,
    cluster: String,
    #[serde(default)]
    split: String,
    #[serde(default)]
    sampling_probability: Option<f64>,
    #[serde(default)]
    outcome_source: Option<String>,
    #[serde(default)]
    score: Option<f64>,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    at_ms: Option<i64>,
    #[serde(default)]
    weak_output_tokens: Option<f64>,
}

#[derive(Default)]
struct Reader {
    rows: Vec<Outcome>,
    seen: HashSet<[u8; 32]>,
    problems: Vec<RowProblem>,
    notes: Vec<String>,
}

impl Reader {
    fn text(&mut self, file: &str, text: &str) {
        let torn = (!text.ends_with('\n')).then(|| text.lines().count());
        let mut clock = Clock::default();
        for (line, row) in text.lines().enumerate() {
            let line = line + 1;
            if row.trim().is_empty() {
                continue;
            }
            if self.problems.len() >= MOST_PROBLEMS {
                return;
            }
            match read_row(row) {
                Ok(outcome) => {
                    clock.tick(line, outcome.recorded.at_ms);
                    self.keep(file, line, outcome);
                }
                Err((field, problem)) => {
                    let problem = match torn {
                        Some(last) if last == line && field == "row" => {
                            format!("the file ends within this row: {problem}; restore or remove it")
                        }
                        _ => problem,
                    };
                    self.problem(file, line, field, problem);
                }
            }
        }
        self.notes.extend(clock.note(file));
    }

    fn keep(&mut self, file: &str, line: usize, outcome: Outcome) {
        let key = [&outcome.id, &outcome.small, &outcome.large].map(String::as_str).join("\0");
        if self.seen.insert(*blake3::hash(key.as_bytes()).as_bytes()) {
            self.rows.push(outcome);
        } else {
            let problem = format!("{:?} is there twice for this pair of models; ids are unique", outcome.id);
            self.problem(file, line, "id", problem);
        }
    }

    fn problem(&mut self, file: &str, line: usize, field: &'static str, problem: String) {
        self.problems.push(RowProblem { file: file.to_owned(), line, field, problem });
    }
}

/// Watches the times of a file's rows.
#[derive(Default)]
struct Clock {
    latest: Option<i64>,
    /// Rows earlier than one before them, and the line of the first.
    back: usize,
    first: usize,
}

impl Clock {
    fn tick(&mut self, line: usize, at: Option<i64>) {
        if at.is_some() && at < self.latest {
            self.back += 1;
            self.first = if self.back == 1 { line } else { self.first };
        }
        self.latest = self.latest.max(at);
    }

    fn note(&self, file: &str) -> Option<String> {
        let Self { back, first, .. } = self;
        (*back > 0).then(|| {
            format!(
                "{file}:{first}: at_ms goes backwards ({back} rows): a clock was set back or files were joined; evidence is \
                 ordered by cluster, not by time, so the certificate stands, but sort the file before reading trends from it"
            )
        })
    }
}

/// Why a row is none, with a hint where a number stands that JSON does not have.
fn unreadable(row: &str, error: &serde_json::Error) -> String {
    let from = row.floor_char_boundary(error.column().saturating_sub(3));
    let to = row.ceil_char_boundary((error.column() + 8).min(row.len()));
    let around = row.get(from..to).unwrap_or_default().to_lowercase();
    if error.is_syntax() && ["nan", "inf"].iter().any(|word| around.contains(word)) {
        return format!("{error}: what is not a number can't be learnt from; leave the row out or grade it again");
    }
    error.to_string()
}

/// Checks one row; an error is the field and what is wrong with it.
fn read_row(row: &str) -> Result<Outcome, (&'static str, String)> {
    let raw: RawOutcome = serde_json::from_str(row).map_err(|error| ("row", unreadable(row, &error)))?;
    let quality = |field, quality: f64| {
        if (0.0..=1.0).contains(&quality) {
            Ok(quality)
        } else {
            Err((field, format!("{quality} is not within 0 and 1; rescale or leave the row out")))
        }
    };
    let small_quality = quality("weak_quality", raw.weak_quality)?;
    let large_quality = quality("strong_quality", raw.strong_quality.unwrap_or(1.0))?;
    if let Some(score) = raw.score {
        quality("score", score)?;
    }
    let sampling_probability = raw.sampling_probability.unwrap_or(1.0);
    if !(sampling_probability > 0.0 && sampling_probability <= 1.0) {
        let problem = format!("{sampling_probability} is not above 0 and at most 1");
        return Err(("sampling_probability", problem));
    }
    let source = raw.outcome_source.as_deref().unwrap_or("gold");
    let graded_by = OutcomeSource::parse(source)
        .ok_or_else(|| ("outcome_source", format!("{source:?} is none of gold, judge, user, metric")))?;
    let texts = [("id", &raw.id), ("prompt", &raw.prompt), ("weak_model", &raw.weak_model), ("cluster", &raw.cluster)];
    if let Some((field, _)) = texts.iter().find(|(_, text)| text.trim().is_empty()) {
        return Err((field, "empty, but needed".to_owned()));
    }
    Ok(Outcome {
        id: raw.id,
        source: raw.source,
        domain: raw.domain,
        prompt: raw.prompt,
        small: raw.weak_model,
        large: raw.strong_model.unwrap_or_else(|| super::certificate::ANY_LARGE.to_owned()),
        small_quality,
        large_quality,
        cluster: raw.cluster,
        split: raw.split,
        sampling_probability,
        graded_by,
        recorded: Recorded {
            score: raw.score,
            tenant: raw.tenant.unwrap_or_default(),
            label: raw.label.unwrap_or_default(),
            at_ms: raw.at_ms,
            small_tokens: raw.weak_output_tokens.filter(|tokens| *tokens >= 0.0).map(|tokens| tokens as u32),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn row(id: &str, fields: &str) -> String {
        format!(
            "{{\"id\":\"{id}\",\"source\":\"s\",\"domain\":\"d\",\"prompt\":\"p\",\"weak_model\":\"w\",\"strong_model\":\"l\",\"cluster\":\"c\",\"split\":\"train\",{fields}}}\n"
        )
    }

    const GOOD: &str = "\"weak_quality\":0.0,\"strong_quality\":1.0";

    fn problems(text: &str) -> Vec<String> {
        match Outcomes::parse([("a.jsonl", text)]) {
            Err(OutcomeError::Rows(problems)) => problems.iter().map(RowProblem::to_string).collect(),
            other => panic!("expected bad rows, got {other:?}"),
        }
    }

    #[test]
    fn reads_plain_and_gzipped_files_alike() {
        let text = row("1", GOOD)
            + &row(
                "2",
                "\"weak_quality\":1,\"weak_output_tokens\":3,\"outcome_source\":\"judge\",\"sampling_probability\":0.25",
            );
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("a.jsonl");
        std::fs::write(&plain, &text).unwrap();
        let packed = folder.path().join("a.jsonl.gz");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        let bytes = gzip.finish().unwrap();
        std::fs::write(&packed, &bytes).unwrap();
        let one = Outcomes::read(&[&plain]).unwrap();
        let two = Outcomes::read(&[&packed]).unwrap();
        assert_eq!(one.rows, two.rows);
        assert_eq!(one.hash, two.hash);
        assert_eq!(one.rows[1].large_quality, 1.0);
        assert_eq!(one.rows[1].graded_by, OutcomeSource::Judge);
        assert_eq!(one.rows[1].sampling_probability, 0.25);
        assert!(!one.rows[0].small_suffices() && one.rows[1].small_suffices());

        std::fs::write(&packed, &bytes[..bytes.len() - 9]).unwrap();
        let error = Outcomes::read(&[&packed]).unwrap_err();
        assert!(matches!(error, OutcomeError::Unreadable { .. }), "{error}");
        let missing = Outcomes::read(&[&folder.path().join("none")]).unwrap_err();
        assert!(missing.to_string().contains("none"));
    }

    #[test]
    fn bad_rows_are_named_by_file_line_and_field() {
        let good = row("1", GOOD);
        let table = [
            ("\"weak_quality\":1.5", "a.jsonl:2: weak_quality: 1.5 is not within 0 and 1"),
            ("\"weak_quality\":-0.1", "weak_quality: -0.1"),
            ("\"weak_quality\":NaN", "a.jsonl:2: row: expected value"),
            ("\"weak_quality\":NaN", "leave the row out or grade it again"),
            ("\"weak_quality\":-Infinity", "leave the row out or grade it again"),
            ("\"weak_quality\":1e999", "row: number out of range"),
            ("\"weak_quality\":null", "row: invalid type: null"),
            ("\"weak_quality\":\"1\"", "row: invalid type: string"),
            ("\"strong_quality\":1.0", "row: missing field `weak_quality`"),
            ("\"weak_quality\":1,\"strong_quality\":2", "strong_quality: 2"),
            ("\"weak_quality\":1,\"sampling_probability\":0", "sampling_probability: 0 is not above 0"),
            ("\"weak_quality\":1,\"outcome_source\":\"guess\"", "outcome_source: \"guess\""),
        ];
        for (fields, expected) in table {
            let found = problems(&format!("{good}{}", row("2", fields)));
            assert_eq!(found.len(), 1);
            assert!(found[0].contains(expected), "{fields}: {found:?}");
        }
        let twice = problems(&format!("{good}{good}"));
        assert!(twice[0].starts_with("a.jsonl:2: id: \"1\" is there twice"), "{twice:?}");
        let empty_cluster = row("2", GOOD).replace("\"cluster\":\"c\"", "\"cluster\":\"\"");
        assert!(problems(&empty_cluster)[0].contains("cluster: empty"));
    }

    #[test]
    fn the_same_id_may_stand_for_another_pair() {
        let other = row("1", GOOD).replace("\"weak_model\":\"w\"", "\"weak_model\":\"v\"");
        let outcomes = Outcomes::parse([("a", (row("1", GOOD) + &other).as_str())]).unwrap();
        assert_eq!(outcomes.rows.len(), 2);
    }

    #[test]
    fn every_problem_is_reported_up_to_a_limit() {
        let bad =
            |count: usize| -> String { (0..count).map(|id| row(&id.to_string(), "\"weak_quality\":9")).collect() };
        assert_eq!(problems(&bad(3)).len(), 3);
        assert_eq!(problems(&bad(100)).len(), MOST_PROBLEMS);
    }

    #[test]
    fn torn_and_empty_files_are_told_apart() {
        let text = row("1", GOOD) + &row("2", GOOD);
        let torn = problems(&text[..text.len() - 20]);
        assert!(torn[0].contains("a.jsonl:2: row: the file ends within this row"), "{torn:?}");
        // A whole last row without a newline is no loss.
        assert_eq!(Outcomes::parse([("a", text.trim_end())]).unwrap().rows.len(), 2);
        for empty in ["", "\n\n"] {
            let error = Outcomes::parse([("b.jsonl", empty)]).unwrap_err();
            assert!(matches!(&error, OutcomeError::Empty { file } if file == "b.jsonl"));
        }
        assert!(Outcomes::parse([]).is_err());
    }
}
