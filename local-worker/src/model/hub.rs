//! Models by name, from a hub that speaks Hugging Face's protocol into a folder: `hf:owner/name[@revision][/file]`.
//!
//! `GET api/models/{name}/revision/{revision}` tells commit and files; `HEAD {name}/resolve/{commit}/{file}` tells size and
//! checksum of each; `GET` fetches it, with `Range` after a cut. Nothing that was not checked gets a model's name, and a
//! model that is in the cache needs no network. The one place of this crate that speaks HTTP; knows nothing of what the
//! files hold.

mod cache;
mod checksum;
mod download;
mod error;
mod reference;
mod wire;

pub use error::HubError;
pub use reference::HubReference;

use cache::{Listing, Shelf};
use download::Order;
use reference::{is_commit, is_safe_file};
use secrecy::SecretString;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wire::{Failure, FileFacts, Wire};

/// Files beside the weights that a directory of safetensors is read with; the last three tell how an encoder's tokens become a
/// sentence, and without them some would be read wrongly.
const COMPANIONS: [&str; 16] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];

/// How a hub is used.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Its address.
    pub endpoint: String,
    /// Folder that models are kept in; made when needed.
    pub cache: PathBuf,
    /// Sent to the endpoint's origin only, never to where it redirects.
    pub token: Option<SecretString>,
    /// Whether the network may not be used: only what is in the cache is found.
    pub offline: bool,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest silence; then the connection counts as cut.
    pub idle_timeout: Duration,
    /// How often what failed for no lasting reason is tried in a row without a byte coming; at least 1.
    pub attempts: u32,
    /// Wait before the second try; doubled for each one after it.
    pub backoff: Duration,
}

impl HubConfig {
    /// The public hub with a cache folder, without a token.
    pub fn new(cache: PathBuf) -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache,
            token: None,
            offline: false,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(500),
        }
    }
}

/// How far a pull is. Numbers only grow, except where a hub can't continue a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The file under way, within the repository.
    pub file: String,
    /// Bytes here of all files wanted, those of earlier runs included.
    pub done_bytes: u64,
    /// Bytes of all files wanted.
    pub total_bytes: u64,
}

/// A model that is here, whole and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The GGUF file, or the folder of a model with safetensors.
    pub path: PathBuf,
    /// The commit it is of.
    pub commit: String,
    /// The licence, as the hub names it: `apache-2.0`.
    pub license: Option<String>,
}

/// A hub and the folder that what it has is kept in.
#[derive(Clone, Debug)]
pub struct Hub {
    config: HubConfig,
    wire: Wire,
}

impl Hub {
    /// Prepares a client; nothing is asked yet. With an https endpoint a TLS provider must be installed for the process.
    ///
    /// # Errors
    /// An endpoint that is no URL.
    pub fn new(config: HubConfig) -> Result<Self, HubError> {
        Ok(Self { wire: Wire::new(&config)?, config })
    }

    /// The folder that models are kept in.
    pub fn folder(&self) -> &Path {
        &self.config.cache
    }

    /// The model, if all of it is here; asks nobody. A branch or tag means what it meant when it was last pulled.
    pub fn cached(&self, reference: &HubReference) -> Option<Pulled> {
        let shelf = Shelf::of(&self.config.cache, reference);
        let listing = shelf.listing(reference.revision())?;
        let wanted = wanted(reference, &listing).ok()?;
        let folder = shelf.commit(&listing.commit);
        wanted.iter().all(|file| folder.join(file).is_file()).then(|| pulled(&folder, &wanted, listing))
    }

