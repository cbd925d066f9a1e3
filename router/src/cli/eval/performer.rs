//! `sluice eval performer`: an encoder with attention by random features beside the same encoder with softmax and beside
//! n-grams: how well they order recorded requests, what they take, and how far the approximation is from what it approximates.

mod approximation;
mod plot;
mod speed;

use super::routing::{Given, rows};
use crate::cli::table::{self, Align};
use crate::evidence::outcome::Outcome;
use crate::score::PairScorer;
use crate::score::performer::{Encoders, by_pair};
use crate::score::routing::{Rival, Routing, routing_beside, unseen};
use anyhow::Context as _;
use approximation::Errors;
use clap::{Args, ValueEnum};
use local_worker::scorer::Turn;
use local_worker::scorer::performer::train::{Example, Target};
use local_worker::scorer::performer::train::{TrainOptions, train};
use local_worker::scorer::performer::{Attention, Performer, Shape};
use serde_json::{Value, json};
use speed::Speed;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Arguments of `eval performer`.
#[derive(Clone, Debug, Args)]
pub struct PerformerArguments {
    /// Folder of outcomes to fit on: `*.jsonl`, `*.jsonl.gz`.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["speed_only", "probe"])]
    pub train: Option<PathBuf>,
    /// Folder of outcomes to measure on. Without it, or if it is the same folder, rows whose `split` is `train` are learnt
    /// and all others measured.
    #[arg(long, value_name = "DIR", requires = "train")]
    pub test: Option<PathBuf>,
    /// Measure time and memory alone, of encoders that learnt nothing: they take as long.
    #[arg(long, conflicts_with = "train")]
    pub speed_only: bool,
    /// Lengths to measure, in tokens.
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = speed::LENGTHS)]
    pub lengths: Vec<usize>,
    /// Passes over the outcomes; as `train scorer` makes them if absent.
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// Decides the random numbers of fits, draws and intervals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where a plot goes.
    #[arg(long, value_name = "FILE.svg")]
    pub svg: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Prints what one reading of the first length adds to this process' memory: asked by itself in a process of its own.
    #[arg(long, hide = true)]
    pub probe: Option<Kind>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// N-grams of an excerpt.
    Static,
    /// The encoder with random features.
    Performer,
    /// The encoder with softmax.
    Softmax,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Static, Self::Performer, Self::Softmax];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Performer => "performer",
            Self::Softmax => "softmax",
        }
    }

    fn attention(self) -> Option<Attention> {
        match self {
            Self::Static => None,
            Self::Performer => Some(Attention::Favor { features: Shape::FEATURES }),
            Self::Softmax => Some(Attention::Softmax),
        }
    }
}

/// What is measured, with one of each kind.
pub struct Scorers {
    ngrams: PairScorer,
    performer: Performer,
    softmax: Performer,
}

impl Scorers {
    /// The encoder of a kind, if it is one.
    pub fn encoder(&self, kind: Kind) -> Option<&Performer> {
        match kind {
            Kind::Static => None,
            Kind::Performer => Some(&self.performer),
            Kind::Softmax => Some(&self.softmax),
        }
    }
}

/// How well the kinds order requests.
struct Quality {
    routing: Routing,
    /// How long the encoders learnt, in the order of the rivals.
    training: Vec<Duration>,
    rows: usize,
}

/// Everything that was measured.
struct Report {
    quality: Option<Quality>,
    speed: Speed,
    errors: Option<Errors>,
    notes: Vec<String>,
}

