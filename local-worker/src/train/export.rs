//! A trained network as GGUF: matrices in Q8_0, norms in f32, vocabulary, chat template and decline text as metadata.

use super::TrainError;
use super::network::Network;
use super::vocabulary::{CHAT_TEMPLATE, Vocabulary};
use crate::compress::neighbours;
use candle_core::Result;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

/// Writes `network` to `path`; the file appears whole or not at all.
pub fn write(
    path: &Path,
    name: &str,
    network: &Network,
    vocabulary: &Vocabulary,
    decline: &str,
) -> std::result::Result<(), TrainError> {
    let metadata = metadata(name, network, vocabulary, decline)?;
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors = tensors(network)?;
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let partial = path.with_extension("partial");
    let failed = |error| TrainError::file(&partial, error);
    let mut file = BufWriter::new(File::create(&partial).map_err(failed)?);
    gguf_file::write(&mut file, &metadata, &tensors)?;
    file.flush().map_err(failed)?;
    std::fs::rename(&partial, path).map_err(|error| TrainError::file(path, error))
}

fn metadata(
    name: &str,
    network: &Network,
    vocabulary: &Vocabulary,
    decline: &str,
) -> std::result::Result<Vec<(&'static str, Value)>, TrainError> {
    let shape = &network.shape;
    let (tokens, merges) = vocabulary.parts()?;
    let text = |text: &str| Value::String(text.to_owned());
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    // 1 is a plain token, 3 a control token.
    let kinds = (0..vocabulary.len() as u32).map(|id| Value::I32(if vocabulary.is_mark(id) { 3 } else { 1 }));
    let kinds = Value::Array(kinds.collect());
    Ok(vec![
        ("general.architecture", text("llama")),
        ("general.name", text(name)),
        ("general.license", text("Apache-2.0")),
        ("general.file_type", Value::U32(7)),
        ("general.quantization_version", Value::U32(2)),
        ("llama.block_count", Value::U32(shape.layers as u32)),
        ("llama.context_length", Value::U32(shape.context as u32)),
        ("llama.embedding_length", Value::U32(shape.width as u32)),
        ("llama.feed_forward_length", Value::U32(shape.feed_forward as u32)),
        ("llama.attention.head_count", Value::U32(shape.heads as u32)),
        ("llama.attention.head_count_kv", Value::U32(shape.kv_heads as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(shape.norm_epsilon as f32)),
        ("llama.rope.freq_base", Value::F32(shape.rope_base as f32)),
        ("llama.rope.dimension_count", Value::U32(shape.head() as u32)),
        ("llama.vocab_size", Value::U32(shape.vocabulary as u32)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.tokens", texts(tokens)),
        ("tokenizer.ggml.token_type", kinds),
        ("tokenizer.ggml.merges", texts(merges)),
        ("tokenizer.ggml.bos_token_id", Value::U32(vocabulary.end)),
        ("tokenizer.ggml.eos_token_id", Value::U32(vocabulary.end)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.chat_template", text(CHAT_TEMPLATE)),
        ("sluice.decline", text(decline)),
    ])
}

fn tensors(network: &Network) -> Result<Vec<(String, QTensor)>> {
    let shape = &network.shape;
    let mut tensors = Vec::new();
    for (name, variable) in &network.variables {
        let mut tensor = variable.as_tensor().clone();
        let heads = match name {
            name if name.ends_with("attn_q.weight") => Some(shape.heads),
            name if name.ends_with("attn_k.weight") => Some(shape.kv_heads),
            _ => None,
        };
        if let Some(heads) = heads {
            tensor = neighbours(&tensor, heads)?;
        }
        let kind = if tensor.dims().len() > 1 { GgmlDType::Q8_0 } else { GgmlDType::F32 };
        tensors.push((name.clone(), QTensor::quantize(&tensor, kind)?));
    }
    Ok(tensors)
}

// That the engine computes what the network does is tested from outside, in `tests/lab_export.rs`.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Gguf;
    use crate::template::{ChatMessage, ChatTemplate};
    use crate::train::network::Shape;
    use crate::train::vocabulary::{ASSISTANT, END, SYSTEM, USER};
    use candle_core::Device;

    fn texts() -> impl Iterator<Item = String> + Send {
        ["where is my card", "My card 4711 has not arrived!", "wo ist meine Karte", "HANDOFF", "card_arrival"]
            .into_iter()
            .cycle()
            .take(50)
            .map(str::to_owned)
    }

    #[test]
    fn the_file_is_read_back_with_the_same_tokens_and_turns() {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = Vocabulary::train(texts(), 300).unwrap();
        let shape = Shape {
            vocabulary: vocabulary.len(),
            width: 256,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            feed_forward: 256,
            context: 64,
            rope_base: 10_000.0,
            norm_epsilon: 1e-5,
        };
        let network = Network::random(shape, &Device::Cpu).unwrap();
        let path = folder.path().join("model.gguf");
        write(&path, "tiny", &network, &vocabulary, "HANDOFF").unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let file = Gguf::parse("model.gguf", &bytes).unwrap();
        assert_eq!(file.text("sluice.decline"), Some("HANDOFF"));
        let tokenizer = crate::tokenizer::Tokenizer::load(&file, vocabulary.len()).unwrap();
        for text in ["My card 4711?", "Straße, 12.5 %\n\tok", "HANDOFF"] {
            assert_eq!(tokenizer.encode(text).unwrap(), vocabulary.encode(text).unwrap(), "{text}");
        }
        let (ids, _) = vocabulary.example("where is my card 7", "").unwrap();
        let template = ChatTemplate::new(file.text("tokenizer.chat_template"), "", "").unwrap();
        let turn = |role: &str, content: &str| ChatMessage { role: role.to_owned(), content: content.to_owned() };
        let rendered = template.render(&[turn("user", "where is my card 7")]).unwrap();
        assert_eq!(tokenizer.encode_marked(&rendered, None, usize::MAX).unwrap(), ids);
        let turns = [turn("system", "brief"), turn("user", "hi"), turn("assistant", "Hi."), turn("user", "bye")];
        let rendered = template.render(&turns).unwrap();
        let expected = format!("{SYSTEM}brief{END}{USER}hi{END}{ASSISTANT}Hi.{END}{USER}bye{END}{ASSISTANT}");
        assert_eq!(rendered, expected);
    }
}
