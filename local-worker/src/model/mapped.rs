//! Files mapped into memory: weights are packed straight out of the page cache, so that loading takes no second copy of the
//! file, and pages go again when memory is short.
#![allow(unsafe_code, reason = "mapping a file is a promise that nobody cuts it short meanwhile")]

use std::fs::File;
use std::io::Result;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A file's bytes, for as long as it takes to load a model.
#[derive(Debug)]
pub struct Mapped(Option<Mmap>);

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// It can't be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("is no file"));
        }
        // An empty file can't be mapped everywhere.
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: model files are replaced, not written in place, by everything that brings them; who cuts one short while
        // it is loaded kills the process by a signal, as with every program that maps its files, but breaks no memory.
        unsafe { Mmap::map(&file) }.map(|map| Self(Some(map)))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_their_bytes_and_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some");
        std::fs::write(&path, b"bytes").unwrap();
        assert_eq!(&*Mapped::open(&path).unwrap(), b"bytes");
        std::fs::write(&path, b"").unwrap();
        assert!(Mapped::open(&path).unwrap().is_empty());
        assert!(Mapped::open(folder.path()).is_err());
        assert!(Mapped::open(&folder.path().join("none")).is_err());
    }
}
