//! `sluice distill`: a student learns what a teacher says: how likely it finds each token, the answers it wrote, or those that
//! the ledger recorded; `sluice distill scorer` does it for the classifier.

pub mod scorer;

use crate::cli::eval::source;
use crate::cli::train::model::{Teller, tell_plan};
use crate::learn::transcripts::{Transcripts, Wanted};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use local_worker::ModelSource;
use local_worker::train::folder::{Files, Lesson, Prepared};
use local_worker::train::pass::Aim;
use local_worker::train::recipe::Recipe;
use local_worker::train::teacher::Teacher;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `distill`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct DistillArguments {
    /// Another student than a small language model.
    #[command(subcommand)]
    pub other: Option<DistillVerb>,
    /// A small language model and how it is taught.
    #[command(flatten)]
    pub student: Option<StudentArguments>,
}

/// Other students.
#[derive(Debug, Subcommand)]
pub enum DistillVerb {
    /// The classifier that decides in microseconds: taught by the blend, on graded prompts and others.
    Scorer(scorer::TaughtArguments),
}

/// Runs `distill`.
pub fn run(arguments: &DistillArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match (&arguments.other, &arguments.student) {
        (Some(DistillVerb::Scorer(arguments)), _) => scorer::run(arguments, out),
        (None, Some(arguments)) => student(arguments, out),
        (None, None) => anyhow::bail!("nothing to distil: name a recipe, or `scorer`"),
    }
}

/// Arguments of `distill` for a small language model.
#[derive(Clone, Debug, Args)]
#[command(group(clap::ArgGroup::new("lesson").required(true).multiple(true).args(["teacher", "answers", "from_ledger"])))]
pub struct StudentArguments {
    /// The student and how it is trained: a recipe of `sluice train model`; `start.model` may be a pruned copy of the teacher.
    #[arg(value_name = "RECIPE.toml")]
    pub recipe: PathBuf,
    /// A model whose shares of tokens are learnt: a GGUF file, a folder, or a model of the catalog; of the student's vocabulary.
    #[arg(long, value_name = "MODEL")]
    pub teacher: Option<String>,
    /// The catalog to look a name up in; the one inside the binary if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Answers that a teacher wrote, learnt in the place of right ones: JSON lines with `id` and `given`, as
    /// `sluice eval model --answers` writes them.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub answers: Vec<PathBuf>,
    /// Answers of large models that the ledger in this folder recorded, of tenants whose `record` is `text`, masked: they are
    /// written to `transcripts.jsonl` in the run's folder and learnt beside `--data`. Their licence is `tenant`.
    #[arg(long, value_name = "DATA_DIR", conflicts_with = "answers")]
    pub from_ledger: Option<PathBuf>,
    /// Only this tenant's.
    #[arg(long, default_value = "", requires = "from_ledger")]
    pub tenant: String,
    /// Take answers to several tenants together: the student may repeat to one what another one said.
    #[arg(long, requires = "from_ledger")]
    pub across_tenants: bool,
    /// Only answers whose feedback is above this, from 0 to 1, or that have none.
    #[arg(long, value_name = "VALUE", requires = "from_ledger")]
    pub feedback_above: Option<f64>,
    /// The corpus, as of `sluice train model`.
    #[arg(long, num_args = 1.., value_name = "FILE", required_unless_present = "from_ledger")]
    pub data: Vec<PathBuf>,
    /// Records to look at on the way; those that the recipe holds out of the corpus if absent.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub dev: Vec<PathBuf>,
    /// The run's folder, as of `sluice train model`.
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
    /// What logits of both are divided by before shares are compared.
    #[arg(long, default_value_t = 2.0, value_name = "T")]
    pub temperature: f32,
    /// How much the teacher's shares count, from 0 to 1; right answers count the rest.
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    pub soft: f32,
    /// The teacher's likeliest tokens that are kept of each target.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = top)]
    pub top: usize,
    /// Ask the teacher about every record once and keep what it said, instead of each time a record is seen.
    #[arg(long, requires = "teacher")]
    pub ahead: bool,
}

