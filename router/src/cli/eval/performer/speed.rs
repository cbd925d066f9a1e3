//! Time and memory of one score by length: buffers as they are counted, and what they add to a process' resident memory.

use super::{Kind, Scorers};
use crate::cli::table::{self, Align};
use anyhow::Context as _;
use local_worker::scorer::Turn;
use local_worker::scorer::performer::Performer;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Lengths that are measured where nothing is said.
pub const LENGTHS: [usize; 7] = [128, 256, 512, 1024, 2048, 4096, 8192];

/// What is read where there are no prompts.
pub const TEXT: &str = "A gateway scores each request with a small model and sends it to a large one where the small one \
    would not do. How many of 1,204 requests stay if 37 % are hard? Show the steps, then give the answer in one line.";

/// Runs of one length: as many as fit into the time, within these.
const RUNS: std::ops::RangeInclusive<usize> = 5..=101;
const TIME: Duration = Duration::from_secs(2);

/// One length.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Tokens.
    pub tokens: usize,
    /// Median time of a score, in the order of [`Kind::ALL`].
    pub times: [Duration; 3],
    /// Bytes of working buffers; the first works in none.
    pub bytes: [usize; 3],
    /// Bytes that one score adds to the resident memory of a process of its own; `None` where that can't be measured.
    pub resident: [Option<u64>; 3],
}

/// All lengths.
#[derive(Clone, Debug, PartialEq)]
pub struct Speed {
    /// By length.
    pub rows: Vec<Row>,
}

impl Speed {
    /// Measures on texts of these lengths made of `text`.
    pub fn measure(scorers: &Scorers, text: &str, lengths: &[usize]) -> anyhow::Result<Self> {
        let row = |tokens: &usize| {
            let text = of_length(&scorers.performer, text, *tokens);
            let turns = [Turn::user(&text)];
            let mut row = Row { tokens: *tokens, times: [Duration::ZERO; 3], bytes: [0; 3], resident: [None; 3] };
            let figures = row.times.iter_mut().zip(&mut row.bytes).zip(&mut row.resident);
            for (kind, ((time, bytes), resident)) in Kind::ALL.into_iter().zip(figures) {
                match scorers.encoder(kind) {
                    Some(encoder) => {
                        *time = median(|| encoder.score(&turns));
                        *bytes = encoder.read(&turns).bytes;
                    }
                    None => *time = median(|| scorers.ngrams.raw(&turns)),
                }
                *resident = asked(kind, *tokens);
            }
            anyhow::Ok(row)
        };
        Ok(Self { rows: lengths.iter().map(row).collect::<anyhow::Result<_>>()? })
    }

    /// The length from which on random features take less time than softmax: between two measured lengths on straight lines
    /// of logarithms; `None` where one is faster throughout.
    pub fn crossing(&self) -> Option<f64> {
        let point = |row: &Row| {
            let [_, performer, softmax] = row.times.map(|time| time.as_secs_f64().max(1e-9).ln());
            ((row.tokens as f64).ln(), softmax - performer)
        };
        self.rows.windows(2).find_map(|pair| {
            let [(x0, y0), (x1, y1)] = [point(pair.first()?), point(pair.get(1)?)];
            (y0 < 0.0 && y1 >= 0.0).then(|| (x0 + (x1 - x0) * y0 / (y0 - y1)).exp())
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let row = |row: &Row| {
            let mut told = json!({ "tokens": row.tokens });
            for (place, kind) in Kind::ALL.into_iter().enumerate() {
                let (time, bytes) = (row.times.get(place), row.bytes.get(place));
                told[kind.name()] = json!({
                    "us": time.map(|time| time.as_secs_f64() * 1e6),
                    "buffer_bytes": bytes,
                    "resident_bytes": row.resident.get(place).copied().flatten(),
                });
            }
            told
        };
        json!({ "lengths": self.rows.iter().map(row).collect::<Vec<_>>(), "crossing_tokens": self.crossing() })
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let milliseconds = |time: &Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        let mib = |bytes: f64| format!("{:.2}", bytes / f64::from(1 << 20));
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                let times = row.times.iter().map(milliseconds);
                let bytes = row.bytes.iter().skip(1).map(|bytes| mib(*bytes as f64));
                let resident =
                    row.resident.iter().map(|bytes| bytes.map_or("–".to_owned(), |bytes| mib(bytes as f64)));
                [row.tokens.to_string()].into_iter().chain(times).chain(bytes).chain(resident).collect()
            })
            .collect();
        let header = [
            "tokens",
            "static, ms",
            "performer, ms",
            "softmax, ms",
            "performer's buffers, MiB",
            "softmax's, MiB",
            "static resident, MiB",
            "performer's",
            "softmax's",
        ];
        table::print(out, &header.map(|name| (name, Align::Right)), &rows)?;
        match self.crossing() {
            Some(tokens) => writeln!(out, "\nthe Performer is faster than softmax from {tokens:.0} tokens on")?,
            None => writeln!(out, "\nno length at which one overtakes the other was measured")?,
        }
        Ok(())
    }
}

/// Words of a text, over and over, until they make so many tokens.
fn of_length(encoder: &Performer, text: &str, tokens: usize) -> String {
    let (mut made, mut left) = (String::new(), tokens);
    for word in text.split_whitespace().chain(TEXT.split_whitespace()).cycle() {
        let count = encoder.tokens(&[Turn::user(word)]).len();
        if count <= left {
            made.push_str(word);
            made.push(' ');
            left -= count;
        }
        if left == 0 {
            break;
        }
    }
    made
}

fn median(mut work: impl FnMut() -> f64) -> Duration {
    std::hint::black_box(work());
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < *RUNS.start() || (times.len() < *RUNS.end() && begun.elapsed() < TIME) {
        let start = Instant::now();
        std::hint::black_box(work());
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// What one score adds to the memory of a process of its own: this program, asked to tell.
fn asked(kind: Kind, tokens: usize) -> Option<u64> {
    let program = std::env::current_exe().ok().filter(|program| program.file_stem().is_some_and(is_sluice))?;
    let told = Command::new(program)
        .args(["eval", "performer", "--probe", kind.name(), "--lengths", &tokens.to_string()])
        // What was freed before goes back at once, so that it is not used again unseen.
        .env("MIMALLOC_PURGE_DELAY", "0")
        .output()
        .ok()?;
    let told: Value = serde_json::from_slice(&told.stdout).ok()?;
    told["added"].as_u64()
}

/// Tests are programs too, which understand other words.
fn is_sluice(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with("sluice")
}

/// Scores once, in a process that does nothing else, and tells what was added at most.
pub fn probe(kind: Kind, scorers: &Scorers, lengths: &[usize], out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let tokens = lengths.first().context("no length")?;
    let text = of_length(&scorers.performer, TEXT, *tokens);
    let turns = [Turn::user(&text)];
    // What is loaded once is not the reading's.
    let once = [Turn::user(TEXT)];
    std::hint::black_box(
        scorers.encoder(kind).map_or_else(|| scorers.ngrams.raw(&once), |encoder| encoder.score(&once)),
    );
    // The peak begins anew at what is resident now.
    let reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = status("VmRSS:");
    let score = scorers.encoder(kind).map_or_else(|| scorers.ngrams.raw(&turns), |encoder| encoder.score(&turns));
    let peak = status("VmHWM:");
    let added = before.zip(peak).filter(|_| reset).map(|(before, peak)| peak.saturating_sub(before));
    writeln!(out, "{}", json!({ "added": added, "score": score }))?;
    Ok(ExitCode::SUCCESS)
}

/// A figure of this process in bytes.
fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
