//! The report card of a change to a model's weights: what it saved, and what it did to what the model says and to where
//! requests go.
//!
//! A *routing decision* here is what becomes of a draft once the small model has been asked: it is shown if the model neither
//! handed on nor was cut off, and — where a judge is given — the judge finds it good enough by the certified threshold; else
//! the request goes to a large model. The decision before any draft is the scorer's, which reads the prompt alone, so no
//! change to the model's weights can flip it. Files and command lines are none of this module's business.

use super::Report;
use crate::judge::{Draft, JudgeFile, TokenFacts};
use crate::score::PairScorer;
use local_worker::evaluate::{Answer, AskError, AskOptions, Forecast, Probe, ProbeError, Record, ask};
use local_worker::scorer::Turn;
use local_worker::{LoadError, ModelSource, Worker, WorkerConfig};
use serde_json::{Value, json};

/// Rounds in which speed is measured, one model after the other; the median is told.
const ROUNDS: usize = 5;
/// Tokens written in each.
const SPEED_TOKENS: usize = 64;

/// What a model is measured on.
#[derive(Default)]
pub struct Exam {
    /// Text to foretell, and tokens of its windows.
    pub text: Option<(String, usize)>,
    /// Questions.
    pub records: Vec<Record>,
    /// How they are asked.
    pub ask: AskOptions,
    /// Who looks at drafts, and what scores prompts for it.
    pub judge: Option<(JudgeFile, PairScorer)>,
}

/// One model measured.
#[derive(Clone, Debug)]
pub struct Side {
    /// Size of the file.
    pub file_bytes: u64,
    /// Memory taken by the weights as loaded.
    pub resident_bytes: u64,
    /// Element type of most weights.
    pub format: String,
    /// Tokens a second of one sequence alone.
    pub tokens_per_second: f64,
    /// How well it foretells the text.
    pub text: Option<Forecast>,
    /// How well it foretells the right answers.
    pub answers: Option<Forecast>,
    /// What it scores on the questions.
    pub report: Option<Report>,
    /// Its answer to each, and whether that would be shown.
    said: Vec<(String, bool)>,
}

/// A model before and after a change.
#[derive(Clone, Debug)]
pub struct Card {
    /// As it was.
    pub before: Side,
    /// As it is.
    pub after: Side,
    judged: bool,
    choices: bool,
}

/// Decisions that flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flips {
    /// Decisions compared.
    pub n: usize,
    /// Shown before and no more.
    pub to_remote: usize,
    /// Not shown before, and now.
    pub to_local: usize,
}

impl Flips {
    /// Share of decisions that flip.
    pub fn share(&self) -> f64 {
        (self.to_remote + self.to_local) as f64 / self.n as f64
    }
}

/// Why a model can't be measured.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// It can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It can't answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It can't be made to foretell.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A prompt can't be scored.
    #[error("record {id}: its prompt can't be scored: {reason}")]
    Score {
        /// The record.
        id: String,
        /// Why.
        reason: String,
    },
}

impl Card {
    /// Measures a model before and after a change, both in the same way.
    ///
    /// # Errors
    /// One of them can't be loaded or fails.
    pub fn measure(
        before: &ModelSource,
        after: &ModelSource,
        config: &WorkerConfig,
        exam: &Exam,
    ) -> Result<Self, CardError> {
        let mut sides = [side(before, config, exam)?, side(after, config, exam)?];
        let mut probes = [Probe::open(before, config)?, Probe::open(after, config)?];
        let mut speeds = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (probe, speeds) in probes.iter_mut().zip(&mut speeds) {
                speeds.push(probe.decode_speed(SPEED_TOKENS));
            }
        }
        for (side, mut speeds) in sides.iter_mut().zip(speeds) {
            speeds.sort_by(f64::total_cmp);
            side.tokens_per_second = speeds[ROUNDS / 2];
        }
        let [before, after] = sides;
        Ok(Self { before, after, judged: exam.judge.is_some(), choices: exam.ask.choices })
    }

    /// Share of the places of text (or, without text, of right answers) where both take the same token for the likeliest.
    pub fn top1_agreement(&self) -> Option<f64> {
        let texts = self.before.text.as_ref().zip(self.after.text.as_ref());
        let (before, after) = texts.or_else(|| self.before.answers.as_ref().zip(self.after.answers.as_ref()))?;
        before.agreement(after)
    }

    /// Share of questions that are answered otherwise than before.
    pub fn answers_changed(&self) -> Option<f64> {
        let pairs = || self.before.said.iter().zip(&self.after.said);
        let changed = pairs().filter(|(before, after)| before.0 != after.0).count();
        (pairs().len() > 0).then(|| changed as f64 / pairs().len() as f64)
    }

    /// Routing decisions that flip, as this module says what one is.
    pub fn flips(&self) -> Option<Flips> {
        let count = |from: bool| {
            let pairs = self.before.said.iter().zip(&self.after.said);
            pairs.filter(|(before, after)| before.1 == from && after.1 != from).count()
        };
        let n = self.before.said.len();
        (n > 0).then(|| Flips { n, to_remote: count(true), to_local: count(false) })
    }

    /// The card as JSON.
    pub fn to_json(&self) -> Value {
        let ratio = |part: fn(&Side) -> f64| part(&self.after) / part(&self.before);
        let perplexity = |part: fn(&Side) -> Option<&Forecast>| {
            Some(part(&self.after)?.perplexity() / part(&self.before)?.perplexity())
        };
        let average = |side: &Side| Some(side.report.as_ref()?.macro_average?.value);
        let flips = self.flips().map(|flips| {
            json!({
                "share": flips.share(), "n": flips.n, "to_remote": flips.to_remote, "to_local": flips.to_local,
                "rule": if self.judged { "handed on, cut off or judged too low" } else { "handed on or cut off" },
            })
        });
        json!({
            "before": self.before.to_json(), "after": self.after.to_json(),
            "bytes_ratio": ratio(|side| side.file_bytes as f64),
            "resident_ratio": ratio(|side| side.resident_bytes as f64),
            "tokens_per_s_ratio": ratio(|side| side.tokens_per_second),
            "perplexity_ratio": perplexity(|side| side.text.as_ref()),
            "answer_perplexity_ratio": perplexity(|side| side.answers.as_ref()),
            "top1_agreement": self.top1_agreement(),
            "macro_difference": average(&self.after).zip(average(&self.before)).map(|(after, before)| after - before),
            "answers_changed": self.answers_changed(),
            "routes_flipped": flips,
            "choices": self.choices,
        })
    }
}

