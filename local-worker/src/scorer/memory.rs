//! Local memory: recorded prompts as sentence vectors, and what came of each; a new prompt is judged by those near it.
//!
//! A tuned rule of nearest neighbours rivals deep routers on traffic like one's own, and it learns by writing down a row.
//! All rows are scanned, since a few thousand short vectors of bytes take less time than an index would: each weighs
//! `e^(sharpness · (similarity − 1))` (Nadaraya 1964; Watson 1964), and `held_back` rows of value 0 are thought to stand by,
//! so that far from everything the estimate is 0. How near the nearest row is tells whether anything like it was seen at all.
//!
//! Time is bounded whatever is asked: [`MEANT_BYTES`] of the turn that asks make the vector, and no more than a memory's
//! limit of rows is scanned; the oldest row makes room for a new one. No text is kept.

use super::{Speaker, Turn};
use crate::embed::StaticEmbedder;
use crate::kernels::{Level, TILE, products_with_tiles, weigh_neighbours};

/// Numbers of a vector: the leading ones of the table's, which tell most.
pub const DIMS: usize = 64;

/// The most bytes of a conversation that make its vector: half from the head of the turn that asks, half from its tail.
pub const MEANT_BYTES: usize = 1024;

/// Words with other characters than ASCII's that are looked up at most.
const UNUSUAL_WORDS: usize = 24;

/// What a number of a row is multiplied by to become a byte: numbers beyond ±0.79 are rare in vectors of length one.
const STEPS: f32 = 160.0;

/// Rows that are compared before they are weighed; a multiple of [`TILE`].
const BLOCK: usize = 16 * TILE;

/// What a conversation is about, as a vector of length one; zeros where no word of it is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Meaning([f32; DIMS]);

impl Meaning {
    /// The vector of a conversation's turn that asks.
    pub fn of(embedder: &StaticEmbedder, turns: &[Turn<'_>]) -> Self {
        let asking = turns.iter().rfind(|turn| turn.speaker == Speaker::User).or(turns.last());
        let text = asking.map_or("", |turn| turn.text);
        let mut vector = [0.0; DIMS];
        let head = text.get(..text.floor_char_boundary(MEANT_BYTES / 2)).unwrap_or_default();
        let rest = text.get(head.len()..).unwrap_or_default();
        let tail = rest.get(rest.ceil_char_boundary(rest.len().saturating_sub(MEANT_BYTES / 2))..).unwrap_or_default();
        // One part where nothing is left out between, so that no word is cut.
        let parts = if head.len() + tail.len() == text.len() { [text, ""] } else { [head, tail] };
        embedder.embed_parts(&parts, UNUSUAL_WORDS, &mut vector);
        Self(vector)
    }

    /// Whether a word of it was known.
    pub fn is_known(&self) -> bool {
        self.0.iter().any(|value| *value != 0.0)
    }

    /// Its numbers.
    pub fn values(&self) -> &[f32; DIMS] {
        &self.0
    }
}

/// What is near a meaning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Near {
    /// Weight of all rows; a row with the same vector has 1.
    pub weight: f32,
    /// Their values, each by its weight.
    pub sum: f32,
    /// Greatest similarity of a row, at most about 1; -1 without rows.
    pub nearest: f32,
}

impl Near {
    /// Mean value where `held_back` rows of value 0 stand by.
    pub fn estimate(&self, held_back: f32) -> f32 {
        self.sum / (self.weight + held_back).max(f32::MIN_POSITIVE)
    }
}

/// Rows of a vector and a value, at most so many; the oldest makes room.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Vectors as bytes, interleaved in tiles.
    tiles: Vec<i8>,
    /// A value for each place in the tiles, in use or not.
    values: Vec<f32>,
    rows: usize,
    /// Where the next row goes.
    next: usize,
    most: usize,
    level: Level,
}

impl Memory {
    /// An empty memory of at most `most` rows.
    pub fn new(most: usize) -> Self {
        Self { tiles: Vec::new(), values: Vec::new(), rows: 0, next: 0, most: most.max(1), level: Level::detect() }
    }

