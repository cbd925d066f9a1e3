//! Names of models at a hub. Each part becomes a folder or file name, so what could lead out of the cache is no name.

use super::HubError;
use std::fmt;
use std::str::FromStr;

/// What a name begins with.
const PREFIX: &str = "hf:";
/// The revision where none is named.
const MAIN: &str = "main";

/// `hf:owner/name[@revision][/file]`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubReference {
    repository: String,
    revision: String,
    file: Option<String>,
}

impl HubReference {
    /// `owner/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Branch, tag or commit; `main` where none was named. Without slashes.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The file within the repository, if one was named; else the repository as a whole is meant.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl FromStr for HubReference {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let wrong = |problem: &str| HubError::Reference { text: text.to_owned(), problem: problem.to_owned() };
        let rest = text.strip_prefix(PREFIX).ok_or_else(|| wrong("does not begin with hf:"))?;
        let mut parts = rest.splitn(3, '/');
        let owner = parts.next().unwrap_or_default();
        let name = parts.next().ok_or_else(|| wrong("has no owner"))?;
        let (name, revision) = name.split_once('@').unwrap_or((name, MAIN));
        if !is_word(owner) || !is_word(name) {
            return Err(wrong("owner and name are of letters, digits, `-`, `_` and `.`"));
        }
        if !is_word(revision) {
            return Err(wrong("a revision is a branch, tag or commit without slashes"));
        }
        let file = parts.next().filter(|file| !file.is_empty()).map(str::to_owned);
        if file.as_deref().is_some_and(|file| !is_safe_file(file)) {
            return Err(wrong("the file's name leads out of the repository"));
        }
        Ok(Self { repository: format!("{owner}/{name}"), revision: revision.to_owned(), file })
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}", self.repository)?;
        if self.revision != MAIN {
            write!(formatter, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(formatter, "/{file}"))
    }
}

/// Whether a text is one plain part of a path: at most 96 characters, the first a letter or digit.
fn is_word(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= 96
        && text.bytes().all(plain)
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether a name, ours or the hub's, stays within the folder it is appended to.
pub(super) fn is_safe_file(name: &str) -> bool {
    let strange = |letter: char| letter.is_control() || letter == '\\' || letter == ':';
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    name.len() <= 1024 && !name.contains(strange) && name.split('/').all(part)
}

/// Whether a text is a commit: 40 hexadecimal digits in lower case.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let check = |text: &str, repository: &str, revision: &str, file: Option<&str>| {
            let reference: HubReference = text.parse().unwrap();
            assert_eq!((reference.repository(), reference.revision(), reference.file()), (repository, revision, file));
            assert_eq!(reference.to_string(), text);
        };
        check("hf:a/b", "a/b", "main", None);
        check("hf:a/b.c-1_2@v1.0", "a/b.c-1_2", "v1.0", None);
        check("hf:a/b/q4.gguf", "a/b", "main", Some("q4.gguf"));
        check("hf:a/b@0123/deep/q4.gguf", "a/b", "0123", Some("deep/q4.gguf"));
    }

    #[test]
    fn what_leads_out_of_the_cache_is_no_name() {
        for text in [
            "a/b",
            "hf:",
            "hf:a",
            "hf:/b",
            "hf:../b",
            "hf:a/..",
            "hf:a/b@",
            "hf:a/b@..",
            "hf:a/b@a b",
            "hf:a/b/../c",
            "hf:a/b//c",
            "hf:a/b/c\\d",
            "hf:a/b/./c",
            "hf:a/-b",
            "hf:a?/b",
            "hf:a/b/c\n",
        ] {
            assert!(matches!(text.parse::<HubReference>(), Err(HubError::Reference { .. })), "{text:?}");
        }
        assert!(!is_commit("main") && !is_commit(&"A".repeat(40)) && is_commit(&"0a".repeat(20)));
    }
}
