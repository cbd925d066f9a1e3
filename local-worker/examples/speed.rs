//! Tokens a second of a GGUF model on one thread: `cargo run --release -p local-worker --example speed -- MODEL.gguf`.
//!
//! The same work as `tests/make_real_fixtures.py --speed` does with llama.cpp: a prompt of 256 random tokens, then 64
//! tokens one by one after a prompt of 8; and 64 steps of eight sequences together.
#![allow(clippy::print_stdout, reason = "an example that prints figures")]

use std::time::Instant;

use local_worker::model::{Cache, Decoder, Gguf, Row, Scratch};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give the path of a GGUF file")?;
    let start = Instant::now();
    let bytes = std::fs::read(&path)?;
    let model = Decoder::load(&Gguf::parse(&path, &bytes)?)?;
    let shape = model.shape().clone();
    let (parameters, size) = (model.parameters() as f64 / 1e6, model.bytes() as f64 / 1e6);
    println!(
        "{parameters:.1} M parameters, {size:.0} MB, {} kernels, loaded in {:?}",
        model.kernels(),
        start.elapsed()
    );
    let token = |index: usize| (index as u32).wrapping_mul(2_654_435_761) % shape.vocabulary as u32;
    let row = |slot, position, wants_logits| Row { slot, position, token: token(position + slot), wants_logits };
    let (mut cache, mut scratch) = (Cache::new(8, shape.layers, shape.key_heads, shape.head), Scratch::default());
    for _ in 0..3 {
        let prompt: Vec<Row> = (0..256).map(|position| row(0, position, position == 255)).collect();
        let start = Instant::now();
        for chunk in prompt.chunks(128) {
            model.step(&mut cache, &mut scratch, chunk);
        }
        let prefill = 256.0 / start.elapsed().as_secs_f64();
        let start = Instant::now();
        for position in 8..72 {
            model.step(&mut cache, &mut scratch, &[row(0, position, true)]);
        }
        let decode = 64.0 / start.elapsed().as_secs_f64();
        let start = Instant::now();
        for position in 0..64 {
            let rows: Vec<Row> = (0..8).map(|slot| row(slot, position, true)).collect();
            model.step(&mut cache, &mut scratch, &rows);
        }
        let eight = 512.0 / start.elapsed().as_secs_f64();
        println!("prefill {prefill:.0}/s, decode {decode:.1}/s, eight sequences {eight:.0}/s");
    }
    Ok(())
}
