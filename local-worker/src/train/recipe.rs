//! A recipe: everything that decides a trained model but the corpus file and the clock. One JSON file beside the model.

use super::TrainError;
use super::network::Shape;
use super::run::Schedule;
use std::path::Path;

/// What to train on, what, and how.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The model's name.
    pub name: String,
    /// Tasks it learns to answer.
    pub served_tasks: Vec<String>,
    /// Records of other tasks that it learns to decline.
    pub declined_records: usize,
    /// The answer that declines.
    pub decline: String,
    /// Share of records that are never trained on, in [0, 1).
    pub holdout_share: f64,
    /// Licences of records that may be trained on.
    pub licences: Vec<String>,
    /// Tokens of a training row.
    pub row_length: usize,
    /// Weight of prompt tokens in the loss; those of answers weigh 1.
    pub prompt_weight: f32,
    /// Seed of the choice of records and the order of packing.
    pub seed: u64,
    /// Shape of the network.
    pub shape: Shape,
    /// How to train.
    pub schedule: Schedule,
}

impl Recipe {
    /// Reads and checks a recipe.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(|error| TrainError::file(path, error))?;
        let recipe: Self = serde_json::from_str(&text).map_err(|error| TrainError::file(path, error.into()))?;
        match recipe.problems().as_slice() {
            [] => Ok(recipe),
            problems => Err(TrainError::Recipe { path: path.to_owned(), problems: problems.join("; ") }),
        }
    }

    fn problems(&self) -> Vec<String> {
        let shape = &self.shape;
        let whole = |part: usize, of: usize| of > 0 && part.is_multiple_of(of);
        let checks = [
            (whole(shape.width, shape.heads), "width must be a multiple of heads"),
            (whole(shape.heads, shape.kv_heads), "heads must be a multiple of kv_heads"),
            (shape.heads == 0 || shape.head().is_multiple_of(2), "the width of a head must be even"),
            (whole(shape.width, 32), "width must be a multiple of 32, as Q8_0 stores blocks of 32"),
            (whole(shape.feed_forward, 32), "feed_forward must be a multiple of 32, as Q8_0 stores blocks of 32"),
            (self.row_length >= 2 && self.row_length <= shape.context, "row_length must be from 2 to context"),
            ((0.0..1.0).contains(&self.holdout_share), "holdout_share must be from 0 to below 1"),
            ((0.0..=1.0).contains(&self.prompt_weight), "prompt_weight must be from 0 to 1"),
            (!self.licences.is_empty(), "licences must name what may be trained on"),
            (!self.decline.is_empty(), "decline must not be empty"),
            (self.schedule.seconds > 0.0, "seconds must be above 0"),
        ];
        checks.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem.to_owned()).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The recipe of the bundled model.
    pub fn recipe() -> Recipe {
        Recipe::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sluice-nano-v0.recipe.json")).unwrap()
    }

    #[test]
    fn the_bundled_recipe_is_sound_and_small() {
        let recipe = recipe();
        assert!((2_000_000..=4_000_000).contains(&recipe.shape.parameters()), "{}", recipe.shape.parameters());
        assert!(recipe.shape.width.is_multiple_of(256) && recipe.shape.feed_forward.is_multiple_of(256));
    }

    #[test]
    fn every_problem_is_told() {
        let mut recipe = Recipe { holdout_share: 1.0, licences: Vec::new(), ..recipe() };
        recipe.shape.heads = 3;
        let problems = recipe.problems().join("; ");
        for expected in ["multiple of heads", "heads must be a multiple", "holdout_share", "licences"] {
            assert!(problems.contains(expected), "{problems}");
        }
    }
}
