//! A recipe: everything that decides a trained model but the files of its corpus. One TOML file beside the model.

use super::TrainError;
use super::network::Shape;
use crate::compress::Target;
pub use crate::kernels::Precision;
use std::path::{Path, PathBuf};

/// Longest context that a model file may have.
const MOST_CONTEXT: usize = 1 << 24;

/// What to train, on what, and how.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The model's name.
    pub name: String,
    /// Seed of everything that is drawn: weights, records, their order.
    pub seed: u64,
    /// Format of the model file's matrices, as `sluice quantize --to` names them.
    #[serde(default = "q8_0")]
    pub format: String,
    /// What of a corpus is trained on.
    pub data: Data,
    /// Sizes of a new network; absent where one is started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Shape>,
    /// What to start from.
    #[serde(default)]
    pub start: Start,
    /// How to train.
    pub training: Training,
}

/// What of a corpus is trained on.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Licences of records that may be trained on; any other is refused with its line.
    pub licences: Vec<String>,
    /// Tasks that are learnt; all if empty.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// Records of other tasks that it learns to decline, as many of each.
    #[serde(default)]
    pub declined_records: usize,
    /// The answer that declines; empty where nothing is.
    #[serde(default)]
    pub decline: String,
    /// Share of records that are never trained on, by a hash of the prompt, in [0, 1).
    #[serde(default)]
    pub holdout_share: f64,
    /// Weight of prompt tokens in the loss; those of answers weigh 1. With 0 only answers are learnt.
    #[serde(default)]
    pub prompt_weight: f32,
    /// What to do with records longer than the context.
    #[serde(default)]
    pub long_records: LongRecords,
    /// Records that dev evaluation looks at, at most.
    #[serde(default = "dev_records")]
    pub dev_records: usize,
}

impl Data {
    /// Whether a task's answers are learnt.
    pub fn learns(&self, task: &str) -> bool {
        self.tasks.is_empty() || self.tasks.iter().any(|learnt| learnt == task)
    }
}

/// What to do with records longer than the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongRecords {
    /// The first one stops the run before it begins.
    #[default]
    Refuse,
    /// They are left out and counted.
    Skip,
}

/// What to start from, beside random weights.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// A GGUF file or a folder with safetensors: sizes, vocabulary, template and weights are its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Longest context of what comes of it, where that is not the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Chat template of what comes of it, where that is not the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// A table of word vectors; a token's first embedding is that of its text, scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<PathBuf>,
}

/// How to train.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Tokens to see; the rate falls along a cosine to `floor` of the peak at the end.
    pub tokens: u64,
    /// Tokens at the end over which it falls, steady before; all if absent. A run whose rate is still steady may be made
    /// longer or shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fall: Option<u64>,
    /// Tokens of a batch; its last record may lead beyond.
    pub batch_tokens: usize,
    /// Batches whose gradients make one step.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Highest learning rate.
    pub peak_rate: f64,
    /// What that is multiplied by for the embedding of tokens: below 1, words keep more of what their first vectors say.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub embedding_rate: f64,
    /// Tokens of linear warm-up.
    pub warm_up: u64,
    /// Share of the peak that is left at the end.
    #[serde(default = "floor")]
    pub floor: f64,
    /// Weight decay of matrices.
    #[serde(default)]
    pub weight_decay: f64,
    /// Largest norm of the gradient.
    #[serde(default = "clip")]
    pub clip: f64,
    /// Steps between lines of the log.
    #[serde(default = "log_steps")]
    pub log_steps: u64,
    /// Steps between checkpoints.
    #[serde(default = "checkpoint_steps")]
    pub checkpoint_steps: u64,
    /// Steps between evaluations on dev.
    #[serde(default = "checkpoint_steps")]
    pub evaluate_steps: u64,
    /// Threads; the last bits of a run depend on their number.
    #[serde(default = "two")]
    pub threads: usize,
    /// What products with weights are made of: `f32`, or `bf16` with single sums.
    #[serde(default, skip_serializing_if = "is_exact")]
    pub precision: Precision,
}

fn q8_0() -> String {
    "q8_0".to_owned()
}

