//! Sentence encoders from a directory as hubs have them: an encoder of the BERT family, its tokenizer, and how its tokens'
//! vectors become one (`1_Pooling/config.json`, `sentence_bert_config.json` of sentence-transformers).
//!
//! Slower than a table by a factor of a thousand and better: it reads words in their order.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, PostProcessor as _, Tokenizer, TruncationParams};

use super::{EmbedError, normalize};
use crate::model::{Directory, Encoder, EncoderScratch};

/// How many tokens of different texts go through the encoder together.
const TOGETHER: usize = 2048;
/// Bytes of a text that are tokenised for each token of the longest text an encoder reads: words are shorter, and what is
/// beyond would be cut off anyway.
const BYTES_A_TOKEN: usize = 64;

/// How tokens' vectors become a text's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all of them.
    Mean,
    /// That of the first token.
    First,
}

/// A text's vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Of length one.
    pub vector: Vec<f32>,
    /// Tokens of the text that were read, with those that encoders put around it.
    pub tokens: usize,
    /// Whether the text was longer than the encoder reads, and was cut.
    pub cut: bool,
}

/// An encoder with its tokenizer.
#[derive(Debug)]
pub struct SentenceEncoder {
    encoder: Encoder,
    tokenizer: Tokenizer,
    pooling: Pooling,
    /// Tokens of the longest text.
    longest: usize,
}

#[derive(Deserialize)]
struct PoolingFile {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

#[derive(Deserialize)]
struct LimitFile {
    max_seq_length: Option<usize>,
}

#[derive(Deserialize)]
struct ModuleFile {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default = "yes")]
    do_lower_case: bool,
    strip_accents: Option<bool>,
}

fn yes() -> bool {
    true
}

impl SentenceEncoder {
    /// Loads `config.json`, safetensors and `tokenizer.json` (or `vocab.txt`) of a directory. Pooling is the mean unless
    /// `1_Pooling/config.json` says first token.
    ///
    /// # Errors
    /// A file is missing or malformed, or asks for what this build can't do.
    pub fn from_directory(path: &Path) -> Result<Self, EmbedError> {
        let encoder = Encoder::from_directory(&Directory::open(path)?)?;
        let mut tokenizer = tokenizer(path)?;
        let vocabulary = tokenizer.get_vocab_size(true);
        if vocabulary > encoder.shape().vocabulary {
            let problem = format!("its tokenizer has {vocabulary} tokens, the encoder {}", encoder.shape().vocabulary);
            return Err(content(path, problem));
        }
        if let Some(modules) = optional::<Vec<ModuleFile>>(&path.join("modules.json"))? {
            let known = ["Transformer", "Pooling", "Normalize"];
            let unknown = |module: &&ModuleFile| !known.iter().any(|known| module.kind.ends_with(known));
            if let Some(module) = modules.iter().find(unknown) {
                let problem = format!("names {}; this build runs {}", module.kind, known.join(", "));
                return Err(content(&path.join("modules.json"), problem));
            }
        }
        let limit: Option<LimitFile> = optional(&path.join("sentence_bert_config.json"))?;
        let limit = limit.and_then(|file| file.max_seq_length).unwrap_or(usize::MAX);
        let longest = limit.min(encoder.shape().context);
        let around = tokenizer.get_post_processor().map_or(0, |rules| rules.added_tokens(false));
        if longest <= around {
            let problem = format!("texts would be cut at {longest} tokens, which its tokenizer's marks alone take");
            return Err(content(path, problem));
        }
        let cut = TruncationParams { max_length: longest, ..TruncationParams::default() };
        let problem =
            |error: tokenizers::Error| content(path, format!("texts can't be cut at {longest} tokens: {error}"));
        tokenizer.with_padding(None).with_truncation(Some(cut)).map_err(problem)?;
        Ok(Self { pooling: pooling(&path.join("1_Pooling").join("config.json"))?, encoder, tokenizer, longest })
    }

    /// Numbers in a vector.
    pub fn dims(&self) -> usize {
        self.encoder.shape().width
    }

    /// Tokens of the longest text that is read whole.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// How tokens' vectors become a text's.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Memory of the weights, in bytes.
    pub fn bytes(&self) -> u64 {
        self.encoder.bytes()
    }

