//! Every family served through the engine, from a directory as hubs have them and from the GGUF file made of it: the prompt is
//! what `transformers` makes of the conversation, the answer what the decoder alone writes, and it keeps to a form.
//!
//! The models are the tiny ones of `families.rs` with a larger vocabulary; the vocabularies those of
//! `make_tokenizer_fixtures.py`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and tell what it measured")]

mod asking;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use local_worker::compress::Weights;
use local_worker::model::{Cache, CacheFormat, Decoder, Directory, Inspection, LoadOptions, Row, Scratch};
use local_worker::tokenizer::{TextStream, Tokenizer};
use local_worker::{ChatMessage, Constraint, FinishReason, GenerateRequest, ModelSource, Worker, WorkerConfig};
use serde_json::{Value, json};

use asking::answer;

/// Rows of the widened embeddings.
const VOCABULARY: usize = 960;

/// A model, the vocabulary it is served with, and whether GGUF has words for it.
const CASES: [(&str, &str, bool); 12] = [
    ("llama", "bytes_llama3", true),
    ("llama", "pieces_llama", false),
    ("smollm", "bytes_smollm", true),
    ("phi2", "bytes_codegen", true),
    ("phi3", "pieces_phi3", true),
    ("phi4mini", "bytes_gpt4o", true),
    ("gemma2", "pieces_gemma", true),
    ("gemma2scalar", "pieces_gemma", false),
    ("gemma3", "pieces_gemma", true),
    ("qwen2", "bytes_qwen", true),
    ("qwen2window", "bytes_qwen", false),
    ("qwen3", "bytes_qwen", true),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn parse(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn tensors(folder: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let head = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let places: Value = serde_json::from_slice(&bytes[8..8 + head]).unwrap();
        for (name, place) in places.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
            let numbers = |key: &str| -> Vec<usize> {
                place[key].as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as usize).collect()
            };
            let range = numbers("data_offsets");
            let data = bytes[8 + head + range[0]..8 + head + range[1]].to_vec();
            tensors.insert(name.clone(), (place["dtype"].as_str().unwrap().to_owned(), numbers("shape"), data));
        }
    }
    tensors
}

fn write(path: &Path, tensors: &Tensors) {
    let (mut head, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (kind, shape, bytes)) in tensors {
        let range = [data.len(), data.len() + bytes.len()];
        head.insert(name.clone(), json!({ "dtype": kind, "shape": shape, "data_offsets": range }));
        data.extend_from_slice(bytes);
    }
    let head = serde_json::to_vec(&head).unwrap();
    std::fs::write(path, [&(head.len() as u64).to_le_bytes()[..], &head, &data].concat()).unwrap();
}

/// A directory with the model of `families/CASE` for `VOCABULARY` tokens, and the tokenizer of `tokenizers/KIND`.
fn directory(case: &str, kind: &str) -> tempfile::TempDir {
    let (work, source) = (tempfile::tempdir().unwrap(), fixtures().join("families").join(case));
    let mut config = parse(&source.join("config.json"));
    let settings = config.as_object_mut().unwrap();
    settings.insert("vocab_size".to_owned(), VOCABULARY.into());
    ["bos_token_id", "eos_token_id", "pad_token_id"].iter().for_each(|key| drop(settings.remove(*key)));
    std::fs::write(work.path().join("config.json"), config.to_string()).unwrap();
    let mut tensors = tensors(&source);
    let mut state = 7u32;
    for name in ["model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"] {
        let Some((kind, shape, bytes)) = tensors.get_mut(name) else { continue };
        shape[0] = VOCABULARY;
        let size = if case.starts_with("gemma") { 0.2 } else { 0.8 };
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Of few bits, so that f16 holds it too.
            ((state >> 22) as f32 / 512.0 - 1.0) * size
        };
        *bytes = (0..shape.iter().product()).flat_map(|_| next().to_le_bytes()).collect();
        *kind = "F32".to_owned();
    }
    write(&work.path().join("model.safetensors"), &tensors);
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixtures().join("tokenizers").join(kind).join(file), work.path().join(file)).unwrap();
    }
    work
}