fn dev_records() -> usize {
    500
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn whole() -> f64 {
    1.0
}

// Folders of runs that were begun before there was such a key lack it.
#[allow(clippy::float_cmp, reason = "it asks for the very value that is the default")]
fn is_whole(value: &f64) -> bool {
    *value == whole()
}

fn is_exact(precision: &Precision) -> bool {
    *precision == Precision::F32
}

fn floor() -> f64 {
    0.001
}

fn clip() -> f64 {
    1.0
}

fn log_steps() -> u64 {
    10
}

fn checkpoint_steps() -> u64 {
    500
}

impl Training {
    /// Tokens after which the rate begins to fall.
    pub(super) fn steady(&self) -> u64 {
        self.tokens.saturating_sub(self.fall.unwrap_or(self.tokens))
    }

    /// Learning rate when `seen` tokens have been seen.
    pub(super) fn rate(&self, seen: u64) -> f64 {
        let warm = ((seen + self.batch_tokens as u64) as f64 / self.warm_up.max(1) as f64).min(1.0);
        let fall = self.fall.unwrap_or(self.tokens).max(1);
        let share = (seen.saturating_sub(self.steady()) as f64 / fall as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
        self.peak_rate * warm * (self.floor + (1.0 - self.floor) * cosine)
    }
}

impl Recipe {
    /// Reads and checks a recipe. Paths in it are relative to it.
    ///
    /// # Errors
    /// The file can't be read, is no recipe, or contradicts itself; all of it is told.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(|error| TrainError::file(path, error))?;
        let wrong = |problems: String| TrainError::Recipe { path: path.to_owned(), problems };
        let mut recipe: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string().trim().to_owned()))?;
        let near = |file: &mut Option<PathBuf>| {
            if let (Some(found), Some(folder)) = (file.as_ref(), path.parent()) {
                *file = Some(folder.join(found));
            }
        };
        near(&mut recipe.start.model);
        near(&mut recipe.start.vectors);
        match recipe.problems().as_slice() {
            [] => Ok(recipe),
            problems => Err(wrong(problems.join("; "))),
        }
    }

    /// The format of the model file.
    pub fn target(&self) -> Option<Target> {
        self.format.parse().ok()
    }

    fn problems(&self) -> Vec<String> {
        let (data, training) = (&self.data, &self.training);
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let checks = [
            (self.network.is_some() != self.start.model.is_some(), "give either [network] or start.model"),
            (
                self.start.model.is_some() || self.start.context.is_none() && self.start.chat_template.is_none(),
                "start.context and start.chat_template need start.model; a new network has [network] context and its own template",
            ),
            (
                self.start.context.is_none_or(|context| (2..=MOST_CONTEXT).contains(&context)),
                "start.context must be from 2 to 16777216",
            ),
            (
                self.network.as_ref().is_none_or(|network| network.context <= MOST_CONTEXT),
                "network.context must be 16777216 at most",
            ),
            (
                self.start.chat_template.as_ref().is_none_or(|template| !template.trim().is_empty()),
                "start.chat_template must not be empty",
            ),
            (self.target().is_some(), "format is none that `sluice quantize --to` takes"),
            (
                self.target().is_none_or(|target| !target.wants_calibration()),
                "format must not be int8, which needs a text to calibrate on: make it with `sluice quantize` out of f32",
            ),
            ((0.0..1.0).contains(&data.holdout_share), "data.holdout_share must be from 0 to below 1"),
            ((0.0..=1.0).contains(&data.prompt_weight), "data.prompt_weight must be from 0 to 1"),
            (!data.licences.is_empty(), "data.licences must name what may be trained on"),
            (data.declined_records == 0 || !data.decline.is_empty(), "data.declined_records needs data.decline"),
            (training.tokens > 0, "training.tokens must be above 0"),
            (
                training.fall.is_none_or(|fall| fall <= training.tokens),
                "training.fall must not be above training.tokens",
            ),
            (training.batch_tokens > 0, "training.batch_tokens must be above 0"),
            (training.accumulate > 0, "training.accumulate must be above 0"),
            (positive(training.peak_rate), "training.peak_rate must be above 0"),
            ((0.0..=1.0).contains(&training.embedding_rate), "training.embedding_rate must be from 0 to 1"),
            (positive(training.clip), "training.clip must be above 0"),
            ((0.0..=1.0).contains(&training.floor), "training.floor must be from 0 to 1"),
            ((0.0..1.0).contains(&training.weight_decay), "training.weight_decay must be from 0 to below 1"),
            (training.log_steps > 0, "training.log_steps must be above 0"),
            (training.checkpoint_steps > 0, "training.checkpoint_steps must be above 0"),
            (training.evaluate_steps > 0, "training.evaluate_steps must be above 0"),
            ((1..=256).contains(&training.threads), "training.threads must be from 1 to 256"),
        ];
        let problems = checks.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem.to_owned());
        let of_shape = self.network.iter().flat_map(Shape::problems).map(|problem| format!("network: {problem}"));
        problems.chain(of_shape).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The recipe of the bundled model.
    pub fn recipe() -> Recipe {
        Recipe::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sluice-nano-v0.recipe.toml")).unwrap()
    }

    #[test]
    fn the_bundled_recipe_is_sound_and_small() {
        let shape = recipe().network.unwrap();
        assert!((2_000_000..=4_000_000).contains(&shape.parameters()), "{}", shape.parameters());
        assert!(shape.width.is_multiple_of(256) && shape.feed_forward.is_multiple_of(256));
    }

    #[test]
    fn every_problem_is_told() {
        let mut recipe = recipe();
        (recipe.data.holdout_share, recipe.data.licences, recipe.format) = (1.0, Vec::new(), "q9".to_owned());
        (recipe.start.context, recipe.start.chat_template) = (Some(1 << 40), Some(" ".to_owned()));
        recipe.network.as_mut().unwrap().context = 1 << 40;
        recipe.training.peak_rate = f64::NAN;
        recipe.network.as_mut().unwrap().heads = 3;
        recipe.start.model = Some("x.gguf".into());
        let problems = recipe.problems().join("; ");
        let expected = [
            "multiple of heads",
            "heads must be a multiple",
            "holdout_share",
            "licences",
            "format",
            "peak_rate",
            "either [network] or start.model",
            "start.context must be",
            "network.context must be",
            "start.chat_template must not be empty",
        ];
        for expected in expected {
            assert!(problems.contains(expected), "{problems}");
        }
        recipe.format = "int8".to_owned();
        assert!(recipe.problems().join("; ").contains("format must not be int8"));
    }

    #[test]
    fn recipes_that_go_on_are_sound_and_a_new_network_has_a_context_already() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let nano = Recipe::read(&models.join("sluice-nano-v1.recipe.toml")).unwrap();
        assert_eq!((nano.start.context, nano.training.precision), (Some(1024), Precision::Bf16));
        assert_eq!(nano.start.model, Some(models.join("sluice-nano-v1.start.gguf")), "beside the recipe");
        let second = Recipe::read(&models.join("sluice-nano-v1.second.recipe.toml")).unwrap();
        assert_eq!((second.start.context, second.start.model), (None, Some(models.join("run/model.gguf"))));
        let start = Start { context: Some(9), ..Start::default() };
        let problems = Recipe { start, ..recipe() }.problems().join("; ");
        assert!(problems.contains("start.context and start.chat_template need start.model"), "{problems}");
    }

    #[test]
    fn a_key_that_is_not_known_is_told_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "name = \"x\"\nseed = 1\nsede = 2\n").unwrap();
        let error = Recipe::read(file.path()).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("sede"), "{error}");
    }

    #[test]
    fn the_rate_rises_then_falls_to_the_floor() {
        let training =
            Training { tokens: 1000, batch_tokens: 10, warm_up: 100, peak_rate: 1.0, floor: 0.1, ..recipe().training };
        let close = |seen: u64, expected: f64| assert!((training.rate(seen) - expected).abs() < 0.01, "{seen}");
        close(0, 0.1);
        close(50, 0.59);
        close(500, 0.55);
        close(1000, 0.1);
        close(2000, 0.1);
        let late = Training { fall: Some(200), ..training };
        assert_eq!((late.rate(100), late.rate(800)), (1.0, 1.0), "steady until the fall");
        assert!((late.rate(900) - 0.55).abs() < 0.01 && (late.rate(1000) - 0.1).abs() < 0.01);
        let longer = Training { tokens: 5000, ..late.clone() };
        assert_eq!(
            (late.rate(50), late.rate(700)),
            (longer.rate(50), longer.rate(700)),
            "its length changes nothing so far"
        );
    }
}
