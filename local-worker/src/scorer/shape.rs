//! Shapes of a text that trees split on: how long its parts are, which numbers it holds, a few telling words.
//!
//! They differ from the surface features in that nothing is squashed: trees only compare. One pass over the excerpt, no
//! allocation. Names are shown by Explain.

use super::excerpt::pieces;
use super::{Speaker, Turn};

/// How many shapes there are.
pub(super) const SHAPES: usize = NAMES.len();

const NAMES: [&str; 56] = [
    "length",
    "words",
    "word length",
    "longest word",
    "numbers",
    "different numbers",
    "largest number",
    "size of numbers",
    "fractions in decimals",
    "lines",
    "options",
    "length of options",
    "longest option",
    "shortest option",
    "spread of options",
    "length before options",
    "sentences",
    "sentence length",
    "longest sentence",
    "capitalised words",
    "share of capitalised words",
    "question marks",
    "commas",
    "percent signs",
    "dollar signs",
    "parentheses",
    "brackets",
    "math symbols",
    "colons",
    "quotes",
    "apostrophes",
    "hyphens",
    "non-ascii",
    "different words",
    "long words",
    "short words",
    "\"if\"",
    "\"each\"",
    "\"half\"",
    "\"twice\" or \"times\"",
    "\"percent\"",
    "\"many\"",
    "\"much\"",
    "\"more\" or \"less\"",
    "\"than\"",
    "what is left",
    "\"total\"",
    "\"not\"",
    "\"except\"",
    "\"which\"",
    "spans of time",
    "\"true\" or \"false\"",
    "\"following\"",
    "underscores",
    "semicolons and backticks",
    "words of programs",
];

/// First of the shapes that count words.
const CUES: usize = 36;

/// The cue a lower-case word belongs to, counted from [`CUES`].
fn cue(word: &[u8]) -> Option<usize> {
    Some(match word {
        b"if" => 0,
        b"each" | b"every" => 1,
        b"half" => 2,
        b"twice" | b"times" => 3,
        b"percent" => 4,
        b"many" => 5,
        b"much" => 6,
        b"more" | b"less" | b"fewer" => 7,
        b"than" => 8,
        b"remain" | b"remains" | b"remaining" | b"left" => 9,
        b"total" => 10,
        b"not" => 11,
        b"except" => 12,
        b"which" => 13,
        b"hour" | b"hours" | b"minute" | b"minutes" | b"day" | b"days" | b"week" | b"weeks" => 14,
        b"true" | b"false" => 15,
        b"following" => 16,
        b"def" | b"return" | b"assert" | b"function" | b"class" | b"import" | b"list" | b"string" => 19,
        _ => return None,
    })
}

/// Short words for a shape; empty past the last.
pub(super) fn name(place: usize) -> &'static str {
    NAMES.get(place).copied().unwrap_or_default()
}

