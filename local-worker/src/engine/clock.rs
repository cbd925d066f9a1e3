//! Processor time of this thread, so that waiting for a busy machine is not booked as work.

/// Since when to count.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThreadClock(u64);

impl ThreadClock {
    /// Counts from now on.
    pub fn start() -> Self {
        Self(now())
    }

    /// Nanoseconds of this thread since the start.
    pub fn nanos(self) -> u64 {
        now().saturating_sub(self.0)
    }
}

/// Does some work on this thread and tells how much of its processor it took.
pub fn processor_time<T>(work: impl FnOnce() -> T) -> (T, std::time::Duration) {
    let clock = ThreadClock::start();
    let done = work();
    (done, std::time::Duration::from_nanos(clock.nanos()))
}

#[cfg(unix)]
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Without a thread's clock, time as such: an upper bound.
#[cfg(not(unix))]
fn now() -> u64 {
    use std::sync::LazyLock;
    use std::time::Instant;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}
