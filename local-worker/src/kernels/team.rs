//! Threads that share the work of a product: owned by whoever makes them, never taken from the environment or the host's
//! core count.
//!
//! Products are short (tens of microseconds) and come one after the other, so a helper that has finished looks for the next
//! one a little while before it sleeps. Only a little: a gateway shares its cores, and a helper that spins on a core which
//! somebody else needs would slow down the very thread it waits for. Work is handed out in small pieces, so a helper that
//! the system has put aside holds up nothing but the piece it took.
#![allow(
    unsafe_code,
    reason = "helpers borrow the caller's closure while it waits for them; outputs are shared in parts"
)]

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Looks for new work before a helper sleeps, and for its end before the caller yields; some ten microseconds.
const LOOKS: usize = 2_000;

/// A job as helpers see it: the caller's closure, of which they know that it outlives the job.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    pieces: usize,
}

// SAFETY: the closure is `Sync`, and the caller keeps it alive until every helper has left it.
unsafe impl Send for Job {}

#[derive(Default)]
struct State {
    job: Option<Job>,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Counts jobs, so that helpers see a new one without the lock.
    number: AtomicUsize,
    /// The next piece nobody has taken.
    next: AtomicUsize,
    /// Helpers inside the job: they enter under the lock and leave without it, and the caller waits without it.
    inside: AtomicUsize,
    /// A helper's part of the job panicked.
    failed: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller and its helpers.
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Team").field("threads", &self.threads()).finish()
    }
}

