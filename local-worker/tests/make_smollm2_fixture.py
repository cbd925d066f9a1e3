#!/usr/bin/env python3
"""Writes fixtures/smollm2_greedy.json: what llama.cpp makes of ten conversations with SmolLM2-135M-Instruct.

    pip install llama-cpp-python==0.3.36
    python3 make_smollm2_fixture.py MODEL.gguf fixtures/smollm2_greedy.json

For each conversation: the prompt's tokens (the model's own chat template), up to 48 greedily chosen tokens, and at each
step the distance between the two highest logits, rounded to 4 digits. Also tokens of some texts, for the tokenizer.
With --speed it prints tokens a second instead (one thread): prefill of 256 tokens, 64 tokens of decoding.
"""
import hashlib
import json
import sys
import time

import llama_cpp
import numpy as np
from llama_cpp import llama_chat_format

CONVERSATIONS = [
    [("user", "What is the capital of France?")],
    [("user", "Write a short poem about the sea.")],
    [("system", "You answer in one sentence."), ("user", "Why is the sky blue?")],
    [("user", "Translate to French: The cat sleeps on the sofa.")],
    [("user", "List three fruits and their colours.")],
    [("user", "What is 12 + 30?"), ("assistant", "42"), ("user", "And 12 * 3?")],
    [("user", "Summarize: The meeting was moved from Tuesday to Thursday because the room was taken.")],
    [("user", "Write a Python function that reverses a string.")],
    [("user", "Is the following review positive or negative? \"The food was cold and the staff was rude.\"")],
    [("user", "Explain photosynthesis to a child. Keep it simple: 2-3 sentences, no jargon.")],
]
TEXTS = [
    "Hello, world!",
    "  leading and   inner   spaces  ",
    "line\nbreaks\n\n\tand tabs\t\t",
    "numbers 1 22 333 4444 3.14159 1,000,000",
    "it's we'll they've I'M DON'T",
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \u2026",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \U0001f600\U0001f1eb\U0001f1f7 \u0645\u0631\u062d\u0628\u0627",
    "fn main() { println!(\"{}\", x_1 + 0xFF); } // done",
    "a\u0300e\u0301 \u00a0nbsp\u200bzero",
    "",
]


def logits(model):
    row = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return np.ctypeslib.as_array(row, shape=(model.n_vocab(),)).copy()


def render(model, messages):
    metadata = model.metadata
    token = lambda key: model._model.token_get_text(int(metadata[key]))
    formatter = llama_chat_format.Jinja2ChatFormatter(
        template=metadata["tokenizer.chat_template"],
        eos_token=token("tokenizer.ggml.eos_token_id"),
        bos_token=token("tokenizer.ggml.bos_token_id"),
    )
    return formatter(messages=messages).prompt


def greedy(model, messages, count=48):
    prompt = model.tokenize(render(model, messages).encode(), add_bos=False, special=True)
    model.reset()
    model.eval(prompt)
    tokens, gaps = [], []
    while len(tokens) < count:
        row = logits(model)
        second, first = np.sort(row)[-2:]
        tokens.append(int(row.argmax()))
        gaps.append(round(float(first - second), 4))
        if llama_cpp.llama_vocab_is_eog(model._model.vocab, tokens[-1]):
            break
        model.eval([tokens[-1]])
    return {"messages": messages, "prompt": prompt, "tokens": tokens, "gaps": gaps,
            "text": model.detokenize(tokens).decode(errors="replace")}


def speed(model):
    prompt = [int(token) for token in np.random.default_rng(1).integers(100, 40000, 256)]
    for _ in range(3):
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        middle = time.perf_counter()
        model.reset()
        model.eval(prompt[:8])
        begin = time.perf_counter()
        for token in prompt[8:72]:
            model.eval([token])
            logits(model)
        end = time.perf_counter()
        print(f"llama.cpp: prefill {256 / (middle - start):.0f}/s, decode {64 / (end - begin):.1f}/s, one thread")


def main():
    path = sys.argv[1]
    model = llama_cpp.Llama(path, n_ctx=1024, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False)
    if "--speed" in sys.argv:
        return speed(model)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    cases = []
    for turns in CONVERSATIONS:
        cases.append(greedy(model, [{"role": role, "content": content} for role, content in turns]))
        print(cases[-1]["text"][:100].replace("\n", " "), "| least gap", min(cases[-1]["gaps"]))
    texts = [{"text": text, "tokens": model.tokenize(text.encode(), add_bos=False, special=False)} for text in TEXTS]
    fixture = {"sha256": digest, "made_with": f"llama-cpp-python {llama_cpp.__version__}, one thread, defaults",
               "cases": cases, "texts": texts}
    with open(sys.argv[2], "w") as file:
        json.dump(fixture, file)
        file.write("\n")


main()
