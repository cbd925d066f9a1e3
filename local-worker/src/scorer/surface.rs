//! Surface features: what a text looks like, whatever it says.
//!
//! Each value is squashed into about `[0, 1]` by a fixed formula, so that nothing has to be fitted or stored with it and an
//! odd text cannot dominate the score. Names are short words because Explain shows them.

/// How many surface features there are, the bias included.
pub(super) const SURFACE: usize = NAMES.len();

/// Place of the length of the conversation.
pub(super) const LENGTH: usize = 1;

const NAMES: [&str; 36] = [
    "bias",
    "length",
    "length of last turn",
    "turns",
    "system prompt",
    "earlier answers",
    "tool results",
    "words",
    "word length",
    "digits",
    "capitals",
    "punctuation",
    "math symbols",
    "brackets",
    "non-ascii",
    "newlines",
    "question marks",
    "ends with a question",
    "ends with a colon",
    "quotes",
    "colons",
    "code fence",
    "numbered options",
    "label list",
    "long label list",
    "many digits",
    "many newlines",
    "many questions",
    "up to 32 bytes",
    "up to 64 bytes",
    "up to 128 bytes",
    "up to 256 bytes",
    "up to 512 bytes",
    "up to 1024 bytes",
    "up to 4096 bytes",
    "over 4096 bytes",
];

/// Kinds of characters that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    Lower,
    Upper,
    Digit,
    Space,
    Newline,
    Question,
    Math,
    Bracket,
    Quote,
    Colon,
    Separator,
    Backtick,
    Punctuation,
    NonAscii,
}

const CLASSES: usize = 14;

impl Class {
    /// The kind of an ASCII character; anything else is [`Class::NonAscii`].
    pub(super) const fn of(byte: u8) -> Self {
        match byte {
            b'a'..=b'z' => Class::Lower,
            b'A'..=b'Z' => Class::Upper,
            b'0'..=b'9' => Class::Digit,
            b'\n' => Class::Newline,
            b'?' => Class::Question,
            b'+' | b'*' | b'/' | b'=' | b'<' | b'>' | b'^' | b'%' | b'\\' | b'$' => Class::Math,
            b'(' | b')' | b'[' | b']' | b'{' | b'}' => Class::Bracket,
            b'"' => Class::Quote,
            b':' => Class::Colon,
            b',' | b';' | b'|' => Class::Separator,
            b'`' => Class::Backtick,
            0..=b' ' | 0x7f => Class::Space,
            0x80.. => Class::NonAscii,
            _ => Class::Punctuation,
        }
    }
}

/// Running counts over an excerpt, and the lengths of the whole conversation.
#[derive(Debug, Clone, Default)]
pub(super) struct Surface {
    /// Bytes of the whole conversation.
    pub bytes: usize,
    /// Bytes of the turn that asks.
    pub last_bytes: usize,
    /// Turns by speaker: system, user, assistant, tool.
    pub turns: [usize; 4],
    /// Words in the excerpt.
    pub words: u32,
    /// Last character of the turn that asks that is not white space.
    pub end: Option<char>,
    /// Characters in the excerpt so far.
    characters: u32,
    /// By class; lower-case letters are those that no other class has.
    counts: [u32; CLASSES],
    backticks: u32,
    fences: u32,
    options: u32,
    /// Where the running line began, and whether it may begin with a mark.
    line: u32,
    bullet: bool,
    /// Where the running list item began, and items in the running and in the longest list of short items.
    item: u32,
    items: u32,
    most_items: u32,
}

/// Items longer than this do not look like labels.
const LONGEST_LABEL: u32 = 28;

impl Surface {
    /// Counts one character.
    #[inline(always)]
    pub(super) fn count(&mut self, class: Class) {
        self.characters += 1;
        // Most are these, and nothing hangs on where one stands.
        if class != Class::Lower {
            self.rarer(class);
        }
    }

