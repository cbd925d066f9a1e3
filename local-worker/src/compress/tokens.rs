//! `tokenizer.json` and what stands beside it, turned into the metadata that a GGUF file carries: byte-level BPE with merges,
//! SentencePiece's pieces with scores.

mod pieces;

use super::CompressError;
use super::directory::malformed;
use crate::model::{Config, LoadError};
use crate::tokenizer::{Beside, Described, GPT_4O, LLAMA_3, QWEN_2};
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
    let text = std::fs::read(&path).map_err(|error| LoadError::Io { file: path.display().to_string(), error })?;
    let file: Json = serde_json::from_slice(&text).map_err(|error| malformed(&path, format!("is no JSON: {error}")))?;
    let beside = Beside::read(folder)?;
    let unsupported = |problem| LoadError::Unsupported { file: path.display().to_string(), problem };
    let kind = file.pointer("/model/type").and_then(Json::as_str).unwrap_or("BPE");
    if kind != "BPE" {
        return Err(malformed(&path, format!("its model is {kind}; BPE with a `vocab` is turned into GGUF")).into());
    }
    let merges = merges(&file).map_err(|problem| malformed(&path, problem))?;
    let (_, described) = Described::read(folder, config, &beside, size)?;
    same_ids(&file, &described).map_err(|problem| malformed(&path, problem))?;
    let (tokens, mut kinds) = vocabulary(&described);
    let mut metadata = BTreeMap::new();
    let mut put = |key: &str, value: Value| drop(metadata.insert(format!("tokenizer.{key}"), value));
    put("ggml.add_bos_token", Value::Bool(described.begins));
    let other = other_end(&described).map_err(unsupported)?;
    // A turn may end with another token than a text.
    let turn = described.end.filter(|end| Some(*end) != described.text_end);
    let named = [("bos", described.begin), ("eos", described.text_end), ("eot", turn), ("eom", other)];
    for (role, id) in named.into_iter().filter_map(|(role, id)| Some((role, id?))) {
        put(&format!("ggml.{role}_token_id"), Value::U32(id));
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
fn vocabulary(described: &Described) -> (Vec<String>, Vec<i32>) {
    let name = |(id, token): (usize, &Option<String>)| token.clone().unwrap_or_else(|| format!("[PAD{id}]"));
    let mut kinds: Vec<i32> =
        described.tokens.iter().map(|token| if token.is_some() { NORMAL } else { UNUSED }).collect();
    for (id, plain) in described.fixed() {
        kinds[id as usize] = if plain { OWN } else { CONTROL };
    }
    (described.tokens.iter().enumerate().map(name).collect(), kinds)
}

/// Refuses added tokens whose ids in the file are not those they are read with: which row of the embedding they mean, nobody knows.
fn same_ids(file: &Json, described: &Described) -> Result<(), String> {
    for added in file.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
        let content = added.get("content").and_then(Json::as_str).ok_or("an added token has no content")?;
        let id = added.get("id").and_then(Json::as_u64).ok_or_else(|| format!("token \"{content}\" has no id"))?;
        let read = described.tokens.iter().position(|token| token.as_deref() == Some(content));
        if read.map(|read| read as u64) != Some(id) {
            let read = read.map_or("none".to_owned(), |read| read.to_string());
            return Err(format!("token \"{content}\" has the id {id} among added_tokens, and is read with {read}"));
        }
    }
    Ok(())
}

/// What ends an answer beside the end of a text and of a turn, and beside what does by its name: GGUF has room for one.
fn other_end(described: &Described) -> Result<Option<u32>, String> {
    let told = |id: &u32| Some(*id) == described.text_end || Some(*id) == described.end || described.ends_by_name(*id);
    let ends = (0..).zip(&described.ends).filter(|(_, ends)| **ends).map(|(id, _)| id);
    let others: Vec<u32> = ends.filter(|id| !told(id)).collect();
    match others.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => {
            Err(format!("its tokens {several:?} all end answers, GGUF has words for one beside those of text and turn"))
        }
    }
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
