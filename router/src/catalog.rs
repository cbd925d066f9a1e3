//! The known models: where they run, what they can do, what they cost. Read from `policies/models.toml`; every problem of
//! the file is reported. Prices are integers (pico-USD per token), so a bill is exact.

mod encoder;

pub use encoder::{BUNDLED_ENCODER, Encoder};

use crate::domain::{Limits, ModelId, NanoUsd, PicoUsdPerToken, ResponseFormat, Route, Usage};
use crate::toml_file::{Problem, Problems, Section, suggest};
use local_worker::model::hub::{HubError, HubReference};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Tokens that a chat protocol may add round each message, and once round the whole: role, separators, special tokens.
const FRAMING_TOKENS: u64 = 16;

/// Where a model runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The model inside the binary.
    Bundled,
    /// A GGUF file, or a folder with safetensors.
    File(PathBuf),
    /// A model at a hub, kept in a folder of our own.
    Hub(HubReference),
    /// A remote target of the settings, and the model's name there.
    Remote {
        /// Name of the target in the settings.
        target: String,
        /// The model's name in the target's protocol.
        upstream: String,
    },
}

/// What a model can honour beside messages and a token limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `temperature` and `top_p`.
    pub sampling: bool,
    /// `stop`.
    pub stop: bool,
    /// `seed`.
    pub seed: bool,
    /// `top_k`.
    pub top_k: bool,
    /// `min_p`.
    pub min_p: bool,
    /// `repetition_penalty`.
    pub repetition_penalty: bool,
    /// `presence_penalty` and `frequency_penalty`.
    pub penalties: bool,
    /// `logprobs`.
    pub logprobs: bool,
    /// Answers in the form of a JSON Schema.
    pub json_schema: bool,
    /// Answers in the form of a regular expression.
    pub regex: bool,
    /// Answers that are one of several texts.
    pub choice: bool,
}

/// Words of the catalog for capabilities.
pub const CAPABILITIES: [&str; 11] = [
    "sampling",
    "stop",
    "seed",
    "top-k",
    "min-p",
    "repetition-penalty",
    "penalties",
    "logprobs",
    "json-schema",
    "regex",
    "choice",
];

impl Capabilities {
    /// The words of what it can.
    pub fn words(mut self) -> Vec<&'static str> {
        CAPABILITIES.into_iter().filter(|word| self.switch(word).is_some_and(|on| *on)).collect()
    }

    /// The switch that a word of the catalog turns on.
    fn switch(&mut self, word: &str) -> Option<&mut bool> {
        match word {
            "sampling" => Some(&mut self.sampling),
            "stop" => Some(&mut self.stop),
            "seed" => Some(&mut self.seed),
            "top-k" => Some(&mut self.top_k),
            "min-p" => Some(&mut self.min_p),
            "repetition-penalty" => Some(&mut self.repetition_penalty),
            "penalties" => Some(&mut self.penalties),
            "logprobs" => Some(&mut self.logprobs),
            "json-schema" => Some(&mut self.json_schema),
            "regex" => Some(&mut self.regex),
            "choice" => Some(&mut self.choice),
            _ => None,
        }
    }
}

/// Prices with their date and source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// Per prompt token.
    pub input: PicoUsdPerToken,
    /// Per prompt token that the backend had cached.
    pub cached_input: PicoUsdPerToken,
    /// Per generated token, reasoning included.
    pub output: PicoUsdPerToken,
    /// Day on which the price was looked up.
    pub date: String,
    /// Where.
    pub source: String,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its name.
    pub id: ModelId,
    /// Where it runs.
    pub place: Place,
    /// Tokens of prompt and answer together.
    pub context: u32,
    /// Most tokens of one answer.
    pub max_output: u32,
    /// Tokens of an answer where the client gives no limit.
    pub default_output: u32,
    /// What it can honour.
    pub capabilities: Capabilities,
    /// Where it runs, as demands on residency name it; a model without is nowhere.
    pub region: Option<String>,
    /// What it costs; local models cost no money.
    pub price: Price,
    /// The model whose scorer scores for it too: one that it was trained from. Certificates name their model and don't pass on.
    pub scored_as: Option<ModelId>,
}

impl Model {
    /// `Local` or `Remote`.
    pub fn route(&self) -> Route {
        match self.place {
            Place::Bundled | Place::File(_) | Place::Hub(_) => Route::Local,
            Place::Remote { .. } => Route::Remote,
        }
    }

    /// The provider's name in telemetry: `sluice` for local models, else the target.
    pub fn provider(&self) -> &str {
        match &self.place {
            Place::Remote { target, .. } => target,
            _ => "sluice",
        }
    }

