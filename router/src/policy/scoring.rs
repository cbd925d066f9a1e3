//! Which scorer speaks under a policy: what was learnt while it served, else the one in a file of its own, else the one that
//! the process was given for its models.

use super::{Policy, SCORER_SUFFIX};
use crate::catalog::Catalog;
use crate::domain::ModelId;
use crate::evidence::certificate::ANY_LARGE;
use crate::score::{PairScorer, Scorers};
use crate::toml_file::{Problem, Problems, Section};
use std::path::Path;
use std::sync::Arc;

impl Policy {
    /// The scorer of a small model under this policy, if there is any.
    pub fn scorer(&self, small: &ModelId, given: &Scorers, catalog: &Catalog) -> Option<Arc<PairScorer>> {
        let scored_as = catalog.scored_as(small);
        let learnt = self.learnt.iter().find(|learnt| learnt.pair().small == small.as_str());
        let filed = || self.filed.iter().find(|filed| filed.pair().small == scored_as.as_str());
        let own = learnt.or_else(filed).cloned();
        own.or_else(|| given.get(scored_as.as_str(), self.large.first()?.as_str()).ok())
    }

    /// The scorer of its own file.
    pub fn filed(&self) -> Option<&Arc<PairScorer>> {
        self.filed.as_ref()
    }

    /// Version of the scorer of its first pair of models, which its certificate must name.
    pub fn scorer_version(&self, given: &Scorers, catalog: &Catalog) -> Option<String> {
        self.large.first()?;
        self.scorer(self.small.first()?, given, catalog).map(|scorer| scorer.version().to_owned())
    }

    /// Gives the policy the scorer that its file names, if it names one; `read` gets the bytes of a file beside the policy's.
    ///
    /// # Errors
    /// The file can't be read, is no scorer of this build, or speaks about other models.
    pub fn score_by(
        &mut self,
        file: &str,
        catalog: &Catalog,
        read: impl FnOnce(&str) -> Result<Vec<u8>, String>,
    ) -> Result<(), Problem> {
        let Some(name) = self.scorer_file.clone() else { return Ok(()) };
        match read(&name).and_then(|bytes| self.checked(&bytes, catalog)) {
            Ok(scorer) => {
                self.filed = Some(Arc::new(scorer));
                Ok(())
            }
            Err(why) => Err(self.scorer_problem(file, format!("{name}: {why}"))),
        }
    }

    /// The same where files lie in the folder of the policy's path.
    ///
    /// # Errors
    /// As [`Policy::score_by`].
    pub fn score_beside(&mut self, path: &Path, catalog: &Catalog) -> Result<(), Problem> {
        let read = |name: &str| std::fs::read(path.with_file_name(name)).map_err(|error| error.to_string());
        self.score_by(&path.display().to_string(), catalog, read)
    }

    fn checked(&self, bytes: &[u8], catalog: &Catalog) -> Result<PairScorer, String> {
        let scorer = PairScorer::from_bytes(bytes).map_err(|error| error.to_string())?;
        let pair = scorer.pair();
        let large = pair.large == ANY_LARGE || self.large.first().is_some_and(|large| large.as_str() == pair.large);
        match self.small.iter().any(|small| catalog.scored_as(small).as_str() == pair.small) && large {
            true => Ok(scorer),
            false => Err(format!("is a scorer for {pair}, which are not the policy's models")),
        }
    }

    fn scorer_problem(&self, file: &str, message: String) -> Problem {
        let (table, mut problems) = Problems::parse(file, &self.text);
        let span = Section::root(&table).span_of("scorer");
        problems.add(span, "scorer", message.clone(), SUGGESTION);
        let otherwise = || Problem {
            file: file.to_owned(),
            line: 1,
            column: 1,
            key: "scorer".to_owned(),
            message,
            suggestion: SUGGESTION.to_owned(),
        };
        problems.into_found().into_iter().next().unwrap_or_else(otherwise)
    }
}

const SUGGESTION: &str = "make it with `sluice train scorer --out`, beside the policy, or leave the key out";

/// Whether a name is that of a scorer file in the policy's folder: no path.
pub(super) fn is_scorer_file(name: &str) -> bool {
    name.strip_suffix(SCORER_SUFFIX).is_some_and(|stem| !stem.is_empty())
        && !name.starts_with('.')
        && !name.contains(['/', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scorer_file_is_a_name_without_a_path() {
        for (name, good) in [
            ("long.scorer", true),
            ("a.b.scorer", true),
            ("long", false),
            (".scorer", false),
            (".hidden.scorer", false),
            ("../long.scorer", false),
            ("in\\long.scorer", false),
            ("/etc/long.scorer", false),
        ] {
            assert_eq!(is_scorer_file(name), good, "{name}");
        }
    }
}
