//! Files that are replaced as a whole: a reader, and whoever comes after a crash, finds the old one or the new one.

use std::io::Write as _;
use std::path::Path;

/// Writes `bytes` beside `file`, waits for the disk, and puts them in its place.
///
/// # Errors
/// As [`local_worker::files::write`].
pub fn replace(file: &Path, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
    local_worker::files::write(file, |new| new.write_all(bytes.as_ref()))
}