    /// What a usage costs: cached prompt tokens at their own price, summed exactly, rounded up once to a nano-USD.
    pub fn cost(&self, usage: &Usage) -> NanoUsd {
        let cached = usage.cached_input_tokens.min(usage.input_tokens);
        let fresh = usage.input_tokens - cached;
        let picos = self.price.input.times(fresh)
            + self.price.cached_input.times(cached)
            + self.price.output.times(usage.output_tokens);
        NanoUsd::from_picos_rounded_up(picos)
    }

    /// The most an attempt can cost: no tokenizer makes more tokens than bytes, plus framing for each message, plus the
    /// output cap that is sent upstream.
    pub fn bound(&self, prompt_bytes: u64, messages: u64, max_output_tokens: u32) -> NanoUsd {
        let input = prompt_bytes + FRAMING_TOKENS * (messages + 1);
        let dearest = self.price.input.max(self.price.cached_input);
        let picos = dearest.times(input) + self.price.output.times(u64::from(max_output_tokens));
        NanoUsd::from_picos_rounded_up(picos)
    }

    /// The output cap of a request that asks for `wanted` tokens.
    pub fn output_cap(&self, wanted: Option<u32>) -> u32 {
        wanted.unwrap_or(self.default_output).min(self.max_output).max(1)
    }

    /// The field of an ask that this model can't honour, if there is one. Values that change nothing are no wish.
    pub fn unsupported(&self, limits: &Limits) -> Option<&'static str> {
        let can = self.capabilities;
        let beyond = |value: Option<f32>, neutral: f32| value.is_some_and(|value| value != neutral);
        let format = limits.format.as_ref().map(|format| match format {
            ResponseFormat::JsonSchema(_) => (can.json_schema, format.field()),
            ResponseFormat::Regex(_) => (can.regex, format.field()),
            ResponseFormat::Choices(_) => (can.choice, format.field()),
        });
        let wishes = [
            (beyond(limits.temperature, 0.0), can.sampling, "limits.temperature"),
            (beyond(limits.top_p, 1.0), can.sampling, "limits.top_p"),
            (!limits.stop.is_empty(), can.stop, "limits.stop"),
            (limits.seed.is_some(), can.seed, "limits.seed"),
            (limits.top_k.is_some(), can.top_k, "limits.top_k"),
            (beyond(limits.min_p, 0.0), can.min_p, "limits.min_p"),
            (beyond(limits.repetition_penalty, 1.0), can.repetition_penalty, "limits.repetition_penalty"),
            (beyond(limits.presence_penalty, 0.0), can.penalties, "limits.presence_penalty"),
            (beyond(limits.frequency_penalty, 0.0), can.penalties, "limits.frequency_penalty"),
            (limits.logprobs.is_some(), can.logprobs, "limits.logprobs"),
            (format.is_some(), format.is_none_or(|(can, _)| can), format.map_or("", |(_, field)| field)),
        ];
        wishes.into_iter().find(|(wished, can, _)| *wished && !can).map(|(_, _, field)| field)
    }
}

/// All known models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    models: BTreeMap<ModelId, Model>,
    encoders: BTreeMap<ModelId, Encoder>,
}

impl Catalog {
    /// Reads the catalog's text.
    ///
    /// # Errors
    /// All problems of the file.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Problem>> {
        let (table, mut problems) = Problems::parse(file, text);
        let mut root = Section::root(&table);
        let mut models = BTreeMap::new();
        for section in root.sections("models", &mut problems) {
            let span = section.span();
            if let Some(model) = read_model(section, &mut problems)
                && let Some(twice) = models.insert(model.id.clone(), model)
            {
                problems.add(span, "models", format!("model `{}` is listed twice", twice.id), "");
            }
        }
        let encoders = encoder::read(&mut root, &models, &mut problems);
        root.finish(&mut problems);
        let found = problems.into_found();
        if found.is_empty() { Ok(Self { models, encoders }) } else { Err(found) }
    }

    /// An encoder by name; the bundled one is always there.
    pub fn encoder(&self, id: &ModelId) -> Option<Encoder> {
        let bundled = || (id.as_str() == BUNDLED_ENCODER).then(Encoder::bundled);
        self.encoders.get(id).cloned().or_else(bundled)
    }

    /// Names of all encoders.
    pub fn encoder_names(&self) -> Vec<&str> {
        let listed = self.encoders.keys().map(ModelId::as_str).filter(|name| *name != BUNDLED_ENCODER);
        std::iter::once(BUNDLED_ENCODER).chain(listed).collect()
    }

    /// A model by name.
    pub fn get(&self, id: &ModelId) -> Option<&Model> {
        self.models.get(id)
    }

    /// The name under which a model is scored: its own, or that of the model it says.
    pub fn scored_as<'a>(&'a self, id: &'a ModelId) -> &'a ModelId {
        self.models.get(id).and_then(|model| model.scored_as.as_ref()).unwrap_or(id)
    }

    /// All models by name.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
    }

    /// Adds or replaces a model, as settings may.
    pub fn insert(&mut self, model: Model) {
        self.models.insert(model.id.clone(), model);
    }
}

