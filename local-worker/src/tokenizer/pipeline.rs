//! Text to tokens by the `tokenizers` crate: normalising, splitting, merging. Only plain text comes here; tokens that stand
//! as they are have been taken out before.
//!
//! Some steps put a space before a text. Whether they do depends on where the text stands, and a long text is tokenised in
//! several parts, so the steps are kept in the form of each place.

use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Model, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::Place;

/// A model and what comes before it.
pub(super) struct Pipeline {
    model: ModelWrapper,
    /// For a text's start, after a token that stands as it is, and in the middle of a text.
    steps: [Steps; 3],
}

struct Steps {
    normalizer: Option<NormalizerWrapper>,
    splits: Vec<PreTokenizerWrapper>,
}

impl Pipeline {
    /// Rules that are the same wherever a text stands.
    pub fn new(model: ModelWrapper, splits: &[PreTokenizerWrapper]) -> Self {
        let steps = || Steps { normalizer: None, splits: splits.to_vec() };
        Self { model, steps: [steps(), steps(), steps()] }
    }

    /// Those of a `tokenizer.json`, which may put spaces before texts.
    ///
    /// # Errors
    /// The steps can't be had in the form for the middle of a text.
    pub fn of_file(
        model: ModelWrapper,
        normalizer: Option<&NormalizerWrapper>,
        splits: Option<&PreTokenizerWrapper>,
    ) -> Result<Self, String> {
        let steps = |place: Place| {
            let normalizer = normalizer.map(|step| rewritten(step, place)).transpose()?.flatten();
            let splits = splits.map(|step| rewritten(step, place)).transpose()?.flatten();
            Ok::<_, String>(Steps { normalizer, splits: splits.into_iter().collect() })
        };
        Ok(Self { model, steps: [steps(Place::Start)?, steps(Place::AfterToken)?, steps(Place::Middle)?] })
    }

    /// Tokens of a text.
    ///
    /// # Errors
    /// A step fails, which only a fault of the rules can cause.
    pub fn encode(&self, text: &str, place: Place, tokens: &mut Vec<u32>) -> Result<(), String> {
        let steps = match place {
            Place::Start => &self.steps[0],
            Place::AfterToken => &self.steps[1],
            Place::Middle => &self.steps[2],
        };
        let mut pieces = PreTokenizedString::from(text);
        if let Some(normalizer) = &steps.normalizer {
            pieces.normalize(|piece| normalizer.normalize(piece)).map_err(|error| error.to_string())?;
        }
        for split in &steps.splits {
            split.pre_tokenize(&mut pieces).map_err(|error| error.to_string())?;
        }
        pieces.tokenize(|piece| self.model.tokenize(piece.get())).map_err(|error| error.to_string())?;
        for (_, _, piece) in pieces.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            tokens.extend(piece.iter().flatten().map(|token| token.id));
        }
        Ok(())
    }
}

/// A step in the form for a place; `None` where it does nothing there.
fn rewritten<S: serde::Serialize + serde::de::DeserializeOwned>(step: &S, place: Place) -> Result<Option<S>, String> {
    let written = serde_json::to_value(step).map_err(|error| error.to_string())?;
    in_place(written, place).map(serde_json::from_value).transpose().map_err(|error| error.to_string())
}

fn in_place(step: Value, place: Place) -> Option<Value> {
    let Value::Object(mut step) = step else { return Some(step) };
    for key in ["normalizers", "pretokenizers"] {
        if let Some(Value::Array(inner)) = step.get_mut(key) {
            *inner = std::mem::take(inner).into_iter().filter_map(|step| in_place(step, place)).collect();
        }
    }
    match step.get("type").and_then(Value::as_str) {
        Some("Prepend") if place == Place::Middle => return None,
        Some("Metaspace") => {
            let first = step.get("prepend_scheme").and_then(Value::as_str) == Some("first");
            if place == Place::Middle || (first && place == Place::AfterToken) {
                step.insert("prepend_scheme".to_owned(), json!("never"));
            }
        }
        Some("ByteLevel") if place == Place::Middle => {
            step.insert("add_prefix_space".to_owned(), json!(false));
        }
        _ => {}
    }
    Some(Value::Object(step))
}
