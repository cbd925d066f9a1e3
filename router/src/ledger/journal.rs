//! The append-only file that every record goes into first: `CHECKSUM JSON\n`, one record a line.
//!
//! Segments are numbered; the store remembers the segment and offset it has taken. A segment that the store has taken
//! whole is deleted. A damaged line at the end of a segment (a torn write) is set aside into a `.torn` file; what stands
//! before it is kept.

use super::stored::Record;
use super::{LedgerError, LedgerOptions};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Hexadecimal digits of the checksum: the first half of blake3's first 16 bytes.
const CHECKSUM_DIGITS: usize = 16;

/// A place in the journal: ordered by segment, then offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Bytes into it.
    pub offset: u64,
}

struct Appender {
    file: File,
    end: Position,
}

/// The journal of a ledger's folder.
pub struct Journal {
    folder: PathBuf,
    options: LedgerOptions,
    appender: Mutex<Appender>,
    written: AtomicU64,
    drained_bytes: AtomicU64,
    drained: watch::Sender<Position>,
    grown: tokio::sync::Notify,
    /// Fired when the writer is gone: nobody drains any more.
    writer_gone: CancellationToken,
}

fn segment_path(folder: &Path, segment: u64) -> PathBuf {
    folder.join(format!("journal-{segment:010}.log"))
}

