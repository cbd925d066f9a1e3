//! `tokenizer.json` and what stands beside it, turned into the metadata that a GGUF file carries: byte-level BPE only.

use super::CompressError;
use super::directory::{ids, malformed};
use crate::model::{Config, LoadError};
use crate::tokenizer::{LLAMA_3, QWEN_2};
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
/// A file is missing or malformed, or the tokenizer is of a kind that this build does not read.
pub fn read(folder: &Path, config: &Config, size: usize) -> Result<BTreeMap<String, Value>, CompressError> {
    let path = folder.join("tokenizer.json");
    let text = std::fs::read(&path).map_err(|source| LoadError::Io { file: path.display().to_string(), source })?;
    let file: Json = serde_json::from_slice(&text).map_err(|error| malformed(&path, format!("is no JSON: {error}")))?;
    let beside: Json = std::fs::read(folder.join("tokenizer_config.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let (tokens, kinds) = vocabulary(&file, size).map_err(|problem| malformed(&path, problem))?;
    let merges = merges(&file).map_err(|problem| malformed(&path, problem))?;
    let pre =
        pre_tokenizer(&file).map_err(|problem| LoadError::Unsupported { file: path.display().to_string(), problem })?;
    let id_of = |name: &str| tokens.iter().position(|token| token == name);
    let named = |key: &str| {
        let name = beside.get(key).and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
        name.and_then(id_of)
    };
    let first = |key: &str| ids(config, key).first().and_then(|id| usize::try_from(*id).ok()).filter(|id| *id < size);
    let begin = named("bos_token").or_else(|| first("bos_token_id"));
    let end = named("eos_token").or_else(|| first("eos_token_id"));
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let mut metadata = BTreeMap::new();
    let mut put = |key: &str, value: Value| drop(metadata.insert(format!("tokenizer.{key}"), value));
    put("ggml.add_bos_token", Value::Bool(begin.is_some_and(|begin| adds_begin(&file, &beside, &tokens[begin]))));
    for (key, id) in [("ggml.bos_token_id", begin), ("ggml.eos_token_id", end)] {
        if let Some(id) = id {
            put(key, Value::U32(id as u32));
        }
    }
    put("ggml.model", Value::String("gpt2".to_owned()));
    put("ggml.pre", Value::String(pre.to_owned()));
    put("ggml.tokens", texts(tokens));
    put("ggml.token_type", Value::Array(kinds.into_iter().map(Value::I32).collect()));
    put("ggml.merges", texts(merges));
    if let Some(template) = template(folder, &beside) {
        put("chat_template", Value::String(template));
    }
    Ok(metadata)
}

/// Tokens by id and their kinds; ids of the model that nobody names are unused.
fn vocabulary(file: &Json, size: usize) -> Result<(Vec<String>, Vec<i32>), String> {
    let kind = file.pointer("/model/type").and_then(Json::as_str).unwrap_or("BPE");
    let Some(named) = file.pointer("/model/vocab").and_then(Json::as_object).filter(|_| kind == "BPE") else {
        return Err(format!("its model is {kind}; byte-level BPE with a `vocab` is read"));
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
        _ => Err(format!(
            "its pre-tokenizer ({}) is none of those of GPT-2, SmolLM, Llama 3 and Qwen 2; give a GGUF file",
            kinds.join(", ")
        )),
    }
}

/// Whether every prompt begins with the begin token: as the file beside says, or as the post-processor does.
fn adds_begin(file: &Json, beside: &Json, begin: &str) -> bool {
    let processors = file.pointer("/post_processor/processors").and_then(Json::as_array);
    let processors: Vec<&Json> = match processors {
        Some(several) => several.iter().collect(),
        None => file.get("post_processor").into_iter().collect(),
    };
    let adds = |processor: &&Json| {
        processor.pointer("/single/0/SpecialToken/id").and_then(Json::as_str).is_some_and(|first| first == begin)
    };
    beside.get("add_bos_token").and_then(Json::as_bool).unwrap_or_else(|| processors.iter().any(adds))
}

/// The chat template: a file of its own, a text, or the one called default of several.
fn template(folder: &Path, beside: &Json) -> Option<String> {
    if let Ok(template) = std::fs::read_to_string(folder.join("chat_template.jinja")) {
        return Some(template);
    }
    match beside.get("chat_template")? {
        Json::String(template) => Some(template.clone()),
        Json::Array(several) => {
            let default = several.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))?;
            default.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}
