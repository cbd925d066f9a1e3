//! A progress bar on the terminal's error output; nothing where that is no terminal.

use crate::cli::table::{bytes, clip};
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Cells of the bar itself.
const CELLS: u64 = 24;
/// Pause between two drawings.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// A bar under way.
pub struct Bar {
    visible: bool,
    state: Mutex<State>,
}

struct State {
    started: Instant,
    /// Bytes that were here at the first look: they say nothing of the speed.
    before: Option<u64>,
    drawn: Option<Instant>,
}

impl Bar {
    /// Starts the clock.
    pub fn new() -> Self {
        let state = State { started: Instant::now(), before: None, drawn: None };
        Self { visible: std::io::stderr().is_terminal(), state: Mutex::new(state) }
    }

    /// Shows how far it is.
    pub fn tell(&self, file: &str, done: u64, total: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.visible || total == 0 || state.drawn.is_some_and(|drawn| drawn.elapsed() < DRAW_EVERY && done < total)
        {
            return;
        }
        let before = *state.before.get_or_insert(done);
        state.drawn = Some(Instant::now());
        let line = line(file, (before, done, total), state.started.elapsed());
        // A terminal that went away is no reason to stop.
        let _gone = write!(std::io::stderr(), "\r\x1b[K{line}");
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        let drawn = self.state.lock().unwrap_or_else(PoisonError::into_inner).drawn.is_some();
        if drawn {
            let _gone = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// One line: file, bar, share, sizes, speed, time left.
fn line(file: &str, (before, done, total): (u64, u64, u64), elapsed: Duration) -> String {
    let full = u128::from(done.min(total)) * u128::from(CELLS) / u128::from(total);
    let full = usize::try_from(full).unwrap_or_default();
    let bar = format!("{}{}", "━".repeat(full), "─".repeat(CELLS as usize - full));
    let share = done.min(total) as f64 / total as f64 * 100.0;
    let speed = done.saturating_sub(before) as f64 / elapsed.as_secs_f64().max(1e-3);
    let rest = match speed {
        speed if speed >= 1.0 && done < total => {
            let seconds = ((total - done) as f64 / speed).ceil() as u64;
            format!("  {}/s  {}:{:02} left", bytes(speed as u64), seconds / 60, seconds % 60)
        }
        _ => String::new(),
    };
    format!("{:<28} {bar} {share:>3.0} %  {} of {}{rest}", clip(file, 28), bytes(done), bytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_share_speed_and_time_left() {
        let megabyte = 1 << 20;
        let half = line("model.gguf", (0, 50 * megabyte, 100 * megabyte), Duration::from_secs(5));
        let bar = format!("{}{}", "━".repeat(12), "─".repeat(12));
        assert_eq!(
            half,
            format!("model.gguf{} {bar}  50 %  50.0 MiB of 100.0 MiB  10.0 MiB/s  0:05 left", " ".repeat(18))
        );
        let resumed = line("m", (50 * megabyte, 50 * megabyte, 100 * megabyte), Duration::from_secs(1));
        assert!(resumed.ends_with("50.0 MiB of 100.0 MiB"), "{resumed}");
        assert!(line("m", (0, 7, 7), Duration::ZERO).contains("100 %"));
    }
}
