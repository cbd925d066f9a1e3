//! Memory for packed weights: taken in large pieces that the system is asked to back by huge pages (2 MiB on most
//! processors), because a product with one row of input reads all weights once and spends up to a third of its time on
//! looking up addresses where pages are small.
//!
//! The system clears memory before it gives it, which for a large model takes longer than packing it does: a thread of its
//! own asks for what will be written next.
#![allow(unsafe_code, reason = "many matrices lie in one mapping; nobody else knows where their parts begin")]

#[cfg_attr(all(target_os = "linux", not(miri)), path = "memory/ahead.rs")]
#[cfg_attr(not(all(target_os = "linux", not(miri))), path = "memory/alone.rs")]
mod ahead;

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
    /// Who makes the piece ready, while there is need.
    ahead: Option<ahead::Ahead>,
}

/// A mapping that parts lie in.
#[derive(Debug)]
struct Piece {
    start: NonNull<u8>,
    length: usize,
    /// Bytes of the mapping before the start.
    skipped: usize,
    /// Holds the mapping; read and written through `start` only.
    map: MmapMut,
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

    /// For about `bytes` in all, which are taken from the system beside whoever writes them if they are many.
    pub fn expecting(bytes: usize) -> Self {
        // Matrices may be a little larger than in their file.
        let piece = (bytes >= ahead::WORTH_IT).then(|| Piece::map(bytes + bytes / 16, true)).flatten().map(Arc::new);
        let ahead = piece.as_ref().and_then(ahead::Ahead::of);
        Self { piece, taken: 0, ahead }
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
                self.ahead = None;
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
        if let Some(ahead) = &self.ahead {
            ahead.taken(self.taken);
        }
        self.piece = Some(Arc::clone(&piece));
        Kept { start, length: count, _piece: Some(piece), owned: PhantomData }
    }
}

impl Piece {
    fn new(length: usize, huge: bool) -> Self {
        Self::map(length, huge).unwrap_or_else(|| {
            let layout = std::alloc::Layout::from_size_align(length, ALIGNMENT);
            std::alloc::handle_alloc_error(layout.unwrap_or(std::alloc::Layout::new::<u8>()));
        })
    }

    fn map(length: usize, huge: bool) -> Option<Self> {
        let length = length.next_multiple_of(HUGE);
        // Room to begin at a huge page.
        let mut map = MmapMut::map_anon(if huge { length + HUGE } else { length }).ok()?;
        #[cfg(all(target_os = "linux", not(miri)))]
        if huge {
            // Systems without huge pages refuse, and that is all right.
            let _refused = map.advise(memmap2::Advice::HugePage);
        }
        let start = NonNull::from(&mut map[..]).cast::<u8>();
        let skipped = if huge { start.align_offset(HUGE) } else { 0 };
        debug_assert!(skipped <= HUGE, "a huge page's beginning is within one");
        // SAFETY: at most a huge page is skipped, for which there is room.
        Some(Self { start: unsafe { start.add(skipped) }, length, skipped, map })
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
    #[cfg(all(target_os = "linux", not(miri)))]
    fn memory_made_ready_ahead_is_zero_and_what_nobody_took_goes_back() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
            text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
        };
        let (before, lines) = (resident(), (40 << 20) / 64);
        let mut memory = Memory::expecting(ahead::WORTH_IT + (100 << 20));
        let mut parts: Vec<Kept<Line>> = (0..3).map(|_| memory.take(lines)).collect();
        for part in &mut parts {
            assert!(part.iter().all(|line| line.0 == [0; 64]));
            part.fill(Line([7; 64]));
        }
        // More than is left of what was expected: another piece.
        let large: Kept<Line> = memory.take(3 * lines);
        drop(memory);
        assert!(
            large.iter().all(|line| line.0 == [0; 64])
                && parts.iter().flat_map(|part| &**part).all(|line| line.0 == [7; 64])
        );
        // Reading `large` took no memory but a page of zeros, or as much as it is; other tests have theirs.
        assert!(resident() < before + (300 << 20), "{} more", resident() - before);
    }

    #[test]
    fn parts_are_zero_apart_and_outlive_their_source() {
        const MOST: usize = if cfg!(miri) { 500 } else { 3 << 20 };
        let mut memory = Memory::default();
        let mut parts: Vec<Kept<[i8; TILE]>> =
            [3, 0, 70_000, 5, 1 << 20, 3 << 20, 7].map(|count| memory.take(count.min(MOST))).into();
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
        for count in [1, 5, if cfg!(miri) { 70 } else { 30_000 }, 2] {
            let _between: Kept<[i8; TILE]> = memory.take(1);
            assert!((memory.take::<Line>(count).start.as_ptr() as usize).is_multiple_of(64));
        }
    }
}