    /// Rows it holds.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Writes down what came of a prompt; one without a known word is near nothing and is not kept.
    pub fn remember(&mut self, meaning: &Meaning, value: f32) {
        if !meaning.is_known() || !value.is_finite() {
            return;
        }
        let bytes = meaning.0.map(|number| (number * STEPS).round() as i8);
        self.put(self.next, &bytes, value);
        self.rows = self.rows.max(self.next + 1);
        self.next = (self.next + 1) % self.most;
    }

    fn put(&mut self, row: usize, bytes: &[i8], value: f32) {
        if row >= self.values.len() {
            self.tiles.resize((row / TILE + 1) * TILE * DIMS, 0);
            self.values.resize((row / TILE + 1) * TILE, 0.0);
        }
        let places = (0..DIMS).map(|number| (row / TILE * DIMS + number) * TILE + row % TILE);
        for (place, byte) in places.zip(bytes) {
            if let Some(slot) = self.tiles.get_mut(place) {
                *slot = *byte;
            }
        }
        if let Some(slot) = self.values.get_mut(row) {
            *slot = value;
        }
    }

    /// The same rows, and no more of them, with the values of both, each times its factor. The other must hold the same rows.
    pub(super) fn plus(mut self, (own, others): (f32, f32), other: &Self) -> Self {
        debug_assert!(self.tiles == other.tiles);
        for (value, more) in self.values.iter_mut().zip(&other.values) {
            *value = own * *value + others * more;
        }
        (self.next, self.most) = (0, self.rows.max(1));
        self
    }

    /// Weighs all rows by how near they are. Takes a few nanoseconds a row and no memory.
    pub fn look(&self, meaning: &Meaning, sharpness: f32) -> Near {
        let mut near = Near { weight: 0.0, sum: 0.0, nearest: -1.0 };
        self.blocks(meaning, |similarities, values| {
            let [weight, sum, nearest] = weigh_neighbours(self.level, similarities, values, sharpness);
            near.weight += weight;
            near.sum += sum;
            near.nearest = near.nearest.max(nearest);
        });
        near
    }

    /// How many rows are at least so near, and of those, how many have a value above another.
    pub fn count(&self, meaning: &Meaning, least: f32, above: f32) -> (usize, usize) {
        let (mut count, mut higher) = (0, 0);
        self.blocks(meaning, |similarities, values| {
            for (_, value) in similarities.iter().zip(values).filter(|(similarity, _)| **similarity >= least) {
                count += 1;
                higher += usize::from(*value > above);
            }
        });
        (count, higher)
    }

    /// Similarities and values, block by block; places without a row are as far as can be.
    fn blocks(&self, meaning: &Meaning, mut each: impl FnMut(&[f32], &[f32])) {
        let vector = meaning.0.map(|number| number / STEPS);
        for (at, values) in self.values.chunks(BLOCK).enumerate() {
            let mut similarities = [0.0_f32; BLOCK];
            let tiles = self.tiles.get(at * BLOCK * DIMS..).unwrap_or_default();
            let Some(similarities) = similarities.get_mut(..values.len()) else { return };
            products_with_tiles(self.level, &vector, tiles, similarities);
            for unused in similarities.iter_mut().skip(self.rows.saturating_sub(at * BLOCK)) {
                *unused = f32::NEG_INFINITY;
            }
            each(similarities, values);
        }
    }

    /// Its rows as bytes: vectors, then values.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.rows * ROW_BYTES);
        for row in 0..self.rows {
            let number = |number| (row / TILE * DIMS + number) * TILE + row % TILE;
            bytes.extend((0..DIMS).map(|at| self.tiles.get(number(at)).copied().unwrap_or(0) as u8));
        }
        bytes.extend(self.values.iter().take(self.rows).flat_map(|value| value.to_le_bytes()));
        bytes
    }

    /// What [`Memory::to_bytes`] wrote for so many rows; `None` if a value is no number or a byte is missing.
    pub(super) fn from_bytes(bytes: &[u8], rows: usize) -> Option<Self> {
        let (vectors, values) = bytes.split_at_checked(rows * DIMS)?;
        let values = values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let mut memory = Self::new(rows);
        for (row, (vector, value)) in vectors.as_chunks::<DIMS>().0.iter().zip(values).enumerate() {
            if !value.is_finite() {
                return None;
            }
            memory.put(row, &vector.map(|byte| byte as i8), value);
            memory.rows = row + 1;
        }
        (memory.rows == rows).then_some(memory)
    }
}

