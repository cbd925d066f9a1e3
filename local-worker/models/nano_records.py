#!/usr/bin/env python3
"""Turns the corpus' train.jsonl.gz into what sluice-nano v1 learns from: `nano_records.py train.jsonl.gz OUT_FOLDER [STAGE]`.

Writes train.jsonl.gz, held_out.jsonl.gz and words.txt, the text to choose tokens by. Nothing comes in but the records of that
file: questions of learnt tasks, some of them several times in other phrasings, with shorter or reordered lists of labels, with
labels by other names, or with words left out; and questions of other tasks, answered HANDOFF. A held-out question without a
list of labels is in no other form in what is learnt (but that texts of declined questions, a few of them held out, are declined
under other labels too). STAGE 2 has more of what is copied out of texts, STAGE 3 also more closed questions. STAGE 4 has more of
everything that counting words is good at, and asks for fields with other values in the text and in another order; lists of labels
that no task here has are declined. STAGE 5 is the same with more closed questions and fields again. STAGE 6 leaves words out of
texts of most tasks, and asks SNIPS' and Bitext's texts with all labels of theirs, texts of questions about fields among them.
STAGE 7 is for what counting words still does better: more words left out, texts asked about in forms of other questions, small talk
in both tones, more closed questions as ones about topics; and for lists to be read: many more names of labels and forms around them.
The same input gives the same output. Needs the package `blake3`.
"""

import gzip
import json
import math
import random
import re
import sys
from pathlib import Path

import blake3

from nano_fields import Fields, lists_of, objects
from nano_forms import CLOSED, LANGUAGE_NAMES, NAMES, NOUNS, OWN, OWN_LISTS, OWN_MORE, RENAMED, SAME_NAMES, SYSTEM
from nano_stages import PASSES
from nano_texts import SETS, Texts, closed_text, plain, read, shown_list, text_of, without_system, written_in

DECLINED = 260  # of each other task
DECLINED_MORE = {"emotion": 500, "same_intent": 500, "ner_json": 500, "string_case": 500}
LONG_LISTS = 0.1  # passes of prompts with all labels of a large set: they are long
SHORTER_LATER = 0.4  # of lists, in the fourth stage
RENAME, RENAME_LATER = 0.25, 0.08  # of questions whose labels may have other names; the second from the fourth stage on
RENAME_LAST = 0.2  # in the seventh, of those whose text has words left out: each label by any name
OWN_FORM, OWN_FORM_RENAMED = 0.12, 0.4  # of those, in the seventh: in a form that the corpus does not have
DOMAINS = {4: 1.5, 5: 0.4, 6: 0.4, 7: 1}  # times that a closed question comes as one about its domain, by stage
ALL_LABELS = {"intent_candidates": 1, "slots_json": 0.4}  # times that a text of SNIPS or Bitext comes with all their labels, in the sixth
FEWER_WORDS = {"sentiment", "topic", "spam", "clickbait", "language_id", "intent_candidates", "intent_full_list"}  # from the sixth on
REVIEWS = 2.5  # passes of reviews for one of other sentiments, in the seventh
OTHER_FORM = 0.5  # of texts with words left out, in the seventh: asked about in the form of another question
LONGEST = 7  # labels of a list made shorter
IN_DANGER = 6  # passes of messages on suicide and self-harm
EMOTIONS = 0.6  # of questions about emotions, as ones about sentiment
HELD_OUT = 0.05
SHORTER = 0.85  # of lists
RESPELT = 0.15  # of lists made shorter
OWN_WORDS, OWN_WORDS_LAST = 0.12, 0.25  # of closed questions: phrasings that the corpus does not have; the second in the seventh
DROP_WORDS, DROP_WORD = 0.4, 0.12  # of texts, of their words
DROP_WORDS_LATER, DROP_WORD_LATER = 0.65, 0.2  # in the seventh, of all but closed intents

# Kinds that no learnt task asks for, declined in the fourth stage.
UNFAMILIAR = 2400  # questions
KINDS = ("definition", "quantity", "place", "who", "thing", "short form", "reason", "moment", "manner", "amount", "product", "human")
OTHER_KINDS = (
    ("urgent", "not urgent"), ("formal", "informal"), ("true", "false"), ("past", "present", "future"), ("rude", "polite"),
    ("fact", "opinion"), ("toxic", "clean"), ("left", "right", "centre"), ("high", "medium", "low"), ("poem", "prose"),
)

