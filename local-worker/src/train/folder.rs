//! From a recipe and files of a corpus to a model file, in one folder that says everything needed to do it again: the recipe,
//! what the corpus hashes to, versions, vocabulary, log, loss curve, checkpoint, result.

use super::corpus::{self, Chosen, Encoded};
use super::model::{self, Metadata, Words};
use super::network::Network;
use super::pass::Aim;
use super::recipe::{Recipe, Training};
use super::run::{Event, Run, tokens_seen, train};
use super::teacher::Teacher;
use super::vocabulary::Vocabulary;
use super::{TrainError, write_whole};
use crate::embed::StaticEmbedder;
use crate::engine::ModelSource;
use crate::evaluate::suite::{self, Record};
use crate::files;
use crate::kernels::Level;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The files a model is trained on.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Records to learn.
    pub train: Vec<PathBuf>,
    /// Records to look at on the way; what is held out of the others without.
    pub dev: Vec<PathBuf>,
    /// Answers that a teacher wrote, learnt in the place of right ones; none where right ones are learnt.
    pub answers: Vec<PathBuf>,
}

/// What is learnt from beside right answers, and what to note of it.
#[derive(Clone, Copy, Default)]
pub struct Lesson<'a> {
    /// How much which part counts.
    pub aim: Aim,
    /// Who is asked.
    pub teacher: Option<&'a Teacher>,
}

/// What is about to be trained.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Weights of the network.
    pub parameters: usize,
    /// Records that are learnt.
    pub records: usize,
    /// Their tokens.
    pub tokens: u64,
    /// How often they are seen.
    pub epochs: f64,
    /// Records that were left out for being longer than the context.
    pub left_out: usize,
    /// Records that dev evaluation looks at.
    pub dev: usize,
    /// Tokens whose first embedding is that of their text.
    pub embedded: usize,
}

/// A run that is ready.
pub struct Prepared {
    recipe: Recipe,
    told: Value,
    _lock: std::fs::File,
    folder: PathBuf,
    metadata: Metadata,
    start: Network,
    learnt: Encoded,
    dev: Encoded,
    embedded: usize,
}

const VOCABULARY: &str = "tokenizer.json";

/// The model file of a run folder.
pub fn model_file(folder: &Path) -> PathBuf {
    folder.join("model.gguf")
}

impl Prepared {
    /// Reads corpus and start, and makes or reads the vocabulary. Everything that can be wrong with the input is found here;
    /// what the run is made of is noted in `folder` once it begins. `notes` are what else decides the result.
    ///
    /// # Errors
    /// An input is wrong, or the folder holds another run or is in use.
    pub fn new(recipe: Recipe, files: &Files, folder: &Path, notes: Value) -> Result<Self, TrainError> {
        let mut records = Vec::new();
        for path in &files.train {
            records.extend(corpus::read(path, &recipe.data, !files.answers.is_empty())?);
        }
        if !files.answers.is_empty() {
            records = corpus::answered(records, &files.answers)?;
        }
        let chosen = corpus::choose(records, &recipe.data, recipe.seed);
        if chosen.train.is_empty() {
            let why = match files.answers.is_empty() {
                true => "no record is of a task that the recipe names, or all of them are held out",
                false => "no record of a task that the recipe names was answered by the teacher",
            };
            return Err(TrainError::NothingToDo(why.to_owned()));
        }
        let held_out = dev_records(&recipe, files, &chosen)?;
        std::fs::create_dir_all(folder).map_err(|error| TrainError::file(folder, error))?;
        let lock = lock(folder)?;
        let mut told = told(&recipe, files, notes)?;
        let before = check(folder, &told, &recipe.training)?;
        let (mut start, metadata) = begin(&recipe, folder, &chosen.train, before.is_some())?;
        let own = recipe.network.is_some().then(|| folder.join(VOCABULARY));
        told["vocabulary"] = hash_of(&own)?;
        if let Some(found) = before.and_then(|mut before| before.get_mut("vocabulary").map(Value::take)) {
            let mut differences = Vec::new();
            compare("vocabulary", &found, &told["vocabulary"], &mut differences);
            if !differences.is_empty() {
                return Err(TrainError::OtherRun { folder: folder.to_owned(), difference: differences.join(", ") });
            }
        }
        let words = Words::new(&metadata, start.shape.vocabulary)?;
        if recipe.start.chat_template.is_some() && words.example("one", "")?.0 == words.example("another", "")?.0 {
            let problem = "start.chat_template does not show what the user says".to_owned();
            return Err(TrainError::Vocabulary(problem));
        }
        let mut embedded = 0;
        if let Some(path) = &recipe.start.vectors {
            let embedder =
                StaticEmbedder::from_file(path).map_err(|error| TrainError::Vocabulary(error.to_string()))?;
            embedded = model::embed(&mut start, &words, &embedder);
        }
        let context = start.shape.context;
        let learnt = corpus::encode(&chosen.train, &words, &recipe.data, context)?;
        let lenient = super::recipe::Data { long_records: super::recipe::LongRecords::Skip, ..recipe.data.clone() };
        let dev = corpus::encode(&held_out, &words, &lenient, context)?;
        let folder = folder.to_owned();
        Ok(Self { recipe, told, _lock: lock, folder, metadata, start, learnt, dev, embedded })
    }

