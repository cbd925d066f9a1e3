//! SentencePiece vocabularies as GGUF carries them (`tokenizer.ggml.model` = `llama`): pieces with scores. Neighbours are
//! joined as long as what they make is a piece, the best scored first; letters that are no piece become bytes.
//!
//! The order is that of SentencePiece's BPE (Sennrich et al. 2016 with scores for ranks), and of llama.cpp. Pieces that are
//! control tokens take no part, so text can't become one.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// How a space is written in a piece.
pub(super) const SPACE: char = '\u{2581}';

/// Pieces that text is made of.
pub(super) struct Pieces {
    /// Ids and scores of pieces.
    known: HashMap<Box<str>, (u32, f32)>,
    /// Tokens of single bytes.
    bytes: Vec<Option<u32>>,
    /// What stands for a byte that has no token.
    unknown: Option<u32>,
    /// A text, and what follows a control token, begins with a space of its own.
    prefix: bool,
}

/// A run of text that is a piece or a letter.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: usize,
    /// Equal to `start` once it was joined to the one before.
    end: usize,
    before: usize,
    after: usize,
}

/// No run.
const NONE: usize = usize::MAX;

/// Two neighbours that would make a piece.
#[derive(Debug, Clone, Copy)]
struct Join {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Join {}

impl Pieces {
    /// `pieces` are those that text may become, `bytes` the tokens of 256 bytes.
    ///
    /// # Errors
    /// Some texts could not be tokens at all.
    pub fn new(
        pieces: impl Iterator<Item = (Box<str>, u32, f32)>,
        bytes: Vec<Option<u32>>,
        unknown: Option<u32>,
        prefix: bool,
    ) -> Result<Self, String> {
        if unknown.is_none() && bytes.iter().any(Option::is_none) {
            return Err("it has neither a token for each byte nor one for what is unknown".to_owned());
        }
        let known = pieces.map(|(piece, id, score)| (piece, (id, score))).collect();
        Ok(Self { known, bytes, unknown, prefix })
    }

    /// Tokens of a text; `opens` if it begins one or follows a control token.
    pub fn encode(&self, text: &str, opens: bool, tokens: &mut Vec<u32>) {
        let mut spaced = String::with_capacity(text.len() + 8);
        if opens && self.prefix {
            spaced.push(SPACE);
        }
        spaced.extend(text.chars().map(|letter| if letter == ' ' { SPACE } else { letter }));
        for run in self.joined(&spaced) {
            let piece = &spaced[run.start..run.end];
            match self.known.get(piece) {
                Some((id, _)) => tokens.push(*id),
                None => tokens.extend(
                    piece
                        .bytes()
                        .filter_map(|byte| self.bytes.get(usize::from(byte)).copied().flatten().or(self.unknown)),
                ),
            }
        }
    }

    /// The runs that are left when nothing can be joined any more.
    fn joined(&self, text: &str) -> impl Iterator<Item = Run> + use<> {
        let mut runs: Vec<Run> = text
            .char_indices()
            .enumerate()
            .map(|(number, (at, letter))| Run {
                start: at,
                end: at + letter.len_utf8(),
                before: number.checked_sub(1).unwrap_or(NONE),
                after: number + 1,
            })
            .collect();
        if let Some(last) = runs.last_mut() {
            last.after = NONE;
        }
        let mut joins = BinaryHeap::new();
        for right in 1..runs.len() {
            joins.extend(self.join(text, &runs, right - 1, right));
        }
        while let Some(Join { left, right, length, .. }) = joins.pop() {
            let (one, other) = (runs[left], runs[right]);
            // One of them has been joined to another since.
            if one.start == one.end || other.start == other.end || other.end - one.start != length || one.after != right
            {
                continue;
            }
            runs[left] = Run { end: other.end, after: other.after, ..one };
            runs[right].end = other.start;
            if let Some(next) = runs.get_mut(other.after) {
                next.before = left;
                joins.extend(self.join(text, &runs, left, other.after));
            }
            if one.before != NONE {
                joins.extend(self.join(text, &runs, one.before, left));
            }
        }
        runs.into_iter().filter(|run| run.start < run.end)
    }

    fn join(&self, text: &str, runs: &[Run], left: usize, right: usize) -> Option<Join> {
        let (start, end) = (runs.get(left)?.start, runs.get(right)?.end);
        let (_, score) = self.known.get(text.get(start..end)?)?;
        Some(Join { score: *score, left, right, length: end - start })
    }
}
