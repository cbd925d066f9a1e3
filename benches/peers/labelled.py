"""Questions with a list of labels out of a suite: labelled.py SUITE.jsonl.gz OUT.jsonl.gz, 25 of each of nine tasks, those whose ids hash lowest."""

import gzip
import hashlib
import json
import sys

TASKS = "sentiment spam topic clickbait language_id dialogue_act emotion intent_candidates same_intent".split()
EACH = 25
LONGEST = 600  # characters of a prompt


def main():
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    with gzip.open(sys.argv[2], "wt", encoding="utf-8") as file:
        for task in TASKS:
            found = [r for r in records if r["task"] == task and r.get("labels") and len(r["prompt"]) < LONGEST]
            found.sort(key=lambda r: hashlib.sha256(r["id"].encode()).hexdigest())
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in found[:EACH])


main()
