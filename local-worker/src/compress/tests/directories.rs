//! Directories turned into GGUF: the tensors beside the directory's own forward pass, which is checked against
//! `transformers` elsewhere; the vocabulary beside the `tokenizers` crate.

use crate::compress::{CompressError, Weights};
use crate::engine::{ChatMessage, Event, GenerateRequest, ModelSource, Worker, WorkerConfig};
use crate::model::{Cache, Decoder, Directory, Gguf, LoadOptions, Row, Scratch};
use crate::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A byte-level vocabulary with a few merges, a control token and one that stands as it is.
fn tokenizer(pre_tokenizer: &Value) -> Value {
    let mut words: Vec<String> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().map(String::from).collect();
    words.sort();
    words.truncate(60);
    for word in ["Ġ", "h", "e", "l", "o", "1", "2", "he", "ll", "hell", "hello", "Ġhello", "12"] {
        if !words.contains(&word.to_owned()) {
            words.push(word.to_owned());
        }
    }
    // Control tokens lie in the vocabulary as well, as in published files: the `tokenizers` crate numbers others anew.
    words.splice(0..0, ["<|begin|>", "<|end|>"].map(str::to_owned));
    let vocab: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| (word.clone(), json!(id))).collect();
    let own = words.len();
    let added = |id: usize, content: &str, special: bool| {
        json!({
            "id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        })
    };
    json!({
        "version": "1.0",
        "added_tokens": [added(0, "<|begin|>", true), added(1, "<|end|>", true), added(own, "@@", false)],
        "pre_tokenizer": pre_tokenizer,
        "decoder": byte_level(),
        "post_processor": {
            "type": "TemplateProcessing", "pair": [], "special_tokens": { "<|begin|>": { "id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"] } },
            "single": [{ "SpecialToken": { "id": "<|begin|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        },
        "model": {
            "type": "BPE", "vocab": vocab,
            "merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["Ġ", "hello"], ["1", "2"]],
        },
    })
}

fn byte_level() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true })
}

fn smollm() -> Value {
    json!({ "type": "Sequence", "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level()] })
}

/// A fixture's directory with a tokenizer.
fn folder(case: &str, tokenizer: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(case);
    for entry in std::fs::read_dir(fixture).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "config.json" || name.contains("safetensors") {
            std::fs::copy(entry.path(), folder.path().join(&name)).unwrap();
        }
    }
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

fn logits(model: &Decoder) -> Vec<f32> {
    let shape = model.shape();
    let mut cache = Cache::new(1, shape.layers, shape.key_heads, shape.head);
    let row = |position| Row { slot: 0, position, token: (position * 7 % 90) as u32, wants_logits: true };
    let rows: Vec<Row> = (0..40).map(row).collect();
    model.step(&mut cache, &mut Scratch::default(), &rows).to_vec()
}

fn read(folder: &Path) -> Result<Weights, CompressError> {
    Weights::read(&ModelSource::Path(folder.to_owned()))
}

fn write(folder: &Path) -> PathBuf {
    let path = folder.join("out.gguf");
    read(folder).unwrap().convert("f32".parse().unwrap()).unwrap().write(&path).unwrap();
    path
}

#[test]
fn tensors_compute_what_the_directory_does() {
    for case in ["llama", "smollm", "phi2", "phi3", "phi4mini", "gemma2", "gemma3", "qwen2", "qwen3"] {
        let folder = folder(case, &tokenizer(&smollm()));
        let bytes = std::fs::read(write(folder.path())).unwrap();
        let ours = logits(&Decoder::load(&Gguf::parse(case, &bytes).unwrap()).unwrap());
        let directory = Directory::open(folder.path()).unwrap();
        let theirs = logits(&Decoder::load_directory(&directory, &LoadOptions::default()).unwrap());
        let off = ours.iter().zip(&theirs).map(|(one, other)| (one - other).abs()).fold(0.0f32, f32::max);
        assert!(ours.len() == theirs.len() && off < 2e-4, "{case}: {off}");
    }
}

#[test]
fn tokens_are_those_of_the_tokenizers_crate() {
    for rules in [smollm(), byte_level()] {
        let file = tokenizer(&rules);
        let folder = folder("smollm", &file);
        std::fs::write(
            folder.path().join("tokenizer_config.json"),
            json!({ "bos_token": "<|begin|>", "eos_token": { "content": "<|end|>" }, "chat_template": "{{ bos_token }}{{ messages[0].content }}" })
                .to_string(),
        )
        .unwrap();
        let bytes = std::fs::read(write(folder.path())).unwrap();
        let gguf = Gguf::parse("out", &bytes).unwrap();
        let ours = Tokenizer::load(&gguf, 96).unwrap();
        let theirs = tokenizers::Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
        for text in ["hello 12 hello", "he@@ll 121"] {
            let expected = theirs.encode(text, false).unwrap();
            assert_eq!(ours.encode(text).unwrap(), expected.get_ids(), "{text}");
        }
        assert_eq!((ours.begin(), ours.end(), ours.names()), (Some(0), Some(1), ("<|begin|>", "<|end|>")));
        assert_eq!(gguf.text("tokenizer.chat_template"), Some("{{ bos_token }}{{ messages[0].content }}"));
        let answer = |path: PathBuf| {
            let worker = Worker::start("made", ModelSource::Path(path), WorkerConfig::default()).unwrap();
            assert!(worker.info().has_chat_template);
            let turn = ChatMessage { role: "user".to_owned(), content: "hello".to_owned() };
            let request = GenerateRequest { max_tokens: Some(8), ..GenerateRequest::greedy(vec![turn]) };
            let mut answer = worker.submit(request).unwrap();
            std::iter::from_fn(|| answer.blocking_next())
                .filter_map(|event| if let Event::Token { id, .. } = event { Some(id) } else { None })
                .collect::<Vec<u32>>()
        };
        let directory = Directory::open(folder.path()).unwrap();
        let served = Tokenizer::load_directory(&directory, 96).unwrap();
        let ends = |tokenizer: &Tokenizer| (0..96).filter(|id| tokenizer.ends(*id)).collect::<Vec<u32>>();
        // What config.json says ends answers, too.
        assert_eq!((ends(&served), ends(&ours)), (vec![1, 2], vec![1, 2]));
        assert_eq!((served.begin(), served.end(), served.names()), (ours.begin(), ours.end(), ours.names()));
        assert_eq!(answer(folder.path().to_owned()), answer(folder.path().join("out.gguf")));
    }
}

#[test]
fn directories_that_cannot_be_turned_are_refused_by_file() {
    let refusal = |folder: &tempfile::TempDir| read(folder.path()).unwrap_err().to_string();
    let sound = tokenizer(&smollm());
    let cases = [
        ("/model/type", json!("Unigram"), "its model is Unigram"),
        ("/pre_tokenizer/pretokenizers/1/add_prefix_space", json!(true), "its pre-tokenizer (Digits, ByteLevel)"),
        ("/added_tokens/0/id", json!(7), "token \"<|begin|>\" has the id 7 among added_tokens, and is read with 0"),
        ("/model/vocab/h", json!(500), "none of the model's 96"),
        ("/model/merges/0", json!(7), "7 is no merge"),
    ];
    for (place, value, expected) in cases {
        let mut broken = sound.clone();
        *broken.pointer_mut(place).unwrap() = value;
        let told = refusal(&folder("smollm", &broken));
        assert!(told.contains("tokenizer.json") && told.contains(expected), "{told}");
    }
    for (case, expected) in [("qwen2window", "a sliding window"), ("gemma2scalar", "the scale of its scores")] {
        let told = refusal(&folder(case, &sound));
        assert!(told.contains("config.json") && told.contains(expected), "{told}");
    }
    let without = folder("smollm", &sound);
    std::fs::remove_file(without.path().join("tokenizer.json")).unwrap();
    assert!(refusal(&without).contains("tokenizer.json"));
}
