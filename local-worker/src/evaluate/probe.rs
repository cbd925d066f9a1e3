//! How well a model foretells text that is given to it: its forward pass beside the engine, nothing being written.
//!
//! Perplexity is exp(− mean ln p(token | tokens before)). It depends on the vocabulary; bits for a byte of text don't, and so
//! compare models. A long text is read in windows that each begin anew, and the first token of a window is not scored
//! (with a begin token, that one is the first).

use super::suite::Record;
use crate::engine::{ChatMessage, Front, Loaded, ModelSource, SubmitError, WorkerConfig, load, team};
use crate::model::{Cache, CacheShape, Decoder, LoadError, Row, Scratch, Watch};
use std::time::Instant;

/// Rows of a step: their logits are held at once.
const ROWS: usize = 64;

/// Tokens of the prompt before speed is measured.
const PROMPT: usize = 16;

/// A model opened for measuring.
#[derive(Debug)]
pub struct Probe {
    model: Decoder,
    front: Front,
    context: usize,
    cache: Cache,
    scratch: Scratch,
}

/// Why something can't be measured.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The model can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The text can't be split into tokens, or the template refuses it.
    #[error("{0}")]
    Text(String),
    /// There is nothing to foretell.
    #[error("the text has {tokens} tokens; there must be at least 2")]
    TooShort {
        /// Tokens there are.
        tokens: usize,
    },
    /// The model gave something that is not a number.
    #[error("the model's output is not a number at token {0} of the text; its weights are faulty")]
    NotANumber(usize),
}

/// How well text was foretold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Tokens scored.
    pub tokens: usize,
    /// Bytes of text that these tokens are.
    pub bytes: usize,
    /// − Σ ln p over the scored tokens.
    pub nats: f64,
    /// The likeliest token at each place.
    pub likeliest: Vec<u32>,
    /// Records left out because they don't fit the context.
    pub left_out: usize,
}

impl Forecast {
    /// exp(mean surprise of a token); at least 1.
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }

    /// Bits for each byte of text.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// Share of places where both take the same token for the likeliest, in [0, 1]; `None` if they are not of the same text.
    pub fn agreement(&self, other: &Self) -> Option<f64> {
        let same = self.likeliest.iter().zip(&other.likeliest).filter(|(one, other)| one == other).count();
        let places = self.likeliest.len();
        (places > 0 && places == other.likeliest.len()).then(|| same as f64 / places as f64)
    }
}

