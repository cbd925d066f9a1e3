//! Files written by candle, read by us; the forward pass against the textbook; damaged files.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::{Value as CandleValue, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use proptest::prelude::*;

use super::tensors::{Loader, Part};
use super::*;
use crate::kernels::Level;

const WIDTH: usize = 256;
const HIDDEN: usize = 512;
const HEADS: usize = 8;
const KEY_HEADS: usize = 2;
const HEAD: usize = 32;
const LAYERS: usize = 2;
const VOCABULARY: usize = 75;
const BASE: f64 = 5000.0;

/// A random model: its file, and its weights as the file can hold them.
struct Model {
    bytes: Vec<u8>,
    weights: HashMap<String, Vec<f32>>,
}

fn noise(seed: u64, count: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * size).collect()
}

fn model(matrices: GgmlDType, down: GgmlDType, tied: bool) -> Model {
    let mut tensors = Vec::new();
    let mut weights = HashMap::new();
    let mut add = |name: &str, shape: &[usize], dtype: GgmlDType, seed: u64| {
        let count = shape.iter().product();
        let values = match shape {
            [_] => noise(seed, count, 0.3).into_iter().map(|x| 1.0 + x).collect(),
            _ => noise(seed, count, 1.7 / (shape[1] as f32).sqrt() * if name.starts_with("token") { 8.0 } else { 1.0 }),
        };
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&tensor, dtype).unwrap();
        let kept = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        weights.insert(name.to_owned(), kept);
        tensors.push((name.to_owned(), tensor));
    };
    add("token_embd.weight", &[VOCABULARY, WIDTH], matrices, 1);
    add("output_norm.weight", &[WIDTH], GgmlDType::F32, 2);
    add("rope_freqs.weight", &[HEAD / 2], GgmlDType::F32, 3);
    if !tied {
        add("output.weight", &[VOCABULARY, WIDTH], matrices, 4);
    }
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let seed = 10 * (layer as u64 + 1);
        add(&name("attn_norm"), &[WIDTH], GgmlDType::F32, seed);
        add(&name("ffn_norm"), &[WIDTH], GgmlDType::F32, seed + 1);
        add(&name("attn_q"), &[HEADS * HEAD, WIDTH], matrices, seed + 2);
        add(&name("attn_k"), &[KEY_HEADS * HEAD, WIDTH], matrices, seed + 3);
        add(&name("attn_v"), &[KEY_HEADS * HEAD, WIDTH], matrices, seed + 4);
        add(&name("attn_output"), &[WIDTH, HEADS * HEAD], matrices, seed + 5);
        add(&name("ffn_gate"), &[HIDDEN, WIDTH], matrices, seed + 6);
        add(&name("ffn_up"), &[HIDDEN, WIDTH], matrices, seed + 7);
        add(&name("ffn_down"), &[WIDTH, HIDDEN], down, seed + 8);
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    let metadata = metadata();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    write(&mut bytes, &metadata, &tensors).unwrap();
    Model { bytes: bytes.into_inner(), weights }
}

fn metadata() -> Vec<(&'static str, CandleValue)> {
    let number = |value: usize| CandleValue::U32(value as u32);
    vec![
        ("general.architecture", CandleValue::String("llama".to_owned())),
        ("llama.block_count", number(LAYERS)),
        ("llama.context_length", number(4096)),
        ("llama.embedding_length", number(WIDTH)),
        ("llama.feed_forward_length", number(HIDDEN)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.head_count_kv", number(KEY_HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", CandleValue::F32(1e-5)),
        ("llama.rope.freq_base", CandleValue::F32(BASE as f32)),
    ]
}

impl Model {
    fn load(&self, level: Level) -> Decoder {
        Decoder::load_for(&Gguf::parse("test", &self.bytes).unwrap(), &LoadOptions::default(), level).unwrap()
    }

