//! The vocabulary of a directory: `tokenizer.json`, read by the `tokenizers` crate, with what stands beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;
use tokenizers::Model as _;
use tokenizers::models::ModelWrapper;

use super::beside::{Beside, ids};
use super::fixed::FixedToken;
use super::gguf::{byte_alphabet, byte_of, letter_bytes};
use super::pieces::SPACE;
use super::pipeline::Pipeline;
use super::{ENDINGS, Parts, Tokenizer, Words};
use crate::model::{Config, Directory, LoadError};

const FILE: &str = "tokenizer.json";
/// Tokens that end a turn, in the families that have one for it.
const TURN_ENDS: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"];

impl Tokenizer {
    /// Reads the vocabulary of a directory whose model has `vocabulary` entries, for those who want no more of it.
    ///
    /// # Errors
    /// `tokenizer.json` is missing, malformed or of a kind whose tokens have no bytes of their own.
    pub fn load_directory(directory: &Directory, vocabulary: usize) -> Result<Self, LoadError> {
        Self::of_folder(directory.path(), directory.config(), &Beside::read(directory.path())?, vocabulary)
    }

    /// Reads the vocabulary of a directory whose model has `vocabulary` entries.
    ///
    /// # Errors
    /// `tokenizer.json` is missing, malformed or of a kind whose tokens have no bytes of their own.
    pub(crate) fn of_folder(
        folder: &Path,
        config: &Config,
        beside: &Beside,
        vocabulary: usize,
    ) -> Result<Self, LoadError> {
        let path = folder.join(FILE);
        let file = path.display().to_string();
        if !path.exists() && folder.join("tokenizer.model").exists() {
            let problem = format!("is not there; tokenizer.model alone is not read, `save_pretrained` writes {FILE}");
            return Err(LoadError::Unsupported { file, problem });
        }
        let text = std::fs::read(&path).map_err(|source| LoadError::Io { file: file.clone(), source })?;
        let malformed = |problem: String| LoadError::Malformed { file: file.clone(), problem };
        // The crate was not made for files that mean harm.
        let read = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(&text)));
        let read = read.map_err(|_| malformed("is more than its reader can take".to_owned()))?;
        let read = read.map_err(|error| malformed(format!("is no tokenizer: {error}")))?;
        let table = table(&read, vocabulary).map_err(malformed)?;
        let unsupported = |problem: String| LoadError::Unsupported { file: file.clone(), problem };
        let (bytes, drops_space) = contributions(&read, &table).map_err(unsupported)?;
        let special = specials(&table, config, beside, &read);
        let model = read.get_model().clone();
        let words = Pipeline::of_file(model, read.get_normalizer(), read.get_pre_tokenizer()).map_err(malformed)?;
        let Special { ends, begin, end, names } = special;
        let words = Words::Pipeline(Box::new(words));
        let unknown = match read.get_model() {
            ModelWrapper::BPE(model) => model.get_unk_token().as_deref().and_then(|name| read.token_to_id(name)),
            model => {
                serde_json::to_value(model).ok().and_then(|model| model.get("unk_id")?.as_u64()).map(|id| id as u32)
            }
        };
        let fixed = table.fixed;
        Self::new(Parts { words, fixed, bytes, ends, begin, end, names, drops_space, unknown }).map_err(malformed)
    }
}

/// Tokens by id.
struct Table {
    tokens: Vec<Option<String>>,
    fixed: Vec<FixedToken>,
}

impl Table {
    fn id(&self, name: &str) -> Option<usize> {
        self.tokens.iter().position(|token| token.as_deref() == Some(name))
    }
}

fn table(read: &tokenizers::Tokenizer, vocabulary: usize) -> Result<Table, String> {
    let mut tokens = vec![None; vocabulary];
    let mut put = |token: &str, id: u32| {
        let place = tokens.get_mut(id as usize);
        let place =
            place.ok_or_else(|| format!("token \"{token}\" has the id {id}, none of the model's {vocabulary}"))?;
        *place = Some(token.to_owned());
        Ok::<(), String>(())
    };
    for (token, id) in read.get_model().get_vocab() {
        put(&token, id)?;
    }
    let mut fixed = Vec::new();
    for (id, token) in read.get_added_tokens_decoder() {
        put(&token.content, id)?;
        fixed.push(FixedToken {
            text: token.content,
            id,
            plain: !token.special,
            left: token.lstrip,
            right: token.rstrip,
            whole_word: token.single_word,
        });
    }
    fixed.sort_by_key(|token| token.id);
    Ok(Table { tokens, fixed })
}

