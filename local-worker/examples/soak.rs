//! Random requests at a small model, three of ten cancelled: are all answered as if alone, and is memory back afterwards?
//! `cargo run --release -p local-worker --example soak [REQUESTS] [ROUNDS]`
#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::time::Instant;

use local_worker::testing::soak::{Book, Dice, MODEL, soak};
use local_worker::{ModelSource, Worker, WorkerConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number = |at: usize, otherwise| std::env::args().nth(at).map_or(Ok(otherwise), |count| count.parse());
    let (requests, rounds) = (number(1, 10_000)?, number(2, 1)?);
    let file = std::env::temp_dir().join(format!("sluice-soak-{}.gguf", std::process::id()));
    std::fs::write(&file, MODEL.gguf())?;
    let source = ModelSource::Path(file.clone());
    let config = WorkerConfig { max_sequences: 6, prefill_chunk: 48, cache_bytes: 24 << 14, ..WorkerConfig::default() };
    let mut dice = Dice::new(1);
    let mut book = Book::new(source.clone(), &config, &mut dice)?;
    let worker = Worker::start("soak", source, config)?;
    let budget = worker.load().cache_free_bytes;
    // Once through beforehand, so that what is allocated once is there.
    soak(&worker, &mut book, 500, &mut dice)?;
    println!("resident: {} kB before", resident()?);
    for _ in 0..rounds {
        let started = Instant::now();
        let soaked = soak(&worker, &mut book, requests, &mut dice)?;
        let (after, seconds) = (resident()?, started.elapsed().as_secs_f64());
        println!("{requests} requests in {seconds:.1} s: {} complete, {} cancelled", soaked.complete, soaked.cancelled);
        println!(
            "{} tokens, each as alone to the bit; {} prompt tokens not computed again",
            soaked.tokens, soaked.cached
        );
        println!("sequences set back: {}", soaked.after.preemptions);
        println!(
            "cache afterwards: {} bytes in use, {} kept, {} free of {budget}; resident: {after} kB",
            soaked.after.cache_used_bytes, soaked.after.cache_kept_bytes, soaked.after.cache_free_bytes
        );
    }
    std::fs::remove_file(file)?;
    Ok(())
}

/// Resident memory of this process, kB.
fn resident() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
