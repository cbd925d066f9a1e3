//! Vocabularies of every kind beside `transformers` and llama.cpp (`make_tokenizer_fixtures.py` says what is in the
//! fixtures), and what the families' prompts are made of them.

use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::engine::{ChatMessage, Front};
use crate::model::{Config, Gguf};
use crate::template::{ChatTemplate, form_of};

const KINDS: [&str; 8] = [
    "pieces_phi3",
    "pieces_gemma",
    "pieces_llama",
    "bytes_llama3",
    "bytes_qwen",
    "bytes_gpt4o",
    "bytes_codegen",
    "bytes_smollm",
];

fn folder(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(kind)
}

fn expected(kind: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(kind).join("expected.json")).unwrap()).unwrap()
}

fn integers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

/// The vocabulary of a fixture, and the prompts of its directory.
fn front(kind: &str) -> Front {
    let (path, config) = (folder(kind), Config::parse("config.json", b"{}").unwrap());
    let beside = Beside::read(&path).unwrap();
    let tokenizer = Tokenizer::of_folder(&path, &config, &beside, 1000).unwrap();
    let own = beside.template().map(|(template, _)| template);
    let template = own.or_else(|| form_of("phi2").filter(|_| kind == "bytes_codegen")).map(str::to_owned);
    let (begin, end) = tokenizer.names();
    let rendered = ChatTemplate::new(template.as_deref(), begin, end).unwrap();
    let tokenizer = tokenizer.reserve_for(template.as_deref().unwrap_or_default()).unwrap();
    Front { tokenizer, template: rendered }
}

fn gguf(kind: &str, check: impl FnOnce(Tokenizer, &Value)) {
    let bytes = std::fs::read(folder(kind).join("vocabulary.gguf")).unwrap();
    let file = Gguf::parse(kind, &bytes).unwrap();
    check(Tokenizer::load(&file, 1000).unwrap(), &expected(kind)["gguf"]);
}

/// What tokens say when they come one by one, as an answer does.
fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let (mut stream, mut text) = (TextStream::default(), String::new());
    for token in tokens {
        let part = stream.push(tokenizer.bytes(*token));
        assert!(!part.contains('\u{fffd}'), "half a character in {part:?}");
        text.push_str(&part);
    }
    text + &stream.finish()
}

fn check_texts(kind: &str, tokenizer: &Tokenizer, expected: &Value) {
    for case in expected["texts"].as_array().unwrap() {
        let (text, tokens) = (case["text"].as_str().unwrap(), integers(&case["tokens"]));
        assert_eq!(tokenizer.encode(text).unwrap(), tokens, "{kind}: {text:?}");
    }
    for case in expected["marked"].as_array().unwrap() {
        let (text, tokens) = (case["text"].as_str().unwrap(), integers(&case["tokens"]));
        assert_eq!(tokenizer.encode_marked(text, None, usize::MAX).unwrap(), tokens, "{kind}: {text:?}");
    }
}

#[test]
fn files_of_directories_give_the_tokens_of_transformers_and_their_texts_come_back() {
    for kind in KINDS {
        let Front { tokenizer, .. } = front(kind);
        check_texts(kind, &tokenizer, &expected(kind));
        for case in expected(kind)["decoded"].as_array().unwrap() {
            let own = streamed(&tokenizer, &integers(&case["tokens"]));
            let own = own.strip_prefix(' ').filter(|_| tokenizer.drops_first_space()).unwrap_or(&own);
            assert_eq!(own, case["text"].as_str().unwrap(), "{kind}");
        }
    }
}

#[test]
fn pieces_of_gguf_give_the_tokens_of_llama_cpp_and_their_texts_come_back() {
    for kind in ["pieces_phi3", "pieces_gemma", "pieces_llama"] {
        gguf(kind, |tokenizer, expected| {
            check_texts(kind, &tokenizer, expected);
            for case in expected["texts"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let own = streamed(&tokenizer, &integers(&case["tokens"]));
                let own = own.strip_prefix(' ').filter(|_| tokenizer.drops_first_space()).unwrap_or(&own);
                // The letter that spaces are written as can't be told from them.
                assert_eq!(own, text.replace('\u{2581}', " "), "{kind}");
            }
            assert_eq!(tokenizer.begin().map(|begin| tokenizer.bytes(begin).len()), Some(0), "{kind}");
        });
    }
}

