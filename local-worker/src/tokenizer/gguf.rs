//! The vocabulary that a GGUF file carries: byte-level BPE (`gpt2`) with the pre-tokenizers of SmolLM, GPT-2, Llama 3,
//! Qwen 2 and GPT-4o (Phi-4-mini), and SentencePiece's pieces (`llama`) as Llama 2, Phi-3 and Gemma have them.

use std::collections::HashMap;

use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior::Isolated;

use super::fixed::FixedToken;
use super::pieces::{Pieces, SPACE};
use super::pipeline::Pipeline;
use super::{ENDINGS, Parts, Tokenizer, Words};
use crate::model::{Gguf, LoadError, Value};

/// How words are split in Llama 3.
pub const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits: Qwen 2.
pub const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Where case changes, too: GPT-4o, Phi-4-mini.
pub const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Kinds of tokens, as ggml numbers them.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const OWN: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

impl Tokenizer {
    /// Reads the vocabulary of a file whose model has `vocabulary` entries.
    ///
    /// # Errors
    /// Keys are missing or contradict each other, or the kind of tokenizer is not supported.
    pub fn load(file: &Gguf<'_>, vocabulary: usize) -> Result<Self, LoadError> {
        let kind = file.text("tokenizer.ggml.model").unwrap_or("");
        if !matches!(kind, "gpt2" | "llama") {
            let known = "this build reads gpt2 (byte-level BPE) and llama (SentencePiece)";
            return Err(file.unsupported(format!("tokenizer.ggml.model is \"{kind}\"; {known}")));
        }
        let tokens = texts(file, "tokenizer.ggml.tokens")?;
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
        let special = Specials::read(file, tokens, &kinds, kind == "llama")?;
        let (words, bytes, drops_space) = match kind {
            "llama" => pieces(file, tokens, &kinds)?,
            _ => byte_level(file, tokens, &kinds)?,
        };
        let swallows = kind == "llama" && file.text("general.architecture") == Some("phi3");
        let spaced = |token: &String| if kind == "llama" { token.replace(SPACE, " ") } else { token.clone() };
        let fixed = tokens.iter().zip(&kinds).enumerate().filter(|(_, (_, kind))| matches!(**kind, CONTROL | OWN));
        let fixed = fixed.map(|(id, (token, kind))| FixedToken {
            text: if *kind == OWN { spaced(token) } else { token.clone() },
            id: id as u32,
            plain: *kind == OWN,
            // GGUF has no word for it; its readers know the family.
            right: swallows && !matches!(token.as_str(), "<s>" | "<unk>" | "<|endoftext|>"),
            ..FixedToken::default()
        });
        let Specials { ends, begin, end, names } = special;
        let parts = Parts { words, fixed: fixed.collect(), bytes, ends, begin, end, names, drops_space, unknown: None };
        Self::new(parts).map_err(|problem| file.malformed(format!("tokenizer: {problem}")))
    }
}

fn texts<'file>(file: &'file Gguf<'_>, key: &str) -> Result<&'file [String], LoadError> {
    match file.get(key) {
        Some(Value::Texts(texts)) => Ok(texts.as_slice()),
        // Some writers give an empty list any element type.
        Some(Value::Integers(none)) if none.is_empty() => Ok(&[][..]),
        _ => Err(file.malformed(format!("metadata key {key} is missing or no list of strings"))),
    }
}

type Read = (Words, Vec<Box<[u8]>>, bool);

fn byte_level(file: &Gguf<'_>, tokens: &[String], kinds: &[i64]) -> Result<Read, LoadError> {
    let (splits, whole_words) = splits(file)?;
    let model = merged(file, tokens, texts(file, "tokenizer.ggml.merges")?, whole_words)?;
    let alphabet = byte_alphabet();
    let bytes = tokens.iter().zip(kinds).map(|(token, kind)| match *kind {
        UNKNOWN | CONTROL | UNUSED => Box::default(),
        OWN => token.as_bytes().into(),
        _ => letter_bytes(&alphabet, token),
    });
    Ok((Words::Pipeline(Box::new(Pipeline::new(ModelWrapper::BPE(model), &splits))), bytes.collect(), false))
}

