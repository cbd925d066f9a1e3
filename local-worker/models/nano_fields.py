"""Questions about the fields of a text, asked anew: other values in the text and the answer, the fields in another order.

A small model copies what it has often copied; a value that no record has can only be read. Used by nano_records.py.
"""

import json
import re

NAME = r"[A-Za-z][A-Za-z0-9_]*"
LISTS = (
    (re.compile(rf"{NAME}(?:, {NAME})+"), ", "),
    (re.compile(rf"{NAME}(?:\",\"{NAME})+"), '","'),
)
OPEN = 300  # different values of a field in a source: its values may be anything
OTHER_VALUES = 0.75  # of questions
MADE_UP = 0.4  # of values of open fields
OTHER_ORDER = 0.5  # of questions
LEFT_OUT = 0.3  # of fields that the text lacks, where the order changes


def objects(record):
    """The answer as a flat object, or nothing."""
    try:
        found = json.loads(record["answer"])
    except json.JSONDecodeError:
        return None
    flat = isinstance(found, dict) and all(value is None or isinstance(value, str) for value in found.values())
    return found if flat else None


def lists_of(prompt, start, names):
    """Where the prompt, from a place on, lists fields with all these among them, and what stands between two."""
    found = ((match, mark) for pattern, mark in LISTS for match in pattern.finditer(prompt, start))
    return [(match, mark) for match, mark in found if set(names) <= set(match[0].split(mark))]


class Fields:
    """What the records know: values of each field of a source, and words to make values of."""

    def __init__(self, records):
        self.values = {}
        words = {}
        for record in records:
            for name, value in (objects(record) or {}).items():
                if value:
                    self.values.setdefault((record["source"], name), {})[value] = None
                    for word in value.split(" "):
                        if word.isalpha() and len(word) > 2:
                            words[word.lower()] = words.get(word.lower(), 0) + 1
        self.values = {key: list(values) for key, values in self.values.items()}
        self.rare = sorted(word for word, count in words.items() if count <= 3)

    def made_up(self, rng, value):
        words = []
        for word in value.split(" "):
            other = rng.choice(self.rare)
            if any(c.isdigit() for c in word):
                other = "".join(rng.choice("0123456789") if c.isdigit() else c for c in word)
            elif rng.random() < 0.5:
                tail = rng.choice(self.rare)
                other = other[: rng.randint(2, 5)] + tail[-rng.randint(2, 5) :]
            if word.isupper() and len(word) > 1:
                other = other.upper()
            elif word[:1].isupper():
                other = other[:1].upper() + other[1:]
            words.append(other)
        if len(words) > 1 and rng.random() < 0.2:
            words.pop(rng.randrange(len(words)))
        return " ".join(words)

    def other_value(self, rng, source, name, value):
        known = self.values.get((source, name), [value])
        if len(known) >= OPEN and rng.random() < MADE_UP:
            return self.made_up(rng, value)
        other = rng.choice(known)
        return other.lower() if value.islower() else other

    def varied(self, rng, record):
        """The question and the answer with other values and the fields in another order, as far as they can be told."""
        prompt, answer, found = record["prompt"], record["answer"], objects(record)
        if not found:
            return prompt, answer
        asked = len(prompt.split("\n")[0]) + 1 if prompt.startswith("The user was asked for") else 0
        shown = lists_of(prompt, asked, found)
        if rng.random() < OTHER_VALUES:
            for name, value in found.items():
                if value is None or '"' in value or "\\" in value:
                    continue
                places = list(re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", prompt))
                others = [other for other in found.values() if other and other != value and (value in other or other in value)]
                if len(places) != 1 or others:
                    continue
                start, end = places[0].span()
                if any(match.start() < end and start < match.end() for match, _ in shown):
                    continue
                other = self.other_value(rng, record["source"], name, value)
                if not other or other in prompt or any(c in other for c in '"\\\n'):
                    continue
                prompt = prompt[:start] + other + prompt[end:]
                found[name] = other
                shown = lists_of(prompt, asked, found)
        if len(shown) == 1 and rng.random() < OTHER_ORDER:
            match, mark = shown[0]
            names = match[0].split(mark)
            names = [name for name in names if found.get(name) is not None or rng.random() > LEFT_OUT] or names
            rng.shuffle(names)
            if len(set(names)) == len(names) and len(names) > 1:
                prompt = prompt[: match.start()] + mark.join(names) + prompt[match.end() :]
                found = {name: found[name] for name in names if name in found}
        return prompt, json.dumps(found, ensure_ascii=False, separators=(",", ":"))
