//! Text to tokens and back, by the vocabulary that a GGUF file carries (byte-level BPE, SentencePiece pieces with scores) or a
//! directory's `tokenizer.json` through the `tokenizers` crate. Knows nothing of conversations.
//!
//! Control tokens are never made of plain text: only [`Tokenizer::encode_marked`] knows them, and its caller marks what is
//! a stranger's text.

mod beside;
mod fixed;
mod folder;
mod gguf;
mod pieces;
mod pipeline;
mod stream;

use fixed::Fixed;
use pieces::Pieces;
use pipeline::Pipeline;

pub(crate) use beside::Beside;
pub(crate) use folder::Described;
pub(crate) use gguf::{GPT_4O, LLAMA_3, QWEN_2};
pub use stream::TextStream;

/// Names of control tokens that end a turn in some family, whatever the file says of them.
const ENDINGS: [&str; 7] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "</s>"];

/// Bytes of a long text that are tokenised at a time.
const PIECE: usize = 16 * 1024;
/// Bytes that are tokenised at a time at most.
const LONGEST_PIECE: usize = 64 * 1024;

/// A vocabulary and its rules.
pub struct Tokenizer {
    words: Words,
    fixed: Fixed,
    /// What each token contributes to text; nothing for control tokens.
    bytes: Vec<Box<[u8]>>,
    /// Tokens that must not come of plain text.
    control: Vec<bool>,
    ends: Vec<bool>,
    begin: Option<u32>,
    end: Option<u32>,
    names: (String, String),
    /// Whether the first space of an answer is an artefact.
    drops_space: bool,
    longest: usize,
}

/// How plain text becomes tokens.
enum Words {
    Pipeline(Box<Pipeline>),
    Pieces(Pieces),
}

/// What a vocabulary's file says, whatever its form.
struct Parts {
    words: Words,
    fixed: Vec<fixed::FixedToken>,
    bytes: Vec<Box<[u8]>>,
    ends: Vec<bool>,
    begin: Option<u32>,
    end: Option<u32>,
    names: (String, String),
    drops_space: bool,
    /// What stands for text that no other token is made of; plain text may well become that.
    unknown: Option<u32>,
}

/// Where a text stands among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    AfterToken,
    Middle,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Tokenizer of {} tokens", self.bytes.len())
    }
}

impl Tokenizer {
    fn new(parts: Parts) -> Result<Self, String> {
        let Parts { words, mut fixed, bytes, ends, begin, end, names, drops_space, unknown } = parts;
        // Some files count what ends an answer among the words that anybody may write.
        for token in &mut fixed {
            token.plain &= !ends.get(token.id as usize).copied().unwrap_or(false);
        }
        let mut control = vec![false; bytes.len()];
        for token in fixed.iter().filter(|token| !token.plain && Some(token.id) != unknown) {
            if let Some(control) = control.get_mut(token.id as usize) {
                *control = true;
            }
        }
        let longest = bytes.iter().map(|bytes| bytes.len()).max().unwrap_or(1).max(1);
        Ok(Self { words, fixed: Fixed::new(fixed)?, bytes, control, ends, begin, end, names, drops_space, longest })
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

    /// Whether the space that a text's first token begins with is none of the text's: such vocabularies put one before every
    /// text.
    pub fn drops_first_space(&self) -> bool {
        self.drops_space
    }

    /// Tokens `text` takes at least.
    pub fn least_tokens(&self, text: &str) -> usize {
        text.len() / self.longest
    }

    /// Whether `text` begins with the name of a control token.
    pub fn control_at(&self, text: &str) -> bool {
        self.fixed.control_at(text)
    }

    /// Counts added words as control tokens where they look like it and stand in the chat template: a message that spells
    /// `<tool_call>` is no call.
    ///
    /// # Errors
    /// There are more than can be searched for.
    pub fn reserve_for(mut self, template: &str) -> Result<Self, String> {
        self.fixed = self.fixed.reserved_for(template)?;
        Ok(self)
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
        let (mut at, mut place) = (0, Place::Start);
        while at < text.len() && tokens.len() <= rules.most {
            let found = self.fixed.next(text, at, rules.control);
            let (from, to) = found.as_ref().map_or((text.len(), text.len()), |(_, range)| (range.start, range.end));
            let between = &text[at..from];
            match rules.marker {
                Some(marker) => self.encode_text(&between.replace(marker, ""), place, rules.most, tokens)?,
                None => self.encode_text(between, place, rules.most, tokens)?,
            }
            tokens.extend(found.map(|(id, _)| id));
            (at, place) = (to, Place::AfterToken);
        }
        Ok(())
    }

    /// Long texts go piece by piece, so that a text far too long is not split to its end.
    fn encode_text(&self, mut text: &str, mut place: Place, most: usize, tokens: &mut Vec<u32>) -> Result<(), String> {
        while !text.is_empty() && tokens.len() <= most {
            let (piece, rest) = text.split_at(piece_end(text));
            let from = tokens.len();
            self.encode_piece(piece, place, tokens)?;
            if tokens[from..].iter().any(|token| self.is_control(*token)) {
                self.spell_out(from, tokens)?;
            }
            (text, place) = (rest, Place::Middle);
        }
        Ok(())
    }

    fn encode_piece(&self, text: &str, place: Place, tokens: &mut Vec<u32>) -> Result<(), String> {
        match &self.words {
            Words::Pipeline(pipeline) => pipeline.encode(text, place, tokens),
            Words::Pieces(pieces) => {
                pieces.encode(text, place != Place::Middle, tokens);
                Ok(())
            }
        }
    }

    fn is_control(&self, token: u32) -> bool {
        self.control.get(token as usize).copied().unwrap_or(false)
    }

    /// Merges that lead to the name of a control token are undone letter by letter.
    fn spell_out(&self, from: usize, tokens: &mut Vec<u32>) -> Result<(), String> {
        for token in tokens.split_off(from) {
            match self.fixed.text(token).filter(|_| self.is_control(token)) {
                None => tokens.push(token),
                Some(name) => {
                    for letter in name.chars() {
                        self.encode_piece(letter.encode_utf8(&mut [0; 4]), Place::Middle, tokens)?;
                    }
                }
            }
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
/// letters, and no piece of the families here goes on after a space. A text without such a place in [`LONGEST_PIECE`], no
/// natural one, is cut there, where a token may then differ.
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

#[cfg(test)]
mod tests;
