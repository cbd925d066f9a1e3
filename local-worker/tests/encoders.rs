//! Sentence encoders against `transformers`: tiny random ones of each family (`fixtures/encoders`, made by
//! `make_encoder_fixtures.py`), and the real all-MiniLM-L6-v2 where `fetch_minilm.sh` has fetched it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may panic, and says when it has no weights"
)]

use std::path::{Path, PathBuf};

use local_worker::embed::{EmbedError, Pooling, SentenceEncoder, similarity};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    text: String,
    tokens: usize,
    vector: Vec<f32>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders")
}

fn expected(path: &Path) -> Vec<Expected> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The largest distance of a component.
fn distance(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

fn check(name: &str, encoder: &SentenceEncoder, expected: &[Expected], most: f32) {
    let texts: Vec<&str> = expected.iter().map(|row| row.text.as_str()).collect();
    let together = encoder.embed(&texts).unwrap();
    for (row, found) in expected.iter().zip(&together) {
        assert_eq!(found.tokens, row.tokens, "{name}: tokens of {:?}", row.text);
        let apart = distance(&found.vector, &row.vector);
        assert!(apart <= most, "{name}: {:?} is {apart} apart", row.text);
        let alone = encoder.embed(&[&row.text]).unwrap();
        assert!(distance(&alone[0].vector, &found.vector) < 1e-6, "{name}: {:?} depends on its neighbours", row.text);
        assert_eq!(found.cut, found.tokens == encoder.longest(), "{name}: {:?}", row.text);
    }
    // The fixtures tell texts apart, else the comparison would say little.
    assert!(similarity(&together[0].vector, &together[2].vector) < 0.999, "{name}: all alike");
}

#[test]
fn random_encoders_are_those_of_transformers() {
    for (name, pooling, longest) in [
        ("bert", Pooling::Mean, 30),
        ("bert_first", Pooling::First, 36),
        ("roberta", Pooling::Mean, 36),
        ("distilbert", Pooling::Mean, 36),
    ] {
        let folder = fixtures().join(name);
        let encoder = SentenceEncoder::from_directory(&folder).unwrap();
        assert_eq!((encoder.pooling(), encoder.longest()), (pooling, longest), "{name}");
        check(name, &encoder, &expected(&folder.join("expected.json")), 1e-4);
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a test has no settings; this says where weights are kept")]
fn minilm_is_that_of_transformers() {
    let cache = std::env::var_os("TEST_MODELS").map(PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = cache.unwrap_or_else(|| root.join(".cache/models")).join("all-MiniLM-L6-v2");
    if !folder.exists() {
        println!("skipped: {} is not there; local-worker/tests/fetch_minilm.sh fetches it", folder.display());
        return;
    }
    let encoder = SentenceEncoder::from_directory(&folder).unwrap();
    assert_eq!((encoder.dims(), encoder.longest(), encoder.pooling()), (384, 256, Pooling::Mean));
    check("MiniLM", &encoder, &expected(&fixtures().join("minilm.json")), 1e-5);
}

/// A copy of a fixture, to spoil.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = fixtures().join(name);
    for file in ["config.json", "model.safetensors", "vocab.txt", "1_Pooling/config.json", "sentence_bert_config.json"]
    {
        if from.join(file).exists() {
            std::fs::create_dir_all(folder.path().join(file).parent().unwrap()).unwrap();
            std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
    }
    folder
}

#[test]
fn bad_directories_are_told_apart() {
    let refused = |file: &str, content: &[u8]| {
        let folder = copy("bert_first");
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        let error = SentenceEncoder::from_directory(folder.path()).expect_err(file);
        let message = error.to_string();
        assert!(message.starts_with(&folder.path().display().to_string()), "{message} names no file");
        (error, message)
    };
    let config = std::fs::read_to_string(fixtures().join("bert_first/config.json")).unwrap();
    let weights = std::fs::read(fixtures().join("bert_first/model.safetensors")).unwrap();
    let cases: [(&str, Vec<u8>, &str); 13] = [
        ("config.json", b"{".to_vec(), "is no JSON"),
        ("config.json", config.replace("\"bert\"", "\"mpnet\"").into(), "model_type is mpnet"),
        ("config.json", config.replace("gelu_new", "swish").into(), "hidden_act is swish"),
        (
            "config.json",
            config.replace("\"num_attention_heads\": 5", "\"num_attention_heads\": 7").into(),
            "no multiple",
        ),
        ("config.json", config.replace("\"hidden_size\": 30", "\"hidden_size\": 40").into(), "has the shape"),
        ("config.json", config.replace("hidden_layers\": 3", "hidden_layers\": 2").into(), "has no place"),
        ("model.safetensors", weights[..weights.len() - 10].to_vec(), "cut off"),
        ("vocab.txt", b"a\n\xff\n".to_vec(), "not UTF-8"),
        ("vocab.txt", b"[CLS]\n[UNK]\n".to_vec(), "has no line [SEP]"),
        ("tokenizer.json", b"{}".to_vec(), "is no tokenizer"),
        ("1_Pooling/config.json", br#"{"pooling_mode_max_tokens": true}"#.to_vec(), "neither the mean"),
        (
            "modules.json",
            br#"[{"type": "sentence_transformers.models.Dense"}]"#.to_vec(),
            "names sentence_transformers",
        ),
        ("sentence_bert_config.json", br#"{"max_seq_length": 1}"#.to_vec(), "be cut at 1 tokens"),
    ];
    for (file, content, says) in cases {
        let (_, message) = refused(file, &content);
        assert!(message.contains(says), "{message} for {says}");
    }
    let more = [std::fs::read(fixtures().join("bert_first/vocab.txt")).unwrap(), b"one\nmore\n".to_vec()].concat();
    assert!(refused("vocab.txt", &more).1.contains("tokenizer has 35 tokens, the encoder 33"));
    let folder = copy("bert");
    std::fs::remove_file(folder.path().join("vocab.txt")).unwrap();
    let missing = SentenceEncoder::from_directory(folder.path()).unwrap_err();
    assert!(matches!(&missing, EmbedError::Io { file, .. } if file.ends_with("vocab.txt")), "{missing}");
}

#[test]
fn a_huge_text_is_cut_and_says_so() {
    let encoder = SentenceEncoder::from_directory(&fixtures().join("bert")).unwrap();
    let huge = "the cat ".repeat(500_000);
    let found = encoder.embed(&[&huge, "the cat"]).unwrap();
    assert_eq!((found[0].tokens, found[0].cut, found[1].tokens, found[1].cut), (30, true, 4, false));
}