OFTEN_SAID = re.compile(r"^(I('m| am) (going|planning|about) to|I plan to|I need to|I want to|Should I|I think)")
DANGER = re.compile(r"\b(kill(ing)? my ?self|suicid|hurt(ing)? my ?self|harm(ing)? my ?self|cut(ting)? my ?self|end (my|it) |to die\b|die\b)", re.I)
POSITIVE = "joy admiration approval gratitude love amusement excitement caring optimism pride relief desire".split()
NEGATIVE = (
    "anger annoyance sadness disappointment disapproval disgust embarrassment fear grief nervousness remorse".split()
)


def share(text):
    """As the trainer's holdout_share: what v0 was not trained on is not trained on now."""
    return (int.from_bytes(blake3.blake3(plain(text).encode()).digest()[:8], "little") >> 11) / 2**53


def closed_prompt(rng, text, name, own_words=OWN_WORDS, own=OWN):
    before, after = CLOSED[min(rng.randrange(len(CLOSED)), rng.randrange(len(CLOSED) + 4))]
    if rng.random() < own_words:
        before, after = rng.choice(own)
    before, after = before.replace("{set}", name), after.replace("{set}", name)
    prompt = before + (json.dumps(text, ensure_ascii=False) if before.startswith("{") else text) + after
    return rng.choice(SYSTEM) + "\n\n" + prompt if rng.random() < 0.04 else prompt


def fewer_words(rng, text, texts=DROP_WORDS, words_of_it=DROP_WORD):
    words = text.split(" ")
    if len(words) < 4 or rng.random() > texts:
        return text
    kept = [word for word in words if rng.random() > words_of_it]
    return " ".join(kept) if len(kept) >= 3 else text


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


def other_names(rng, task, labels):
    """A name for each label, out of those that the label may have."""
    way, pools = rng.choice(LANGUAGE_NAMES), NAMES[task]
    names = {}
    for label in labels:
        pool = pools.get(SAME_NAMES.get(label, label))
        names[label] = rng.choice(pool) if pool else way.format(label)
    return names if len(set(names.values())) == len(names) else dict(zip(labels, labels))


def own_list(rng, record, text, names):
    """The question in a form of ours, with labels by these names."""
    shown = [names.get(label, label) for label in record["labels"]]
    rng.shuffle(shown)
    mark = rng.choice((", ", ", ", " | ", "/", "; "))
    form, kind = rng.choice(OWN_LISTS), rng.choice(NOUNS[record["task"]])
    return form.format(text=text, labels=mark.join(shown), kind=kind), names.get(record["answer"], record["answer"])


def renamed(rng, record, names=None):
    """The same question with its labels by other names."""
    labels, prompt, answer = record.get("labels"), record["prompt"], record["answer"]
    names = names or rng.choice(RENAMED[record["task"]])
    between = shown_list(prompt, labels) if labels and len(labels) > 1 and all(label in names for label in labels) else None
    if between is None or answer not in labels:
        return None
    shown = list(labels)
    rng.shuffle(shown)
    return prompt.replace(between.join(labels), between.join(names[label] for label in shown)), names[answer]


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


def unfamiliar(rng, record, questions):
    """A question about labels as one about labels of a kind that is not learnt, for a question in place of its text."""
    prompt, labels = record["prompt"], record.get("labels")
    between = shown_list(prompt, labels) if labels and len(labels) > 1 else None
    text = text_of(prompt, labels) if between else None
    if not text or prompt.count(text) != 1:
        return None
    if rng.random() < 0.7:
        names, kind = rng.sample(KINDS, rng.randint(3, 7)), rng.choice(("question type", "answer type", "kind of question"))
        other = rng.choice(questions)
    else:
        names, kind = list(rng.choice(OTHER_KINDS)), rng.choice(("tone", "class", "kind", "style"))
        rng.shuffle(names)
        other = text if rng.random() < 0.7 else rng.choice(questions)
    prompt = prompt.replace(between.join(labels), between.join(names)).replace(text, other)
    return re.sub(r"\b(sentiment|topic|dialogue act|category|label)\b", kind, prompt)


