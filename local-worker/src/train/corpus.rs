//! Instruction records → packed rows of tokens with a weight for each target.

use super::TrainError;
use super::recipe::Recipe;
use super::run::Row;
use super::vocabulary::Vocabulary;
use crate::evaluate::suite::{self, Record, SuiteError, hash_share};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::path::Path;

/// Reads a corpus; a record whose licence is not in `licences` is an error that names its line.
///
/// # Errors
/// As [`suite::read`].
pub fn read(path: &Path, licences: &[String]) -> Result<Vec<Record>, SuiteError> {
    suite::read(path, |record| match licences.contains(&record.licence) {
        true => Ok(()),
        false => Err(format!("licence `{}` is not among the allowed ones", record.licence)),
    })
}

/// Chooses what to train on: records of served tasks as they are, and as many of every other task as make up the recipe's
/// declined ones, answered by the decline text. A share of all is held out by hash of the prompt.
pub fn choose(records: Vec<Record>, recipe: &Recipe) -> Vec<Record> {
    let mut generator = rand::rngs::StdRng::seed_from_u64(recipe.seed);
    let mut chosen = Vec::new();
    let mut others: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records {
        if hash_share(&record.prompt) < recipe.holdout_share {
            continue;
        }
        if recipe.served_tasks.contains(&record.task) {
            chosen.push(record);
        } else {
            others.entry(record.task.clone()).or_default().push(record);
        }
    }
    let share = recipe.declined_records / others.len().max(1);
    for (_, mut group) in others {
        group.shuffle(&mut generator);
        let declined = |record| Record { answer: recipe.decline.clone(), ..record };
        chosen.extend(group.into_iter().take(share).map(declined));
    }
    chosen
}

/// Packs records, in random order, into rows of the recipe's length. Longer records are left out. The rest of a row that
/// the next record does not fit is padding of weight 0.
pub fn pack(records: &[Record], vocabulary: &Vocabulary, recipe: &Recipe) -> Result<Vec<Row>, TrainError> {
    let (length, prompt_weight) = (recipe.row_length, recipe.prompt_weight);
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(recipe.seed));
    let mut rows = Vec::new();
    let (mut tokens, mut weights): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    for index in order {
        let (prompt, answer) = vocabulary.example(&records[index].prompt, &records[index].answer)?;
        if prompt.len() + answer.len() > length {
            continue;
        }
        if tokens.len() + prompt.len() + answer.len() > length + 1 {
            rows.push(row(&mut tokens, &mut weights, length, vocabulary.end));
        }
        weights.extend(prompt.iter().map(|_| prompt_weight));
        weights.extend(answer.iter().map(|_| 1.0));
        tokens.extend(prompt);
        tokens.extend(answer);
    }
    if tokens.len() > 1 {
        rows.push(row(&mut tokens, &mut weights, length, vocabulary.end));
    }
    Ok(rows)
}

fn row(tokens: &mut Vec<u32>, weights: &mut Vec<f32>, length: usize, padding: u32) -> Row {
    tokens.resize(length + 1, padding);
    weights.resize(length + 1, 0.0);
    let row = Row { inputs: tokens[..length].to_vec(), targets: tokens[1..].to_vec(), weights: weights[1..].to_vec() };
    tokens.clear();
    weights.clear();
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::suite::tests::record;

    #[test]
    fn licences_that_are_not_allowed_are_refused_by_line() {
        let line = r#"{"id":"1","task":"spam","source":"s","licence":"MIT","prompt":"p","answer":"a"}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        for other in ["unstated", ""] {
            std::fs::write(file.path(), format!("{line}\n{}\n", line.replace("MIT", other))).unwrap();
            let error = read(file.path(), &["MIT".to_owned()]).unwrap_err().to_string();
            assert!(error.ends_with(&format!(":2: licence `{other}` is not among the allowed ones")), "{error}");
        }
        std::fs::write(file.path(), line).unwrap();
        assert_eq!(read(file.path(), &["MIT".to_owned()]).unwrap().len(), 1);
    }

    #[test]
    fn other_tasks_are_declined_and_a_share_is_held_out() {
        let recipe = Recipe { declined_records: 20, holdout_share: 0.2, ..crate::train::recipe::tests::recipe() };
        let mut records: Vec<Record> = (0..500).map(|n| record("spam", &format!("buy {n}"), "spam")).collect();
        records.extend((0..500).map(|n| record(["topic", "ner"][n % 2], &format!("what {n}"), "x")));
        let chosen = choose(records, &recipe);
        let (served, others): (Vec<_>, Vec<_>) = chosen.iter().partition(|record| record.task == "spam");
        assert!((360..440).contains(&served.len()), "{}", served.len());
        assert!(served.iter().all(|record| record.answer == "spam" && hash_share(&record.prompt) >= 0.2));
        assert_eq!(others.len(), 20);
        assert!(others.iter().all(|record| record.answer == recipe.decline));
        assert_eq!(hash_share("Buy, 7!"), hash_share("buy 7"), "case and marks don't decide");
    }

    #[test]
    fn rows_hold_whole_records_and_weigh_answers() {
        let recipe = Recipe { row_length: 24, prompt_weight: 0.25, ..crate::train::recipe::tests::recipe() };
        let records: Vec<Record> = (0..9)
            .map(|n| record("spam", &format!("win {n}"), "yes"))
            .chain([record("x", &"long ".repeat(90), "no")])
            .collect();
        let texts = records.iter().map(|record| format!("{} {}", record.prompt, record.answer)).collect::<Vec<_>>();
        let vocabulary = Vocabulary::train(texts.into_iter(), 280).unwrap();
        let rows = pack(&records, &vocabulary, &recipe).unwrap();
        let mut answers = 0;
        for row in &rows {
            assert_eq!((row.inputs.len(), row.targets.len(), row.weights.len()), (24, 24, 24));
            assert_eq!(row.inputs[1..], row.targets[..23]);
            assert!(row.weights.iter().all(|weight| [0.0, 0.25, 1.0].contains(weight)));
            let ends = row.targets.iter().zip(&row.weights);
            answers += ends.filter(|(token, weight)| **token == vocabulary.end && **weight == 1.0).count();
        }
        assert_eq!(answers, 9, "the end of every answer is learnt, the long record is left out");
    }
}
