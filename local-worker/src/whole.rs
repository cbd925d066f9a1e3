//! Files that appear whole or not at all: a reader, and whoever comes after a crash, finds the old one or the new one.

use std::fs::File;
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
