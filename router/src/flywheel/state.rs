//! The run folder: `flywheel.json` says what the run is made of, what each step came to, and how far it got. It is replaced as
//! a whole after each step, and a step that was not written down is done again.

use super::FlywheelError;
use super::gate::Look;
use crate::learn::transcripts::Transcripts;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SCHEMA: u32 = 1;

/// A file that a run is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its whole path.
    pub file: String,
    /// Hash of its content.
    pub blake3: String,
}

impl Source {
    /// A file as it is now.
    ///
    /// # Errors
    /// It can't be read.
    pub fn of(file: &Path) -> Result<Self, FlywheelError> {
        let blake3 = hash(file)?;
        let file = file.canonicalize().map_err(|error| FlywheelError::file(file, error))?;
        Ok(Self { file: file.display().to_string(), blake3 })
    }
}

/// Hash of a file, 64 hexadecimal digits.
///
/// # Errors
/// It can't be read.
pub fn hash(file: &Path) -> Result<String, FlywheelError> {
    local_worker::files::hash(file).map_err(|error| FlywheelError::file(file, error))
}

/// What a run is made of: one with other settings is another run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The policy.
    pub policy: String,
    /// The folder of policies.
    pub policies_dir: PathBuf,
    /// The data folder that holds the ledger.
    pub data_dir: PathBuf,
    /// The small model that serves at the start.
    pub serving: String,
    /// Hash of the recipe's text.
    pub recipe: String,
    /// What is learnt beside the ledger's answers.
    pub data: Vec<Source>,
    /// What both models are asked beside the held-out part.
    pub suite: Vec<Source>,
    /// Only answers to this tenant; empty means all.
    pub tenant: String,
    /// Whether answers to several tenants are learnt together.
    pub across_tenants: bool,
    /// Answers with feedback count only above this.
    pub feedback_above: f64,
    /// Share of the prompts that is never trained on.
    pub held_out: f64,
    /// Longest answer that is learnt, in bytes; longer ones are declined.
    pub longest: usize,
}

#[cfg(test)]
impl Settings {
    /// Of a run that learns from the ledger alone.
    pub fn made() -> Self {
        Self {
            policy: "balanced".to_owned(),
            policies_dir: "policies".into(),
            data_dir: "data".into(),
            serving: "sluice-nano".to_owned(),
            recipe: "aa".to_owned(),
            data: Vec::new(),
            suite: Vec::new(),
            tenant: String::new(),
            across_tenants: false,
            feedback_above: 0.5,
            held_out: 0.2,
            longest: 400,
        }
    }
}

/// How far a run got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The candidate is being made.
    Preparing,
    /// It is tried beside the serving model.
    Shadowing,
    /// It serves.
    Promoted,
    /// It was found wanting and withdrawn.
    Rejected,
    /// It served, or was tried, and was taken back.
    RolledBack,
}

impl Stage {
    /// Whether there is nothing left to do.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Preparing | Self::Shadowing)
    }
}

/// The data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Corpus {
    /// Answers to learn.
    pub train: Source,
    /// Held-out ones.
    pub test: Source,
    /// How many of each.
    pub rows: (usize, usize),
    /// How many of the answers are too long for a small model and are learnt as declined.
    pub declined: usize,
    /// What was masked.
    pub masked: BTreeMap<String, usize>,
    /// What was left out, by why.
    pub left_out: BTreeMap<String, usize>,
}

impl Corpus {
    /// What was taken out of the ledger, as a record of the step.
    pub fn of(taken: &Transcripts, (train, test): (Source, Source), rows: (usize, usize), declined: usize) -> Self {
        let owned = |counts: &BTreeMap<&'static str, usize>| {
            counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        Self { train, test, rows, declined, masked: owned(&taken.masked), left_out: owned(&taken.left_out) }
    }
}

/// A model file that a step made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The file.
    pub model: Source,
    /// Its size.
    pub bytes: u64,
    /// Seconds that it took.
    pub seconds: u64,
}

/// A candidate in the folder of policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Its name in the catalog.
    pub model: String,
    /// What was added to the catalog.
    pub entry: String,
    /// Since when, in ms since 1970-01-01 UTC.
    pub since_ms: i64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    schema: u32,
    /// What it is made of.
    pub settings: Settings,
    /// How far it got.
    pub stage: Stage,
    /// The data set.
    pub corpus: Option<Corpus>,
    /// The trained student.
    pub student: Option<Made>,
    /// The compressed one.
    pub candidate: Option<Made>,
    /// Report card of the serving model (before) and the candidate (after).
    pub card: Option<Value>,
    /// The candidate's place beside the serving model.
    pub tried: Option<Tried>,
    /// What the gate saw last.
    pub gate: Option<Look>,
    /// Hash of the policy's text when the candidate took its place.
    pub promoted_text: Option<String>,
    /// Why it ended as it did.
    pub why: String,
}

