"""Reads records of the corpus, and takes their prompts apart into texts and what stands around them."""

import gzip
import json
import re

from nano_forms import CLOSED, SYSTEM

SETS = ("clinc150", "banking77", "hwu64")  # of labels that are named, not listed


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


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


def shown_list(prompt, labels):
    """What stands between two labels in the prompt, if they are all there, one after the other."""
    start = prompt.find(labels[0])
    end = prompt.find(labels[1], start + len(labels[0]))
    between = prompt[start + len(labels[0]) : end] if start >= 0 and end > start else ""
    return between if between and prompt.count(between.join(labels)) == 1 else None


def text_of(prompt, labels):
    """The text that a prompt of one of the usual forms asks about, or nothing."""
    between = shown_list(without_system(prompt), labels)
    if between is None:
        return None
    prompt = without_system(prompt).replace(between.join(labels), "")
    for mark in ("Text: ", "Input: ", "Message: ", "### Text\n", "### Message\n", "### Headline\n", "Headline: ", "---\n"):
        at = prompt.find(mark)
        if at >= 0:
            return prompt[at + len(mark) :].split("\n")[0]
    return None


class Texts:
    """Finds the text that a question with a list of labels asks about: the one line of the prompt that few prompts have."""

    COMMON = 5  # prompts that have a line that is not a text

    def __init__(self, records):
        self.having = {}
        for record in records:
            for line in set(self.lines(record)):
                self.having[line] = self.having.get(line, 0) + 1

    @staticmethod
    def lines(record):
        labels, prompt = record.get("labels") or (), without_system(record["prompt"])
        between = shown_list(prompt, labels) if len(labels) > 1 else None
        if between is None:
            return []
        return [line for line in prompt.replace(between.join(labels), "[]").split("\n") if len(line) > 1]

    def find(self, record):
        prompt = without_system(record["prompt"])
        if prompt.startswith("{"):
            return json.loads(prompt).get("text")
        rare = [line for line in self.lines(record) if self.having.get(line, 0) < self.COMMON]
        if len(rare) != 1:
            return None
        if "[]" not in rare[0]:
            return re.sub(r"^[A-Z][a-z]+( [a-z]+){0,2}: ", "", rare[0])
        beside = re.search(r'"(.+)"', rare[0]) or re.search(r"\[\]\W*: (.+)$", rare[0])
        return beside[1] if beside else None


def written_in(prompt, text):
    """A text as it stands in a prompt, which may be JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1] if prompt.startswith("{") else text
