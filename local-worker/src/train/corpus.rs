//! Instruction records → tokens with a weight for each target.

use super::TrainError;
use super::model::Words;
use super::pass::Sample;
use super::recipe::{Data, LongRecords};
use crate::evaluate::suite::{self, Record, SuiteError, hash_share};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Reads a corpus; a record whose licence is not allowed is an error that names its line, and so is one of a learnt task with an
/// empty answer, unless a teacher answers (`taught`).
///
/// # Errors
/// As [`crate::evaluate::read_suite`].
pub fn read(path: &Path, data: &Data, taught: bool) -> Result<Vec<Record>, SuiteError> {
    let licences = &data.licences;
    suite::read(path, |record| match licences.contains(&record.licence) {
        true if !taught && data.learns(&record.task) && record.answer.trim().is_empty() => {
            Err("answer is empty: nothing can be learnt".to_owned())
        }
        true => Ok(()),
        false => {
            let found = if record.licence.is_empty() { "none".to_owned() } else { format!("`{}`", record.licence) };
            Err(format!("licence: {found}, which is not among the recipe's data.licences ({})", licences.join(", ")))
        }
    })
}

/// Answers that a teacher wrote, in the place of right ones: JSON lines with `id` and `given`; lines whose `cut` is true are
/// passed over. Records that no teacher answered are dropped.
///
/// # Errors
/// A file can't be read, a line is no such object or answers what another one answered, or two records of several files
/// have one id.
pub fn answered(records: Vec<Record>, files: &[PathBuf]) -> Result<Vec<Record>, SuiteError> {
    #[derive(serde::Deserialize)]
    struct Given {
        id: String,
        given: String,
        #[serde(default)]
        cut: bool,
    }
    let mut given: HashMap<String, String> = HashMap::new();
    for path in files {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| SuiteError::Unreadable { path: path.clone(), error })?;
        for (index, line) in
            text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty())
        {
            let bad = |reason| SuiteError::BadRecord { path: path.clone(), line: index + 1, reason };
            let row: Given = suite::parse(line).map_err(bad)?;
            if row.cut || row.given.trim().is_empty() {
                continue;
            }
            if given.contains_key(&row.id) {
                return Err(bad(format!("id `{}` was answered before; keep one answer", row.id)));
            }
            given.insert(row.id, row.given);
        }
    }
    let mut seen = HashSet::new();
    if let Some(record) = records.iter().find(|record| !seen.insert(&record.id)) {
        return Err(SuiteError::SharedId { id: record.id.clone() });
    }
    let with = |record: Record| Some(Record { answer: given.get(&record.id)?.clone(), ..record });
    Ok(records.into_iter().filter_map(with).collect())
}

/// What to train on, and what is held out of it.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// Records to train on.
    pub train: Vec<Record>,
    /// Records of learnt tasks that are never trained on.
    pub held_out: Vec<Record>,
}

/// Chooses what to train on: records of learnt tasks as they are, and as many of every other task as make up the declined
/// ones, answered by the decline text. A share of all is held out by a hash of the prompt.
pub fn choose(records: Vec<Record>, data: &Data, seed: u64) -> Chosen {
    let mut generator = rand::rngs::StdRng::seed_from_u64(seed);
    let mut chosen = Chosen::default();
    let mut others: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records {
        let learnt = data.learns(&record.task);
        let held_out = hash_share(&record.prompt) < data.holdout_share;
        match (learnt, held_out) {
            (true, false) => chosen.train.push(record),
            (true, true) => chosen.held_out.push(record),
            (false, false) => others.entry(record.task.clone()).or_default().push(record),
            (false, true) => {}
        }
    }
    let share = data.declined_records / others.len().max(1);
    for (_, mut group) in others {
        group.shuffle(&mut generator);
        let declined = |record| Record { answer: data.decline.clone(), ..record };
        chosen.train.extend(group.into_iter().take(share).map(declined));
    }
    chosen
}

/// Records as tokens.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    /// Those that fit.
    pub samples: Vec<Sample>,
    /// How many are longer than the context.
    pub left_out: usize,
}

impl Encoded {
    /// Targets in all.
    pub fn tokens(&self) -> u64 {
        self.samples.iter().map(|sample| sample.len() as u64).sum()
    }
}

/// Records as tokens: targets in prompts weigh the recipe's weight, those in answers 1.
///
/// # Errors
/// A record is longer than `context` and the recipe does not say to skip it, or the template refuses one.
pub fn encode(records: &[Record], words: &Words, data: &Data, context: usize) -> Result<Encoded, TrainError> {
    let mut encoded = Encoded::default();
    for record in records {
        let (prompt, answer) = words.example(&record.prompt, &record.answer)?;
        let tokens = prompt.len() + answer.len();
        if tokens > context {
            if data.long_records == LongRecords::Refuse {
                return Err(TrainError::TooLong { id: record.id.clone(), tokens, context });
            }
            encoded.left_out += 1;
            continue;
        }
        encoded.samples.push(sample(prompt, answer, data.prompt_weight));
    }
    Ok(encoded)
}

