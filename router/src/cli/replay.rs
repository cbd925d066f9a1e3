//! `sluice replay`: recorded traffic decided again by a policy; also exports a log, forgets a tenant's, and checks the
//! estimators against truth.

mod experiments;
mod solve;

use super::table::{self, Align};
use crate::domain::TenantId;
use crate::evidence::outcome::{Outcome, Outcomes};
use crate::learn::recorded;
use crate::ledger::{Archive, EntryFilter, Ledger, LedgerOptions, Story};
use crate::policy::{Policy, Registry, Snapshot};
use crate::replay::log::{Log, line_of};
use crate::replay::redecide::Target;
use crate::replay::report::{PolicyFigures, Range, ReplayOptions, Report, replay};
use crate::replay::truth::{Coverage, TruthOptions, TruthRow, check};
use crate::replay::{ReplayError, page};
use crate::score::{PairScorer, Scorers};
use anyhow::{Context as _, ensure};
use clap::Args;
use local_worker::scorer::Turn;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// The policy to decide recorded traffic by: a name, or a policy file.
    #[arg(long, required_unless_present_any = ["export", "forget", "self_check"])]
    pub policy: Option<String>,
    /// A second policy to compare it with.
    #[arg(long, requires = "policy")]
    pub against: Option<String>,
    /// The ledger's folder.
    #[arg(long, value_name = "DIR", default_value = "sluice-data", conflicts_with = "log")]
    pub data_dir: PathBuf,
    /// A log of JSON lines in place of the ledger.
    #[arg(long, value_name = "FILE.jsonl")]
    pub log: Option<PathBuf>,
    /// Only this tenant's requests.
    #[arg(long, default_value = "")]
    pub tenant: String,
    /// Outcomes whose ids are those of requests: their qualities count before feedback.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub outcomes: Vec<PathBuf>,
    /// Folder of policies; those inside the binary if absent.
    #[arg(long, value_name = "DIR")]
    pub policies_dir: Option<PathBuf>,
    /// The scorer; the one inside the binary if absent.
    #[arg(long, value_name = "FILE.scorer")]
    pub scorer: Option<PathBuf>,
    /// Confidence of the intervals.
    #[arg(long, default_value_t = 0.95)]
    pub confidence: f64,
    /// Most requests to list whose route changes.
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Write a page with the frontier and the calibration.
    #[arg(long, value_name = "OUT.html")]
    pub html: Option<PathBuf>,
    /// Solve the threshold of a `max-quality` policy (a file) from the recorded requests, write NAME.solved.toml beside it, and stop.
    #[arg(long, requires = "policy", conflicts_with_all = ["against", "export", "html"])]
    pub solve: bool,
    /// Write the recorded requests as a log, and stop.
    #[arg(long, value_name = "FILE.jsonl")]
    pub export: Option<PathBuf>,
    /// Delete what is kept of this tenant's requests beside the books, and stop; the gateway must not run.
    #[arg(long, value_name = "TENANT")]
    pub forget: Option<String>,
    /// Check the estimators on --outcomes that know both qualities: logs by one policy, estimates of others, the truth.
    #[arg(long, requires = "outcomes")]
    pub self_check: bool,
    /// Logs made for each pair and policy in --self-check.
    #[arg(long, default_value_t = TruthOptions::default().repetitions)]
    pub repetitions: usize,
}

