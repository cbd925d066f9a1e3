//! Damaged files are refused with words that say what is wrong, or load; they never panic, hang or take memory by their word. Kept:
//! what fuzzing found (`local-worker/fuzz`) and what was thought of, in `fixtures/damaged`.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use local_worker::LoadError;
use local_worker::testing::damage::{read_gguf, read_safetensors, read_template, read_vocabulary};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Files of `fixtures/damaged`, the part before the first `-` being the reader, and words of the refusal; none where the file is
/// odd but sound.
const KEPT: &[(&str, Option<&str>)] = &[
    ("gguf-deep-list", Some("a list of values of type 9")),
    ("gguf-huge-counts", Some("tensors claimed")),
    ("gguf-only-magic", Some("cut off")),
    ("gguf-same-key-twice", Some("is there twice")),
    ("gguf-alignment-zero", Some("general.alignment")),
    ("safetensors-huge-head", Some("this is not a safetensors file")),
    ("safetensors-place-beyond-the-end", Some("is it cut off?")),
    ("safetensors-deep-json", Some("its head is no JSON")),
    ("safetensors-negative-size", Some("its entry is unsound")),
    ("template-deep-chain", Some("damaged.jinja")),
    ("template-lists-of-lists", Some("without end")),
    ("template-wide-padding", Some("a width above")),
    ("vocabulary-empty", Some("has 0 entries")),
    ("vocabulary-merge-of-unknown-tokens", Some("tokenizer.ggml.merges")),
    ("vocabulary-merge-without-a-pair", Some("is not a pair")),
];

fn read(name: &str, bytes: &[u8]) -> Result<(), LoadError> {
    match name.split('-').next() {
        Some("gguf") => read_gguf(bytes),
        Some("safetensors") => read_safetensors(bytes).map(drop),
        Some("vocabulary") => read_vocabulary(bytes),
        Some("template") => read_template(bytes).map(drop),
        other => panic!("{name}: no reader {other:?}"),
    }
}

#[test]
fn what_was_found_stays_found() {
    let folder = fixtures().join("damaged");
    let there: BTreeSet<String> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let listed: BTreeSet<String> = KEPT.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(there, listed);
    for (name, words) in KEPT {
        let told = read(name, &std::fs::read(folder.join(name)).unwrap()).map_err(|error| error.to_string());
        match (told, words) {
            (Ok(()), None) => {}
            (Err(error), Some(words)) => {
                assert!(error.contains("damaged.") && error.contains(words), "{name}: {error}")
            }
            (told, words) => panic!("{name}: {told:?}, expected {words:?}"),
        }
    }
}

/// A generator of numbers that is the same everywhere (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % most as u64) as usize
    }
}

#[test]
fn files_of_every_family_survive_damage() {
    let mut refused = 0;
    for family in ["gemma2", "gemma3", "llama", "phi2", "phi3", "phi4mini", "qwen2", "qwen3", "smollm"] {
        let sound = std::fs::read(fixtures().join("families").join(family).join("model.gguf")).unwrap();
        let mut dice = Dice(family.bytes().map(u64::from).sum());
        // Most of the meaning is in the head.
        let head = sound.len().min(16 << 10);
        for round in 0..40 {
            let mut bytes = sound.clone();
            for _ in 0..=dice.below(3) {
                let at = dice.below(if round % 4 == 0 { sound.len() } else { head });
                bytes[at] = match dice.below(3) {
                    0 => 0xff,
                    1 => 0,
                    _ => dice.below(256) as u8,
                };
            }
            if round % 5 == 0 {
                bytes.truncate(dice.below(sound.len()));
            }
            refused += usize::from(read_gguf(&bytes).is_err());
        }
    }
    assert!(refused > 90, "only {refused} of 360 were refused: the damage does not reach what matters");
}
