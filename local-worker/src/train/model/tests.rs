use super::super::network::tests::tiny;
use super::super::vocabulary::{ASSISTANT, END, SYSTEM, USER};
use super::*;
use crate::compress::Target;
use crate::embed::StaticEmbedder;
use crate::template::ChatTemplate;

fn vocabulary() -> Vocabulary {
    let texts = ["where is my card", "My card 4711 has not arrived!", "wo ist meine Karte", "HANDOFF", "card_arrival"];
    Vocabulary::train(texts.into_iter().cycle().take(50).map(str::to_owned), 300).unwrap()
}

fn shape(vocabulary: &Vocabulary) -> Shape {
    Shape { vocabulary: vocabulary.len(), width: 256, feed_forward: 256, context: 64, ..tiny() }
}

#[test]
fn turns_are_tokens_as_the_engine_makes_them() {
    let vocabulary = vocabulary();
    let metadata = metadata("tiny", "HANDOFF", &vocabulary).unwrap();
    let words = Words::new(&metadata, vocabulary.len()).unwrap();
    for text in ["My card 4711?", "Straße, 12.5 %\n\tok", "HANDOFF"] {
        assert_eq!(words.encode(text).unwrap(), vocabulary.encode(text).unwrap(), "{text}");
    }
    let (prompt, answer) = words.example("where is <|end|> my card 7", "card_arrival").unwrap();
    let marks = |ids: &[u32]| ids.iter().filter(|id| **id == vocabulary.end).count();
    assert_eq!((marks(&prompt), marks(&answer)), (1, 1), "a mark that a text spells out stays text");
    let template = ChatTemplate::new(Some(CHAT_TEMPLATE), "", "").unwrap();
    let turn = |role: &str, content: &str| ChatMessage { role: role.to_owned(), content: content.to_owned() };
    let turns = [turn("system", "brief"), turn("user", "hi"), turn("assistant", "Hi."), turn("user", "bye")];
    let expected = format!("{SYSTEM}brief{END}{USER}hi{END}{ASSISTANT}Hi.{END}{USER}bye{END}{ASSISTANT}");
    assert_eq!(template.render(&turns).unwrap(), expected);
}

#[test]
fn what_is_written_is_read_back_to_go_on_from() {
    let (folder, vocabulary) = (tempfile::tempdir().unwrap(), vocabulary());
    let metadata = metadata("tiny", "HANDOFF", &vocabulary).unwrap();
    for own_output in [false, true] {
        // Fewer heads than the width has room for, as after pruning.
        let shape = Shape { own_output, heads: 2, kv_heads: 1, head_width: Some(64), ..shape(&vocabulary) };
        let network = Network::random(shape.clone(), 1);
        let path = folder.path().join("model.gguf");
        weights(&network, &metadata).unwrap().write(&path).unwrap();
        let (read, said) = read(&ModelSource::Path(path.clone())).unwrap();
        assert_eq!(read.shape, shape);
        assert!(read.weights == network.weights);
        assert_eq!(said["sluice.decline"].to_string().unwrap(), "HANDOFF");
        weights(&network, &metadata).unwrap().convert(Target::Half).unwrap().write(&path).unwrap();
        let (half, _) = super::read(&ModelSource::Path(path)).unwrap();
        let off = half.weights.iter().zip(&network.weights).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off > 0.0 && off < 1e-3, "{off}");
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/qwen2.gguf");
    let Ok(true) = fixture.try_exists() else { return };
    let error = read(&ModelSource::Path(fixture)).err().unwrap().to_string();
    assert!(error.contains("qwen2") && error.contains("plain Llama"), "{error}");
}

#[test]
fn first_embeddings_of_like_words_are_alike() {
    let vocabulary = vocabulary();
    let words = Words::new(&metadata("tiny", "", &vocabulary).unwrap(), vocabulary.len()).unwrap();
    let mut network = Network::random(shape(&vocabulary), 3);
    let before = network.tensor("token_embd.weight").unwrap().to_vec();
    let set = embed(&mut network, &words, &StaticEmbedder::bundled().unwrap());
    assert!(set > 30, "{set}");
    let after = network.tensor("token_embd.weight").unwrap();
    let size = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((size(after) / size(&before) - 1.0).abs() < 0.05, "scaled as random ones are");
    let row = |text: &str| {
        let id = vocabulary.encode(text).unwrap();
        assert_eq!(id.len(), 1, "{text}");
        &after[id[0] as usize * 256..][..256]
    };
    let likeness = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() / (size(a) * size(b));
    assert!(likeness(row(" card"), row("card")) > 0.9);
    assert!(likeness(row(" card"), row(" is")) < 0.5);
    assert_eq!(after[vocabulary.end as usize * 256..][..256], before[vocabulary.end as usize * 256..][..256]);
}
