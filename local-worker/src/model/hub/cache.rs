//! The folder that models are kept in: `owner/name/COMMIT/file`, so that what a commit holds never changes.
//!
//! Beside the commits lie `refs/REVISION` (the commit a branch or tag last meant), `COMMIT.json` (what the hub listed) and
//! `partial/CHECKSUM` (bytes that came before a cut). A file under its own name is whole and checked: it got there by one
//! rename. Knows nothing of HTTP.

use super::reference::{is_commit, is_safe_file};
use super::{HubError, HubReference};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What the hub listed for a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listing {
    /// The commit.
    pub commit: String,
    /// All files of the repository.
    pub files: Vec<String>,
    /// The licence, as the hub names it.
    pub license: Option<String>,
}

/// One repository's folder.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    root: PathBuf,
}

impl Shelf {
    /// The folder of a reference's repository below a cache folder.
    pub fn of(cache: &Path, reference: &HubReference) -> Self {
        Self { root: cache.join(reference.repository()) }
    }

    /// Where a commit's files go.
    pub fn commit(&self, commit: &str) -> PathBuf {
        self.root.join(commit)
    }

    /// What is known of the revision, if it was ever listed.
    pub fn listing(&self, revision: &str) -> Option<Listing> {
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => fs::read_to_string(self.root.join("refs").join(revision)).ok()?.trim().to_owned(),
        };
        let text = fs::read(self.root.join(format!("{commit}.json"))).ok()?;
        let listing: Listing = serde_json::from_slice(&text).ok()?;
        // A folder that others write to is no more to be trusted than the hub.
        (is_commit(&commit) && listing.commit == commit && listing.files.iter().all(|file| is_safe_file(file)))
            .then_some(listing)
    }

    /// Keeps what the hub listed.
    pub fn keep(&self, revision: &str, listing: &Listing) -> Result<(), HubError> {
        let text = serde_json::to_vec_pretty(listing).unwrap_or_default();
        write_whole(&self.root.join(format!("{}.json", listing.commit)), &text)?;
        if is_commit(revision) {
            return Ok(());
        }
        write_whole(&self.root.join("refs").join(revision), listing.commit.as_bytes())
    }

    /// Where a file's bytes gather until they are whole.
    pub fn partial(&self, digits: &str) -> PathBuf {
        self.root.join("partial").join(digits)
    }
}

/// A download's right of way, over all processes that share the cache; given up when dropped.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held for its lock, never read")] File);

impl Lock {
    /// Takes the lock of a partial file, or `None` while another holds it.
    pub fn try_take(partial: &Path) -> Result<Option<Self>, HubError> {
        let path = partial.with_extension("lock");
        make_parent(&path)?;
        Ok(crate::files::lock(&path).map_err(|error| io(&path, error))?.map(Self))
    }
}

/// Bytes free for us in a folder that exists; `None` where the system won't say.
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    let told = rustix::fs::statvfs(folder).ok()?;
    Some(told.f_bavail.saturating_mul(told.f_frsize))
}

/// Makes the folder that a file goes into.
pub(super) fn make_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| io(parent, error))
}

/// An error of the system with its path; a full disk is told as such.
pub(super) fn io(path: &Path, error: std::io::Error) -> HubError {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => HubError::DiskFull { path: path.to_owned(), needed: 1, free: 0 },
        _ => HubError::Io { path: path.to_owned(), error },
    }
}

/// Writes a small file so that readers see all of it or the one before.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    make_parent(path)?;
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&beside, bytes).map_err(|error| io(&beside, error))?;
    fs::rename(&beside, path).map_err(|error| io(path, error))
}