impl Team {
    /// A team of `threads`, the caller included; helpers are called `name`.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(name: &str, threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut team = Self { shared: Arc::clone(&shared), helpers: Vec::new() };
        for _ in 1..threads {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(name.to_owned());
            team.helpers.push(builder.spawn(move || help(&shared))?);
        }
        Ok(team)
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` once for each number below `pieces`, on any of the threads, and returns when all are done. Panics where
    /// `work` does; a helper lost that way is not replaced.
    pub fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        if self.helpers.is_empty() || pieces < 2 {
            (0..pieces).for_each(work);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; `Leaving` below keeps this function from returning or unwinding while a helper
        // is inside, and takes the job away so that none enters later.
        let work: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(std::ptr::from_ref(work)) };
        {
            let mut state = shared.lock();
            shared.next.store(0, Ordering::Relaxed);
            shared.failed.store(false, Ordering::Relaxed);
            state.job = Some(Job { work, pieces });
            shared.number.fetch_add(1, Ordering::Release);
        }
        shared.wake.notify_all();
        let leaving = Leaving(shared);
        // SAFETY: the closure is the caller's, alive for this call.
        take_pieces(shared, unsafe { &*work }, pieces);
        drop(leaving);
        assert!(!shared.failed.load(Ordering::Acquire), "a helper panicked in its part of the work");
    }
}

/// Pieces for each thread: enough that one that is late holds up little.
const PIECES: usize = 4;

/// Works all of `tiles` in pieces of some neighbouring ones, shared by a team if there is one. Pieces begin at multiples of
/// `together`.
pub(super) fn share(team: Option<&Team>, tiles: usize, together: usize, work: impl Fn(Range<usize>) + Sync) {
    let Some(team) = team else { return work(0..tiles) };
    let size = tiles.div_ceil(team.threads() * PIECES).next_multiple_of(together);
    team.run(tiles.div_ceil(size), &|number| work(number * size..((number + 1) * size).min(tiles)));
}

/// Waits until no helper is inside the job, and lets none in any more.
struct Leaving<'team>(&'team Shared);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.lock().job = None;
        let mut looks = 0;
        while self.0.inside.load(Ordering::Acquire) > 0 {
            looks += 1;
            if looks < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.number.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            let _panicked = helper.join();
        }
    }
}

fn take_pieces(shared: &Shared, work: &(dyn Fn(usize) + Sync), pieces: usize) {
    loop {
        let piece = shared.next.fetch_add(1, Ordering::Relaxed);
        if piece >= pieces {
            return;
        }
        work(piece);
    }
}

/// A helper's life.
fn help(shared: &Shared) {
    let mut seen = 0;
    loop {
        for _ in 0..LOOKS {
            if shared.number.load(Ordering::Acquire) != seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut state = shared.lock();
        while !state.closing && shared.number.load(Ordering::Acquire) == seen {
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closing {
            return;
        }
        seen = shared.number.load(Ordering::Acquire);
        let Some(job) = state.job else { continue };
        shared.inside.fetch_add(1, Ordering::AcqRel);
        drop(state);
        let inside = Inside(shared);
        // SAFETY: the job was there when this helper was counted as inside, and its caller waits for those inside.
        take_pieces(shared, unsafe { &*job.work }, job.pieces);
        drop(inside);
    }
}

/// Counts a helper as outside again, also when the work panics.
struct Inside<'team>(&'team Shared);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Release);
        }
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An output that several threads fill, each its own places.
#[derive(Clone, Copy)]
pub(super) struct Output<'out> {
    start: *mut f32,
    length: usize,
    borrowed: PhantomData<&'out mut [f32]>,
}

// SAFETY: writing asks for `unsafe`, with the duty that no two threads write one place.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'out> Output<'out> {
    pub fn new(out: &'out mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), length: out.len(), borrowed: PhantomData }
    }

    /// Copies `values` to `at`.
    ///
    /// # Safety
    /// No other thread writes these places at the same time.
    #[inline(always)]
    pub unsafe fn put(self, at: usize, values: &[f32]) {
        // SAFETY: so many places are there; not written elsewhere, as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.places(at, values.len()), values.len()) };
    }

    /// Where `count` places from `at` on are.
    #[inline(always)]
    pub fn places(self, at: usize, count: usize) -> *mut f32 {
        assert!(at <= self.length && count <= self.length - at, "an output of {} places", self.length);
        // SAFETY: within the slice by the line above.
        unsafe { self.start.add(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_piece_is_worked_once_by_any_number_of_threads() {
        for threads in [1, 2, 4] {
            let team = Team::new("team", threads).unwrap();
            for pieces in [0, 1, 2, 3, 17, 100] {
                let counts: Vec<AtomicU64> = (0..pieces).map(|_| AtomicU64::new(0)).collect();
                for _ in 0..20 {
                    team.run(pieces, &|piece| {
                        counts[piece].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 20), "{threads} threads, {pieces}");
            }
        }
    }

    #[test]
    fn a_panic_of_the_caller_leaves_the_team_usable() {
        let team = Team::new("team", 3).unwrap();
        let caller = std::thread::current().id();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let taken = AtomicBool::new(false);
            team.run(64, &|_| {
                if std::thread::current().id() == caller {
                    taken.store(true, Ordering::Release);
                    panic!("on purpose");
                }
                while !taken.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            });
        }));
        assert!(outcome.is_err());
        let helped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            team.run(64, &|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                assert!(std::thread::current().id() == caller, "on purpose");
            });
        }));
        assert!(helped.is_err(), "a helper's panic is the caller's");
        let sum = AtomicU64::new(0);
        team.run(10, &|piece| {
            sum.fetch_add(piece as u64, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn outputs_take_parts_and_refuse_what_does_not_fit() {
        let mut values = vec![0.0; 6];
        // SAFETY: one thread.
        unsafe { Output::new(&mut values).put(2, &[1.0, 2.0]) };
        assert_eq!(values, [0.0, 0.0, 1.0, 2.0, 0.0, 0.0]);
        let mut short = vec![0.0; 2];
        let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // SAFETY: one thread.
            unsafe { Output::new(&mut short).put(1, &[1.0, 2.0]) }
        }));
        assert!(outside.is_err());
    }
}
