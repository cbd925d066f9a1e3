//! What attention remembers of sequences: keys and values of every position so far, for each layer and key head, in blocks
//! of [`POSITIONS`] positions under one budget.
//!
//! A sequence is a table of blocks and grows a block at a time, so no memory is set aside for what may never be written, and
//! sequences that begin alike can hold the same blocks. A block is counted by its holders and its memory is given back when
//! the last one lets go. Who may share what is not decided here.

mod slabs;

use std::ops::Range;

use half::f16;

use crate::kernels::{Level, Queries, Weighing, attend, halve};
use slabs::{Place, Slabs};

/// Positions of one block.
pub const POSITIONS: usize = 32;

/// How a stored number is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheFormat {
    /// Single precision: what was computed, to the bit.
    Single,
    /// Half precision: half the memory, each number within 0.05 % (and no larger than 65504).
    #[default]
    Half,
}

/// What one position takes: the plain sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// Key heads of a layer.
    pub key_heads: usize,
    /// Values of one head.
    pub head: usize,
    /// How numbers are kept.
    pub format: CacheFormat,
}

impl CacheShape {
    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        let number = match self.format {
            CacheFormat::Single => 4,
            CacheFormat::Half => 2,
        };
        self.block_numbers() * number
    }

    fn block_numbers(&self) -> usize {
        2 * self.layers * self.key_heads * self.head * POSITIONS
    }
}

/// A block in a [`Cache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockId(u32);

/// Keys and values of all places.
#[derive(Debug)]
pub struct Cache {
    shape: CacheShape,
    blocks: Vec<Block>,
    numbers: Numbers,
    /// Blocks without a holder.
    free: Vec<BlockId>,
    /// Blocks that may be held at once.
    most: usize,
    /// Blocks that are kept and that no sequence holds.
    idle: usize,
    slots: Vec<Vec<BlockId>>,
}

/// Numbers lie `[layer][key head][keys, values][position][head size]`.
#[derive(Debug)]
struct Block {
    holders: u32,
    /// Whether one of the holders is no sequence.
    kept: bool,
    /// Where its numbers lie, while there is a holder.
    place: Place,
}

#[derive(Debug)]
enum Numbers {
    Single(Slabs<f32>),
    Half(Slabs<f16>),
}

impl Numbers {
    fn take(&mut self) -> Place {
        match self {
            Self::Single(slabs) => slabs.take(),
            Self::Half(slabs) => slabs.take(),
        }
    }

    fn release(&mut self, place: Place) {
        match self {
            Self::Single(slabs) => slabs.release(place),
            Self::Half(slabs) => slabs.release(place),
        }
    }
}

/// What a query looks at.
#[derive(Debug, Clone)]
pub struct Look {
    /// The sequence.
    pub slot: usize,
    /// The layer.
    pub layer: usize,
    /// The key head that serves the queries' heads.
    pub key_head: usize,
    /// Positions seen by the last of the rows; a sliding window begins above 0.
    pub positions: Range<usize>,
    /// Neighbouring rows that ask together, see [`Queries::rows`].
    pub rows: usize,
    /// How products become scores.
    pub weighing: Weighing,
}

impl Cache {
    /// For `slots` sequences at once in single precision, without a bound.
    pub fn new(slots: usize, layers: usize, key_heads: usize, head: usize) -> Self {
        let shape = CacheShape { layers, key_heads, head, format: CacheFormat::Single };
        Self::bounded(slots, shape, u32::MAX as usize)
    }

    /// For `slots` sequences at once, holding `most` blocks at most.
    pub fn bounded(slots: usize, shape: CacheShape, most: usize) -> Self {
        let most = most.min(u32::MAX as usize);
        let numbers = match shape.format {
            CacheFormat::Single => Numbers::Single(Slabs::new(shape.block_numbers())),
            CacheFormat::Half => Numbers::Half(Slabs::new(shape.block_numbers())),
        };
        Self { shape, blocks: Vec::new(), numbers, free: Vec::new(), most, idle: 0, slots: vec![Vec::new(); slots] }
    }

    /// Sequences at once.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Blocks that may be held at once.
    pub fn most_blocks(&self) -> usize {
        self.most
    }

    /// Blocks held by sequences or by whoever asked to keep them.
    pub fn used_blocks(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.shape.block_bytes()
    }

    /// Blocks of a sequence, in the order of positions.
    pub fn table(&self, slot: usize) -> &[BlockId] {
        &self.slots[slot]
    }

