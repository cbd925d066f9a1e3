//! `tokenizer.json` and what stands beside it, turned into the metadata that a GGUF file carries: byte-level BPE with merges,
//! SentencePiece's pieces with scores.

mod pieces;

use super::CompressError;
use super::directory::malformed;
use crate::model::{Config, LoadError};
use crate::tokenizer::{Beside, GPT_4O, LLAMA_3, QWEN_2, ids};
use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;

/// Kinds of tokens, as ggml numbers them.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const OWN: i32 = 4;
const UNUSED: i32 = 5;

/// Reads the vocabulary of a directory whose model has `size` entries.
///
/// # Errors
/// A file is missing or malformed, or the tokenizer is of a kind that GGUF has no words for.
pub fn read(folder: &Path, config: &Config, size: usize) -> Result<BTreeMap<String, Value>, CompressError> {
    let path = folder.join("tokenizer.json");
    let text = std::fs::read(&path).map_err(|source| LoadError::Io { file: path.display().to_string(), source })?;
    let file: Json = serde_json::from_slice(&text).map_err(|error| malformed(&path, format!("is no JSON: {error}")))?;
    let beside = Beside::read(folder)?;
    let (tokens, mut kinds) = vocabulary(&file, size).map_err(|problem| malformed(&path, problem))?;
    let merges = merges(&file).map_err(|problem| malformed(&path, problem))?;
    let unsupported = |problem| LoadError::Unsupported { file: path.display().to_string(), problem };
    let id_of = |name: &str| tokens.iter().position(|token| token == name);
    let named = |key: &str| beside.name(key).and_then(id_of);
    let first = |key: &str| ids(config, key).first().and_then(|id| usize::try_from(*id).ok()).filter(|id| *id < size);
    let begin = named("bos_token").or_else(|| first("bos_token_id"));
    let end = named("eos_token").or_else(|| first("eos_token_id"));
    let processor = file.get("post_processor").unwrap_or(&Json::Null);
    let begins = begin.is_some_and(|begin| beside.adds_begin(processor, &tokens[begin]));
    let mut metadata = BTreeMap::new();
    let mut put = |key: &str, value: Value| drop(metadata.insert(format!("tokenizer.{key}"), value));
    put("ggml.add_bos_token", Value::Bool(begins));
    // A turn may end with another token than a text.
    let turn = beside
        .ends(config)
        .into_iter()
        .map(|id| id as usize)
        .find(|id| kinds.get(*id) == Some(&CONTROL) && Some(*id) != end);
    for (key, id) in [("ggml.bos_token_id", begin), ("ggml.eos_token_id", end), ("ggml.eot_token_id", turn)] {
        if let Some(id) = id {
            put(key, Value::U32(id as u32));
        }
    }
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    if pieces::are(&file) {
        let prefix = pieces::prefix(&file).map_err(unsupported)?;
        let scores = pieces::scores(&file, &tokens, &merges, &mut kinds);
        put("ggml.model", Value::String("llama".to_owned()));
        put("ggml.pre", Value::String("default".to_owned()));
        put("ggml.add_space_prefix", Value::Bool(prefix));
        put("ggml.scores", Value::Array(scores.into_iter().map(Value::F32).collect()));
        let tokens = tokens.iter().zip(&kinds).map(|(token, kind)| pieces::spelled(token, *kind == OWN));
        put("ggml.tokens", texts(tokens.collect()));
    } else {
        put("ggml.model", Value::String("gpt2".to_owned()));
        put("ggml.pre", Value::String(pre_tokenizer(&file).map_err(unsupported)?.to_owned()));
        put("ggml.tokens", texts(tokens));
        put("ggml.merges", texts(merges));
    }
    put("ggml.token_type", Value::Array(kinds.into_iter().map(Value::I32).collect()));
    if let Some((template, _)) = beside.template() {
        put("chat_template", Value::String(template.to_owned()));
    }
    Ok(metadata)
}

/// Tokens by id and their kinds; ids of the model that nobody names are unused.
fn vocabulary(file: &Json, size: usize) -> Result<(Vec<String>, Vec<i32>), String> {
    let kind = file.pointer("/model/type").and_then(Json::as_str).unwrap_or("BPE");
    let Some(named) = file.pointer("/model/vocab").and_then(Json::as_object).filter(|_| kind == "BPE") else {
        return Err(format!("its model is {kind}; BPE with a `vocab` is turned into GGUF"));
    };
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; size];
    let mut put = |token: &str, id: Option<u64>, kind: i32| {
        let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < size);
        let id = id.ok_or_else(|| format!("token \"{token}\" has an id that is none of the model's {size}"))?;
        (tokens[id], kinds[id]) = (token.to_owned(), kind);
        Ok::<(), String>(())
    };
    for (token, id) in named {
        put(token, id.as_u64(), NORMAL)?;
    }
    for added in file.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
        let content = added.get("content").and_then(Json::as_str).ok_or("an added token has no content")?;
        let special = added.get("special").and_then(Json::as_bool).unwrap_or(false);
        put(content, added.get("id").and_then(Json::as_u64), if special { CONTROL } else { OWN })?;
    }
    Ok((tokens, kinds))
}

/// Pairs with a space between, however the file writes them.
fn merges(file: &Json) -> Result<Vec<String>, String> {
    let merges = file.pointer("/model/merges").and_then(Json::as_array).ok_or("it has no list of merges")?;
    let pair = |merge: &Json| match merge {
        Json::String(pair) => Some(pair.clone()),
        Json::Array(pair) => match pair.as_slice() {
            [Json::String(left), Json::String(right)] => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    };
    merges.iter().map(|merge| pair(merge).ok_or_else(|| format!("{merge} is no merge"))).collect()
}

/// The name that GGUF gives to the rules by which text is split.
fn pre_tokenizer(file: &Json) -> Result<&'static str, String> {
    let rules = file.get("pre_tokenizer").unwrap_or(&Json::Null);
    let steps: Vec<&Json> = match rules.get("pretokenizers").and_then(Json::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![rules],
    };
    let kind = |step: &Json| step.get("type").and_then(Json::as_str).unwrap_or("none").to_owned();
    let flag = |step: &Json, key: &str| step.get(key).and_then(Json::as_bool).unwrap_or(false);
    let kinds: Vec<String> = steps.iter().map(|step| kind(step)).collect();
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
    let pattern = steps.first().and_then(|step| step.pointer("/pattern/Regex")).and_then(Json::as_str);
    match (kinds.as_slice(), pattern) {
        (["ByteLevel"], _) if !flag(steps[0], "add_prefix_space") => Ok("gpt-2"),
        (["Digits", "ByteLevel"], _) if flag(steps[0], "individual_digits") && !flag(steps[1], "add_prefix_space") => {
            Ok("smollm")
        }
        (["Split", "ByteLevel"], Some(LLAMA_3)) => Ok("llama-bpe"),
        (["Split", "ByteLevel"], Some(QWEN_2)) => Ok("qwen2"),
        (["Split", "ByteLevel"], Some(GPT_4O)) => Ok("gpt-4o"),
        _ => Err(format!(
            "its pre-tokenizer ({}) is none of those of GPT-2, SmolLM, Llama 3, Qwen 2 and GPT-4o; give a GGUF file",
            kinds.join(", ")
        )),
    }
}
