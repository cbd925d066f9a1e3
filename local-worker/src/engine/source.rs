//! From a [`ModelSource`] to everything a worker needs.

use std::time::Instant;

use super::front::Front;
use super::request::{ModelInfo, ModelSource, WorkerConfig};
use crate::compress::{CompressError, Weights};
use crate::model::{Decoder, Gguf, LoadError, LoadOptions, Mapped, SLUICE_NANO};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// Metadata key of the text a model writes when a request is not for it.
const DECLINE_KEY: &str = "sluice.decline";

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
    let model = Decoder::load_with(&file, &options)?;
    let tokenizer = Tokenizer::load(&file, model.shape().vocabulary)?;
    let source = file.text("tokenizer.chat_template");
    let (begin, end) = tokenizer.names();
    let template = ChatTemplate::new(source, begin, end)
        .map_err(|problem| file.malformed(format!("tokenizer.chat_template: {problem}")))?;
    // Rules are compiled when first used; that should not be a request's time.
    tokenizer.encode("warm up").map_err(|problem| file.malformed(format!("tokenizer: {problem}")))?;
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
        has_chat_template: source.is_some(),
        decline_text,
        load_seconds: started.elapsed().as_secs_f64(),
        file_blake3: blake3::hash(bytes).to_hex().to_string(),
        kernels: model.kernels().to_owned(),
    };
    Ok(Loaded { front: Front { tokenizer, template }, info, decline, model })
}
