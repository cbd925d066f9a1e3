//! The engine (`own`) or stock candle (`candle`) as a peer of llama.cpp: reads one JSON command a line, answers with one JSON
//! object a line, like `peers/llamacpp_peer.py`. The engine is measured as the gateway uses it: through its handle, texts in and
//! events out.

use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_gemma3, quantized_llama};
use local_worker::{CacheFormat, ChatMessage, Event, GenerateRequest, Generation, ModelSource, Worker, WorkerConfig};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let which = std::env::args().nth(1).unwrap_or_default();
    let before = resident()?;
    let mut peer: Box<dyn Peer> = match which.as_str() {
        "own" => Box::new(Own::default()),
        "candle" => Box::new(Candle::default()),
        other => bail!("give `own` or `candle`, not `{other}`"),
    };
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let number = |key: &str| command[key].as_u64().unwrap_or(0) as usize;
        let rate = |rate: Result<f64>| match rate {
            Ok(rate) => json!({ "rate": rate }),
            // What a peer can't do is no reason to end: stock candle refuses batches of more than one, for example.
            Err(error) => json!({ "error": format!("{error}") }),
        };
        let answer = match command["do"].as_str() {
            Some("load") => {
                let (single, tokens) = (command["cache"] == "f32", number("tokens").max(8));
                let file = command["file"].as_str().unwrap_or("");
                let (seconds, prompt) = peer.load(file, number("threads"), single, tokens)?;
                json!({ "seconds": seconds, "prompt": prompt })
            }
            Some("decode") => rate(peer.decode(number("context"), number("tokens"))),
            Some("batch") => rate(peer.batch(number("sequences"), number("tokens"))),
            Some("prefill") => rate(peer.prefill(number("tokens"))),
            Some("memory") => json!({ "bytes": resident()?.saturating_sub(before) }),
            Some("bandwidth") => json!({ "rate": bandwidth() }),
            other => bail!("unknown command {other:?}"),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// An engine under measurement. Rates are tokens a second.
trait Peer {
    /// Loads a file and writes one token after a prompt of `tokens`, or of what a template makes of a few words; returns
    /// the seconds and the prompt's tokens. `single` keeps keys and values in single precision, where there is a choice.
    fn load(&mut self, file: &str, threads: usize, single: bool, tokens: usize) -> Result<(f64, usize)>;
    /// One sequence, after about `context` tokens.
    fn decode(&mut self, context: usize, tokens: usize) -> Result<f64>;
    /// Several sequences together, all tokens counted.
    fn batch(&mut self, sequences: usize, tokens: usize) -> Result<f64>;
    /// A prompt of about `tokens`.
    fn prefill(&mut self, tokens: usize) -> Result<f64>;
}

/// Bytes of physical memory of this process.
fn resident() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).context("no resident size in statm")?.parse()?;
    Ok(pages * 4096)
}