class Votes:
    """Naive Bayes over words, each count of a word raised by one number and each size of a class by another."""

    def __init__(self, word_more, size_more):
        self.words, self.sizes, self.word_more, self.size_more = {}, {}, word_more, size_more

    def learn(self, name, words):
        for word in words:
            one = self.words.setdefault(name, {})
            one[word] = one.get(word, 0) + 1
            self.sizes[name] = self.sizes.get(name, 0) + 1

    def score(self, name, words):
        return sum(math.log((self.words[name].get(word, 0) + self.word_more) / (self.sizes[name] + self.size_more)) for word in words)

    def best(self, words):
        return max(sorted(self.words), key=lambda name: self.score(name, words))


def domains(records):
    """The domain of each intent that a closed question can be asked about as a topic, by source.

    Of HWU64 it is the beginning of the label. Of CLINC150 the words of its topic questions vote (naive Bayes), text by text.
    """
    of, words = {"hwu64": {}, "clinc150": {}}, Votes(0.5, 2000)
    asked = [r for r in records if r["task"] == "topic" and r["source"] == "clinc150" and r.get("labels")]
    for record in asked:
        name = re.sub(r"[ -]", "_", record["answer"].lower())
        words.learn(name, re.findall(r"[a-z']+", (text_of(record["prompt"], record["labels"]) or "").lower()))
    votes = {}
    for record in records:
        if record["task"] != "intent_closed" or record["source"] not in of:
            continue
        if record["source"] == "hwu64":
            of["hwu64"][record["answer"]] = record["answer"].split("_")[0]
            continue
        found = closed_text(record["prompt"], (record["source"],))
        told = re.findall(r"[a-z']+", found[0].lower()) if found else []
        if told:
            best = words.best(told)
            one = votes.setdefault(record["answer"], {})
            one[best] = one.get(best, 0) + 1
    of["clinc150"] = {intent: max(sorted(one), key=one.get) for intent, one in votes.items()}
    return of


def fields_asked(record):
    """The text of a question about fields and the fields, if there are several and all but one of its lines are of a usual form."""
    prompt, found = without_system(record["prompt"]), objects(record)
    shown = lists_of(prompt, 0, found) if found else []
    if len(shown) != 1:
        return None
    match, mark = shown[0]
    if prompt.startswith("{"):
        lines = [json.loads(prompt).get("text")]
    else:
        other = (line for line in prompt.split("\n") if line and match[0] not in line)
        lines = [line for line in other if not line.startswith(("### ", "Task: ", "JSON", "Output:"))]
    if len(lines) != 1 or not lines[0]:
        return None
    return re.sub(r'^(Text: |Input: |Utterance: |")|"$', "", lines[0]), match[0].split(mark)


def requests(records):
    """The text and the intent of each SNIPS question about fields, by id. Fields vote (naive Bayes), by texts that are asked about in both ways."""
    intents, asked, fields = {}, {}, Votes(0.1, 5)
    for record in records:
        if record["source"] != "snips":
            continue
        if record["task"] == "slots_json":
            found = fields_asked(record)
            if found:
                asked[record["id"]] = found
        elif text := text_of(record["prompt"], record["labels"]):
            intents[plain(text)] = plain(record["answer"])
    for text, names in asked.values():
        if plain(text) in intents:
            fields.learn(intents[plain(text)], names)
    return {id: (text, fields.best(names)) for id, (text, names) in asked.items()}


def as_asked(rng, text, label, asked, texts=None):
    """A text with its label in the form and with the list of one of these questions, such as a closed question's as one about topics."""
    like = rng.choice(asked)
    prompt, labels = like["prompt"], like["labels"]
    old, between = texts.find(like) if texts else text_of(prompt, labels), shown_list(prompt, labels)
    spelt = {plain(name): name for name in labels}
    if not old or plain(label) not in spelt or prompt.count(old) != 1:
        return None
    shown = list(labels)
    rng.shuffle(shown)
    return prompt.replace(between.join(labels), between.join(shown)).replace(old, written_in(prompt, text)), spelt[plain(label)]


def in_fewer_words(rng, record):
    """The same question about a text with words left out of it, where it can be told from the rest."""
    text = text_of(record["prompt"], record["labels"]) if len(record.get("labels") or ()) > 1 else None
    if not text or record["prompt"].count(text) != 1:
        return record
    return record | {"prompt": record["prompt"].replace(text, fewer_words(rng, text))}


