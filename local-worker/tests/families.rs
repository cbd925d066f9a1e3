//! Tiny random checkpoints of true architectures, from directories and from GGUF, beside what `transformers` and llama.cpp
//! make of them. `make_family_fixtures.py` writes the fixtures and says what is in them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and tell what it measured")]

use std::path::{Path, PathBuf};

use local_worker::model::{Cache, Decoder, Directory, Gguf, LoadOptions, Quantize, Row, Scratch};
use serde_json::Value;

/// Distance from transformers' logits, which are in single precision like these.
const CLOSE: f32 = 1e-3;
/// Distance of the two highest logits up to which either may win.
const TIE: f64 = 2e-3;
/// Distance from llama.cpp's logits: its GELU is a table of half precision, and it is up to 0.0072 from transformers here.
const CLOSE_TO_PEER: f32 = 0.01;

const CASES: [&str; 11] = [
    "llama",
    "smollm",
    "phi2",
    "phi3",
    "phi4mini",
    "gemma2",
    "gemma2scalar",
    "gemma3",
    "qwen2",
    "qwen2window",
    "qwen3",
];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(case)
}

fn integers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// One prompt of a case, with what was recorded.
struct Run {
    prompt: Vec<u32>,
    first: usize,
    options: LoadOptions,
    greedy: Vec<u32>,
    gaps: Vec<f64>,
    logits: Vec<f32>,
    /// Recorded rows that llama.cpp's were compared with, and its last.
    peer: Option<(usize, Vec<f64>)>,
}

fn runs(case: &str) -> Vec<Run> {
    let expected: Value = serde_json::from_slice(&std::fs::read(folder(case).join("expected.json")).unwrap()).unwrap();
    let logits = std::fs::read(folder(case).join("logits.f32")).unwrap();
    let mut logits = logits.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four));
    let vocabulary = expected["vocabulary"].as_u64().unwrap() as usize;
    let read = |run: &Value| {
        let (prompt, first) = (integers(&run["prompt"]), run["first"].as_u64().unwrap() as usize);
        let rows = prompt.len() - first;
        let positions = run["llama_cpp_positions"].as_u64().map(|positions| positions as usize);
        Run {
            options: LoadOptions {
                context_limit: run["context_limit"].as_u64().map(|limit| limit as usize),
                quantize: None,
            },
            greedy: integers(&run["greedy"]),
            gaps: floats(&run["gaps"]),
            logits: logits.by_ref().take(rows * vocabulary).collect(),
            peer: positions.map(|positions| (positions, floats(&run["llama_cpp_last"]))),
            prompt,
            first,
        }
    };
    let runs = expected["runs"].as_array().unwrap().iter().map(read).collect();
    assert!(logits.next().is_none(), "{case}: logits are left over");
    runs
}

fn rows(from: usize, tokens: &[u32], wants_logits: impl Fn(usize) -> bool) -> Vec<Row> {
    let row = |(at, token): (usize, &u32)| Row {
        slot: 0,
        position: from + at,
        token: *token,
        wants_logits: wants_logits(from + at),
    };
    tokens.iter().enumerate().map(row).collect()
}

