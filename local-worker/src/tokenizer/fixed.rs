//! Tokens that stand in text as they are written: control tokens, and words that training set apart. Finds them the way
//! `tokenizers` does: the leftmost, of those the longest, each with the white space beside it that it swallows.

use std::ops::Range;

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};

/// A token that is never merged from others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FixedToken {
    pub text: String,
    pub id: u32,
    /// Plain text may contain it.
    pub plain: bool,
    /// It swallows white space before it.
    pub left: bool,
    /// It swallows white space after it.
    pub right: bool,
    /// It counts only where no letter stands beside it.
    pub whole_word: bool,
}

/// All of a vocabulary.
pub(super) struct Fixed {
    tokens: Vec<FixedToken>,
    /// In rendered text.
    all: AhoCorasick,
    /// In anybody's text, and whose tokens they are.
    plain: (AhoCorasick, Vec<usize>),
    /// Those that nobody may spell.
    control: AhoCorasick,
    firsts: [bool; 256],
}

impl Fixed {
    /// # Errors
    /// There are more than can be searched for.
    pub fn new(mut tokens: Vec<FixedToken>) -> Result<Self, String> {
        tokens.retain(|token| !token.text.is_empty());
        let search = |texts: Vec<&str>, start: StartKind| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .start_kind(start)
                .build(texts)
                .map_err(|error| format!("{} added tokens can't be searched for: {error}", tokens.len()))
        };
        let all = search(tokens.iter().map(|token| token.text.as_str()).collect(), StartKind::Unanchored)?;
        let own: Vec<usize> = (0..tokens.len()).filter(|at| tokens[*at].plain).collect();
        let plain = search(own.iter().map(|at| tokens[*at].text.as_str()).collect(), StartKind::Unanchored)?;
        let controls = || tokens.iter().filter(|token| !token.plain).map(|token| token.text.as_str());
        let control = search(controls().collect(), StartKind::Anchored)?;
        let mut firsts = [false; 256];
        controls().for_each(|text| firsts[usize::from(text.as_bytes()[0])] = true);
        Ok(Self { all, plain: (plain, own), control, firsts, tokens })
    }

    /// The text of a token.
    pub fn text(&self, id: u32) -> Option<&str> {
        self.tokens.iter().find(|token| token.id == id).map(|token| token.text.as_str())
    }

    /// Whether `text` begins with the name of a control token.
    pub fn control_at(&self, text: &str) -> bool {
        let first = text.as_bytes().first().is_some_and(|byte| self.firsts[usize::from(*byte)]);
        first && self.control.find(Input::new(text).anchored(Anchored::Yes)).is_some()
    }

    /// The same, but words that `structure` uses like control tokens are for it alone from now on: `<tool_call>` in a
    /// template means a call, in a message it is text.
    ///
    /// # Errors
    /// As [`Fixed::new`].
    pub fn reserved_for(self, structure: &str) -> Result<Self, String> {
        let marked = |text: &str| {
            let ends = [("<", ">"), ("[", "]")];
            text.len() > 2 && ends.iter().any(|(first, last)| text.starts_with(first) && text.ends_with(last))
        };
        let mut tokens = self.tokens;
        for token in &mut tokens {
            token.plain &= !(marked(&token.text) && structure.contains(&token.text));
        }
        Self::new(tokens)
    }

    /// The next token in `text` from `from` on, with the part of the text that it takes. `control` is whether control tokens
    /// count.
    pub fn next(&self, text: &str, from: usize, control: bool) -> Option<(u32, Range<usize>)> {
        let (search, own) = if control { (&self.all, None) } else { (&self.plain.0, Some(&self.plain.1)) };
        for found in search.find_iter(Input::new(text).range(from..)) {
            let number = found.pattern().as_usize();
            let token = self.tokens.get(own.map_or(number, |own| own[number]))?;
            let (before, after) = (&text[..found.start()], &text[found.end()..]);
            let letter = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
            if token.whole_word && (letter(before.chars().next_back()) || letter(after.chars().next())) {
                continue;
            }
            let start = if token.left { before.trim_end().len().max(from) } else { found.start() };
            let end = found.end() + if token.right { after.len() - after.trim_start().len() } else { 0 };
            return Some((token.id, start..end));
        }
        None
    }
}
