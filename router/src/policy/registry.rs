//! All policies in force: loaded together with certificates and prices, swapped as one snapshot, the last good one kept.
//!
//! Files are read again and compared byte by byte; nothing is watched, because ConfigMaps swap symlinks under a watch.

use super::scoring::is_scorer_file;
use super::{CertificateState, JudgeState, Policy, SCORER_SUFFIX};
use crate::catalog::Catalog;
use crate::evidence::certificate::Certificate;
use crate::judge::JudgeFile;
use crate::score::{PairScorer, Scorers};
use crate::toml_file::Problem;
use arc_swap::ArcSwap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The files inside the binary: name and text.
const EMBEDDED: [(&str, &str); 4] = [
    ("models.toml", include_str!("../../../policies/models.toml")),
    ("balanced.toml", include_str!("../../../policies/balanced.toml")),
    ("frugal.toml", include_str!("../../../policies/frugal.toml")),
    ("quality.toml", include_str!("../../../policies/quality.toml")),
];

/// The certificates inside the binary.
const EMBEDDED_CERTIFICATES: [(&str, &str); 3] = [
    ("balanced.solved.toml", include_str!("../../../policies/balanced.solved.toml")),
    ("frugal.solved.toml", include_str!("../../../policies/frugal.solved.toml")),
    ("quality.solved.toml", include_str!("../../../policies/quality.solved.toml")),
];

const CATALOG: &str = "models.toml";
const CERTIFICATE_SUFFIX: &str = ".solved.toml";
const JUDGE_SUFFIX: &str = ".judge.toml";
const CANDIDATE_SUFFIX: &str = ".candidate.toml";
/// What stands beside policies and is none.
const SUFFIXES: [&str; 3] = [CERTIFICATE_SUFFIX, JUDGE_SUFFIX, CANDIDATE_SUFFIX];

/// Why policies could not be loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The folder can't be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Files have problems.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<Problem>),
    /// The default policy is not there.
    #[error("the default policy `{name}` does not exist; there are {known}")]
    NoDefault {
        /// Its name.
        name: String,
        /// What there is.
        known: String,
    },
}

/// What belongs together, by file name.
#[derive(Clone, Debug, Default, PartialEq)]
struct Files {
    /// Policies, certificates, judges and the catalog.
    texts: BTreeMap<String, String>,
    /// Scorers that policies name.
    scorers: BTreeMap<String, Arc<[u8]>>,
}

/// What was learnt while a policy served.
#[derive(Debug, Clone)]
pub struct Learnt {
    /// The scorer of the policy's first pair of models.
    pub scorer: Arc<PairScorer>,
    /// Its certificate; `None` until there is enough evidence.
    pub certificate: Option<Certificate>,
}

/// By the policy's name.
type AllLearnt = BTreeMap<String, Learnt>;

/// Policies, certificates and prices that belong together.
#[derive(Debug)]
pub struct Snapshot {
    catalog: Catalog,
    policies: BTreeMap<String, Arc<Policy>>,
    /// Policies that decide by what was learnt; beside the same as their files have them.
    learnt: BTreeMap<String, Arc<Policy>>,
    default: String,
    files: Files,
    scorers: Vec<String>,
}

impl Snapshot {
    /// The policy of a name, the default one without; with what was learnt, if anything.
    pub fn policy(&self, name: Option<&str>) -> Option<Arc<Policy>> {
        let name = name.unwrap_or(&self.default);
        self.learnt.get(name).or_else(|| self.policies.get(name)).cloned()
    }

    /// The same by its files alone: for tenants that nothing was learnt from.
    pub fn unlearnt(&self, policy: &Arc<Policy>) -> Arc<Policy> {
        let filed = policy.learnt().and_then(|_| self.policies.get(&policy.reference.name));
        Arc::clone(filed.unwrap_or(policy))
    }

    /// Models and prices.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// All policies by name, with what was learnt.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter().map(|(name, policy)| self.learnt.get(name).unwrap_or(policy))
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.policies.keys().cloned().collect()
    }

    /// Name of the default policy.
    pub fn default_name(&self) -> &str {
        &self.default
    }
}

/// Where policies come from and which are in force.
pub struct Registry {
    folder: Option<PathBuf>,
    default: String,
    scorers: Arc<Scorers>,
    snapshot: ArcSwap<Snapshot>,
    /// Held while a snapshot is built and put in force: of two that are built at once none is lost.
    learnt: Mutex<AllLearnt>,
    failure: Mutex<Option<RegistryError>>,
}