/// A run folder that this process has to itself.
pub struct RunFolder {
    path: PathBuf,
    /// How far it got; [`RunFolder::save`] writes it down.
    pub run: Run,
    _lock: std::fs::File,
}

impl RunFolder {
    /// The run of a folder; `None` if there is none.
    ///
    /// # Errors
    /// The folder is in use, or its file is damaged.
    pub fn read(path: &Path) -> Result<Option<Self>, FlywheelError> {
        let file = path.join("flywheel.json");
        if !file.exists() {
            return Ok(None);
        }
        let lock = lock(path)?;
        let text = std::fs::read_to_string(&file).map_err(|error| FlywheelError::file(&file, error))?;
        let damaged = |why: String| FlywheelError::Damaged { path: file.clone(), why };
        let run: Run = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if run.schema != SCHEMA {
            return Err(damaged(format!("its schema is {}, not {SCHEMA}", run.schema)));
        }
        Ok(Some(Self { path: path.to_owned(), run, _lock: lock }))
    }

    /// Begins a run, or goes on with it.
    ///
    /// # Errors
    /// The folder can't be written, is in use, or holds a run of something else.
    pub fn open(path: &Path, settings: Settings) -> Result<Self, FlywheelError> {
        if let Some(found) = Self::read(path)? {
            let told = |settings: &Settings| serde_json::to_value(settings).unwrap_or_default();
            let (before, now) = (told(&found.run.settings), told(&settings));
            let differs = |(key, value): (&String, &Value)| {
                (now.get(key) != Some(value))
                    .then(|| format!("{key} is {value} there, here {}", now.get(key).unwrap_or(&Value::Null)))
            };
            let differences: Vec<String> = before.as_object().into_iter().flatten().filter_map(differs).collect();
            if !differences.is_empty() {
                return Err(FlywheelError::OtherRun { path: path.to_owned(), difference: differences.join(", ") });
            }
            return Ok(found);
        }
        std::fs::create_dir_all(path).map_err(|error| FlywheelError::file(path, error))?;
        let run = Run {
            schema: SCHEMA,
            settings,
            stage: Stage::Preparing,
            corpus: None,
            student: None,
            candidate: None,
            card: None,
            tried: None,
            gate: None,
            promoted_text: None,
            why: String::new(),
        };
        let folder = Self { path: path.to_owned(), run, _lock: lock(path)? };
        folder.save()?;
        Ok(folder)
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes down how far it got.
    ///
    /// # Errors
    /// The file can't be written; the one before stays.
    pub fn save(&self) -> Result<(), FlywheelError> {
        let file = self.file("flywheel.json");
        let text = serde_json::to_string_pretty(&self.run);
        let written = text.map_err(std::io::Error::from).and_then(|text| crate::files::replace(&file, text));
        written.map_err(|error| FlywheelError::file(&file, error))
    }

    /// A file that a step made, if it is still what it was.
    ///
    /// # Errors
    /// It is gone, or has other content.
    pub fn unchanged(&self, source: &Source) -> Result<PathBuf, FlywheelError> {
        let path = PathBuf::from(&source.file);
        match hash(&path)? == source.blake3 {
            true => Ok(path),
            false => Err(FlywheelError::Damaged { path, why: "is not what the run wrote down".to_owned() }),
        }
    }
}

fn lock(path: &Path) -> Result<std::fs::File, FlywheelError> {
    let file = path.join("lock");
    let lock = local_worker::files::lock(&file).map_err(|error| FlywheelError::file(&file, error))?;
    lock.ok_or_else(|| FlywheelError::InUse { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_where_it_was_and_another_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(RunFolder::read(folder.path()).unwrap().is_none());
        let mut run = RunFolder::open(folder.path(), Settings::made()).unwrap();
        assert!(matches!(RunFolder::open(folder.path(), Settings::made()), Err(FlywheelError::InUse { .. })));
        run.run.stage = Stage::Shadowing;
        run.save().unwrap();
        let file = run.file("made");
        std::fs::write(&file, "one").unwrap();
        let made = Source::of(&file).unwrap();
        assert_eq!(run.unchanged(&made).unwrap(), file);
        std::fs::write(&file, "two").unwrap();
        assert!(run.unchanged(&made).unwrap_err().to_string().contains("not what the run wrote down"));
        drop(run);
        assert_eq!(RunFolder::open(folder.path(), Settings::made()).unwrap().run.stage, Stage::Shadowing);
        let other = Settings { tenant: "acme".to_owned(), recipe: "bb".to_owned(), ..Settings::made() };
        let error = RunFolder::open(folder.path(), other).err().unwrap().to_string();
        assert!(error.contains("recipe is \"aa\" there, here \"bb\"") && error.contains("tenant"), "{error}");
        std::fs::write(folder.path().join("flywheel.json"), "{\"schema\":").unwrap();
        assert!(matches!(RunFolder::read(folder.path()), Err(FlywheelError::Damaged { .. })));
    }
}