    /// Counts a character that is no lower-case letter.
    #[inline(always)]
    fn rarer(&mut self, class: Class) {
        self.counts[class as usize] += 1;
        match class {
            Class::Newline | Class::Separator | Class::Backtick | Class::Question => self.shape(class),
            _ if self.characters - self.line <= 2 => self.line_start(class),
            _ => {}
        }
    }

    /// Lists and fences: rare characters only.
    fn shape(&mut self, class: Class) {
        match class {
            Class::Separator => {
                let short = (2..=LONGEST_LABEL).contains(&(self.characters - self.item));
                self.items = if short { self.items + 1 } else { 0 };
                self.most_items = self.most_items.max(self.items);
                self.item = self.characters;
            }
            Class::Backtick => {
                self.backticks += 1;
                self.fences += u32::from(self.backticks.is_multiple_of(3));
            }
            _ => {
                self.items = 0;
                self.item = self.characters;
                self.line = self.characters;
                self.bullet = false;
            }
        }
    }

    /// "A." or "1)" or "- " at the start of a line.
    fn line_start(&mut self, class: Class) {
        if self.characters - self.line == 1 {
            self.bullet = matches!(class, Class::Upper | Class::Digit | Class::Punctuation | Class::Math);
        } else if self.bullet && matches!(class, Class::Punctuation | Class::Bracket | Class::Space) {
            self.options += 1;
        }
    }

    /// A new piece begins: nothing runs on from the one before.
    pub(super) fn start_piece(&mut self) {
        self.line = self.characters;
        self.bullet = false;
        self.item = self.characters;
        self.items = 0;
        self.backticks = 0;
    }

    /// The features, in the order of [`name`].
    pub(super) fn values(&self) -> [f32; SURFACE] {
        let others: u32 = self.counts.iter().sum();
        let count = |class: Class| match class {
            Class::Lower => self.characters - others,
            _ => self.counts[class as usize],
        };
        let characters = self.characters.max(1) as f32;
        let share = |class: Class| count(class) as f32 / characters;
        let many = |class: Class, least: u32| f32::from(u8::from(count(class) >= least));
        let yes = |fact: bool| f32::from(u8::from(fact));
        let letters = count(Class::Lower) + count(Class::Upper) + count(Class::NonAscii);
        let bucket = [32, 64, 128, 256, 512, 1024, 4096].iter().position(|limit| self.bytes <= *limit).unwrap_or(7);
        let length = |place: usize| yes(place == bucket);
        let turns = self.turns.iter().sum::<usize>() as u32;
        [
            1.0,
            squash(self.bytes as u32, 12.0),
            squash(self.last_bytes as u32, 12.0),
            squash(turns, 4.0),
            yes(self.turns[0] > 0),
            squash(self.turns[2] as u32, 4.0),
            squash(self.turns[3] as u32, 4.0),
            squash(self.words, 10.0),
            (letters as f32 / self.words.max(1) as f32 / 12.0).min(1.0),
            share(Class::Digit),
            share(Class::Upper),
            share(Class::Punctuation),
            share(Class::Math),
            share(Class::Bracket),
            share(Class::NonAscii),
            squash(count(Class::Newline), 6.0),
            squash(count(Class::Question), 4.0),
            yes(matches!(self.end, Some('?' | '？' | '؟'))),
            yes(matches!(self.end, Some(':' | '：'))),
            squash(count(Class::Quote), 5.0),
            squash(count(Class::Colon), 5.0),
            squash(self.fences, 3.0),
            squash(self.options, 4.0),
            squash(self.most_items, 4.0),
            yes(self.most_items >= 8),
            many(Class::Digit, 12),
            many(Class::Newline, 8),
            many(Class::Question, 2),
            length(0),
            length(1),
            length(2),
            length(3),
            length(4),
            length(5),
            length(6),
            length(7),
        ]
    }
}

/// Short word for a surface feature; empty past the last.
pub(super) fn name(place: usize) -> &'static str {
    NAMES.get(place).copied().unwrap_or_default()
}

/// Logarithm, scaled so that `e^full` gives 1, and cut there.
fn squash(count: u32, full: f32) -> f32 {
    ((count as f32).ln_1p() / full).min(1.0)
}
