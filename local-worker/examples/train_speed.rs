//! Tokens a second of training on random tokens, and the share of what large products alone reach on this machine:
//! `train_speed SHAPE ROWS LENGTH [STEPS] [THREADS] [bf16]`. SHAPE is `vocabulary,width,layers,heads,kv_heads,feed_forward`.
//! Prints one line of JSON. `benches/peers/training.sh` runs it beside PyTorch.
#![allow(clippy::print_stdout, reason = "an example that prints figures")]

use local_worker::train::{network::Shape, recipe::Precision, speed::measure};
use std::error::Error;

// Freed memory stays mapped.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [sizes, rows, length, rest @ ..] = arguments.as_slice() else {
        return Err(
            "usage: train_speed VOCABULARY,WIDTH,LAYERS,HEADS,KV_HEADS,FEED_FORWARD ROWS LENGTH [STEPS] [THREADS] [bf16]"
                .into(),
        );
    };
    let sizes: Vec<usize> = sizes.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let [vocabulary, width, layers, heads, kv_heads, feed_forward] = sizes.as_slice() else {
        return Err("the shape has six numbers".into());
    };
    let shape = Shape {
        vocabulary: *vocabulary,
        width: *width,
        layers: *layers,
        heads: *heads,
        kv_heads: *kv_heads,
        head_width: None,
        feed_forward: *feed_forward,
        context: length.parse()?,
        rope_base: 10_000.0,
        norm_epsilon: 1e-5,
        own_output: false,
    };
    let number = |at: usize, otherwise: usize| rest.get(at).map_or(Ok(otherwise), |text| text.parse());
    let (steps, threads) = (number(0, 8)?, number(1, 2)?);
    let precision = if rest.get(2).is_some_and(|word| word == "bf16") { Precision::Bf16 } else { Precision::F32 };
    let speed = measure(&shape, rows.parse()?, length.parse()?, steps, (threads, precision))?;
    println!(
        "{{\"parameters\": {}, \"tokens_per_s\": {:.0}, \"gflops\": {:.0}, \"peak_gflops\": {:.0}, \"share_of_peak\": {:.2}}}",
        shape.parameters(),
        speed.tokens_per_second,
        speed.flops / 1e9,
        speed.peak / 1e9,
        speed.flops / speed.peak
    );
    Ok(())
}
