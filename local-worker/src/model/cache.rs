//! What attention remembers of a sequence: keys and values of every position so far, for each layer and key head.
//!
//! Memory is taken as a sequence grows and given back when its place is cleared, so idle places take none.

/// Positions by which a place grows at least.
const GROWTH: usize = 64;

/// Keys and values of all places.
#[derive(Debug)]
pub struct Cache {
    /// Floats of one position in one layer: key heads times head size.
    width: usize,
    head: usize,
    layers: usize,
    slots: Vec<Slot>,
}

/// One sequence. Keys and values lie `[layer][key head][position][head size]`.
#[derive(Debug, Default)]
struct Slot {
    capacity: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// For `slots` sequences at once.
    pub fn new(slots: usize, layers: usize, key_heads: usize, head: usize) -> Self {
        let slots = (0..slots).map(|_| Slot::default()).collect();
        Self { width: key_heads * head, head, layers, slots }
    }

    /// Sequences at once.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Forgets a sequence and frees its memory.
    pub fn clear(&mut self, slot: usize) {
        self.slots[slot] = Slot::default();
    }

    /// Makes room for `positions` positions.
    pub fn reserve(&mut self, slot: usize, positions: usize) {
        let (width, head, layers) = (self.width, self.head, self.layers);
        let slot = &mut self.slots[slot];
        if positions <= slot.capacity {
            return;
        }
        let capacity = positions.max(slot.capacity * 3 / 2).next_multiple_of(GROWTH);
        for side in [&mut slot.keys, &mut slot.values] {
            let mut grown = vec![0.0; layers * width * capacity];
            if slot.capacity > 0 {
                for (old, new) in side.chunks_exact(slot.capacity * head).zip(grown.chunks_exact_mut(capacity * head)) {
                    new[..old.len()].copy_from_slice(old);
                }
            }
            *side = grown;
        }
        slot.capacity = capacity;
    }

    /// Remembers a position's keys and values, all key heads one after the other.
    pub(super) fn put(&mut self, slot: usize, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let (width, head) = (self.width, self.head);
        let slot = &mut self.slots[slot];
        for key_head in 0..width / head {
            let at = ((layer * (width / head) + key_head) * slot.capacity + position) * head;
            let part = key_head * head..(key_head + 1) * head;
            slot.keys[at..at + head].copy_from_slice(&keys[part.clone()]);
            slot.values[at..at + head].copy_from_slice(&values[part]);
        }
    }

    /// Keys and values of the first `positions` positions.
    pub(super) fn get(&self, slot: usize, layer: usize, key_head: usize, positions: usize) -> (&[f32], &[f32]) {
        let slot = &self.slots[slot];
        let at = (layer * (self.width / self.head) + key_head) * slot.capacity * self.head;
        let range = at..at + positions * self.head;
        (&slot.keys[range.clone()], &slot.values[range])
    }
}
