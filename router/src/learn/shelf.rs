//! What was learnt as files of the data folder, so that a restart goes on with it: `learnt/POLICY.json` says how far the learner
//! got, `learnt/POLICY.VERSION.scorer` are the scorers that it tests, and `learnt/POLICY.solved.toml` the certificate in force.
//! Each file is replaced as a whole. The certificate and the scorers have the form of any other, so that they can be taken
//! into a folder of policies.

use super::learner::{About, Counts, Learner, Tested};
use crate::evidence::certificate::Certificate;
use crate::evidence::live::LiveTest;
use crate::score::PairScorer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format this build reads and writes.
const SCHEMA: u32 = 1;

/// Why what was learnt can't be read or kept.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {why}")]
pub struct ShelfError {
    file: String,
    why: String,
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Shelf(PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    schema: u32,
    about: About,
    since_ms: i64,
    taken: i64,
    starts: u32,
    next_fit: u64,
    counts: Counts,
    seen: BTreeSet<u64>,
    tested: Vec<StoredTest>,
    in_force: Option<(String, Option<f64>)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTest {
    version: String,
    start: u32,
    fitted_on: u64,
    test: LiveTest,
}

fn failed(file: &Path, why: &dyn std::fmt::Display) -> ShelfError {
    ShelfError { file: file.display().to_string(), why: why.to_string() }
}

impl Shelf {
    /// The shelf in a data folder.
    pub fn within(data: &Path) -> Self {
        Self(data.join("learnt"))
    }

    fn state(&self, policy: &str) -> PathBuf {
        self.0.join(format!("{policy}.json"))
    }

    fn scorer(&self, policy: &str, version: &str) -> PathBuf {
        self.0.join(format!("{policy}.{version}.scorer"))
    }

    fn certificate(&self, policy: &str) -> PathBuf {
        self.0.join(format!("{policy}.solved.toml"))
    }

    /// What was learnt for a policy, and the certificate that was in force; `None` if nothing was.
    pub fn read(&self, policy: &str) -> Result<Option<(Learner, Option<Certificate>)>, ShelfError> {
        let file = self.state(policy);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&file, &error)),
        };
        let stored: Stored = serde_json::from_str(&text).map_err(|error| failed(&file, &error))?;
        if stored.schema != SCHEMA {
            return Err(failed(&file, &format!("its schema is {}, not {SCHEMA}", stored.schema)));
        }
        let mut tested = Vec::new();
        for kept in stored.tested {
            let path = self.scorer(policy, &kept.version);
            let scorer = PairScorer::read(&path).map_err(|error| failed(&path, &error))?;
            if scorer.version() != kept.version || !kept.test.is_sound() {
                return Err(failed(&path, &"it is not the scorer that was tested, or its tests are out of range"));
            }
            let StoredTest { start, fitted_on, test, .. } = kept;
            tested.push(Tested { scorer: Arc::new(scorer), start, fitted_on, test });
        }
        let file = self.certificate(policy);
        let certificate = match std::fs::read_to_string(&file) {
            Ok(text) => Some(Certificate::parse(&text).map_err(|error| failed(&file, &error))?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&file, &error)),
        };
        let learner = Learner {
            about: stored.about,
            since_ms: stored.since_ms,
            taken: stored.taken,
            starts: stored.starts,
            next_fit: stored.next_fit,
            counts: stored.counts,
            seen: stored.seen.into_iter().collect(),
            tested,
            in_force: stored.in_force,
        };
        Ok(Some((learner, certificate)))
    }

    /// Writes down how far a learner got. Scorers that it tests are there before the state names them.
    pub fn write(&self, policy: &str, learner: &Learner) -> Result<(), ShelfError> {
        std::fs::create_dir_all(&self.0).map_err(|error| failed(&self.0, &error))?;
        for tested in &learner.tested {
            let path = self.scorer(policy, tested.scorer.version());
            if !path.exists() {
                tested.scorer.write(&path).map_err(|error| failed(&path, &error))?;
            }
        }
        let test = |tested: &Tested| StoredTest {
            version: tested.scorer.version().to_owned(),
            start: tested.start,
            fitted_on: tested.fitted_on,
            test: tested.test.clone(),
        };
        let stored = Stored {
            schema: SCHEMA,
            about: learner.about.clone(),
            since_ms: learner.since_ms,
            taken: learner.taken,
            starts: learner.starts,
            next_fit: learner.next_fit,
            counts: learner.counts,
            seen: learner.seen.iter().copied().collect(),
            tested: learner.tested.iter().map(test).collect(),
            in_force: learner.in_force.clone(),
        };
        let file = self.state(policy);
        let text = serde_json::to_string(&stored).map_err(|error| failed(&file, &error))?;
        replace(&file, &text)?;
        self.tidy(policy, learner);
        Ok(())
    }

    /// Writes the certificate in force, or takes it away.
    pub fn write_certificate(&self, policy: &str, certificate: Option<&Certificate>) -> Result<(), ShelfError> {
        let file = self.certificate(policy);
        let Some(certificate) = certificate else {
            return match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&file, &error)),
                _ => Ok(()),
            };
        };
        std::fs::create_dir_all(&self.0).map_err(|error| failed(&self.0, &error))?;
        replace(&file, &certificate.to_toml().map_err(|error| failed(&file, &error))?)
    }

    /// Scorers that nothing names any more; what can't be removed stays.
    fn tidy(&self, policy: &str, learner: &Learner) {
        let Ok(entries) = std::fs::read_dir(&self.0) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let version = name.strip_prefix(&format!("{policy}.")).and_then(|rest| rest.strip_suffix(".scorer"));
            let Some(version) = version else { continue };
            if !learner.tested.iter().any(|tested| tested.scorer.version() == version) {
                let _stays = std::fs::remove_file(&path);
            }
        }
    }
}

fn replace(file: &Path, text: &str) -> Result<(), ShelfError> {
    crate::files::replace(file, text).map_err(|error| failed(file, &error))
}
