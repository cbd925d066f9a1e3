#!/usr/bin/env python3
"""Turns the corpus' train.jsonl.gz into what sluice-nano v1 learns from: `nano_records.py train.jsonl.gz OUT_FOLDER STAGE`.

STAGE is 1 or 2. Writes train.jsonl.gz, held_out.jsonl.gz and words.txt, the text to choose tokens by. Nothing comes in but the
records of that file: questions of learnt tasks, some of them several times in other phrasings, with shorter or reordered
lists of labels, or with words left out; and questions of other tasks, answered HANDOFF. A held-out question without a list
of labels is in no other form in what is learnt. The same input gives the same output. Needs the package `blake3`.
"""

import gzip
import json
import random
import re
import sys
from pathlib import Path

import blake3

# Times that a record of a learnt task comes. What needs many words counted comes often, what is only to be read less. The
# first stage learns slots too; their texts were not copied at its end, so the second hands them off.
FIRST = {
    "intent_closed": 6,
    "oos_detect": 1.3,
    "intent_candidates": 1,
    "intent_full_list": 1,
    "sentiment": 1,
    "topic": 1.5,
    "spam": 1.8,
    "clickbait": 1.3,
    "language_id": 2,
    "smalltalk": 4,
    "dialogue_act": 1,
    "slots_json": 1.2,
    "handoff": 0.6,
}
SECOND = {
    "intent_closed": 6,
    "oos_detect": 2,
    "intent_candidates": 1.4,
    "intent_full_list": 1,
    "sentiment": 1.2,
    "topic": 2,
    "spam": 3,
    "clickbait": 1.5,
    "language_id": 4.5,
    "smalltalk": 6,
    "dialogue_act": 2.5,
    "handoff": 0.8,
}
DECLINED = 240  # of each other task
# By stage: passes, of prompts with all labels of a large set (they are long), labels of a list made shorter, declined tasks
# of which there are more.
STAGES = {
    "1": (FIRST, 0.12, 7, {}),
    "2": (SECOND, 0.1, 6, {"slots_json": 1500, "emotion": 500, "same_intent": 400, "ner_json": 400}),
}
EMOTIONS = 0.6  # of questions about emotions, as ones about sentiment
HELD_OUT = 0.05
SHORTER = 0.85  # of lists
RESPELT = 0.15  # of lists made shorter
OWN_WORDS = 0.12  # of closed questions: phrasings that the corpus does not have
DROP_WORDS = 0.4  # of texts
DROP_WORD = 0.12

SETS = ("clinc150", "banking77", "hwu64")
SYSTEM = (
    "System: respond with the answer and nothing else.",
    "You are a precise text-processing service. Answer with the result only.",
    "You are a helpful assistant inside a backend service. Be brief.",
    "You are a deterministic function. Output just the result.",
    "Return only the value. No explanation.",
)
CLOSED = (
    ('intent({set}): ', ''),
    ('[{set}] intent of this message: ', ''),
    ('task=intent labels={set}\n', ''),
    ('Classify with the {set} intents.\n', ''),
    ('Label set: {set}. Give the intent of: ', ''),
    ('Which {set} intent is "', '"?'),
    ('Use the {set} label set. What does the user want?\n', ''),
    ('Predict the {set} intent. Reply with the label only.\n\n', ''),
    ('Message: ', '\nIntent ({set}):'),
    ('', '\n\n{set} intent?'),
    ('{"task":"intent","label_set":"{set}","text":', '}'),
)
OWN = (
    ('{set} label for "', '"'),
    ('Text: ', '\nAnswer with one label of {set}.'),
    ('What is wanted here, as {set} names it?\n', ''),
    ('', ' -> {set} intent'),
    ('Sort this message by the {set} labels: ', ''),
    ('{set}|', '|'),
    ('Please tell me the {set} intent for the following.\n\n', '\n\nThank you.'),
)
POSITIVE = "joy admiration approval gratitude love amusement excitement caring optimism pride relief desire".split()
NEGATIVE = (
    "anger annoyance sadness disappointment disapproval disgust embarrassment fear grief nervousness remorse".split()
)


