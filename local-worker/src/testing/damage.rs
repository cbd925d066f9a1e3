//! Files that were never meant well: what fuzzing (`local-worker/fuzz`) and the tests that replay its findings feed the readers with.
//! Each reads all that loading would read, and a model that loads makes a step too. Bytes may be refused, never more.

use super::Writer;
use crate::engine::read_model;
use crate::model::{Gguf, Inspection, LoadError, Row, Scratch};
use crate::template::{ChatMessage, ChatTemplate};
use crate::tokenizer::Tokenizer;

/// Positions of the step's cache; also a limit on the context, so that it stays small.
const POSITIONS: usize = 8;

/// A GGUF file: head, shape, weights, vocabulary, template, a step.
///
/// # Errors
/// Whatever loading says.
pub fn read_gguf(bytes: &[u8]) -> Result<(), LoadError> {
    Inspection::of_gguf("damaged.gguf", bytes)?;
    let (model, tokenizer) = read_model("damaged.gguf", bytes, POSITIONS)?;
    let tokens = tokenizer.encode("two words").map_err(LoadError::Thread)?;
    let shape = model.shape();
    let mut cache = crate::model::Cache::new(1, shape.layers, shape.key_heads, shape.head);
    let row = |(position, token): (usize, &u32)| Row { slot: 0, position, token: *token, wants_logits: true };
    let rows: Vec<Row> = tokens.iter().take(POSITIONS).enumerate().map(row).collect();
    if !rows.is_empty() {
        model.step(&mut cache, &mut Scratch::default(), &rows);
    }
    Ok(())
}

/// A chat template, made to render a conversation.
///
/// # Errors
/// Whatever loading and rendering say.
pub fn read_template(bytes: &[u8]) -> Result<usize, LoadError> {
    let source = String::from_utf8_lossy(bytes);
    let malformed = |problem: String| LoadError::Malformed { file: "damaged.jinja".to_owned(), problem };
    let template = ChatTemplate::new(Some(&source), "<s>", "</s>").map_err(malformed)?;
    let turn = |role: &str, content: &str| ChatMessage { role: role.to_owned(), content: content.to_owned() };
    let conversation =
        [turn("system", "Be brief."), turn("user", "Hello?"), turn("assistant", "Yes."), turn("user", "Go on.")];
    template.render(&conversation).map(|text| text.len()).map_err(malformed)
}

/// The head of a safetensors file.
///
/// # Errors
/// Whatever loading says.
pub fn read_safetensors(bytes: &[u8]) -> Result<usize, LoadError> {
    crate::model::safetensors::parse("damaged.safetensors", bytes).map(|places| places.len())
}

/// A vocabulary as GGUF metadata: lines of `bytes` up to an empty one are tokens, the first byte of each their kind; further
/// lines are merges. Reads it, splits its own tokens and puts them together again.
///
/// # Errors
/// Whatever loading says.
pub fn read_vocabulary(bytes: &[u8]) -> Result<(), LoadError> {
    let text = String::from_utf8_lossy(bytes);
    let (tokens, merges) = text.split_once("\n\n").unwrap_or((&text, ""));
    let rules = ["smollm", "gpt-2", "llama-bpe", "qwen2", "default"];
    let rule = rules[usize::from(bytes.first().copied().unwrap_or(0)) % rules.len()];
    let mut kinds = Vec::new();
    let mut names = Vec::new();
    for line in tokens.lines() {
        let mut letters = line.chars();
        kinds.push(letters.next().map_or(1, |letter| letter as i32 % 7));
        names.push(letters.as_str().to_owned());
    }
    let mut file = Writer::default();
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", rule);
    file.texts("tokenizer.ggml.tokens", &names);
    file.texts("tokenizer.ggml.merges", &merges.lines().map(str::to_owned).collect::<Vec<_>>());
    file.key("tokenizer.ggml.token_type", 9);
    file.head.extend(5u32.to_le_bytes());
    file.head.extend((kinds.len() as u64).to_le_bytes());
    kinds.iter().for_each(|kind| file.head.extend(kind.to_le_bytes()));
    file.key("tokenizer.ggml.eos_token_id", 4);
    file.head.extend(u32::from(bytes.last().copied().unwrap_or(0)).to_le_bytes());
    let bytes = file.finish();
    let tokenizer = Tokenizer::load(&Gguf::parse("damaged.gguf", &bytes)?, names.len())?;
    for name in names.iter().chain([&text.to_string()]) {
        for token in tokenizer.encode(name).map_err(LoadError::Thread)? {
            let _part = tokenizer.bytes(token);
        }
        tokenizer.encode_marked(name, Some('\u{e000}'), 64).map_err(LoadError::Thread)?;
    }
    Ok(())
}