    /// What is about to be trained.
    pub fn plan(&self) -> Plan {
        let tokens = self.learnt.tokens();
        Plan {
            parameters: self.start.weights.len(),
            records: self.learnt.samples.len(),
            tokens,
            epochs: self.recipe.training.tokens as f64 / tokens.max(1) as f64,
            left_out: self.learnt.left_out,
            dev: self.dev.samples.len(),
            embedded: self.embedded,
        }
    }

    /// The network as it starts.
    pub fn network(&self) -> &Network {
        &self.start
    }

    /// What the model file will say beside its weights.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Writes down what the run is made of.
    fn note(&self) -> Result<(), TrainError> {
        let text = serde_json::to_string_pretty(&self.told).unwrap_or_default();
        write_whole(&self.folder.join("run.json"), |file| file.write_all(text.as_bytes()))
    }

    /// Asks a teacher about every record once, instead of each time it is seen.
    pub fn ask_ahead(&mut self, teacher: &Teacher) {
        teacher.teach(&mut self.learnt.samples);
    }

    /// Notes what the run is made of and trains, goes on, or does nothing where all is done; then writes the model file.
    ///
    /// # Errors
    /// As [`train`], and if a file can't be written.
    pub fn run(self, lesson: &Lesson<'_>, report: &mut dyn FnMut(Event)) -> Result<PathBuf, TrainError> {
        self.note()?;
        let run = Run {
            folder: &self.folder,
            name: &self.recipe.name,
            training: &self.recipe.training,
            aim: lesson.aim,
            seed: self.recipe.seed,
            samples: &self.learnt.samples,
            dev: &self.dev.samples,
            teacher: lesson.teacher,
        };
        let shape = self.start.shape.clone();
        let network = train(&run, || Ok(self.start), &shape, report)?;
        let weights = model::weights(&network, &self.metadata)?;
        let weights = match self.recipe.target() {
            Some(target) => weights.convert(target)?,
            None => weights,
        };
        let path = model_file(&self.folder);
        weights.write(&path)?;
        Ok(path)
    }
}

fn dev_records(recipe: &Recipe, files: &Files, chosen: &Chosen) -> Result<Vec<Record>, TrainError> {
    let mut records = chosen.held_out.clone();
    if !files.dev.is_empty() {
        records.clear();
        for path in &files.dev {
            records.extend(suite::read(path, |_| Ok(()))?);
        }
        records.retain(|record| recipe.data.learns(&record.task));
    }
    Ok(suite::sample(records, recipe.data.dev_records))
}