/// Runs `eval performer`.
pub fn run(arguments: &PerformerArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let most = local_worker::scorer::performer::MOST_TOKENS;
    if let Some(bad) = arguments.lengths.iter().find(|length| !(1..=most).contains(*length)) {
        anyhow::bail!("--lengths {bad} is not within 1 and {most}, the most tokens that an encoder reads");
    }
    if let Some(kind) = arguments.probe {
        return speed::probe(kind, &untaught()?, &arguments.lengths, out);
    }
    let report = match &arguments.train {
        Some(train) => {
            let test = arguments.test.as_ref().unwrap_or(train);
            let given = rows(train, test)?;
            measured(arguments, &given)?
        }
        None => Report {
            quality: None,
            speed: Speed::measure(&untaught()?, speed::TEXT, &arguments.lengths)?,
            errors: None,
            notes: Vec::new(),
        },
    };
    if let Some(file) = &arguments.svg {
        std::fs::write(file, plot::svg(&report.speed, report.errors.as_ref()))
            .with_context(|| format!("can't write {}", file.display()))?;
    }
    match arguments.json {
        true => writeln!(out, "{}", report.to_json())?,
        false => report.print(out)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Encoders that learnt nothing, beside the bundled scorer.
fn untaught() -> anyhow::Result<Scorers> {
    let encoder = |kind: Kind| {
        let attention = kind.attention().context("no encoder")?;
        let options = TrainOptions { epochs: 1, ..TrainOptions::usual(attention, 1) };
        let target = Target { task: 0, value: 0.0, weight: 1.0 };
        let example = Example { turns: vec![Turn::user("nothing")], targets: vec![target] };
        train(&[example], 1, &options, |_| ())?.task(0).context("no task")
    };
    Ok(Scorers {
        ngrams: PairScorer::bundled()?.context("this build has no bundled scorer")?,
        performer: encoder(Kind::Performer)?,
        softmax: encoder(Kind::Softmax)?,
    })
}

fn measured(arguments: &PerformerArguments, given: &Given) -> anyhow::Result<Report> {
    let Given { train, test, notes } = given;
    let learnt = unseen(train, test, &mut Vec::new());
    let task = |row: &Outcome| by_pair(&row.source, &row.small, &row.large);
    let fit = |kind: Kind| {
        let attention = kind.attention().context("no encoder")?;
        let mut options = TrainOptions::usual(attention, arguments.seed);
        options.epochs = arguments.epochs.unwrap_or(options.epochs);
        let begun = Instant::now();
        let encoders = Encoders::fit(&learnt, task, &options, |progress| {
            tracing::info!(kind = kind.name(), epoch = progress.epoch, loss = progress.loss, "an encoder learns");
        })?;
        anyhow::Ok((encoders, begun.elapsed()))
    };
    let (performer, first) = fit(Kind::Performer)?;
    let (softmax, second) = fit(Kind::Softmax)?;
    let (by_performer, by_softmax) = (Readings::new(&performer), Readings::new(&softmax));
    let performers = |source: &str, pair: &crate::score::Pair, prompt: &str| by_performer.score(source, pair, prompt);
    let softmaxes = |source: &str, pair: &crate::score::Pair, prompt: &str| by_softmax.score(source, pair, prompt);
    let rivals = [
        Rival { name: Kind::Performer.name(), score: &performers },
        Rival { name: Kind::Softmax.name(), score: &softmaxes },
    ];
    let routing = routing_beside(train, test, arguments.seed, false, &rivals)?;
    let pair = routing.pairs.iter().max_by_key(|pair| pair.fitted_on).context("no pair of models was measured")?;
    let name = by_pair(&pair.source, &pair.pair.small, &pair.pair.large);
    let scorers = Scorers {
        ngrams: routing.scorer.clone().context("no scorer could be fitted on these outcomes")?,
        performer: performer.of(&name).context("no encoder for the largest pair")?,
        softmax: softmax.of(&name).context("no encoder for the largest pair")?,
    };
    let mut prompts: Vec<&str> = test.iter().map(|row| row.prompt.as_str()).collect();
    prompts.sort_unstable();
    prompts.dedup();
    let text = prompts.join("\n");
    let speed = Speed::measure(&scorers, &text, &arguments.lengths)?;
    let errors = Errors::measure(&scorers, &prompts, arguments.seed);
    let notes = notes.iter().chain(&routing.notes).cloned().collect();
    let quality = Quality { routing, training: vec![first, second], rows: learnt.len() };
    Ok(Report { quality: Some(quality), speed, errors: Some(errors), notes })
}

/// The encoders of all tasks, made once each.
struct Readings<'a> {
    encoders: &'a Encoders,
    made: RefCell<BTreeMap<String, Option<Performer>>>,
}

impl<'a> Readings<'a> {
    fn new(encoders: &'a Encoders) -> Self {
        Self { encoders, made: RefCell::default() }
    }

    fn score(&self, source: &str, pair: &crate::score::Pair, prompt: &str) -> f64 {
        let name = by_pair(source, &pair.small, &pair.large);
        let mut made = self.made.borrow_mut();
        let encoder = made.entry(name).or_insert_with_key(|name| self.encoders.of(name));
        encoder.as_ref().map_or(0.0, |encoder| encoder.score(&[Turn::user(prompt)]))
    }
}

impl Report {
    fn to_json(&self) -> Value {
        json!({
            "quality": self.quality.as_ref().map(Quality::to_json),
            "speed": self.speed.to_json(),
            "approximation": self.errors.as_ref().map(Errors::to_json),
            "notes": self.notes,
        })
    }

    fn print(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        if let Some(quality) = &self.quality {
            quality.print(out)?;
            writeln!(out)?;
        }
        self.speed.print(out)?;
        if let Some(errors) = &self.errors {
            writeln!(out)?;
            errors.print(out)?;
        }
        for note in &self.notes {
            writeln!(out, "{note}")?;
        }
        Ok(())
    }
}

impl Quality {
    fn to_json(&self) -> Value {
        let mean = &self.routing.mean;
        let gain = |(gain, (low, high)): &(f64, (f64, f64))| json!({ "gain": gain, "ci": [low, high] });
        let rivals: Vec<Value> = mean
            .rivals
            .iter()
            .zip(&self.training)
            .map(|(rival, time)| {
                json!({
                    "name": rival.name, "apgr": rival.apgr, "training_s": time.as_secs_f64(),
                    "over_static": rival.gains.first().map(gain), "over_performer": rival.gains.get(1).map(gain),
                })
            })
            .collect();
        let pairs: Vec<Value> = self
            .routing
            .pairs
            .iter()
            .map(|pair| {
                json!({
                    "source": pair.source, "weak_model": pair.pair.small, "strong_model": pair.pair.large, "n": pair.n,
                    "gap_differs_from_0": pair.differs, "static": pair.apgr,
                    "performer": pair.rivals.first(), "softmax": pair.rivals.get(1),
                })
            })
            .collect();
        json!({ "fitted_on": self.rows, "pairs_counted": mean.pairs, "static": mean.apgr, "encoders": rivals, "pairs": pairs })
    }

    fn print(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
        let rows: Vec<Vec<String>> = self
            .routing
            .pairs
            .iter()
            .map(|pair| {
                let name = format!("{} {}", pair.source, pair.pair.small);
                let apgr = [Some(pair.apgr), pair.rivals.first().copied(), pair.rivals.get(1).copied()];
                let apgr = apgr.into_iter().map(|value| number(value.flatten()));
                [name, pair.n.to_string()].into_iter().chain(apgr).collect()
            })
            .collect();
        let names = ["n", "static", "performer", "softmax"].map(|name| (name, Align::Right));
        let header: Vec<(&str, Align)> =
            [("APGR: source, small model", Align::Left)].into_iter().chain(names).collect();
        table::print(out, &header, &rows)?;
        let mean = &self.routing.mean;
        writeln!(out, "\nmean APGR over {} pairs whose gap is not 0: static {:.4}", mean.pairs, mean.apgr)?;
        for (rival, time) in mean.rivals.iter().zip(&self.training) {
            let against = ["static", "performer"].into_iter().zip(&rival.gains);
            let gains: Vec<String> = against
                .map(|(name, (gain, (low, high)))| format!("{gain:+.4} over {name} (95 %: {low:+.4} to {high:+.4})"))
                .collect();
            let seconds = time.as_secs_f64();
            writeln!(out, "{} {:.4}: {}; learnt for {seconds:.0} s", rival.name, rival.apgr, gains.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
