//! Text to tokens and back, from the vocabulary a GGUF file carries: byte-level BPE (`gpt2`) with the pre-tokenizers of
//! SmolLM, GPT-2, Llama 3 and Qwen 2. Knows nothing of conversations.
//!
//! Control tokens are never made of plain text: only [`Tokenizer::encode_marked`] knows them, and its caller marks what is
//! a stranger's text.

mod stream;

use std::collections::HashMap;

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior::Isolated;
use tokenizers::{Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use crate::model::{Gguf, LoadError, Value};

pub use stream::TextStream;

/// Names of control tokens that end a turn in some family, whatever the file says of them.
const ENDINGS: [&str; 6] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end|>", "</s>"];

/// How words are split in Llama 3, and with other digits in Qwen 2.
pub(crate) const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(crate) const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Bytes of a long text that are tokenised at a time.
const PIECE: usize = 16 * 1024;
/// Bytes that are tokenised at a time at most.
const LONGEST_PIECE: usize = 64 * 1024;

/// A vocabulary and its rules.
pub struct Tokenizer {
    model: tokenizers::models::bpe::BPE,
    splits: Vec<PreTokenizerWrapper>,
    /// What each token contributes to text; nothing for control tokens.
    bytes: Vec<Box<[u8]>>,
    /// Tokens that stand as they are: longest first; whether plain text may contain them.
    fixed: Vec<(String, u32, bool)>,
    /// Bytes that one of `fixed` begins with.
    firsts: [bool; 256],
    ends: Vec<bool>,
    begin: Option<u32>,
    end: Option<u32>,
    names: (String, String),
    longest: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Tokenizer of {} tokens", self.bytes.len())
    }
}