fn memory(model: &Decoder) -> (Cache, Scratch) {
    let shape = model.shape();
    (Cache::new(1, shape.layers, shape.key_heads, shape.head), Scratch::default())
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Logits of a prompt, read in pieces of `chunk` tokens, from position `first` on.
fn teacher_forced(model: &Decoder, run: &Run, chunk: usize) -> Vec<f32> {
    let (mut cache, mut scratch) = memory(model);
    let mut logits = Vec::new();
    for (number, tokens) in run.prompt.chunks(chunk).enumerate() {
        let rows = rows(number * chunk, tokens, |position| position >= run.first);
        logits.extend_from_slice(model.step(&mut cache, &mut scratch, &rows));
    }
    logits
}

/// Checks the greedy tokens one by one, going on with the recorded ones; returns how many differ at ties.
fn check_greedy(case: &str, model: &Decoder, run: &Run) -> usize {
    let (mut cache, mut scratch) = memory(model);
    let last = run.prompt.len() - 1;
    let mut next = rows(0, &run.prompt, |position| position == last);
    let mut ties = 0;
    for (at, token) in run.greedy.iter().enumerate() {
        let logits = model.step(&mut cache, &mut scratch, &next);
        let own = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
        assert!(own == *token || run.gaps[at] <= TIE, "{case}: token {at} is {own} for {token}, gap {}", run.gaps[at]);
        ties += usize::from(own != *token);
        next = rows(run.prompt.len() + at, &[*token], |_| true);
    }
    ties
}

fn check(case: &str, kind: &str, load: impl Fn(&LoadOptions) -> Decoder) {
    for run in runs(case) {
        let model = load(&run.options);
        assert_eq!(run.greedy.len(), 64);
        let whole = teacher_forced(&model, &run, usize::MAX);
        let off = farthest(&whole, &run.logits);
        assert!(off < CLOSE, "{case} from {kind}: logits off by {off}");
        assert!(whole == teacher_forced(&model, &run, 7), "{case} from {kind}: read in pieces it differs");
        let ties = check_greedy(case, &model, &run);
        println!("{case} from {kind}: logits off by {off:.1e} of 1e-3, {ties} of 64 greedy tokens differ at ties");
    }
}

#[test]
fn directories_give_the_logits_and_tokens_of_transformers() {
    for case in CASES {
        check(case, "a directory", |options| {
            Decoder::load_directory(&Directory::open(&folder(case)).unwrap(), options).unwrap()
        });
    }
}

#[test]
fn gguf_files_give_the_same_and_those_of_llama_cpp() {
    for case in CASES {
        let path = folder(case).join("model.gguf");
        if !path.exists() {
            // What GGUF has no words for.
            assert!(["gemma2scalar", "qwen2window"].contains(&case), "{case} has no GGUF");
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let file = Gguf::parse(case, &bytes).unwrap();
        check(case, "GGUF", |options| Decoder::load_with(&file, options).unwrap());
        for run in runs(case) {
            let (compared, want) = run.peer.as_ref().unwrap();
            let model = Decoder::load_with(&file, &run.options).unwrap();
            let vocabulary = model.shape().vocabulary;
            let logits = teacher_forced(&model, &run, usize::MAX);
            let own = &logits[(compared - 1) * vocabulary..][..vocabulary];
            let want: Vec<f32> = want.iter().map(|logit| *logit as f32).collect();
            let off = farthest(own, &want);
            assert!(off < CLOSE_TO_PEER, "{case}: {off} from llama.cpp");
        }
    }
}

#[test]
fn configurations_of_today_and_of_published_checkpoints_say_the_same() {
    for case in CASES {
        let old = Directory::open(&folder(case)).unwrap();
        let work = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(folder(case)).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            let name = if name == "modern.json" { "config.json".into() } else { name };
            if name != "config.json" || entry.file_name() == "modern.json" {
                std::fs::copy(entry.path(), work.path().join(name)).unwrap();
            }
        }
        let new = Directory::open(work.path()).unwrap();
        let load = |directory: &Directory| Decoder::load_directory(directory, &LoadOptions::default()).unwrap();
        assert_eq!(load(&old).shape(), load(&new).shape(), "{case}");
        assert_eq!(load(&old).parameters(), load(&new).parameters(), "{case}");
    }
}

#[test]
fn weights_are_served_as_they_are_or_quantised_at_load() {
    let check = |case: &str, quantize: Option<Quantize>, format: &str, most: f32| {
        let directory = Directory::open(&folder(case)).unwrap();
        let model = Decoder::load_directory(&directory, &LoadOptions { quantize, context_limit: None }).unwrap();
        assert_eq!(model.quantization(), format, "{case}");
        let run = &runs(case)[0];
        let logits = teacher_forced(&model, run, usize::MAX);
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>();
        let off = square(&mut logits.iter().zip(&run.logits).map(|(a, b)| a - b));
        let off = (off / square(&mut run.logits.iter().copied())).sqrt();
        println!("{case} in {format}: {off:.4} off");
        assert!(off < most && (quantize.is_none() || off > 0.0), "{case} {format}: {off}");
        model.bytes()
    };
    let brain = check("qwen3", None, "BF16", 1e-4);
    let eight = check("qwen3", Some(Quantize::Q8_0), "Q8_0", 0.05);
    let four = check("qwen3", Some(Quantize::Q4_0), "Q4_0", 0.5);
    // Rows are no multiples of 256, so another format takes the place.
    let wide = check("qwen3", Some(Quantize::Q4_K), "Q5_0", 0.3);
    assert!(four < wide && wide <= eight && eight < brain, "{four} {wide} {eight} {brain}");
    check("smollm", None, "F16", 1e-4);
    check("gemma2scalar", None, "F32", 1e-4);
    // 42 is no multiple of 32: left as it is.
    check("gemma3", Some(Quantize::Q8_0), "BF16", 1e-4);
}

/// Changes one value of a copy of a case's `config.json`, or drops it, and loads that.
fn with_config(case: &str, change: impl Fn(&mut serde_json::Map<String, Value>)) -> String {
    let work = copy(case);
    let path = work.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    std::fs::write(&path, config.to_string()).unwrap();
    fault(work.path())
}

fn copy(case: &str) -> tempfile::TempDir {
    let work = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(case)).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), work.path().join(entry.file_name())).unwrap();
    }
    work
}

fn fault(path: &Path) -> String {
    let loaded = Directory::open(path)
        .and_then(|directory| Decoder::load_directory(&directory, &LoadOptions::default()).map(drop));
    loaded.unwrap_err().to_string()
}

