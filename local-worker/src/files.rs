//! Files that processes share: they appear whole or not at all, so that a reader, and whoever comes after a crash, finds the old
//! one or the new one; one process holds a lock; content is told apart by its hash.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufWriter, Error, ErrorKind, Result};
use std::path::Path;

/// Writes what `put` gives beside `path`, waits for the disk, and puts it in its place.
///
/// # Errors
/// It can't be written, for want of room or otherwise, or `path` is a folder, a device or a pipe; what was there before is
/// untouched, and nothing is left beside it.
pub fn write(path: &Path, put: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(Error::new(ErrorKind::InvalidInput, "is there and no regular file; name another"));
    }
    let beside = path.with_added_extension("partial");
    let write = || {
        let mut file = BufWriter::new(File::create(&beside)?);
        put(&mut file)?;
        file.into_inner()?.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().inspect_err(|_| {
        // Half a file helps nobody; that it can't be removed neither.
        let _left = std::fs::remove_file(&beside);
    })
}

/// Takes the lock that a file stands for, made if it is not there; `None` while another holds it. It is given up when the file
/// is closed.
///
/// # Errors
/// The file can't be made or locked.
pub fn lock(path: &Path) -> Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The BLAKE3 hash of a file, 64 hexadecimal digits.
///
/// # Errors
/// It can't be read.
pub fn hash(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_was_there_stays_where_the_new_can_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        for text in ["one", "two"] {
            write(&file, |new| new.write_all(text.as_bytes())).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        let torn = write(&file, |new| {
            new.write_all(b"thr")?;
            Err(Error::from(ErrorKind::StorageFull))
        });
        assert_eq!(torn.unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        let taken = folder.path().join("b.toml");
        std::fs::create_dir(&taken).unwrap();
        let error = write(&taken, |new| new.write_all(b"three")).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing is left beside: {names:?}");
    }

    #[test]
    fn one_at_a_time_holds_a_lock_and_content_decides_a_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = lock(&path).unwrap().unwrap();
        assert!(lock(&path).unwrap().is_none());
        drop(held);
        assert!(lock(&path).unwrap().is_some());
        assert!(lock(&folder.path().join("none/lock")).is_err());
        std::fs::write(&path, "a").unwrap();
        assert_eq!(hash(&path).unwrap(), blake3::hash(b"a").to_hex().as_str());
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_replaced_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(write(&socket, |new| new.write_all(b"x")).is_err());
        assert!(!std::fs::metadata(&socket).unwrap().is_file());
    }
}
