//! `sluice train scorer`: fits a scorer from recorded outcomes, writes its card, and solves the thresholds of policies.

mod judge;
#[cfg(feature = "lab")]
pub mod model;

use crate::catalog::Catalog;
use crate::evidence::bound::Promise;
use crate::evidence::certificate::{ANY_LARGE, Certificate};
use crate::evidence::drift::{Look, Reference};
use crate::evidence::outcome::{Outcome, Outcomes};
use crate::learn::recorded::{Having, Wanted};
use crate::policy::{Objective, Policy};
use crate::score::report::measure_latency;
use crate::score::solve::{SolveFor, certify};
use crate::score::train::{TrainOptions, TrainedScorer, Way};
use crate::score::{Pair, PairScorer};
use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use local_worker::scorer::{FitOptions, Turn};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What can be trained.
#[derive(Debug, Subcommand)]
pub enum TrainVerb {
    /// The classifier that predicts whether a small model's answer will do.
    Scorer(ScorerArguments),
    /// The judge that looks at a finished draft before anything of it is shown.
    Judge(judge::JudgeArguments),
    /// A small model, from a recipe and a corpus of prompts and answers.
    #[cfg(feature = "lab")]
    Model(model::ModelArguments),
    /// A small model; this binary was built without: `cargo build --release -p router --features lab`.
    #[cfg(not(feature = "lab"))]
    Model(NoLab),
}

/// Any arguments of a verb that this binary was built without.
#[cfg(not(feature = "lab"))]
#[derive(Clone, Debug, Args)]
pub struct NoLab {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
}

/// What such a verb answers.
#[cfg(not(feature = "lab"))]
pub fn no_lab() -> anyhow::Result<ExitCode> {
    anyhow::bail!("this binary was built without the model lab: cargo build --release -p router --features lab")
}

/// Arguments of `train scorer`.
#[derive(Debug, Args)]
pub struct ScorerArguments {
    /// Files of recorded outcomes, JSON lines, gzipped or not.
    #[arg(long, required_unless_present = "from_ledger", num_args = 1.., value_name = "FILE")]
    pub outcomes: Vec<PathBuf>,
    /// Outcomes of shadow runs whose prompts were recorded, out of the ledger in this folder, beside those of files.
    #[arg(long, value_name = "DIR")]
    pub from_ledger: Option<PathBuf>,
    /// Only this tenant's outcomes of the ledger.
    #[arg(long, default_value = "", requires = "from_ledger")]
    pub tenant: String,
    /// Learn from that tenant's feedback too. It may move the ranking, never a certificate.
    #[arg(long, requires = "tenant", conflicts_with = "solve")]
    pub feedback: bool,
    /// The small model.
    #[arg(long, default_value = "sluice-nano")]
    pub small: String,
    /// The large model; `*` takes all outcomes of the small one.
    #[arg(long, default_value = "*")]
    pub large: String,
    /// Where the scorer goes; its card goes beside it, with `.md` added.
    #[arg(long, value_name = "FILE.scorer")]
    pub out: PathBuf,
    /// Policies whose thresholds are solved; `NAME.solved.toml` goes beside each.
    #[arg(long, num_args = 1.., value_name = "POLICY.toml")]
    pub solve: Vec<PathBuf>,
    /// The catalog the policies name models of; `models.toml` beside the first policy if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// A file whose text is added to the card: where the outcomes come from, say.
    #[arg(long, value_name = "FILE.md")]
    pub about: Option<PathBuf>,
    /// What scores: n-grams of an excerpt, in microseconds, or an encoder that reads all tokens, in milliseconds.
    #[arg(long, value_enum, default_value_t = Kind::Static)]
    pub kind: Kind,
    /// With an encoder: tokens of a prompt, estimated at four bytes each, from which on it scores; n-grams score below.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub from_tokens: usize,
    /// Decides the order in which outcomes are learnt.
    #[arg(long, default_value_t = FitOptions::default().seed)]
    pub seed: u64,
}