def share(text):
    """As the trainer's holdout_share: what v0 was not trained on is not trained on now."""
    return (int.from_bytes(blake3.blake3(plain(text).encode()).digest()[:8], "little") >> 11) / 2**53


def plain(text):
    return "".join(c for c in text.lower() if c.isalnum())


def without_system(prompt):
    for line in SYSTEM:
        if prompt.startswith(line + "\n\n"):
            return prompt[len(line) + 2 :]
    return prompt


def closed_text(prompt, names):
    """The text and the label set of a question without a list."""
    prompt = without_system(prompt)
    for name in names:
        for before, after in CLOSED:
            before, after = before.replace("{set}", name), after.replace("{set}", name)
            if prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after):
                text = prompt[len(before) : len(prompt) - len(after)]
                if before.startswith("{"):
                    try:
                        text = json.loads(text)
                    except json.JSONDecodeError:
                        continue
                if (before or after) and "\n" not in text.strip("\n"):
                    return text, name
    return None


def closed_prompt(rng, text, name):
    before, after = CLOSED[min(rng.randrange(len(CLOSED)), rng.randrange(len(CLOSED) + 4))]
    if rng.random() < OWN_WORDS:
        before, after = rng.choice(OWN)
    before, after = before.replace("{set}", name), after.replace("{set}", name)
    prompt = before + (json.dumps(text, ensure_ascii=False) if before.startswith("{") else text) + after
    return rng.choice(SYSTEM) + "\n\n" + prompt if rng.random() < 0.04 else prompt


def fewer_words(rng, text):
    words = text.split(" ")
    if len(words) < 4 or rng.random() > DROP_WORDS:
        return text
    kept = [word for word in words if rng.random() > DROP_WORD]
    return " ".join(kept) if len(kept) >= 3 else text


def shown_list(prompt, labels):
    """What stands between two labels in the prompt, if they are all there, one after the other."""
    start = prompt.find(labels[0])
    end = prompt.find(labels[1], start + len(labels[0]))
    between = prompt[start + len(labels[0]) : end] if start >= 0 and end > start else ""
    return between if between and prompt.count(between.join(labels)) == 1 else None


def respelt(rng, label):
    words = re.split(r"[_\- ]", label)
    ways = (" ".join(words), "-".join(words), words[0] + "".join(word.capitalize() for word in words[1:]), label.upper())
    return rng.choice(ways)


def other_list(rng, record, most):
    """The same question with a shorter list in another order, now and then spelt in another way."""
    labels, prompt, answer = record.get("labels"), record["prompt"], record["answer"]
    if not labels or len(labels) < 3 or answer not in labels:
        return prompt, answer
    between = shown_list(prompt, labels)
    if between is None:
        return prompt, answer
    others = [label for label in labels if label != answer]
    rng.shuffle(others)
    chosen = others[: rng.randint(min(2, len(others)), min(most - 1, len(others)))] + [answer]
    rng.shuffle(chosen)
    if any("_" in label for label in chosen) and rng.random() < RESPELT:
        way = rng.random()
        spelt = {label: respelt(random.Random(way), label) for label in chosen}
        if len(set(spelt.values())) == len(spelt):
            chosen, answer = [spelt[label] for label in chosen], spelt[answer]
    return prompt.replace(between.join(labels), between.join(chosen)), answer


def as_sentiment(rng, record):
    """A question about an emotion as one about positive and negative."""
    labels, answer, prompt = record["labels"], record["answer"], record["prompt"]
    mapped = "positive" if answer in POSITIVE else "negative" if answer in NEGATIVE else None
    if answer == "neutral" and "neutral" in labels:
        mapped = "neutral"
    between = shown_list(prompt, labels)
    if mapped is None or between is None:
        return None
    wanted = ["negative", "positive"] if mapped != "neutral" and rng.random() < 0.4 else ["negative", "neutral", "positive"]
    rng.shuffle(wanted)
    prompt = prompt.replace(between.join(labels), between.join(wanted))
    for one, other in (("emotions", "sentiments"), ("Emotions", "Sentiments"), ("emotion", "sentiment"), ("Emotion", "Sentiment")):
        prompt = prompt.replace(one, other)
    return prompt, mapped


