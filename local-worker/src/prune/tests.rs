use super::*;
use crate::compress::Target;
use crate::engine::{ModelSource, WorkerConfig};
use crate::evaluate::Probe;
use crate::train::model::{Metadata, Words, metadata, weights};
use crate::train::network::Shape;
use crate::train::pass::{influences, logits};
use crate::train::vocabulary::Vocabulary;

const TEXT: &str =
    "My card 4711 has not arrived! Where is my card? wo ist meine Karte, and what is the exchange rate of it now?";

fn model() -> (Network, Metadata, Watch) {
    let vocabulary = Vocabulary::train(TEXT.split(' ').cycle().take(200).map(str::to_owned), 300).unwrap();
    let shape = Shape {
        vocabulary: vocabulary.len(),
        width: 64,
        layers: 4,
        heads: 6,
        kv_heads: 3,
        head_width: Some(16),
        feed_forward: 96,
        context: 64,
        rope_base: 10_000.0,
        norm_epsilon: 1e-5,
        own_output: false,
    };
    let (network, metadata) = (Network::random(shape, 3), metadata("tiny", "", &vocabulary).unwrap());
    let file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    weights(&network, &metadata).unwrap().convert(Target::Single).unwrap().write(file.path()).unwrap();
    let source = ModelSource::Path(file.path().to_owned());
    let watch = Probe::open(&source, &WorkerConfig::default()).unwrap().watch(TEXT, 32).unwrap();
    (network, metadata, watch)
}

#[test]
fn as_many_weights_become_zero_as_asked_and_wanda_keeps_those_that_are_read_loudly() {
    let (network, _, watch) = model();
    for (pattern, watch) in [
        (Pattern::Share(0.5), None),
        (Pattern::Share(0.5), Some(&watch)),
        (Pattern::TwoOfFour, None),
        (Pattern::TwoOfFour, Some(&watch)),
    ] {
        let mut pruned = network.clone();
        zero(&mut pruned, pattern, watch).unwrap();
        assert!((zero_share(&pruned) - 0.5).abs() < 0.005, "{pattern:?}: {}", zero_share(&pruned));
        assert_eq!(pruned.tensor("token_embd.weight"), network.tensor("token_embd.weight"));
        let changed = pruned.weights.iter().zip(&network.weights).filter(|(new, old)| **new != 0.0 && new != old);
        assert_eq!(changed.count(), 0, "what is not zeroed stays");
        if pattern == Pattern::TwoOfFour {
            let values = pruned.tensor("blk.1.ffn_up.weight").unwrap();
            assert!(values.chunks(4).all(|four| four.iter().filter(|value| **value == 0.0).count() == 2));
        }
    }
    // What Wanda leaves gives an output nearer to the old one than what size alone leaves, on the inputs it saw.
    let error = |watched: Option<&Watch>| {
        let mut pruned = network.clone();
        zero(&mut pruned, Pattern::Share(0.5), watched).unwrap();
        let squares = squares(&watch, 2, Site::Down, 96).unwrap();
        let (old, new) =
            (network.tensor("blk.2.ffn_down.weight").unwrap(), pruned.tensor("blk.2.ffn_down.weight").unwrap());
        let lost = old.iter().zip(new).enumerate();
        lost.map(|(at, (old, new))| f64::from((old - new).powi(2)) * squares[at % 96]).sum::<f64>()
    };
    assert!(error(Some(&watch)) < error(None), "{} {}", error(Some(&watch)), error(None));
    assert!(matches!(zero(&mut network.clone(), Pattern::Share(1.0), None), Err(PruneError::Amount { .. })));
    let none = zero(&mut network.clone(), Pattern::TwoOfFour, Some(&Watch::default())).unwrap_err();
    assert!(none.to_string().contains("layer 0"), "{none}");
}