/// Kinds of scorers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Words, characters, shapes and what is remembered.
    Static,
    /// An encoder with attention by positive orthogonal random features: time grows with the length.
    Performer,
    /// The same encoder with softmax attention: time grows with the square of the length.
    Softmax,
}

/// Runs `train`.
pub fn run(verb: &TrainVerb, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match verb {
        TrainVerb::Scorer(arguments) => scorer(arguments, out),
        TrainVerb::Judge(arguments) => judge::run(arguments, out),
        #[cfg(feature = "lab")]
        TrainVerb::Model(arguments) => model::run(arguments, out),
        #[cfg(not(feature = "lab"))]
        TrainVerb::Model(_) => no_lab(),
    }
}

fn scorer(arguments: &ScorerArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    scorer_by(arguments, Way::candidates(arguments.seed), Vec::new(), out)
}

/// The best of these ways to fit a scorer, which may learn from prompts without grades too.
pub fn scorer_by(
    arguments: &ScorerArguments,
    ways: Vec<Way>,
    unlabelled: Vec<String>,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    // Everything that can be wrong with the input is found before hours of work or any file are spent on it.
    anyhow::ensure!(
        arguments.kind != Kind::Static || arguments.from_tokens == 0,
        "--from-tokens says where an encoder begins, and --kind static has none: add --kind performer"
    );
    #[cfg(not(feature = "lab"))]
    if arguments.kind != Kind::Static {
        return no_lab();
    }
    let promises = promises(arguments)?;
    let about = arguments.about.as_deref().map(read).transpose()?;
    let wanted = Wanted { tenant: arguments.tenant.clone(), having: Having::Text, feedback: arguments.feedback };
    let (outcomes, notes) = super::outcomes_of(&arguments.outcomes, arguments.from_ledger.as_deref(), &wanted)?;
    for note in notes {
        writeln!(out, "{note}")?;
    }
    let options = TrainOptions {
        pair: Pair::new(&arguments.small, &arguments.large),
        ways,
        outcomes_hash: outcomes.hash.clone(),
        unlabelled,
    };
    let trained = fit(arguments, &outcomes, &options, out)?;
    let latencies = measure_latency(&trained.scorer, outcomes.rows.iter().map(|row| row.prompt.as_str()))?;
    trained.scorer.write(&arguments.out)?;
    let mut card = trained.report.markdown(&latencies);
    if let Some(about) = about {
        card.push_str(&format!("\n{}\n", about.trim()));
    }
    let card_file = arguments.out.with_added_extension("md");
    std::fs::write(&card_file, &card).with_context(|| format!("cannot write {}", card_file.display()))?;
    writeln!(out, "{card}")?;
    writeln!(out, "scorer {} in {}", trained.scorer.version(), arguments.out.display())?;
    let reference = reference(&trained, &outcomes)?;
    for promise in promises {
        solve(&promise, &trained, (&outcomes.hash, reference.clone()), out)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "lab")]
fn fit(
    arguments: &ScorerArguments,
    outcomes: &Outcomes,
    options: &TrainOptions,
    out: &mut dyn Write,
) -> anyhow::Result<TrainedScorer> {
    use crate::score::performer::fit_long;
    use crate::score::train::train_with;
    use local_worker::scorer::performer::{Attention, Shape, train};
    let attention = match arguments.kind {
        Kind::Static => return Ok(crate::score::train::train(&outcomes.rows, options)?),
        Kind::Performer => Attention::Favor { features: Shape::FEATURES },
        Kind::Softmax => Attention::Softmax,
    };
    let encoder = train::TrainOptions::usual(attention, arguments.seed);
    let mut told = Vec::new();
    let mut fit = |rows: &[&Outcome], pair: &Pair| {
        fit_long(rows, pair, arguments.from_tokens, &encoder, |progress| told.push(progress))
    };
    let trained = train_with(&outcomes.rows, options, Some(&mut fit))?;
    for train::Progress { epoch, epochs, loss } in told {
        writeln!(out, "encoder, pass {epoch} of {epochs}: loss {loss:.4}")?;
    }
    Ok(trained)
}