fn segments(folder: &Path) -> std::io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if let Some(number) = name.strip_prefix("journal-").and_then(|rest| rest.strip_suffix(".log")) {
            found.extend(number.parse::<u64>());
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn checksum(json: &str) -> String {
    let hash = blake3::hash(json.as_bytes()).to_hex();
    hash.as_str().chars().take(CHECKSUM_DIGITS).collect()
}

/// The record of a line, if the line is whole and says what was written.
fn parse(line: &str) -> Option<Record> {
    let (sum, json) = line.split_once(' ')?;
    if sum != checksum(json) {
        return None;
    }
    serde_json::from_str(json).ok()
}

impl Journal {
    /// Opens the journal of `folder`, of which the store has taken everything before `taken`. Damaged ends are set aside.
    pub fn open(
        folder: &Path,
        options: LedgerOptions,
        taken: &Position,
        torn: &mut Vec<PathBuf>,
    ) -> Result<Self, LedgerError> {
        let unusable =
            |error: std::io::Error| LedgerError::Folder { path: folder.to_owned(), reason: error.to_string() };
        let mut backlog = 0;
        let mut last = taken.segment;
        for segment in segments(folder).map_err(unusable)? {
            if segment < taken.segment {
                std::fs::remove_file(segment_path(folder, segment)).map_err(unusable)?;
                continue;
            }
            let from = if segment == taken.segment { taken.offset } else { 0 };
            backlog += set_torn_aside(folder, segment, from, torn).map_err(unusable)?;
            last = segment;
        }
        // A fresh segment: nobody ever appends behind what another process wrote.
        let end = Position { segment: last + 1, offset: 0 };
        let path = segment_path(folder, end.segment);
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.map_err(|error| LedgerError::Folder { path: path.clone(), reason: error.to_string() })?;
        Ok(Self {
            folder: folder.to_owned(),
            options,
            appender: Mutex::new(Appender { file, end }),
            written: AtomicU64::new(backlog),
            drained_bytes: AtomicU64::new(0),
            drained: watch::Sender::new(*taken),
            grown: tokio::sync::Notify::new(),
            writer_gone: CancellationToken::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Appender> {
        self.appender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a record with one write call, so that a killed process leaves whole records.
    pub fn append(&self, record: &Record) -> Result<(), LedgerError> {
        let mut appender = self.lock();
        let unwritable = |segment: u64, reason: String| LedgerError::JournalUnwritable {
            path: segment_path(&self.folder, segment),
            reason,
        };
        let json =
            serde_json::to_string(record).map_err(|error| unwritable(appender.end.segment, error.to_string()))?;
        let line = format!("{} {json}\n", checksum(&json));
        if appender.end.offset >= self.options.segment_bytes {
            let segment = appender.end.segment + 1;
            let file = OpenOptions::new().create_new(true).append(true).open(segment_path(&self.folder, segment));
            appender.file = file.map_err(|error| unwritable(segment, error.to_string()))?;
            appender.end = Position { segment, offset: 0 };
        }
        let before = appender.end.offset;
        let mut outcome = appender.file.write_all(line.as_bytes());
        if outcome.is_ok() && self.options.sync_each {
            outcome = appender.file.sync_data();
        }
        if let Err(error) = outcome {
            // Half a line may stand there: cut it off, or leave the segment behind for good.
            if appender.file.set_len(before).is_err() {
                appender.end.offset = self.options.segment_bytes;
            }
            return Err(unwritable(appender.end.segment, error.to_string()));
        }
        appender.end.offset += line.len() as u64;
        drop(appender);
        self.written.fetch_add(line.len() as u64, Ordering::Relaxed);
        self.grown.notify_one();
        Ok(())
    }

    /// The present end.
    pub fn end(&self) -> Position {
        self.lock().end
    }

    /// Waits until something was appended since the last wait.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }

    /// Waits until the store has taken everything before `position`, or the writer is gone.
    pub async fn drained_to(&self, position: Position) {
        let mut drained = self.drained.subscribe();
        tokio::select! {
            _ = drained.wait_for(|now| *now >= position) => {}
            () = self.writer_gone.cancelled() => {}
        }
    }

    /// To be held by the writer: its drop says that nobody drains any more.
    pub fn writer_guard(&self) -> DropGuard {
        self.writer_gone.clone().drop_guard()
    }

    /// Bytes that the store has not taken.
    pub fn backlog_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed).saturating_sub(self.drained_bytes.load(Ordering::Relaxed))
    }

    /// Up to `most` records from `from` on, with the position behind them. Moves on to the next segment at the end of one.
    pub fn read(&self, from: Position, most: usize) -> std::io::Result<(Vec<Record>, Position)> {
        let end = self.end();
        let mut position = from;
        loop {
            let path = segment_path(&self.folder, position.segment);
            let text = read_from(&path, position.offset)?;
            let mut records = Vec::new();
            for line in text.split_inclusive('\n').take(most) {
                let Some(record) = line.strip_suffix('\n').and_then(parse) else { break };
                records.push(record);
                position.offset += line.len() as u64;
            }
            if !records.is_empty() || position.segment >= end.segment {
                return Ok((records, position));
            }
            position = Position { segment: position.segment + 1, offset: 0 };
        }
    }

    /// Notes that the store has taken everything before `position`; segments before it are deleted.
    pub fn taken(&self, position: Position, bytes: u64) {
        self.drained_bytes.fetch_add(bytes, Ordering::Relaxed);
        let before = self.drained.send_replace(position);
        for segment in before.segment..position.segment {
            let path = segment_path(&self.folder, segment);
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "a drained journal segment could not be deleted");
            }
        }
    }
}

/// The text of a file from an offset on; empty if there is no such file.
fn read_from(path: &Path, offset: u64) -> std::io::Result<String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(4 << 20).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Cuts what follows the last whole record of a segment into a `.torn` file; returns the bytes that stay to be drained.
fn set_torn_aside(folder: &Path, segment: u64, from: u64, torn: &mut Vec<PathBuf>) -> std::io::Result<u64> {
    let path = segment_path(folder, segment);
    let bytes = std::fs::read(&path)?;
    let rest = bytes.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
    let mut whole = 0;
    for line in rest.split_inclusive(|byte| *byte == b'\n') {
        let text = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        if text.and_then(parse).is_none() {
            break;
        }
        whole += line.len();
    }
    if whole < rest.len() {
        let aside = path.with_extension("torn");
        std::fs::write(&aside, &rest[whole..])?;
        OpenOptions::new().write(true).open(&path)?.set_len(from + whole as u64)?;
        torn.push(aside);
    }
    Ok(whole as u64)
}
