//! One file from the hub to its place: what came before a cut is kept and the rest is asked for; only bytes that hash to
//! what the hub told get the file's name.

use super::cache::{Lock, free_bytes, io, make_parent};
use super::checksum::{Checksum, Hasher};
use super::wire::{Failure, FileFacts, Wire, malformed};
use super::{HubError, Patience, Report};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE};
use reqwest::{Response, StatusCode, Url};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

/// How often a download that another does is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Connections one file may take even if each brings some of it.
const MOST_CONNECTIONS: u32 = 1000;

/// One file to fetch.
pub(super) struct Order<'order> {
    /// Its name for messages.
    pub what: &'order str,
    /// Where it is.
    pub url: Url,
    /// What it must be.
    pub facts: &'order FileFacts,
    /// Where its bytes gather.
    pub partial: PathBuf,
    /// Where it goes.
    pub place: PathBuf,
}

/// Fetches a file, or waits for another that fetches it already.
pub(super) async fn fetch(
    wire: &Wire,
    order: &Order<'_>,
    patience: Patience,
    report: &Report<'_>,
) -> Result<(), HubError> {
    let _lock = loop {
        if order.place.exists() {
            return Ok(());
        }
        if let Some(lock) = Lock::try_take(&order.partial)? {
            break lock;
        }
        report.tell(std::fs::metadata(&order.partial).map_or(0, |known| known.len()).min(order.facts.size));
        tokio::time::sleep(LOOK_EVERY).await;
    };
    // It may have come between the look and the lock.
    if order.place.exists() {
        return Ok(());
    }
    let mut patience = patience;
    let sink = Sink::open(order).await?;
    let resumed = sink.length > 0;
    match fill(sink, wire, order, &mut patience, report).await {
        // What lay there from an earlier run was spoilt; nothing says that the hub's is.
        Err(HubError::WrongChecksum { .. }) if resumed => {
            fill(Sink::open(order).await?, wire, order, &mut patience, report).await
        }
        outcome => outcome,
    }
}

/// Fetches what is missing, checks the whole, and gives it its name.
async fn fill(
    mut sink: Sink,
    wire: &Wire,
    order: &Order<'_>,
    patience: &mut Patience,
    report: &Report<'_>,
) -> Result<(), HubError> {
    let missing = order.facts.size - sink.length;
    let folder = order.partial.parent().unwrap_or(&order.partial);
    if let Some(free) = free_bytes(folder).filter(|free| *free < missing) {
        return Err(HubError::DiskFull { path: folder.to_owned(), needed: missing, free });
    }
    report.tell(sink.length);
    let mut connections = 0;
    while sink.length < order.facts.size {
        let before = sink.length;
        connections += 1;
        match sink.receive(wire, order, report).await {
            Ok(()) => {}
            Err(Failure::Lasting(error)) => {
                if let HubError::WrongSize { .. } = &error {
                    sink.discard().await?;
                }
                return Err(error);
            }
            Err(failure) => {
                if sink.length > before && connections < MOST_CONNECTIONS {
                    patience.restore();
                }
                // What is written is what a later run goes on from.
                sink.flush().await?;
                patience.after(order.what, failure).await?;
            }
        }
    }
    sink.finish(order).await
}

/// A partial file and the checksum of what is in it.
struct Sink {
    path: PathBuf,
    file: File,
    length: u64,
    hasher: Hasher,
}

impl Sink {
    /// Opens what came before, or begins anew; more than there should be is thrown away.
    async fn open(order: &Order<'_>) -> Result<Self, HubError> {
        let path = order.partial.clone();
        make_parent(&path)?;
        let (size, checksum) = (order.facts.size, order.facts.checksum.clone());
        let opened = tokio::task::spawn_blocking(move || reopen(&path, size, &checksum)).await;
        let (file, length, hasher) = match opened {
            Ok(opened) => opened?,
            Err(error) => return Err(io(&order.partial, std::io::Error::other(error.to_string()))),
        };
        Ok(Self { path: order.partial.clone(), file: File::from_std(file), length, hasher })
    }