impl Registry {
    /// Loads the policies of a folder, or those inside the binary.
    ///
    /// # Errors
    /// All problems of all files, a folder that can't be read, or no default policy.
    pub fn load(folder: Option<PathBuf>, default: &str, scorers: Arc<Scorers>) -> Result<Self, RegistryError> {
        let files = read_files(folder.as_deref())?;
        let snapshot = ArcSwap::from_pointee(build(files, default, &scorers, &AllLearnt::new())?);
        let (learnt, failure) = (Mutex::default(), Mutex::default());
        Ok(Self { folder, default: default.to_owned(), scorers, snapshot, learnt, failure })
    }

    /// Puts in force what was learnt for a policy, or takes it out again; scorer and certificate change as one. Files are not
    /// read, requests under way keep what they have.
    ///
    /// # Errors
    /// Not expected: the files were good before.
    pub fn adopt(&self, policy: &str, learnt: Option<Learnt>) -> Result<(), RegistryError> {
        let mut all = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        match learnt {
            Some(learnt) => all.insert(policy.to_owned(), learnt),
            None => all.remove(policy),
        };
        let files = self.snapshot.load().files.clone();
        self.snapshot.store(Arc::new(build(files, &self.default, &self.scorers, &all)?));
        Ok(())
    }

    /// What is in force now; hold it for a whole request.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Why the last reload failed, if it did; older policies are in force then.
    pub fn failure(&self) -> Option<RegistryError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the files again. `Ok(true)` if something new is in force.
    ///
    /// # Errors
    /// As [`Registry::load`]; what was in force stays.
    pub fn reload(&self) -> Result<bool, RegistryError> {
        let outcome = self.try_reload();
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = outcome.as_ref().err().cloned();
        outcome
    }

    fn try_reload(&self) -> Result<bool, RegistryError> {
        let files = read_files(self.folder.as_deref())?;
        let now = self.snapshot.load();
        if now.files == files && now.scorers == versions(&self.scorers) {
            return Ok(false);
        }
        // A folder that is being swapped or written to shows old files beside new ones: only what two readings agree on
        // becomes a snapshot, the rest waits for the next look.
        if read_files(self.folder.as_deref())? != files {
            return Ok(false);
        }
        let learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        self.snapshot.store(Arc::new(build(files, &self.default, &self.scorers, &learnt)?));
        Ok(true)
    }

    /// Reloads every `interval` until `stop` fires.
    pub async fn watch(self: Arc<Self>, interval: Duration, stop: CancellationToken) {
        let mut last_failure = String::new();
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            match self.reload() {
                Ok(true) => tracing::info!("new policies are in force"),
                Ok(false) => {}
                Err(error) => {
                    let failure = error.to_string();
                    if failure != last_failure {
                        tracing::error!(%error, "policies have problems; the last good ones stay in force");
                    }
                    last_failure = failure;
                    continue;
                }
            }
            last_failure.clear();
        }
    }
}

fn versions(scorers: &Scorers) -> Vec<String> {
    scorers.all().iter().map(|scorer| scorer.version().to_owned()).collect()
}

/// All TOML files of a folder and the scorers that they name; a catalog that is missing there is the one inside the binary.
fn read_files(folder: Option<&Path>) -> Result<Files, RegistryError> {
    let own = |files: &[(&str, &str)]| -> BTreeMap<String, String> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    };
    let Some(folder) = folder else {
        let mut texts = own(&EMBEDDED);
        texts.extend(own(&EMBEDDED_CERTIFICATES));
        return Ok(Files { texts, ..Files::default() });
    };
    let unreadable = |path: &Path, error: &std::io::Error| RegistryError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let mut texts = own(&EMBEDDED[..1]);
    for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
        let path = entry.map_err(|error| unreadable(folder, &error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".toml") && !name.starts_with('.') {
            let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
            texts.insert(name, text);
        }
    }
    let mut scorers = BTreeMap::new();
    for name in texts.values().filter_map(|text| named_scorer(text)) {
        let path = folder.join(&name);
        match std::fs::read(&path) {
            Ok(bytes) => drop(scorers.insert(name, bytes.into())),
            // Whoever names it gets the problem.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(&path, &error)),
        }
    }
    Ok(Files { texts, scorers })
}

