//! `sluice flywheel`: recorded traffic → a student → compressed → measured → tried beside the model that serves → in its place;
//! and `sluice flywheel rollback`. Called again, it goes on where it was: after a kill, or once more answers were graded.

mod make;

use crate::domain::ModelId;
use crate::flywheel::gate::{Pairing, Verdict, look};
use crate::flywheel::{FlywheelError, Place, Run, RunFolder, Settings, Source, Stage, Tried};
use crate::ledger::Archive;
use crate::policy::Policy;
use crate::policy::live::Promotion;
use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Arguments of `flywheel`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct FlywheelArguments {
    /// Another thing to do with a run.
    #[command(subcommand)]
    pub other: Option<FlywheelVerb>,
    /// A turn of the flywheel.
    #[command(flatten)]
    pub turn: Option<TurnArguments>,
}

/// What else can be done with a run.
#[derive(Debug, Subcommand)]
pub enum FlywheelVerb {
    /// Take the candidate back: out of its trial, or the old model back into its place.
    Rollback(RollbackArguments),
}

/// Arguments of `flywheel rollback`.
#[derive(Debug, Args)]
pub struct RollbackArguments {
    /// The run's folder.
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
}

/// Arguments of a turn.
#[derive(Debug, Args)]
pub struct TurnArguments {
    /// The policy whose first small model is to be improved; it needs `[shadow]` and `[flywheel]`.
    #[arg(long, value_name = "NAME")]
    pub policy: String,
    /// The folder of policies that the gateway reads; the candidate is entered there.
    #[arg(long, value_name = "DIR")]
    pub policies_dir: PathBuf,
    /// The gateway's data folder, with its ledger.
    #[arg(long, value_name = "DIR", default_value = "sluice-data")]
    pub data_dir: PathBuf,
    /// The run's folder: what each step made and came to. Called again with the same, the run goes on.
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
    /// How the student is trained, as of `sluice train model`; without `[network]` and `start.model` it goes on from the serving
    /// model. Its `format` is what it is compressed to. One inside the binary if absent.
    #[arg(long, value_name = "RECIPE.toml")]
    pub recipe: Option<PathBuf>,
    /// A corpus to learn beside the ledger's answers, so that what the model knows is not lost.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// A suite that both models are asked beside the held-out answers.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub suite: Vec<PathBuf>,
    /// Learn only this tenant's answers.
    #[arg(long, default_value = "")]
    pub tenant: String,
    /// Learn answers to several tenants together: the student may repeat to one what another one said.
    #[arg(long)]
    pub across_tenants: bool,
    /// Learn only answers whose feedback is above this, or that have none.
    #[arg(long, value_name = "VALUE", default_value_t = 0.5)]
    pub feedback_above: f64,
    /// Share of the prompts that is never trained on, to measure by.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    pub held_out: f64,
    /// Longest answer that is learnt, in bytes; prompts with longer ones are learnt as declined.
    #[arg(long, value_name = "BYTES", default_value_t = 400)]
    pub longest: usize,
    /// Threads that models are measured with.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Wait up to so many seconds for graded answers, looking at the gate again and again.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub wait: u64,
}

/// Between two looks at the gate.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs `flywheel`.
pub fn run(arguments: &FlywheelArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match (&arguments.other, &arguments.turn) {
        (Some(FlywheelVerb::Rollback(arguments)), _) => rollback(&arguments.folder, out),
        (None, Some(arguments)) => turn(arguments, out),
        (None, None) => bail!("nothing to do: name a policy, its folder and a run folder, or `rollback`"),
    }
}

