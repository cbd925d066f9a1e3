//! WordPiece, the tokenizer of BERT: lower case, accents taken off, punctuation and Chinese characters apart, then the longest
//! known piece again and again; continuations are written with `##`.
//!
//! Words of plain ASCII, nearly all, are matched in place. Others go through the `tokenizers` crate's rules, which know
//! Unicode; both ways give the same pieces, which a test compares.

use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

/// Characters of a word from which on it is unknown, as in BERT.
const LONGEST_WORD: usize = 100;
/// Bytes a word may have that is tried: a hundred of the longest characters.
const WORD_BYTES: usize = 4 * LONGEST_WORD;
/// Bytes that Unicode's rules are applied to at a time, so that a long text takes little memory.
const CHUNK: usize = 4096;
/// What is written before a piece that continues a word.
const CONTINUATION: &[u8] = b"##";
/// No piece here.
const FREE: u32 = u32::MAX;
/// FNV-1a of 32 bits: what it begins with for a piece that begins a word, and for one that continues it; and its factor.
const SEEDS: [u32; 2] = [0x811c_9dc5, 0x811c_9dc4];
const PRIME: u32 = 0x0100_0193;

/// Pieces and where to find them.
#[derive(Debug)]
pub struct WordPiece {
    /// All pieces, one after the other, continuations without their mark.
    bytes: Vec<u8>,
    /// Where each piece begins; one more for the end.
    starts: Vec<u32>,
    /// Whether each continues a word.
    continues: Vec<bool>,
    /// Numbers of pieces by hash; the next free place where one is taken.
    slots: Vec<u32>,
    /// Bytes of the longest piece.
    longest: usize,
}

/// Why a list of pieces is none.
#[derive(Debug, PartialEq, Eq)]
pub struct BadPiece {
    /// Which, from 0.
    pub number: usize,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl WordPiece {
    /// Takes pieces as vocabularies list them, continuations with `##`.
    ///
    /// # Errors
    /// The first piece that is empty or was there before.
    pub fn new<'text>(pieces: impl ExactSizeIterator<Item = &'text str>) -> Result<Self, BadPiece> {
        let slots = vec![FREE; (pieces.len() * 2).next_power_of_two().max(16)];
        let mut made = Self { bytes: Vec::new(), starts: vec![0], continues: Vec::new(), slots, longest: 0 };
        for (number, piece) in pieces.enumerate() {
            let stripped = piece.as_bytes().strip_prefix(CONTINUATION).filter(|rest| !rest.is_empty());
            let bytes = stripped.unwrap_or(piece.as_bytes());
            if bytes.is_empty() {
                return Err(BadPiece { number, problem: "is empty" });
            }
            let continues = stripped.is_some();
            let hash = bytes.iter().fold(SEEDS[usize::from(continues)], |hash, byte| step(hash, *byte));
            if made.find(hash, bytes, continues).is_some() {
                return Err(BadPiece { number, problem: "was there before" });
            }
            let mask = made.slots.len() - 1;
            let mut slot = hash as usize & mask;
            while made.slots[slot] != FREE {
                slot = (slot + 1) & mask;
            }
            made.slots[slot] = number as u32;
            made.bytes.extend(bytes);
            made.starts.push(made.bytes.len() as u32);
            made.continues.push(continues);
            made.longest = made.longest.max(bytes.len());
        }
        Ok(made)
    }

    /// Calls `each` with the number of each piece of a text, in order; with none for a word that can't be put together.
    /// Of words with other characters than ASCII's at most `unusual` are looked at; returns how many more could be.
    pub fn pieces(&self, text: &str, mut unusual: usize, mut each: impl FnMut(Option<u32>)) -> usize {
        for part in text.split([' ', '\n', '\t', '\r']) {
            if part.bytes().all(|byte| byte.is_ascii_graphic()) {
                self.ascii(part.as_bytes(), &mut each);
                continue;
            }
            let Some(left) = unusual.checked_sub(1) else { continue };
            unusual = left;
            let mut rest = part;
            while !rest.is_empty() {
                let (chunk, others) = rest.split_at(rest.floor_char_boundary(CHUNK));
                self.unicode(chunk, &mut each);
                rest = others;
            }
        }
        unusual
    }