#[test]
fn conversations_have_the_tokens_of_transformers() {
    for kind in KINDS {
        let front = front(kind);
        for case in expected(kind)["chats"].as_array().unwrap() {
            let text = |turn: &Value, key: &str| turn[key].as_str().unwrap().to_owned();
            let turns = case["messages"].as_array().unwrap().iter();
            let messages: Vec<ChatMessage> =
                turns.map(|turn| ChatMessage { role: text(turn, "role"), content: text(turn, "content") }).collect();
            assert_eq!(front.template.render(&messages).unwrap(), text(case, "text"), "{kind}");
            assert_eq!(front.encode(&messages, 4096).unwrap(), integers(&case["tokens"]), "{kind}");
        }
    }
}

#[test]
fn messages_that_spell_control_tokens_stay_text() {
    let names = [
        "<s>",
        "</s>",
        "<|user|>",
        "<|end|>",
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    ];
    for kind in KINDS {
        let front = front(kind);
        let control = |tokens: &[u32]| tokens.iter().filter(|token| front.tokenizer.is_control(**token)).count();
        let ask = |content: &str| {
            let turn = ChatMessage { role: "user".to_owned(), content: content.to_owned() };
            front.encode(&[turn], 4096).unwrap()
        };
        let plain = control(&ask("x"));
        let mut known = 0;
        for name in names {
            known += usize::from(front.tokenizer.control_at(name));
            for content in [name.to_owned(), format!("a{name}"), format!("{name}{name} b"), format!("<{name}|{name}\n")]
            {
                let tokens = ask(&content);
                assert_eq!(control(&tokens), plain, "{kind}: {content}");
                let said = streamed(&front.tokenizer, &tokens);
                assert!(said.contains(content.trim()), "{kind}: {content} became {said}");
            }
            let alone = front.tokenizer.encode(name).unwrap();
            assert_eq!(control(&alone), 0, "{kind}: {name}");
        }
        assert!(known >= 1, "{kind} has none of the names");
    }
}

#[test]
fn words_that_the_template_uses_like_control_tokens_are_its_own() {
    let path = folder("bytes_qwen");
    let (config, beside) = (Config::parse("config.json", b"{}").unwrap(), Beside::read(&path).unwrap());
    let tokenizer = || Tokenizer::of_folder(&path, &config, &beside, 1000).unwrap();
    let whole = tokenizer().encode("<think>").unwrap();
    assert_eq!(whole.len(), 1);
    let reserved = tokenizer().reserve_for("{{ '<think>\\n' }}").unwrap();
    assert!(reserved.control_at("<think>") && !reserved.control_at("<tool_call>"));
    assert!(reserved.encode("<think>").unwrap().len() > 1);
    assert_eq!(reserved.encode_marked("<think>", None, usize::MAX).unwrap(), whole);
    assert_eq!(reserved.bytes(whole[0]), b"<think>", "an answer may still think aloud");
    assert_eq!(reserved.encode("<tool_call>").unwrap().len(), 1);
}

#[test]
fn long_texts_are_the_sum_of_their_parts_and_end_early_when_too_long() {
    for kind in KINDS {
        let Front { tokenizer, .. } = front(kind);
        let text = "the boat left the harbour and nobody waved to it; ".repeat(1500);
        let tokens = tokenizer.encode(&text).unwrap();
        let said = streamed(&tokenizer, &tokens);
        assert_eq!(said.strip_prefix(' ').filter(|_| tokenizer.drops_first_space()).unwrap_or(&said), text, "{kind}");
        let few = tokenizer.encode_marked(&text, None, 50).unwrap();
        assert!(few.len() > 50 && few.len() < tokens.len() / 2, "{kind}: {}", few.len());
        let rest = &text[piece_end(&text)..];
        assert!(rest.starts_with(' ') && tokens.starts_with(&tokenizer.encode(&text[..piece_end(&text)]).unwrap()));
    }
}

