#!/usr/bin/env python3
"""Writes fixtures/families/: tiny random checkpoints of true architectures, and what others make of them.

    pip install torch transformers==5.23.0 safetensors numpy gguf==0.19.0 llama-cpp-python==0.3.36
    python3 make_family_fixtures.py fixtures/families

For each case a folder with `config.json` in the form of published checkpoints (`modern.json`: the same as `transformers`
writes it today), safetensors, `model.gguf` with the same numbers, and `expected.json`: for each prompt, transformers'
logits in single precision at every recorded position (`logits.f32`, one prompt after the other), 64 greedily chosen tokens
with the distance of the two highest logits, each by a forward pass over the whole text; and llama.cpp's logits on the GGUF
(F32, cache F32) at the last position compared, with the largest distance at any from transformers'. Sizes are odd on purpose; weights are such that bf16 and f16 both hold them.
"""
import json
import os
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

GREEDY = 64
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def factors(count, start, step):
    return [round(start + step * index, 3) for index in range(count)]


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
          "rope_type": "llama3"}
LONG = {"type": "longrope", "short_factor": factors(9, 1.0, 0.05), "long_factor": factors(9, 1.2, 1.7)}

# Name, file's element type, number of safetensors files, prompts as (tokens, context limit), configuration.
CASES = [
    ("llama", "bf16", 3, [(40, None)], {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 42, "intermediate_size": 72, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "vocab_size": 97,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "rope_scaling": LLAMA3,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True}),
    ("smollm", "f16", 1, [(20, None)], {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 96, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "rope_scaling": None, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": False}),
    ("phi2", "bf16", 1, [(24, None)], {
        "model_type": "phi", "hidden_act": "gelu_new", "hidden_size": 60, "intermediate_size": 88,
        "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": None, "vocab_size": 101,
        "max_position_embeddings": 256, "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
        "partial_rotary_factor": 0.4, "qk_layernorm": False, "tie_word_embeddings": False}),
    ("phi3", "bf16", 1, [(30, None)], {
        "model_type": "phi3", "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 99, "max_position_embeddings": 256,
        "original_max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
        "sliding_window": 11, "tie_word_embeddings": False}),
    ("phi4mini", "bf16", 2, [(20, 256), (270, None)], {
        "model_type": "phi3", "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 98, "max_position_embeddings": 512,
        "original_max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": LONG,
        "partial_rotary_factor": 0.75, "sliding_window": 4096, "tie_word_embeddings": True}),
    ("gemma2", "bf16", 1, [(25, None)], {
        "model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 14, "vocab_size": 97, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 7, "query_pre_attn_scalar": 14,
        "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "attention_bias": False}),
    ("gemma2scalar", "f32", 1, [(25, None)], {
        "model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 97, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 128, "query_pre_attn_scalar": 40,
        "attn_logit_softcapping": None, "final_logit_softcapping": 30.0, "attention_bias": False}),
    ("gemma3", "bf16", 1, [(25, None)], {
        "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 42,
        "intermediate_size": 56, "num_hidden_layers": 7, "num_attention_heads": 3, "num_key_value_heads": 1,
        "head_dim": 18, "vocab_size": 103, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 20000.0, "rope_local_base_freq": 500.0, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 9, "sliding_window_pattern": 6, "query_pre_attn_scalar": 18, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "attention_bias": False}),
    ("qwen2", "bf16", 1, [(24, None)], {
        "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 72,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 96,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": False,
        "sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": True}),
    ("qwen2window", "bf16", 1, [(24, None)], {
        "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 96,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": True,
        "sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": False}),
    ("qwen3", "bf16", 1, [(24, None)], {
        "model_type": "qwen3", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 128,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "attention_bias": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2, "tie_word_embeddings": False}),
]

# What GGUF calls things. `+1`: the norm's weight is kept with its 1; `turn`: rows of rotary pairs become neighbours.
PLAIN = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight", "lm_head.bias": "output.bias",
    "model.final_layernorm.weight": "output_norm.weight", "model.final_layernorm.bias": "output_norm.bias",
}
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.dense": "attn_output",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down", "mlp.gate_up_proj": "ffn_up",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}


def fill(model, seed):
    """Random weights that bf16 and f16 both hold."""
    gemma = model.config.model_type.startswith("gemma")
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("bias"):
            noise *= 0.3
        elif "norm" in name:
            noise = noise.clamp(-2, 2) * 0.25 + (0 if gemma else 1) + (4 if gemma and name == "model.norm.weight" else 0)
        elif "embed" in name or "lm_head" in name:
            # Small beside what layers add, or a tied model repeats its last token for ever.
            noise *= 0.1 if gemma else 0.4
        else:
            noise *= 1.6 / value.shape[1] ** 0.5
        noise[noise.abs() < 2 ** -10] = 0
        value.data = noise.to(torch.bfloat16).to(torch.float32)


def forward(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


def record(model, length, limit, seed, logits):
    """One prompt: its logits go to `logits`, of long ones those of the last 24 positions."""
    vocabulary = model.config.vocab_size
    prompt = [int(token) for token in np.random.default_rng(seed).integers(3, vocabulary, length)]
    first = max(0, length - 24) if length > 50 else 0
    logits.append(forward(model, prompt)[first:].astype("<f4"))
    tokens, gaps = list(prompt), []
    for _ in range(GREEDY):
        row = forward(model, tokens)[-1]
        second, best = np.sort(row)[-2:]
        gaps.append(round(float(best - second), 5))
        tokens.append(int(row.argmax()))
    return {"prompt": prompt, "first": first, "context_limit": limit, "greedy": tokens[length:], "gaps": gaps}


def neighbours(value, heads):
    """Rows of each head's halves become pairs, as GGUF keeps Llama."""
    shape = value.shape
    return value.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def gguf_tensors(config, state):
    kind = config["model_type"]
    gemma = kind.startswith("gemma")
    heads = config["num_attention_heads"]
    key_heads = config["num_key_value_heads"] or heads
    fused = {}
    for name, value in state.items():
        value = value.numpy()
        if gemma and "norm" in name:
            value = value + 1
        if name in PLAIN:
            if name == "lm_head.weight" and config.get("tie_word_embeddings", gemma):
                continue
            yield PLAIN[name], value
            continue
        _, _, layer, rest = name.split(".", 3)
        part, ending = rest.rsplit(".", 1)
        if kind == "llama" and part == "self_attn.q_proj":
            value = neighbours(value, heads)
        if kind == "llama" and part == "self_attn.k_proj":
            value = neighbours(value, key_heads)
        if kind == "phi" and part[-6:] in ("q_proj", "k_proj", "v_proj"):
            fused.setdefault((layer, ending), {})[part[-6]] = value
            if len(fused[layer, ending]) == 3:
                parts = fused[layer, ending]
                yield f"blk.{layer}.attn_qkv.{ending}", np.concatenate([parts["q"], parts["k"], parts["v"]])
            continue
        own = LAYER[part]
        if gemma and part == "post_attention_layernorm":
            own = "post_attention_norm"
        yield f"blk.{layer}.{own}.{ending}", value


def write_gguf(path, config, state, matrices):
    kind = config["model_type"]
    family = {"phi": "phi2", "gemma3_text": "gemma3"}.get(kind, kind)
    writer = gguf.GGUFWriter(path, family)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or width // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"] or heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if "layer_norm_eps" in config:
        writer.add_layer_norm_eps(config["layer_norm_eps"])
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if family in ("llama", "phi2", "phi3"):
        writer.add_rope_dimension_count(int(head * config.get("partial_rotary_factor", 1.0)))
    if family in ("phi3", "gemma2", "gemma3"):
        writer.add_sliding_window(config["sliding_window"])
    for key, add in (("attn_logit_softcapping", writer.add_attn_logit_softcapping),
                     ("final_logit_softcapping", writer.add_final_logit_softcapping)):
        if config.get(key):
            add(config[key])
    if family == "gemma3":
        writer.add_float32("gemma3.rope.freq_base_swa", config["rope_local_base_freq"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    scaling = config.get("rope_scaling")
    if scaling is LLAMA3:
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, head))
    if scaling is LONG:
        original, most = config["original_max_position_embeddings"], config["max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(most / original) / np.log(original))))
        writer.add_tensor("rope_factors_long.weight", np.array(LONG["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(LONG["short_factor"], np.float32))
    for name, value in gguf_tensors(config, state):
        value = np.ascontiguousarray(value, np.float32)
        writer.add_tensor(name, value.astype(np.float16) if value.ndim > 1 and matrices == "f16" else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_factors(config, head):
    scaling = config["rope_scaling"]
    frequency = config["rope_theta"] ** (-np.arange(0, head, 2) / head)
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)


def peer_logits(path, prompt, context):
    model = llama_cpp.Llama(path, n_ctx=context, n_batch=512, n_threads=1, logits_all=True, verbose=False,
                            type_k=0, type_v=0, flash_attn=False)
    model.eval(prompt)
    return np.array(model.scores[: len(prompt)])


def main(folder):
    for seed, (name, precision, files, prompts, config) in enumerate(CASES, 1):
        config = {**config, **TOKENS}
        # A copy: transformers changes what it is given.
        arguments = json.loads(json.dumps(config))
        loaded = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(loaded, attn_implementation="eager").float().eval()
        fill(model, seed)
        model.tie_weights()
        target = os.path.join(folder, name)
        os.makedirs(target, exist_ok=True)
        tied = loaded.tie_word_embeddings
        state = {key: value for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")}
        kind = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[precision]
        kept = {key: value.to(kind).contiguous() for key, value in state.items()}
        if files == 1:
            save_file(kept, os.path.join(target, "model.safetensors"), metadata={"format": "pt"})
        else:
            shards = [f"model-{index + 1:05}-of-{files:05}.safetensors" for index in range(files)]
            where = {key: shards[index % files] for index, key in enumerate(kept)}
            for shard in shards:
                save_file({key: kept[key] for key in kept if where[key] == shard}, os.path.join(target, shard))
            with open(os.path.join(target, "model.safetensors.index.json"), "w") as file:
                json.dump({"metadata": {}, "weight_map": where}, file, indent=1)
        with open(os.path.join(target, "config.json"), "w") as file:
            json.dump(config, file, indent=1)
        with open(os.path.join(target, "modern.json"), "w") as file:
            file.write(loaded.to_json_string())
        logits = []
        runs = [record(model, length, limit, seed * 10 + index, logits)
                for index, (length, limit) in enumerate(prompts)]
        np.concatenate(logits).tofile(os.path.join(target, "logits.f32"))
        expected = {"vocabulary": config["vocab_size"], "runs": runs}
        # GGUF can't say where Qwen has windows, nor another scalar for Gemma 2.
        if name not in ("qwen2window", "gemma2scalar"):
            write_gguf(os.path.join(target, "model.gguf"), config, state, "f16")
            with tempfile.TemporaryDirectory() as work:
                single = os.path.join(work, "model.gguf")
                write_gguf(single, config, state, "f32")
                for run, rows in zip(runs, logits):
                    # llama.cpp takes no window for Phi-3, so positions beyond it are not compared.
                    count = config["sliding_window"] if name == "phi3" else len(run["prompt"])
                    peer = peer_logits(single, run["prompt"], run["context_limit"] or config["max_position_embeddings"])[run["first"]: count]
                    run["llama_cpp_distance"] = float(np.abs(peer - rows[: len(peer)]).max())
                    run["llama_cpp_positions"] = len(peer)
                    run["llama_cpp_last"] = [round(float(value), 5) for value in peer[-1]]
        with open(os.path.join(target, "expected.json"), "w") as file:
            json.dump(expected, file)
            file.write("\n")
        for run, rows in zip(runs, logits):
            print(f"{name}: logits to {np.abs(rows).max():.1f}, {len(set(run['greedy']))} different greedy tokens, "
                  f"least gap {min(run['gaps'])}, llama.cpp off by {run.get('llama_cpp_distance')}")


main(sys.argv[1])
