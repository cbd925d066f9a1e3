//! The first half of a turn: out of the ledger to a compressed, measured candidate. Each step is written down once it is done.

use super::TurnArguments;
use crate::cli::eval::{config, source, suite};
use crate::cli::train::model::{Teller, tell_plan};
use crate::domain::ModelId;
use crate::flywheel::{Corpus, Made, Place, RunFolder, Source, Stage};
use crate::lab::card::{Card, Exam};
use crate::learn::transcripts::{TASK, Transcript, Transcripts, Wanted};
use anyhow::{Context as _, ensure};
use local_worker::ModelSource;
use local_worker::compress::{Target, Weights};
use local_worker::evaluate::AskOptions;
use local_worker::evaluate::suite::hash_share;
use local_worker::train::folder::{Files, Lesson, Prepared};
use local_worker::train::recipe::Recipe;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The recipe where none is given.
const RECIPE: &str = include_str!("../../../../local-worker/models/flywheel.recipe.toml");

/// Most held-out answers that both models are asked.
const MOST_ASKED: u64 = 500;

/// The text of the recipe.
pub fn recipe_text(file: Option<&Path>) -> anyhow::Result<String> {
    match file {
        Some(file) => crate::cli::eval::read(file),
        None => Ok(RECIPE.to_owned()),
    }
}

/// Tokens that a model file's context has.
pub fn context_of(model: &Path) -> anyhow::Result<u32> {
    let weights = Weights::read(&ModelSource::Path(model.to_owned()))?;
    Ok(u32::try_from(weights.shape().context).unwrap_or(u32::MAX))
}

/// Makes what is missing of the candidate; the run is rejected where it is plainly worse.
pub fn candidate(
    arguments: &TurnArguments,
    folder: &mut RunFolder,
    place: &Place,
    recipe: &str,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let serving = serving(folder, place)?;
    if folder.run.corpus.is_none() {
        take(folder, &serving, out)?;
    }
    if folder.run.student.is_none() {
        train(arguments, folder, &serving, recipe, out)?;
    }
    if folder.run.candidate.is_none() {
        compress(folder, recipe, out)?;
    }
    if folder.run.card.is_none() {
        measure(arguments, folder, &serving, out)?;
    }
    Ok(())
}

/// The serving model as the folder's catalog has it.
fn serving(folder: &RunFolder, place: &Place) -> anyhow::Result<ModelSource> {
    let name = &folder.run.settings.serving;
    let catalog = place.catalog()?;
    let found = catalog.get(&ModelId::new(&**name)).with_context(|| format!("{name} is not in the catalog"))?;
    match &found.place {
        crate::catalog::Place::Bundled => Ok(ModelSource::Bundled),
        crate::catalog::Place::File(path) => Ok(ModelSource::Path(path.clone())),
        // What a hub calls it is looked up where `serve` keeps it.
        _ => source::find(name, Some(&folder.run.settings.policies_dir.join("models.toml"))),
    }
}

/// Recorded answers of large models, masked, as a part to learn and one to measure by.
fn take(folder: &mut RunFolder, serving: &ModelSource, out: &mut dyn Write) -> anyhow::Result<()> {
    let settings = folder.run.settings.clone();
    let wanted = Wanted {
        tenant: settings.tenant.clone(),
        across_tenants: settings.across_tenants,
        feedback_above: Some(settings.feedback_above),
    };
    let mut taken = crate::cli::client_runtime()?.block_on(Transcripts::read(&settings.data_dir, &wanted))?;
    let weights = Weights::read(serving)?;
    let decline = weights.decline();
    let mut declined = 0;
    taken.rows.retain_mut(|row| {
        if row.answer.len() <= settings.longest {
            return true;
        }
        match decline {
            Some(text) => text.clone_into(&mut row.answer),
            None => *taken.left_out.entry("longer than is learnt").or_default() += 1,
        }
        declined += usize::from(decline.is_some());
        decline.is_some()
    });
    let (test, train): (Vec<&Transcript>, Vec<&Transcript>) =
        taken.rows.iter().partition(|row| hash_share(&row.prompt) < settings.held_out);
    writeln!(out, "data: {}", taken.told())?;
    writeln!(out, "{} to learn ({declined} of all as declined), {} held out", train.len(), test.len())?;
    ensure!(!train.is_empty(), "no answer is left to learn; record more, or hold out less (--held-out)");
    ensure!(
        !test.is_empty() || !settings.suite.is_empty(),
        "no answer is held out of {} to measure by; record more, or give a --suite",
        train.len()
    );
    let rows = (train.len(), test.len());
    let files = [folder.file("train.jsonl"), folder.file("test.jsonl")];
    for (file, rows) in files.iter().zip([train, test]) {
        Transcripts::write(rows.into_iter(), file)?;
    }
    let [train, test] = files.map(|file| Source::of(&file));
    folder.run.corpus = Some(Corpus::of(&taken, (train?, test?), rows, declined));
    Ok(folder.save()?)
}