/// The shapes of a conversation's excerpt, system prompts left out where anything else is there.
pub(super) fn shapes(turns: &[Turn<'_>]) -> [f32; SHAPES] {
    let mut reader = Reader::new();
    let others = turns.iter().any(|turn| turn.speaker != Speaker::System);
    let mut bytes = 0;
    for turn in turns {
        bytes += turn.text.len();
    }
    pieces(turns, |piece| {
        if others && turns.get(piece.turn).is_some_and(|turn| turn.speaker == Speaker::System) {
            return;
        }
        reader.piece(piece.text.as_bytes());
    });
    reader.shapes(bytes)
}

const LONG_WORD: usize = 8;
const SHORT_WORD: usize = 4;

/// Words longer than this are no cues.
const LONGEST_CUE: usize = 12;

struct Reader {
    counts: [u32; SHAPES],
    words: u32,
    letters: u32,
    capitalised: u32,
    long: u32,
    short: u32,
    /// Bits that words and numbers hash to: how many are set tells how many different ones there were.
    different_words: [u64; 16],
    different_numbers: [u64; 4],
    largest: f32,
    magnitudes: f32,
    options: Spread,
    sentences: Spread,
    before_options: Option<u32>,
    characters: u32,
}

/// Count, sum, squares and ends of some lengths.
#[derive(Default)]
struct Spread {
    count: f32,
    sum: f32,
    squares: f32,
    least: Option<f32>,
    most: f32,
}

impl Spread {
    fn add(&mut self, length: u32) {
        let length = length as f32;
        self.count += 1.0;
        self.sum += length;
        self.squares += length * length;
        self.least = Some(self.least.map_or(length, |least| least.min(length)));
        self.most = self.most.max(length);
    }

    fn mean(&self) -> f32 {
        self.sum / self.count.max(1.0)
    }

    fn deviation(&self) -> f32 {
        (self.squares / self.count.max(1.0) - self.mean() * self.mean()).max(0.0).sqrt()
    }
}

impl Reader {
    fn new() -> Self {
        Self {
            counts: [0; SHAPES],
            words: 0,
            letters: 0,
            capitalised: 0,
            long: 0,
            short: 0,
            different_words: [0; 16],
            different_numbers: [0; 4],
            largest: 0.0,
            magnitudes: 0.0,
            options: Spread::default(),
            sentences: Spread::default(),
            before_options: None,
            characters: 0,
        }
    }

    fn piece(&mut self, text: &[u8]) {
        let (mut place, mut sentence, mut line) = (0, 0_usize, 0_usize);
        self.counts[9] += 1;
        while let Some(&byte) = text.get(place) {
            if line == place {
                self.line(text.get(place..).unwrap_or_default());
            }
            let rest = text.get(place..).unwrap_or_default();
            place += match byte {
                b'a'..=b'z' | b'A'..=b'Z' => self.word(rest),
                b'0'..=b'9' => self.number(rest),
                _ => {
                    self.sign(byte);
                    1
                }
            };
            if byte == b'\n' {
                line = place;
            }
            let ends = matches!(byte, b'.' | b'?' | b'!') && text.get(place).is_none_or(u8::is_ascii_whitespace);
            if ends {
                self.sentences.add((place - sentence) as u32);
                sentence = place;
            }
        }
        if place > sentence {
            self.sentences.add((place - sentence) as u32);
        }
        self.characters += text.len() as u32;
    }

    /// Whether an option begins here, such as `A.` or `(3)`, and how long it is.
    fn line(&mut self, rest: &[u8]) {
        let inside = rest.strip_prefix(b"(").unwrap_or(rest);
        let mark = matches!(inside, [b'A'..=b'J' | b'1'..=b'9', b'.' | b')', ..]);
        if mark {
            let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            self.options.add(length as u32);
        } else if self.options.count == 0.0 {
            let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            *self.before_options.get_or_insert(0) += length as u32;
        }
    }

    /// Takes a word and gives its length.
    fn word(&mut self, rest: &[u8]) -> usize {
        let mut lower = [0; LONGEST_CUE];
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut length = 0;
        for byte in rest {
            // Sets the bit that tells lower from upper case; the apostrophe has it already.
            let folded = byte | 0x20;
            if !(folded.is_ascii_lowercase() || *byte == b'\'') {
                break;
            }
            hash = (hash ^ u64::from(folded)).wrapping_mul(0x0100_0000_01b3);
            if let Some(slot) = lower.get_mut(length) {
                *slot = folded;
            }
            length += 1;
        }
        self.words += 1;
        self.letters += length as u32;
        self.capitalised += u32::from(rest.first().is_some_and(u8::is_ascii_uppercase));
        self.long += u32::from(length > LONG_WORD);
        self.short += u32::from(length < SHORT_WORD);
        self.counts[3] = self.counts[3].max(length as u32);
        self.different_words[(hash >> 60) as usize] |= 1 << ((hash >> 54) & 63);
        if let Some(cue) = lower.get(..length).and_then(cue) {
            self.counts[CUES + cue] += 1;
        }
        length
    }

    /// Takes a number and gives its length.
    fn number(&mut self, rest: &[u8]) -> usize {
        let inside = |(place, byte): (usize, &u8)| {
            let joins = matches!(byte, b'.' | b',') && rest.get(place + 1).is_some_and(u8::is_ascii_digit);
            byte.is_ascii_digit() || joins
        };
        let length = rest.iter().enumerate().position(|at| !inside(at)).unwrap_or(rest.len());
        let (mut value, mut scale, mut hash) = (0.0_f32, 0.0_f32, 0xcbf2_9ce4_8422_2325_u64);
        for byte in rest.iter().take(length) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            match byte {
                b'.' => scale = 1.0,
                b',' => {}
                digit if scale == 0.0 => value = (value * 10.0 + f32::from(digit - b'0')).min(1e30),
                digit => {
                    scale /= 10.0;
                    value += scale * f32::from(digit - b'0');
                }
            }
        }
        self.counts[4] += 1;
        self.counts[8] += u32::from(scale > 0.0);
        self.different_numbers[(hash >> 62) as usize] |= 1 << ((hash >> 56) & 63);
        self.largest = self.largest.max(value);
        self.magnitudes += value.ln_1p();
        length
    }

    fn sign(&mut self, byte: u8) {
        let place = match byte {
            b'\n' => 9,
            b'?' => 21,
            b',' => 22,
            b'%' => 23,
            b'$' => 24,
            b'(' | b')' => 25,
            b'[' | b']' | b'{' | b'}' => 26,
            b'+' | b'*' | b'/' | b'=' | b'<' | b'>' | b'^' | b'\\' => 27,
            b':' => 28,
            b'"' => 29,
            b'\'' => 30,
            b'-' => 31,
            0x80.. => 32,
            b'_' => 53,
            b';' | b'`' => 54,
            _ => return,
        };
        self.counts[place] += 1;
    }

    fn shapes(&self, bytes: usize) -> [f32; SHAPES] {
        let mut shapes = self.counts.map(|count| count as f32);
        let words = self.words.max(1) as f32;
        let different = |bits: &[u64]| {
            let (slots, set) =
                ((bits.len() * 64) as f32, bits.iter().map(|word| word.count_ones()).sum::<u32>() as f32);
            // How many names set so many bits on average.
            -slots * (1.0 - set.min(slots - 1.0) / slots).ln()
        };
        let before = match self.options.count {
            0.0 => self.characters,
            _ => self.before_options.unwrap_or(0),
        };
        let set = [
            (0, bytes as f32),
            (1, self.words as f32),
            (2, self.letters as f32 / words),
            (5, different(&self.different_numbers)),
            (6, self.largest),
            (7, self.magnitudes / shapes[4].max(1.0)),
            (10, self.options.count),
            (11, self.options.mean()),
            (12, self.options.most),
            (13, self.options.least.unwrap_or(0.0)),
            (14, self.options.deviation()),
            (15, before as f32),
            (16, self.sentences.count),
            (17, self.sentences.mean()),
            (18, self.sentences.most),
            (19, self.capitalised as f32),
            (20, self.capitalised as f32 / words),
            (33, different(&self.different_words) / words),
            (34, self.long as f32 / words),
            (35, self.short as f32 / words),
        ];
        for (place, value) in set {
            shapes[place] = value;
        }
        shapes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, f32)]) {
        let shapes = shapes(&[Turn::user(text)]);
        for (wanted, value) in expected {
            let place = NAMES.iter().position(|name| name == wanted).unwrap();
            assert!((shapes[place] - value).abs() < 0.06 * value.max(1.0), "{wanted}: {} not {value}", shapes[place]);
        }
    }

    #[test]
    fn shapes_are_those_of_the_text() {
        check(
            "Ada has 12 eggs, eats 1,200.5 more than half each day. How many are left?",
            &[
                ("numbers", 2.0),
                ("different numbers", 2.0),
                ("largest number", 1200.5),
                ("fractions in decimals", 1.0),
                ("sentences", 2.0),
                ("question marks", 1.0),
                ("\"each\"", 1.0),
                ("\"half\"", 1.0),
                ("\"more\" or \"less\"", 1.0),
                ("\"many\"", 1.0),
                ("what is left", 1.0),
                ("spans of time", 1.0),
                ("capitalised words", 2.0),
                ("words", 13.0),
            ],
        );
        check(
            "Which of the following is not true?\nA. one\nB. three\nC. two\nAnswer:",
            &[
                ("options", 3.0),
                ("shortest option", 6.0),
                ("longest option", 8.0),
                ("length before options", 35.0),
                ("lines", 5.0),
                ("\"not\"", 1.0),
                ("\"true\" or \"false\"", 1.0),
            ],
        );
        check("", &[("words", 0.0), ("numbers", 0.0), ("sentence length", 0.0)]);
    }

    #[test]
    fn system_prompts_are_not_what_is_asked() {
        let system = Turn { speaker: Speaker::System, text: "One 1 two 2 three 3." };
        let both = shapes(&[system, Turn::user("four 4")]);
        assert_eq!((both[4], both[1]), (1.0, 1.0));
        assert_eq!(shapes(&[system])[4], 3.0);
    }

    proptest! {
        #[test]
        fn any_text_has_finite_shapes(text in ".{0,300}", digits in "[0-9.,]{0,80}") {
            let shapes = shapes(&[Turn::user(&text), Turn::user(&digits)]);
            prop_assert!(shapes.iter().all(|value| value.is_finite()));
        }
    }
}
