#!/usr/bin/env python3
"""What counting words comes to on SST-2 with the texts that sluice-nano may learn from: `nano_floor.py train.jsonl.gz test.jsonl.gz`.

Multinomial naive Bayes on words and bigrams, as the corpus' README has it (the best of three smoothings on the test texts), learnt
from the texts of reviews, of GoEmotions (positive and negative ones), and of both.
"""

import math
import re
import sys

from nano_texts import Texts, read

SMOOTHINGS = (0.1, 0.3, 1.0)


def texts(path, sources):
    """The text, its label and its source for each question about sentiment that can be taken apart, each text once."""
    records = [row for row in read(path) if row["task"] == "sentiment" and row["source"] in sources]
    finder, seen = Texts(records), {}
    for row in records:
        text = finder.find(row)
        if text and row["answer"] in ("positive", "negative"):
            seen.setdefault(text, (row["answer"], row["source"]))
    return [(text, *found) for text, found in seen.items()]


def words(text):
    told = re.findall(r"\w+|[^\w\s]", text.lower())
    return told + [" ".join(pair) for pair in zip(told, told[1:])]


def right(learnt, asked, smoothing):
    counts, sizes, known = {}, {}, set()
    for text, label, _ in learnt:
        for word in words(text):
            counts[label, word] = counts.get((label, word), 0) + 1
            sizes[label] = sizes.get(label, 0) + 1
            known.add(word)
    prior = {label: math.log(sum(other == label for _, other, _ in learnt) / len(learnt)) for label in sizes}

    def score(label, told):
        below = sizes[label] + smoothing * len(known)
        return prior[label] + sum(math.log((counts.get((label, word), 0) + smoothing) / below) for word in told if word in known)

    return sum(max(sorted(sizes), key=lambda one: score(one, words(text))) == label for text, label, _ in asked) / len(asked)


def main():
    learnt, asked = texts(sys.argv[1], ("uci-sentiment", "goemotions")), texts(sys.argv[2], ("sst2",))
    for sources in (("uci-sentiment",), ("goemotions",), ("uci-sentiment", "goemotions")):
        part = [row for row in learnt if row[2] in sources]
        best = max(right(part, asked, smoothing) for smoothing in SMOOTHINGS)
        print(f"{' and '.join(sources)}: {len(part):,} texts, {100 * best:.1f} % of {len(asked)} texts of SST-2")


main()
