//! What makes sentence vectors in this process: the table inside the binary, and encoders from folders by their names in the
//! catalog, loaded by the first call that names them. Knows nothing of who asks.

use crate::catalog::{BUNDLED_ENCODER, Catalog, Encoder};
use crate::domain::ModelId;
use crate::models::{Models, ModelsError, Reserved};
use local_worker::embed::{EmbedError, SentenceEncoder, StaticEmbedder};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Texts that an encoder reads before it is asked whether the call still wants them.
const AT_A_TIME: usize = 4;
/// Digits of a version.
const VERSION_DIGITS: usize = 16;

/// Why there are no vectors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodersError {
    /// The catalog has no such encoder.
    #[error("names no encoder: there is no `{name}`, there are {known}")]
    Unknown {
        /// What was asked for.
        name: ModelId,
        /// What there is.
        known: String,
    },
    /// It can't be loaded.
    #[error("encoder `{name}` can't be loaded: {why}")]
    Unusable {
        /// Which.
        name: ModelId,
        /// What is wrong with it.
        why: String,
    },
    /// The memory budget has no room for it.
    #[error(transparent)]
    Memory(#[from] ModelsError),
    /// A text is longer than the encoder reads.
    #[error("is longer than the {longest} tokens that `{name}` reads; shorten it, or set `truncate`")]
    TooLong {
        /// Which text, from 0.
        at: usize,
        /// The encoder.
        name: ModelId,
        /// Tokens that it reads.
        longest: usize,
    },
    /// A text can't be split into tokens.
    #[error("{why}")]
    Text {
        /// Which, from 0.
        at: usize,
        /// What the tokenizer said.
        why: String,
    },
    /// Dimensions that can't be had.
    #[error("{0}")]
    Dimensions(String),
    /// The call wants no vectors any more.
    #[error("the caller hung up")]
    Stopped,
}

/// A text's vector.
#[derive(Clone, Debug, PartialEq)]
pub struct TextVector {
    /// Of length one, or zeros.
    pub values: Vec<f32>,
    /// Tokens that it is made of.
    pub tokens: usize,
    /// Whether the text was cut.
    pub cut: bool,
}

/// What to make vectors of, and how.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The texts.
    pub texts: Vec<String>,
    /// Leading numbers of each vector; all of them without.
    pub dimensions: Option<usize>,
    /// Whether texts that are too long are cut.
    pub truncate: bool,
}

#[derive(Debug)]
enum Kind {
    Table(StaticEmbedder),
    Network { encoder: Box<SentenceEncoder>, path: PathBuf, _memory: Reserved },
}

/// An encoder that is loaded.
#[derive(Debug)]
pub struct Vectors {
    name: ModelId,
    version: String,
    kind: Kind,
}

impl Vectors {
    /// Its name.
    pub fn name(&self) -> &ModelId {
        &self.name
    }

    /// Whether it only looks words up.
    pub fn is_table(&self) -> bool {
        matches!(self.kind, Kind::Table(_))
    }

    /// Vectors of one version may be compared.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Makes the vectors of all texts on the caller's thread: microseconds a text by the table, milliseconds by a network. Asks
    /// `wanted` now and then whether to go on.
    ///
    /// # Errors
    /// A text is too long, dimensions can't be had, or nobody wants them any more.
    pub fn make(&self, wish: &Wish, wanted: &dyn Fn() -> bool) -> Result<Vec<TextVector>, EncodersError> {
        match &self.kind {
            Kind::Table(table) => self.by_table(table, wish, wanted),
            Kind::Network { encoder, .. } => self.by_network(encoder, wish, wanted),
        }
    }