#[cfg(not(feature = "lab"))]
fn fit(
    _: &ScorerArguments,
    outcomes: &Outcomes,
    options: &TrainOptions,
    _: &mut dyn Write,
) -> anyhow::Result<TrainedScorer> {
    Ok(crate::score::train::train(&outcomes.rows, options)?)
}

/// A policy whose threshold is to be solved.
struct ToSolve {
    file: PathBuf,
    name: String,
    hash: String,
    promise: Promise,
}

fn promises(arguments: &ScorerArguments) -> anyhow::Result<Vec<ToSolve>> {
    let Some(first) = arguments.solve.first() else {
        return Ok(Vec::new());
    };
    let catalog_file = arguments.catalog.clone().unwrap_or_else(|| first.with_file_name("models.toml"));
    let catalog = Catalog::parse(&catalog_file.display().to_string(), &read(&catalog_file)?).map_err(listed)?;
    let wanted = arguments.solve.iter().map(|file| {
        let text = read(file)?;
        let policy = Policy::parse(&file.display().to_string(), &text, &catalog).map_err(listed)?;
        let Objective::MinCost { quality_target: target, confidence } = policy.objective else {
            anyhow::bail!(
                "{}: only `min-cost` has a quality target to solve for; `sluice replay --solve` solves `max-quality`",
                file.display()
            );
        };
        let name = policy.reference.name.clone();
        if !policy.small.iter().any(|small| small.as_str() == arguments.small) {
            anyhow::bail!("{}: {} is none of its small models", file.display(), arguments.small);
        }
        if let Some(own) = &policy.scorer_file {
            let named = file.with_file_name(own);
            anyhow::ensure!(
                std::path::absolute(&named)? == std::path::absolute(&arguments.out)?,
                "{}: it is scored by {own}, so a certificate for another scorer would not hold: --out {}",
                file.display(),
                named.display()
            );
        }
        let promise = Promise { target, confidence };
        Ok(ToSolve { file: file.clone(), name, hash: policy.reference.hash, promise })
    });
    wanted.collect()
}

/// How the pair's prompts look to its scorer: what live checks hold later traffic against.
fn reference(trained: &TrainedScorer, outcomes: &Outcomes) -> anyhow::Result<Option<Reference>> {
    let pair = trained.scorer.pair();
    let of_pair = |row: &&Outcome| row.small == pair.small && (pair.large == ANY_LARGE || row.large == pair.large);
    let look = |row: &Outcome| {
        let score = trained.scorer.score_turns(&[Turn::user(&row.prompt)])?;
        Ok(Look::of(Some(score.get()), [row.prompt.as_str()]))
    };
    let looks = outcomes.rows.iter().filter(of_pair).map(look).collect::<anyhow::Result<Vec<Look>>>()?;
    Ok(Reference::of(&looks))
}

fn solve(
    wanted: &ToSolve,
    trained: &TrainedScorer,
    (evidence_hash, reference): (&str, Option<Reference>),
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let solve_for = SolveFor {
        policy: wanted.name.clone(),
        policy_hash: wanted.hash.clone(),
        promise: wanted.promise,
        evidence_hash: evidence_hash.to_owned(),
        date: today()?,
    };
    let scorer: &PairScorer = &trained.scorer;
    let certificate = Certificate { reference, ..certify(scorer, &trained.evidence, &solve_for)? };
    let file = wanted.file.with_extension("solved.toml");
    std::fs::write(&file, certificate.to_toml()?).with_context(|| format!("cannot write {}", file.display()))?;
    writeln!(out, "{}", told(&certificate))?;
    Ok(())
}