#[test]
fn layers_that_do_nothing_go_first_and_nothing_is_lost_with_them() {
    let (mut network, metadata, _) = model();
    for name in ["blk.1.attn_output.weight", "blk.1.ffn_down.weight"] {
        network.tensor_mut(name).unwrap().fill(0.0);
    }
    let words = Words::new(&metadata, network.shape.vocabulary).unwrap();
    let tokens = words.encode(TEXT).unwrap();
    let influences = influences(&network, std::slice::from_ref(&tokens));
    assert_eq!(influences.len(), 4);
    assert!(influences[1].abs() < 1e-6 && influences[0] > 0.01, "{influences:?}");
    let (small, dropped) = drop_layers(&network, &influences, 3).unwrap();
    assert_eq!(dropped, [1]);
    let off =
        logits(&small, &tokens).iter().zip(logits(&network, &tokens)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off < 1e-5, "{off}");
    assert!(drop_layers(&network, &influences, 0).is_err() && drop_layers(&network, &influences, 5).is_err());
}

#[test]
fn neurons_and_heads_that_do_nothing_go_first_and_nothing_is_lost_with_them() {
    let (mut network, metadata, watch) = model();
    for layer in 0..4 {
        // Every third neuron and the second group of heads are read by nobody.
        let down = network.tensor_mut(&format!("blk.{layer}.ffn_down.weight")).unwrap();
        down.iter_mut().enumerate().filter(|(at, _)| (at % 96).is_multiple_of(3)).for_each(|(_, value)| *value = 0.0);
        let output = network.tensor_mut(&format!("blk.{layer}.attn_output.weight")).unwrap();
        let second = |at: &usize| (32..64).contains(&(at % 96));
        output.iter_mut().enumerate().filter(|(at, _)| second(at)).for_each(|(_, value)| *value = 0.0);
    }
    let tokens = Words::new(&metadata, network.shape.vocabulary).unwrap().encode(TEXT).unwrap();
    let small = keep_heads(&keep_neurons(&network, &watch, 64).unwrap(), &watch, 2).unwrap();
    assert_eq!((small.shape.feed_forward, small.shape.heads, small.shape.kv_heads, small.shape.head()), (64, 4, 2, 16));
    let off =
        logits(&small, &tokens).iter().zip(logits(&network, &tokens)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off < 1e-5, "{off}");
    weights(&small, &metadata).unwrap();
    assert!(keep_neurons(&network, &watch, 50).is_err() && keep_heads(&network, &watch, 4).is_err());
}

#[test]
fn a_smaller_vocabulary_reads_what_it_was_kept_for_as_before() {
    let (network, metadata, _) = model();
    let (small, said) = keep_tokens(&network, &metadata, TEXT, 290).unwrap();
    assert_eq!(small.shape.vocabulary, 290);
    let (old, new) = (Words::new(&metadata, network.shape.vocabulary).unwrap(), Words::new(&said, 290).unwrap());
    let text = "Where is my card?";
    let (before, after) = (old.encode(text).unwrap(), new.encode(text).unwrap());
    let spelt = |words: &Words, tokens: &[u32]| {
        tokens.iter().flat_map(|token| words.bytes(*token).to_vec()).collect::<Vec<u8>>()
    };
    assert_eq!(spelt(&new, &after), text.as_bytes());
    assert_eq!(spelt(&new, &new.encode("Straße 9 !?").unwrap()), "Straße 9 !?".as_bytes(), "any text can be read");
    if before.len() == after.len() {
        let (before, after) = (logits(&network, &before), logits(&small, &after));
        let row =
            |values: &[f32], width: usize| values.chunks(width).map(|row| row[..200].to_vec()).collect::<Vec<_>>();
        let off = row(&before, network.shape.vocabulary).concat();
        let off = off.iter().zip(row(&after, 290).concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "{off}");
    }
    let (prompt, answer) = new.example("hi", "no").unwrap();
    assert!(prompt.len() > 3 && answer.len() > 1);
    assert!(
        keep_tokens(&network, &metadata, TEXT, 100).is_err() && keep_tokens(&network, &metadata, TEXT, 9999).is_err()
    );
}