/// The scorer file that a policy's text names.
fn named_scorer(text: &str) -> Option<String> {
    if !text.contains(SCORER_SUFFIX) {
        return None;
    }
    let table = text.parse::<toml::Table>().ok()?;
    let name = table.get("scorer")?.as_str()?;
    is_scorer_file(name).then(|| name.to_owned())
}

fn build(files: Files, default: &str, scorers: &Scorers, learnt: &AllLearnt) -> Result<Snapshot, RegistryError> {
    let catalog_text = files.texts.get(CATALOG).map(String::as_str).unwrap_or_default();
    let catalog = Catalog::parse(CATALOG, catalog_text).map_err(RegistryError::Problems)?;
    let mut policies = BTreeMap::new();
    let mut by_learning = BTreeMap::new();
    let mut problems = Vec::new();
    for (file, text) in &files.texts {
        if file == CATALOG || SUFFIXES.iter().any(|suffix| file.ends_with(suffix)) {
            continue;
        }
        match Policy::parse(file, text, &catalog) {
            Ok(mut policy) => {
                let beside = |name: &str| {
                    let bytes = files.scorers.get(name).map(|bytes| bytes.to_vec());
                    bytes.ok_or_else(|| "is not beside the policy".to_owned())
                };
                problems.extend(policy.score_by(file, &catalog, beside).err());
                let stem = file.strip_suffix(".toml").unwrap_or(file);
                let tried = format!("{stem}{CANDIDATE_SUFFIX}");
                if let Some(text) = files.texts.get(&tried) {
                    problems.extend(policy.try_candidate(&tried, text, &catalog).err().into_iter().flatten());
                }
                let solved = format!("{stem}{CERTIFICATE_SUFFIX}");
                let scorer = policy.scorer_version(scorers, &catalog);
                policy.certify_by(&solved, files.texts.get(&solved).map(String::as_str), scorer.as_deref());
                let judge = format!("{stem}{JUDGE_SUFFIX}");
                let read = |text: &String| JudgeFile::parse(text).map_err(|error| format!("{judge}: {error}"));
                policy.judge_by(files.texts.get(&judge).map(read));
                let name = policy.reference.name.clone();
                let taught = learnt.get(&name).and_then(|learnt| taught(&policy, learnt, file, &catalog));
                by_learning.extend(taught.map(|policy| (name.clone(), Arc::new(policy))));
                if policies.insert(name.clone(), Arc::new(policy)).is_some() {
                    problems.push(named_twice(file, &name));
                }
            }
            Err(found) => problems.extend(found),
        }
    }
    let names: Vec<&str> = policies.keys().map(String::as_str).collect();
    for (file, text) in &files.texts {
        let policy = policies.values().find(|policy| policy.text == *text);
        problems.extend(policy.and_then(|policy| policy.unknown_candidate(file, &names)));
    }
    if !problems.is_empty() {
        return Err(RegistryError::Problems(problems));
    }
    if !policies.contains_key(default) {
        let known = policies.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(RegistryError::NoDefault { name: default.to_owned(), known });
    }
    let scorers = versions(scorers);
    Ok(Snapshot { catalog, policies, learnt: by_learning, default: default.to_owned(), files, scorers })
}

/// A policy that decides by what was learnt. There is none while it would only lose: where nothing is proven of it and the
/// policy's own certificate holds, or where drafts are judged.
fn taught(filed: &Policy, learnt: &Learnt, file: &str, catalog: &Catalog) -> Option<Policy> {
    let judged = matches!(filed.judge(), JudgeState::InForce(_));
    let certified = |policy: &Policy| matches!(policy.certificate(), CertificateState::Valid(_));
    let mut policy = Policy::parse(file, &filed.text, catalog).ok()?;
    policy.filed.clone_from(&filed.filed);
    policy.learn_by(learnt);
    policy.candidate.clone_from(&filed.candidate);
    (filed.learn.is_some() && !judged && (certified(&policy) || !certified(filed))).then_some(policy)
}

/// Which of two files of one name is meant is not for us to guess.
fn named_twice(file: &str, name: &str) -> Problem {
    Problem {
        file: file.to_owned(),
        line: 1,
        column: 1,
        key: "name".to_owned(),
        message: format!("another file holds a policy called `{name}`"),
        suggestion: "rename one, or take it out of the folder".to_owned(),
    }
}

#[cfg(test)]
mod tests;