/// Bytes a second that one core reads out of memory: four streams through 512 MiB, the best of five rounds.
fn bandwidth() -> f64 {
    let memory = vec![1u64; 64 << 20];
    let quarter = memory.len() / 4;
    let mut best = 0.0f64;
    for _ in 0..5 {
        let start = Instant::now();
        let mut sums = [0u64; 4];
        for at in (0..quarter).step_by(8) {
            for (stream, sum) in sums.iter_mut().enumerate() {
                let from = stream * quarter + at;
                *sum = memory[from..from + 8].iter().fold(*sum, |sum, word| sum.wrapping_add(*word));
            }
        }
        std::hint::black_box(sums);
        best = best.max((memory.len() * 8) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// Our engine.
#[derive(Default)]
struct Own {
    worker: Option<Worker>,
    runtime: Option<tokio::runtime::Runtime>,
    asked: u64,
}

struct Timing {
    first: Instant,
    last: Instant,
    tokens: usize,
    prompt: usize,
}

impl Own {
    /// Words that differ from call to call, so that no prompt begins like an earlier one.
    fn text(&mut self, words: usize) -> String {
        self.asked += 1;
        let list = ["story", "river", "about", "long", "house", "seven", "green", "count", "light", "under"];
        let word = |at: usize| list[(at * 7 + self.asked as usize * 3 + at / 10) % list.len()];
        let mut text = format!("{} tell", self.asked * 7919 % 1000);
        for at in 0..words {
            text.push(' ');
            text.push_str(word(at));
        }
        text
    }

    fn submit(&mut self, words: usize, tokens: usize) -> Result<Generation> {
        let content = self.text(words);
        let worker = self.worker.as_ref().context("nothing is loaded")?;
        let mut request = GenerateRequest::greedy(vec![ChatMessage { role: "user".to_owned(), content }]);
        request.max_tokens = Some(tokens as u32);
        Ok(worker.submit(request)?)
    }

    /// Words that make a prompt of about so many tokens.
    fn words_for(&mut self, tokens: usize) -> Result<usize> {
        let content = self.text(100);
        let worker = self.worker.as_ref().context("nothing is loaded")?;
        let count = |content: &str| {
            worker.count_prompt_tokens(&[ChatMessage { role: "user".to_owned(), content: content.to_owned() }])
        };
        let (some, none) = (count(&content)? as f64, count("")? as f64);
        Ok(((tokens as f64 - none).max(1.0) / ((some - none) / 102.0)) as usize)
    }

    fn watch(&self, mut generation: Generation) -> Result<Timing> {
        let runtime = self.runtime.as_ref().context("nothing is loaded")?;
        runtime.block_on(async {
            let mut timing = Timing { first: Instant::now(), last: Instant::now(), tokens: 0, prompt: 0 };
            while let Some(event) = generation.next().await {
                match event {
                    Event::Started { prompt_tokens } => timing.prompt = prompt_tokens as usize,
                    Event::Token { .. } => {
                        timing.last = Instant::now();
                        if timing.tokens == 0 {
                            timing.first = timing.last;
                        }
                        timing.tokens += 1;
                    }
                    Event::Finished(_) => {}
                    Event::Failed(error) => return Err(error.into()),
                }
            }
            Ok(timing)
        })
    }
}

impl Peer for Own {
    fn load(&mut self, file: &str, threads: usize, single: bool, _tokens: usize) -> Result<(f64, usize)> {
        let start = Instant::now();
        let config = WorkerConfig {
            max_sequences: 16,
            context_limit: Some(4096),
            threads,
            prefill_chunk: 512,
            cache_format: if single { CacheFormat::Single } else { CacheFormat::Half },
            decline_hold: 0,
            ..WorkerConfig::default()
        };
        self.worker = Some(Worker::start("peer", ModelSource::Path(file.into()), config)?);
        self.runtime = Some(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
        let generation = self.submit(2, 1)?;
        let timing = self.watch(generation)?;
        Ok(((timing.last - start).as_secs_f64(), timing.prompt))
    }

    fn decode(&mut self, context: usize, tokens: usize) -> Result<f64> {
        let words = self.words_for(context)?;
        for _ in 0..8 {
            let generation = self.submit(words, tokens)?;
            let timing = self.watch(generation)?;
            if timing.tokens > tokens / 2 {
                return Ok((timing.tokens - 1) as f64 / (timing.last - timing.first).as_secs_f64());
            }
        }
        bail!("the model ends its answers too soon to be measured")
    }

    fn batch(&mut self, sequences: usize, tokens: usize) -> Result<f64> {
        // More than are measured, so that an answer that ends early is followed by another.
        let mut waiting = Vec::new();
        for _ in 0..sequences {
            waiting.push(self.submit(3, tokens)?);
        }
        let (mut first, mut last, mut count) = (None, Instant::now(), 0usize);
        let runtime = self.runtime.as_ref().context("nothing is loaded")?;
        let mut timings = Vec::new();
        runtime.block_on(async {
            let mut open: Vec<(Generation, usize)> = waiting.into_iter().map(|generation| (generation, 0)).collect();
            let mut at = 0;
            while !open.is_empty() {
                at %= open.len();
                let next = tokio::time::timeout(Duration::from_secs(60), open[at].0.next()).await;
                match next {
                    Ok(Some(Event::Token { .. })) => {
                        open[at].1 += 1;
                        timings.push(Instant::now());
                    }
                    Ok(Some(Event::Failed(error))) => bail!("{error}"),
                    Ok(Some(_)) => continue,
                    Ok(None) => {
                        open.remove(at);
                        continue;
                    }
                    Err(_) => bail!("no token for a minute"),
                }
                at += 1;
            }
            Ok(())
        })?;
        // From when all sequences have their first token to when the first ends.
        let (begin, end) = (sequences, timings.len().saturating_sub(sequences));
        for moment in timings.get(begin..end).unwrap_or(&[]) {
            first.get_or_insert(*moment);
            last = *moment;
            count += 1;
        }
        let first = first.context("too few tokens to measure")?;
        Ok((count - 1) as f64 / (last - first).as_secs_f64())
    }

    fn prefill(&mut self, tokens: usize) -> Result<f64> {
        let words = self.words_for(tokens)?;
        let start = Instant::now();
        let generation = self.submit(words, 1)?;
        let timing = self.watch(generation)?;
        Ok(timing.prompt as f64 / (timing.last - start).as_secs_f64())
    }
}

/// Candle's own quantised models.
#[derive(Default)]
struct Candle {
    model: Option<Stock>,
    vocabulary: u32,
}

enum Stock {
    Llama(quantized_llama::ModelWeights),
    Gemma(quantized_gemma3::ModelWeights),
}

impl Candle {
    /// One step of `sequences` equal sequences, `tokens` each, at `position`; returns the seconds.
    fn step(&mut self, sequences: usize, tokens: usize, position: usize) -> Result<f64> {
        let count = sequences * tokens;
        let token = |at: usize| ((position + at) as u32).wrapping_mul(2_654_435_761) % self.vocabulary;
        let input = Tensor::from_vec((0..count).map(token).collect(), (sequences, tokens), &Device::Cpu)?;
        let start = Instant::now();
        let logits = match self.model.as_mut().context("nothing is loaded")? {
            Stock::Llama(model) => model.forward(&input, position)?,
            Stock::Gemma(model) => model.forward(&input, position)?,
        };
        std::hint::black_box(logits.sum_all()?.to_scalar::<f32>()?);
        Ok(start.elapsed().as_secs_f64())
    }
}

impl Peer for Candle {
    fn load(&mut self, file: &str, _threads: usize, _single: bool, tokens: usize) -> Result<(f64, usize)> {
        let start = Instant::now();
        let mut reader = std::fs::File::open(file)?;
        let content = gguf_file::Content::read(&mut reader)?;
        self.vocabulary = match content.metadata.get("tokenizer.ggml.tokens") {
            Some(gguf_file::Value::Array(tokens)) => tokens.len() as u32,
            _ => 1000,
        };
        let architecture =
            content.metadata.get("general.architecture").and_then(|value| value.to_string().ok()).cloned();
        self.model = Some(match architecture.as_deref() {
            Some("gemma3") => {
                Stock::Gemma(quantized_gemma3::ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?)
            }
            _ => Stock::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?),
        });
        self.step(1, tokens, 0)?;
        Ok((start.elapsed().as_secs_f64(), tokens))
    }

    fn decode(&mut self, context: usize, tokens: usize) -> Result<f64> {
        self.step(1, context, 0)?;
        let mut seconds = 0.0;
        for at in 0..tokens {
            seconds += self.step(1, 1, context + at)?;
        }
        Ok(tokens as f64 / seconds)
    }

    fn batch(&mut self, sequences: usize, tokens: usize) -> Result<f64> {
        self.step(sequences, 8, 0)?;
        let mut seconds = 0.0;
        for at in 0..tokens {
            seconds += self.step(sequences, 1, 8 + at)?;
        }
        Ok((sequences * tokens) as f64 / seconds)
    }

    fn prefill(&mut self, tokens: usize) -> Result<f64> {
        Ok(tokens as f64 / self.step(1, tokens, 0)?)
    }
}
