//! Trains the bundled model: `train_nano RECIPE.json TRAIN.jsonl.gz FOLDER OUT.gguf [SECONDS]`.

use local_worker::train::{corpus, export, network, run, vocabulary};
use std::error::Error;
use std::path::PathBuf;

// Freed tensors stay mapped: worth 1.5 to 2 times the speed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    name: String,
    served_tasks: Vec<String>,
    declined_records: usize,
    decline: String,
    holdout_share: f64,
    licences: Vec<String>,
    row_length: usize,
    prompt_weight: f32,
    seed: u64,
    shape: network::Shape,
    schedule: run::Schedule,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [recipe, data, folder, out, rest @ ..] = arguments.as_slice() else {
        return Err("usage: train_nano RECIPE.json TRAIN.jsonl.gz FOLDER OUT.gguf [SECONDS]".into());
    };
    let mut recipe: Recipe = serde_json::from_str(&std::fs::read_to_string(recipe)?)?;
    if let Some(seconds) = rest.first().and_then(|text| text.to_str()) {
        recipe.schedule.seconds = seconds.parse()?;
    }
    std::fs::create_dir_all(folder)?;
    let records = corpus::read(data, &recipe.licences)?;
    let chosen = corpus::choose(
        records,
        &recipe.served_tasks,
        recipe.declined_records,
        &recipe.decline,
        recipe.holdout_share,
        recipe.seed,
    );
    let path = folder.join("tokenizer.json");
    let plain = |error: Box<dyn Error + Send + Sync>| error.to_string();
    if !path.exists() {
        let texts = chosen.iter().flat_map(|record| [record.prompt.clone(), record.answer.clone()]).collect::<Vec<_>>();
        vocabulary::Vocabulary::train(texts.into_iter(), recipe.shape.vocabulary)
            .map_err(plain)?
            .save(&path)
            .map_err(plain)?;
    }
    let vocabulary = vocabulary::Vocabulary::load(&path).map_err(plain)?;
    if vocabulary.len() != recipe.shape.vocabulary {
        return Err(format!(
            "the vocabulary has {} tokens, the recipe says {}",
            vocabulary.len(),
            recipe.shape.vocabulary
        )
        .into());
    }
    let rows = corpus::pack(&chosen, &vocabulary, recipe.row_length, recipe.prompt_weight, recipe.seed);
    println!("{} records, {} rows of {} tokens", chosen.len(), rows.len(), recipe.row_length);
    let network = run::train(folder, &recipe.shape, &recipe.schedule, &rows, |progress| {
        println!(
            "step {} tokens {} loss {:.4} seconds {:.0} rate {:.5} tokens/s {:.0}",
            progress.step,
            progress.tokens,
            progress.loss,
            progress.seconds,
            progress.rate,
            progress.tokens as f64 / progress.seconds
        );
    })?;
    export::write(out, &recipe.name, &network, &vocabulary, &recipe.decline)?;
    Ok(())
}