def in_other_words(rng, record, texts, alike):
    """The same about a text with more words left out of it, now and then in the form of one of the questions that are alike, in
    one of ours, or with labels by other names."""
    text, prompt, task = texts.find(record), record["prompt"], record["task"]
    if not text or record["answer"] not in record["labels"]:
        return record
    fewer = fewer_words(rng, text, DROP_WORDS_LATER, DROP_WORD_LATER)
    names = other_names(rng, task, record["labels"]) if task in NAMES and rng.random() < RENAME_LAST else {}
    if task in NOUNS and rng.random() < (OWN_FORM_RENAMED if names else OWN_FORM):
        prompt, answer = own_list(rng, record, fewer, names)
        return record | {"prompt": prompt, "answer": answer, "labels": None}
    if names:
        prompt, answer = renamed(rng, record, names) or (prompt, record["answer"])
        return record | {"prompt": prompt, "answer": answer, "labels": None}
    other = as_asked(rng, fewer, record["answer"], alike, texts) if rng.random() < OTHER_FORM else None
    if other:
        return record | {"prompt": other[0], "answer": other[1], "labels": None}
    old, new = written_in(prompt, text), written_in(prompt, fewer)
    return record | {"prompt": prompt.replace(old, new)} if prompt.count(old) == 1 else record


class Tones:
    """Canned replies come in two tones, a text in one of them only. Texts of a reply vote for the one that the other tone has (naive Bayes)."""

    FORMS = {
        "friendly": (("", ""), ("", ""), ("Reply briefly: ", ""), ("User: ", "\nAssistant:")),
        "professional": (("Tone: professional\nUser: ", "\nAssistant:"), ("Reply in a professional tone: ", "")),
    }
    SURE = 0.5  # of the texts of a reply

    def __init__(self, records):
        votes = {tone: Votes(0.1, 100) for tone in self.FORMS}
        said = [self.take_apart(record["prompt"]) + (record["answer"],) for record in records]
        for tone, text, answer in said:
            votes[tone].learn(answer, self.words(text))
        counted = {}
        for tone, text, answer in said:
            one = counted.setdefault((tone, answer), {})
            best = votes[self.other(tone)].best(self.words(text))
            one[best] = one.get(best, 0) + 1
        tops = {key: max(sorted(one), key=one.get) for key, one in counted.items()}
        self.replies = {key: top for key, top in tops.items() if counted[key][top] > self.SURE * sum(counted[key].values())}

    @staticmethod
    def words(text):
        told = re.findall(r"\w+", text.lower())
        return told + [" ".join(pair) for pair in zip(told, told[1:])]

    @staticmethod
    def other(tone):
        return "friendly" if tone == "professional" else "professional"

    def take_apart(self, prompt):
        forms = [(tone, form) for tone in reversed(self.FORMS) for form in reversed(self.FORMS[tone])]
        tone, (before, after) = next((t, f) for t, f in forms if prompt.startswith(f[0]) and prompt.endswith(f[1]))
        return tone, prompt[len(before) : len(prompt) - len(after)]

    def said(self, rng, prompt, answer):
        """The same with words left out, in another form, now and then in the other tone."""
        tone, text = self.take_apart(prompt)
        if (tone, answer) in self.replies and rng.random() < 0.4:
            tone, answer = self.other(tone), self.replies[tone, answer]
        before, after = rng.choice(self.FORMS[tone])
        return before + fewer_words(rng, text, DROP_WORDS_LATER, DROP_WORD_LATER) + after, answer


def times(rng, number):
    return int(number) + (rng.random() < number - int(number))


