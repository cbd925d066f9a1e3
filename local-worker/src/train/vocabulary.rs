//! A byte-level BPE vocabulary: trained on the corpus, saved as `tokenizer.json`, exported into the GGUF.
//!
//! Digits stand alone, the rest is cut as GPT-2 does: the pre-tokenizer that GGUF calls `smollm`.

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
pub const CHAT_TEMPLATE: &str = "{%- for message in messages -%}<|{{ message.role }}|>{{ message.content }}<|end|>{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}";

/// A trained vocabulary.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    user: u32,
    assistant: u32,
    /// Id of [`END`].
    pub end: u32,
}

impl Vocabulary {
    /// Trains `size` tokens on `texts`; `whole` texts (such as the decline text) become one token each where possible.
    pub fn train(texts: impl Iterator<Item = String> + Send, size: usize) -> tokenizers::Result<Self> {
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
        tokenizer.train(&mut trainer, texts)?;
        Self::of(tokenizer)
    }

    fn of(tokenizer: Tokenizer) -> tokenizers::Result<Self> {
        let id = |text: &str| tokenizer.token_to_id(text).ok_or_else(|| format!("the vocabulary lacks {text}"));
        Ok(Self { user: id(USER)?, assistant: id(ASSISTANT)?, end: id(END)?, tokenizer })
    }

    /// Loads `tokenizer.json`.
    pub fn load(path: &Path) -> tokenizers::Result<Self> {
        Self::of(Tokenizer::from_file(path)?)
    }

    /// Saves `tokenizer.json`.
    pub fn save(&self, path: &Path) -> tokenizers::Result<()> {
        self.tokenizer.save(path, false)
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
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    }

    /// The text of ids.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }

    /// Ids of a prompt up to and including the opening of the model's turn, and of its answer with its end.
    pub fn example(&self, prompt: &str, answer: &str) -> (Vec<u32>, Vec<u32>) {
        let mut ids = vec![self.user];
        ids.extend(self.encode(prompt));
        ids.extend([self.end, self.assistant]);
        let mut answer = self.encode(answer);
        answer.push(self.end);
        (ids, answer)
    }

    /// The vocabulary in id order, and the merges as GGUF writes them.
    pub fn parts(&self) -> Result<(Vec<String>, Vec<String>), serde_json::Error> {
        let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&self.tokenizer)?)?;
        let mut tokens: Vec<String> = vec![String::new(); self.len()];
        for (token, id) in self.tokenizer.get_vocab(true) {
            if let Some(slot) = tokens.get_mut(id as usize) {
                *slot = token;
            }
        }
        let merges = json["model"]["merges"].as_array().cloned().unwrap_or_default();
        let merges = merges.iter().map(|merge| match merge {
            serde_json::Value::Array(pair) => {
                format!("{} {}", pair[0].as_str().unwrap_or(""), pair[1].as_str().unwrap_or(""))
            }
            other => other.as_str().unwrap_or("").to_owned(),
        });
        Ok((tokens, merges.collect()))
    }
}