def times(rng, number):
    return int(number) + (rng.random() < number - int(number))


def main():
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    passes_of, long_lists, longest, declined_more = STAGES[sys.argv[3]]
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    with gzip.open(source, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    served = set(passes_of)
    held = [r for r in records if r["task"] in served and share(r["prompt"]) < HELD_OUT]
    ids = {r["id"] for r in held}
    texts = set()
    for record in held:
        found = closed_text(record["prompt"], SETS) if record["task"] == "intent_closed" else None
        if found and len(plain(found[0])) >= 12:
            texts.add(found[0])
    texts = sorted(texts)
    made, dropped, unread = [], 0, 0

    def add(record, prompt, answer, task=None):
        made.append({"id": f"{record['id']}-{len(made)}", "task": task or record["task"], "source": record["source"],
                     "licence": record["licence"], "prompt": prompt, "answer": answer})

    others = {}
    for record in records:
        task, prompt, answer = record["task"], record["prompt"], record["answer"]
        if record["id"] in ids:
            continue
        if record["source"] in SETS and task != "intent_closed" and any(text in prompt for text in texts):
            dropped += 1
            continue
        if task == "emotion" and rng.random() < EMOTIONS:
            mapped = as_sentiment(rng, record)
            if mapped and (mapped[1] != "neutral" or rng.random() < 0.5):
                add(record, *mapped, task="sentiment")
        if task not in passes_of:
            others.setdefault(task, []).append(record)
        elif task == "intent_closed" or task == "oos_detect" and "clinc150 (or out_of_scope)" in prompt:
            name = record["source"]
            found = closed_text(prompt, ("clinc150 (or out_of_scope)",) if task == "oos_detect" else (name,))
            if not found:
                unread += 1
                add(record, prompt, answer)
                continue
            for number in range(times(rng, passes_of[task])):
                text, name = found
                if name == "clinc150" and rng.random() < 0.35:
                    name = "clinc150 (or out_of_scope)"
                text = text if number == 0 else fewer_words(rng, text)
                add(record, closed_prompt(rng, text, name), answer)
            if answer == "out_of_scope":
                for _ in range(3):
                    add(record, closed_prompt(rng, fewer_words(rng, found[0]), found[1]), answer)
        else:
            passes = passes_of[task]
            if task == "intent_full_list" and record["source"] in SETS:
                passes *= long_lists
            for number in range(times(rng, passes)):
                shorter = task not in ("spam", "clickbait", "oos_detect") and (number > 0 or rng.random() < SHORTER)
                if task == "intent_full_list":
                    shorter = False
                add(record, *(other_list(rng, record, longest) if shorter else (prompt, answer)))
    for key in sorted(others, key=str):
        group = others[key]
        rng.shuffle(group)
        for record in group[: declined_more.get(key, DECLINED)]:
            add(record, record["prompt"], "HANDOFF", task="handoff")
    rng.shuffle(made)
    for name, rows in (("train", made), ("held_out", held)):
        with gzip.GzipFile(out / f"{name}.jsonl.gz", "wb", compresslevel=4, mtime=0) as file:
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    with open(out / "words.txt", "w", encoding="utf-8") as file:
        file.writelines(f"{row['prompt']}\n{row['answer']}\n" for row in made)
    count = {}
    for row in made:
        one = count.setdefault(row["task"], [0, 0])
        one[0] += 1
        one[1] += len(row["prompt"]) + len(row["answer"])
    print(f"{len(made)} records, {len(held)} held out, {dropped} dropped for texts of those, {unread} not taken apart")
    for task, (rows, characters) in sorted(count.items()):
        print(f"  {task}: {rows} records, {characters / 1e6:.2f} M characters")


if __name__ == "__main__":
    main()
