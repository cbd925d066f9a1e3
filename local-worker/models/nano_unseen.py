#!/usr/bin/env python3
"""Makes a suite of what sluice-nano has never seen, out of the corpus' test part: `nano_unseen.py test.jsonl.gz OUT.jsonl.gz`.

The questions are those of the test part; new are the phrasings around them (`phrasing_*`: none is in the corpus or in
nano_records.py) and the words of the labels (`labels_*`: the list in the prompt is to be read, not remembered). A model that
learnt prompts by heart fails here.
"""

import gzip
import json
import random
import sys

from nano_texts import SETS, closed_text, read, text_of

PHRASINGS = (
    ("What would {set} call this request? >> ", " <<"),
    ("Customer says: ", " // now give the {set} intent, nothing more"),
    ("I need the right {set} intent here, please: ", ""),
    ("utterance = ", "; taxonomy = {set}; intent ="),
)
LISTS = (
    "Here is a text:\n{text}\nWhich one of [{labels}] does it belong to?",
    "{labels} -- choose the one that suits this best: {text}",
    "Read \"{text}\" and name the {kind} ({labels}).",
)
WORDS = {
    "sentiment": ("mood", {"positive": "good", "negative": "bad", "neutral": "mixed"}),
    "spam": ("kind", {"spam": "junk", "not_spam": "legit", "ham": "legit", "not spam": "legit"}),
    "language_id": ("tongue", {"English": "English tongue", "French": "French tongue", "German": "German tongue",
                               "Italian": "Italian tongue", "Portuguese": "Portuguese tongue", "Spanish": "Spanish tongue"}),
    "clickbait": ("style", {"clickbait": "bait", "news": "report"}),
}


def main():
    rng = random.Random(13)
    records = read(sys.argv[1])
    made = []

    def add(record, task, prompt, answer, labels=None):
        row = {key: record[key] for key in ("source", "licence")}
        row |= {"id": f"unseen-{record['id']}", "task": task, "prompt": prompt, "answer": answer}
        made.append(row | ({"labels": labels} if labels else {}))

    for record in records:
        task, labels, answer = record["task"], record.get("labels"), record["answer"]
        if task == "intent_closed":
            found = closed_text(record["prompt"], SETS)
            if found:
                before, after = rng.choice(PHRASINGS)
                text, name = found
                add(record, "phrasing_closed", before.replace("{set}", name) + text + after.replace("{set}", name), answer)
        elif labels and len(labels) > 1 and answer in labels and (task in WORDS or task in ("intent_candidates", "topic")):
            text = text_of(record["prompt"], labels)
            if not text:
                continue
            kind, words = WORDS.get(task, ("label", {}))
            form = rng.choice(LISTS)
            shown = form.format(text=text, labels=", ".join(labels), kind=kind)
            add(record, f"phrasing_{task}", shown, answer, labels)
            if words and all(label in words for label in labels):
                new = [words[label] for label in labels]
                shown = form.format(text=text, labels=", ".join(new), kind=kind)
                add({**record, "id": record["id"] + "-l"}, f"labels_{task}", shown, words[answer], new)
    with gzip.GzipFile(sys.argv[2], "wb", compresslevel=4, mtime=0) as file:
        for row in made:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    count = {}
    for row in made:
        count[row["task"]] = count.get(row["task"], 0) + 1
    print(count)


main()