    /// Forgets a sequence; blocks nobody else holds give their memory back.
    pub fn clear(&mut self, slot: usize) {
        for block in std::mem::take(&mut self.slots[slot]) {
            self.release(block);
        }
    }

    /// Makes room for `positions` positions. False if the budget has no block left; what was taken so far stays.
    #[must_use]
    pub fn reserve(&mut self, slot: usize, positions: usize) -> bool {
        while self.slots[slot].len() * POSITIONS < positions {
            let Some(block) = self.take() else { return false };
            self.slots[slot].push(block);
        }
        true
    }

    /// Keeps a block that a sequence holds, after the sequence has gone.
    pub fn keep(&mut self, block: BlockId) {
        self.hold(block);
        self.blocks[block.0 as usize].kept = true;
    }

    /// Keeps a block no longer.
    pub fn forget(&mut self, block: BlockId) {
        let at = &mut self.blocks[block.0 as usize];
        at.kept = false;
        self.idle -= usize::from(at.holders == 1);
        self.release(block);
    }

    /// Blocks that are kept and that no sequence holds.
    pub fn idle_blocks(&self) -> usize {
        self.idle
    }

    fn hold(&mut self, block: BlockId) {
        let at = &mut self.blocks[block.0 as usize];
        self.idle -= usize::from(at.kept && at.holders == 1);
        at.holders += 1;
    }

    /// One holder less; the last one gives the memory back.
    fn release(&mut self, block: BlockId) {
        let at = &mut self.blocks[block.0 as usize];
        at.holders -= 1;
        self.idle += usize::from(at.kept && at.holders == 1);
        if at.holders == 0 {
            self.numbers.release(at.place);
            self.free.push(block);
        }
    }

    /// Holders of a block.
    pub fn holders(&self, block: BlockId) -> u32 {
        self.blocks[block.0 as usize].holders
    }

    /// Makes a block somebody holds the next one of a sequence. Its positions must be what the sequence would compute, and
    /// must not be written again.
    pub fn adopt(&mut self, slot: usize, block: BlockId) {
        self.hold(block);
        self.slots[slot].push(block);
    }

    /// Puts a block of the same content in the place of one of a sequence.
    pub fn replace(&mut self, slot: usize, index: usize, block: BlockId) {
        self.hold(block);
        let old = std::mem::replace(&mut self.slots[slot][index], block);
        self.release(old);
    }

    fn take(&mut self) -> Option<BlockId> {
        if self.free.is_empty() && self.blocks.len() >= self.most {
            return None;
        }
        let block = Block { holders: 1, kept: false, place: self.numbers.take() };
        if let Some(id) = self.free.pop() {
            self.blocks[id.0 as usize] = block;
            return Some(id);
        }
        self.blocks.push(block);
        Some(BlockId(self.blocks.len() as u32 - 1))
    }

    /// Remembers keys and values, all key heads one after the other, of a place: slot, layer, position.
    pub(super) fn put(&mut self, level: Level, place: (usize, usize, usize), keys: &[f32], values: &[f32]) {
        let (slot, layer, position) = place;
        let (head, key_heads) = (self.shape.head, self.shape.key_heads);
        let block = self.slots[slot][position / POSITIONS];
        let place = self.blocks[block.0 as usize].place;
        for (key_head, (keys, values)) in keys.chunks_exact(head).zip(values.chunks_exact(head)).enumerate() {
            let at = (layer * key_heads + key_head) * 2 * POSITIONS * head + position % POSITIONS * head;
            for (at, part) in [(at, keys), (at + POSITIONS * head, values)] {
                match &mut self.numbers {
                    Numbers::Single(slabs) => slabs.get_mut(place)[at..at + head].copy_from_slice(part),
                    Numbers::Half(slabs) => halve(level, part, &mut slabs.get_mut(place)[at..at + head]),
                }
            }
        }
    }

    /// Attention of all queries that a key head serves over what a sequence has stored; `scores` is scratch.
    pub(super) fn attend(&self, level: Level, look: &Look, queries: &[f32], scores: &mut Vec<f32>, out: &mut [f32]) {
        let positions = &look.positions;
        let queries = Queries { values: queries, head: self.shape.head, rows: look.rows };
        scores.resize(positions.len() * queries.values.len() / self.shape.head, 0.0);
        let side = POSITIONS * self.shape.head;
        let start = (look.layer * self.shape.key_heads + look.key_head) * 2 * side;
        let table = &self.slots[look.slot];
        let parts = (positions.start / POSITIONS..positions.end.div_ceil(POSITIONS)).map(|index| {
            let first = positions.start.saturating_sub(index * POSITIONS) * self.shape.head;
            let last = (positions.end - index * POSITIONS).min(POSITIONS) * self.shape.head;
            (self.blocks[table[index].0 as usize].place, start + first..start + last)
        });
        match &self.numbers {
            Numbers::Single(slabs) => {
                let parts = parts.map(|(place, range)| sides(slabs.get(place), range, side));
                attend(level, queries, parts, &look.weighing, scores, out);
            }
            Numbers::Half(slabs) => {
                let parts = parts.map(|(place, range)| sides(slabs.get(place), range, side));
                attend(level, queries, parts, &look.weighing, scores, out);
            }
        }
    }
}

