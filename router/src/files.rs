//! Files that are replaced as a whole: a reader, and whoever comes after a crash, finds the old one or the new one.

use std::io::Write as _;
use std::path::Path;

/// Writes `bytes` beside `file`, waits for the disk, and puts them in its place.
///
/// # Errors
/// The file can't be written, for want of room or otherwise; what was there before is untouched.
pub fn replace(file: &Path, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
    let beside = file.with_added_extension("new");
    let write = || {
        let mut new = std::fs::File::create(&beside)?;
        new.write_all(bytes.as_ref())?;
        new.sync_all()?;
        std::fs::rename(&beside, file)
    };
    write().inspect_err(|_| {
        // Half a file helps nobody; that it can't be removed neither.
        let _left = std::fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_stays_where_the_new_can_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        replace(&file, "one").unwrap();
        replace(&file, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        let taken = folder.path().join("b.toml");
        std::fs::create_dir(&taken).unwrap();
        assert!(replace(&taken, "three").is_err());
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing is left beside: {names:?}");
    }
}