    /// The textbook, in double precision: the logits after the last of `tokens`.
    fn textbook(&self, tokens: &[u32]) -> Vec<f64> {
        let weight = |name: &str| &self.weights[name];
        let embedding = weight("token_embd.weight");
        let mut streams: Vec<Vec<f64>> = tokens
            .iter()
            .map(|token| embedding[*token as usize * WIDTH..][..WIDTH].iter().map(|x| f64::from(*x)).collect())
            .collect();
        for layer in 0..LAYERS {
            let part = |part: &str| weight(&format!("blk.{layer}.{part}.weight"));
            let normed: Vec<_> = streams.iter().map(|stream| norm(stream, part("attn_norm"))).collect();
            let project = |name: &str| normed.iter().map(|x| product(part(name), x)).collect::<Vec<_>>();
            let turn = |rows: Vec<Vec<f64>>| {
                rows.into_iter().enumerate().map(|(at, row)| self.turn(row, at)).collect::<Vec<_>>()
            };
            let (queries, keys, values) = (turn(project("attn_q")), turn(project("attn_k")), project("attn_v"));
            for (at, stream) in streams.iter_mut().enumerate() {
                let mut attended = Vec::new();
                for head in 0..HEADS {
                    let theirs = head / (HEADS / KEY_HEADS) * HEAD;
                    let query = &queries[at][head * HEAD..][..HEAD];
                    let score = |key: &Vec<f64>| dot(query, &key[theirs..][..HEAD]) / (HEAD as f64).sqrt();
                    let terms: Vec<f64> = keys[..=at].iter().map(|key| score(key).exp()).collect();
                    let sum: f64 = terms.iter().sum();
                    let value = |d: usize| {
                        terms.iter().zip(&values).map(|(term, value)| term * value[theirs + d]).sum::<f64>() / sum
                    };
                    attended.extend((0..HEAD).map(value));
                }
                add_to(stream, &product(part("attn_output"), &attended));
                let normed = norm(stream, part("ffn_norm"));
                let (gate, up) = (product(part("ffn_gate"), &normed), product(part("ffn_up"), &normed));
                let inner: Vec<f64> =
                    gate.iter().zip(&up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
                add_to(stream, &product(part("ffn_down"), &inner));
            }
        }
        let head = self.weights.get("output.weight").unwrap_or(embedding);
        product(head, &norm(&streams[tokens.len() - 1], weight("output_norm.weight")))
    }

    fn turn(&self, mut row: Vec<f64>, position: usize) -> Vec<f64> {
        for head in row.chunks_mut(HEAD) {
            for pair in 0..HEAD / 2 {
                let frequency =
                    BASE.powf(-2.0 * pair as f64 / HEAD as f64) / f64::from(self.weights["rope_freqs.weight"][pair]);
                let (sine, cosine) = (position as f64 * frequency).sin_cos();
                let (a, b) = (head[2 * pair], head[2 * pair + 1]);
                (head[2 * pair], head[2 * pair + 1]) = (a * cosine - b * sine, a * sine + b * cosine);
            }
        }
        row
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn product(matrix: &[f32], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
}

fn norm(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let root = (dot(x, x) / x.len() as f64 + 1e-5).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x / root * f64::from(*weight)).collect()
}

fn add_to(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn rows(slot: usize, from: usize, tokens: &[u32]) -> Vec<Row> {
    let row = |(at, token): (usize, &u32)| Row { slot, position: from + at, token: *token, wants_logits: true };
    tokens.iter().enumerate().map(row).collect()
}

fn cache(slots: usize) -> (Cache, Scratch) {
    (Cache::new(slots, LAYERS, KEY_HEADS, HEAD), Scratch::default())
}

#[test]
fn every_format_is_read_as_candle_reads_it() {
    use GgmlDType::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    for dtype in [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K] {
        let (rows, cols) = (37, 512);
        let tensor = Tensor::from_vec(noise(5, rows * cols, 2.0), (rows, cols), &Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&tensor, dtype).unwrap();
        let kept = tensor.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let mut bytes = std::io::Cursor::new(Vec::new());
        write(&mut bytes, &[], &[("w", &tensor)]).unwrap();
        let bytes = bytes.into_inner();
        let file = Gguf::parse("test", &bytes).unwrap();
        let loader = Loader::new(&file, None);
        let read = |rows: usize, cols: usize| loader.matrix("w", &Part::whole(rows), cols, false);
        let matrix = read(rows, cols).unwrap();
        let mut values = vec![0.0; cols];
        for (row, kept) in kept.iter().enumerate() {
            matrix.read_row(row, &mut values);
            for (got, want) in values.iter().zip(kept) {
                assert!((got - want).abs() <= 1e-5 * want.abs() + 1e-6, "{dtype:?}: {got} for {want}");
            }
        }
        assert!(read(cols, rows).unwrap_err().to_string().contains("shape"));
        assert!(loader.vector("missing", &Part::whole(3)).unwrap_err().to_string().contains("missing is missing"));
    }
}

#[test]
fn logits_are_those_of_the_textbook_at_every_level() {
    use GgmlDType::{F16, F32, Q4_1, Q4K, Q6K, Q8_0};
    let tokens: Vec<u32> = (0..21).map(|at| (at * 31 + 7) % VOCABULARY as u32).collect();
    for (matrices, down, tied, error) in [
        (F32, F32, true, 2e-5),
        (F16, F16, false, 2e-5),
        (Q8_0, Q8_0, true, 0.03),
        (Q4_1, Q8_0, false, 0.03),
        (Q4K, Q6K, true, 0.03),
    ] {
        let model = model(matrices, down, tied);
        let expected = model.textbook(&tokens);
        for level in Level::available() {
            let llama = model.load(level);
            let (mut cache, mut scratch) = cache(1);
            llama.step(&mut cache, &mut scratch, &rows(0, 0, &tokens[..13]));
            let logits = llama.step(&mut cache, &mut scratch, &rows(0, 13, &tokens[13..]));
            let last = &logits[logits.len() - VOCABULARY..];
            let size = dot(&expected, &expected).sqrt();
            let off =
                last.iter().zip(&expected).map(|(got, want)| (f64::from(*got) - want).powi(2)).sum::<f64>().sqrt();
            assert!(off / size < error, "{matrices:?} {level:?}: off by {}", off / size);
        }
    }
}

#[test]
fn a_model_tells_its_size() {
    let file = model(GgmlDType::Q4K, GgmlDType::Q8_0, true);
    let llama = file.load(Level::detect());
    let matrices = 2 * HEADS * HEAD * WIDTH + 2 * KEY_HEADS * HEAD * WIDTH + 3 * HIDDEN * WIDTH;
    let expected = VOCABULARY * WIDTH + WIDTH + LAYERS * (matrices + 2 * WIDTH);
    assert_eq!(llama.parameters(), expected as u64);
    assert_eq!(llama.quantization(), "Q4_K");
    assert!(llama.bytes() < file.bytes.len() as u64 * 3 / 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever else is computed beside a sequence, and however its prompt is cut, its logits are the same to the bit.
    #[test]
    fn company_changes_nothing(
        lengths in prop::collection::vec(1usize..24, 1..5),
        cuts in prop::collection::vec(1usize..7, 64),
        quantised in any::<bool>(),
    ) {
        let dtype = if quantised { GgmlDType::Q8_0 } else { GgmlDType::F16 };
        let llama = model(dtype, dtype, true).load(Level::detect());
        let tokens: Vec<Vec<u32>> = lengths
            .iter()
            .enumerate()
            .map(|(slot, length)| (0..*length).map(|at| ((slot * 13 + at * 29) % VOCABULARY) as u32).collect())
            .collect();
        let alone: Vec<Vec<f32>> = tokens
            .iter()
            .map(|tokens| {
                let (mut cache, mut scratch) = cache(1);
                let step = |at: usize| llama.step(&mut cache, &mut scratch, &rows(0, at, &tokens[at..at + 1])).to_vec();
                (0..tokens.len()).flat_map(step).collect()
            })
            .collect();
        let (mut cache, mut scratch) = cache(tokens.len());
        let mut done = vec![0; tokens.len()];
        let mut together = vec![Vec::new(); tokens.len()];
        let mut cut = cuts.iter().cycle();
        while done.iter().zip(&tokens).any(|(done, tokens)| *done < tokens.len()) {
            let mut step = Vec::new();
            for (slot, tokens) in tokens.iter().enumerate() {
                let until = tokens.len().min(done[slot] + cut.next().unwrap());
                step.extend(rows(slot, done[slot], &tokens[done[slot]..until]));
                done[slot] = until;
            }
            let logits = llama.step(&mut cache, &mut scratch, &step);
            for (row, logits) in step.iter().zip(logits.chunks(VOCABULARY)) {
                together[row.slot].extend_from_slice(logits);
            }
        }
        prop_assert!(alone == together);
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_files_are_refused_or_load_but_never_panic(places in prop::collection::vec((any::<u32>(), any::<u8>()), 1..4)) {
        let sound = crate::testing::Script::default().gguf();
        let head = sound.windows(8).position(|part| part == b"ffn_down").unwrap() + 64;
        let mut bytes = sound;
        for (place, byte) in places {
            bytes[place as usize % head] = byte;
        }
        let _either_is_fine = Gguf::parse("damaged", &bytes).and_then(|file| {
            let model = Decoder::load_for(&file, &LoadOptions::default(), Level::Scalar)?;
            crate::tokenizer::Tokenizer::load(&file, model.shape().vocabulary).map(drop)
        });
    }
}

#[test]
fn faults_are_named() {
    let sound = crate::testing::Script::default().gguf();
    let load = |bytes: &[u8]| Gguf::parse("bad.gguf", bytes).and_then(|file| Decoder::load(&file)).map(drop);
    load(&sound).unwrap();
    let check = |what: &str, bytes: &[u8], expected: &str| {
        let error = load(bytes).unwrap_err().to_string();
        assert!(error.starts_with("bad.gguf: ") && error.contains(expected), "{what}: {error}");
    };
    let place = |text: &str| sound.windows(text.len()).position(|part| part == text.as_bytes()).unwrap() + text.len();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = sound.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let huge = u64::MAX.to_le_bytes();
    check("empty", b"", "cut off");
    check("no GGUF", b"PK\x03\x04 something else", "not a GGUF file");
    check("version", &with(4, &9u32.to_le_bytes()), "version 9");
    check("big endian", &with(4, &[0, 0, 0, 3]), "version");
    check("tensor count", &with(8, &huge), "18446744073709551615 tensors claimed");
    check("key count", &with(16, &(1u64 << 40).to_le_bytes()), "metadata keys claimed");
    check("key length", &with(24, &huge), "bytes of text claimed");
    check(
        "value type",
        &with(place("general.architecture"), &77u32.to_le_bytes()),
        "general.architecture: value type 77",
    );
    check("architecture", &with(place("general.architecture") + 12, b"other"), "the architecture is other");
    check(
        "list length",
        &with(place("tokenizer.ggml.tokens") + 8, &huge),
        "tokenizer.ggml.tokens: 18446744073709551615 list entries",
    );
    check("layers", &with(place("llama.block_count") + 4, &0u32.to_le_bytes()), "llama.block_count is 0");
    check(
        "more layers",
        &with(place("llama.block_count") + 4, &2u32.to_le_bytes()),
        "blk.1.attn_norm.weight is missing",
    );
    check("heads", &with(place("llama.attention.head_count") + 4, &3u32.to_le_bytes()), "3 heads");
    check("width", &with(place("llama.embedding_length") + 4, &64u32.to_le_bytes()), "token_embd.weight has the shape");
    check("tensor type", &with(place("blk.0.ffn_up.weight") + 4 + 16, &99u32.to_le_bytes()), "element type 99");
    check("tensor dimensions", &with(place("blk.0.ffn_up.weight"), &9u32.to_le_bytes()), "9 dimensions");
    check("tensor size", &with(place("blk.0.ffn_up.weight") + 4, &huge), "impossible dimensions");
    check("tensor offset", &with(place("blk.0.ffn_up.weight") + 4 + 16 + 4, &huge), "blk.0.ffn_up.weight should take");
    check(
        "not finite",
        &with(sound.len() - 4, &f32::NAN.to_le_bytes()),
        "ffn_down.weight holds a number that is not finite",
    );
    for length in (0..sound.len()).step_by(997).chain([sound.len() - 1]) {
        assert!(load(&sound[..length]).is_err(), "cut off at {length}");
    }
}
