//! Hashed features: word 1–2-grams and character 3–5-grams, by the place they stand in.
//!
//! The turn that asks has its own namespace and so has each speaker's context, because "translate" in the question means
//! something else than in a system prompt. Characters are lower-cased, digits become one digit and runs of white space one
//! space. Everything runs over the text once and allocates nothing; what happens with a feature is up to the [`Sink`].

use super::excerpt::{Piece, pieces};
use super::surface::{Class, Surface};
use super::{Speaker, Turn};

/// Groups of hashed features, each normalised by itself: words and characters of the asking turn, then of the context.
pub(super) const GROUPS: usize = 4;

/// Changes whenever text maps to other slots or values than before; files of another version are refused.
pub(super) const FEATURES_VERSION: u32 = 1;

/// What is done with features.
pub(super) trait Sink {
    /// Features of one group fall into these slots.
    fn slots<const N: usize>(&mut self, group: usize, slots: [usize; N]);

    /// The slots since the last call belong to this word of this group of words; the word may be empty.
    #[inline(always)]
    fn word(&mut self, _word: &str) {}
}

/// Runs over the excerpt of a conversation; slots are below `1 << bits`.
pub(super) fn visit<S: Sink>(turns: &[Turn<'_>], bits: u32, sink: &mut S) -> Surface {
    let asking = turns.iter().rposition(|turn| turn.speaker == Speaker::User).or(turns.len().checked_sub(1));
    let mut surface = Surface::default();
    for turn in turns {
        surface.bytes += turn.text.len();
        surface.turns[turn.speaker as usize] += 1;
    }
    if let Some(turn) = asking.and_then(|asking| turns.get(asking)) {
        surface.last_bytes = turn.text.len();
        surface.end = turn.text.trim_end().chars().next_back();
    }
    pieces(turns, |piece| {
        let asks = Some(piece.turn) == asking;
        let space = match (asks, turns.get(piece.turn)) {
            (false, Some(turn)) => 1 + turn.speaker as u64,
            _ => 0,
        };
        let place = Place::new(if asks { 0 } else { 2 }, mix(space + 1), bits);
        piece_features(piece, place, &mut surface, sink);
    });
    surface
}

/// Where a piece's features go.
#[derive(Clone, Copy)]
struct Place {
    /// Group of its words; the next group is that of its characters.
    words: usize,
    /// What is added to a hash, by the kind of feature.
    seeds: [u64; KINDS],
    shift: u32,
}

/// Kinds of features: words, pairs of words, three to five characters; 0 is none.
const KINDS: usize = 6;

impl Place {
    fn new(words: usize, seed: u64, bits: u32) -> Self {
        Self { words, seeds: std::array::from_fn(|kind| seed.wrapping_mul(kind as u64)), shift: 64 - bits }
    }

    #[inline(always)]
    fn slot<const KIND: usize>(&self, hash: u64) -> usize {
        let hash = hash.wrapping_add(self.seeds[KIND]);
        let hash = (hash ^ (hash >> 32)).wrapping_mul(FINISH);
        (hash >> self.shift) as usize
    }
}

// Odd constants with their bits spread: fractions of the golden ratio and of square roots of small primes.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
const WORD: u64 = 0xBB67_AE85_84CA_A73B;
const PAIR: u64 = 0x3C6E_F372_FE94_F82B;
const FINISH: u64 = 0xA54F_F53A_5F1D_36F1;

/// Spreads a small number over 64 bits.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_mul(STEP);
    (number ^ (number >> 29)).wrapping_mul(WORD) | 1
}

/// Words longer than this are cut, so that text without spaces still gives words.
const LONGEST_WORD: u32 = 32;

fn piece_features<S: Sink>(piece: Piece<'_>, place: Place, surface: &mut Surface, sink: &mut S) {
    surface.start_piece();
    let text = piece.text;
    let blank = u64::from(b' ');
    let (mut two, mut three, mut four) = (blank, blank, blank);
    let mut before = blank;
    let (mut word, mut last_word, mut length, mut start) = (0_u64, 0_u64, 0_u32, 0_usize);
    for (at, character) in text.char_indices() {
        let folded = fold(character);
        surface.count(folded.class);
        let code = u64::from(folded.code);
        if code == blank && before == blank {
            start = at + 1;
            continue;
        }
        let five_hash = four.wrapping_mul(STEP).wrapping_add(code);
        let four_hash = three.wrapping_mul(STEP).wrapping_add(code);
        let three_hash = two.wrapping_mul(STEP).wrapping_add(code);
        two = before.wrapping_mul(STEP).wrapping_add(code);
        (three, four, before) = (three_hash, four_hash, code);
        let slots = [place.slot::<3>(three_hash), place.slot::<4>(four_hash), place.slot::<5>(five_hash)];
        sink.slots(place.words + 1, slots);
        if folded.in_word && length < LONGEST_WORD {
            word = word.wrapping_add(code).wrapping_mul(WORD);
            length += 1;
            continue;
        }
        if length > 0 {
            surface.words += 1;
            let pair = last_word.wrapping_mul(PAIR).wrapping_add(word);
            sink.slots(place.words, [place.slot::<1>(word), place.slot::<2>(pair)]);
            last_word = word;
        }
        sink.word(text.get(start..at).unwrap_or_default());
        (word, length, start) = (0, 0, at);
        if folded.in_word {
            word = code.wrapping_mul(WORD);
            length = 1;
        } else {
            start = at + character.len_utf8();
        }
    }
    if length > 0 {
        surface.words += 1;
        let pair = last_word.wrapping_mul(PAIR).wrapping_add(word);
        sink.slots(place.words, [place.slot::<1>(word), place.slot::<2>(pair)]);
    }
    sink.word(text.get(start..).unwrap_or_default());
}