/// Keys in a range of a block, and the values that lie one side of a head further on.
fn sides<T>(numbers: &[T], range: Range<usize>, side: usize) -> (&[T], &[T]) {
    (&numbers[range.clone()], &numbers[range.start + side..range.end + side])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: CacheShape = CacheShape { layers: 3, key_heads: 2, head: 16, format: CacheFormat::Single };

    #[test]
    fn blocks_are_counted_shared_and_given_back() {
        let mut cache = Cache::bounded(3, SHAPE, 4);
        assert_eq!(cache.block_bytes(), 2 * 3 * 2 * 16 * 32 * 4);
        assert!(cache.reserve(0, 33) && cache.reserve(1, 1));
        assert_eq!(cache.used_blocks(), 3);
        let first = cache.table(0)[0];
        cache.keep(first);
        cache.adopt(2, first);
        assert_eq!((cache.holders(first), cache.used_blocks(), cache.idle_blocks()), (3, 3, 0));
        assert!(!cache.reserve(2, 97), "four blocks are all there are");
        assert_eq!((cache.table(2).len(), cache.used_blocks()), (2, 4), "what could be had is kept");
        cache.clear(0);
        assert_eq!((cache.holders(first), cache.used_blocks()), (2, 3));
        assert!(cache.reserve(1, 33));
        let other = cache.table(1)[1];
        cache.replace(2, 1, other);
        assert_eq!((cache.holders(other), cache.used_blocks()), (2, 3));
        cache.clear(1);
        cache.clear(2);
        assert_eq!((cache.used_blocks(), cache.idle_blocks()), (1, 1), "the one that is kept");
        cache.adopt(0, first);
        assert_eq!((cache.used_blocks(), cache.idle_blocks()), (1, 0));
        cache.clear(0);
        cache.forget(first);
        assert_eq!((cache.used_blocks(), cache.idle_blocks()), (0, 0));
        assert!(matches!(&cache.numbers, Numbers::Single(slabs) if slabs.held() == 0), "all memory is given back");
    }

    #[test]
    fn windows_see_what_they_should_in_both_formats() {
        let numbers = |seed: usize| (0..32).map(|at| ((at * 7 + seed * 13) as f32 * 0.37).sin()).collect::<Vec<f32>>();
        for format in [CacheFormat::Single, CacheFormat::Half] {
            let mut cache = Cache::bounded(1, CacheShape { format, ..SHAPE }, 4);
            assert!(cache.reserve(0, 100));
            (0..100).for_each(|at| cache.put(Level::detect(), (0, 2, at), &numbers(at), &numbers(at + 1000)));
            let query = &numbers(7)[..16];
            for positions in [0..1, 0..32, 0..100, 31..33, 40..99, 64..96] {
                let weighing = Weighing { scale: 0.3, cap: Some(2.0) };
                let score = |at: usize| {
                    let product: f32 = query.iter().zip(&numbers(at)[16..]).map(|(a, b)| a * b).sum();
                    f64::from(2.0 * (product * 0.3 / 2.0).tanh()).exp()
                };
                let sum: f64 = positions.clone().map(score).sum();
                let (mut scores, mut out) = (Vec::new(), [0.0; 16]);
                let look = Look { slot: 0, layer: 2, key_head: 1, positions: positions.clone(), rows: 1, weighing };
                cache.attend(Level::detect(), &look, query, &mut scores, &mut out);
                for (d, got) in out.iter().enumerate() {
                    let term = |at: usize| score(at) * f64::from(numbers(at + 1000)[16 + d]);
                    let want = positions.clone().map(term).sum::<f64>() / sum;
                    let error = if format == CacheFormat::Single { 1e-5 } else { 1e-3 };
                    assert!((f64::from(*got) - want).abs() < error, "{format:?} {positions:?}: {got} for {want}");
                }
            }
        }
    }
}