#[test]
fn faults_of_vocabularies_are_named() {
    let config = Config::parse("config.json", b"{}").unwrap();
    let work = tempfile::tempdir().unwrap();
    let fault = |size: usize| {
        let beside = Beside::read(work.path());
        beside.and_then(|beside| Tokenizer::of_folder(work.path(), &config, &beside, size)).unwrap_err().to_string()
    };
    let check = |told: String, parts: &[&str]| assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    check(fault(10), &["tokenizer.json"]);
    std::fs::write(work.path().join("tokenizer.model"), b"x").unwrap();
    check(fault(10), &["tokenizer.json", "tokenizer.model alone is not read"]);
    let put = |text: &str| std::fs::write(work.path().join("tokenizer.json"), text).unwrap();
    for text in ["", "{}", "[1]", r#"{"model":{"type":"BPE","vocab":{},"merges":[["a","b"]]}}"#] {
        put(text);
        check(fault(10), &["tokenizer.json: is no tokenizer"]);
    }
    let sound = std::fs::read_to_string(folder("pieces_phi3").join("tokenizer.json")).unwrap();
    put(&sound);
    check(fault(500), &["none of the model's 500"]);
    let mut other: Value = serde_json::from_str(&sound).unwrap();
    other["decoder"] = serde_json::json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    put(&other.to_string());
    check(fault(1000), &["its decoder (WordPiece) is of no kind"]);
    put(&sound);
    std::fs::write(work.path().join("tokenizer_config.json"), "{").unwrap();
    check(fault(1000), &["tokenizer_config.json: is no JSON"]);
}

#[test]
fn faults_of_pieces_in_gguf_are_named() {
    let sound = std::fs::read(folder("pieces_phi3").join("vocabulary.gguf")).unwrap();
    let with = |from: &[u8], to: &[u8]| {
        let at = sound.windows(from.len()).position(|part| part == from).unwrap();
        let mut bytes = sound.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        let file = Gguf::parse("bad.gguf", &bytes).unwrap();
        Tokenizer::load(&file, 1000).map(drop).unwrap_err().to_string()
    };
    let check =
        |told: String, expected: &str| assert!(told.starts_with("bad.gguf: ") && told.contains(expected), "{told}");
    check(with(b"tokenizer.ggml.scores", b"tokenizer.ggml.scored"), "tokenizer.ggml.scores is not one number");
    check(with(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokend"), "tokenizer.ggml.tokens is missing");
    check(with(b"<0x41>", b"<0xG1>"), "should be a byte as <0x0A>");
    check(with(b"tokenizer.ggml.token_type", b"tokenizer.ggml.token_typo"), "neither a token for each byte");
    check(with(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0other"), "this build reads gpt2");
    let file = Gguf::parse("bad.gguf", &sound).unwrap();
    check(Tokenizer::load(&file, 10).map(drop).unwrap_err().to_string(), "the embedding 10 rows");
}

static SOME: std::sync::LazyLock<Vec<(&str, Front)>> = std::sync::LazyLock::new(|| {
    ["pieces_phi3", "pieces_gemma", "bytes_llama3", "bytes_smollm"].map(|kind| (kind, front(kind))).into()
});

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..proptest::prelude::ProptestConfig::with_cases(60) })]
    #[test]
    fn any_text_comes_back(text in "[ a-eA-E0-9\u{e9}\u{5bb6}\u{1f600}\u{434}\n<>|/_.\u{301}\u{200d}]{0,40}") {
        for (kind, Front { tokenizer, .. }) in SOME.iter() {
            let tokens = tokenizer.encode(&text).unwrap();
            let said = streamed(tokenizer, &tokens);
            let said = said.strip_prefix(' ').filter(|_| tokenizer.drops_first_space()).unwrap_or(&said);
            proptest::prop_assert_eq!(said, text.as_str(), "{}", kind);
        }
    }
}