#[test]
fn faults_of_configurations_are_named() {
    let set = |case: &str, key: &str, value: Value, expected: &str| {
        let error = with_config(case, |config| drop(config.insert(key.to_owned(), value.clone())));
        assert!(error.contains(expected), "{case} with {key} {value}: {error}");
    };
    let drop_key = |case: &str, key: &str| {
        let error = with_config(case, |config| drop(config.remove(key)));
        assert!(error.contains("config.json: ") && error.contains(key), "{case} without {key}: {error}");
    };
    drop_key("llama", "model_type");
    drop_key("llama", "hidden_size");
    drop_key("phi2", "partial_rotary_factor");
    drop_key("phi3", "rms_norm_eps");
    drop_key("gemma2", "sliding_window");
    drop_key("gemma3", "query_pre_attn_scalar");
    set("llama", "model_type", "mamba".into(), "model_type is mamba; this build runs llama, phi, phi3");
    set("llama", "vocab_size", 96.into(), "embed_tokens.weight has the shape [97, 42], config.json asks for [96, 42]");
    set("llama", "num_hidden_layers", 2.into(), "model.layers.2.");
    set("llama", "num_hidden_layers", 4.into(), "model.layers.3.input_layernorm.weight is missing");
    set("llama", "num_hidden_layers", (-1).into(), "num_hidden_layers is missing or of another type");
    set("llama", "num_attention_heads", 5.into(), "do not fit");
    set("llama", "head_dim", 0.into(), "head_dim is 0");
    set("llama", "hidden_act", "relu".into(), "hidden_act is relu");
    set("llama", "rope_scaling", serde_json::json!({"rope_type": "yarn"}), "rope scaling yarn is not supported");
    set("llama", "rope_scaling", serde_json::json!({"rope_type": "llama3"}), "rope_scaling.factor is missing");
    set("llama", "rope_theta", 0.into(), "rope_theta is 0");
    set("llama", "attention_bias", true.into(), "self_attn.q_proj.bias is missing");
    set("llama", "tie_word_embeddings", false.into(), "lm_head.weight is missing");
    set("smollm", "attention_bias", false.into(), "self_attn.k_proj.bias has no place");
    set("smollm", "rms_norm_eps", 3.into(), "rms_norm_eps is 3");
    set("phi2", "qk_layernorm", true.into(), "qk_layernorm is on");
    set("phi2", "partial_rotary_factor", 1.5.into(), "partial_rotary_factor 1.5");
    set("phi4mini", "partial_rotary_factor", 0.5.into(), "rope_scaling.long_factor is not 6 factors");
    set("gemma2", "hidden_activation", "gelu".into(), "hidden_activation is gelu");
    set("gemma2", "sliding_window", 0.into(), "sliding_window is 0");
    set("gemma2", "final_logit_softcapping", (-1.0).into(), "final_logit_softcapping is -1");
    set("gemma3", "layer_types", serde_json::json!(["full_attention"]), "layer_types has 1 entries for 7 layers");
    set("gemma3", "use_bidirectional_attention", true.into(), "use_bidirectional_attention is on");
}

#[test]
fn faults_of_weights_are_named() {
    let check = |error: &str, expected: &str| assert!(error.contains(expected), "{error}");
    let work = copy("llama");
    let shard = |number: usize| work.path().join(format!("model-0000{number}-of-00003.safetensors"));
    let bytes = std::fs::read(shard(2)).unwrap();
    for length in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(shard(2), &bytes[..length]).unwrap();
        let error = fault(work.path());
        check(&error, "model-00002-of-00003.safetensors: ");
        check(&error, "cut off");
    }
    let with = |from: &str, to: &str| {
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        std::fs::write(shard(2), &bytes).unwrap();
        fault(work.path())
    };
    check(&with("\"BF16\"", "\"F8E4\""), "has the element type F8E4; F32, F16 and BF16 are supported");
    check(&with("\"BF16\"", "\"F32\" "), "lies in");
    check(&with("data_offsets", "data_offsetz"), "its entry is unsound");
    check(&with("{", "("), "its head is no JSON");
    std::fs::write(shard(2), [&(1u64 << 40).to_le_bytes()[..], &bytes[8..]].concat()).unwrap();
    check(&fault(work.path()), "this is not a safetensors file");
    let mut poisoned = bytes.clone();
    let end = poisoned.len();
    poisoned[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(shard(2), &poisoned).unwrap();
    check(&fault(work.path()), "holds a number that is not finite");
    std::fs::remove_file(shard(2)).unwrap();
    check(&fault(work.path()), "model-00002-of-00003.safetensors: ");
    std::fs::copy(shard(1), shard(2)).unwrap();
    check(&fault(work.path()), "is in another file of the directory too");
    let index = work.path().join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"a": "../elsewhere.safetensors"}}"#).unwrap();
    check(&fault(work.path()), "../elsewhere.safetensors");
    std::fs::write(&index, "[]").unwrap();
    check(&fault(work.path()), "model.safetensors.index.json: is no index of tensors");
    std::fs::remove_file(&index).unwrap();
    check(&fault(work.path()), "model.safetensors: ");
    std::fs::write(work.path().join("config.json"), "{").unwrap();
    check(&fault(work.path()), "config.json: is no JSON");
    std::fs::remove_file(work.path().join("config.json")).unwrap();
    check(&fault(work.path()), "config.json: ");
}