impl Probe {
    /// Loads a model, quantising it where `config` says so; its threads are shared as a worker's are.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn open(source: &ModelSource, config: &WorkerConfig) -> Result<Self, LoadError> {
        let Loaded { model, front, info, .. } = load("probe", source, config)?;
        let shape = model.shape();
        let (layers, key_heads, head) = (shape.layers, shape.key_heads, shape.head);
        let kept = CacheShape { layers, key_heads, head, format: config.cache_format };
        let cache = Cache::bounded(1, kept, usize::MAX);
        let scratch = Scratch::shared_by(team(config.threads));
        Ok(Self { model, front, context: info.context_length as usize, cache, scratch })
    }

    /// Memory taken by the weights as loaded, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.model.bytes()
    }

    /// Tokens written in a second by one sequence alone, `tokens` of them after a prompt of sixteen; which tokens is all the
    /// same to the time they take.
    pub fn decode_speed(&mut self, tokens: usize) -> f64 {
        self.cache.clear(0);
        let row = |position| Row { slot: 0, position, token: position as u32, wants_logits: true };
        let most = self.context.max(2);
        let prompt = PROMPT.min(most - 1);
        let rows: Vec<Row> = (0..prompt).map(row).collect();
        self.model.step(&mut self.cache, &mut self.scratch, &rows);
        let places = prompt..(prompt + tokens.max(1)).min(most);
        let (count, started) = (places.len(), Instant::now());
        for position in places {
            self.model.step(&mut self.cache, &mut self.scratch, &[row(position)]);
        }
        count as f64 / started.elapsed().as_secs_f64().max(1e-9)
    }

    /// Tokens of a window: `wanted`, or what the model's context holds if that is less.
    pub fn window(&self, wanted: usize) -> usize {
        wanted.min(self.context).max(2)
    }

    /// Reads a text in windows of at most `window` tokens.
    ///
    /// # Errors
    /// It has fewer than two tokens or can't be split, or the model gives something that is not a number.
    pub fn text(&mut self, text: &str, window: usize) -> Result<Forecast, ProbeError> {
        let tokens = self.front.tokenizer.encode(text).map_err(ProbeError::Text)?;
        let begin = self.front.tokenizer.begin();
        let window = self.window(window);
        let part = window - usize::from(begin.is_some());
        let mut forecast = Forecast::default();
        for part in tokens.chunks(part) {
            let tokens: Vec<u32> = begin.into_iter().chain(part.iter().copied()).collect();
            self.read(&tokens, 1, &mut forecast)?;
        }
        if forecast.tokens == 0 { Err(ProbeError::TooShort { tokens: tokens.len() }) } else { Ok(forecast) }
    }

    /// Reads a text as [`Probe::text`] does and takes note of what goes into every product.
    ///
    /// # Errors
    /// As [`Probe::text`].
    pub fn watch(&mut self, text: &str, window: usize) -> Result<Watch, ProbeError> {
        self.scratch.watch = Some(Watch::default());
        let read = self.text(text, window);
        let watch = self.scratch.watch.take().unwrap_or_default();
        read.map(|_| watch)
    }

    /// Reads the right answers of records, each after its prompt as the engine renders it and with the token that ends it;
    /// only the answers' tokens are scored. Records that don't fit the context are left out and counted.
    ///
    /// # Errors
    /// The template refuses a prompt, or the model gives something that is not a number.
    pub fn answers(&mut self, records: &[Record]) -> Result<Forecast, ProbeError> {
        let mut forecast = Forecast::default();
        for record in records {
            let turn = ChatMessage { role: "user".to_owned(), content: record.prompt.clone() };
            let mut tokens = match self.front.encode(&[turn], self.context) {
                Ok(tokens) => tokens,
                Err(SubmitError::PromptTooLong { .. }) => {
                    forecast.left_out += 1;
                    continue;
                }
                Err(error) => return Err(ProbeError::Text(format!("record {}: {error}", record.id))),
            };
            let first = tokens.len();
            tokens.extend(self.front.tokenizer.encode(&record.answer).map_err(ProbeError::Text)?);
            tokens.extend(self.front.tokenizer.end());
            if tokens.len() > self.context {
                forecast.left_out += 1;
                continue;
            }
            self.read(&tokens, first, &mut forecast)?;
        }
        Ok(forecast)
    }

    /// Reads tokens as one sequence and adds how well those from `first` on (at least 1) were foretold.
    fn read(&mut self, tokens: &[u32], first: usize, forecast: &mut Forecast) -> Result<(), ProbeError> {
        self.cache.clear(0);
        let vocabulary = self.model.shape().vocabulary;
        let known = tokens.len().saturating_sub(1);
        for start in (0..known).step_by(ROWS) {
            let places = start..(start + ROWS).min(known);
            let row =
                |position| Row { slot: 0, position, token: tokens[position], wants_logits: position + 1 >= first };
            let rows: Vec<Row> = places.clone().map(row).collect();
            let logits = self.model.step(&mut self.cache, &mut self.scratch, &rows);
            let asked = places.filter(|position| position + 1 >= first);
            for (position, logits) in asked.zip(logits.chunks_exact(vocabulary)) {
                let target = tokens[position + 1];
                let (likeliest, nats) = surprise(logits, target).ok_or(ProbeError::NotANumber(forecast.tokens))?;
                forecast.likeliest.push(likeliest);
                forecast.nats += nats;
                forecast.tokens += 1;
                forecast.bytes += self.front.tokenizer.bytes(target).len();
            }
        }
        Ok(())
    }
}

/// The likeliest token and − ln p of the one that came; `None` if that is not a number.
fn surprise(logits: &[f32], target: u32) -> Option<(u32, f64)> {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    let most = f64::from(logits[best]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
    let nats = sum.ln() + most - f64::from(*logits.get(target as usize)?);
    nats.is_finite().then_some((best as u32, nats))
}