/// Runs `replay`.
pub fn run(arguments: &ReplayArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let confidence = arguments.confidence;
    ensure!((0.5..1.0).contains(&confidence), "--confidence {confidence} is not between 0.5 and 1; 0.95 is usual");
    if let Some(tenant) = &arguments.forget {
        return forget(arguments, tenant, out);
    }
    if arguments.self_check {
        return self_check(arguments, out);
    }
    if let Some(file) = &arguments.export {
        return export(arguments, file, out);
    }
    let scorers = Arc::new(Scorers::new(scorer(arguments)?));
    let snapshot = policies(arguments, &scorers)?;
    let names: Vec<&String> = arguments.policy.iter().chain(&arguments.against).collect();
    let targets = names.into_iter().map(|name| policy(name, &snapshot, &scorers)).collect::<Result<Vec<_>, _>>()?;
    let targets: Vec<Target<'_>> =
        targets.iter().map(|policy| Target { policy, catalog: snapshot.catalog(), scorers: &scorers }).collect();
    let (source, mut log) = read(arguments)?;
    if !arguments.outcomes.is_empty() {
        let joined = log.join(&outcomes(arguments)?.rows);
        log.warnings.push(format!("{joined} requests took their quality from the outcomes"));
    }
    if arguments.solve {
        return solve::run(arguments, &targets, &log, out);
    }
    let report = replay(&source, &log, &targets, ReplayOptions { confidence, most_changes: arguments.limit })?;
    if let Some(file) = &arguments.html {
        write_file(file, page::html(&report).as_bytes())?;
    }
    match arguments.json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        false => print(&report, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write_file(file: &Path, bytes: &[u8]) -> Result<(), ReplayError> {
    std::fs::write(file, bytes).map_err(|error| ReplayError::File { file: file.display().to_string(), error })
}

fn scorer(arguments: &ReplayArguments) -> anyhow::Result<Option<PairScorer>> {
    Ok(match &arguments.scorer {
        Some(file) => Some(PairScorer::read(file)?),
        None => PairScorer::bundled()?,
    })
}

fn outcomes(arguments: &ReplayArguments) -> anyhow::Result<Outcomes> {
    let files: Vec<&Path> = arguments.outcomes.iter().map(PathBuf::as_path).collect();
    Ok(Outcomes::read(&files)?)
}

/// The policies in force; any of them may be the registry's default here.
fn policies(arguments: &ReplayArguments, scorers: &Arc<Scorers>) -> anyhow::Result<Arc<Snapshot>> {
    let folder = arguments.policies_dir.clone();
    let names = arguments.policy.iter().chain(&arguments.against).filter(|name| !name.ends_with(".toml"));
    let named = names.into_iter().next().map(String::as_str);
    match Registry::load(folder.clone(), named.unwrap_or("balanced"), Arc::clone(scorers)) {
        Ok(registry) => Ok(registry.snapshot()),
        // Policies of files need only the catalog: any policy of the folder will do as its default.
        Err(crate::policy::RegistryError::NoDefault { known, .. }) if named.is_none() && !known.is_empty() => {
            let any = known.split(", ").next().unwrap_or_default();
            Ok(Registry::load(folder, any, Arc::clone(scorers))?.snapshot())
        }
        Err(crate::policy::RegistryError::NoDefault { name, known }) => {
            Err(ReplayError::UnknownPolicy { name, known }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// A policy by its name, or of a file with its certificate beside it.
fn policy(name: &str, snapshot: &Snapshot, scorers: &Scorers) -> anyhow::Result<Arc<Policy>> {
    if !name.ends_with(".toml") {
        let known = || ReplayError::UnknownPolicy { name: name.to_owned(), known: snapshot.names().join(", ") };
        return Ok(snapshot.policy(Some(name)).ok_or_else(known)?);
    }
    let text = std::fs::read_to_string(name).with_context(|| format!("can't read {name}"))?;
    let parsed = Policy::parse(name, &text, snapshot.catalog());
    let mut policy = parsed
        .map_err(|problems| anyhow::anyhow!(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    let solved = Path::new(name).with_extension("solved.toml");
    let certificate = std::fs::read_to_string(&solved).ok();
    policy.score_beside(Path::new(name), snapshot.catalog()).map_err(|problem| anyhow::anyhow!("{problem}"))?;
    let version = policy.scorer_version(scorers, snapshot.catalog());
    policy.certify_by(&solved.display().to_string(), certificate.as_deref(), version.as_deref());
    let judge = Path::new(name).with_extension("judge.toml");
    policy.judge_by(
        std::fs::read_to_string(&judge)
            .ok()
            .map(|text| crate::judge::JudgeFile::parse(&text).map_err(|error| format!("{}: {error}", judge.display()))),
    );
    Ok(Arc::new(policy))
}

fn read(arguments: &ReplayArguments) -> anyhow::Result<(String, Log)> {
    if let Some(file) = &arguments.log {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| ReplayError::File { file: name.clone(), error })?;
        let log = Log::parse(&name, &text)?;
        return Ok((name, log));
    }
    let name = arguments.data_dir.display().to_string();
    let mut log = Log::from_stories(&name, &stories(arguments)?)?;
    let wanted = recorded::Wanted { tenant: arguments.tenant.clone(), ..recorded::Wanted::default() };
    let graded = super::client_runtime()?.block_on(async {
        let archive = Archive::open(&arguments.data_dir).await?;
        recorded::read(&archive, &wanted).await
    })?;
    let joined = log.join(&graded.outcomes.rows);
    if joined > 0 {
        log.warnings.push(format!("{joined} requests took their quality from shadow runs"));
    }
    Ok((name, log))
}

/// All entries of the ledger, oldest first.
fn stories(arguments: &ReplayArguments) -> anyhow::Result<Vec<Story>> {
    super::client_runtime()?.block_on(async {
        let archive = Archive::open(&arguments.data_dir).await?;
        let filter = EntryFilter { tenant: arguments.tenant.clone(), ..EntryFilter::default() };
        let mut stories = Vec::new();
        archive.each(filter, |story| stories.push(story)).await?;
        stories.reverse();
        Ok(stories)
    })
}

fn export(arguments: &ReplayArguments, file: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    let mut lines = 0;
    for line in stories(arguments)?.iter().filter_map(line_of) {
        text.push_str(&serde_json::to_string(&line)?);
        text.push('\n');
        lines += 1;
    }
    write_file(file, text.as_bytes())?;
    writeln!(out, "{lines} requests in {}", file.display())?;
    Ok(ExitCode::SUCCESS)
}

fn forget(arguments: &ReplayArguments, tenant: &str, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    super::client_runtime()?.block_on(async {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let opened = Ledger::open(&arguments.data_dir, LedgerOptions::default(), &tracker, stop.clone()).await;
        let (ledger, _) = opened.context("the gateway must not run while it forgets")?;
        let forgotten = ledger.forget(&TenantId::new(tenant)).await;
        stop.cancel();
        tracker.close();
        tracker.wait().await;
        writeln!(out, "forgot {} requests of {tenant}; their entries stay", forgotten?)?;
        Ok(ExitCode::SUCCESS)
    })
}

fn self_check(arguments: &ReplayArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let scorer = scorer(arguments)?.context("no scorer is bundled; name one with --scorer")?;
    let mut pairs: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for row in outcomes(arguments)?.rows {
        pairs.entry(format!("{}: {} / {}", row.source, row.small, row.large)).or_default().push(row);
    }
    let options = TruthOptions {
        repetitions: arguments.repetitions,
        confidence: arguments.confidence,
        ..TruthOptions::default()
    };
    let mut rows = Vec::new();
    for (pair, outcomes) in &pairs {
        let score = |row: &Outcome| Ok(scorer.score_turns(&[Turn::user(&row.prompt)])?.get());
        let scores = outcomes.iter().map(score).collect::<anyhow::Result<Vec<f64>>>()?;
        rows.extend(check(pair, outcomes, &scores, options));
    }
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let header = [
        ("pair", Align::Left),
        ("local", Align::Right),
        ("truth", Align::Right),
        ("untried", Align::Right),
        ("eff. rows", Align::Right),
        ("DR covers", Align::Right),
        ("width", Align::Right),
        ("bias", Align::Right),
        ("SNIPS covers", Align::Right),
        ("width", Align::Right),
        ("clipped covers", Align::Right),
    ];
    table::print(out, &header, &rows.iter().map(truth_row).collect::<Vec<_>>())?;
    for (name, of) in
        [("doubly robust", (|row| row.doubly_robust) as fn(&TruthRow) -> Coverage), ("SNIPS", |row| row.snips)]
    {
        let tried: Vec<Coverage> = rows.iter().filter(|row| row.untried < 1e-9).map(of).collect();
        let n = tried.len().max(1) as f64;
        let mean = tried.iter().map(|coverage| coverage.share).sum::<f64>() / n;
        let least = tried.iter().map(|coverage| coverage.share).fold(1.0, f64::min);
        writeln!(
            out,
            "{name}: the stated {:.0} % intervals hold the truth in {:.1} % of {} logs where all was tried; least of {} cells {:.1} %",
            arguments.confidence * 100.0,
            mean * 100.0,
            tried.len() * options.repetitions,
            tried.len(),
            least * 100.0
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn truth_row(row: &TruthRow) -> Vec<String> {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    vec![
        row.pair.clone(),
        percent(row.local_share),
        format!("{:.3}", row.truth),
        percent(row.untried),
        format!("{:.0}", row.effective),
        percent(row.doubly_robust.share),
        format!("{:.3}", row.doubly_robust.width),
        format!("{:+.4}", row.doubly_robust.bias),
        percent(row.snips.share),
        format!("{:.3}", row.snips.width),
        percent(row.clipped.share),
    ]
}

fn range(range: Option<Range>, digits: usize, unit: f64) -> String {
    let of = |value: f64| format!("{:.digits$}", value * unit);
    range.map_or_else(|| "unknown".to_owned(), |r| format!("{} [{}, {}]", of(r.value), of(r.low), of(r.high)))
}

fn print(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let confidence = report.confidence * 100.0;
    writeln!(out, "{} requests of {}; intervals at {confidence:.0} %", report.rows, report.source)?;
    let header: Vec<(&str, Align)> = [("", Align::Left), ("as logged", Align::Right)]
        .into_iter()
        .chain(report.policies.iter().map(|figures| (figures.policy.as_str(), Align::Right)))
        .collect();
    let logged = &report.logged;
    let row = |name: &str, logged: String, of: &dyn Fn(&PolicyFigures) -> String| -> Vec<String> {
        [name.to_owned(), logged].into_iter().chain(report.policies.iter().map(of)).collect()
    };
    let quality = |of: fn(&crate::replay::report::Quality) -> Range| {
        move |figures: &PolicyFigures| range(figures.quality.as_ref().map(of), 3, 1.0)
    };
    let none = String::new;
    let rows = vec![
        row("threshold", none(), &|f| f.threshold.map_or("all remote".to_owned(), |t| format!("{t:.3}"))),
        row("requests decided again", none(), &|f| f.requests.to_string()),
        row("left out", none(), &|f| f.left_out.values().sum::<usize>().to_string()),
        row("graded", none(), &|f| f.graded.to_string()),
        row("quality, doubly robust", range(logged.quality, 3, 1.0), &quality(|q| q.doubly_robust.bounds)),
        row("quality, SNIPS", none(), &quality(|q| q.snips.bounds)),
        row("quality, clipped IPS", none(), &quality(|q| q.clipped.bounds)),
        row("never tried, %", none(), &|f| format!("{:.1}", f.untried * 100.0)),
        row("effective rows", none(), &|f| format!("{:.0}", f.effective)),
        row("USD per 1,000", range(logged.usd_per_1000, 4, 1.0), &|f| range(f.usd_per_1000, 4, 1.0)),
        row("decided local, %", range(logged.local_share, 1, 100.0), &|f| range(f.local_share, 1, 100.0)),
        row("latency, mean ms", range(logged.latency_ms, 0, 1.0), &|f| range(f.latency_ms, 0, 1.0)),
        row("latency, p95 ms", none(), &|f| range(f.latency_p95_ms, 0, 1.0)),
    ];
    table::print(out, &header, &rows)?;
    if let [first, second] = report.policies.as_slice() {
        let difference = range(report.quality_difference, 3, 1.0);
        writeln!(out, "quality of {} − {}, paired: {difference}", second.policy, first.policy)?;
    }
    for comparison in &report.experiments {
        experiments::print(comparison, out)?;
    }
    for figures in &report.policies {
        for (why, count) in &figures.left_out {
            writeln!(out, "{}: {count} left out, {why}", figures.policy)?;
        }
    }
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    writeln!(out, "{} requests change route under the first policy", report.changed)?;
    let changes = report.changes.iter().map(|c| vec![c.id.clone(), c.from.clone(), c.to.clone(), c.reason.clone()]);
    let header = [("request", Align::Left), ("from", Align::Left), ("to", Align::Left), ("why", Align::Left)];
    if report.changed > 0 {
        table::print(out, &header, &changes.collect::<Vec<_>>())?;
    }
    Ok(())
}