struct Chat {
    messages: Vec<ChatMessage>,
    tokens: Vec<u32>,
}

fn chats(kind: &str) -> Vec<Chat> {
    let expected = parse(&fixtures().join("tokenizers").join(kind).join("expected.json"));
    let text = |turn: &Value, key: &str| turn[key].as_str().unwrap().to_owned();
    let message = |turn: &Value| ChatMessage { role: text(turn, "role"), content: text(turn, "content") };
    let chat = |case: &Value| Chat {
        messages: case["messages"].as_array().unwrap().iter().map(message).collect(),
        tokens: case["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect(),
    };
    expected["chats"].as_array().unwrap().iter().map(chat).collect()
}

fn greedy(model: &Decoder, tokenizer: &Tokenizer, prompt: &[u32], count: usize) -> Vec<u32> {
    let shape = model.shape();
    let (mut cache, mut scratch) = (Cache::new(1, shape.layers, shape.key_heads, shape.head), Scratch::default());
    let (mut tokens, mut answer) = (prompt.to_vec(), Vec::new());
    let mut read = 0;
    while answer.len() < count {
        let row =
            |position| Row { slot: 0, position, token: tokens[position], wants_logits: position + 1 == tokens.len() };
        let rows: Vec<Row> = (read..tokens.len()).map(row).collect();
        read = tokens.len();
        let logits = &model.step(&mut cache, &mut scratch, &rows)[..tokenizer.len().min(shape.vocabulary)];
        let best = (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
        answer.push(best);
        tokens.push(best);
        if tokenizer.ends(best) {
            break;
        }
    }
    answer
}

/// What tokens say, as `transformers` decodes an answer.
fn spoken(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let mut stream = TextStream::default();
    let text: String = tokens.iter().map(|token| stream.push(tokenizer.bytes(*token))).collect();
    let text = text + &stream.finish();
    text.strip_prefix(' ').filter(|_| tokenizer.drops_first_space()).map(str::to_owned).unwrap_or(text)
}

fn check_served(what: &str, path: &Path, chats: &[Chat], expected: &[Vec<u32>], tokenizer: &Tokenizer) {
    let cache_format = CacheFormat::Single;
    let config = WorkerConfig { context_limit: Some(200), cache_format, ..WorkerConfig::default() };
    let worker = Worker::start("made", ModelSource::Path(path.to_owned()), config).unwrap();
    for (chat, want) in chats.iter().zip(expected) {
        let request = GenerateRequest { max_tokens: Some(16), ..GenerateRequest::greedy(chat.messages.clone()) };
        let (prompt, tokens, text, reason) = answer(&worker, request);
        assert_eq!(prompt as usize, chat.tokens.len(), "{what}: {:?}", chat.messages);
        assert_eq!(&tokens, want, "{what}: {:?}", chat.messages);
        assert_eq!(text, spoken(tokenizer, want), "{what}");
        let ended = tokens.last().is_some_and(|token| tokenizer.ends(*token));
        assert_eq!(reason, if ended { FinishReason::Stop } else { FinishReason::Length }, "{what}");
    }
    let constrained = |constraint: Constraint| {
        let constraint = Some(constraint);
        let messages = chats[0].messages.clone();
        let request = GenerateRequest { constraint, max_tokens: Some(60), ..GenerateRequest::greedy(messages) };
        answer(&worker, request).2
    };
    let choices = ["yes", "d\u{e9}j\u{e0} \u{1f600}", "\u{5bb6}"].map(str::to_owned).to_vec();
    assert!(choices.contains(&constrained(Constraint::Choices(choices.clone()))), "{what}");
    let number = constrained(Constraint::Regex("[0-9]{3}-[a-c]{2}".to_owned()));
    assert!(number.len() == 6 && number.as_bytes()[3] == b'-', "{what}: {number}");
    let schema = r#"{"type":"object","properties":{"ok":{"type":"boolean"},"n":{"enum":[1,2]}},"required":["ok","n"],"additionalProperties":false}"#;
    let object: Value = serde_json::from_str(&constrained(Constraint::JsonSchema(schema.to_owned()))).unwrap();
    assert!(object["ok"].is_boolean() && object["n"].as_u64().is_some_and(|n| n == 1 || n == 2), "{what}: {object}");
    assert!(worker.shutdown(Duration::from_secs(60)));
}

#[test]
fn every_family_is_served_from_a_directory_and_from_gguf() {
    for (case, kind, has_gguf) in CASES {
        let (folder, chats) = (directory(case, kind), chats(kind));
        let opened = Directory::open(folder.path()).unwrap();
        let options = LoadOptions { context_limit: Some(200), quantize: None };
        let model = Decoder::load_directory(&opened, &options).unwrap();
        let tokenizer = Tokenizer::load_directory(&opened, VOCABULARY).unwrap();
        let expected: Vec<Vec<u32>> = chats.iter().map(|chat| greedy(&model, &tokenizer, &chat.tokens, 16)).collect();
        assert!(expected.iter().flatten().collect::<std::collections::HashSet<_>>().len() > 4, "{case} says little");
        check_served(&format!("{case} with {kind}, directory"), folder.path(), &chats, &expected, &tokenizer);
        let told = Inspection::of(folder.path()).unwrap();
        assert_eq!((told.problem, told.has_chat_template), (None, kind != "bytes_codegen"), "{case}");
        let weights = Weights::read(&ModelSource::Path(folder.path().to_owned()));
        let file = folder.path().join("made.gguf");
        match weights {
            Ok(weights) if has_gguf => weights.convert("f32".parse().unwrap()).unwrap().write(&file).unwrap(),
            Err(error) if !has_gguf => {
                assert!(error.to_string().contains(".json: "), "{error}");
                continue;
            }
            other => panic!("{case}: {other:?}"),
        }
        check_served(&format!("{case} with {kind}, GGUF"), &file, &chats, &expected, &tokenizer);
        assert_eq!(Inspection::of(&file).unwrap().problem, None, "{case}");
    }
}

#[test]
fn a_folders_template_is_found_where_processors_write_it_and_told_when_it_is_none() {
    let folder = directory("gemma3", "pieces_gemma");
    let beside = folder.path().join("tokenizer_config.json");
    let mut settings = parse(&beside);
    let template = settings.as_object_mut().unwrap().remove("chat_template").unwrap();
    std::fs::write(&beside, settings.to_string()).unwrap();
    let told = || Inspection::of(folder.path()).unwrap();
    let start = || {
        Worker::start("made", ModelSource::Path(folder.path().to_owned()), WorkerConfig::default())
            .map(|worker| worker.info().has_chat_template)
            .map_err(|error| error.to_string())
    };
    assert_eq!((told().has_chat_template, told().problem, start()), (false, None, Ok(false)));
    let path = folder.path().join("chat_template.json");
    std::fs::write(&path, json!({ "chat_template": template }).to_string()).unwrap();
    assert_eq!((told().has_chat_template, told().problem, start()), (true, None, Ok(true)));
    for (text, words) in [
        (json!({ "chat_template": "{% for %}" }).to_string(), "unexpected"),
        (json!({ "chat_template": "x".repeat(70_000) }).to_string(), "are read at most"),
        ("{".to_owned(), "is no JSON"),
    ] {
        std::fs::write(&path, text).unwrap();
        let problem = told().problem.unwrap();
        assert!(problem.contains("chat_template.json: ") && problem.contains(words), "{problem}");
        assert_eq!(start(), Err(problem));
    }
}
