//! A byte-level BPE vocabulary trained on the corpus, saved as `tokenizer.json`, carried by the model file.
//!
//! Digits stand alone, the rest is cut as GPT-2 does: the pre-tokenizer that GGUF calls `smollm`.

use super::{TrainError, write_whole};
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, DecoderWrapper, PreTokenizerWrapper, Tokenizer};

/// Opens a turn of the user.
pub const USER: &str = "<|user|>";
/// Opens a turn of the model.
pub const ASSISTANT: &str = "<|assistant|>";
/// Opens instructions of the application.
pub const SYSTEM: &str = "<|system|>";
/// Ends a turn, and an answer.
pub const END: &str = "<|end|>";

/// The chat template that goes into the GGUF.
pub const CHAT_TEMPLATE: &str = concat!(
    "{%- for message in messages -%}<|{{ message.role }}|>{{ message.content }}<|end|>{%- endfor -%}",
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
);

/// A trained vocabulary.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    /// Id of [`END`].
    pub end: u32,
}

fn wrong(error: impl std::fmt::Display) -> TrainError {
    TrainError::Vocabulary(error.to_string())
}

impl Vocabulary {
    /// Trains `size` tokens on `texts`, the four marks and the 256 bytes among them.
    pub fn train(texts: impl Iterator<Item = String> + Send, size: usize) -> Result<Self, TrainError> {
        let specials = [END, USER, ASSISTANT, SYSTEM].map(|text| AddedToken::from(text, true).normalized(false));
        let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
            .vocab_size(size)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(specials.to_vec())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build()
            .into();
        let pieces = Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, true)),
        ]);
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(pieces)));
        tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
        tokenizer.train(&mut trainer, texts).map_err(wrong)?;
        Self::of(tokenizer)
    }

    fn of(tokenizer: Tokenizer) -> Result<Self, TrainError> {
        for mark in [END, USER, ASSISTANT, SYSTEM] {
            if tokenizer.token_to_id(mark).is_none() {
                return Err(wrong(format!("lacks {mark}; is tokenizer.json that of another model?")));
            }
        }
        let end = tokenizer.token_to_id(END).unwrap_or_default();
        Ok(Self { end, tokenizer })
    }

    /// Loads `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self, TrainError> {
        let loaded = Tokenizer::from_file(path).map_err(|error| {
            wrong(format!("{}: {error}; take it from where it came, or use another folder", path.display()))
        })?;
        Self::of(loaded)
    }

    /// Saves `tokenizer.json`; it appears whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let text = self.tokenizer.to_string(false).map_err(wrong)?;
        write_whole(path, |file| file.write_all(text.as_bytes()))
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids of plain text.
    ///
    /// # Errors
    /// The text can't be split.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TrainError> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(wrong)?.get_ids().to_vec())
    }

    /// Whether `token` is one of the four marks.
    pub fn is_mark(token: &str) -> bool {
        [END, USER, ASSISTANT, SYSTEM].contains(&token)
    }

    /// The vocabulary in id order, and the merges as GGUF writes them: two tokens and a blank between.
    pub fn parts(&self) -> Result<(Vec<String>, Vec<String>), TrainError> {
        let json = serde_json::to_value(&self.tokenizer).map_err(wrong)?;
        let mut tokens: Vec<String> = vec![String::new(); self.len()];
        for (token, id) in self.tokenizer.get_vocab(true) {
            let slot = tokens.get_mut(id as usize).ok_or_else(|| wrong("token ids are not consecutive"))?;
            *slot = token;
        }
        let merges = json["model"]["merges"].as_array().ok_or_else(|| wrong("there are no merges"))?;
        let merge = |merge: &serde_json::Value| match (merge.as_str(), merge[0].as_str(), merge[1].as_str()) {
            (Some(text), ..) => Ok(text.to_owned()),
            (None, Some(left), Some(right)) => Ok(format!("{left} {right}")),
            _ => Err(wrong("a merge is no pair of tokens")),
        };
        let merges = merges.iter().map(merge).collect::<Result<_, _>>()?;
        Ok((tokens, merges))
    }
}
