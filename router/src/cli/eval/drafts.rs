//! Recorded drafts: what a model answered to a suite and how sure it was of each token, as outcomes that `sluice train` and
//! `sluice eval cascade` read. The large model's quality is 1: the suite knows the right answers.

use super::{ModelArguments, source};
use crate::judge::SECOND_TEMPERATURE;
use crate::policy::SAMPLE;
use anyhow::Context as _;
use clap::Args;
use local_worker::ModelSource;
use local_worker::evaluate::{Answer, Record, hash_share};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Arguments of `eval model` about drafts.
#[derive(Clone, Debug, Default, Args)]
pub struct DraftArguments {
    /// Write each answer as a recorded draft, with its token probabilities, as JSON lines.
    #[arg(long, value_name = "FILE.jsonl", requires = "suite")]
    pub drafts: Option<PathBuf>,
    /// Also ask somebody else, to record whether they agree: `sample` (the same model again, not greedily) or another local
    /// model, by file, folder or name.
    #[arg(long, value_name = "sample|MODEL", requires = "drafts")]
    pub second: Option<String>,
    /// What drafts call the model; its name, or its file's, if absent.
    #[arg(long, value_name = "NAME", requires = "drafts")]
    pub name: Option<String>,
    /// Only records of these tasks.
    #[arg(long, num_args = 1.., value_name = "TASK", requires = "suite")]
    pub tasks: Vec<String>,
    /// Of suites with a licence and a split by hash: leave out what a model was trained on, by its recipe. Only records that it
    /// held out stay, and of them those whose tasks it serves.
    #[arg(long, value_name = "RECIPE.toml", requires = "suite")]
    pub held_out: Option<PathBuf>,
}

/// What a recipe of training says of records.
#[derive(Deserialize)]
struct Recipe {
    data: RecipeData,
}

/// The part of it that chooses.
#[derive(Deserialize)]
struct RecipeData {
    #[serde(default)]
    holdout_share: f64,
    #[serde(default)]
    tasks: Vec<String>,
}

impl DraftArguments {
    /// The records that are asked.
    pub fn choose(&self, mut records: Vec<Record>) -> anyhow::Result<Vec<Record>> {
        if !self.tasks.is_empty() {
            let known: HashSet<&str> = records.iter().map(|record| record.task.as_str()).collect();
            if let Some(unknown) = self.tasks.iter().find(|task| !known.contains(task.as_str())) {
                let mut known: Vec<&str> = known.into_iter().collect();
                known.sort_unstable();
                anyhow::bail!("--tasks: the suite has no task `{unknown}`; it has {}", known.join(", "));
            }
            records.retain(|record| self.tasks.contains(&record.task));
        }
        if let Some(file) = &self.held_out {
            let recipe: Recipe = toml::from_str(&super::read(file)?)
                .with_context(|| format!("{}: no recipe of training", file.display()))?;
            let RecipeData { holdout_share, tasks } = recipe.data;
            let served = |task: &String| tasks.is_empty() || tasks.contains(task);
            records.retain(|record| hash_share(&record.prompt) < holdout_share && served(&record.task));
            anyhow::ensure!(!records.is_empty(), "{} held none of the records out", file.display());
        }
        Ok(records)
    }

    /// Whom else to ask, and at which temperature.
    pub fn second(&self, arguments: &ModelArguments) -> anyhow::Result<Option<(ModelSource, f32)>> {
        Ok(match self.second.as_deref() {
            None => None,
            Some(SAMPLE) => Some((source::find(&arguments.model, arguments.catalog.as_deref())?, SECOND_TEMPERATURE)),
            Some(other) => Some((source::find(other, arguments.catalog.as_deref())?, 0.0)),
        })
    }

    /// Writes the drafts; `asked` holds what somebody else answered.
    pub fn write(
        &self,
        file: &Path,
        model: &str,
        records: &[Record],
        answers: &[Answer],
        asked: Option<&[Answer]>,
    ) -> std::io::Result<()> {
        let name = self.name.clone().unwrap_or_else(|| called(model));
        let second =
            self.second.as_deref().map(|second| if second == SAMPLE { SAMPLE.to_owned() } else { called(second) });
        local_worker::files::write(file, |out| {
            for (at, (record, answer)) in records.iter().zip(answers).enumerate() {
                let mut row = row(&name, record, answer);
                if let (Some(by), Some(other)) = (&second, asked.and_then(|asked| asked.get(at))) {
                    row["draft"]["second"] = json!({ "by": by, "text": other.said() });
                }
                writeln!(out, "{row}")?;
            }
            Ok(())
        })
    }
}

/// A model's name: that of the catalog, or its file's without ending.
fn called(model: &str) -> String {
    let path = Path::new(model);
    let stem = path.exists().then(|| path.file_stem()).flatten();
    stem.map_or_else(|| model.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn row(name: &str, record: &Record, answer: &Answer) -> Value {
    let quality = u8::from(answer.right(record) && !answer.declined);
    let cluster = blake3::hash(record.prompt.to_lowercase().as_bytes()).to_hex();
    json!({
        "id": record.id, "source": record.source, "domain": record.task, "prompt": record.prompt,
        "weak_model": name, "strong_model": "*", "weak_quality": quality, "strong_quality": 1,
        "cluster": &cluster[..16], "split": "dev",
        "draft": {
            "text": answer.text, "logprobs": answer.trace.logprobs, "margins": answer.trace.margins,
            "likeliest": answer.trace.likeliest, "cut": answer.trace.cut, "declined": answer.declined,
        },
    })
}