impl Tokenizer {
    /// Reads the vocabulary of a file whose model has `vocabulary` entries.
    ///
    /// # Errors
    /// Keys are missing or contradict each other, or the kind of tokenizer is not supported.
    pub fn load(file: &Gguf<'_>, vocabulary: usize) -> Result<Self, LoadError> {
        let kind = file.text("tokenizer.ggml.model").unwrap_or("");
        if kind != "gpt2" {
            return Err(
                file.unsupported(format!("tokenizer.ggml.model is \"{kind}\"; this build reads gpt2 (byte-level BPE)"))
            );
        }
        let texts = |key: &str| match file.get(key) {
            Some(Value::Texts(texts)) => Ok(texts.as_slice()),
            // Some writers give an empty list any element type.
            Some(Value::Integers(none)) if none.is_empty() => Ok(&[][..]),
            _ => Err(file.malformed(format!("metadata key {key} is missing or no list of strings"))),
        };
        let (tokens, merges) = (texts("tokenizer.ggml.tokens")?, texts("tokenizer.ggml.merges")?);
        if tokens.is_empty() || tokens.len() > vocabulary {
            let problem =
                format!("tokenizer.ggml.tokens has {} entries, the embedding {vocabulary} rows", tokens.len());
            return Err(file.malformed(problem));
        }
        let kinds = match file.get("tokenizer.ggml.token_type") {
            Some(Value::Integers(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
            None => vec![1; tokens.len()],
            _ => return Err(file.malformed("tokenizer.ggml.token_type is not one integer for each token")),
        };
        let (splits, whole_words) = splits(file)?;
        let model = build_bpe(file, tokens, merges, whole_words)?;
        let alphabet = byte_alphabet();
        let mut bytes = Vec::with_capacity(tokens.len());
        let mut fixed = Vec::new();
        for (id, (token, kind)) in tokens.iter().zip(&kinds).enumerate() {
            bytes.push(match kind {
                2 | 3 | 5 => Box::default(),
                4 => token.as_bytes().into(),
                _ => token_bytes(&alphabet, token),
            });
            if matches!(kind, 3 | 4) && !token.is_empty() {
                fixed.push((token.clone(), id as u32, *kind == 4));
            }
        }
        fixed.sort_by_key(|(token, id, _)| (std::cmp::Reverse(token.len()), *id));
        let mut firsts = [false; 256];
        for (token, _, _) in &fixed {
            firsts[usize::from(token.as_bytes()[0])] = true;
        }
        let special = Specials::read(file, tokens, &kinds)?;
        let longest = bytes.iter().map(|bytes| bytes.len()).max().unwrap_or(1).max(1);
        let Specials { ends, begin, end, names } = special;
        Ok(Self { model, splits, bytes, fixed, firsts, ends, begin, end, names, longest })
    }

    /// Tokens of the vocabulary.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the vocabulary is empty, which no loaded one is.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The token every prompt begins with, if the model wants one.
    pub fn begin(&self) -> Option<u32> {
        self.begin
    }

    /// Texts of the begin and end tokens, for templates; empty where there is none.
    pub fn names(&self) -> (&str, &str) {
        (&self.names.0, &self.names.1)
    }

    /// The token an answer ends with, if the file names one: that of a turn before that of a text.
    pub fn end(&self) -> Option<u32> {
        self.end
    }

    /// Whether a token ends an answer.
    pub fn ends(&self, token: u32) -> bool {
        self.ends.get(token as usize).copied().unwrap_or(false)
    }

    /// What a token contributes to text, as bytes of UTF-8 that may be part of a character; nothing for control tokens.
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], |bytes| bytes)
    }

    /// Tokens `text` takes at least.
    pub fn least_tokens(&self, text: &str) -> usize {
        text.len() / self.longest
    }

    /// Whether `text` begins with the name of a control token.
    pub fn control_at(&self, text: &str) -> bool {
        let first = text.as_bytes().first().is_some_and(|byte| self.firsts[usize::from(*byte)]);
        first && self.fixed.iter().any(|(name, _, plain)| !plain && text.starts_with(name.as_str()))
    }

    /// Tokens of plain text; names of control tokens in it are text.
    ///
    /// # Errors
    /// The text can't be split, which only a fault of the rules can cause.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut tokens = Vec::new();
        self.encode_parts(text, Rules { control: false, marker: None, most: usize::MAX }, &mut tokens)?;
        Ok(tokens)
    }

    /// Tokens of a rendered prompt: names of control tokens become those, and every `marker` is taken out of the text, so
    /// that a name broken by one stays text. Gives up soon after `most` tokens: what is returned then has more, but is not
    /// the whole.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_marked(&self, text: &str, marker: Option<char>, most: usize) -> Result<Vec<u32>, String> {
        let mut tokens = Vec::new();
        self.encode_parts(text, Rules { control: true, marker, most }, &mut tokens)?;
        Ok(tokens)
    }

    fn encode_parts(&self, text: &str, rules: Rules, tokens: &mut Vec<u32>) -> Result<(), String> {
        let mut rest = text;
        while !rest.is_empty() && tokens.len() <= rules.most {
            let found = rest.char_indices().find_map(|(at, _)| {
                let here = &rest[at..];
                if !self.firsts[usize::from(here.as_bytes()[0])] {
                    return None;
                }
                let wanted = |(name, _, plain): &&(String, u32, bool)| {
                    (rules.control || *plain) && here.starts_with(name.as_str())
                };
                self.fixed.iter().find(wanted).map(|(name, id, _)| (at, name.len(), *id))
            });
            let (at, length) = found.map_or((rest.len(), 0), |(at, length, _)| (at, length));
            match rules.marker {
                Some(marker) => self.encode_text(&rest[..at].replace(marker, ""), rules.most, tokens)?,
                None => self.encode_text(&rest[..at], rules.most, tokens)?,
            }
            tokens.extend(found.map(|(_, _, id)| id));
            rest = &rest[at + length..];
        }
        Ok(())
    }

    /// Long texts go piece by piece, so that a text far too long is not split to its end.
    fn encode_text(&self, mut text: &str, most: usize, tokens: &mut Vec<u32>) -> Result<(), String> {
        while !text.is_empty() && tokens.len() <= most {
            let (piece, rest) = text.split_at(piece_end(text));
            let mut pieces = PreTokenizedString::from(piece);
            for split in &self.splits {
                split.pre_tokenize(&mut pieces).map_err(|error| error.to_string())?;
            }
            pieces.tokenize(|piece| self.model.tokenize(piece.get())).map_err(|error| error.to_string())?;
            for (_, _, piece) in pieces.get_splits(OffsetReferential::Original, OffsetType::Byte) {
                tokens.extend(piece.iter().flatten().map(|token| token.id));
            }
            text = rest;
        }
        Ok(())
    }
}

/// What a text may contain.
#[derive(Debug, Clone, Copy)]
struct Rules {
    control: bool,
    marker: Option<char>,
    most: usize,
}

/// Where a long text may be cut without changing its tokens: every pre-tokenizer here splits before a space between two
/// letters. A text without such a place in [`LONGEST_PIECE`], no natural one, is cut there, where a token may then differ.
fn piece_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let between = |at: &usize| {
        bytes[*at] == b' '
            && bytes[*at - 1].is_ascii_alphabetic()
            && bytes.get(*at + 1).is_some_and(u8::is_ascii_alphabetic)
    };
    let longest = text.floor_char_boundary(LONGEST_PIECE);
    (PIECE..longest).find(between).unwrap_or(longest)
}

