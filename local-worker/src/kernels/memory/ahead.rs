//! A thread that asks the system for a piece's memory a little before it is written.
#![allow(unsafe_code, reason = "memory that nobody took is given back before its mapping ends")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use memmap2::{Advice, UncheckedAdvice};

use super::{HUGE, Piece};

/// Bytes from which on it pays to have a thread for it.
pub(super) const WORTH_IT: usize = 64 << 20;
/// Bytes asked for at a time.
const STEP: usize = 2 * HUGE;
/// Bytes that may be ready and not taken yet.
const LEAD: usize = 16 * HUGE;
/// Pause when there are so many.
const PAUSE: Duration = Duration::from_micros(500);
/// In the place of a number of bytes: that is all.
const END: usize = usize::MAX;

/// Who makes a piece ready, until dropped.
#[derive(Debug)]
pub(super) struct Ahead {
    taken: Arc<AtomicUsize>,
    piece: Arc<Piece>,
    thread: Option<JoinHandle<usize>>,
}

impl Ahead {
    /// Begins; none where the system gives no thread.
    pub fn of(piece: &Arc<Piece>) -> Option<Self> {
        let (taken, piece) = (Arc::new(AtomicUsize::new(0)), Arc::clone(piece));
        let (theirs, of) = (Arc::clone(&taken), Arc::clone(&piece));
        let thread = std::thread::Builder::new().name("weights ahead".to_owned()).spawn(move || fill(&of, &theirs));
        Some(Self { taken, piece, thread: Some(thread.ok()?) })
    }

    /// Tells how many bytes are taken.
    pub fn taken(&self, bytes: usize) {
        self.taken.store(bytes, Ordering::Release);
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let taken = self.taken.swap(END, Ordering::AcqRel).next_multiple_of(HUGE);
        let ready = self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(0);
        if ready > taken {
            // SAFETY: no part lies there, and none will, because whoever drops this takes nothing more of the piece; what is
            // given back reads as zero.
            let _kept = unsafe {
                self.piece.map.unchecked_advise_range(
                    UncheckedAdvice::DontNeed,
                    self.piece.skipped + taken,
                    ready - taken,
                )
            };
        }
    }
}

/// Asks for memory in order, as far as is taken and a little more; returns where it stopped.
fn fill(piece: &Piece, taken: &AtomicUsize) -> usize {
    let mut ready = 0;
    while ready < piece.length {
        let taken = taken.load(Ordering::Acquire);
        if taken == END {
            break;
        }
        if ready >= taken + LEAD {
            std::thread::sleep(PAUSE);
            continue;
        }
        let step = STEP.min(piece.length - ready);
        // An older system does not know this, and whoever writes asks then.
        if piece.map.advise_range(Advice::PopulateWrite, piece.skipped + ready, step).is_err() {
            break;
        }
        ready += step;
    }
    ready
}
