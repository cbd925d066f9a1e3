//! What the flywheel changes in the folder of policies. Each file is replaced as a whole, in an order in which every state in
//! between is a sound one: a gateway that reads the folder at any moment, or after a crash, finds the old model or the new one.
//!
//! Being tried leaves the policy's text as it is, so what is promised meanwhile still holds. Taking the serving model's place
//! changes it, and with it every certificate and judge of the policy ends; they lie there for a rollback.

use super::FlywheelError;
use crate::catalog::{Catalog, Model};
use crate::domain::ModelId;
use crate::policy::Policy;
use crate::toml_file::{Problems, Section};
use std::path::{Path, PathBuf};

const CATALOG: &str = "models.toml";

/// A policy in its folder.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
    /// File name without `.toml`.
    stem: String,
}

fn read(file: &Path) -> Result<String, FlywheelError> {
    std::fs::read_to_string(file).map_err(|error| FlywheelError::file(file, error))
}

fn write(file: &Path, text: &str) -> Result<(), FlywheelError> {
    crate::files::replace(file, text).map_err(|error| FlywheelError::file(file, error))
}

/// Removes a file; one that is not there is none.
fn remove(file: &Path) -> Result<(), FlywheelError> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(FlywheelError::file(file, error)),
        _ => Ok(()),
    }
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Place {
    /// Finds the file of a policy by its name.
    ///
    /// # Errors
    /// The folder can't be read, or holds no such policy.
    pub fn find(folder: &Path, policy: &str) -> Result<Self, FlywheelError> {
        let entries = std::fs::read_dir(folder).map_err(|error| FlywheelError::file(folder, error))?;
        let mut known = Vec::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".toml")).map(str::to_owned);
            let named = read(&path).ok().and_then(|text| text.parse::<toml::Table>().ok());
            let named = named.filter(|table| table.contains_key("objective"));
            let name = named.and_then(|table| table.get("name")?.as_str().map(str::to_owned));
            match (stem, name) {
                (Some(stem), Some(name)) if name == policy && !stem.contains('.') => {
                    return Ok(Self { folder: folder.to_owned(), stem });
                }
                (Some(_), Some(name)) => known.push(name),
                _ => {}
            }
        }
        known.sort_unstable();
        let why = format!("is not in {}; there are {}", folder.display(), known.join(", "));
        Err(FlywheelError::Policy { policy: policy.to_owned(), why })
    }

    /// The policy's file, or one beside it: `solved.toml` for its certificate.
    pub fn file(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}.{suffix}", self.stem))
    }

    fn catalog_text(&self) -> Result<String, FlywheelError> {
        let file = self.folder.join(CATALOG);
        match file.exists() {
            true => read(&file),
            false => Ok(include_str!("../../../policies/models.toml").to_owned()),
        }
    }

    /// The catalog of the folder.
    ///
    /// # Errors
    /// It can't be read, or has problems.
    pub fn catalog(&self) -> Result<Catalog, FlywheelError> {
        Catalog::parse(CATALOG, &self.catalog_text()?).map_err(FlywheelError::Problems)
    }

    /// The policy as it stands, with its candidate.
    ///
    /// # Errors
    /// Its file, or the catalog, can't be read or has problems.
    pub fn policy(&self) -> Result<Policy, FlywheelError> {
        let catalog = self.catalog()?;
        let file = self.file("toml");
        let mut policy =
            Policy::parse(&file.display().to_string(), &read(&file)?, &catalog).map_err(FlywheelError::Problems)?;
        let candidate = self.file("candidate.toml");
        if candidate.exists() {
            let (name, text) = (candidate.display().to_string(), read(&candidate)?);
            policy.try_candidate(&name, &text, &catalog).map_err(FlywheelError::Problems)?;
        }
        Ok(policy)
    }

    /// The catalog's entry for a candidate: a model file that can do what the serving model can, and is scored as it is.
    pub fn entry(&self, serving: &Model, candidate: &ModelId, model: &Path, context: u32) -> String {
        let context = context.min(serving.context);
        let most = serving.max_output.min(context);
        let words: Vec<String> = serving.capabilities.words().into_iter().map(quoted).collect();
        let region = serving.region.iter().map(|region| format!("region = {}\n", quoted(region)));
        let scored_as = serving.scored_as.as_ref().unwrap_or(&serving.id);
        format!(
            "\n# Made by `sluice flywheel` for the policy {}.\n[[models]]\nid = {}\nkind = \"file\"\npath = {}\n\
             context = {context}\nmax_output = {most}\ndefault_output = {}\ncapabilities = [{}]\n{}scored_as = {}\n",
            self.stem,
            quoted(candidate.as_str()),
            quoted(&model.display().to_string()),
            serving.default_output.min(most),
            words.join(", "),
            region.collect::<String>(),
            quoted(scored_as.as_str()),
        )
    }

    /// Lets a candidate be tried beside the serving model: its entry comes first, then who tries it.
    ///
    /// # Errors
    /// Another one is tried already, a file can't be written, or what would come of it has problems.
    pub fn try_out(&self, candidate: &ModelId, entry: &str) -> Result<(), FlywheelError> {
        let policy = self.policy()?;
        if let Some(other) = policy.candidate.as_ref().filter(|other| *other != candidate) {
            return Err(FlywheelError::tries_another(&policy.reference.name, other));
        }
        let text = self.catalog_text()?;
        if !text.contains(entry) {
            let text = format!("{}\n{entry}", text.trim_end());
            Catalog::parse(CATALOG, &text).map_err(FlywheelError::Problems)?;
            write(&self.folder.join(CATALOG), &text)?;
        }
        let note = "# Written by `sluice flywheel`: tried beside the model that serves, shown to nobody.\n";
        write(&self.file("candidate.toml"), &format!("{note}model = {}\n", quoted(candidate.as_str())))
    }

    /// Ends the trial, and takes the candidate out of the catalog unless something names it.
    ///
    /// # Errors
    /// A file can't be read or written.
    pub fn withdraw(&self, candidate: &ModelId, entry: &str) -> Result<(), FlywheelError> {
        remove(&self.file("candidate.toml"))?;
        let (file, name) = (self.folder.join(CATALOG), quoted(candidate.as_str()));
        let entries = std::fs::read_dir(&self.folder).map_err(|error| FlywheelError::file(&self.folder, error))?;
        let others = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| *path != file);
        let named = others
            .filter(|path| path.extension().is_some_and(|end| end == "toml"))
            .any(|path| read(&path).is_ok_and(|text| text.contains(&name)));
        let text = self.catalog_text()?;
        match text.contains(entry) && !named {
            true => write(&file, &text.replace(entry, "")),
            false => Ok(()),
        }
    }

    /// The policy's text with one small model in another's place; `None` where it does not name that.
    ///
    /// # Errors
    /// The file can't be read, or what would come of it has problems.
    pub fn with_small(&self, from: &ModelId, to: &ModelId) -> Result<Option<String>, FlywheelError> {
        self.swapped(&read(&self.file("toml"))?, from, to)
    }

    fn swapped(&self, text: &str, from: &ModelId, to: &ModelId) -> Result<Option<String>, FlywheelError> {
        let name = self.file("toml").display().to_string();
        let (table, mut problems) = Problems::parse(&name, text);
        let models = Section::root(&table).section("models", &mut problems);
        let small = models.and_then(|mut models| models.texts("small", &mut problems)).unwrap_or_default();
        let Some((_, span)) = small.into_iter().find(|(small, _)| small == from.as_str()) else { return Ok(None) };
        let mut changed = text.to_owned();
        changed.replace_range(span, &quoted(to.as_str()));
        Policy::parse(&name, &changed, &self.catalog()?).map_err(FlywheelError::Problems)?;
        Ok(Some(changed))
    }

    /// Puts a text in the policy's place.
    ///
    /// # Errors
    /// It can't be written.
    pub fn put(&self, text: &str) -> Result<(), FlywheelError> {
        write(&self.file("toml"), text)
    }

    /// Ends the trial of a candidate that took the serving model's place; its entry stays.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn end_trial(&self) -> Result<(), FlywheelError> {
        remove(&self.file("candidate.toml"))
    }

    /// Keeps the policy and its certificate in a folder, as they are.
    ///
    /// # Errors
    /// A file can't be read or written.
    pub fn keep(&self, folder: &Path) -> Result<(), FlywheelError> {
        std::fs::create_dir_all(folder).map_err(|error| FlywheelError::file(folder, error))?;
        for suffix in ["toml", "solved.toml"] {
            let file = self.file(suffix);
            match file.exists() {
                true => write(&folder.join(suffix), &read(&file)?)?,
                false => remove(&folder.join(suffix))?,
            }
        }
        Ok(())
    }

    /// Whether a folder still holds the policy that became, with the candidate in the serving model's place, the text of this hash.
    pub fn is_kept(&self, folder: &Path, (serving, candidate): (&ModelId, &ModelId), promoted: Option<&str>) -> bool {
        let changed = read(&folder.join("toml")).and_then(|text| self.swapped(&text, serving, candidate));
        changed.is_ok_and(|text| text.is_some_and(|text| Some(&*Policy::hash(&text)) == promoted))
    }

    /// Puts back what [`Place::keep`] kept: the certificate first, which says nothing of another text.
    ///
    /// # Errors
    /// A file can't be read or written.
    pub fn restore(&self, folder: &Path) -> Result<(), FlywheelError> {
        for suffix in ["solved.toml", "toml"] {
            let kept = folder.join(suffix);
            if kept.exists() {
                write(&self.file(suffix), &read(&kept)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "name = \"chat\" # ours\n[models]\nsmall = ['sluice-nano']\nlarge = [\"openai/gpt-4.1-mini\"]\n\
                          [objective]\ngoal = \"fixed-threshold\"\nthreshold = 0.5\n[shadow]\nshare = 0.5\n\
                          compare = \"exact\"\n[flywheel]\ngraded = 10\n";

    #[test]
    fn every_state_on_the_way_is_sound_and_the_way_back_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mine.toml"), POLICY).unwrap();
        let place = Place::find(folder.path(), "chat").unwrap();
        let error = Place::find(folder.path(), "chatt").unwrap_err().to_string();
        assert!(error.contains("there are chat"), "{error}");
        let (old, new) = (ModelId::new("sluice-nano"), ModelId::new("nano \"2\""));
        let serving = place.catalog().unwrap().get(&old).cloned().unwrap();
        let entry = place.entry(&serving, &new, Path::new("run/candidate.gguf"), 256);
        place.try_out(&new, &entry).unwrap();
        place.try_out(&new, &entry).unwrap();
        let policy = place.policy().unwrap();
        assert_eq!((policy.candidate, policy.reference.hash), (Some(new.clone()), Policy::hash(POLICY)));
        let catalog = place.catalog().unwrap();
        let candidate = catalog.get(&new).unwrap();
        assert_eq!((candidate.context, candidate.capabilities), (256, serving.capabilities));
        assert_eq!(catalog.scored_as(&new), &old);
        let error = place.try_out(&ModelId::new("third"), &entry).unwrap_err().to_string();
        assert!(error.contains("is being tried already"), "{error}");

        let kept = folder.path().join("kept");
        place.keep(&kept).unwrap();
        let text = place.with_small(&old, &new).unwrap().unwrap();
        place.put(&text).unwrap();
        let policy = place.policy().unwrap();
        assert_eq!((policy.candidate, policy.small), (None, vec![new.clone()]), "it serves and is tried no more");
        place.end_trial().unwrap();
        let promoted = Policy::hash(&text);
        assert!(place.is_kept(&kept, (&old, &new), Some(&promoted)));
        assert!(!place.is_kept(&kept, (&old, &new), Some(&Policy::hash(POLICY))));
        for other in ["", "name = \"chat\"\n"] {
            let damaged = folder.path().join("damaged");
            std::fs::create_dir_all(&damaged).unwrap();
            std::fs::write(damaged.join("toml"), other).unwrap();
            assert!(!place.is_kept(&damaged, (&old, &new), Some(&promoted)), "{other:?}");
        }
        assert!(!place.is_kept(&folder.path().join("none"), (&old, &new), Some(&promoted)));
        assert!(place.with_small(&old, &new).unwrap().is_none());
        // What a policy names stays in the catalog.
        place.withdraw(&new, &entry).unwrap();
        assert!(place.catalog().unwrap().get(&new).is_some());
        place.restore(&kept).unwrap();
        place.withdraw(&new, &entry).unwrap();
        assert!(place.catalog().unwrap().get(&new).is_none());
        assert_eq!(read(&place.file("toml")).unwrap(), POLICY);
    }

    #[test]
    fn a_policy_whose_tests_name_the_model_is_not_broken() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "{POLICY}[[tests]]\nname = \"t\"\nprompt = \"p\"\nscore = 0.9\nexpect = {{ model = \"sluice-nano\" }}\n"
        );
        std::fs::write(folder.path().join("mine.toml"), &text).unwrap();
        let place = Place::find(folder.path(), "chat").unwrap();
        let (old, new) = (ModelId::new("sluice-nano"), ModelId::new("n2"));
        let serving = place.catalog().unwrap().get(&old).cloned().unwrap();
        place.try_out(&new, &place.entry(&serving, &new, Path::new("x.gguf"), 512)).unwrap();
        assert!(matches!(place.with_small(&old, &new), Err(FlywheelError::Problems(_))));
        assert_eq!(read(&place.file("toml")).unwrap(), text);
    }
}