def main():
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    stage = int(sys.argv[3]) if sys.argv[3:] else 1
    passes_of = PASSES[stage - 1]
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    records = read(source)
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
    fields = Fields([r for r in records if r["task"] == "slots_json" and r["id"] not in ids]) if stage >= 4 else None
    domain_of = domains(records) if stage >= 4 else {}
    topics = {}
    for record in records:
        if record["task"] == "topic" and record["source"] in domain_of and record["id"] not in ids and record.get("labels"):
            topics.setdefault(record["source"], []).append(record)
    request_of = requests([r for r in records if r["id"] not in ids]) if stage >= 6 else {}
    all_labels = {}
    for record in records:
        if record["task"] == "intent_full_list" and record["id"] not in ids and record["source"] in ("snips", "bitext"):
            if text_of(record["prompt"], record["labels"]):
                all_labels.setdefault(record["source"], []).append(record)
    listed = [r for r in records if r["task"] in FEWER_WORDS and r["id"] not in ids] if stage >= 7 else []
    text_in, alike = Texts(listed), {}
    for record in listed:
        if record.get("labels") and text_in.find(record):
            alike.setdefault((record["task"], record["source"]), []).append(record)
    tones = Tones([r for r in records if r["task"] == "smalltalk" and r["source"] == "chitchat" and r["id"] not in ids]) if stage >= 7 else None
    own_closed = (OWN_WORDS_LAST, OWN + OWN_MORE) if stage >= 7 else ()
    rename, shorten = (RENAME, SHORTER) if stage < 4 else (RENAME_LATER, SHORTER_LATER)

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
                add(record, closed_prompt(rng, text, name, *own_closed), answer)
            if found[1] in topics and answer in domain_of[found[1]]:
                for number in range(times(rng, DOMAINS[stage])):
                    text = found[0] if number == 0 else fewer_words(rng, found[0])
                    other = as_asked(rng, text, domain_of[found[1]][answer], topics[found[1]])
                    if other:
                        add(record, *other, task="topic")
            if answer == "out_of_scope":
                for _ in range(3):
                    add(record, closed_prompt(rng, fewer_words(rng, found[0]), found[1], *own_closed), answer)
        else:
            in_danger = task == "handoff" and DANGER.search(prompt)
            passes = IN_DANGER if in_danger else passes_of[task]
            if stage >= 4 and task == "handoff" and record["source"] == "chitchat":
                in_danger = True  # all that it declines
                passes = IN_DANGER if OFTEN_SAID.search(prompt) else 4 * IN_DANGER
            if task == "intent_full_list" and record["source"] in SETS:
                passes *= LONG_LISTS
            if stage >= 7 and record["source"] == "uci-sentiment":
                passes *= REVIEWS
            for number in range(times(rng, passes)):
                other = renamed(rng, record) if task in RENAMED and rng.random() < rename else None
                if other:
                    add(record, *other)
                    continue
                if task == "slots_json" and fields and number > 0:
                    add(record, *fields.varied(rng, record))
                    continue
                if task == "smalltalk" and tones and record["source"] == "chitchat" and number > 0:
                    add(record, *tones.said(rng, prompt, answer))
                    continue
                if task == "smalltalk" and stage >= 4 and number > 0:
                    add(record, fewer_words(rng, prompt), answer)
                    continue
                if in_danger and number > 0:
                    # Before the fourth stage only drawn, not used: what the first three learnt must stay what it is.
                    fewer = fewer_words(rng, prompt)
                    if stage >= 4:
                        add(record, fewer, answer)
                        continue
                said = record
                if (number > 0 or task == "intent_candidates") and task in FEWER_WORDS and stage >= 7:
                    said = in_other_words(rng, record, text_in, alike.get((task, record["source"])) or [record])
                elif number > 0 and task in FEWER_WORDS and stage >= 6:
                    said = in_fewer_words(rng, record)
                shorter = task not in ("spam", "clickbait", "oos_detect") and ((number > 0 and stage < 4) or rng.random() < shorten)
                if task == "intent_full_list":
                    shorter = False
                add(record, *(other_list(rng, said, LONGEST) if shorter else (said["prompt"], said["answer"])))
            if stage >= 6 and task in ALL_LABELS and record["source"] in all_labels:
                text, intent = request_of.get(record["id"], (None, None))
                if task == "intent_candidates":
                    text, intent = text_of(prompt, record["labels"]), answer
                for number in range(times(rng, ALL_LABELS[task]) if text else 0):
                    text = text if number == 0 else fewer_words(rng, text)
                    other = as_asked(rng, text, intent, all_labels[record["source"]])
                    if other:
                        add(record, *other, task="intent_full_list")
    for key in sorted(others, key=str):
        group = others[key]
        rng.shuffle(group)
        for record in group[: DECLINED_MORE.get(key, DECLINED)]:
            add(record, record["prompt"], "HANDOFF", task="handoff")
    if stage >= 4:
        questions = [r["prompt"].split("\n")[-1] for r in records if r["source"] in ("disfl-qa", "gsm8k") and "?" in r["prompt"][-2:]]
        asked = [r for r in records if r["task"] in ("sentiment", "topic", "dialogue_act", "spam", "emotion") and r["id"] not in ids]
        declined = 0
        while declined < UNFAMILIAR:
            record = rng.choice(asked)
            prompt = unfamiliar(rng, record, questions)
            if prompt:
                add(record, prompt, "HANDOFF", task="handoff")
                declined += 1
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
