//! `sluice ask`: send one request and stream the answer, then say who gave it, why and for how much.

use super::connection::{Connection, describe};
use super::explain::decision_line;
use super::table::money;
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use sluice_proto::v1;
use sluice_proto::v1::stream_complete_response::Event;
use std::io::{Read as _, Write};
use std::process::ExitCode;

/// Where a request may be served.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PlacementWord {
    /// The policy decides.
    Auto,
    /// Only in the gateway's process.
    LocalOnly,
    /// In the gateway's process where possible.
    PreferLocal,
    /// Remote where possible.
    PreferRemote,
    /// Only remote.
    RemoteOnly,
}

impl From<PlacementWord> for v1::Placement {
    fn from(word: PlacementWord) -> Self {
        match word {
            PlacementWord::Auto => Self::Auto,
            PlacementWord::LocalOnly => Self::LocalOnly,
            PlacementWord::PreferLocal => Self::PreferLocal,
            PlacementWord::PreferRemote => Self::PreferRemote,
            PlacementWord::RemoteOnly => Self::RemoteOnly,
        }
    }
}

/// What makes up an ask on the command line; shared by `ask` and `explain`.
#[derive(Clone, Debug, Args)]
pub struct AskOptions {
    /// System message put before the prompt.
    #[arg(long)]
    pub system: Option<String>,
    /// Policy to decide by.
    #[arg(long, default_value = "")]
    pub policy: String,
    /// Where the request may be served.
    #[arg(long, value_enum, default_value = "auto")]
    pub placement: PlacementWord,
    /// A label, KEY=VALUE; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Most tokens to generate.
    #[arg(long, allow_negative_numbers = true)]
    pub max_tokens: Option<i32>,
    /// 0 is greedy.
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Sample from the likeliest tokens that together have this probability.
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Text that ends the answer; may be repeated.
    #[arg(long)]
    pub stop: Vec<String>,
    /// Seed of the sampler.
    #[arg(long, allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Sample from so many likeliest tokens.
    #[arg(long, allow_negative_numbers = true)]
    pub top_k: Option<i32>,
    /// Sample from tokens at least this many times as likely as the likeliest.
    #[arg(long, allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Above 1 weakens tokens that prompt or answer have already.
    #[arg(long, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that the answer has already.
    #[arg(long, allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logit of a token for each time that the answer has it already.
    #[arg(long, allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Show each token with its log-probability and so many alternatives, after the answer.
    #[arg(long, allow_negative_numbers = true, value_name = "ALTERNATIVES")]
    pub logprobs: Option<i32>,
    /// The answer shall be JSON that this JSON Schema describes; `@FILE` reads it from a file.
    #[arg(long, value_name = "SCHEMA", conflicts_with_all = ["regex", "choices"])]
    pub json_schema: Option<String>,
    /// The answer shall be text that this regular expression matches as a whole.
    #[arg(long, conflicts_with = "choices")]
    pub regex: Option<String>,
    /// The answer shall be this text or another `--choice`.
    #[arg(long = "choice", value_name = "TEXT")]
    pub choices: Vec<String>,
    /// A region that the request may be served in; may be repeated. Any if absent.
    #[arg(long = "region", value_name = "REGION")]
    pub regions: Vec<String>,
    /// Conversation the request belongs to.
    #[arg(long, default_value = "")]
    pub conversation: String,
}

impl AskOptions {
    /// The ask for `prompt`.
    pub fn ask(&self, prompt: String) -> anyhow::Result<v1::Ask> {
        let mut ask = sluice_proto::client::ask(prompt);
        if let Some(system) = &self.system {
            let mut message = sluice_proto::client::ask(system.clone()).messages;
            message.iter_mut().for_each(|message| message.role = v1::Role::System.into());
            ask.messages.splice(0..0, message);
        }
        for label in &self.labels {
            let Some((key, value)) = label.split_once('=') else {
                bail!("label `{label}` should be KEY=VALUE");
            };
            ask.labels.insert(key.to_owned(), value.to_owned());
        }
        ask.policy.clone_from(&self.policy);
        ask.placement = v1::Placement::from(self.placement).into();
        ask.conversation_id.clone_from(&self.conversation);
        ask.regions.clone_from(&self.regions);
        ask.limits = Some(v1::Limits {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            stop: self.stop.clone(),
            seed: self.seed,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logprobs: self.logprobs,
        });
        ask.response_format = self.response_format()?.map(|kind| v1::ResponseFormat { kind: Some(kind) });
        Ok(ask)
    }