    /// Receives one answer: all that is missing, unless it is cut.
    async fn receive(&mut self, wire: &Wire, order: &Order<'_>, report: &Report<'_>) -> Result<(), Failure> {
        let mut response = wire.fetch(order.what, order.url.clone(), self.length).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => check_range(order, &response, self.length)?,
            StatusCode::RANGE_NOT_SATISFIABLE if self.length > 0 => {
                self.restart(order).await?;
                return Err(Failure::Passing { why: "the hub can't continue the file".to_owned(), wait: None });
            }
            // The whole again: this server knows no ranges.
            StatusCode::OK => self.restart(order).await?,
            status => {
                let error = HubError::Status { what: order.what.to_owned(), status: status.as_u16() };
                return Err(Failure::Lasting(error));
            }
        }
        let missing = order.facts.size - self.length;
        if let Some(told) = header(&response, CONTENT_LENGTH.as_str()).and_then(|told| told.parse::<u64>().ok())
            && told != missing
        {
            return Err(Failure::Lasting(self.wrong_size(order, self.length.saturating_add(told))));
        }
        while let Some(chunk) = wire.chunk(&mut response).await? {
            let bytes = chunk.as_ref();
            if bytes.len() as u64 > order.facts.size - self.length {
                return Err(Failure::Lasting(self.wrong_size(order, self.length + bytes.len() as u64)));
            }
            self.file.write_all(bytes).await.map_err(|error| io(&self.path, error))?;
            self.hasher.update(bytes);
            self.length += bytes.len() as u64;
            report.tell(self.length);
        }
        match self.length == order.facts.size {
            true => Ok(()),
            false => Err(Failure::Passing { why: "the answer ended early".to_owned(), wait: None }),
        }
    }

    fn wrong_size(&self, order: &Order<'_>, actual: u64) -> HubError {
        HubError::WrongSize { what: order.what.to_owned(), expected: order.facts.size, actual }
    }

    /// Empties the file if there is anything in it.
    async fn restart(&mut self, order: &Order<'_>) -> Result<(), HubError> {
        if self.length > 0 {
            self.flush().await?;
            self.file.set_len(0).await.map_err(|error| io(&self.path, error))?;
            self.length = 0;
            self.hasher = order.facts.checksum.hasher(order.facts.size);
        }
        Ok(())
    }

    /// Hands all that was written to the system: the file's writes go through a buffer.
    async fn flush(&mut self) -> Result<(), HubError> {
        self.file.flush().await.map_err(|error| io(&self.path, error))
    }

    async fn discard(self) -> Result<(), HubError> {
        drop(self.file);
        tokio::fs::remove_file(&self.path).await.map_err(|error| io(&self.path, error))
    }

    /// Checks the whole file and moves it to its place.
    async fn finish(mut self, order: &Order<'_>) -> Result<(), HubError> {
        self.flush().await?;
        self.file.sync_all().await.map_err(|error| io(&self.path, error))?;
        let actual = self.hasher.clone().finish();
        let expected = order.facts.checksum.digits();
        if actual != expected {
            self.discard().await?;
            let (what, expected) = (order.what.to_owned(), expected.to_owned());
            return Err(HubError::WrongChecksum { what, expected, actual });
        }
        make_parent(&order.place)?;
        tokio::fs::rename(&self.path, &order.place).await.map_err(|error| io(&order.place, error))
    }
}

/// Opens a partial file for appending and hashes what is there. Blocks.
fn reopen(path: &Path, size: u64, checksum: &Checksum) -> Result<(std::fs::File, u64, Hasher), HubError> {
    let wrong = |error| io(path, error);
    let file = std::fs::File::options().create(true).append(true).read(true).open(path).map_err(wrong)?;
    let mut hasher = checksum.hasher(size);
    let mut length = file.metadata().map_err(wrong)?.len();
    if length > size {
        file.set_len(0).map_err(wrong)?;
        length = 0;
    }
    let mut left = length;
    let mut buffer = vec![0; 1 << 18];
    while left > 0 {
        let read = (&file).read(&mut buffer).map_err(wrong)?;
        if read == 0 {
            return Err(wrong(std::io::ErrorKind::UnexpectedEof.into()));
        }
        hasher.update(&buffer[..read]);
        left = left.saturating_sub(read as u64);
    }
    Ok((file, length, hasher))
}

/// Whether a partial answer is the part that was asked for.
fn check_range(order: &Order<'_>, response: &Response, from: u64) -> Result<(), Failure> {
    let told = header(response, CONTENT_RANGE.as_str()).unwrap_or_default();
    let right = format!("bytes {from}-{}/{}", order.facts.size - 1, order.facts.size);
    match told == right {
        true => Ok(()),
        false => Err(malformed(order.what, format!("the hub sends the range {told:?} instead of {right:?}"))),
    }
}

fn header<'response>(response: &'response Response, name: &str) -> Option<&'response str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}