    fn by_table(
        &self,
        table: &StaticEmbedder,
        wish: &Wish,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<TextVector>, EncodersError> {
        let all = table.dims();
        let dimensions = wish.dimensions.unwrap_or(all);
        if dimensions == 0 || dimensions > all {
            return Err(EncodersError::Dimensions(format!("must be 1 to {all} for `{}`", self.name)));
        }
        let mut vectors = Vec::with_capacity(wish.texts.len());
        for text in &wish.texts {
            if !wanted() {
                return Err(EncodersError::Stopped);
            }
            let mut values = vec![0.0; dimensions];
            let tokens = table.embed(text, &mut values);
            vectors.push(TextVector { values, tokens, cut: false });
        }
        Ok(vectors)
    }

    fn by_network(
        &self,
        encoder: &SentenceEncoder,
        wish: &Wish,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<TextVector>, EncodersError> {
        let all = encoder.dims();
        if wish.dimensions.is_some_and(|dimensions| dimensions != all) {
            let why = format!("must be {all}: `{}` does not order them, so none can be left out", self.name);
            return Err(EncodersError::Dimensions(why));
        }
        let mut vectors: Vec<TextVector> = Vec::with_capacity(wish.texts.len());
        for texts in wish.texts.chunks(AT_A_TIME) {
            if !wanted() {
                return Err(EncodersError::Stopped);
            }
            let before = vectors.len();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let made = encoder.embed(&texts).map_err(|error| match error {
                EmbedError::Text { at, problem } => EncodersError::Text { at: before + at, why: problem },
                other => EncodersError::Unusable { name: self.name.clone(), why: other.to_string() },
            })?;
            if let Some(at) = made.iter().position(|made| made.cut).filter(|_| !wish.truncate) {
                let (name, longest) = (self.name.clone(), encoder.longest());
                return Err(EncodersError::TooLong { at: before + at, name, longest });
            }
            vectors.extend(made.into_iter().map(|made| {
                let (values, tokens, cut) = (made.vector, made.tokens, made.cut);
                TextVector { values, tokens, cut }
            }));
        }
        Ok(vectors)
    }
}

/// All encoders of this process.
pub struct Encoders {
    models: Arc<Models>,
    loaded: Mutex<BTreeMap<ModelId, Arc<Vectors>>>,
    turn: tokio::sync::Mutex<()>,
}

impl Encoders {
    /// None loaded yet; their memory counts in the budget of `models`.
    pub fn new(models: Arc<Models>) -> Arc<Self> {
        Arc::new(Self { models, loaded: Mutex::default(), turn: tokio::sync::Mutex::default() })
    }

    /// An encoder by the name that the catalog gives it; the bundled table where `name` is empty. What the catalog no longer has is
    /// let go on the way.
    ///
    /// # Errors
    /// See [`EncodersError`].
    pub async fn get(&self, catalog: &Catalog, name: &str) -> Result<Arc<Vectors>, EncodersError> {
        let name = ModelId::new(if name.is_empty() { BUNDLED_ENCODER } else { name });
        let unknown = || EncodersError::Unknown { name: name.clone(), known: catalog.encoder_names().join(", ") };
        let wished = catalog.encoder(&name).ok_or_else(unknown)?;
        if let Some(found) = self.find(catalog, &wished) {
            return Ok(found);
        }
        let _turn = self.turn.lock().await;
        if let Some(found) = self.find(catalog, &wished) {
            return Ok(found);
        }
        let made = Arc::new(self.load(&wished).await?);
        self.lock().insert(name, Arc::clone(&made));
        Ok(made)
    }

    fn find(&self, catalog: &Catalog, wished: &Encoder) -> Option<Arc<Vectors>> {
        let mut loaded = self.lock();
        loaded.retain(|id, vectors| {
            catalog.encoder(id).is_some_and(|listed| match &vectors.kind {
                Kind::Table(_) => listed.path.is_none(),
                Kind::Network { path, .. } => listed.path.as_ref() == Some(path),
            })
        });
        loaded.get(&wished.id).cloned()
    }

    async fn load(&self, wished: &Encoder) -> Result<Vectors, EncodersError> {
        let name = wished.id.clone();
        let unusable = |why: String| EncodersError::Unusable { name: name.clone(), why };
        let Some(path) = wished.path.clone() else {
            // A few milliseconds, once.
            let read = tokio::task::spawn_blocking(StaticEmbedder::bundled).await;
            let table = read.map_err(|_| unusable("reading it panicked".to_owned()))?;
            let table = table.map_err(|error| unusable(error.to_string()))?;
            let version = table.version().to_owned();
            return Ok(Vectors { name, version, kind: Kind::Table(table) });
        };
        let folder = path.clone();
        let read = tokio::task::spawn_blocking(move || {
            let version = version_of(&folder)?;
            let encoder = SentenceEncoder::from_directory(&folder).map_err(|error| error.to_string())?;
            Ok::<_, String>((version, encoder))
        });
        let (version, encoder) =
            read.await.map_err(|_| unusable("loading it panicked".to_owned()))?.map_err(unusable)?;
        let memory = self.models.reserve(&wished.id, encoder.bytes()).await?;
        tracing::info!(encoder = %wished.id, bytes = encoder.bytes(), version, "an encoder is loaded");
        Ok(Vectors {
            name: wished.id.clone(),
            version,
            kind: Kind::Network { encoder: Box::new(encoder), path, _memory: memory },
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelId, Arc<Vectors>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells one encoder's vectors from another's: a hash of its configuration, vocabulary and weights.
fn version_of(folder: &Path) -> Result<String, String> {
    let named = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| named(folder, error))? {
        let path = entry.map_err(|error| named(folder, error))?.path();
        let counts = path.extension().is_some_and(|kind| kind == "json" || kind == "safetensors" || kind == "txt");
        files.extend(counts.then_some(path));
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let file = std::fs::File::open(&path).map_err(|error| named(&path, error))?;
        hasher.update_reader(file).map_err(|error| named(&path, error))?;
    }
    Ok(hasher.finalize().to_hex().chars().take(VERSION_DIGITS).collect())
}
