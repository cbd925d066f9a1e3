//! `config.json` of a model directory, as `transformers` writes it: in the form of today and in that of published
//! checkpoints, which are older.

use serde_json::{Map, Value};

use super::LoadError;
use super::facts::Facts;

/// A configuration, or an object within it.
#[derive(Debug, Clone)]
pub struct Config {
    file: String,
    /// Where an inner object lies, for messages; ends with a dot.
    path: String,
    values: Map<String, Value>,
}

impl Config {
    /// Reads the text of a `config.json`; `file` is for messages.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, LoadError> {
        let malformed = |problem: String| LoadError::Malformed { file: file.to_owned(), problem };
        match serde_json::from_slice(text) {
            Ok(Value::Object(values)) => Ok(Self { file: file.to_owned(), path: String::new(), values }),
            Ok(_) => Err(malformed("is no JSON object".to_owned())),
            Err(error) => Err(malformed(format!("is no JSON: {error}"))),
        }
    }

    /// An inner object, if the key is there and is one.
    pub fn object(&self, key: &str) -> Option<Self> {
        match self.values.get(key) {
            Some(Value::Object(values)) => {
                Some(Self { file: self.file.clone(), path: format!("{}{key}.", self.path), values: values.clone() })
            }
            _ => None,
        }
    }

    /// A list of numbers, if the key is there.
    ///
    /// # Errors
    /// It is another thing.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, LoadError> {
        let Some(value) = self.values.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.map(Some).ok_or_else(|| self.fault(format!("{} is no list of numbers", self.spelled(key))))
    }

    /// A list of strings, if the key is there.
    ///
    /// # Errors
    /// It is another thing.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, LoadError> {
        let Some(value) = self.values.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.fault(format!("{} is no list of strings", self.spelled(key))))
    }
}

impl Facts for Config {
    fn spelled(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    fn integer(&self, key: &str) -> Option<u64> {
        self.values.get(key)?.as_u64()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.values.get(key)?.as_f64()
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.as_str()
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.values.get(key)?.as_bool()
    }

    fn fault(&self, problem: String) -> LoadError {
        LoadError::Malformed { file: self.file.clone(), problem }
    }

    fn refusal(&self, problem: String) -> LoadError {
        LoadError::Unsupported { file: self.file.clone(), problem }
    }
}