/// The day by UTC.
fn today() -> anyhow::Result<jiff::civil::Date> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let now = jiff::Timestamp::from_second(since.as_secs().try_into()?)?;
    Ok(jiff::tz::Offset::UTC.to_datetime(now).date())
}

/// A certificate in one line.
fn told(certificate: &Certificate) -> String {
    let Certificate { policy, target, confidence, n, local_share, .. } = certificate;
    let promise = format!("{policy}: {:.0} % of quality at {:.0} % confidence", target * 100.0, confidence * 100.0);
    match (certificate.threshold, certificate.needed) {
        (Some(threshold), _) => {
            format!("{promise}: scores from {threshold} stay local, {:.1} % of {n} outcomes", local_share * 100.0)
        }
        (None, Some(needed)) => {
            format!("{promise}: not proven by {n} outcomes, about {needed} more are needed; all remote")
        }
        (None, None) => format!("{promise}: not proven by {n} outcomes, and more like them would not help; all remote"),
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn listed(problems: Vec<crate::toml_file::Problem>) -> anyhow::Error {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outcomes of two kinds of asks, one always right and one never.
    fn outcomes() -> String {
        let row = |id: usize| {
            let good = id.is_multiple_of(2);
            let ask = if good { "Is this spam?" } else { "Write an essay on" };
            format!(
                "{{\"id\":\"{id}\",\"source\":\"made\",\"prompt\":\"{ask} number {} please\",\"weak_model\":\"sluice-nano\",\"weak_quality\":{},\"cluster\":\"{id}\"}}\n",
                id % 37,
                u8::from(good)
            )
        };
        (0..600).map(row).collect()
    }

    #[test]
    fn writes_scorer_card_and_certificates_that_match() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("outcomes.jsonl"), outcomes()).unwrap();
        std::fs::write(file("models.toml"), include_str!("../../../policies/models.toml")).unwrap();
        let policy = include_str!("../../../policies/balanced.toml");
        std::fs::write(file("balanced.toml"), policy).unwrap();
        let arguments = |outcomes: &str| ScorerArguments {
            outcomes: vec![file(outcomes)],
            from_ledger: None,
            tenant: String::new(),
            feedback: false,
            small: "sluice-nano".to_owned(),
            large: "*".to_owned(),
            out: file("nano.scorer"),
            solve: vec![file("balanced.toml")],
            catalog: None,
            about: None,
            kind: Kind::Static,
            from_tokens: 0,
            seed: 1,
        };
        let error = scorer(&arguments("none.jsonl"), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("none.jsonl") && !file("nano.scorer").exists());

        let mut said = Vec::new();
        scorer(&arguments("outcomes.jsonl"), &mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("balanced: 95 % of quality at 95 % confidence: scores from"), "{said}");
        let scorer = PairScorer::read(&file("nano.scorer")).unwrap();
        assert!(std::fs::read_to_string(file("nano.scorer.md")).unwrap().contains(scorer.version()));
        let solved = std::fs::read_to_string(file("balanced.solved.toml")).unwrap();
        let certificate = Certificate::parse(&solved).unwrap();
        assert_eq!(certificate.check(&Policy::hash(policy), scorer.version()), Ok(()));
        assert!((0.4..0.6).contains(&certificate.local_share), "{certificate:?}");
        assert_eq!(certificate.reference.unwrap().n, 600, "live checks know what it was solved on");
    }

    #[test]
    fn shipped_certificates_speak_for_the_shipped_policies_and_scorer() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        let scorer = PairScorer::bundled().unwrap().unwrap();
        let mut found = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let file = entry.unwrap().path();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let Some(name) = name.strip_suffix(".solved.toml") else { continue };
            let certificate = Certificate::parse(&read(&file).unwrap()).unwrap();
            let policy = read(&folder.join(format!("{name}.toml"))).unwrap();
            assert_eq!(certificate.check(&Policy::hash(&policy), scorer.version()), Ok(()), "{name}");
            found += 1;
        }
        assert_eq!(found, 3);
    }
}