fn top(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|top| *top > 0).ok_or_else(|| "must be a number above 0".to_owned())
}

fn student(arguments: &StudentArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let recipe = Recipe::read(&arguments.recipe)?;
    let positive = arguments.temperature.is_finite() && arguments.temperature > 0.0;
    anyhow::ensure!(positive, "--temperature must be above 0, not {}", arguments.temperature);
    anyhow::ensure!((0.0..=1.0).contains(&arguments.soft), "--soft must be from 0 to 1, not {}", arguments.soft);
    let threads = recipe.training.threads;
    let (mut teacher, mut noted) = (None, json!(arguments.teacher));
    if let Some(name) = &arguments.teacher {
        let found = source::find(name, arguments.catalog.as_deref())?;
        teacher = Some(Teacher::load(&found, (arguments.temperature, arguments.top), threads)?);
        // A file is what it holds, wherever it lies.
        if let ModelSource::Path(path) = &found
            && path.is_file()
        {
            noted = json!(crate::flywheel::hash(path)?);
        }
    }
    let mut train = arguments.data.clone();
    train.extend(transcripts(arguments, out)?);
    let files = Files { train, dev: arguments.dev.clone(), answers: arguments.answers.clone() };
    let notes = json!({
        "teacher": noted, "temperature": arguments.temperature, "soft": arguments.soft, "top": arguments.top,
        "ledger": arguments.from_ledger.as_ref().map(|_| json!({
            "tenant": arguments.tenant, "across_tenants": arguments.across_tenants,
            "feedback_above": arguments.feedback_above,
        })),
    });
    let mut prepared = Prepared::new(recipe, &files, &arguments.folder, notes)?;
    tell_plan(&prepared.plan(), out)?;
    let mut lesson = Lesson::default();
    if let Some(teacher) = &teacher {
        teacher.check(prepared.metadata())?;
        lesson.aim = Aim { hard: 1.0 - arguments.soft, soft: arguments.soft, temperature: arguments.temperature };
        if arguments.ahead {
            prepared.ask_ahead(teacher);
        } else {
            lesson.teacher = Some(teacher);
        }
    }
    let mut teller = Teller::new(out);
    let model = prepared.run(&lesson, &mut |event| teller.tell(event))?;
    teller.finish()?;
    writeln!(out, "{}", model.display())?;
    Ok(ExitCode::SUCCESS)
}

/// What the ledger gives to learn from, as a file of the run's folder: a run that goes on learns what it began with, one that
/// never began takes it anew.
fn transcripts(arguments: &StudentArguments, out: &mut dyn Write) -> anyhow::Result<Option<PathBuf>> {
    let Some(ledger) = &arguments.from_ledger else { return Ok(None) };
    let above = arguments.feedback_above;
    anyhow::ensure!(
        above.is_none_or(|above| (0.0..=1.0).contains(&above)),
        "--feedback-above must be from 0 to 1, not {}",
        above.unwrap_or_default()
    );
    let file = arguments.folder.join("transcripts.jsonl");
    anyhow::ensure!(ledger.is_dir(), "--from-ledger: there is no folder {}", ledger.display());
    if file.exists() && arguments.folder.join("run.json").exists() {
        writeln!(out, "goes on with the answers that were taken before: {}", file.display())?;
        return Ok(Some(file));
    }
    let wanted =
        Wanted { tenant: arguments.tenant.clone(), across_tenants: arguments.across_tenants, feedback_above: above };
    let taken = super::client_runtime()?.block_on(Transcripts::read(ledger, &wanted))?;
    writeln!(out, "{}", taken.told())?;
    std::fs::create_dir_all(&arguments.folder)
        .with_context(|| format!("cannot make the folder {}", arguments.folder.display()))?;
    Transcripts::write(taken.rows.iter(), &file)?;
    Ok(Some(file))
}
