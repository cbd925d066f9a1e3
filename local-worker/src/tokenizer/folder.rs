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
        let file = folder.join(FILE).display().to_string();
        let malformed = |problem: String| LoadError::Malformed { file: file.clone(), problem };
        let unsupported = |problem: String| LoadError::Unsupported { file: file.clone(), problem };
        let (read, described) = Described::read(folder, config, beside, vocabulary)?;
        let (bytes, drops_space) = contributions(&read, &described).map_err(unsupported)?;
        let model = read.get_model().clone();
        let words = Pipeline::of_file(model, read.get_normalizer(), read.get_pre_tokenizer()).map_err(malformed)?;
        let names = (described.text(described.begin), described.text(described.text_end));
        let words = Words::Pipeline(Box::new(words));
        let unknown = match read.get_model() {
            ModelWrapper::BPE(model) => model.get_unk_token().as_deref().and_then(|name| read.token_to_id(name)),
            model => {
                serde_json::to_value(model).ok().and_then(|model| model.get("unk_id")?.as_u64()).map(|id| id as u32)
            }
        };
        let Described { fixed, begin, begins, end, ends, .. } = described;
        let begin = begin.filter(|_| begins);
        Self::new(Parts { words, fixed, bytes, ends, begin, end, names, drops_space, unknown }).map_err(malformed)
    }
}

/// What a folder's files say of single tokens: to whoever serves the model, and to whoever writes it down in another form, so
/// that both say the same.
pub(crate) struct Described {
    /// By id; ids of the model that nobody names have none. Added tokens have those that the `tokenizers` crate gives them.
    pub tokens: Vec<Option<String>>,
    /// Those that stand in text as they are written.
    fixed: Vec<FixedToken>,
    /// The token that texts begin with.
    pub begin: Option<u32>,
    /// Whether every prompt does.
    pub begins: bool,
    /// What ends a text.
    pub text_end: Option<u32>,
    /// What ends an answer: of a turn before that of a text.
    pub end: Option<u32>,
    /// Whatever else does.
    pub ends: Vec<bool>,
}

impl Described {
    /// Reads the files of a directory whose model has `vocabulary` entries.
    pub(crate) fn read(
        folder: &Path,
        config: &Config,
        beside: &Beside,
        vocabulary: usize,
    ) -> Result<(tokenizers::Tokenizer, Self), LoadError> {
        let path = folder.join(FILE);
        let file = path.display().to_string();
        if !path.exists() && folder.join("tokenizer.model").exists() {
            let problem = format!("is not there; tokenizer.model alone is not read, `save_pretrained` writes {FILE}");
            return Err(LoadError::Unsupported { file, problem });
        }
        let text = std::fs::read(&path).map_err(|error| LoadError::Io { file: file.clone(), error })?;
        let malformed = |problem: String| LoadError::Malformed { file: file.clone(), problem };
        // The crate was not made for files that mean harm.
        let read = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(&text)));
        let read = read.map_err(|_| malformed("is more than its reader can take".to_owned()))?;
        let read = read.map_err(|error| malformed(format!("is no tokenizer: {error}")))?;
        let (tokens, fixed) = table(&read, vocabulary).map_err(malformed)?;
        let mut described = Self {
            ends: vec![false; tokens.len()],
            tokens,
            fixed,
            begin: None,
            begins: false,
            text_end: None,
            end: None,
        };
        described.find(config, beside, &read);
        Ok((read, described))
    }

    /// Ids of tokens that stand as they are written, and whether anybody may write them.
    pub fn fixed(&self) -> impl Iterator<Item = (u32, bool)> {
        self.fixed.iter().map(|token| (token.id, token.plain))
    }

    /// Whether a token ends answers by its name alone.
    pub fn ends_by_name(&self, id: u32) -> bool {
        self.fixed.iter().any(|token| token.id == id && ENDINGS.contains(&token.text.as_str()))
    }

    fn id(&self, name: &str) -> Option<u32> {
        self.tokens.iter().position(|token| token.as_deref() == Some(name)).map(|id| id as u32)
    }

    fn text(&self, id: Option<u32>) -> String {
        id.and_then(|id| self.tokens.get(id as usize)?.clone()).unwrap_or_default()
    }

    fn find(&mut self, config: &Config, beside: &Beside, read: &tokenizers::Tokenizer) {
        let size = self.tokens.len();
        let within = |id: &u64| u32::try_from(*id).ok().filter(|id| (*id as usize) < size);
        let named = |role: &str| beside.name(role).and_then(|name| self.id(name));
        let begin = named("bos_token").or_else(|| ids(config, "bos_token_id").iter().find_map(within));
        let turn: Vec<u32> = beside.ends(config).iter().filter_map(within).collect();
        // Which token ends a turn, only a model that has turns can tell.
        let of_turn = TURN_ENDS.iter().find_map(|name| self.id(name)).filter(|_| beside.template().is_some());
        let text_end = named("eos_token");
        let end = of_turn.or(text_end).or_else(|| turn.first().copied());
        let by_name = self.fixed.iter().filter(|token| ENDINGS.contains(&token.text.as_str())).map(|token| token.id);
        let ends: Vec<u32> = by_name.chain(turn).chain(end).chain(text_end).collect();
        let processor = serde_json::to_value(read.get_post_processor()).unwrap_or_default();
        self.begins = begin.is_some() && beside.adds_begin(&processor, &self.text(begin));
        (self.begin, self.text_end, self.end) = (begin, text_end.or(end), end);
        ends.into_iter().for_each(|id| self.ends[id as usize] = true);
    }
}

/// Tokens by id, and those that stand as they are written.
type Table = (Vec<Option<String>>, Vec<FixedToken>);

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
    Ok((tokens, fixed))
}

/// What each token contributes to text, and whether a text's first space is dropped.
type Contributions = (Vec<Box<[u8]>>, bool);

fn contributions(read: &tokenizers::Tokenizer, table: &Described) -> Result<Contributions, String> {
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
