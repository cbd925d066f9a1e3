//! A hub for tests, on loopback: Hugging Face's protocol with faults on command, and a book of what was asked and served.
//!
//! Large files redirect to a second port, as the real one does to its storage; both note whether a token came along.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, VecDeque};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What goes wrong with one answer. Content faults meet the next `GET` of a file's bytes.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection closes after so many bytes of the content.
    Cut(usize),
    /// Nothing more comes after so many bytes, while the connection stays.
    Stall(usize),
    /// A status with `X-Error-Code` instead of an answer.
    Status(u16, &'static str),
    /// One byte of the content is another.
    WrongByte,
    /// More bytes than told, announced.
    Longer,
    /// Fewer bytes than told, announced.
    Shorter,
    /// The whole, whatever range was asked for.
    NoRange,
    /// Status 416.
    Unsatisfiable,
    /// Another range than was asked for.
    WrongRange,
    /// A redirect to an address.
    Redirect(String),
    /// A pause after each 16 KiB.
    Slow(Duration),
    /// A file's ETag says nothing.
    NoChecksum,
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET` or `HEAD`.
    pub method: String,
    /// With query.
    pub path: String,
    /// First byte of the range asked for.
    pub from: Option<usize>,
    /// The token sent, if any.
    pub token: Option<String>,
    /// Whether it came to the storage and not to the hub itself.
    pub storage: bool,
}

/// A repository's state.
#[derive(Debug, Clone, Default)]
struct Repository {
    commit: String,
    files: Vec<(String, Arc<Vec<u8>>)>,
}

#[derive(Debug, Default)]
struct Book {
    repositories: HashMap<String, Vec<Repository>>,
    faults: HashMap<String, VecDeque<Fault>>,
    seen: Vec<Seen>,
    served: HashMap<String, usize>,
    token: Option<String>,
}

/// A hub that serves until the process ends.
#[derive(Debug, Clone)]
pub struct HubServer {
    address: SocketAddr,
    storage: SocketAddr,
    book: Arc<Mutex<Book>>,
}

/// Files above this many bytes are large: they have a SHA-256 and lie in the storage.
const LARGE: usize = 1000;

impl HubServer {
    /// Starts on free ports.
    ///
    /// # Errors
    /// No port is free.
    pub fn start() -> std::io::Result<Self> {
        let (hub, storage) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let server = Self { address: hub.local_addr()?, storage: storage.local_addr()?, book: Arc::default() };
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let server = server.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let server = server.clone();
                    std::thread::spawn(move || server.converse(stream, is_storage));
                }
            });
        }
        Ok(server)
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a commit: `main` means it from now on. Returns its name.
    pub fn commit(&self, repository: &str, files: &[(&str, &[u8])]) -> String {
        let mut hasher = Sha1::new();
        files.iter().for_each(|(name, bytes)| hasher.update([name.as_bytes(), bytes].concat()));
        let commit = digits(&hasher.finalize());
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), Arc::new(bytes.to_vec()))).collect();
        let mut book = self.book();
        let commits = book.repositories.entry(repository.to_owned()).or_default();
        commits.push(Repository { commit: commit.clone(), files });
        commit
    }

    /// What shall go wrong, in order: of a file's content by its name, of its `HEAD` as `HEAD name`, of descriptions as `api`.
    pub fn fail(&self, of: &str, faults: impl IntoIterator<Item = Fault>) {
        self.book().faults.entry(of.to_owned()).or_default().extend(faults);
    }

    /// Wants a token from now on.
    pub fn want(&self, token: &str) {
        self.book().token = Some(token.to_owned());
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.book().seen.clone()
    }

    /// Bytes of a file's content handed out so far.
    pub fn served(&self, file: &str) -> usize {
        self.book().served.get(file).copied().unwrap_or(0)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn converse(&self, stream: TcpStream, storage: bool) {
        let Ok(reading) = stream.try_clone() else { return };
        let mut reader = BufReader::new(reading);
        let mut stream = stream;
        while let Some(seen) = read_request(&mut reader, storage) {
            self.book().seen.push(seen.clone());
            let reply = self.reply(&seen);
            // An error here is a client that went away.
            if !matches!(self.send(&mut stream, &seen, reply), Ok(true)) {
                return;
            }
        }
    }

    fn reply(&self, seen: &Seen) -> Reply {
        let book = self.book();
        if !seen.storage && book.token.is_some() && seen.token != book.token {
            return Reply::status(401);
        }
        drop(book);
        let path = seen.path.split('?').next().unwrap_or_default().trim_start_matches('/');
        if let Some(rest) = path.strip_prefix("api/models/") {
            let Some((repository, revision)) = rest.split_once("/revision/") else { return Reply::status(404) };
            return self.describe(repository, revision);
        }
        let small = path.strip_prefix("cached/");
        let Some((repository, rest)) = small.unwrap_or(path).split_once("/resolve/") else {
            return Reply::status(404);
        };
        let (revision, file) = rest.split_once('/').unwrap_or((rest, ""));
        let Some((commit, bytes)) = self.content(repository, revision, file) else {
            return Reply::status(404).with("X-Error-Code", "EntryNotFound");
        };
        let fault = self.fault(&if seen.method == "HEAD" { format!("HEAD {file}") } else { String::new() });
        let large = bytes.len() > LARGE;
        let etag = match (&fault, large) {
            (Some(Fault::NoChecksum), _) => "\"none\"".to_owned(),
            (_, true) => format!("\"{}\"", digits(&Sha256::digest(&*bytes))),
            (_, false) => {
                let object = Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(&*bytes);
                format!("\"{}\"", digits(&object.finalize()))
            }
        };
        if let Some(Fault::Status(status, code)) = fault {
            return Reply::status(status).with("X-Error-Code", code);
        }
        let size = bytes.len().to_string();
        match (seen.storage, large, small) {
            (false, true, _) => Reply::status(302)
                .with("Location", &format!("http://{}/{path}?signature=1", self.storage))
                .with("X-Linked-Etag", &etag)
                .with("X-Linked-Size", &size)
                .with("X-Repo-Commit", &commit),
            (false, false, None) => Reply::status(307).with("Location", &format!("/cached/{path}")),
            _ => Reply::content(file, bytes).with("ETag", &etag).with("X-Repo-Commit", &commit),
        }
    }

    fn describe(&self, repository: &str, revision: &str) -> Reply {
        match self.fault("api") {
            Some(Fault::Status(status, code)) => return Reply::status(status).with("X-Error-Code", code),
            Some(Fault::Redirect(to)) => return Reply::status(302).with("Location", &to),
            _ => {}
        }
        let book = self.book();
        let Some(commits) = book.repositories.get(repository) else {
            return Reply::status(404).with("X-Error-Code", "RepoNotFound");
        };
        let found = commits.iter().rev().find(|commit| revision == "main" || commit.commit == revision);
        let Some(found) = found else { return Reply::status(404).with("X-Error-Code", "RevisionNotFound") };
        let files: Vec<_> = found.files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
        let tags = ["text-generation", "license:apache-2.0"];
        let told = serde_json::json!({ "id": repository, "sha": found.commit, "siblings": files, "tags": tags });
        Reply::content("api", Arc::new(told.to_string().into_bytes()))
    }

    fn content(&self, repository: &str, revision: &str, file: &str) -> Option<(String, Arc<Vec<u8>>)> {
        let book = self.book();
        let commit = book.repositories.get(repository)?.iter().rev();
        let commit = commit.into_iter().find(|commit| revision == "main" || commit.commit == revision)?;
        let (_, bytes) = commit.files.iter().find(|(name, _)| name == file)?;
        Some((commit.commit.clone(), bytes.clone()))
    }

    fn fault(&self, of: &str) -> Option<Fault> {
        self.book().faults.get_mut(of)?.pop_front()
    }

    /// Sends a reply; `Ok(true)` if the connection may go on.
    fn send(&self, stream: &mut TcpStream, seen: &Seen, mut reply: Reply) -> std::io::Result<bool> {
        let Some((file, bytes)) = reply.content.take() else {
            write!(stream, "{}Content-Length: 0\r\n\r\n", reply.head())?;
            return Ok(true);
        };
        if seen.method == "HEAD" {
            write!(stream, "{}Content-Length: {}\r\n\r\n", reply.head(), bytes.len())?;
            return Ok(true);
        }
        let fault = if file == "api" { None } else { self.fault(&file) };
        let mut body = bytes.to_vec();
        match &fault {
            Some(Fault::Status(status, code)) => {
                let head = Reply::status(*status).with("X-Error-Code", code).with("Retry-After", "0").head();
                write!(stream, "{head}Content-Length: 0\r\n\r\n")?;
                return Ok(true);
            }
            Some(Fault::Redirect(to)) => {
                write!(stream, "{}Content-Length: 0\r\n\r\n", Reply::status(302).with("Location", to).head())?;
                return Ok(true);
            }
            Some(Fault::Unsatisfiable) => {
                write!(stream, "{}Content-Length: 0\r\n\r\n", Reply::status(416).head())?;
                return Ok(true);
            }
            Some(Fault::WrongByte) => body[0] ^= 1,
            Some(Fault::Longer) => body.extend_from_slice(b"more"),
            Some(Fault::Shorter) => drop(body.pop()),
            _ => {}
        }
        let from = seen.from.filter(|_| !matches!(fault, Some(Fault::NoRange))).unwrap_or(0);
        if from > 0 {
            let told = if matches!(fault, Some(Fault::WrongRange)) { from - 1 } else { from };
            let range = format!("bytes {told}-{}/{}", body.len() - 1, body.len());
            reply = Reply { status: 206, ..reply }.with("Content-Range", &range);
        }
        let body = &body[from.min(body.len())..];
        write!(stream, "{}Content-Length: {}\r\n\r\n", reply.head(), body.len())?;
        let until = match fault {
            Some(Fault::Cut(bytes) | Fault::Stall(bytes)) => bytes.min(body.len()),
            _ => body.len(),
        };
        for part in body[..until].chunks(16 << 10) {
            stream.write_all(part)?;
            *self.book().served.entry(file.clone()).or_default() += part.len();
            if let Some(Fault::Slow(pause)) = fault {
                std::thread::sleep(pause);
            }
        }
        match fault {
            Some(Fault::Stall(_)) => {
                // Ends when the client hangs up.
                let mut nothing = [0];
                let _hung_up = std::io::Read::read(stream, &mut nothing);
                Ok(false)
            }
            Some(Fault::Cut(_)) => Ok(false),
            _ => Ok(true),
        }
    }
}

struct Reply {
    status: u16,
    headers: String,
    content: Option<(String, Arc<Vec<u8>>)>,
}

impl Reply {
    fn status(status: u16) -> Self {
        Self { status, headers: String::new(), content: None }
    }

    fn content(file: &str, bytes: Arc<Vec<u8>>) -> Self {
        Self { content: Some((file.to_owned(), bytes)), ..Self::status(200) }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    fn head(&self) -> String {
        format!("HTTP/1.1 {} Told\r\n{}", self.status, self.headers)
    }
}

fn read_request(reader: &mut BufReader<TcpStream>, storage: bool) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut seen = Seen { method, path, from: None, token: None, storage };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { return Some(seen) };
        match name.to_ascii_lowercase().as_str() {
            "range" => seen.from = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok(),
            "authorization" => seen.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
