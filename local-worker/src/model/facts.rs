//! What a file says of its model, by key: GGUF metadata and `config.json` alike, with one wording for what is missing or
//! out of range. Files come from anywhere, so nothing is taken that was not checked.

use super::{Gguf, LoadError};

/// Named values of a file.
pub trait Facts {
    /// A key as the file spells it, for messages.
    fn spelled(&self, key: &str) -> String;

    /// Whether the key is there with a value.
    fn has(&self, key: &str) -> bool;

    /// A whole number that is not negative, if the key is there and is one.
    fn integer(&self, key: &str) -> Option<u64>;

    /// A number, if the key is there and is one.
    fn number(&self, key: &str) -> Option<f64>;

    /// A string, if the key is there and is one.
    fn text(&self, key: &str) -> Option<&str>;

    /// A truth value, if the key is there and is one.
    fn flag(&self, key: &str) -> Option<bool>;

    /// A fault of the file.
    fn fault(&self, problem: String) -> LoadError;

    /// Something about the file this build can't do.
    fn refusal(&self, problem: String) -> LoadError;

    /// A size from 1 to `most`; `None` if the key is not there.
    fn optional_size(&self, key: &str, most: u64) -> Result<Option<usize>, LoadError> {
        if !self.has(key) {
            return Ok(None);
        }
        match self.integer(key) {
            Some(value) if value >= 1 && value <= most => Ok(Some(value as usize)),
            Some(value) => {
                Err(self.fault(format!("{} is {value}, which is not between 1 and {most}", self.spelled(key))))
            }
            None => Err(self.missing(key)),
        }
    }

    /// A size from 1 to `most`.
    fn size(&self, key: &str, most: u64) -> Result<usize, LoadError> {
        self.optional_size(key, most)?.ok_or_else(|| self.missing(key))
    }

    /// A finite number above 0; `None` if the key is not there.
    fn positive(&self, key: &str) -> Result<Option<f64>, LoadError> {
        if !self.has(key) {
            return Ok(None);
        }
        match self.number(key) {
            Some(value) if value.is_finite() && value > 0.0 => Ok(Some(value)),
            Some(value) => Err(self.fault(format!("{} is {value}, which is not above 0", self.spelled(key)))),
            None => Err(self.missing(key)),
        }
    }

    /// What norms add under their root: from 0 to 1.
    fn epsilon(&self, key: &str) -> Result<f32, LoadError> {
        let value = self.number(key).ok_or_else(|| self.missing(key))?;
        match (0.0..=1.0).contains(&value) {
            true => Ok(value as f32),
            false => Err(self.fault(format!("{} is {value}, not between 0 and 1", self.spelled(key)))),
        }
    }

    /// A key that must be there is not.
    fn missing(&self, key: &str) -> LoadError {
        self.fault(format!("{} is missing or of another type", self.spelled(key)))
    }
}

/// The metadata of one architecture in a GGUF file.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'file, 'bytes> {
    /// The file.
    pub file: &'file Gguf<'bytes>,
    /// What stands before every key.
    pub family: &'static str,
}

impl Metadata<'_, '_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family)
    }
}

impl Facts for Metadata<'_, '_> {
    fn spelled(&self, key: &str) -> String {
        format!("metadata key {}", self.key(key))
    }

    fn has(&self, key: &str) -> bool {
        self.file.get(&self.key(key)).is_some()
    }

    fn integer(&self, key: &str) -> Option<u64> {
        self.file.integer(&self.key(key))
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.file.number(&self.key(key))
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.file.text(&self.key(key))
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.file.flag(&self.key(key))
    }

    fn fault(&self, problem: String) -> LoadError {
        self.file.malformed(problem)
    }

    fn refusal(&self, problem: String) -> LoadError {
        self.file.unsupported(problem)
    }
}
