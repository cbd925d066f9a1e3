//! Tokens of the rules each pre-tokenizer has, on a vocabulary of bytes and a few words.

mod kinds;

use super::*;
use crate::model::Gguf;
use crate::testing::{END, Script};

fn tokenizer() -> Tokenizer {
    let bytes = Script { chains: &[&["x", "the", " the"]], ..Script::default() }.gguf();
    let file = Gguf::parse("test", &bytes).unwrap();
    Tokenizer::load(&file, usize::MAX).unwrap()
}

#[test]
fn control_tokens_are_made_of_rendered_text_only_and_markers_vanish() {
    let tokenizer = tokenizer();
    let end = tokenizer.encode_marked(END, None, usize::MAX).unwrap();
    assert_eq!(end.len(), 1);
    assert!(tokenizer.ends(end[0]) && tokenizer.bytes(end[0]).is_empty());
    let plain = tokenizer.encode(END).unwrap();
    assert_eq!(plain.len(), END.len());
    assert_eq!(tokenizer.encode_marked("<\u{e000}|end|>", Some('\u{e000}'), usize::MAX).unwrap(), plain);
    let mixed = tokenizer.encode_marked("a<|end|>b<|end|><|en", None, usize::MAX).unwrap();
    assert_eq!(mixed.iter().filter(|token| tokenizer.ends(**token)).count(), 2);
    assert_eq!(mixed.len(), 2 + 2 + 4);
    assert!(tokenizer.control_at("<|end|>x") && !tokenizer.control_at("<|en") && !tokenizer.control_at(""));
}

#[test]
fn bytes_come_back_whatever_the_text() {
    let tokenizer = tokenizer();
    for text in ["", "plain words", " \n\t  x ", "caf\u{e9} \u{65e5}\u{672c} \u{1f600} 123", "\u{0}\u{7f}\u{a0}"] {
        let tokens = tokenizer.encode(text).unwrap();
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| tokenizer.bytes(*token).to_vec()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
    }
}

#[test]
fn long_texts_are_cut_where_it_does_not_matter_and_left_when_too_long() {
    let tokenizer = tokenizer();
    let text = "some words, 42 of them; ".repeat(3000);
    let whole = tokenizer.encode(&text).unwrap();
    let parts: Vec<u32> = text.split_inclusive("; ").flat_map(|part| tokenizer.encode(part).unwrap()).collect();
    assert_eq!(whole, parts);
    let around = &text[piece_end(&text) - 2..piece_end(&text) + 2];
    assert!(["e w", "f t"].iter().any(|place| around.contains(place)), "cut at {around}");
    let some = tokenizer.encode_marked(&text, None, 100).unwrap();
    assert!(some.len() > 100 && some.len() < whole.len() / 2, "{}", some.len());
    assert_eq!(piece_end(&"a".repeat(50_000)), 50_000);
    assert_eq!(piece_end(&"\u{65e5}".repeat(50_000)), LONGEST_PIECE - 1);
}