fn turn(arguments: &TurnArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let share = |name: &str, value: f64| {
        ensure!((0.0..1.0).contains(&value), "{name} must be from 0 to below 1, not {value}");
        Ok(())
    };
    share("--feedback-above", arguments.feedback_above)?;
    share("--held-out", arguments.held_out)?;
    let place = Place::find(&arguments.policies_dir, &arguments.policy)?;
    let policy = place.policy()?;
    let promotion = gate_of(&policy)?;
    let recipe = make::recipe_text(arguments.recipe.as_deref())?;
    let before = RunFolder::read(&arguments.folder)?.map(|found| found.run.settings.serving.clone());
    if before.is_none() {
        // A run keeps its inputs, so what is wrong with them is found before there is one.
        super::eval::suite(&arguments.suite, None)?;
        make::format_of(&recipe)?;
    }
    let settings = settings(arguments, &policy, &recipe, before)?;
    let mut folder = RunFolder::open(&arguments.folder, settings)?;
    if let Some(other) = policy.candidate.as_ref().filter(|_| folder.run.candidate.is_none()) {
        return Err(FlywheelError::tries_another(&arguments.policy, other).into());
    }
    if folder.run.stage == Stage::Preparing {
        make::candidate(arguments, &mut folder, &place, &recipe, out)?;
    }
    if folder.run.stage == Stage::Preparing {
        try_out(&mut folder, &place, out)?;
    }
    let until = Instant::now() + Duration::from_secs(arguments.wait);
    while folder.run.stage == Stage::Shadowing {
        judge(&mut folder, &place, &promotion, out)?;
        if folder.run.stage.is_final() || Instant::now() >= until {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    tell(&folder.run, out)?;
    Ok(ExitCode::SUCCESS)
}

fn gate_of(policy: &Policy) -> Result<Promotion, FlywheelError> {
    let why = |why: &str| FlywheelError::Policy { policy: policy.reference.name.clone(), why: why.to_owned() };
    if policy.small.is_empty() {
        return Err(why("has no small model that could be improved"));
    }
    policy.promotion.ok_or_else(|| why("says nothing of what a candidate has to show: add [flywheel]"))
}

fn settings(
    arguments: &TurnArguments,
    policy: &Policy,
    recipe: &str,
    before: Option<String>,
) -> anyhow::Result<Settings> {
    let whole = |path: &Path| path.canonicalize().with_context(|| format!("there is no {}", path.display()));
    let sources = |files: &[PathBuf]| files.iter().map(|file| Source::of(file)).collect::<Result<Vec<_>, _>>();
    let serving = policy.small.first().map(ModelId::to_string).unwrap_or_default();
    Ok(Settings {
        policy: arguments.policy.clone(),
        policies_dir: whole(&arguments.policies_dir)?,
        data_dir: whole(&arguments.data_dir)?,
        serving: before.unwrap_or(serving),
        recipe: blake3::hash(recipe.as_bytes()).to_hex().to_string(),
        data: sources(&arguments.data)?,
        suite: sources(&arguments.suite)?,
        tenant: arguments.tenant.clone(),
        across_tenants: arguments.across_tenants,
        feedback_above: arguments.feedback_above,
        held_out: arguments.held_out,
        longest: arguments.longest,
    })
}

/// The candidate's name: that of the model it comes from, and the beginning of its hash.
fn name_of(serving: &str, blake3: &str) -> ModelId {
    let hash: String = blake3.chars().take(8).collect();
    let made_before = serving.rsplit_once('~').map_or(serving, |(base, _)| base);
    ModelId::new(format!("{made_before}~{hash}"))
}

fn try_out(folder: &mut RunFolder, place: &Place, out: &mut dyn Write) -> anyhow::Result<()> {
    let made = folder.run.candidate.clone().context("there is no candidate yet")?;
    let model = folder.unchanged(&made.model)?;
    let serving = ModelId::new(&*folder.run.settings.serving);
    let candidate = name_of(serving.as_str(), &made.model.blake3);
    let catalog = place.catalog()?;
    let entry = catalog.get(&serving).with_context(|| format!("{serving} is not in the catalog any more"))?;
    let entry = place.entry(entry, &candidate, &model.canonicalize()?, make::context_of(&model)?);
    place.try_out(&candidate, &entry)?;
    let since_ms = jiff::Timestamp::now().as_millisecond();
    folder.run.tried = Some(Tried { model: candidate.to_string(), entry, since_ms });
    folder.run.stage = Stage::Shadowing;
    folder.save()?;
    writeln!(out, "tried: {candidate} answers beside {serving} in shadow runs of {}", folder.run.settings.policy)?;
    Ok(())
}

/// One look at the gate, and what follows.
fn judge(folder: &mut RunFolder, place: &Place, promotion: &Promotion, out: &mut dyn Write) -> anyhow::Result<()> {
    let (serving, candidate, entry) = names(&folder.run)?;
    if place.policy()?.small.contains(&candidate) {
        // It was promoted, and then killed before that was written down.
        return promoted(folder, place, "it had passed the gate".to_owned());
    }
    let since = folder.run.tried.as_ref().map(|tried| tried.since_ms).unwrap_or_default();
    let since = jiff::Timestamp::from_millisecond(since)?;
    let settings = &folder.run.settings;
    let pairing = Pairing { policy: &settings.policy, serving: &serving, candidate: &candidate, since };
    let seen = super::client_runtime()?.block_on(async {
        let archive = Archive::open(&settings.data_dir).await?;
        look(&archive, &pairing, promotion).await
    })?;
    let (verdict, why) = (seen.verdict, seen.why.clone());
    let before = folder.run.gate.replace(seen);
    match verdict {
        Verdict::Open => {
            if before != folder.run.gate {
                folder.save()?;
            }
            Ok(())
        }
        Verdict::Fails => {
            place.withdraw(&candidate, &entry)?;
            folder.run.stage = Stage::Rejected;
            folder.run.why = why;
            Ok(folder.save()?)
        }
        Verdict::Holds => {
            let made = folder.run.candidate.as_ref().context("there is no candidate any more")?;
            folder.unchanged(&made.model)?;
            let text = place.with_small(&serving, &candidate)?;
            let text = text.with_context(|| format!("the policy names {serving} no more: roll back"))?;
            place.keep(&folder.file("kept"))?;
            folder.run.promoted_text = Some(Policy::hash(&text));
            folder.save()?;
            place.put(&text)?;
            writeln!(out, "promoted: {candidate} in the place of {serving}")?;
            promoted(folder, place, why)
        }
    }
}

fn promoted(folder: &mut RunFolder, place: &Place, why: String) -> anyhow::Result<()> {
    place.end_trial()?;
    folder.run.stage = Stage::Promoted;
    folder.run.why = why;
    Ok(folder.save()?)
}

fn names(run: &Run) -> anyhow::Result<(ModelId, ModelId, String)> {
    let tried = run.tried.as_ref().context("no candidate was tried")?;
    Ok((ModelId::new(&*run.settings.serving), ModelId::new(&*tried.model), tried.entry.clone()))
}

fn rollback(path: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let found = RunFolder::read(path)?;
    let mut folder = found.ok_or_else(|| FlywheelError::NoRun { path: path.to_owned() })?;
    if folder.run.stage == Stage::RolledBack || folder.run.tried.is_none() {
        writeln!(out, "there is nothing to take back: the run is {}", word(folder.run.stage))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (serving, candidate, entry) = names(&folder.run)?;
    let place = Place::find(&folder.run.settings.policies_dir, &folder.run.settings.policy)?;
    let now = place.policy()?;
    if now.small.contains(&candidate) {
        let promoted = folder.run.promoted_text.as_deref();
        let same = promoted == Some(&now.reference.hash);
        let kept = folder.file("kept");
        let whole = same && place.is_kept(&kept, (&serving, &candidate), promoted);
        if whole {
            place.restore(&kept)?;
        } else {
            // Only the model goes back, and certificates end with the text that they were solved for.
            let text = place.with_small(&candidate, &serving)?;
            place.put(&text.with_context(|| format!("the policy names {candidate} no more"))?)?;
        }
        writeln!(out, "{serving} serves again in the place of {candidate}")?;
        if !same {
            writeln!(out, "the policy was edited since: solve its certificate again")?;
        } else if !whole {
            writeln!(out, "{} is not what was kept there: solve the policy's certificate again", kept.display())?;
        }
    }
    place.withdraw(&candidate, &entry)?;
    folder.run.stage = Stage::RolledBack;
    folder.run.why = "taken back by hand".to_owned();
    folder.save()?;
    writeln!(out, "rolled back; {} keeps what the run made", path.display())?;
    Ok(ExitCode::SUCCESS)
}

fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Preparing => "being prepared",
        Stage::Shadowing => "shadowing",
        Stage::Promoted => "promoted",
        Stage::Rejected => "rejected",
        Stage::RolledBack => "rolled back",
    }
}

fn tell(run: &Run, out: &mut dyn Write) -> anyhow::Result<()> {
    if let Some(look) = &run.gate {
        let ms = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.0} ms"));
        writeln!(
            out,
            "gate: {} graded; quality {:.3} serving, {:.3} candidate; difference {:+.3} to {:+.3}; median time {}, {}: {}",
            look.graded,
            look.quality.0,
            look.quality.1,
            look.difference.0,
            look.difference.1,
            ms(look.median_ms.0),
            ms(look.median_ms.1),
            look.why
        )?;
    }
    writeln!(out, "{}{}{}", word(run.stage), if run.why.is_empty() { "" } else { ": " }, run.why)?;
    match run.stage {
        Stage::Shadowing => writeln!(out, "call it again when more answers were graded, or with --wait SECONDS")?,
        Stage::Promoted => writeln!(
            out,
            "certificates of the old model don't hold for this one: until one is solved or learnt, a policy with a quality \
             target sends everything to the large model"
        )?,
        _ => {}
    }
    Ok(())
}