/// The student's recipe: what was given, made to start from the serving model and to end in single precision.
fn student_recipe(
    folder: &RunFolder,
    serving: &ModelSource,
    given: &str,
    beside: Option<&Path>,
) -> anyhow::Result<Recipe> {
    let mut table: toml::Table = given.parse().context("the recipe")?;
    table.insert("format".to_owned(), "f32".into());
    let has_network = table.contains_key("network");
    let start = table.entry("start").or_insert_with(|| toml::Table::new().into());
    let start = start.as_table_mut().context("the recipe's start is no table")?;
    for (_, path) in start.iter_mut() {
        if let Some(relative) = path.as_str() {
            let near = beside.and_then(Path::parent).unwrap_or(Path::new("")).join(relative);
            let whole = near.canonicalize().with_context(|| format!("the recipe: there is no {}", near.display()))?;
            *path = whole.display().to_string().into();
        }
    }
    if !has_network && !start.contains_key("model") {
        let model = match serving {
            ModelSource::Path(path) => path.clone(),
            ModelSource::Bundled => {
                let file = folder.file("serving.gguf");
                let bytes = local_worker::model::SLUICE_NANO.context("this build has no bundled model")?;
                crate::files::replace(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
                file
            }
        };
        start.insert("model".to_owned(), model.canonicalize()?.display().to_string().into());
    }
    let file = folder.file("recipe.toml");
    crate::files::replace(&file, toml::to_string(&table)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Recipe::read(&file)?)
}

fn train(
    arguments: &TurnArguments,
    folder: &mut RunFolder,
    serving: &ModelSource,
    recipe: &str,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let corpus = folder.run.corpus.clone().context("there is no data set yet")?;
    let mut data = vec![folder.unchanged(&corpus.train)?];
    data.extend(arguments.data.iter().cloned());
    let recipe = student_recipe(folder, serving, recipe, arguments.recipe.as_deref())?;
    // Held-out answers are looked at on the way; where there are none, those that the recipe holds out.
    let dev =
        if corpus.rows.1 > 0 && recipe.data.learns(TASK) { vec![folder.unchanged(&corpus.test)?] } else { Vec::new() };
    let files = Files { train: data, dev, ..Files::default() };
    let prepared = Prepared::new(recipe, &files, &folder.file("student"), serde_json::Value::Null)?;
    tell_plan(&prepared.plan(), out)?;
    let mut teller = Teller::new(out);
    let model = prepared.run(&Lesson::default(), &mut |event| teller.tell(event))?;
    teller.finish()?;
    folder.run.student = Some(made(&model, began)?);
    writeln!(out, "student: {}", model.display())?;
    Ok(folder.save()?)
}

fn made(model: &Path, began: Instant) -> anyhow::Result<Made> {
    let bytes = std::fs::metadata(model).with_context(|| format!("cannot read {}", model.display()))?.len();
    Ok(Made { model: Source::of(model)?, bytes, seconds: began.elapsed().as_secs() })
}

fn compress(folder: &mut RunFolder, recipe: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    let began = Instant::now();
    let student = folder.run.student.clone().context("there is no student yet")?;
    let student = folder.unchanged(&student.model)?;
    let target = format_of(recipe)?;
    let file = folder.file("candidate.gguf");
    Weights::read(&ModelSource::Path(student))?.convert(target)?.write(&file)?;
    let candidate = made(&file, began)?;
    writeln!(out, "compressed to {target}: {} bytes", candidate.bytes)?;
    folder.run.candidate = Some(candidate);
    Ok(folder.save()?)
}

/// What the recipe says the student is compressed to.
pub fn format_of(recipe: &str) -> anyhow::Result<Target> {
    let table: toml::Table = recipe.parse().context("the recipe")?;
    let format = table.get("format").and_then(toml::Value::as_str).unwrap_or("q8_0").to_owned();
    let target: Target = format.parse().map_err(|problem: String| anyhow::anyhow!("the recipe's format: {problem}"))?;
    ensure!(!target.wants_calibration(), "the recipe's format {format} needs a text to calibrate on; name another");
    Ok(target)
}

/// Both models on held-out answers and the suite.
fn measure(
    arguments: &TurnArguments,
    folder: &mut RunFolder,
    serving: &ModelSource,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let corpus = folder.run.corpus.clone().context("there is no data set yet")?;
    let made = folder.run.candidate.clone().context("there is no candidate yet")?;
    let after = ModelSource::Path(folder.unchanged(&made.model)?);
    let mut files: Vec<PathBuf> = arguments.suite.clone();
    if corpus.rows.1 > 0 {
        files.push(folder.unchanged(&corpus.test)?);
    }
    let records = suite(&files, Some(MOST_ASKED))?.unwrap_or_default();
    let exam = Exam { records, ask: AskOptions { max_tokens: 192, ..AskOptions::default() }, ..Exam::default() };
    let card = Card::measure(serving, &after, &config(arguments.threads), &exam)?;
    let of = |side: &crate::lab::card::Side| side.report.as_ref().and_then(|report| report.macro_average);
    let percent = |value: f64| value * 100.0;
    if let Some((before, after)) = of(&card.before).zip(of(&card.after)) {
        writeln!(
            out,
            "measured: macro average {:.1} % serving ({:.1}–{:.1}), {:.1} % candidate ({:.1}–{:.1})",
            percent(before.value),
            percent(before.low),
            percent(before.high),
            percent(after.value),
            percent(after.low),
            percent(after.high)
        )?;
        if after.high < before.low {
            folder.run.stage = Stage::Rejected;
            folder.run.why =
                "it scores lower than the serving model on what was held out: the intervals lie apart".to_owned();
        }
    }
    folder.run.card = Some(card.to_json());
    Ok(folder.save()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flywheel::Settings;

    #[test]
    fn the_recipe_inside_the_binary_goes_on_from_the_serving_model() {
        let kept = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(kept.path(), Settings::made()).unwrap();
        let recipe = student_recipe(&folder, &ModelSource::Bundled, RECIPE, None).unwrap();
        assert_eq!((recipe.format.as_str(), recipe.network.is_none()), ("f32", true));
        assert_eq!(recipe.data.licences, [crate::learn::transcripts::LICENCE]);
        assert!(recipe.start.model.unwrap().is_file());
        assert_eq!(Weights::read(&ModelSource::Bundled).unwrap().decline(), Some("HANDOFF"));
        // One with a network of its own starts from nothing.
        let own = format!(
            "{RECIPE}[network]\nvocabulary = 264\nwidth = 64\nlayers = 1\nheads = 2\nkv_heads = 1\n\
                           feed_forward = 64\ncontext = 64\nrope_base = 10000.0\nnorm_epsilon = 1e-5\n"
        );
        assert!(student_recipe(&folder, &ModelSource::Bundled, &own, None).unwrap().start.model.is_none());
        let error = student_recipe(&folder, &ModelSource::Bundled, "seed = 1", None).unwrap_err().to_string();
        assert!(error.contains("recipe.toml"), "{error}");
    }
}
