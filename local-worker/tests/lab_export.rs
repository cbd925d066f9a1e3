//! What the lab trains is what the engine serves: an exported network, read back from its file, gives the same logits.
#![cfg(feature = "lab")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use local_worker::compress::Target;
use local_worker::model::{Cache, Decoder, Gguf, Row, Scratch};
use local_worker::train::{model, network::Network, pass, vocabulary::Vocabulary};

#[test]
fn an_exported_network_is_served_as_it_was_trained() {
    let texts = ["Is this spam? Win a prize now!", "Bonjour tout le monde", "hello 123, how are you?"];
    let texts = texts.iter().cycle().take(30).map(|text| (*text).to_owned());
    let vocabulary = Vocabulary::train(texts, 300).unwrap();
    let shape = serde_json::json!({
        "vocabulary": vocabulary.len(), "width": 256, "layers": 2, "heads": 4, "kv_heads": 2, "feed_forward": 512,
        "context": 128, "rope_base": 10000.0, "norm_epsilon": 1e-5
    });
    let network = Network::random(serde_json::from_value(shape).unwrap(), 1);
    let metadata = model::metadata("test", "HANDOFF", &vocabulary).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let weights = model::weights(&network, &metadata).unwrap();
    weights.convert(Target::Blocks("q8_0".parse().unwrap())).unwrap().write(file.path()).unwrap();

    let bytes = std::fs::read(file.path()).unwrap();
    let file = Gguf::parse("test", &bytes).unwrap();
    let model = Decoder::load(&file).unwrap();
    let words = model::Words::new(&metadata, vocabulary.len()).unwrap();
    let (tokens, _) = words.example("na\u{ef}ve \u{1f600} question, 42?", "").unwrap();

    let shape = model.shape();
    let (mut cache, mut scratch) = (Cache::new(1, shape.layers, shape.key_heads, shape.head), Scratch::default());
    let row = |(position, token): (usize, &u32)| Row { slot: 0, position, token: *token, wants_logits: true };
    let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
    let served = model.step(&mut cache, &mut scratch, &rows);
    let trained = pass::logits(&network, &tokens);
    assert_eq!(served.len(), trained.len());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value * value)).sum::<f64>();
    let off = square(&mut served.iter().zip(&trained).map(|(served, trained)| served - trained));
    let size = square(&mut trained.iter().copied());
    assert!((off / size).sqrt() < 0.05, "off by {}", (off / size).sqrt());
}
