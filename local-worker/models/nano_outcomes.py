#!/usr/bin/env python3
"""Makes the suite that sluice-nano's scorer learns from: `nano_outcomes.py RECORDS_FOLDER CORPUS_FOLDER ROUTING_FOLDER OUT.jsonl.gz`.

RECORDS_FOLDER is what nano_records.py wrote: its held-out part and nothing else of the training file is in scope, with the
corpus' dev part. Out of scope, about as many: tasks that the model declines, questions of routing sets whose licences allow
it, and general requests made here. Their answer is one that no model gives, so whatever is said to them counts as wrong.
`sluice eval model --suite OUT.jsonl.gz --drafts outcomes.jsonl` asks them.
"""

import gzip
import json
import random
import sys
from pathlib import Path

from nano_stages import FIRST
from nano_texts import read

SERVED = FIRST.keys() - {"handoff"}
ROUTING = ("routellm_mmlu", "routellm_gsm8k", "zeroeval_gsm", "zeroeval_math-l5", "zeroeval_crux", "llmrouter")
NEVER = "(out of scope: no answer is right)"
DECLINED = 130  # of each task that is declined
EACH_ROUTING = 500

THINGS = (
    "a bakery", "the water cycle", "remote work", "our new scheduling app", "a two-week trip to Japan", "quantum computing",
    "a used car", "my resignation", "a vegetable garden", "the French Revolution", "an electric bike", "a public library",
    "a chess club", "solar panels", "a job interview", "vaccines", "a mountain hike", "inflation", "a broken dishwasher",
    "a small orchestra", "open-source licences", "an underwater city", "climate policy", "a school play", "a database outage",
)
ASKS = (
    "Write an essay about {0}.", "Write a short story about {0} with a surprising end.", "Explain {0} to a ten-year-old.",
    "Draft a polite email to my landlord about {0}.", "Give me a detailed plan for {0}.", "What are the pros and cons of {0}?",
    "Write a poem about {0}.", "Compare {0} with {1} in a table.", "Make a quiz of five questions on {0}, with answers.",
    "Summarise what experts say about {0}.", "Write a Python function that models {0}.", "Translate a paragraph on {0} into German.",
    "Suggest ten names for a company that has to do with {0}.", "Write a press release about {0}.",
    "Argue for and against {0} as two debaters.", "Create a budget for {0} in euros.", "How would {0} change the economy?",
    "Write unit tests for a module on {0}.", "Outline a talk about {0} and {1}.", "Prove or refute: {0} is better than {1}.",
    "Tell me everything you know about {0}.", "Write a cover letter that mentions {0}.", "Refactor this: fn plan() {{ /* {0} */ }}",
    "Give step-by-step instructions for {0}.", "Which books should I read on {0}, and why?", "Write SQL tables for {0}.",
    "Write a dialogue between a doctor and a patient about {0}.", "Design an experiment about {0}.",
)


def main():
    records, corpus, routing, out = (Path(argument) for argument in sys.argv[1:5])
    rng = random.Random(11)
    held = [row for row in read(records / "held_out.jsonl.gz") + read(corpus / "dev.jsonl.gz") if "unstated" not in row["licence"]]
    rows = [row for row in held if row["task"] in SERVED]
    others = {}
    for row in held + read(corpus / "train.jsonl.gz"):
        if row["task"] not in SERVED:
            others.setdefault(row["task"], []).append(row)
    for task in sorted(others):
        rng.shuffle(others[task])
        # What the model learnt to decline is no evidence of how it declines, but of what kinds of request it never answers.
        rows += [{**row, "task": f"{task}, not served", "answer": NEVER} for row in others[task][:DECLINED]]
    for name in ROUTING:
        asked = read(routing / f"{name}.jsonl.gz")
        asked = list({row["prompt"]: row for row in asked}.values())
        rng.shuffle(asked)
        for row in asked[:EACH_ROUTING]:
            rows.append({"id": f"{name}-{row['id']}", "task": row.get("domain") or name, "source": name, "licence": "see the set",
                         "prompt": row["prompt"], "answer": NEVER})
    for number in range(700):
        prompt = rng.choice(ASKS).format(*rng.sample(THINGS, 2))
        rows.append({"id": f"asks-{number}", "task": "asks", "source": "project_asks", "licence": "project", "prompt": prompt,
                     "answer": NEVER})
    prompts = set()
    rows = [row for row in rows if not (row["prompt"] in prompts or prompts.add(row["prompt"]))]
    with gzip.GzipFile(out, "wb", compresslevel=4, mtime=0) as file:
        for row in rows:
            row = {key: row[key] for key in ("id", "task", "source", "licence", "prompt", "answer")}
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    print(f"{len(rows)} questions, {sum(row['answer'] != NEVER for row in rows)} in scope")


main()