fn read_model(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Model> {
    let id = section.text("id", problems).map(|(id, _)| ModelId::new(id));
    section.missing("id", "give the model a name", problems);
    let kind = section.word("kind", &["bundled", "file", "remote"], problems);
    section.missing("kind", "say where it runs: bundled, file or remote", problems);
    let place = match kind {
        Some("bundled") => Some(Place::Bundled),
        Some("file") => read_file(&mut section, problems),
        Some(_) => {
            section.missing("target", "name a target of the settings", problems);
            section.missing("upstream", "give the model's name at the target", problems);
            let target = section.text("target", problems);
            let upstream = section.text("upstream", problems);
            target.zip(upstream).map(|((target, _), (upstream, _))| Place::Remote { target, upstream })
        }
        None => {
            // Without a kind it can't be said which of these belong.
            for key in ["path", "source", "target", "upstream"] {
                section.take(key);
            }
            None
        }
    };
    let tokens = |section: &mut Section<'_, '_>, key, problems: &mut Problems<'_>| {
        section.missing(key, "give a number of tokens", problems);
        let count = section.count(key, problems)?;
        let tokens = u32::try_from(count).ok();
        if tokens.is_none() {
            let message = format!("{count} tokens are more than this build counts");
            problems.add(section.span_of(key), &section.path(key), message, "");
        }
        tokens
    };
    let context = tokens(&mut section, "context", problems);
    let max_output = tokens(&mut section, "max_output", problems);
    let default_output = tokens(&mut section, "default_output", problems);
    for (key, less, name, more) in
        [("max_output", max_output, "context", context), ("default_output", default_output, "max_output", max_output)]
    {
        if let (Some(less), Some(more)) = (less, more)
            && less > more
        {
            problems.add(section.span_of(key), &section.path(key), format!("{less} is more than {name}, {more}"), "");
        }
    }
    let capabilities = read_capabilities(&mut section, problems);
    let price = section.section("price", problems).and_then(|price| read_price(price, problems));
    if kind == Some("remote") {
        section.missing("price", "a remote model without a price can't be budgeted", problems);
    }
    let region = section.text("region", problems).and_then(|(region, span)| {
        let named = !region.trim().is_empty();
        if !named {
            problems.add(span, &section.path("region"), "is empty", "name the region, or leave the key out");
        }
        named.then_some(region)
    });
    let scored_as = section.text("scored_as", problems).map(|(id, _)| ModelId::new(id));
    section.finish(problems);
    Some(Model {
        id: id?,
        place: place?,
        context: context?,
        max_output: max_output?,
        default_output: default_output?,
        capabilities,
        region,
        price: price.unwrap_or_default(),
        scored_as,
    })
}

/// Where a local model's file is: `path`, or `source` at a hub.
fn read_file(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Place> {
    let (path, source) = (section.text("path", problems), section.text("source", problems));
    match (path, source) {
        (Some(_), Some((_, span))) => {
            problems.add(span, &section.path("source"), "is given beside `path`", "keep one of the two");
            None
        }
        (Some((path, _)), None) => Some(Place::File(path.into())),
        (None, Some((source, span))) => {
            let reference = source.parse().map_err(|error: HubError| error.to_string());
            reference.map_err(|error| problems.add(span, &section.path("source"), error, "")).map(Place::Hub).ok()
        }
        (None, None) => {
            section.missing("path", "name the GGUF file or folder, or give source = \"hf:owner/name\"", problems);
            None
        }
    }
}

fn read_capabilities(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Capabilities {
    let mut capabilities = Capabilities::default();
    for (word, span) in section.texts("capabilities", problems).unwrap_or_default() {
        match capabilities.switch(&word) {
            Some(switch) => *switch = true,
            None => problems.add(
                span,
                &section.path("capabilities"),
                format!("`{word}` is none of {}", CAPABILITIES.join(", ")),
                suggest(&word, CAPABILITIES.into_iter()),
            ),
        }
    }
    capabilities
}

fn read_price(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Price> {
    let mut read = |key: &'static str| {
        section.missing(key, "give USD per million tokens as a text such as \"0.40\"", problems);
        let (text, span) = section.text(key, problems)?;
        let price = PicoUsdPerToken::from_usd_per_million(&text);
        price.map_err(|error| problems.add(span, &section.path(key), error.to_string(), "")).ok()
    };
    let (input, cached_input, output) = (read("input"), read("cached_input"), read("output"));
    let date = section.text("date", problems).map(|(date, _)| date);
    let source = section.text("source", problems).map(|(source, _)| source);
    section.missing("date", "say when the price was looked up", problems);
    section.missing("source", "say where the price was looked up", problems);
    section.finish(problems);
    Some(Price { input: input?, cached_input: cached_input?, output: output?, date: date?, source: source? })
}

#[cfg(test)]
mod tests;