impl Side {
    fn to_json(&self) -> Value {
        let mut value = self.report.as_ref().map_or_else(|| json!({}), Report::to_json);
        // Of the suite, with many in flight; the card compares one sequence alone.
        value["suite_tokens_per_s"] = value["tokens_per_s"].take();
        value["tokens_per_s"] = self.tokens_per_second.into();
        value["bytes"] = self.file_bytes.into();
        value["resident_bytes"] = self.resident_bytes.into();
        value["format"] = self.format.as_str().into();
        for (name, forecast) in [("perplexity", &self.text), ("answer_perplexity", &self.answers)] {
            value[name] = forecast.as_ref().map_or(Value::Null, forecast_json);
        }
        value
    }
}

/// A forecast as JSON; without a value where nothing was scored.
pub fn forecast_json(forecast: &Forecast) -> Value {
    let scored = forecast.tokens > 0;
    json!({
        "value": scored.then(|| forecast.perplexity()), "bits_per_byte": scored.then(|| forecast.bits_per_byte()),
        "tokens": forecast.tokens, "bytes": forecast.bytes, "left_out": forecast.left_out,
    })
}

/// Everything but the speed.
fn side(source: &ModelSource, config: &WorkerConfig, exam: &Exam) -> Result<Side, CardError> {
    let worker = Worker::start("measured", source.clone(), config.clone())?;
    let info = worker.info();
    let options = AskOptions { likeliest: Some(5), ..exam.ask };
    let (answers, time) = ask(&worker, &exam.records, &options, &mut |_| {})?;
    drop(worker);
    let asked = !exam.records.is_empty();
    let mut probe = (asked || exam.text.is_some()).then(|| Probe::open(source, config)).transpose()?;
    let mut text = None;
    let mut of_answers = None;
    if let Some(probe) = &mut probe {
        text = exam.text.as_ref().map(|(text, window)| probe.text(text, *window)).transpose()?;
        of_answers = asked.then(|| probe.answers(&exam.records)).transpose()?.filter(|forecast| forecast.tokens > 0);
    }
    let said = exam.records.iter().zip(&answers);
    let said = said.map(|(record, answer)| Ok((answer.said().to_owned(), shown(record, answer, exam)?)));
    Ok(Side {
        file_bytes: info.file_bytes,
        resident_bytes: info.resident_bytes,
        format: info.quantization,
        tokens_per_second: 0.0,
        text,
        answers: of_answers,
        said: said.collect::<Result<_, CardError>>()?,
        report: asked.then(|| Report::of(&exam.records, &answers, time)),
    })
}

/// Whether a draft would be shown.
fn shown(record: &Record, answer: &Answer, exam: &Exam) -> Result<bool, CardError> {
    if answer.hands_off() || answer.too_long || answer.trace.cut {
        return Ok(false);
    }
    let Some((JudgeFile { judge, certificate }, scorer)) = &exam.judge else { return Ok(true) };
    let Some(threshold) = certificate.threshold else { return Ok(false) };
    let scored = scorer.score_turns(&[Turn::user(&record.prompt)]);
    let scored = scored.map_err(|error| CardError::Score { id: record.id.clone(), reason: error.to_string() })?;
    let trace = &answer.trace;
    let token = |at: usize| TokenFacts {
        logprob: f64::from(trace.logprobs[at]),
        margin: trace.margins.get(at).map(|margin| f64::from(*margin)),
        entropy: trace
            .likeliest
            .get(at)
            .map(|logprobs| TokenFacts::entropy_of(logprobs.iter().map(|logprob| f64::from(*logprob)))),
    };
    let tokens: Vec<TokenFacts> = (0..trace.logprobs.len()).map(token).collect();
    let draft = Draft {
        prompt: &record.prompt,
        text: &answer.text,
        tokens: &tokens,
        cut: false,
        prompt_score: Some(scored.get()),
        valid: None,
        agrees: None,
    };
    Ok(!judge.hopeless(&draft) && judge.judge(&draft).get() >= threshold)
}

#[cfg(test)]
mod tests;
