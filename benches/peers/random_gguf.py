"""Writes a GGUF file of a true Llama shape with random weights, with the tokenizer of another file: for measuring speed.

random_gguf.py TOKENIZER.gguf OUT.gguf Q8_0|Q4_K WIDTH LAYERS HEADS KEY_HEADS FEED_FORWARD
"""

import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

COPIED = ("tokenizer.",)


def value(field):
    """A metadata field as Python values."""
    kind = field.types[0]
    if kind == GGUFValueType.ARRAY:
        inner = field.types[-1]
        if inner == GGUFValueType.STRING:
            return [bytes(field.parts[at]).decode() for at in field.data]
        return [field.parts[at][0].item() for at in field.data]
    if kind == GGUFValueType.STRING:
        return bytes(field.parts[field.data[0]]).decode()
    return field.parts[field.data[0]][0].item()


def blocks(random, rows, columns, kind):
    """Random blocks of a quantised matrix whose weights are about 1/sqrt(columns)."""
    size, length = GGML_QUANT_SIZES[kind]
    count = columns // size
    raw = random.integers(0, 256, (rows, count, length), dtype=np.uint8)
    scale = 1.0 / np.sqrt(columns)
    half = lambda number: np.frombuffer(np.float16(number).tobytes(), dtype=np.uint8)
    if kind == GGMLQuantizationType.Q8_0:
        raw[..., 0:2] = half(scale / 64)
    else:
        # Scales and minima of six bits each: about 32, so that weights are centred.
        raw[..., 0:2] = half(scale / 32 / 4)
        raw[..., 2:4] = half(scale / 32 * 7.5 / 4)
        raw[..., 4:16] = random.integers(28, 36, raw[..., 4:16].shape, dtype=np.uint8)
    return raw.reshape(rows, count * length)


def main():
    source, out, kind, *sizes = sys.argv[1:]
    width, layers, heads, key_heads, hidden = map(int, sizes)
    kind = GGMLQuantizationType[kind]
    reader = GGUFReader(source)
    writer = GGUFWriter(out, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    vocabulary = 0
    for name, field in reader.fields.items():
        if name.startswith(COPIED):
            content = value(field)
            if name == "tokenizer.ggml.tokens":
                vocabulary = len(content)
            if field.types[0] == GGUFValueType.ARRAY:
                writer.add_array(name, content)
            else:
                writer.add_key_value(name, content, field.types[0])
    writer.add_vocab_size(vocabulary)
    random = np.random.default_rng(7)

    def matrix(name, rows, columns, kind=kind):
        writer.add_tensor(name, blocks(random, rows, columns, kind), raw_dtype=kind)

    def norm(name):
        writer.add_tensor(name, np.ones(width, dtype=np.float32))

    matrix("token_embd.weight", vocabulary, width, GGMLQuantizationType.Q8_0)
    norm("output_norm.weight")
    keys = width // heads * key_heads
    for layer in range(layers):
        prefix = f"blk.{layer}."
        norm(prefix + "attn_norm.weight")
        norm(prefix + "ffn_norm.weight")
        matrix(prefix + "attn_q.weight", width, width)
        matrix(prefix + "attn_k.weight", keys, width)
        matrix(prefix + "attn_v.weight", keys, width)
        matrix(prefix + "attn_output.weight", width, width)
        matrix(prefix + "ffn_gate.weight", hidden, width)
        matrix(prefix + "ffn_up.weight", hidden, width)
        matrix(prefix + "ffn_down.weight", width, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
