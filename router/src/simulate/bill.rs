//! What the simulated large model has been asked and what it charges for it.

use crate::domain::{NanoUsd, PicoUsdPerToken};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Prices per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    /// Of prompt tokens that were not cached.
    pub input: PicoUsdPerToken,
    /// Of cached prompt tokens.
    pub cached_input: PicoUsdPerToken,
    /// Of generated tokens, reasoning included.
    pub output: PicoUsdPerToken,
}

impl Default for Prices {
    /// 0.40, 0.10 and 1.60 USD per million tokens.
    fn default() -> Self {
        Self {
            input: PicoUsdPerToken::new(400_000),
            cached_input: PicoUsdPerToken::new(100_000),
            output: PicoUsdPerToken::new(1_600_000),
        }
    }
}

impl Prices {
    /// What an attempt costs: the three products summed in pico-USD, then rounded up once.
    pub fn charge(&self, prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> NanoUsd {
        NanoUsd::from_picos_rounded_up(
            self.input.times(prompt_tokens.saturating_sub(cached_tokens))
                + self.cached_input.times(cached_tokens)
                + self.output.times(completion_tokens),
        )
    }
}

/// How a request ended, as the server saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Still being answered.
    Running,
    /// Answered with an error status, free of charge.
    Refused,
    /// Everything was written, as scripted.
    Complete,
    /// Broken off by a scripted fault.
    Broken,
    /// The caller hung up before the end.
    HungUp,
}

impl Ending {
    /// The word in `/bill`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Refused => "refused",
            Self::Complete => "complete",
            Self::Broken => "broken",
            Self::HungUp => "hung_up",
        }
    }
}

/// One request that arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenRequest {
    /// The caller's `x-request-id`; empty where there was none.
    pub attempt: String,
    /// The caller's `idempotency-key`; empty where there was none.
    pub idempotency_key: String,
    /// The body as it came; null where it was not JSON.
    pub body: Value,
    /// How it ended.
    pub ending: Ending,
}

/// One position of the bill: kept up to date while tokens are generated, so a caller who hangs up pays for what there was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BillRow {
    /// The caller's `x-request-id`.
    pub attempt: String,
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Of them cached.
    pub cached_tokens: u64,
    /// Generated tokens, reasoning included.
    pub completion_tokens: u64,
    /// What it costs.
    pub cost: NanoUsd,
}

/// Requests and bill.
#[derive(Clone)]
pub(super) struct Books(Arc<Mutex<Pages>>);

struct Pages {
    prices: Prices,
    requests: Vec<SeenRequest>,
    rows: Vec<BillRow>,
    prompts: HashSet<blake3::Hash>,
}

impl Books {
    pub(super) fn new(prices: Prices) -> Self {
        Self(Arc::new(Mutex::new(Pages { prices, requests: Vec::new(), rows: Vec::new(), prompts: HashSet::new() })))
    }

    /// Opens the account of one request.
    pub(super) fn open(&self, attempt: String, idempotency_key: String, body: Value) -> Account {
        let mut pages = self.lock();
        let index = pages.requests.len();
        pages.requests.push(SeenRequest { attempt, idempotency_key, body, ending: Ending::Running });
        Account { books: self.clone(), index, row: None }
    }

    pub(super) fn requests(&self) -> Vec<SeenRequest> {
        self.lock().requests.clone()
    }

    pub(super) fn rows(&self) -> Vec<BillRow> {
        self.lock().rows.clone()
    }

    /// Prompt tokens that count as cached: whole blocks of 128 of a prompt of at least 1,024 tokens that was seen before.
    pub(super) fn cached_tokens(&self, prompt: blake3::Hash, prompt_tokens: u64) -> u64 {
        if prompt_tokens < 1_024 || self.lock().prompts.insert(prompt) { 0 } else { prompt_tokens / 128 * 128 }
    }

    pub(super) fn to_json(&self) -> Value {
        let pages = self.lock();
        let rows = pages.rows.iter().map(|row| {
            json!({
                "attempt": row.attempt,
                "prompt_tokens": row.prompt_tokens,
                "cached_tokens": row.cached_tokens,
                "completion_tokens": row.completion_tokens,
                "nano_usd": row.cost.nanos(),
            })
        });
        let requests = pages
            .requests
            .iter()
            .map(|request| json!({ "attempt": request.attempt, "ending": request.ending.as_str() }));
        json!({
            "simulated": true,
            "rows": rows.collect::<Vec<_>>(),
            "requests": requests.collect::<Vec<_>>(),
            "total_nano_usd": pages.rows.iter().map(|row| row.cost).sum::<NanoUsd>().nanos(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The account of one request. Dropped while the request runs, it notes that the caller hung up.
pub(super) struct Account {
    books: Books,
    index: usize,
    row: Option<usize>,
}

impl Account {
    /// Begins to charge.
    pub(super) fn charge_prompt(&mut self, prompt_tokens: u64, cached_tokens: u64) {
        let mut pages = self.books.lock();
        let attempt = pages.requests.get(self.index).map(|request| request.attempt.clone()).unwrap_or_default();
        let cost = pages.prices.charge(prompt_tokens, cached_tokens, 0);
        self.row = Some(pages.rows.len());
        pages.rows.push(BillRow { attempt, prompt_tokens, cached_tokens, completion_tokens: 0, cost });
    }

    /// Charges `count` more generated tokens.
    pub(super) fn charge_completion(&self, count: u64) {
        let mut pages = self.books.lock();
        let prices = pages.prices;
        if let Some(row) = self.row.and_then(|index| pages.rows.get_mut(index)) {
            row.completion_tokens += count;
            row.cost = prices.charge(row.prompt_tokens, row.cached_tokens, row.completion_tokens);
        }
    }

    /// Notes how the request ended; the first ending counts.
    pub(super) fn end(&self, ending: Ending) {
        if let Some(request) = self.books.lock().requests.get_mut(self.index)
            && request.ending == Ending::Running
        {
            request.ending = ending;
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.end(Ending::HungUp);
    }
}
