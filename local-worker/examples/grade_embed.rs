//! How well sentence vectors tell duplicate questions from others that look alike:
//! `grade_embed PAIRS.jsonl.gz [TABLE.vectors|ENCODER-FOLDER]…`, the bundled table first. One pair a line: `{"a", "b", "duplicate"}`.
//! Prints the area under the ROC curve of the pairs' similarities, the best threshold's accuracy, what a semantic cache would
//! see at some thresholds, and the time a text takes, as Markdown.
#![allow(clippy::print_stdout, reason = "an example that prints scores")]

use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use local_worker::embed::{SentenceEncoder, StaticEmbedder, similarity};
use serde::Deserialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Deserialize)]
struct Pair {
    a: String,
    b: String,
    duplicate: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pairs, models @ ..] = arguments.as_slice() else {
        return Err("usage: grade_embed PAIRS.jsonl.gz [TABLE.vectors|ENCODER-FOLDER]…".into());
    };
    let pairs = read(pairs.as_ref())?;
    let duplicates = pairs.iter().filter(|pair| pair.duplicate).count();
    println!("{} pairs, {duplicates} duplicates\n", pairs.len());
    println!(
        "| model | AUC | accuracy | at | false among hits, found of duplicates, at 0.95 | at 0.90 | at 0.80 | a text |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let bundled = StaticEmbedder::bundled()?;
    grade(bundled.name(), &pairs, |texts| by_table(&bundled, texts))?;
    for model in models {
        if Path::new(model).is_dir() {
            let encoder = SentenceEncoder::from_directory(model.as_ref())?;
            let vectors = |texts: &[&str]| Ok(encoder.embed(texts)?.into_iter().map(|found| found.vector).collect());
            grade(model, &pairs, vectors)?;
            continue;
        }
        let table = StaticEmbedder::from_file(model.as_ref())?;
        grade(model, &pairs, |texts| by_table(&table, texts))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Pair>, Box<dyn Error>> {
    let lines = BufReader::new(flate2::read::GzDecoder::new(std::fs::File::open(path)?)).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

type Vectors = Result<Vec<Vec<f32>>, Box<dyn Error>>;

fn by_table(table: &StaticEmbedder, texts: &[&str]) -> Vectors {
    let vector = |text: &&str| {
        let mut out = vec![0.0; table.dims()];
        table.embed(text, &mut out);
        out
    };
    Ok(texts.iter().map(vector).collect())
}

fn grade(name: &str, pairs: &[Pair], embed: impl Fn(&[&str]) -> Vectors) -> Result<(), Box<dyn Error>> {
    let mut scored = Vec::with_capacity(pairs.len());
    let mut took = Duration::ZERO;
    for some in pairs.chunks(256) {
        let texts: Vec<&str> = some.iter().flat_map(|pair| [pair.a.as_str(), pair.b.as_str()]).collect();
        let started = Instant::now();
        let vectors = embed(&texts)?;
        took += started.elapsed();
        let similarities = vectors.chunks_exact(2).map(|two| similarity(&two[0], &two[1]));
        scored.extend(similarities.zip(some).map(|(similarity, pair)| (similarity, pair.duplicate)));
    }
    scored.sort_by(|left, right| right.0.total_cmp(&left.0));
    let (accuracy, at) = best_accuracy(&scored);
    let hits = |threshold: f32| {
        let hits: Vec<_> = scored.iter().filter(|(similarity, _)| *similarity >= threshold).collect();
        let found = hits.iter().filter(|(_, duplicate)| *duplicate).count();
        let duplicates = scored.iter().filter(|(_, duplicate)| *duplicate).count();
        let share = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
        format!("{:.1} %, {:.1} %", share(hits.len() - found, hits.len()), share(found, duplicates))
    };
    println!(
        "| {name} | {:.4} | {:.2} % | {at:.3} | {} | {} | {} | {:.1} µs |",
        area(&scored),
        100.0 * accuracy,
        hits(0.95),
        hits(0.9),
        hits(0.8),
        took.as_secs_f64() * 1e6 / (2 * pairs.len()) as f64,
    );
    Ok(())
}

/// The share of pairs of one duplicate and one other in which the duplicate is more similar; equals count half. `scored` falls.
fn area(scored: &[(f32, bool)]) -> f64 {
    let (mut above, mut sum) = (0.0, 0.0);
    for same in scored.chunk_by(|left, right| left.0 == right.0) {
        let duplicates = same.iter().filter(|(_, duplicate)| *duplicate).count() as f64;
        let others = same.len() as f64 - duplicates;
        sum += others * (above + duplicates / 2.0);
        above += duplicates;
    }
    sum / (above * (scored.len() as f64 - above))
}

/// The best share told right by one threshold, and the threshold. `scored` falls.
fn best_accuracy(scored: &[(f32, bool)]) -> (f64, f32) {
    let others = scored.iter().filter(|(_, duplicate)| !duplicate).count() as i64;
    let (mut right, mut best) = (others, (others, f32::INFINITY));
    for (similarity, duplicate) in scored {
        right += if *duplicate { 1 } else { -1 };
        if right > best.0 {
            best = (right, *similarity);
        }
    }
    (best.0 as f64 / scored.len() as f64, best.1)
}
