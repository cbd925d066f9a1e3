//! What the next step works through, and who gives way when the cache is full.
//!
//! Sequences that write have one row each; prompts share the rest. Places in the cache are handed out in the order of age,
//! and who finds none takes that of the youngest, or gives up its own if it is the youngest. So the oldest always gets on,
//! and as one sequence alone always fits, nothing waits for ever.

use std::collections::HashSet;

use super::prefix::{Key, Tokens};
use super::store::split;
use super::thread::Desk;
use crate::model::POSITIONS;

impl Desk {
    /// Whether a sequence can begin: there is room for its tokens beside what running ones need for theirs, or nothing else
    /// runs.
    pub(super) fn fits(&self, tokens: &Tokens) -> bool {
        let Some(engine) = &self.engine else { return false };
        let running = self.places.iter().enumerate().filter_map(|(slot, place)| Some((slot, place.as_ref()?)));
        let (mut others, mut promised) = (0, 0);
        for (slot, sequence) in running {
            others += 1;
            promised += engine.store.outstanding(slot, sequence.tokens());
        }
        others == 0 || engine.store.needed(tokens) + promised <= engine.store.available()
    }

    /// Collects the rows of the next step: one for each that writes, first, and up to `chunk` of prompts.
    pub(super) fn plan(&mut self, chunk: usize) {
        self.rows.clear();
        self.order.clear();
        self.steps = self.steps.wrapping_add(1);
        let slots = self.by_age();
        self.adopt(&slots);
        let counts = self.counts(&slots, chunk);
        let mut prompts = Vec::new();
        for (slot, count) in slots.into_iter().zip(counts) {
            if count == 0 || !self.make_room(slot, count) {
                continue;
            }
            let Some(sequence) = &mut self.places[slot] else { continue };
            if sequence.writing() {
                sequence.add_rows(slot, count, &mut self.rows);
                self.order.push(slot);
            } else {
                prompts.push((slot, count));
            }
        }
        for (slot, count) in prompts {
            if let Some(sequence) = &mut self.places[slot] {
                sequence.add_rows(slot, count, &mut self.rows);
                self.order.push(slot);
            }
        }
    }

    /// Places that are taken, the oldest sequence first.
    fn by_age(&self) -> Vec<usize> {
        let mut slots: Vec<usize> = (0..self.places.len()).filter(|slot| self.places[*slot].is_some()).collect();
        slots.sort_by_key(|slot| self.places[*slot].as_ref().map(|sequence| sequence.age()));
        slots
    }

    fn adopt(&mut self, slots: &[usize]) {
        let Some(engine) = &mut self.engine else { return };
        for slot in slots {
            if let Some(sequence) = &mut self.places[*slot] {
                self.spared += engine.store.adopt(*slot, sequence) as u64;
            }
        }
    }

    /// Rows for each of `slots`. Who would begin a block that another computes in this step waits: it will find it done.
    fn counts(&self, slots: &[usize], chunk: usize) -> Vec<usize> {
        let sequences: Vec<_> = slots.iter().filter_map(|slot| self.places[*slot].as_ref()).collect();
        let mut under_way: HashSet<Key> = sequences
            .iter()
            .filter(|sequence| !sequence.writing() && !sequence.read().is_multiple_of(POSITIONS))
            .filter_map(|sequence| sequence.next_key())
            .collect();
        let wanting: Vec<_> = sequences
            .iter()
            .map(|sequence| {
                let begins = !sequence.writing() && sequence.read().is_multiple_of(POSITIONS);
                let waits = begins && sequence.next_key().is_some_and(|key| !under_way.insert(key));
                let left = if waits || sequence.writing() { 0 } else { sequence.left() };
                (sequence.tenant(), left)
            })
            .collect();
        let parts = split(chunk, &wanting, self.steps);
        sequences.iter().zip(parts).map(|(sequence, part)| if sequence.writing() { 1 } else { part }).collect()
    }

    /// Room for the next `count` tokens of a sequence, if need be at the cost of the youngest. False if that was itself.
    fn make_room(&mut self, slot: usize, count: usize) -> bool {
        loop {
            let (Some(engine), Some(sequence)) = (&mut self.engine, &self.places[slot]) else { return false };
            if engine.store.reserve(slot, sequence.read() + count) {
                return true;
            }
            let Some(youngest) = self.by_age().pop() else { return false };
            self.park(youngest);
            if youngest == slot {
                return false;
            }
        }
    }

    /// Takes a sequence's place; it will be computed again.
    fn park(&mut self, slot: usize) {
        let Some(mut sequence) = self.places[slot].take() else { return };
        if let Some(engine) = &mut self.engine {
            engine.store.clear(slot, &sequence);
        }
        sequence.set_back();
        self.preempted += 1;
        let at = self.parked.partition_point(|other| other.age() < sequence.age());
        self.parked.insert(at, sequence);
    }
}