/// A character as features see it.
#[derive(Clone, Copy)]
struct Folded {
    code: u32,
    class: Class,
    in_word: bool,
}

const ASCII: [Folded; 128] = {
    let mut table = [Folded { code: 0, class: Class::Space, in_word: false }; 128];
    let mut byte = 0;
    while byte < 128 {
        let class = Class::of(byte as u8);
        table[byte] = Folded {
            code: match class {
                Class::Space | Class::Newline => b' ' as u32,
                Class::Digit => b'0' as u32,
                _ => (byte as u8).to_ascii_lowercase() as u32,
            },
            class,
            in_word: matches!(class, Class::Lower | Class::Upper | Class::Digit)
                || byte as u8 == b'\''
                || byte as u8 == b'_',
        };
        byte += 1;
    }
    table
};

#[inline(always)]
fn fold(character: char) -> Folded {
    match ASCII.get(character as usize) {
        Some(folded) => *folded,
        None => fold_wide(character),
    }
}

fn fold_wide(character: char) -> Folded {
    let blank = character.is_whitespace();
    let lower = character.to_lowercase().next().unwrap_or(character);
    Folded {
        code: if blank { u32::from(b' ') } else { lower as u32 },
        class: Class::NonAscii,
        in_word: character.is_alphanumeric(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Collect {
        slots: Vec<(usize, usize)>,
        words: Vec<String>,
    }

    impl Sink for Collect {
        fn slots<const N: usize>(&mut self, group: usize, slots: [usize; N]) {
            self.slots.extend(slots.map(|slot| (group, slot)));
        }

        fn word(&mut self, word: &str) {
            self.words.push(word.to_owned());
        }
    }

    fn collect(turns: &[Turn<'_>]) -> Collect {
        let mut sink = Collect::default();
        visit(turns, 16, &mut sink);
        sink
    }

    #[test]
    fn counts_are_those_of_the_text() {
        // Nine characters give three n-grams each, three words two each.
        let sink = collect(&[Turn::user("ab cd efg")]);
        assert_eq!(sink.slots.iter().filter(|(group, _)| *group == 1).count(), 27);
        assert_eq!(sink.slots.iter().filter(|(group, _)| *group == 0).count(), 6);
        assert_eq!(sink.words, ["ab", "cd", "efg"]);
        assert!(sink.slots.iter().all(|(_, slot)| *slot < 1 << 16));
    }

    #[test]
    fn case_digits_and_white_space_are_folded() {
        let plain = collect(&[Turn::user("call 12 Äpfel now")]);
        let loud = collect(&[Turn::user("CALL 34 äPFEL\n\t NOW")]);
        assert_eq!(plain.slots, loud.slots);
    }

    #[test]
    fn place_matters() {
        let asked = collect(&[Turn::user("hello there")]);
        let system = Turn { speaker: Speaker::System, text: "hello there" };
        let context = collect(&[system, Turn::user("")]);
        assert!(context.slots.iter().all(|(group, _)| *group >= 2));
        let slots = |sink: &Collect| sink.slots.iter().map(|(_, slot)| *slot).collect::<Vec<_>>();
        assert_ne!(slots(&asked), slots(&context));
    }

    #[test]
    fn every_order_has_its_own_slots() {
        // "aaaaa…" has one 3-, one 4- and one 5-gram once it is under way.
        let sink = collect(&[Turn::user("aaaaaaaaaaaaaaaaaaaa")]);
        let mut late: Vec<usize> = sink.slots[30..45].iter().map(|(_, slot)| *slot).collect();
        late.sort_unstable();
        late.dedup();
        assert_eq!(late.len(), 3);
    }

    #[test]
    fn hashes_spread() {
        let text: String = (0..4000_u32).map(|n| format!("w{} ", n.wrapping_mul(2_654_435_761) % 99_991)).collect();
        let letters: String =
            text.chars().map(|c| c.to_digit(10).and_then(|d| char::from_u32('a' as u32 + d)).unwrap_or(c)).collect();
        let sink = collect(&[Turn::user(&letters)]);
        let mut slots: Vec<usize> = sink.slots.iter().filter(|(group, _)| *group == 0).map(|(_, s)| *s).collect();
        let drawn = slots.len() as f64;
        slots.sort_unstable();
        slots.dedup();
        // Throwing balls into bins at random leaves this many bins hit.
        let bins = 65_536.0_f64;
        let expected = bins * (1.0 - (-drawn / bins).exp());
        assert!(slots.len() as f64 > 0.85 * expected, "{} of about {expected}", slots.len());
    }
}