    /// Brings a model here, or what is missing of it, and tells how far it is. Several pulls of one file, in this process or
    /// another, share one download. Dropping the future stops; a later pull goes on from there. Must run inside a runtime
    /// of tokio with time and I/O.
    ///
    /// # Errors
    /// See [`HubError`].
    pub async fn pull(
        &self,
        reference: &HubReference,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Pulled, HubError> {
        // What a commit holds never changes, so there is nothing to ask.
        if (self.config.offline || is_commit(reference.revision()))
            && let Some(pulled) = self.cached(reference)
        {
            return Ok(pulled);
        }
        if self.config.offline {
            return Err(HubError::Offline { what: reference.to_string() });
        }
        let shelf = Shelf::of(&self.config.cache, reference);
        let listing = self.list(reference).await?;
        let wanted = wanted(reference, &listing)?;
        let mut facts = Vec::with_capacity(wanted.len());
        for file in &wanted {
            facts.push(self.facts(reference, &listing.commit, file).await?);
        }
        let total = facts.iter().map(|facts| facts.size).fold(0, u64::saturating_add);
        let folder = shelf.commit(&listing.commit);
        let mut before = 0;
        for (file, facts) in wanted.iter().zip(&facts) {
            let what = named(reference, file);
            let url = self.wire.file_url(&what, reference.repository(), &listing.commit, file).map_err(lasting)?;
            let partial = shelf.partial(facts.checksum.digits());
            let order = Order { what: &what, url, facts, partial, place: folder.join(file) };
            let report = Report { file, before, total, progress };
            download::fetch(&self.wire, &order, self.patience(), &report).await?;
            before += facts.size;
            report.tell(facts.size);
        }
        // Last, so that a branch goes on meaning what is here until the new commit is.
        shelf.keep(reference.revision(), &listing)?;
        Ok(pulled(&folder, &wanted, listing))
    }

    /// What the revision is now.
    async fn list(&self, reference: &HubReference) -> Result<Listing, HubError> {
        let what = reference.to_string();
        let mut patience = self.patience();
        let body = loop {
            match self.wire.describe(&what, reference.repository(), reference.revision()).await {
                Ok(body) => break body,
                Err(failure) => patience.after(&what, failure).await?,
            }
        };
        let wrong = |problem: String| HubError::Malformed { what: what.clone(), problem };
        let told: Description =
            serde_json::from_slice(&body).map_err(|error| wrong(format!("the hub's description: {error}")))?;
        if !is_commit(&told.sha) {
            return Err(wrong(format!("the hub names the commit {:?}", told.sha)));
        }
        let files: Vec<String> = told.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        if let Some(hostile) = files.iter().find(|file| !is_safe_file(file)) {
            return Err(wrong(format!("the hub lists the file {hostile:?}, which leads out of the folder")));
        }
        let license = told.tags.iter().find_map(|tag| tag.strip_prefix("license:")).map(str::to_owned);
        Ok(Listing { commit: told.sha, files, license })
    }

    async fn facts(&self, reference: &HubReference, commit: &str, file: &str) -> Result<FileFacts, HubError> {
        let what = named(reference, file);
        let url = self.wire.file_url(&what, reference.repository(), commit, file).map_err(lasting)?;
        let mut patience = self.patience();
        let facts = loop {
            match self.wire.facts(&what, url.clone()).await {
                Ok(facts) => break facts,
                Err(failure) => patience.after(&what, failure).await?,
            }
        };
        match facts.commit.as_deref().filter(|told| *told != commit) {
            Some(other) => Err(HubError::Malformed { what, problem: format!("asked for {commit}, got {other}") }),
            None => Ok(facts),
        }
    }

    fn patience(&self) -> Patience {
        let left = self.config.attempts.max(1);
        Patience { attempts: left, left, tried: 0, backoff: self.config.backoff, wait: self.config.backoff }
    }
}

/// What a hub says of a repository, as far as it is read.
#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Vec<Sibling>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// A file's name for messages.
fn named(reference: &HubReference, file: &str) -> String {
    match reference.file() {
        Some(_) => reference.to_string(),
        None => format!("{reference}/{file}"),
    }
}

fn pulled(folder: &Path, wanted: &[String], listing: Listing) -> Pulled {
    let path = match wanted {
        [only] => folder.join(only),
        _ => folder.to_owned(),
    };
    Pulled { path, commit: listing.commit, license: listing.license }
}

/// The files that a reference means: the one it names, a model of safetensors with all beside it, or the only GGUF file.
fn wanted(reference: &HubReference, listing: &Listing) -> Result<Vec<String>, HubError> {
    let ggufs: Vec<String> = listing.files.iter().filter(|file| file.ends_with(".gguf")).cloned().collect();
    let none = |problem: String| HubError::NotFound { what: reference.to_string(), problem };
    if let Some(file) = reference.file() {
        if listing.files.iter().any(|listed| listed == file) {
            return Ok(vec![file.to_owned()]);
        }
        let there = if ggufs.is_empty() { String::new() } else { format!("; there are {}", ggufs.join(", ")) };
        return Err(none(format!("the hub has no such file{there}")));
    }
    let weights =
        |file: &&String| file.ends_with(".safetensors") && !file.contains('/') && !file.starts_with("consolidated");
    let mut wanted: Vec<String> = listing.files.iter().filter(weights).cloned().collect();
    if !wanted.is_empty() {
        let companion = |file: &&String| COMPANIONS.contains(&file.as_str());
        wanted.extend(listing.files.iter().filter(companion).cloned());
        return Ok(wanted);
    }
    match ggufs.len() {
        0 => Err(none("it holds neither safetensors nor GGUF files".to_owned())),
        1 => Ok(ggufs),
        _ => Err(HubError::Ambiguous { what: reference.to_string(), files: ggufs }),
    }
}

/// Where one file's progress is told.
struct Report<'report> {
    file: &'report str,
    before: u64,
    total: u64,
    progress: &'report (dyn Fn(Progress) + Send + Sync),
}

impl Report<'_> {
    fn tell(&self, here: u64) {
        let (file, done_bytes) = (self.file.to_owned(), self.before.saturating_add(here));
        (self.progress)(Progress { file, done_bytes, total_bytes: self.total });
    }
}

/// How often something is still tried, and after which wait.
struct Patience {
    attempts: u32,
    left: u32,
    tried: u32,
    backoff: Duration,
    wait: Duration,
}

impl Patience {
    /// Waits for the next try after a failure, or gives up.
    async fn after(&mut self, what: &str, failure: Failure) -> Result<(), HubError> {
        let (why, asked) = match failure {
            Failure::Lasting(error) => return Err(error),
            Failure::Passing { why, wait } => (why, wait),
        };
        self.tried += 1;
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return Err(HubError::Unreachable { what: what.to_owned(), why, attempts: self.tried });
        }
        tracing::debug!(what, why, "the hub is asked again");
        tokio::time::sleep(asked.unwrap_or(self.wait)).await;
        self.wait = self.wait.saturating_mul(2).min(Duration::from_secs(30));
        Ok(())
    }

    /// Something came: all tries are there again.
    fn restore(&mut self) {
        (self.left, self.wait) = (self.attempts, self.backoff);
    }
}

fn lasting(failure: Failure) -> HubError {
    match failure {
        Failure::Lasting(error) => error,
        Failure::Passing { why, .. } => HubError::Malformed { what: "the hub".to_owned(), problem: why },
    }
}

#[cfg(test)]
mod tests;
