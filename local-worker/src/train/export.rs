//! A trained network as GGUF: matrices in Q8_0, norms in f32, vocabulary, chat template and decline text as metadata.

use super::network::Network;
use super::vocabulary::{CHAT_TEMPLATE, Vocabulary};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, Tensor};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// Writes `network` to `path`.
pub fn write(path: &Path, name: &str, network: &Network, vocabulary: &Vocabulary, decline: &str) -> Result<()> {
    let shape = &network.shape;
    let (tokens, merges) = vocabulary.parts().map_err(candle_core::Error::wrap)?;
    let text = |text: &str| Value::String(text.to_owned());
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let kinds =
        tokens.iter().map(|token| Value::I32(if token.starts_with("<|") && token.ends_with("|>") { 3 } else { 1 }));
    let kinds = Value::Array(kinds.collect());
    let metadata = [
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
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let mut tensors = Vec::new();
    for (name, variable) in &network.variables {
        let mut tensor = variable.as_tensor().clone();
        let heads = match name {
            name if name.ends_with("attn_q.weight") => Some(shape.heads),
            name if name.ends_with("attn_k.weight") => Some(shape.kv_heads),
            _ => None,
        };
        if let Some(heads) = heads {
            tensor = interleave(&tensor, heads)?;
        }
        let kind = if tensor.dims().len() > 1 { GgmlDType::Q8_0 } else { GgmlDType::F32 };
        tensors.push((name.clone(), QTensor::quantize(&tensor, kind)?));
    }
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = BufWriter::new(File::create(path)?);
    gguf_file::write(&mut file, &metadata, &tensors)
}

/// Rows of a rotary matrix from pairs (i, i + head/2) to pairs (2i, 2i + 1), head by head.
fn interleave(matrix: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    matrix.reshape((heads, 2, rows / heads / 2, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}