fn pieces(file: &Gguf<'_>, tokens: &[String], kinds: &[i64]) -> Result<Read, LoadError> {
    let scores: Vec<f32> = match file.get("tokenizer.ggml.scores") {
        Some(Value::Floats(scores)) if scores.len() == tokens.len() => {
            scores.iter().map(|score| *score as f32).collect()
        }
        _ => return Err(file.malformed("tokenizer.ggml.scores is not one number for each token")),
    };
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        return Err(file.malformed(format!("tokenizer.ggml.scores: entry {at} is not a number")));
    }
    let (mut of_byte, mut unknown) = (vec![None; 256], None);
    let mut bytes: Vec<Box<[u8]>> = Vec::with_capacity(tokens.len());
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        bytes.push(match *kind {
            BYTE => {
                let byte = byte_of(token).ok_or_else(|| {
                    file.malformed(format!(
                        "tokenizer.ggml.tokens: entry {id}, \"{token}\", should be a byte as <0x0A>"
                    ))
                })?;
                of_byte[usize::from(byte)] = Some(id as u32);
                [byte].into()
            }
            UNKNOWN => {
                unknown = unknown.or(Some(id as u32));
                Box::default()
            }
            CONTROL | UNUSED => Box::default(),
            _ => token.replace(SPACE, " ").into_bytes().into(),
        });
    }
    // The first of two that are spelled alike; rare, and readers differ on it.
    let known = tokens.iter().zip(kinds).zip(&scores).enumerate().rev().filter(|(_, ((_, kind), _))| **kind == 1);
    let known = known.map(|(id, ((token, _), score))| (token.as_str().into(), id as u32, *score));
    let prefix = file.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let pieces = Pieces::new(known, of_byte, unknown, prefix);
    let pieces = pieces.map_err(|problem| file.malformed(format!("tokenizer.ggml.tokens: {problem}")))?;
    Ok((Words::Pieces(pieces), bytes, prefix))
}

/// The byte that a token like `<0x0A>` stands for.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// What the file says of single tokens.
struct Specials {
    ends: Vec<bool>,
    begin: Option<u32>,
    end: Option<u32>,
    names: (String, String),
}

impl Specials {
    fn read(file: &Gguf<'_>, tokens: &[String], kinds: &[i64], begins: bool) -> Result<Self, LoadError> {
        let id = |key: &str| match file.integer(&format!("tokenizer.ggml.{key}")) {
            None => Ok(None),
            Some(id) if id < tokens.len() as u64 => Ok(Some(id as usize)),
            Some(id) => {
                Err(file.malformed(format!("tokenizer.ggml.{key} is {id}, the vocabulary has {} tokens", tokens.len())))
            }
        };
        let (begin, end) = (id("bos_token_id")?, id("eos_token_id")?);
        let mut ends: Vec<bool> = tokens
            .iter()
            .zip(kinds)
            .map(|(token, kind)| matches!(*kind, CONTROL | OWN) && ENDINGS.contains(&token.as_str()))
            .collect();
        let turn_end = id("eot_token_id")?;
        for id in [end, turn_end, id("eom_token_id")?].into_iter().flatten() {
            ends[id] = true;
        }
        let name = |id: Option<usize>| id.map(|id| tokens[id].clone()).unwrap_or_default();
        let names = (name(begin), name(end));
        let begin = begin.filter(|_| file.flag("tokenizer.ggml.add_bos_token").unwrap_or(begins)).map(|id| id as u32);
        Ok(Self { ends, begin, end: turn_end.or(end).map(|id| id as u32), names })
    }
}

fn merged(file: &Gguf<'_>, tokens: &[String], merges: &[String], whole_words: bool) -> Result<BPE, LoadError> {
    let vocabulary: HashMap<String, u32> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect();
    let pair = |merge: &String| {
        let at = merge.char_indices().skip(1).find(|(_, letter)| *letter == ' ').map(|(at, _)| at);
        at.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned())).ok_or_else(|| {
            file.malformed(format!("tokenizer.ggml.merges has the entry \"{merge}\", which is not a pair"))
        })
    };
    let merges = merges.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
    BPE::builder()
        .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges)
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
        "gpt-2" | "gpt2" | "phi-2" => (vec![words], false),
        "smollm" => (vec![PreTokenizerWrapper::Digits(Digits::new(true)), words], false),
        "llama-bpe" | "llama3" | "llama-v3" => (vec![regex(LLAMA_3)?, letters], true),
        "qwen2" => (vec![regex(QWEN_2)?, letters], false),
        "gpt-4o" => (vec![regex(GPT_4O)?, letters], false),
        "default" => {
            let parts = [r"[\p{P}\$\+<=>\^~\|]+", r"\p{N}+", r"[0-9][0-9][0-9]"];
            let mut splits = vec![regex(parts[0])?];
            splits.push(regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)")?);
            splits.extend([regex(parts[1])?, regex(parts[2])?, letters]);
            (splits, false)
        }
        other => {
            let known = "smollm, gpt-2, llama-bpe, qwen2, gpt-4o and default are supported";
            return Err(file.unsupported(format!("tokenizer.ggml.pre is \"{other}\"; {known}")));
        }
    })
}

/// The letters byte-level vocabularies write bytes as: printable Latin-1 stands for itself, the others from U+0100 on.
pub(super) fn byte_alphabet() -> HashMap<char, u8> {
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

/// The bytes that a token of a byte-level vocabulary stands for.
pub(super) fn letter_bytes(alphabet: &HashMap<char, u8>, token: &str) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(token.len());
    for letter in token.chars() {
        match alphabet.get(&letter) {
            Some(byte) => bytes.push(*byte),
            None => bytes.extend(letter.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes.into()
}