/// The first weights and what the model file says: of a model to start from, or of a vocabulary of its own.
fn begin(recipe: &Recipe, folder: &Path, records: &[Record], goes_on: bool) -> Result<(Network, Metadata), TrainError> {
    let decline = &recipe.data.decline;
    let Some(shape) = &recipe.network else {
        let path = recipe.start.model.clone().unwrap_or_default();
        let (mut network, mut metadata) = model::read(&ModelSource::Path(path))?;
        let mut put = |key: &str, text: &str| {
            metadata.insert(key.to_owned(), candle_core::quantized::gguf_file::Value::String(text.to_owned()));
        };
        put("general.name", &recipe.name);
        if !decline.is_empty() {
            put("sluice.decline", decline);
        }
        if let Some(template) = &recipe.start.chat_template {
            put("tokenizer.chat_template", template);
        }
        network.shape.context = recipe.start.context.unwrap_or(network.shape.context);
        return Ok((network, metadata));
    };
    let path = folder.join(VOCABULARY);
    // One that a start left behind which never came to train is of whatever records that had.
    if !goes_on || !path.exists() {
        let texts: Vec<String> =
            records.iter().flat_map(|record| [record.prompt.clone(), record.answer.clone()]).collect();
        Vocabulary::train(texts.into_iter(), shape.vocabulary)?.save(&path)?;
    }
    let vocabulary = Vocabulary::load(&path)?;
    if vocabulary.len() != shape.vocabulary {
        let (found, wanted) = (vocabulary.len(), shape.vocabulary);
        let problem = format!(
            "{} has {found} tokens where the recipe wants {wanted}; {}",
            path.display(),
            if found < wanted { "the corpus gives no more, ask for fewer" } else { "is it that of another run?" }
        );
        return Err(TrainError::Vocabulary(problem));
    }
    Ok((Network::random(shape.clone(), recipe.seed), model::metadata(&recipe.name, decline, &vocabulary)?))
}

/// What a run is made of.
fn told(recipe: &Recipe, files: &Files, notes: Value) -> Result<Value, TrainError> {
    let hashes =
        |paths: &[PathBuf]| -> Result<Vec<Value>, TrainError> { paths.iter().map(|path| hash(path)).collect() };
    Ok(json!({
        "recipe": recipe,
        "data": hashes(&files.train)?,
        "dev": hashes(&files.dev)?,
        "answers": hashes(&files.answers)?,
        "start": hash_of(&recipe.start.model)?,
        "vectors": hash_of(&recipe.start.vectors)?,
        "notes": notes,
        "versions": {
            "local-worker": env!("CARGO_PKG_VERSION"), "kernels": Level::detect().name(), "system": std::env::consts::OS,
            "processor": std::env::consts::ARCH,
        },
    }))
}

/// The same of a file that may be none, or a folder.
fn hash_of(path: &Option<PathBuf>) -> Result<Value, TrainError> {
    path.as_ref().filter(|path| path.is_file()).map_or(Ok(Value::Null), |path| hash(path))
}

/// A file's name and what it hashes to.
fn hash(path: &Path) -> Result<Value, TrainError> {
    let hash = files::hash(path).map_err(|error| TrainError::file(path, error))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(json!({ "file": name, "blake3": hash }))
}

/// The folder for this process alone, as long as the file is open.
fn lock(folder: &Path) -> Result<std::fs::File, TrainError> {
    let path = folder.join("lock");
    let lock = files::lock(&path).map_err(|error| TrainError::file(&path, error))?;
    lock.ok_or_else(|| TrainError::InUse { folder: folder.to_owned() })
}

/// What the folder's run was made of, if there is one; one made of something else is refused. One whose rate has not begun to
/// fall may get another length: so far, that has decided nothing.
fn check(folder: &Path, told: &Value, training: &Training) -> Result<Option<Value>, TrainError> {
    let path = folder.join("run.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TrainError::file(&path, error)),
    };
    let other = |difference: String| Err(TrainError::OtherRun { folder: folder.to_owned(), difference });
    let Ok(mut found) = serde_json::from_str::<Value>(&text) else {
        return other("a run.json that is no JSON".to_owned());
    };
    if let Some(length) = found.pointer_mut("/recipe/training/tokens") {
        let before = length.as_u64().unwrap_or_default().saturating_sub(training.fall.unwrap_or(u64::MAX));
        if tokens_seen(folder)? <= before.min(training.steady()) {
            *length = training.tokens.into();
        }
    }
    let mut differences = Vec::new();
    for key in ["recipe", "data", "dev", "answers", "start", "vectors", "notes"] {
        compare(key, &found[key], &told[key], &mut differences);
    }
    if differences.is_empty() { Ok(Some(found)) } else { other(differences.join(", ")) }
}

fn compare(name: &str, found: &Value, told: &Value, differences: &mut Vec<String>) {
    match (found, told) {
        (Value::Object(one), Value::Object(two)) => {
            let keys: std::collections::BTreeSet<&String> = one.keys().chain(two.keys()).collect();
            for key in keys {
                compare(&format!("{name}.{key}"), &found[key], &told[key], differences);
            }
        }
        _ if found != told => differences.push(format!("{name} {found} in place of {told}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
