//! The append-only file that every record goes into first: `CHECKSUM JSON\n`, one record a line.
//!
//! Segments are numbered; the store remembers the segment and offset it has taken. A segment that the store has taken
//! whole is deleted. What is damaged is set aside into `.torn` files named by segment and offset: the torn end of a
//! segment, and lines in the middle whose checksum is wrong. Whole records before and behind the damage are kept.

use super::stored::Record;
use super::{LedgerError, LedgerOptions};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Hexadecimal digits of the checksum: the first half of blake3's first 16 bytes.
const CHECKSUM_DIGITS: usize = 16;

/// Bytes after which a batch is large enough; a single larger record is a batch of its own.
const BATCH_BYTES: u64 = 4 << 20;

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
    /// Something half-written stands behind the end: the next record goes into a new segment.
    sealed: bool,
}

/// How far the writer got.
#[derive(Clone, Copy, Debug)]
struct Progress {
    taken: Position,
    /// How often the store refused.
    failures: u64,
}

/// The journal of a ledger's folder.
pub struct Journal {
    folder: PathBuf,
    options: LedgerOptions,
    appender: Mutex<Appender>,
    written: AtomicU64,
    drained_bytes: AtomicU64,
    progress: watch::Sender<Progress>,
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

/// Opens a new segment; when `durable`, its name survives a loss of power too.
fn new_segment(folder: &Path, segment: u64, durable: bool) -> std::io::Result<File> {
    let file = OpenOptions::new().create_new(true).append(true).open(segment_path(folder, segment))?;
    if durable {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

fn aside_path(segment: &Path, offset: u64) -> PathBuf {
    segment.with_extension(format!("{offset}.torn"))
}

fn checksum(json: &str) -> String {
    let hash = blake3::hash(json.as_bytes()).to_hex();
    hash.as_str().chars().take(CHECKSUM_DIGITS).collect()
}

/// The record of a line, if the line is whole and says what was written.
fn parse(line: &[u8]) -> Option<Record> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (sum, json) = line.split_once(' ')?;
    if sum != checksum(json) {
        return None;
    }
    serde_json::from_str(json).ok()
}

impl Journal {
    /// Opens the journal of `folder`, of which the store has taken everything before `taken`. Damage is set aside and named
    /// in `torn`.
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
            backlog += set_damage_aside(folder, segment, from, torn).map_err(unusable)?;
            last = segment;
        }
        // A fresh segment: nobody ever appends behind what another process wrote.
        let end = Position { segment: last + 1, offset: 0 };
        let path = segment_path(folder, end.segment);
        let file = new_segment(folder, end.segment, options.sync_each);
        let file = file.map_err(|error| LedgerError::Folder { path, reason: error.to_string() })?;
        Ok(Self {
            folder: folder.to_owned(),
            options,
            appender: Mutex::new(Appender { file, end, sealed: false }),
            written: AtomicU64::new(backlog),
            drained_bytes: AtomicU64::new(0),
            progress: watch::Sender::new(Progress { taken: *taken, failures: 0 }),
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
        if appender.sealed || appender.end.offset >= self.options.segment_bytes {
            let segment = appender.end.segment + 1;
            let file = new_segment(&self.folder, segment, self.options.sync_each);
            let file = file.map_err(|error| unwritable(segment, error.to_string()))?;
            *appender = Appender { file, end: Position { segment, offset: 0 }, sealed: false };
        }
        let before = appender.end.offset;
        let mut outcome = appender.file.write_all(line.as_bytes());
        if outcome.is_ok() && self.options.sync_each {
            outcome = appender.file.sync_data();
        }
        if let Err(error) = outcome {
            // Half a line may stand there: cut it off, or leave the segment behind for good.
            appender.sealed = appender.file.set_len(before).is_err();
            return Err(unwritable(appender.end.segment, error.to_string()));
        }
        appender.end.offset += line.len() as u64;
        self.written.fetch_add(line.len() as u64, Ordering::Relaxed);
        drop(appender);
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

    /// Waits until the store has taken everything before `position`, has refused a batch, or the writer is gone.
    pub async fn drained_to(&self, position: Position) {
        let mut progress = self.progress.subscribe();
        let failures = progress.borrow().failures;
        tokio::select! {
            _ = progress.wait_for(|now| now.taken >= position || now.failures != failures) => {}
            () = self.writer_gone.cancelled() => {}
        }
    }

    /// Whether the store has taken all there is.
    pub fn is_drained(&self) -> bool {
        let end = self.end();
        self.progress.borrow().taken >= end
    }

    /// Notes that the store refused a batch, so that nobody waits for it longer.
    pub fn refused(&self) {
        self.progress.send_modify(|progress| progress.failures += 1);
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
    /// Damaged lines are set aside and passed over; no records and no progress means that there are none.
    ///
    /// # Errors
    /// A segment can't be read, or ends before what was written into it.
    pub fn read(&self, from: Position, most: usize) -> std::io::Result<(Vec<Record>, Position)> {
        let end = self.end();
        let mut position = from;
        while position.segment < end.segment {
            let (records, to) = self.read_segment(position, u64::MAX, most)?;
            if to != position {
                return Ok((records, to));
            }
            position = Position { segment: position.segment + 1, offset: 0 };
        }
        // What stands behind the end is not written yet, or was taken back.
        let (records, to) = self.read_segment(position, end.offset, most)?;
        if to == position && position < end {
            let path = segment_path(&self.folder, end.segment);
            let reason = format!("{} ends before what was written into it", path.display());
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason));
        }
        Ok((records, to))
    }

    fn read_segment(&self, from: Position, until: u64, most: usize) -> std::io::Result<(Vec<Record>, Position)> {
        let (mut records, mut to) = (Vec::new(), from);
        let path = segment_path(&self.folder, from.segment);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((records, to)),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(from.offset))?;
        let mut lines = BufReader::with_capacity(64 << 10, file.take(until.saturating_sub(from.offset)));
        let mut line = Vec::new();
        while records.len() < most && to.offset - from.offset < BATCH_BYTES {
            line.clear();
            lines.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                break;
            }
            match parse(&line) {
                Some(record) => records.push(record),
                None => {
                    let aside = aside_path(&path, to.offset);
                    tracing::error!(aside = %aside.display(), "a damaged record of the journal is set aside");
                    std::fs::write(&aside, &line)?;
                }
            }
            to.offset += line.len() as u64;
        }
        Ok((records, to))
    }