    /// How many pieces there are.
    #[cfg(any(test, feature = "lab"))]
    pub fn len(&self) -> usize {
        self.continues.len()
    }

    /// A piece without its mark, and whether it continues a word.
    pub fn text(&self, piece: u32) -> (String, bool) {
        let at = piece as usize;
        let bytes = &self.bytes[self.starts[at] as usize..self.starts[at + 1] as usize];
        (String::from_utf8_lossy(bytes).into_owned(), self.continues[at])
    }

    /// The pieces as they were given.
    #[cfg(test)]
    pub fn to_vec(&self) -> Vec<String> {
        let mut pieces = Vec::new();
        for at in 0..self.len() as u32 {
            let (text, continues) = self.text(at);
            pieces.push(format!("{}{text}", if continues { "##" } else { "" }));
        }
        pieces
    }

    /// Words and punctuation without a space between them.
    fn ascii(&self, mut part: &[u8], each: &mut impl FnMut(Option<u32>)) {
        let mut lower = [0; LONGEST_WORD];
        while let Some(first) = part.first() {
            let length = match first.is_ascii_punctuation() {
                true => 1,
                false => part.iter().position(u8::is_ascii_punctuation).unwrap_or(part.len()),
            };
            let (word, rest) = part.split_at(length);
            match lower.get_mut(..length) {
                Some(lower) => {
                    lower.copy_from_slice(word);
                    lower.make_ascii_lowercase();
                    self.word(lower, each);
                }
                None => each(None),
            }
            part = rest;
        }
    }

    /// As [`WordPiece::ascii`] for any characters.
    fn unicode(&self, part: &str, each: &mut impl FnMut(Option<u32>)) {
        let mut normalized = NormalizedString::from(part);
        let rules = BertNormalizer::new(true, true, Some(true), true);
        // Neither rule has a way to fail; what could not be split would be unknown.
        if rules.normalize(&mut normalized).is_err() {
            return each(None);
        }
        let mut words = PreTokenizedString::from(normalized.get());
        if BertPreTokenizer.pre_tokenize(&mut words).is_err() {
            return each(None);
        }
        for (word, _, _) in words.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            match word.chars().count() > LONGEST_WORD {
                true => each(None),
                false => self.word(word.as_bytes(), each),
            }
        }
    }

    /// The pieces of one word in lower case, of at most [`WORD_BYTES`] bytes.
    fn word(&self, word: &[u8], each: &mut impl FnMut(Option<u32>)) {
        let mut found = [0; LONGEST_WORD];
        let mut count = 0;
        let mut from = 0;
        while from < word.len() {
            let Some((piece, length)) = self.longest_piece(&word[from..], from > 0) else { return each(None) };
            // Pieces end where characters do, so a word has no more pieces than characters.
            let Some(place) = found.get_mut(count) else { return each(None) };
            *place = piece;
            count += 1;
            from += length;
        }
        found[..count].iter().for_each(|piece| each(Some(*piece)));
    }

    /// The longest piece that `rest` begins with, and its bytes.
    fn longest_piece(&self, rest: &[u8], continues: bool) -> Option<(u32, usize)> {
        let mut hashes = [0; WORD_BYTES];
        let most = rest.len().min(self.longest).min(WORD_BYTES);
        let mut hash = SEEDS[usize::from(continues)];
        for (kept, byte) in hashes.iter_mut().zip(&rest[..most]) {
            hash = step(hash, *byte);
            *kept = hash;
        }
        (1..=most).rev().find_map(|end| Some((self.find(hashes[end - 1], &rest[..end], continues)?, end)))
    }

    fn find(&self, hash: u32, bytes: &[u8], continues: bool) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let piece = self.slots[slot];
            if piece == FREE {
                return None;
            }
            let at = piece as usize;
            let known = &self.bytes[self.starts[at] as usize..self.starts[at + 1] as usize];
            if known == bytes && self.continues[at] == continues {
                return Some(piece);
            }
            slot = (slot + 1) & mask;
        }
    }
}

fn step(hash: u32, byte: u8) -> u32 {
    (hash ^ u32::from(byte)).wrapping_mul(PRIME)
}