    /// The vectors of some texts, in their order, on the caller's thread. A text's vector does not depend on the others.
    ///
    /// # Errors
    /// [`EmbedError::Text`] with the place of a text that the tokenizer can't read.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Embedding>, EmbedError> {
        let mut tokens = Vec::with_capacity(texts.len());
        for (at, text) in texts.iter().enumerate() {
            let end = text.floor_char_boundary(self.longest.saturating_mul(BYTES_A_TOKEN));
            let problem = |error: tokenizers::Error| EmbedError::Text { at, problem: error.to_string() };
            let encoding = self.tokenizer.encode(&text[..end], true).map_err(problem)?;
            let cut = end < text.len() || !encoding.get_overflowing().is_empty();
            tokens.push((encoding.get_ids().to_vec(), cut));
        }
        let mut scratch = EncoderScratch::default();
        let mut done = Vec::with_capacity(texts.len());
        let mut rest = tokens.as_slice();
        while !rest.is_empty() {
            let mut sum = 0;
            let count = rest
                .iter()
                .take_while(|(ids, _)| {
                    sum += ids.len();
                    sum <= TOGETHER
                })
                .count()
                .max(1);
            let (now, later) = rest.split_at(count);
            self.together(now, &mut scratch, &mut done);
            rest = later;
        }
        Ok(done)
    }

    fn together(&self, texts: &[(Vec<u32>, bool)], scratch: &mut EncoderScratch, done: &mut Vec<Embedding>) {
        let ids: Vec<&[u32]> = texts.iter().map(|(ids, _)| ids.as_slice()).collect();
        let mut rows = self.encoder.encode(scratch, &ids).chunks_exact(self.dims());
        for (ids, cut) in texts {
            let mut vector = vec![0.0; self.dims()];
            for (at, row) in rows.by_ref().take(ids.len()).enumerate() {
                if at == 0 || self.pooling == Pooling::Mean {
                    vector.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
            }
            normalize(&mut vector);
            done.push(Embedding { vector, tokens: ids.len(), cut: *cut });
        }
    }
}

/// `tokenizer.json`, or what `vocab.txt` means for BERT.
fn tokenizer(path: &Path) -> Result<Tokenizer, EmbedError> {
    let whole = path.join("tokenizer.json");
    if whole.exists() {
        let problem = |error: tokenizers::Error| content(&whole, format!("is no tokenizer: {error}"));
        return Tokenizer::from_file(&whole).map_err(problem);
    }
    let vocabulary = path.join("vocab.txt");
    let text = read(&vocabulary)?;
    let text = String::from_utf8(text).map_err(|error| content(&vocabulary, format!("is not UTF-8: {error}")))?;
    let pieces: HashMap<&str, u32> = text.lines().zip(0..).collect();
    let special = |piece: &str| {
        let number = pieces.get(piece).copied();
        let number = number.ok_or_else(|| content(&vocabulary, format!("has no line {piece}")))?;
        Ok::<_, EmbedError>((piece.to_owned(), number))
    };
    let (begin, end, unknown) = (special("[CLS]")?, special("[SEP]")?, special("[UNK]")?);
    let config: Option<TokenizerFile> = optional(&path.join("tokenizer_config.json"))?;
    let (lower, strip) = config.map_or((true, None), |config| (config.do_lower_case, config.strip_accents));
    let problem = |error: tokenizers::Error| content(&vocabulary, format!("is no vocabulary: {error}"));
    let model = WordPiece::from_file(&vocabulary.to_string_lossy()).unk_token(unknown.0).build().map_err(problem)?;
    let mut tokenizer = Tokenizer::new(model);
    let normalizer = BertNormalizer::new(true, true, strip, lower);
    tokenizer.with_normalizer(Some(normalizer)).map_err(problem)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer)).with_post_processor(Some(BertProcessing::new(end, begin)));
    let marks = ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"].into_iter().filter(|mark| pieces.contains_key(mark));
    let marks: Vec<AddedToken> = marks.map(|mark| AddedToken::from(mark, true)).collect();
    tokenizer.add_special_tokens(marks).map_err(problem)?;
    Ok(tokenizer)
}

fn pooling(path: &Path) -> Result<Pooling, EmbedError> {
    let Some(file) = optional::<PoolingFile>(path)? else { return Ok(Pooling::Mean) };
    match (file.pooling_mode_cls_token, file.pooling_mode_mean_tokens) {
        (true, false) => Ok(Pooling::First),
        (false, true) => Ok(Pooling::Mean),
        _ => {
            let problem = "asks for a pooling that is neither the mean of tokens nor the first token alone";
            Err(content(path, problem.to_owned()))
        }
    }
}

/// A JSON file, if it is there.
fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, EmbedError> {
    match path.exists() {
        false => Ok(None),
        true => serde_json::from_slice(&read(path)?).map(Some).map_err(|error| content(path, error.to_string())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, EmbedError> {
    std::fs::read(path).map_err(|error| EmbedError::Io { file: shown(path), error })
}

fn content(path: &Path, problem: String) -> EmbedError {
    EmbedError::Content { file: shown(path), problem }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
