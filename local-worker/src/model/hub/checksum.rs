//! Checksums as a hub's ETag headers have them: SHA-256 of large files, the git object name (SHA-1) of small ones.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// What a file must hash to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    /// Of the content, 64 hexadecimal digits.
    Sha256(String),
    /// Of `blob SIZE\0` and the content, 40 hexadecimal digits.
    GitBlob(String),
}

impl Checksum {
    /// Reads an ETag; `None` for one that is neither.
    pub fn from_etag(etag: &str) -> Option<Self> {
        let digits = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_ascii_lowercase();
        match digits.len() {
            _ if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => None,
            64 => Some(Self::Sha256(digits)),
            40 => Some(Self::GitBlob(digits)),
            _ => None,
        }
    }

    /// Its hexadecimal digits.
    pub fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitBlob(digits) => digits,
        }
    }

    /// Begins to hash a content of `size` bytes.
    pub fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => Hasher::GitBlob(Sha1::new().chain_update(format!("blob {size}\0"))),
        }
    }
}

/// A checksum under way.
#[derive(Clone)]
pub(super) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    /// The digits.
    pub fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => hexadecimal(&hasher.finalize()),
            Self::GitBlob(hasher) => hexadecimal(&hasher.finalize()),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string can't fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_read_and_contents_hash_to_them() {
        // `printf 'hello\n' | git hash-object --stdin`, and the same with sha256sum.
        let git = Checksum::from_etag("\"ce013625030ba8dba906f756967f9e9ca394464a\"").unwrap();
        let plain = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let large = Checksum::from_etag(&format!("W/\"{}\"", plain.to_uppercase())).unwrap();
        for checksum in [git, large] {
            let mut hasher = checksum.hasher(6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            assert_eq!(hasher.finish(), checksum.digits());
        }
        for other in ["", "\"abc\"", "\"zz013625030ba8dba906f756967f9e9ca394464a\""] {
            assert_eq!(Checksum::from_etag(other), None, "{other}");
        }
    }
}