/// What the file says of single tokens.
struct Specials {
    ends: Vec<bool>,
    begin: Option<u32>,
    end: Option<u32>,
    names: (String, String),
}

impl Specials {
    fn read(file: &Gguf<'_>, tokens: &[String], kinds: &[i64]) -> Result<Self, LoadError> {
        let id = |key: &str| match file.integer(&format!("tokenizer.ggml.{key}")) {
            None => Ok(None),
            Some(id) if id < tokens.len() as u64 => Ok(Some(id as usize)),
            Some(id) => {
                Err(file.malformed(format!("tokenizer.ggml.{key} is {id}, the vocabulary has {} tokens", tokens.len())))
            }
        };
        let (begin, end) = (id("bos_token_id")?, id("eos_token_id")?);
        let mut ends: Vec<bool> =
            tokens.iter().zip(kinds).map(|(token, kind)| *kind == 3 && ENDINGS.contains(&token.as_str())).collect();
        let turn_end = id("eot_token_id")?;
        for id in [end, turn_end, id("eom_token_id")?].into_iter().flatten() {
            ends[id] = true;
        }
        let name = |id: Option<usize>| id.map(|id| tokens[id].clone()).unwrap_or_default();
        let names = (name(begin), name(end));
        let begin = begin.filter(|_| file.flag("tokenizer.ggml.add_bos_token").unwrap_or(false)).map(|id| id as u32);
        Ok(Self { ends, begin, end: turn_end.or(end).map(|id| id as u32), names })
    }
}

fn build_bpe(
    file: &Gguf<'_>,
    tokens: &[String],
    merges: &[String],
    whole_words: bool,
) -> Result<tokenizers::models::bpe::BPE, LoadError> {
    let vocabulary: HashMap<String, u32> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect();
    let pair = |merge: &String| {
        let at = merge.char_indices().skip(1).find(|(_, letter)| *letter == ' ').map(|(at, _)| at);
        at.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned())).ok_or_else(|| {
            file.malformed(format!("tokenizer.ggml.merges has the entry \"{merge}\", which is not a pair"))
        })
    };
    let merges = merges.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
    tokenizers::models::bpe::BPE::builder()
        .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(whole_words)
        .build()
        .map_err(|error| file.malformed(format!("tokenizer.ggml.merges: {error}")))
}

/// How text is split before merging, and whether a piece that is a token is taken whole.
fn splits(file: &Gguf<'_>) -> Result<(Vec<PreTokenizerWrapper>, bool), LoadError> {
    let regex = |pattern: &str| {
        let split = Split::new(SplitPattern::Regex(pattern.to_owned()), Isolated, false);
        split.map(PreTokenizerWrapper::Split).map_err(|error| file.unsupported(format!("pre-tokenizer: {error}")))
    };
    let words = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, true));
    let letters = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false));
    let name = file.text("tokenizer.ggml.pre").unwrap_or("default");
    Ok(match name {
        "gpt-2" | "gpt2" => (vec![words], false),
        "smollm" => (vec![PreTokenizerWrapper::Digits(Digits::new(true)), words], false),
        "llama-bpe" | "llama3" | "llama-v3" => (vec![regex(LLAMA_3)?, letters], true),
        "qwen2" => (vec![regex(QWEN_2)?, letters], false),
        "default" => {
            let parts = [r"[\p{P}\$\+<=>\^~\|]+", r"\p{N}+", r"[0-9][0-9][0-9]"];
            let mut splits = vec![regex(parts[0])?];
            splits.push(regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)")?);
            splits.extend([regex(parts[1])?, regex(parts[2])?, letters]);
            (splits, false)
        }
        other => {
            let known = "smollm, gpt-2, llama-bpe, qwen2 and default are supported";
            return Err(file.unsupported(format!("tokenizer.ggml.pre is \"{other}\"; {known}")));
        }
    })
}

/// The letters byte-level vocabularies write bytes as: printable Latin-1 stands for itself, the others from U+0100 on.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    let letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    };
    (0..=255).map(letter).zip(0..=255).collect()
}

fn token_bytes(alphabet: &HashMap<char, u8>, token: &str) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(token.len());
    for letter in token.chars() {
        match alphabet.get(&letter) {
            Some(byte) => bytes.push(*byte),
            None => bytes.extend(letter.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes.into()
}

#[cfg(test)]
mod tests;
