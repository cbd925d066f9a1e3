//! Simple rules that a scorer has to beat: chance, length, word weights, neighbours; and one that knows the answers.

use super::super::train::place;
use crate::evidence::frontier::{Frontier, Scored};
use crate::evidence::outcome::Outcome;
use local_worker::embed::{EmbedError, StaticEmbedder};
use local_worker::scorer::sparse::{Row, dot, ridge};
use std::collections::{BTreeMap, HashMap};

/// Names of the rules, in the order of their scores.
pub const BASELINES: [&str; 5] = ["random", "length", "tfidf_logistic", "nearest_neighbours", ORACLE];

/// The rule that knows the answers.
pub const ORACLE: &str = "oracle";

/// Why the rules cannot be computed.
#[derive(Debug, thiserror::Error)]
#[error("the sentence vectors for neighbours cannot be used: {0}")]
pub struct BaselineError(EmbedError);

/// Computes the rules; keeps sentence vectors of prompts it has seen.
pub struct Baseline {
    embedder: StaticEmbedder,
    vectors: HashMap<String, Vec<f32>>,
}

impl Baseline {
    /// With the bundled sentence vectors.
    pub fn new() -> Result<Self, BaselineError> {
        Ok(Self { embedder: StaticEmbedder::bundled().map_err(BaselineError)?, vectors: HashMap::new() })
    }

    /// Scores of the test rows by each rule, in the order of [`BASELINES`]; higher stays with the small model.
    pub fn scores(&mut self, train: &[&Outcome], test: &[&Outcome]) -> Vec<Vec<f64>> {
        let by = |score: fn(&Outcome) -> f64| test.iter().map(|row| score(row)).collect();
        vec![
            by(|row| place("random", &row.id) as f64),
            by(|row| -(row.prompt.len() as f64)),
            tfidf_logistic(train, test),
            self.neighbours(train, test),
            by(|row| row.small_quality - row.large_quality),
        ]
    }

    /// Mean advantage of the nearest training prompts by sentence vectors, weighted by nearness; how many is chosen on a
    /// fifth of the training clusters.
    fn neighbours(&mut self, train: &[&Outcome], test: &[&Outcome]) -> Vec<f64> {
        const COUNTS: [usize; 4] = [10, 30, 100, 300];
        for row in train.iter().chain(test) {
            if !self.vectors.contains_key(&row.prompt) {
                let mut vector = vec![0.0; self.embedder.dims()];
                self.embedder.embed(&row.prompt, &mut vector);
                self.vectors.insert(row.prompt.clone(), vector);
            }
        }
        let held = |row: &&&Outcome| place("neighbours", &row.cluster).is_multiple_of(5);
        let (check, learnt): (Vec<&Outcome>, Vec<&Outcome>) = train.iter().partition(held);
        let tried = self.nearest(&learnt, &check, &COUNTS);
        let worth = |scores: &Vec<f64>| {
            let row = |(row, score): (&&Outcome, &f64)| Scored {
                score: *score,
                small: row.small_quality,
                large: row.large_quality,
            };
            Frontier::new(&check.iter().zip(scores).map(row).collect::<Vec<_>>()).apgr(|_| 1.0).unwrap_or(0.5)
        };
        let best = tried.iter().map(worth).enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(place, _)| place);
        let count = COUNTS.get(best).copied().unwrap_or(30);
        self.nearest(train, test, &[count]).pop().unwrap_or_default()
    }

    /// For each count of neighbours the scores of the rows asked.
    fn nearest(&self, known: &[&Outcome], asked: &[&Outcome], counts: &[usize]) -> Vec<Vec<f64>> {
        let vector = |row: &Outcome| self.vectors.get(&row.prompt).map(Vec::as_slice).unwrap_or_default();
        let mut scores = vec![Vec::with_capacity(asked.len()); counts.len()];
        for row in asked {
            let own = vector(row);
            let near = |known: &&Outcome| {
                let dot: f32 = vector(known).iter().zip(own).map(|(a, b)| a * b).sum();
                (dot, known.small_quality - known.large_quality)
            };
            let mut all: Vec<(f32, f64)> = known.iter().map(near).collect();
            all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
            for (scores, count) in scores.iter_mut().zip(counts) {
                let (mut sum, mut total) = (0.0, 1e-9);
                for (near, advantage) in all.iter().take(*count) {
                    let weight = f64::from(near * 10.0).exp();
                    sum += weight * advantage;
                    total += weight;
                }
                scores.push(sum / total);
            }
        }
        scores
    }
}

