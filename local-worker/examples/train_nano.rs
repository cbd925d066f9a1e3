//! Trains the bundled model: `train_nano RECIPE.json TRAIN.jsonl.gz FOLDER OUT.gguf [SECONDS]`.
//!
//! Goes on from FOLDER's checkpoint if there is one. SECONDS replaces the recipe's time; less than was trained already writes
//! the model as it is.
#![allow(clippy::print_stdout, reason = "an example that prints its progress")]

use local_worker::train::{corpus, export, recipe::Recipe, run, vocabulary::Vocabulary};
use std::error::Error;
use std::path::PathBuf;

// Freed tensors stay mapped: worth 1.5 to 2 times the speed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [recipe, data, folder, out, rest @ ..] = arguments.as_slice() else {
        return Err("usage: train_nano RECIPE.json TRAIN.jsonl.gz FOLDER OUT.gguf [SECONDS]".into());
    };
    let mut recipe = Recipe::read(recipe)?;
    if let Some(seconds) = rest.first().and_then(|text| text.to_str()) {
        recipe.schedule.seconds = seconds.parse()?;
    }
    std::fs::create_dir_all(folder)?;
    let chosen = corpus::choose(corpus::read(data, &recipe.licences)?, &recipe);
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        let texts = chosen.iter().flat_map(|record| [record.prompt.clone(), record.answer.clone()]);
        Vocabulary::train(texts.collect::<Vec<_>>().into_iter(), recipe.shape.vocabulary)?.save(&path)?;
    }
    let vocabulary = Vocabulary::load(&path)?;
    let (found, wanted) = (vocabulary.len(), recipe.shape.vocabulary);
    if found != wanted {
        return Err(format!("the vocabulary has {found} tokens, the recipe says {wanted}").into());
    }
    let rows = corpus::pack(&chosen, &vocabulary, &recipe)?;
    println!("{} records, {} rows of {} tokens", chosen.len(), rows.len(), recipe.row_length);
    let network = run::train(folder, &recipe.shape, &recipe.schedule, &rows, |now| {
        let pace = now.tokens as f64 / now.seconds;
        println!(
            "step {} tokens {} loss {:.4} seconds {:.0} rate {:.5} tokens/s {pace:.0}",
            now.step, now.tokens, now.loss, now.seconds, now.rate
        );
    })?;
    export::write(out, &recipe.name, &network, &vocabulary, &recipe.decline)?;
    Ok(())
}
