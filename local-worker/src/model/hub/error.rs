//! Why a model could not be fetched: each message names the thing and what would help.

use std::path::PathBuf;

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name of a model can't be read.
    #[error("`{text}`: {problem}; write hf:owner/name[@revision][/file]")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong.
        problem: String,
    },
    /// A setting is wrong.
    #[error("{setting} {problem}")]
    Config {
        /// Its name.
        setting: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// It is not in the cache, and the network may not be used.
    #[error("{what} is not in the cache and offline mode is on; pull it once with the network, or copy the cache here")]
    Offline {
        /// The model or file.
        what: String,
    },
    /// The hub wants a token, or refuses the one it got.
    #[error("{what}: the hub answers 401; {}", if *.token_sent { "the token is not valid for it" } else { "set a token, or check the name: it hides what it does not show" })]
    Unauthorized {
        /// The model or file.
        what: String,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The hub knows who asks and refuses.
    #[error("{what}: the hub answers 403; {}", if *.gated { "the model is gated: accept its terms on its page, with the account of the token" } else { "the token may not read it" })]
    Forbidden {
        /// The model or file.
        what: String,
        /// Whether terms have to be accepted first.
        gated: bool,
    },
    /// There is no such model, revision or file.
    #[error("{what}: {problem}")]
    NotFound {
        /// The model or file.
        what: String,
        /// What is missing, and what there is.
        problem: String,
    },
    /// The repository holds several models.
    #[error("{what} holds several files: {}; name one, as in {what}/{}", .files.join(", "), .files.first().map_or("", String::as_str))]
    Ambiguous {
        /// The model.
        what: String,
        /// Its GGUF files.
        files: Vec<String>,
    },
    /// The hub did not answer, or not well, however often it was asked.
    #[error("{what}: {why}; tried {attempts} times")]
    Unreachable {
        /// The model or file.
        what: String,
        /// The last trouble.
        why: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The hub answers with a status that makes no sense here.
    #[error("{what}: the hub answers {status}")]
    Status {
        /// The model or file.
        what: String,
        /// The HTTP status.
        status: u16,
    },
    /// The hub sends another size than it told.
    #[error("{what}: {actual} bytes came, {expected} were told; what came was thrown away")]
    WrongSize {
        /// The file.
        what: String,
        /// Bytes told.
        expected: u64,
        /// Bytes sent, or at least so many.
        actual: u64,
    },
    /// What came is not what the hub's checksum is of.
    #[error("{what}: the checksum is {actual}, not {expected}; what came was thrown away")]
    WrongChecksum {
        /// The file.
        what: String,
        /// As told, hexadecimal.
        expected: String,
        /// As computed, hexadecimal.
        actual: String,
    },
    /// The hub says something that can't be used: no checksum, a hostile name, a redirect that leads nowhere.
    #[error("{what}: {problem}")]
    Malformed {
        /// The model or file.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// There is no room.
    #[error("{}: {needed} bytes are needed and {free} are free; make room or set another cache folder", .path.display())]
    DiskFull {
        /// Where it should go.
        path: PathBuf,
        /// Bytes still to come.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The cache folder can't be used.
    #[error("{}: {error}", .path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}