/// What each token contributes to text, and whether a text's first space is dropped.
type Contributions = (Vec<Box<[u8]>>, bool);

fn contributions(read: &tokenizers::Tokenizer, table: &Table) -> Result<Contributions, String> {
    let model = serde_json::to_value(read.get_decoder()).unwrap_or_default();
    let steps: Vec<&Value> = match model.get("decoders").and_then(Value::as_array) {
        Some(several) => several.iter().collect(),
        None => vec![&model],
    };
    let is = |step: &&Value, kind: &str| step.get("type").and_then(Value::as_str) == Some(kind);
    let has = |kind: &str| steps.iter().any(|step| is(step, kind));
    let sound = matches!(read.get_model(), ModelWrapper::BPE(_) | ModelWrapper::Unigram(_));
    let spaces = |step: &&Value| {
        is(step, "Replace") && step.pointer("/pattern/String").and_then(Value::as_str) == Some("\u{2581}")
    };
    if !sound || !(has("ByteLevel") || has("Metaspace") || steps.iter().any(spaces)) {
        let kinds: Vec<&str> = steps.iter().filter_map(|step| step.get("type")?.as_str()).collect();
        return Err(format!(
            "its decoder ({}) is of no kind that this build reads: byte-level BPE, and SentencePiece's pieces",
            if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
        ));
    }
    let drops = |step: &&Value| match step.get("type").and_then(Value::as_str) {
        Some("Strip") => step.get("start").and_then(Value::as_u64).is_some_and(|start| start > 0),
        Some("Metaspace") => step.get("prepend_scheme").and_then(Value::as_str) != Some("never"),
        _ => false,
    };
    let (letters, alphabet) = (has("ByteLevel"), byte_alphabet());
    let of_token = |token: &Option<String>| match token {
        None => Box::default(),
        Some(token) if letters => letter_bytes(&alphabet, token),
        Some(token) => match byte_of(token).filter(|_| has("ByteFallback")) {
            Some(byte) => [byte].into(),
            None => token.replace(SPACE, " ").into_bytes().into(),
        },
    };
    let mut bytes: Vec<Box<[u8]>> = table.tokens.iter().map(of_token).collect();
    for token in &table.fixed {
        let own: Box<[u8]> = match token.plain {
            true if letters => token.text.as_bytes().into(),
            true => token.text.replace(SPACE, " ").into_bytes().into(),
            false => Box::default(),
        };
        if let Some(bytes) = bytes.get_mut(token.id as usize) {
            *bytes = own;
        }
    }
    Ok((bytes, steps.iter().any(drops)))
}

struct Special {
    ends: Vec<bool>,
    begin: Option<u32>,
    end: Option<u32>,
    names: (String, String),
}

fn specials(table: &Table, config: &Config, beside: &Beside, read: &tokenizers::Tokenizer) -> Special {
    let size = table.tokens.len();
    let within = |id: &u64| usize::try_from(*id).ok().filter(|id| *id < size);
    let first = |key: &str| ids(config, key).iter().find_map(within);
    let named = |role: &str| beside.name(role).and_then(|name| table.id(name));
    let begin = named("bos_token").or_else(|| first("bos_token_id"));
    let turn: Vec<usize> = beside.ends(config).iter().filter_map(within).collect();
    // Which token ends a turn, only a model that has turns can tell.
    let of_turn = || TURN_ENDS.iter().find_map(|name| table.id(name)).filter(|_| beside.template().is_some());
    let end = of_turn().or_else(|| named("eos_token")).or_else(|| turn.first().copied());
    let mut ends = vec![false; size];
    table
        .fixed
        .iter()
        .filter(|token| ENDINGS.contains(&token.text.as_str()))
        .for_each(|token| ends[token.id as usize] = true);
    turn.into_iter().chain(end).for_each(|id| ends[id] = true);
    named("eos_token").into_iter().for_each(|id| ends[id] = true);
    let text = |id: Option<usize>| id.and_then(|id| table.tokens[id].clone()).unwrap_or_default();
    let names = (text(begin), text(named("eos_token").or(end)));
    let processor = serde_json::to_value(read.get_post_processor()).unwrap_or_default();
    let begin = begin.filter(|_| beside.adds_begin(&processor, &names.0)).map(|id| id as u32);
    Special { ends, begin, end: end.map(|id| id as u32), names }
}
