//! What the lab trains is what the engine serves: an exported network, read back from its file, gives the same logits, and
//! a worker makes the same tokens of a conversation as training did.
#![cfg(feature = "lab")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use candle_core::{Device, Tensor};
use local_worker::model::{Cache, Decoder, Gguf, Row, Scratch};
use local_worker::template::{ChatMessage, ChatTemplate};
use local_worker::tokenizer::Tokenizer;
use local_worker::train::{export, network, vocabulary};

#[test]
fn an_exported_network_is_served_as_it_was_trained() {
    let texts = ["Is this spam? Win a prize now!", "Bonjour tout le monde", "hello 123, how are you?"];
    let texts = texts.iter().cycle().take(30).map(|text| (*text).to_owned());
    let words = vocabulary::Vocabulary::train(texts, 300).unwrap();
    let shape = serde_json::json!({
        "vocabulary": words.len(), "width": 256, "layers": 2, "heads": 4, "kv_heads": 2, "feed_forward": 512,
        "context": 128, "rope_base": 10000.0, "norm_epsilon": 1e-5
    });
    let network = network::Network::random(serde_json::from_value(shape).unwrap(), &Device::Cpu).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    export::write(file.path(), "test", &network, &words, "HANDOFF").unwrap();

    let bytes = std::fs::read(file.path()).unwrap();
    let file = Gguf::parse("test", &bytes).unwrap();
    let model = Decoder::load(&file).unwrap();
    let tokenizer = Tokenizer::load(&file, model.shape().vocabulary).unwrap();
    let (begin, end) = tokenizer.names();
    let template = ChatTemplate::new(file.text("tokenizer.chat_template"), begin, end).unwrap();
    let prompt = "na\u{ef}ve \u{1f600} question, 42?";
    let message = ChatMessage { role: "user".to_owned(), content: prompt.to_owned() };
    let tokens = tokenizer.encode_marked(&template.render(&[message]).unwrap(), None, usize::MAX).unwrap();
    assert!(words.example(prompt, "").unwrap().0.starts_with(&tokens));

    let shape = model.shape();
    let (mut cache, mut scratch) = (Cache::new(1, shape.layers, shape.key_heads, shape.head), Scratch::default());
    let row = |(position, token): (usize, &u32)| Row { slot: 0, position, token: *token, wants_logits: true };
    let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
    let served = model.step(&mut cache, &mut scratch, &rows);
    let trained = network.logits(&Tensor::new(vec![tokens], &Device::Cpu).unwrap()).unwrap();
    let trained = trained.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(served.len(), trained.len());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value * value)).sum::<f64>();
    let off = square(&mut served.iter().zip(&trained).map(|(served, trained)| served - trained));
    let size = square(&mut trained.iter().copied());
    assert!((off / size).sqrt() < 0.05, "off by {}", (off / size).sqrt());
}
