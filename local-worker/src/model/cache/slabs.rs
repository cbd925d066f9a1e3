//! Memory for blocks of one size: several lie in one slab, large enough for huge pages, and a slab is given back when its
//! last block is. The emptiest places are filled last, so that slabs run empty.

use crate::kernels::{Kept, Memory, Plain};

/// Bytes of a slab at least; a block that is larger has one of its own.
const SLAB: usize = 4 << 20;
/// Bytes of a block from which on slabs are worth huge pages: with smaller ones a few blocks would take a whole one.
const WORTH_HUGE: usize = 128 << 10;

/// Where a block's numbers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    slab: u32,
    index: u32,
}

/// All slabs; places of those given back are used again.
#[derive(Debug)]
pub(super) struct Slabs<T> {
    /// Numbers of a block.
    size: usize,
    /// Blocks of a slab.
    blocks: usize,
    slabs: Vec<Option<Slab<T>>>,
}

#[derive(Debug)]
struct Slab<T> {
    numbers: Kept<T>,
    /// Places without a block.
    free: Vec<u32>,
}

impl<T: Plain> Slabs<T> {
    /// For blocks of `size` numbers.
    pub fn new(size: usize) -> Self {
        let blocks = (SLAB / (size * size_of::<T>()).max(1)).clamp(1, 64);
        Self { size, blocks, slabs: Vec::new() }
    }

    /// A place; what it holds is what was left there.
    pub fn take(&mut self) -> Place {
        let fullest = |slab: &Option<Slab<T>>| slab.as_ref().map_or(0, |slab| slab.free.len());
        let some = (0..self.slabs.len()).filter(|at| fullest(&self.slabs[*at]) > 0);
        let at = match some.min_by_key(|at| fullest(&self.slabs[*at])) {
            Some(at) => at,
            None => self.open(),
        };
        let index = self.slabs[at].as_mut().and_then(|slab| slab.free.pop()).unwrap_or(0);
        Place { slab: at as u32, index }
    }

    fn open(&mut self) -> usize {
        let huge = self.size * size_of::<T>() >= WORTH_HUGE;
        let numbers = Memory::alone(self.size * self.blocks, huge);
        let slab = Some(Slab { numbers, free: (0..self.blocks as u32).rev().collect() });
        match self.slabs.iter().position(Option::is_none) {
            Some(at) => {
                self.slabs[at] = slab;
                at
            }
            None => {
                self.slabs.push(slab);
                self.slabs.len() - 1
            }
        }
    }

    /// Gives a place back.
    pub fn release(&mut self, place: Place) {
        let slot = &mut self.slabs[place.slab as usize];
        if let Some(slab) = slot {
            slab.free.push(place.index);
            if slab.free.len() == self.blocks {
                *slot = None;
            }
        }
    }

    /// The numbers at a place that was taken.
    pub fn get(&self, place: Place) -> &[T] {
        let numbers = self.slabs[place.slab as usize].as_ref().map_or(&[][..], |slab| &slab.numbers);
        &numbers[place.index as usize * self.size..][..self.size]
    }

    /// The same, to be written.
    pub fn get_mut(&mut self, place: Place) -> &mut [T] {
        let numbers = self.slabs[place.slab as usize].as_mut().map_or(&mut [][..], |slab| &mut slab.numbers);
        &mut numbers[place.index as usize * self.size..][..self.size]
    }

    /// Slabs that are held.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.slabs.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart_and_slabs_go_with_their_last_block() {
        for size in [100, 70_000, 2 << 20] {
            let mut slabs = Slabs::<f32>::new(size);
            let count = slabs.blocks + 1;
            let places: Vec<Place> = (0..count).map(|_| slabs.take()).collect();
            assert_eq!(slabs.held(), 2);
            for (number, place) in places.iter().enumerate() {
                slabs.get_mut(*place).fill(number as f32);
            }
            for (number, place) in places.iter().enumerate() {
                assert!(slabs.get(*place).len() == size && slabs.get(*place).iter().all(|got| *got == number as f32));
            }
            slabs.release(places[count - 1]);
            assert_eq!(slabs.held(), 1, "the second slab had one block");
            slabs.release(places[0]);
            let again = slabs.take();
            assert_eq!((again, slabs.held()), (places[0], 1));
            places[..count - 1].iter().for_each(|place| slabs.release(*place));
            assert_eq!(slabs.held(), 0);
        }
    }
}
