//! What stands beside a `tokenizer.json`: names of tokens, what ends an answer, the chat template. The files are those that
//! `transformers` writes now and wrote before; none of them must be there.

use std::path::Path;

use serde_json::Value;

use crate::model::{Config, Facts, LoadError};

/// The files, read.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    tokenizer: Value,
    specials: Value,
    generation: Value,
    /// The chat template and the file it is from.
    template: Option<(String, String)>,
}

impl Beside {
    /// # Errors
    /// A file is there but can't be read, or is no JSON.
    pub fn read(folder: &Path) -> Result<Self, LoadError> {
        let text = |name: &str| match std::fs::read_to_string(folder.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LoadError::Io { file: folder.join(name).display().to_string(), error }),
        };
        let json = |name: &str| match text(name)? {
            None => Ok(Value::Null),
            Some(text) => serde_json::from_str(&text).map_err(|error| LoadError::Malformed {
                file: folder.join(name).display().to_string(),
                problem: format!("is no JSON: {error}"),
            }),
        };
        let mut beside = Self {
            tokenizer: json("tokenizer_config.json")?,
            specials: json("special_tokens_map.json")?,
            generation: json("generation_config.json")?,
            template: None,
        };
        let of_processor = json("chat_template.json")?;
        let named = |template: String, name: &str| (template, folder.join(name).display().to_string());
        beside.template = match text("chat_template.jinja")? {
            Some(template) => Some(named(template, "chat_template.jinja")),
            None => template_in(&of_processor)
                .map(|template| named(template, "chat_template.json"))
                .or_else(|| template_in(&beside.tokenizer).map(|template| named(template, "tokenizer_config.json"))),
        };
        Ok(beside)
    }

    /// The chat template and its file's name.
    pub fn template(&self) -> Option<(&str, &str)> {
        self.template.as_ref().map(|(template, file)| (template.as_str(), file.as_str()))
    }

    /// The text of a token by its role, such as `bos_token`.
    pub fn name(&self, role: &str) -> Option<&str> {
        [&self.tokenizer, &self.specials].into_iter().find_map(|file| {
            let value = file.get(role)?;
            value.as_str().or_else(|| value.get("content")?.as_str())
        })
    }

    /// Ids that end an answer, and what `config.json` says where no other file does.
    pub fn ends(&self, config: &Config) -> Vec<u64> {
        let own = match self.generation.get("eos_token_id") {
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_u64).collect(),
            Some(one) => one.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        if own.is_empty() { ids(config, "eos_token_id") } else { own }
    }

    /// Whether every prompt begins with the begin token: as the configuration says, or as the post-processor does; but
    /// conversations do as their template says.
    pub fn adds_begin(&self, post_processor: &Value, begin: &str) -> bool {
        let processors: Vec<&Value> = match post_processor.get("processors").and_then(Value::as_array) {
            Some(several) => several.iter().collect(),
            None => vec![post_processor],
        };
        let adds = |processor: &&Value| {
            processor.pointer("/single/0/SpecialToken/id").and_then(Value::as_str).is_some_and(|first| first == begin)
        };
        let told = self.tokenizer.get("add_bos_token").and_then(Value::as_bool);
        let written = |template: &str| template.contains("bos_token") || template.contains(begin);
        told.unwrap_or_else(|| processors.iter().any(adds)) && self.template().is_none_or(|(text, _)| written(text))
    }
}

/// The ids that a configuration names under a key: one, or a list.
pub(super) fn ids(config: &Config, key: &str) -> Vec<u64> {
    match config.integer(key) {
        Some(id) => vec![id],
        None => config.numbers(key).ok().flatten().unwrap_or_default().into_iter().map(|id| id as u64).collect(),
    }
}

/// A template that a file holds: a text, or the one called default of several.
fn template_in(file: &Value) -> Option<String> {
    match file.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(several) => {
            let default = several.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))?;
            default.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}