    /// Notes that the store has taken everything before `position`; segments before it are deleted.
    pub fn taken(&self, position: Position, bytes: u64) {
        self.drained_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut before = position;
        self.progress.send_modify(|progress| before = std::mem::replace(&mut progress.taken, position));
        let appender = self.lock();
        if position >= appender.end {
            // Nothing is left, whatever the sums say: a segment may have been lost on the way.
            self.drained_bytes.store(self.written.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        drop(appender);
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

/// Copies damaged lines of a segment into `.torn` files and cuts off what follows its last whole line; returns the bytes
/// that stay to be drained.
fn set_damage_aside(folder: &Path, segment: u64, from: u64, torn: &mut Vec<PathBuf>) -> std::io::Result<u64> {
    let path = segment_path(folder, segment);
    let bytes = std::fs::read(&path)?;
    let rest = bytes.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
    let mut stays = 0;
    for line in rest.split_inclusive(|byte| *byte == b'\n') {
        let is_whole = line.ends_with(b"\n");
        if parse(line).is_none() {
            let aside = aside_path(&path, from + stays);
            std::fs::write(&aside, line)?;
            torn.push(aside);
        }
        if is_whole {
            stays += line.len() as u64;
        } else {
            OpenOptions::new().write(true).open(&path)?.set_len(from + stays)?;
        }
    }
    Ok(stays)
}

#[cfg(test)]
mod tests;