/// A prompt and its answer.
pub(super) fn sample(prompt: Vec<u32>, answer: Vec<u32>, prompt_weight: f32) -> Sample {
    let inside = prompt.len().saturating_sub(1);
    let mut weights = vec![prompt_weight; inside];
    weights.resize(inside + answer.len(), 1.0);
    let mut tokens = prompt;
    tokens.extend(answer);
    Sample { tokens, weights, ..Sample::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::suite::tests::record;
    use crate::train::model::metadata;
    use crate::train::vocabulary::Vocabulary;

    #[test]
    fn licences_that_are_not_allowed_are_refused_by_line() {
        let line = r#"{"id":"1","task":"spam","source":"s","licence":"MIT","prompt":"p","answer":"a"}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        let data = Data { licences: vec!["MIT".to_owned()], ..crate::train::recipe::tests::recipe().data };
        for (other, told) in [("unstated", "`unstated`"), ("", "none")] {
            std::fs::write(file.path(), format!("{line}\n{}\n", line.replace("MIT", other))).unwrap();
            let error = read(file.path(), &data, false).unwrap_err().to_string();
            assert!(
                error.ends_with(&format!(":2: licence: {told}, which is not among the recipe's data.licences (MIT)")),
                "{error}"
            );
        }
        std::fs::write(file.path(), line).unwrap();
        assert_eq!(read(file.path(), &data, false).unwrap().len(), 1);
        std::fs::write(file.path(), line.replace("\"a\"", "\" \"")).unwrap();
        let error = read(file.path(), &data, false).unwrap_err().to_string();
        assert!(error.ends_with(":1: answer is empty: nothing can be learnt"), "{error}");
        assert_eq!(read(file.path(), &data, true).unwrap().len(), 1, "a teacher answers");
        std::fs::write(file.path(), line.replace("\"a\"", "\"\"").replace("spam", "ner")).unwrap();
        assert_eq!(read(file.path(), &data, false).unwrap().len(), 1, "it is declined whatever its answer is");
    }

    #[test]
    fn what_a_teacher_wrote_takes_the_place_of_right_answers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let rows = [
            r#"{"id":"one","answer":"gold","given":"by the teacher","cut":false}"#,
            r#"{"id":"two","given":"cut sh","cut":true}"#,
            r#"{"id":"other","given":"x"}"#,
        ];
        std::fs::write(file.path(), rows.join("\n")).unwrap();
        let records =
            vec![record("spam", "one", "gold"), record("spam", "two", "gold"), record("spam", "three", "gold")];
        let found = answered(records.clone(), &[file.path().to_owned()]).unwrap();
        assert_eq!(found.len(), 1, "what nobody answered, or not to the end, is not learnt");
        assert_eq!((found[0].id.as_str(), found[0].answer.as_str()), ("one", "by the teacher"));
        let twice = [records.clone(), vec![record("spam", "one", "gold")]].concat();
        let error = answered(twice, &[file.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("id `one` is that of several records"), "{error}");
        std::fs::write(file.path(), format!("\u{feff}{}\n{}\n", rows[0], rows[0])).unwrap();
        let error = answered(records.clone(), &[file.path().to_owned()]).unwrap_err().to_string();
        assert!(error.ends_with(":2: id `one` was answered before; keep one answer"), "{error}");
        std::fs::write(file.path(), "{\"id\":\"one\"}\n").unwrap();
        let error = answered(records, &[file.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains(":1: ") && error.contains("given"), "{error}");
    }

    #[test]
    fn other_tasks_are_declined_and_a_share_is_held_out() {
        let data = Data { declined_records: 20, holdout_share: 0.2, ..crate::train::recipe::tests::recipe().data };
        let mut records: Vec<Record> = (0..500).map(|n| record("spam", &format!("buy {n}"), "spam")).collect();
        records.extend((0..500).map(|n| record(["topic", "ner"][n % 2], &format!("what {n}"), "x")));
        let chosen = choose(records.clone(), &data, 7);
        let (served, others): (Vec<_>, Vec<_>) = chosen.train.iter().partition(|record| record.task == "spam");
        assert!((360..440).contains(&served.len()), "{}", served.len());
        assert_eq!(served.len() + chosen.held_out.len(), 500);
        assert!(served.iter().all(|record| record.answer == "spam" && hash_share(&record.prompt) >= 0.2));
        assert_eq!(others.len(), 20);
        assert!(others.iter().all(|record| record.answer == data.decline));
        assert_eq!(hash_share("Buy, 7!"), hash_share("buy 7"), "case and marks don't decide");
        let all = Data { tasks: Vec::new(), holdout_share: 0.0, ..data };
        assert_eq!(choose(records, &all, 7).train.len(), 1000, "without a list all tasks are learnt");
    }

    #[test]
    fn answers_weigh_more_than_prompts_and_long_records_are_named() {
        let data = Data { prompt_weight: 0.25, ..crate::train::recipe::tests::recipe().data };
        let records: Vec<Record> = (0..9)
            .map(|n| record("spam", &format!("win {n}"), "yes"))
            .chain([record("x", &"long ".repeat(90), "no")])
            .collect();
        let texts = records.iter().map(|record| format!("{} {}", record.prompt, record.answer)).collect::<Vec<_>>();
        let vocabulary = Vocabulary::train(texts.into_iter(), 280).unwrap();
        let words = Words::new(&metadata("x", "", &vocabulary).unwrap(), vocabulary.len()).unwrap();
        let encoded = encode(&records, &words, &data, 40).unwrap();
        assert_eq!((encoded.samples.len(), encoded.left_out), (9, 1));
        for sample in &encoded.samples {
            assert_eq!(sample.tokens.len(), sample.weights.len() + 1);
            let answer = sample.weights.iter().filter(|weight| **weight == 1.0).count();
            let (prompt, rest) = sample.weights.split_at(sample.len() - answer);
            assert!(prompt.iter().all(|weight| *weight == 0.25) && rest.iter().all(|weight| *weight == 1.0));
            assert_eq!(sample.tokens.last(), Some(&vocabulary.end), "the end of every answer is learnt");
            assert_eq!(answer, words.encode("yes").unwrap().len() + 1);
        }
        let strict = Data { long_records: LongRecords::Refuse, ..data };
        let error = encode(&records, &words, &strict, 40).err().unwrap().to_string();
        assert!(error.contains(&records[9].id) && error.contains("the context 40"), "{error}");
    }
}
