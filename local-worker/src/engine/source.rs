//! From a [`ModelSource`] to everything a worker needs.

use std::path::Path;
use std::time::Instant;

use super::front::Front;
use super::request::{ModelInfo, ModelSource, WorkerConfig};
use crate::model::{Decoder, Directory, Gguf, LoadError, LoadOptions, Mapped, SLUICE_NANO, plan_of_config, shape_of};
use crate::template::{ChatTemplate, form_of};
use crate::tokenizer::{Beside, Tokenizer};

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
        ModelSource::Path(path) if path.is_dir() => load_directory(name, path, config, started),
        ModelSource::Path(path) => {
            let file = path.display().to_string();
            let bytes = Mapped::open(path).map_err(|error| LoadError::Io { file: file.clone(), error })?;
            load_bytes(name, &file, &bytes, config, started)
        }
    }
}

/// Reads a GGUF file as loading does, without what a worker adds.
pub(crate) fn read_model(name: &str, bytes: &[u8], context: usize) -> Result<(Decoder, Tokenizer), LoadError> {
    let config = WorkerConfig { context_limit: Some(context), ..WorkerConfig::default() };
    let loaded = load_bytes(name, name, bytes, &config, Instant::now())?;
    Ok((loaded.model, loaded.front.tokenizer))
}

fn load_bytes(
    name: &str,
    file_name: &str,
    bytes: &[u8],
    config: &WorkerConfig,
    started: Instant,
) -> Result<Loaded, LoadError> {
    let file = Gguf::parse(file_name, bytes)?;
    let options = options(config);
    let shape = shape_of(&file, &options)?;
    let template = file.text(TEMPLATE_KEY).map(|text| (text, TEMPLATE_KEY));
    let beside = || {
        let tokenizer = Tokenizer::load(&file, shape.vocabulary)?;
        let front = front(tokenizer, template, shape.family).map_err(|wrong| match wrong.place {
            Some(place) => file.malformed(format!("{place}: {}", wrong.problem)),
            None => file.malformed(wrong.problem),
        })?;
        Ok::<_, LoadError>((front, blake3::hash(bytes).to_hex().to_string()))
    };
    let packed = packed(name, || Decoder::load_with(&file, &options), beside)?;
    let Packed { model, pack_seconds, front, hash } = packed;
    let decline_text = file.text(DECLINE_KEY).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let decline = match &decline_text {
        Some(text) if config.decline_hold > 0 => {
            let tokens = front.tokenizer.encode(text);
            let tokens = tokens.map_err(|problem| file.malformed(format!("{DECLINE_KEY}: {problem}")))?;
            // One more for leading white space.
            Some((text.clone(), config.decline_hold.max(tokens.len() + 1)))
        }
        _ => None,
    };
    let info = ModelInfo {
        decline_text,
        file_bytes: bytes.len() as u64,
        file_blake3: hash,
        has_chat_template: template.is_some(),
        pack_seconds,
        ..info(name, &model, config, started)
    };
    Ok(Loaded { front, info, decline, model })
}

fn load_directory(name: &str, path: &Path, config: &WorkerConfig, started: Instant) -> Result<Loaded, LoadError> {
    let directory = Directory::open(path)?;
    let options = options(config);
    let shape = plan_of_config(directory.config(), &options)?.shape;
    let files = Beside::read(path)?;
    let template = files.template();
    let beside = || {
        let tokenizer = Tokenizer::of_folder(path, directory.config(), &files, shape.vocabulary)?;
        let front = front(tokenizer, template, shape.family).map_err(|wrong| LoadError::Malformed {
            file: wrong.place.unwrap_or_else(|| path.display().to_string()),
            problem: wrong.problem,
        })?;
        Ok::<_, LoadError>((front, directory.blake3()))
    };
    let packed = packed(name, || Decoder::load_directory(&directory, &options), beside)?;
    let Packed { model, pack_seconds, front, hash } = packed;
    let info = ModelInfo {
        file_bytes: directory.bytes(),
        file_blake3: hash,
        has_chat_template: template.is_some(),
        pack_seconds,
        ..info(name, &model, config, started)
    };
    Ok(Loaded { front, info, decline: None, model })
}

fn options(config: &WorkerConfig) -> LoadOptions {
    LoadOptions { context_limit: config.context_limit, quantize: config.quantize }
}

/// A model with what was read beside its packing.
struct Packed {
    model: Decoder,
    pack_seconds: f64,
    front: Front,
    hash: String,
}

/// Packs weights; what needs none is read beside that.
fn packed(
    name: &str,
    pack: impl FnOnce() -> Result<Decoder, LoadError>,
    beside: impl FnOnce() -> Result<(Front, String), LoadError> + Send,
) -> Result<Packed, LoadError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(format!("{name} vocabulary"));
        let beside = thread.spawn_scoped(scope, beside).map_err(|error| LoadError::Thread(error.to_string()))?;
        let started = Instant::now();
        let model = pack()?;
        let pack_seconds = started.elapsed().as_secs_f64();
        let read = beside.join();
        let (front, hash) =
            read.map_err(|_| LoadError::Thread("it panicked while reading the vocabulary".to_owned()))??;
        Ok(Packed { model, pack_seconds, front, hash })
    })
}

/// What keeps vocabulary and template from being used, and the place it is in, if it is the template.
struct Wrong {
    place: Option<String>,
    problem: String,
}

/// Puts vocabulary and template (with the place it is from) together.
fn front(tokenizer: Tokenizer, template: Option<(&str, &str)>, family: &str) -> Result<Front, Wrong> {
    let template = template.or_else(|| form_of(family).map(|form| (form, "the family's form")));
    let (begin, end) = tokenizer.names();
    let rendered = ChatTemplate::new(template.map(|(text, _)| text), begin, end);
    let rendered = rendered.map_err(|problem| Wrong { place: template.map(|(_, place)| place.to_owned()), problem })?;
    let of_tokenizer = |problem: String| Wrong { place: None, problem: format!("tokenizer: {problem}") };
    let tokenizer = match template {
        Some((text, _)) => tokenizer.reserve_for(text).map_err(of_tokenizer)?,
        None => tokenizer,
    };
    // Rules are compiled when first used; that should not be a request's time.
    tokenizer.encode("warm up").map_err(of_tokenizer)?;
    Ok(Front { tokenizer, template: rendered })
}

/// What a loaded model tells of itself; the file's part is left out.
fn info(name: &str, model: &Decoder, config: &WorkerConfig, started: Instant) -> ModelInfo {
    ModelInfo {
        name: name.to_owned(),
        context_length: config.context_limit.unwrap_or(usize::MAX).min(model.shape().context) as u32,
        parameters: model.parameters(),
        file_bytes: 0,
        resident_bytes: model.bytes(),
        quantization: model.quantization().to_owned(),
        has_chat_template: false,
        decline_text: None,
        load_seconds: started.elapsed().as_secs_f64(),
        pack_seconds: 0.0,
        file_blake3: String::new(),
        kernels: model.kernels().to_owned(),
    }
}
