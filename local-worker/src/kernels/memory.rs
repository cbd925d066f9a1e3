//! Memory for packed weights: taken in large pieces that the system is asked to back by huge pages (2 MiB on most
//! processors), because a product with one row of input reads all weights once and spends up to a third of its time on
//! looking up addresses where pages are small.
#![allow(unsafe_code, reason = "many matrices lie in one mapping; nobody else knows where their parts begin")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::MmapMut;

use super::TILE;
use super::quantized::Line;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes of address space taken at a time; what is not written takes no memory.
const PIECE: usize = 32 << 20;
/// Bytes taken first for a model that begins with less than a quarter of it: a small one, which huge pages would only bloat.
const SMALL: usize = 1 << 20;
/// Every part begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// Numbers for which all bytes zero, and any other bytes of theirs, stand for a value.
pub trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for f16 {}
impl Plain for Line {}
impl Plain for [f16; TILE] {}
impl Plain for [bf16; TILE] {}
impl Plain for [f32; TILE] {}
impl Plain for [i8; TILE] {}

/// Where matrices are packed to; given back when the last of them is dropped.
#[derive(Debug, Default)]
pub struct Memory {
    piece: Option<Arc<Piece>>,
    /// Bytes of the piece that are taken.
    taken: usize,
}

/// A mapping that parts lie in.
#[derive(Debug)]
struct Piece {
    start: NonNull<u8>,
    length: usize,
    /// Holds the mapping; touched through `start` only.
    _map: MmapMut,
}

// SAFETY: the memory belongs to nobody but the parts, each of which has its own.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

/// A part of it: a slice.
#[derive(Debug)]
pub struct Kept<T> {
    start: NonNull<T>,
    length: usize,
    /// Keeps the memory; none for an empty slice.
    _piece: Option<Arc<Piece>>,
    owned: PhantomData<T>,
}

// SAFETY: a part is the only owner of its numbers.
unsafe impl<T: Send> Send for Kept<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Kept<T> {}

impl Memory {
    /// `count` numbers, all zero, in a piece of their own; `huge` asks for huge pages.
    pub fn alone<T: Plain>(count: usize, huge: bool) -> Kept<T> {
        let mut memory = Self::default();
        if count > 0 {
            memory.piece = Some(Arc::new(Piece::new(count * size_of::<T>(), huge)));
        }
        memory.take(count)
    }

    /// `count` numbers, all zero.
    pub(super) fn take<T: Plain>(&mut self, count: usize) -> Kept<T> {
        const { assert!(align_of::<T>() <= ALIGNMENT) };
        let size = (count * size_of::<T>()).next_multiple_of(ALIGNMENT);
        if size == 0 {
            return Kept { start: NonNull::dangling(), length: 0, _piece: None, owned: PhantomData };
        }
        let piece = match self.piece.take().filter(|piece| piece.length - self.taken >= size) {
            Some(piece) => piece,
            None => {
                let first = std::mem::take(&mut self.taken) == 0;
                Arc::new(if first && size < SMALL / 4 {
                    Piece::new(SMALL, false)
                } else {
                    Piece::new(size.max(PIECE), true)
                })
            }
        };
        // SAFETY: `taken + size` is within the piece, by the filter above or because a new one is that large.
        let start = unsafe { piece.start.add(self.taken) }.cast();
        self.taken += size;
        self.piece = Some(Arc::clone(&piece));
        Kept { start, length: count, _piece: Some(piece), owned: PhantomData }
    }
}

impl Piece {
    fn new(length: usize, huge: bool) -> Self {
        let length = length.next_multiple_of(HUGE);
        // Room to begin at a huge page.
        let room = if huge { length + HUGE } else { length };
        let Ok(mut map) = MmapMut::map_anon(room) else {
            let layout = std::alloc::Layout::from_size_align(room, ALIGNMENT);
            std::alloc::handle_alloc_error(layout.unwrap_or(std::alloc::Layout::new::<u8>()));
        };
        #[cfg(all(target_os = "linux", not(miri)))]
        if huge {
            // Systems without huge pages refuse, and that is all right.
            let _refused = map.advise(memmap2::Advice::HugePage);
        }
        let start = NonNull::from(&mut map[..]).cast::<u8>();
        let skipped = if huge { start.align_offset(HUGE) } else { 0 };
        debug_assert!(skipped <= HUGE, "a huge page's beginning is within one");
        // SAFETY: at most a huge page is skipped, for which there is room.
        Self { start: unsafe { start.add(skipped) }, length, _map: map }
    }
}

impl<T> Deref for Kept<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: so many numbers lie there, zero at first, as `Memory::take` saw to; this part alone has them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zero_apart_and_outlive_their_source() {
        let mut memory = Memory::default();
        let mut parts: Vec<Kept<[i8; TILE]>> =
            [3, 0, 70_000, 5, 1 << 20, 3 << 20, 7].map(|count| memory.take(count)).into();
        drop(memory);
        for (number, part) in parts.iter_mut().enumerate() {
            assert!(part.iter().all(|value| *value == [0; TILE]), "{number}");
            assert_eq!(part.start.as_ptr() as usize % ALIGNMENT % align_of::<[i8; TILE]>(), 0);
            part.fill([number as i8; TILE]);
        }
        let last = parts.pop();
        for (number, part) in parts.iter().enumerate() {
            assert!(part.iter().all(|value| *value == [number as i8; TILE]), "{number}");
        }
        drop(parts);
        assert_eq!(last.as_deref(), Some(&[[6; TILE]; 7][..]));
    }

    #[test]
    fn lines_lie_where_vector_loads_want_them() {
        let mut memory = Memory::default();
        for count in [1, 5, 30_000, 2] {
            let _between: Kept<[i8; TILE]> = memory.take(1);
            assert!((memory.take::<Line>(count).start.as_ptr() as usize).is_multiple_of(64));
        }
    }
}
