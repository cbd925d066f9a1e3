//! Which bytes of a long conversation are looked at.
//!
//! The task stands at the start, the question at the end, and the middle may change everything (code, another language), so
//! a long conversation is read at its head, its tail and in windows spread evenly between. The choice depends on lengths
//! alone: the same conversation always gives the same excerpt.

use super::Turn;

/// The most bytes of a conversation that are looked at.
pub const EXCERPT_BYTES: usize = 16 * 1024;

const HEAD: usize = 4 * 1024;
const WINDOWS: usize = 8;
const WINDOW: usize = 512;
const TAIL: usize = EXCERPT_BYTES - HEAD - WINDOWS * WINDOW;

/// A stretch of one turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'text> {
    /// Place of the turn in the conversation.
    pub turn: usize,
    /// The text, cut at character boundaries.
    pub text: &'text str,
}

/// Hands every piece of the excerpt to `look`, in order.
pub(super) fn pieces<'text>(turns: &[Turn<'text>], mut look: impl FnMut(Piece<'text>)) {
    let total: usize = turns.iter().map(|turn| turn.text.len()).sum();
    let ranges = ranges(total);
    let mut offset = 0;
    for (turn, Turn { text, .. }) in turns.iter().enumerate() {
        for &(from, to) in &ranges {
            let from = text.ceil_char_boundary(from.saturating_sub(offset).min(text.len()));
            let to = text.floor_char_boundary(to.saturating_sub(offset).min(text.len()));
            if let Some(text) = text.get(from..to).filter(|text| !text.is_empty()) {
                look(Piece { turn, text });
            }
        }
        offset += text.len();
    }
}

/// Byte ranges over the joined conversation, in order and disjoint; unused ones are empty.
fn ranges(total: usize) -> [(usize, usize); WINDOWS + 2] {
    let mut ranges = [(0, 0); WINDOWS + 2];
    if total <= EXCERPT_BYTES {
        ranges[0] = (0, total);
        return ranges;
    }
    let stride = (total - HEAD - TAIL) / WINDOWS;
    for (place, range) in ranges.iter_mut().enumerate() {
        *range = match place {
            0 => (0, HEAD),
            place if place <= WINDOWS => {
                let start = HEAD + (place - 1) * stride + (stride - WINDOW) / 2;
                (start, start + WINDOW)
            }
            _ => (total - TAIL, total),
        };
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(turns: &[Turn<'_>]) -> String {
        let mut text = String::new();
        pieces(turns, |piece| text.push_str(piece.text));
        text
    }

    #[test]
    fn short_conversations_are_read_whole() {
        let turns = [Turn::user("one "), Turn::user(""), Turn::user("zwölf")];
        assert_eq!(excerpt(&turns), "one zwölf");
        assert_eq!(excerpt(&[]), "");
    }

    #[test]
    fn long_conversations_keep_head_tail_and_stride_within_the_cap() {
        for unit in ["x", "é", "語", "🦀"] {
            let middle = unit.repeat(200_000);
            let turns = [Turn::user("HEAD"), Turn::user(&middle), Turn::user("TAIL")];
            let text = excerpt(&turns);
            assert!(text.starts_with("HEAD") && text.ends_with("TAIL"));
            assert!(text.len() <= EXCERPT_BYTES && text.len() > EXCERPT_BYTES - 64);
        }
        for total in EXCERPT_BYTES..EXCERPT_BYTES + 9 {
            let ranges = ranges(total);
            assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0 || pair[1] == (0, 0)));
        }
    }

    #[test]
    fn the_middle_is_seen() {
        let mut text = "a".repeat(100_000);
        text.replace_range(40_000..60_000, &"b".repeat(20_000));
        assert!(excerpt(&[Turn::user(&text)]).contains('b'));
    }
}