/// Words and pairs of words as they stand in a text, lower-case, words of two letters or digits at least.
fn terms(text: &str) -> BTreeMap<String, f32> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|character: char| !(character.is_alphanumeric() || character == '_'))
        .filter(|word| word.chars().nth(1).is_some())
        .collect();
    let mut counts = BTreeMap::new();
    for word in &words {
        *counts.entry((*word).to_owned()).or_insert(0.0) += 1.0;
    }
    for pair in words.windows(2) {
        *counts.entry(pair.join(" ")).or_insert(0.0) += 1.0;
    }
    counts
}

/// Logistic regression (penalty 1, as scikit-learn's default) on TF-IDF of words and pairs of words that two training
/// prompts share; logarithmic counts, smooth inverse document frequency, rows of length 1.
fn tfidf_logistic(train: &[&Outcome], test: &[&Outcome]) -> Vec<f64> {
    let texts: Vec<BTreeMap<String, f32>> = train.iter().map(|row| terms(&row.prompt)).collect();
    let mut documents: BTreeMap<&str, u32> = BTreeMap::new();
    for term in texts.iter().flat_map(BTreeMap::keys) {
        *documents.entry(term).or_default() += 1;
    }
    let known = documents.into_iter().filter(|(_, count)| *count >= 2).enumerate();
    let rarity = |count: u32| ((1.0 + train.len() as f32) / (1.0 + count as f32)).ln() + 1.0;
    let columns: HashMap<&str, (u32, f32)> =
        known.map(|(place, (term, count))| (term, (place as u32, rarity(count)))).collect();
    let row = |counts: &BTreeMap<String, f32>| -> Row {
        let mut row: Row = counts
            .iter()
            .filter_map(|(term, count)| {
                let (column, rarity) = columns.get(term.as_str())?;
                Some((*column, (1.0 + count.ln()) * rarity))
            })
            .collect();
        let length = row.iter().map(|(_, value)| value * value).sum::<f32>().sqrt().max(1e-9);
        row.iter_mut().for_each(|(_, value)| *value /= length);
        row
    };
    let rows: Vec<Row> = texts.iter().map(row).collect();
    let good: Vec<bool> = train.iter().map(|row| row.small_suffices()).collect();
    let weights = logistic(&rows.iter().collect::<Vec<_>>(), &good, columns.len());
    test.iter().map(|row_| f64::from(dot(&weights, &row(&terms(&row_.prompt))))).collect()
}

/// Logistic regression by iteratively reweighted least squares; the bias is not held back.
fn logistic(rows: &[&Row], good: &[bool], columns: usize) -> Vec<f32> {
    const STEPS: usize = 8;
    let mut weights = vec![0.0; columns + 1];
    for _ in 0..STEPS {
        let (mut targets, mut curves) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (row, good) in rows.iter().zip(good) {
            let linear = dot(&weights, row);
            let probability = 1.0 / (1.0 + (-linear).exp());
            let curve = (probability * (1.0 - probability)).max(1e-4);
            targets.push(linear + (f32::from(u8::from(*good)) - probability) / curve);
            curves.push(curve);
        }
        weights = ridge(rows, &targets, &curves, 1.0, columns);
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logistic_regression_finds_its_optimum() {
        let rows: Vec<Row> = (0..200).map(|n: u32| vec![(n % 3, 1.0), (3 + n % 2, 0.5)]).collect();
        let good: Vec<bool> = (0..200_u32).map(|n| n % 3 == 0 || n % 7 == 0).collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let weights = logistic(&rows, &good, 5);
        // At the optimum the gradient of the penalised log loss is nought.
        let mut gradient = weights.clone();
        gradient[5] = 0.0;
        for (row, good) in rows.iter().zip(&good) {
            let error = 1.0 / (1.0 + (-dot(&weights, row)).exp()) - f32::from(u8::from(*good));
            for (column, value) in row.iter() {
                gradient[*column as usize] += error * value;
            }
            gradient[5] += error;
        }
        assert!(gradient.iter().all(|value| value.abs() < 0.02), "{gradient:?}");
        assert!(weights[0] > weights[1]);
    }

    #[test]
    fn terms_are_words_and_pairs() {
        let found = terms("Add 12 to x. Add it!");
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["12", "12 to", "add", "add 12", "add it", "it", "to", "to add"]);
        assert_eq!(found["add"], 2.0);
    }
}