    fn response_format(&self) -> anyhow::Result<Option<v1::response_format::Kind>> {
        use v1::response_format::Kind;
        if let Some(schema) = &self.json_schema {
            let schema = match schema.strip_prefix('@') {
                Some(file) => std::fs::read_to_string(file).with_context(|| format!("can't read {file}"))?,
                None => schema.clone(),
            };
            return Ok(Some(Kind::JsonSchema(schema)));
        }
        let choices = (!self.choices.is_empty()).then(|| v1::Choices { texts: self.choices.clone() });
        Ok(self.regex.clone().map(Kind::Regex).or(choices.map(Kind::Choices)))
    }
}

/// Arguments of `ask`.
#[derive(Debug, Args)]
pub struct AskArguments {
    /// The prompt; `-` reads it from standard input.
    pub prompt: String,
    /// Where the gateway is.
    #[command(flatten)]
    pub connection: Connection,
    /// The rest of the ask.
    #[command(flatten)]
    pub options: AskOptions,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub deadline: Option<f64>,
}

/// Reads `-` as standard input.
pub fn prompt_text(prompt: String) -> anyhow::Result<String> {
    if prompt != "-" {
        return Ok(prompt);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("can't read standard input")?;
    Ok(text)
}

/// Runs `ask`.
pub fn run(arguments: AskArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    super::client_runtime()?.block_on(stream(arguments, out))
}

async fn stream(arguments: AskArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let ask = arguments.options.ask(prompt_text(arguments.prompt)?)?;
    let mut client = arguments.connection.open().await?;
    let mut request = tonic::Request::new(v1::StreamCompleteRequest { ask: Some(ask) });
    if let Some(seconds) = arguments.deadline {
        let deadline =
            std::time::Duration::try_from_secs_f64(seconds).context("--deadline should be a positive number")?;
        request.set_timeout(deadline);
    }
    let mut tokens = Vec::new();
    let mut events = client.gateway.stream_complete(request).await.map_err(|status| describe(&status))?.into_inner();
    loop {
        let message = match events.message().await {
            Ok(Some(message)) => message,
            Ok(None) => bail!("the stream ended without `finished`: the answer above is not complete"),
            Err(status) => return Err(describe(&status)),
        };
        match message.event {
            Some(Event::Started(started)) => {
                let decision = started.decision.unwrap_or_default();
                writeln!(out, "[{} {}]", started.request_id, decision_line(&decision))?;
            }
            Some(Event::Rerouted(rerouted)) => {
                writeln!(out, "[rerouted: {}]", decision_line(&rerouted.decision.unwrap_or_default()))?;
            }
            Some(Event::Delta(delta)) => {
                tokens.extend(delta.logprobs);
                if let Some(v1::delta::Kind::Text(text)) = delta.kind {
                    write!(out, "{text}")?;
                    out.flush()?;
                }
            }
            Some(Event::Finished(finished)) => {
                writeln!(out, "\n[{}]", finished_line(&finished))?;
                tokens.iter().try_for_each(|token| writeln!(out, "{}", token_line(token)))?;
                return Ok(ExitCode::SUCCESS);
            }
            None => {}
        }
    }
}

/// One line on how a request ended: finish, tokens, cost, saved, time.
pub fn finished_line(finished: &v1::Finished) -> String {
    let usage = finished.usage.unwrap_or_default();
    let cost = finished.cost.unwrap_or_default();
    format!(
        "{}, {} + {} tokens (of at most {}), cost {} ({}), saved {} (estimate), {:.0} ms",
        word(finished.finish_reason().as_str_name(), "FINISH_REASON_"),
        usage.input_tokens,
        usage.output_tokens,
        finished.max_tokens,
        money(cost.nano_usd),
        word(cost.basis().as_str_name(), "COST_BASIS_"),
        money(finished.saved_nano_usd),
        finished.latency_ms,
    )
}

/// One line on a token: text, log-probability, margin, and what might have come.
fn token_line(token: &v1::TokenLogprob) -> String {
    let shown = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(bytes));
    let margin = token.margin.map_or_else(|| "unknown".to_owned(), |margin| format!("{margin:.3}"));
    let mut line = format!("{:<16} {:>8.3}  margin {margin}", shown(&token.token), token.logprob);
    for other in &token.alternatives {
        line.push_str(&format!("  {} {:.3}", shown(&other.token), other.logprob));
    }
    line
}

/// An enum's name as a word: `ROUTE_LOCAL` without its prefix, in lower case.
pub fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}
