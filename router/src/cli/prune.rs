//! `sluice prune`: a local model with fewer weights, layers, heads, neurons or tokens, and a report card of what that did.

use crate::cli::eval::read;
use crate::cli::quantize::ResultArguments;
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use local_worker::compress::{Target, Weights};
use local_worker::evaluate::Probe;
use local_worker::model::Watch;
use local_worker::prune::{Pattern, drop_layers, keep_heads, keep_layers, keep_neurons, keep_tokens, zero, zero_share};
use local_worker::train::model::{self, Metadata, Words};
use local_worker::train::network::Network;
use local_worker::train::pass::influences;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `prune`.
#[derive(Clone, Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["zeros", "layers", "these_layers", "key_heads", "neurons", "tokens"])))]
pub struct PruneArguments {
    /// A GGUF file or a folder with safetensors, of the plain Llama architecture; or a model of the catalog.
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// The catalog to look a name up in; the one inside the binary if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// How weights inside layers are chosen that become zero: `magnitude`, `wanda` (by what they read on the calibration text),
    /// `2:4` (two of four neighbours; by what they read, if there is a text). Makes the file neither smaller nor faster.
    #[arg(long, value_name = "WAY")]
    pub zeros: Option<Zeros>,
    /// Share of weights that `magnitude` and `wanda` zero.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, requires = "zeros")]
    pub share: f64,
    /// Keep so many layers: those that change what goes through them most on the calibration text.
    #[arg(long, value_name = "N", requires = "calibrate")]
    pub layers: Option<usize>,
    /// Keep these layers, from 0 and in their order, such as `0,1,2,29`.
    #[arg(long, value_name = "N,N", value_delimiter = ',', conflicts_with = "layers")]
    pub these_layers: Vec<usize>,
    /// Keep so many key heads in each layer, each with the query heads that read it.
    #[arg(long, value_name = "N", requires = "calibrate")]
    pub key_heads: Option<usize>,
    /// Keep so many neurons in each feed-forward part, a multiple of 32.
    #[arg(long, value_name = "N", requires = "calibrate")]
    pub neurons: Option<usize>,
    /// Keep so many tokens: those that the calibration text needs most. Answers of other models can't be compared token by token.
    #[arg(long, value_name = "N", requires = "calibrate")]
    pub tokens: Option<usize>,
    /// A text of some thousand tokens, of the kind that the model is for.
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Format of the result's matrices: f16, f32 to train on exactly, or as of `sluice quantize --to`.
    #[arg(long, value_name = "FORMAT", default_value = "f16")]
    pub to: Target,
    /// What becomes of the result.
    #[command(flatten)]
    pub result: ResultArguments,
}

/// How single weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Zeros {
    /// By size.
    Magnitude,
    /// By size times what they read.
    Wanda,
    /// Two of every four.
    #[value(name = "2:4")]
    TwoOfFour,
}

/// Runs `prune`.
pub fn run(arguments: &PruneArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    // Everything that can be wrong with the input is found before anything is written.
    let result = &arguments.result;
    let compared = result.compared(&arguments.model, arguments.catalog.as_deref())?;
    anyhow::ensure!(
        arguments.zeros != Some(Zeros::Wanda) || arguments.calibrate.is_some(),
        "wanda needs a text to calibrate on: --calibrate FILE"
    );
    if !result.requantize {
        Weights::read(&compared.before)?.refuse_quantised()?;
    }
    let text = arguments.calibrate.as_deref().map(calibration).transpose()?;
    // Layers and tokens are chosen without: a long text to count tokens in need not go through the whole model.
    let watched = arguments.zeros.is_some() || arguments.key_heads.is_some() || arguments.neurons.is_some();
    let watch = match (&text, &arguments.calibrate) {
        (Some(text), Some(file)) if watched => {
            let watch = Probe::open(&compared.before, &compared.config)?.watch(text, result.exam.window as usize);
            Some(watch.with_context(|| file.display().to_string())?)
        }
        _ => None,
    };
    let (network, metadata) = model::read(&compared.before)?;
    let pruned = prune(arguments, (network, metadata), text.as_deref(), watch.as_ref())?;
    let weights = model::weights(&pruned.network, &pruned.metadata)?;
    let made = format!("{} pruned,", arguments.model);
    result.write(&compared, (weights, arguments.to), (&made, Some(("pruned", pruned.told))), out)?;
    if arguments.zeros.is_some() && !result.json {
        writeln!(
            out,
            "zeros are stored and multiplied like any other weight: they make nothing smaller or faster by themselves"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes of a calibration text below which it says nothing.
const LEAST: usize = 64;

fn calibration(file: &Path) -> anyhow::Result<String> {
    let text = read(file)?;
    let problem = "the calibration text is too short; it should have some thousand tokens";
    anyhow::ensure!(text.trim().len() >= LEAST, "{}: {problem}", file.display());
    Ok(text)
}

struct Pruned {
    network: Network,
    metadata: Metadata,
    told: Value,
}

fn prune(
    arguments: &PruneArguments,
    (mut network, mut metadata): (Network, Metadata),
    text: Option<&str>,
    watch: Option<&Watch>,
) -> anyhow::Result<Pruned> {
    let before = network.weights.len();
    let mut told = serde_json::Map::new();
    let calibrated = || watch.context("there is no calibration text: --calibrate FILE");
    let words = Words::new(&metadata, network.shape.vocabulary)?;
    // What a watch says of channels no longer fits once some are gone, so zeros come first, then heads and neurons of layers
    // as they were numbered, then layers.
    match arguments.zeros {
        Some(Zeros::Magnitude) => zero(&mut network, Pattern::Share(arguments.share), None)?,
        Some(Zeros::Wanda) => zero(&mut network, Pattern::Share(arguments.share), Some(calibrated()?))?,
        Some(Zeros::TwoOfFour) => zero(&mut network, Pattern::TwoOfFour, watch)?,
        None => {}
    }
    let chosen = match arguments.layers {
        Some(_) => {
            influences(&network, &texts(&words, text.unwrap_or_default(), arguments.result.exam.window as usize)?)
        }
        None => Vec::new(),
    };
    if let Some(keep) = arguments.key_heads {
        network = keep_heads(&network, calibrated()?, keep)?;
    }
    if let Some(keep) = arguments.neurons {
        network = keep_neurons(&network, calibrated()?, keep)?;
    }
    if let Some(keep) = arguments.layers {
        let (small, dropped) = drop_layers(&network, &chosen, keep)?;
        network = small;
        told.insert("layers_dropped".to_owned(), json!(dropped));
    }
    if !arguments.these_layers.is_empty() {
        network = keep_layers(&network, &arguments.these_layers)?;
        told.insert("layers_kept".to_owned(), json!(arguments.these_layers));
    }
    if let Some(keep) = arguments.tokens {
        (network, metadata) = keep_tokens(&network, &metadata, text.unwrap_or_default(), keep)?;
        told.insert("tokens".to_owned(), json!(network.shape.vocabulary));
    }
    told.insert("weights".to_owned(), json!(network.weights.len()));
    told.insert("of".to_owned(), json!(before));
    told.insert("zero_share_in_layers".to_owned(), json!((zero_share(&network) * 1000.0).round() / 1000.0));
    Ok(Pruned { network, metadata, told: Value::Object(told) })
}

/// A text in windows of tokens.
fn texts(words: &Words, text: &str, window: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    Ok(words.encode(text)?.chunks(window).map(<[u32]>::to_vec).collect())
}

#[cfg(test)]
mod tests;
