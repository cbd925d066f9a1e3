//! `sluice tune`: the lowest threshold that recorded outcomes prove, per pair of models and per segment.

use crate::catalog::Catalog;
use crate::cli::table::{self, Align};
use crate::evidence::bound::{Promise, Solution};
use crate::evidence::outcome::Outcomes;
use crate::learn::recorded::{Having, Wanted};
use crate::policy::{Objective, Policy};
use crate::replay::tune::coverage::{Coverage, coverage};
use crate::replay::tune::{Hindsight, PairResult, Segment, TuneOptions, tune};
use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `tune`.
#[derive(Debug, Clone, Args)]
pub struct TuneArguments {
    /// Files of recorded outcomes, JSON lines, gzipped or not. Rows with a `score` are cut by it; for others a scorer is
    /// fitted on clusters of their own.
    #[arg(long, required_unless_present = "from_ledger", num_args = 1.., value_name = "FILE")]
    pub outcomes: Vec<PathBuf>,
    /// Outcomes of shadow runs with the scores they had, out of the ledger in this folder, beside those of files.
    #[arg(long, value_name = "DIR")]
    pub from_ledger: Option<PathBuf>,
    /// Only this tenant's outcomes of the ledger.
    #[arg(long, default_value = "", requires = "from_ledger")]
    pub tenant: String,
    /// Outcomes on which the promise is checked; held-out clusters of the others if absent.
    #[arg(long, value_name = "FILE")]
    pub validate: Option<PathBuf>,
    /// Share of the large model's quality to keep, above 0 and at most 1.
    #[arg(long, default_value_t = 0.95)]
    pub target: f64,
    /// How sure to be of it, between 0 and 1.
    #[arg(long, default_value_t = 0.95)]
    pub confidence: f64,
    /// Take target and confidence from this policy, and hold the model names against its catalog.
    #[arg(long, value_name = "POLICY.toml")]
    pub policy: Option<PathBuf>,
    /// The catalog of the policy; `models.toml` beside it if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Certificates of their own for parts of the traffic; together they hold at the confidence.
    #[arg(long)]
    pub segment: Option<Segment>,
    /// Instead: draw this many samples with replacement and count broken promises, the whole set being the population.
    #[arg(long, value_name = "DRAWS")]
    pub coverage: Option<u32>,
    /// Outcomes in each such sample.
    #[arg(long, default_value_t = 1000)]
    pub sample: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs `tune`.
pub fn run(arguments: &TuneArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let wanted = Wanted { tenant: arguments.tenant.clone(), having: Having::Score, feedback: false };
    let (outcomes, read) = super::outcomes_of(&arguments.outcomes, arguments.from_ledger.as_deref(), &wanted)?;
    let validate = arguments.validate.as_deref().map(|file| Outcomes::read(&[file])).transpose()?;
    let options = TuneOptions { promise: promise(arguments, &outcomes)?, segment: arguments.segment };
    let mut notes = outcomes.notes.clone();
    notes.extend(read);
    notes.extend(validate.iter().flat_map(|outcomes| outcomes.notes.clone()));
    if let Some(draws) = arguments.coverage {
        let measured = coverage(&outcomes.rows, &options, draws, arguments.sample)?;
        notes.extend(measured.iter().flat_map(|pair| pair.notes.clone()));
        return show_coverage(&measured, &notes, arguments.json, out);
    }
    let results = tune(&outcomes.rows, validate.as_ref().map(|outcomes| outcomes.rows.as_slice()), &options)?;
    notes.extend(results.iter().flat_map(|pair| pair.notes.clone()));
    if arguments.json {
        let pairs: Vec<Value> = results.iter().map(|pair| pair_json(pair, options.promise)).collect();
        let mut value = pairs.first().cloned().unwrap_or_else(|| json!({}));
        if pairs.len() > 1 {
            value["pairs"] = pairs.into();
        }
        value["evidence_hash"] = outcomes.hash.clone().into();
        value["notes"] = notes.into();
        writeln!(out, "{value}")?;
        return Ok(ExitCode::SUCCESS);
    }
    for result in &results {
        told(result, options.promise, out)?;
    }
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Target and confidence, from the policy if there is one; then its catalog has to know every model.
fn promise(arguments: &TuneArguments, outcomes: &Outcomes) -> anyhow::Result<Promise> {
    let Some(file) = &arguments.policy else {
        return Ok(Promise { target: arguments.target, confidence: arguments.confidence });
    };
    let read = |file: &Path| std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
    let listed = |problems: Vec<crate::toml_file::Problem>| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", lines.join("\n"))
    };
    let catalog_file = arguments.catalog.clone().unwrap_or_else(|| file.with_file_name("models.toml"));
    let catalog = Catalog::parse(&catalog_file.display().to_string(), &read(&catalog_file)?).map_err(listed)?;
    let policy = Policy::parse(&file.display().to_string(), &read(file)?, &catalog).map_err(listed)?;
    if let Some(row) = outcomes.rows.iter().find(|row| !policy.small.iter().any(|small| small.as_str() == row.small)) {
        anyhow::bail!(
            "{}: {} is none of its small models; leave --policy out to tune other models",
            file.display(),
            row.small
        );
    }
    match policy.objective {
        Objective::MinCost { quality_target: target, confidence } => Ok(Promise { target, confidence }),
        _ => anyhow::bail!(
            "{}: only `min-cost` has a quality target to solve for; `sluice replay --solve` solves `max-quality`",
            file.display()
        ),
    }
}

fn solution_json(solution: &Solution) -> Value {
    json!({
        "threshold": solution.threshold, "n": solution.n, "bound": solution.bound,
        "local_share": solution.local_share, "method": solution.method.name(),
        "confidence": solution.promise.confidence,
    })
}

fn hindsight_json(hindsight: &Hindsight) -> Value {
    json!({ "threshold": hindsight.threshold, "oracle": hindsight.oracle, "random": hindsight.random })
}

/// More outcomes to collect, of which only part becomes evidence.
fn needed(result: &PairResult, solution: &Solution) -> Option<u64> {
    solution.needed.map(|evidence| (evidence as f64 * result.outcomes_per_evidence).ceil() as u64)
}

fn pair_json(result: &PairResult, promise: Promise) -> Value {
    let segments: Vec<Value> = result
        .segments
        .iter()
        .map(|segment| {
            let mut value = solution_json(&segment.solution);
            value["name"] = segment.name.clone().into();
            value["needed"] = needed(result, &segment.solution).into();
            value
        })
        .collect();
    let realised = &result.realised;
    let mut value = solution_json(&result.solution);
    value["weak_model"] = result.pair.small.clone().into();
    value["strong_model"] = result.pair.large.clone().into();
    value["promised"] = json!({ "quality_share": promise.target, "confidence": promise.confidence });
    value["realised"] = json!({
        "quality_share": realised.quality_share, "se": realised.se,
        "local_share": realised.local_share, "n": realised.n,
    });
    value["hindsight"] = hindsight_json(&result.hindsight);
    value["needed"] = needed(result, &result.solution).into();
    value["scale"] = if result.recorded { "recorded" } else { "rank" }.into();
    value["segments"] = segments.into();
    value
}

/// One solution in words.
fn sentence(result: &PairResult, solution: &Solution) -> String {
    match (solution.threshold, needed(result, solution)) {
        (Some(threshold), _) => {
            let what = if result.recorded { "scores" } else { "ranks" };
            format!(
                "{what} from {threshold} stay local, {:.1} % of {} pieces of evidence",
                solution.local_share * 100.0,
                solution.n
            )
        }
        (None, Some(needed)) => format!(
            "not proven by {} pieces of evidence; all remote; about {needed} more outcomes are needed (if their rates stay \
             as they are)",
            solution.n
        ),
        (None, None) => {
            format!("not proven by {} pieces of evidence, and more like them would not help; all remote", solution.n)
        }
    }
}

fn told(result: &PairResult, promise: Promise, out: &mut dyn Write) -> std::io::Result<()> {
    let Promise { target, confidence } = promise;
    let percent = |share: f64| share * 100.0;
    writeln!(out, "{}: {:.1} % of quality at {:.1} % confidence", result.pair, percent(target), percent(confidence))?;
    writeln!(
        out,
        "  {}; bound of the loss {:.4} ({})",
        sentence(result, &result.solution),
        result.solution.bound,
        result.solution.method.name()
    )?;
    let realised = &result.realised;
    let (kept, se, local) = (percent(realised.quality_share), percent(realised.se), percent(realised.local_share));
    writeln!(out, "  on {} rows apart: {kept:.1} % ± {se:.1} of quality kept, {local:.1} % local", realised.n)?;
    let Hindsight { threshold, oracle, random } = result.hindsight;
    let (threshold, oracle, random) = (percent(threshold), percent(oracle), percent(random));
    writeln!(
        out,
        "  possible there in hindsight: {threshold:.1} % by threshold, {oracle:.1} % by choosing each, {random:.1} % by a coin"
    )?;
    for segment in &result.segments {
        let name = if segment.name.is_empty() { "(none)" } else { &segment.name };
        writeln!(out, "  {name}: {}", sentence(result, &segment.solution))?;
    }
    Ok(())
}

fn show_coverage(
    measured: &[Coverage],
    notes: &[String],
    as_json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let kept = measured.iter().all(|pair| pair.broken <= pair.allowed);
    if as_json {
        let pairs: Vec<Value> = measured.iter().map(|pair| {
            json!({
                "weak_model": pair.pair.small, "strong_model": pair.pair.large, "population": pair.population,
                "quality_ratio": pair.quality_ratio, "draws": pair.draws, "sample": pair.sample, "broken": pair.broken,
                "allowed": pair.allowed, "local_share": pair.local_share, "hindsight": hindsight_json(&pair.hindsight),
            })
        }).collect();
        writeln!(out, "{}", json!({ "pairs": pairs, "kept": kept, "notes": notes }))?;
    } else {
        let rows: Vec<Vec<String>> = measured
            .iter()
            .map(|pair| {
                let percent = |share: f64| format!("{:.1}", share * 100.0);
                let Hindsight { threshold, oracle, random } = pair.hindsight;
                vec![
                    pair.pair.to_string(),
                    pair.population.to_string(),
                    format!("{:.3}", pair.quality_ratio),
                    pair.sample.to_string(),
                    percent(pair.broken),
                    percent(pair.local_share),
                    percent(random),
                    percent(threshold),
                    percent(oracle),
                ]
            })
            .collect();
        let names = ["rows", "W/S", "sample", "broken %", "local %", "coin %", "threshold %", "oracle %"];
        let header: Vec<(&str, Align)> =
            [("pair", Align::Left)].into_iter().chain(names.map(|name| (name, Align::Right))).collect();
        table::print(out, &header, &rows)?;
        for note in notes {
            writeln!(out, "note: {note}")?;
        }
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests;