/// Bytes of a row in a file.
pub(super) const ROW_BYTES: usize = DIMS + 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(text: &str) -> Meaning {
        Meaning::of(&StaticEmbedder::shared().unwrap(), &[Turn::user(text)])
    }

    #[test]
    fn what_is_near_counts_and_what_is_far_does_not() {
        let mut memory = Memory::new(100);
        assert_eq!(memory.look(&meaning("Who wrote Hamlet?"), 10.0), Near { weight: 0.0, sum: 0.0, nearest: -1.0 });
        for number in 0..20 {
            memory.remember(&meaning(&format!("How many apples has Ann after {number} days?")), 1.0);
            memory.remember(&meaning(&format!("Who wrote play number {number} of Shakespeare's?")), -1.0);
        }
        let (apples, plays) = (meaning("How many apples has Tom?"), meaning("Who wrote Shakespeare's plays?"));
        let near = memory.look(&apples, 16.0);
        assert!(near.estimate(0.3) > 0.4 && near.nearest > 0.7 && near.nearest < 1.02, "{near:?}");
        assert!(memory.look(&plays, 16.0).estimate(0.3) < -0.6);
        let (count, good) = memory.count(&apples, 0.7, 0.0);
        assert!(count >= 15 && good == count, "{count} {good}");
        let far = memory.look(&meaning("Restart the nginx pods, then check the ingress logs"), 16.0);
        assert!(far.estimate(0.3).abs() < 0.1 && far.nearest < 0.5, "{far:?}");
        let unknown = memory.look(&meaning("これは何ですか"), 16.0);
        assert!(unknown.nearest.abs() < 1e-6 && unknown.estimate(0.3).abs() < 1e-3, "{unknown:?}");
    }

    #[test]
    fn the_oldest_row_makes_room_and_rows_survive_a_file() {
        let mut memory = Memory::new(20);
        for number in 0..47 {
            memory.remember(&meaning(&format!("{number} green bottles on the wall number {number}")), number as f32);
        }
        memory.remember(&meaning("🦀"), 1.0);
        memory.remember(&meaning("bottles"), f32::NAN);
        assert_eq!(memory.rows(), 20);
        assert_eq!(memory.count(&meaning("green bottles on the wall"), -1.0, 26.5), (20, 20));
        assert_eq!(memory.count(&meaning("green bottles on the wall"), -1.0, 36.5), (20, 10));
        let bytes = memory.to_bytes();
        assert_eq!(bytes.len(), 20 * ROW_BYTES);
        let read = Memory::from_bytes(&bytes, 20).unwrap();
        let asked = meaning("seven green bottles");
        assert_eq!(read.look(&asked, 8.0), memory.look(&asked, 8.0));
        assert!(Memory::from_bytes(&bytes[..bytes.len() - 1], 20).is_none() && Memory::from_bytes(&[], 0).is_some());
        let mut broken = bytes.clone();
        broken[20 * DIMS..20 * DIMS + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(Memory::from_bytes(&broken, 20).is_none());
    }

    #[test]
    fn long_texts_are_read_at_both_ends_and_questions_before_answers() {
        let middle = "lorem ipsum dolor ".repeat(10_000);
        let long = meaning(&format!("{}{middle}{}", "integral calculus ".repeat(60), "prove the theorem ".repeat(60)));
        let ends = meaning("integral calculus prove the theorem");
        let close: f32 = long.values().iter().zip(ends.values()).map(|(a, b)| a * b).sum();
        assert!(close > 0.9, "{close}");
        let embedder = StaticEmbedder::shared().unwrap();
        let answer = Turn { speaker: Speaker::Assistant, text: "An answer about bicycles" };
        let asked = Meaning::of(&embedder, &[Turn::user("calculus"), answer]);
        assert_eq!(asked, meaning("calculus"));
        assert!(!Meaning::of(&embedder, &[]).is_known());
    }
}
