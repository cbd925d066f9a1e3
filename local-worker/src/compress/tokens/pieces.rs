//! A `tokenizer.json` made of a SentencePiece model, turned back: its merges stand in the order of the pieces' scores.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::{CONTROL, NORMAL};

/// Kinds of tokens, as ggml numbers them.
const UNKNOWN: i32 = 2;
const BYTE: i32 = 6;
/// How a space is written.
const SPACE: char = '\u{2581}';
/// The score of what no merge makes: letters, and tokens that stand as they are.
const LOWEST: f32 = -1e9;

/// Whether the file is of this kind.
pub fn are(file: &Json) -> bool {
    file.pointer("/model/byte_fallback").and_then(Json::as_bool).unwrap_or(false)
}

/// Whether texts begin with a space of their own.
///
/// # Errors
/// They do so at the first place only, for which GGUF has no words.
pub fn prefix(file: &Json) -> Result<bool, String> {
    let steps = |key: &str, inner: &str| -> Vec<Json> {
        let step = file.get(key).cloned().unwrap_or_default();
        match step.get(inner).and_then(Json::as_array) {
            Some(several) => several.clone(),
            None => vec![step],
        }
    };
    let is = |step: &Json, kind: &str| step.get("type").and_then(Json::as_str) == Some(kind);
    let normalizers = steps("normalizer", "normalizers");
    if normalizers.iter().any(|step| !step.is_null() && !is(step, "Prepend") && !is(step, "Replace")) {
        return Err("its normalizer does more than GGUF has words for".to_owned());
    }
    let splits = steps("pre_tokenizer", "pretokenizers");
    let scheme = splits.iter().find(|step| is(step, "Metaspace")).and_then(|step| step.get("prepend_scheme")?.as_str());
    match scheme {
        Some("first") => Err("it puts a space before the first text only, for which GGUF has no words".to_owned()),
        Some("always") => Ok(true),
        _ => Ok(normalizers.iter().any(|step| is(step, "Prepend"))),
    }
}

/// Scores that lead to the same merges, and the kinds of tokens for bytes and for what is unknown.
pub fn scores(file: &Json, tokens: &[String], merges: &[String], kinds: &mut [i32]) -> Vec<f32> {
    let unknown = file.pointer("/model/unk_token").and_then(Json::as_str);
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        // Two neighbours in the order of the file: the first that makes a piece is its rank.
        if let Some((left, right)) = merge.split_once(' ') {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
    }
    let score = |token: &String| ranks.get(token).map_or(LOWEST, |rank| -(*rank as f32));
    for (token, kind) in tokens.iter().zip(kinds.iter_mut()) {
        let byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        match *kind {
            NORMAL if byte => *kind = BYTE,
            NORMAL | CONTROL if Some(token.as_str()) == unknown => *kind = UNKNOWN,
            _ => {}
        }
    }
    tokens.iter().map(score).collect()
}

/// A token as GGUF spells it: those that stand as they are have their spaces.
pub fn spelled(token: &str, own: bool) -> String {
    if own { token.replace(SPACE, " ") } else { token.to_owned() }
}
