"""Perplexity of GGUF files on a text, by the engine and by llama.cpp, side by side, with both programs' share of the same
likeliest tokens left to `sluice quantize`.

usage: perplexity.py SLUICE TEXT [--window N] [--tolerance SHARE] FILE.gguf...

Both read the same windows: N tokens each (a begin token included, where the file wants one), every window anew, its first
token not scored. Tokens are llama.cpp's own, so a difference in tokenising would show as another number of tokens. Prints a
Markdown table; exits with 1 if a file does not load, or tokens or perplexity differ by more than the tolerance.
"""

import argparse
import ctypes
import json
import math
import subprocess
import sys

import llama_cpp as api
import numpy


def quiet():
    callback = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def tokens_of(vocabulary, text):
    raw = text.encode()
    room = len(raw) + 8
    buffer = (api.llama_token * room)()
    count = api.llama_tokenize(vocabulary, raw, len(raw), buffer, room, False, False)
    if count < 0:
        raise RuntimeError("the text can't be tokenised")
    return list(buffer[:count])


def by_llamacpp(file, text, window):
    """Number of scored tokens and perplexity."""
    model = api.llama_model_load_from_file(file.encode(), api.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp can't load {file}")
    vocabulary = api.llama_model_get_vocab(model)
    size = api.llama_vocab_n_tokens(vocabulary)
    window = min(window, api.llama_model_n_ctx_train(model))
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = window
    settings.n_threads = settings.n_threads_batch = 1
    context = api.llama_init_from_model(model, settings)
    begin = [api.llama_vocab_bos(vocabulary)] if api.llama_vocab_get_add_bos(vocabulary) else []
    part = window - len(begin)
    tokens = tokens_of(vocabulary, text)
    batch = api.llama_batch_init(window, 0, 1)
    scored, nats = 0, 0.0
    for start in range(0, len(tokens), part):
        row = begin + tokens[start : start + part]
        api.llama_memory_clear(api.llama_get_memory(context), True)
        batch.n_tokens = len(row)
        for at, token in enumerate(row):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, True
            batch.seq_id[at][0] = 0
        if api.llama_decode(context, batch) != 0:
            raise RuntimeError(f"llama_decode failed on {file}")
        logits = numpy.ctypeslib.as_array(api.llama_get_logits(context), shape=(len(row), size)).astype(numpy.float64)
        most = logits.max(axis=1)
        norm = most + numpy.log(numpy.exp(logits - most[:, None]).sum(axis=1))
        for at in range(len(row) - 1):
            nats += norm[at] - logits[at, row[at + 1]]
            scored += 1
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return scored, math.exp(nats / scored)


def by_sluice(sluice, file, text, window):
    command = [sluice, "eval", "model", "--model", file, "--perplexity", text, "--window", str(window), "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["perplexity"]
    return told["tokens"], told["value"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sluice")
    parser.add_argument("text")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    keep = quiet()
    api.llama_backend_init()
    with open(arguments.text, encoding="utf-8") as file:
        text = file.read()
    print("| file | tokens | llama.cpp | sluice | difference |\n| --- | ---: | ---: | ---: | ---: |")
    good = True
    for file in arguments.files:
        theirs, ours = by_llamacpp(file, text, arguments.window), by_sluice(arguments.sluice, file, arguments.text, arguments.window)
        difference = ours[1] / theirs[1] - 1.0
        good &= theirs[0] == ours[0] and abs(difference) <= arguments.tolerance
        count = f"{ours[0]:,}" if ours[0] == theirs[0] else f"{ours[0]:,} for {theirs[0]:,}"
        print(f"| {file.rsplit('/', 1)[-1]} | {count} | {theirs[1]:.4f} | {ours[1]:.4f} | {difference:+.2%} |", flush=True)
    del keep
    sys.exit(0 if good else 1)


main()
