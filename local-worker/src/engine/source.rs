//! From a [`ModelSource`] to everything a worker needs.

use std::time::Instant;

use super::front::Front;
use super::request::{ModelInfo, ModelSource, WorkerConfig};
use crate::compress::{CompressError, Weights};
use crate::model::{Decoder, Gguf, LoadError, LoadOptions, Mapped, SLUICE_NANO, shape_of};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// Metadata key of the text a model writes when a request is not for it.
const DECLINE_KEY: &str = "sluice.decline";
/// Metadata key of the chat template.
const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// A model and what surrounds it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub model: Decoder,
    pub front: Front,
    pub info: ModelInfo,
    /// The decline text, and tokens that may be held for it.
    pub decline: Option<(String, usize)>,
}

/// Reads and packs a model.
pub(crate) fn load(name: &str, source: &ModelSource, config: &WorkerConfig) -> Result<Loaded, LoadError> {
    let started = Instant::now();
    match source {
        ModelSource::Bundled => load_bytes(name, name, SLUICE_NANO.ok_or(LoadError::NoBundledModel)?, config, started),
        ModelSource::Path(path) if path.is_dir() => {
            let file = path.display().to_string();
            let unsound = |problem: String| LoadError::Malformed { file: file.clone(), problem };
            let weights = Weights::read(source).map_err(|error| match error {
                CompressError::Source(error) => error,
                error => unsound(error.to_string()),
            })?;
            let bytes = weights.bytes().map_err(|error| unsound(error.to_string()))?;
            load_bytes(name, &file, &bytes, config, started)
        }
        ModelSource::Path(path) => {
            let file = path.display().to_string();
            let bytes = Mapped::open(path).map_err(|source| LoadError::Io { file: file.clone(), source })?;
            load_bytes(name, &file, &bytes, config, started)
        }
    }
}

fn load_bytes(
    name: &str,
    file_name: &str,
    bytes: &[u8],
    config: &WorkerConfig,
    started: Instant,
) -> Result<Loaded, LoadError> {
    let file = Gguf::parse(file_name, bytes)?;
    let options = LoadOptions { context_limit: config.context_limit, quantize: config.quantize };
    let vocabulary = shape_of(&file, &options)?.vocabulary;
    // What needs no packed weights is read beside their packing.
    let (model, pack_seconds, front, hash) = std::thread::scope(|scope| {
        let beside = || (read_front(&file, vocabulary), blake3::hash(bytes));
        let thread = std::thread::Builder::new().name(format!("{name} vocabulary"));
        let beside = thread.spawn_scoped(scope, beside).map_err(|error| LoadError::Thread(error.to_string()))?;
        let started = Instant::now();
        let model = Decoder::load_with(&file, &options)?;
        let pack_seconds = started.elapsed().as_secs_f64();
        let (front, hash) =
            beside.join().map_err(|_| LoadError::Thread("it panicked while reading the vocabulary".to_owned()))?;
        Ok::<_, LoadError>((model, pack_seconds, front?, hash))
    })?;
    let tokenizer = &front.tokenizer;
    let decline_text = file.text(DECLINE_KEY).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let decline = match &decline_text {
        Some(text) if config.decline_hold > 0 => {
            let tokens =
                tokenizer.encode(text).map_err(|problem| file.malformed(format!("{DECLINE_KEY}: {problem}")))?;
            // One more for leading white space.
            Some((text.clone(), config.decline_hold.max(tokens.len() + 1)))
        }
        _ => None,
    };
    let context = config.context_limit.unwrap_or(usize::MAX).min(model.shape().context);
    let info = ModelInfo {
        name: name.to_owned(),
        context_length: context as u32,
        parameters: model.parameters(),
        file_bytes: bytes.len() as u64,
        resident_bytes: model.bytes(),
        quantization: model.quantization().to_owned(),
        has_chat_template: file.text(TEMPLATE_KEY).is_some(),
        decline_text,
        load_seconds: started.elapsed().as_secs_f64(),
        pack_seconds,
        file_blake3: hash.to_hex().to_string(),
        kernels: model.kernels().to_owned(),
    };
    Ok(Loaded { front, info, decline, model })
}

/// The vocabulary and the template.
fn read_front(file: &Gguf<'_>, vocabulary: usize) -> Result<Front, LoadError> {
    let tokenizer = Tokenizer::load(file, vocabulary)?;
    let (begin, end) = tokenizer.names();
    let template = ChatTemplate::new(file.text(TEMPLATE_KEY), begin, end)
        .map_err(|problem| file.malformed(format!("{TEMPLATE_KEY}: {problem}")))?;
    // Rules are compiled when first used; that should not be a request's time.
    tokenizer.encode("warm up").map_err(|problem| file.malformed(format!("tokenizer: {problem}")))?;
    Ok(Front { tokenizer, template })
}
