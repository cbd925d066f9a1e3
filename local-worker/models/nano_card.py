#!/usr/bin/env python3
"""Prints the tables of sluice-nano's card: `nano_card.py FOLDER`, where nano_evidence.sh left what it measured.

A line is a task, or one source of it; floors are those of the corpus' README (multinomial naive Bayes on the same training texts).
"Within chance": the floor lies in the 95 % Wilson interval of the share that is right.
"""

import json
import math
import sys
from pathlib import Path

SERVED = (
    ("intent_closed", "closed intents", {"clinc150": 87.4, "banking77": 85.9, "hwu64": 83.1}),
    ("slots_json", "slots as JSON (slot F1)", {}),
    ("ticket_extract", "support tickets as JSON (all equal)", {}),
    ("log_parse", "log lines as JSON (all equal)", {}),
    ("order_json", "drink orders as JSON (all equal)", {}),
    ("dialogue_act", "dialogue acts, listed", {}),
    ("intent_candidates", "intents from a list of candidates (5–20)", {}),
    ("intent_full_list", "intents, all labels in the prompt", {"snips": 97.9, "bitext": 98.9}),
    ("topic", "topic", {"stackoverflow20": 84.0, "clinc150": 95.0, "hwu64": 90.6}),
    ("sentiment", "sentiment", {"goemotions": 65.0, "uci-sentiment": 80.8, "sst2": 81.0}),
    ("spam", "spam", {"": 99.1}),
    ("clickbait", "clickbait", {"": 97.3}),
    ("language_id", "language", {"": 99.7}),
    ("smalltalk", "small talk", {"chitchat": 88.2}),
    ("oos_detect", "out of scope: accuracy in scope", {}),
)
OUT_OF_SCOPE = "out_of_scope"
ACCURACY = {"spam": "accuracy"}  # where the floor is not in the metric that the task is judged by


def percent(share):
    return "–" if share is None else f"{100 * share:.1f} %"


def wilson(share, n, z=1.96):
    """Bounds of a share of n questions."""
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def beside(value, n, floor):
    """A share beside its floor, which is in percent to one place."""
    if floor is None:
        return ""
    if abs(100 * value - floor) < 0.05:
        return "level"
    low, high = wilson(value, n)
    within = ", within chance" if low <= floor / 100 <= high else ""
    if 100 * value > floor:
        return f"above by {100 * value - floor:.1f} points{within}"
    return f"**below** by {(floor / 100 - value) * n:.1f} questions{within}"


def read(folder, name):
    return {task["task"]: task for task in json.loads((folder / f"{name}.json").read_text())["tasks"]}


def by_source(task):
    """What is right of all of a task's questions, under no name, and of each source's."""
    metric = ACCURACY.get(task["task"])
    whole = next(other for other in task["others"] if other["metric"] == metric) if metric else task
    return {"": whole} | task.get("sources", {})


def lines(task, name, floors, dev):
    """Name, share, records, share on dev, floor."""
    of, on_dev = by_source(task), by_source(dev)
    for source in sorted(of):
        label = f"… {source}" if source else name
        yield label, of[source]["value"], of[source]["n"], on_dev.get(source, {}).get("value"), floors.get(source)


def scores(folder):
    test, dev = read(folder, "test"), read(folder, "dev")
    print("| task | test | n | dev | naive Bayes floor | |\n| --- | ---: | ---: | ---: | ---: | --- |")
    for key, name, floors in SERVED:
        for label, value, n, on_dev, floor in lines(test[key], name, floors, dev[key]):
            shown = f"{floor:.1f}" if floor else "–"
            print(f"| {label} | {percent(value)} | {n:,} | {percent(on_dev)} | {shown} | {beside(value, n, floor)} |")
        task = test[key]
        for other in [task] * (key in ACCURACY) + [other for other in task["others"] if other["metric"] != ACCURACY.get(key)]:
            print(f"| … {other['metric']} | {percent(other['value'])} | {other['n']:,} | | | |")


def hand_offs(folder):
    test = read(folder, "test")
    served = {key for key, _, _ in SERVED}
    rows = [test[key] for key in test if key in served]
    others = [task for key, task in test.items() if key not in served and key != "handoff"]
    asked = [task["json_parses"] for task in rows if "json_parses" in task]
    parse = sum(one["n"] * one["value"] for one in asked) / sum(one["n"] for one in asked)
    print(f"\nJSON that parses, of what is served: {percent(parse)}")
    print(f"`handoff`: {percent(test['handoff']['value'])} of {test['handoff']['n']}")
    off, n = declined(others)
    print(f"tasks handed off: {len(others)}, {percent(off / n)} of {n:,}")
    shares = {task["task"]: task["handed_off"] / task["n"] for task in others}
    print("  least: " + ", ".join(f"{key} {percent(shares[key])}" for key in sorted(shares, key=shares.get)[:4]))
    off, n = declined(rows)
    print(f"declined although served: {off} of {n:,}")


def declined(tasks):
    """Questions of tasks that were handed off, and all."""
    return sum(task["handed_off"] for task in tasks), sum(task["n"] for task in tasks)


def official(folder):
    """Complete sets; what belongs to no intent, in CLINC150, apart."""
    rows = {}
    for line in (folder / "official.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["source"], []).append(row)
    print("\n| official test set | right | n |\n| --- | ---: | ---: |")
    for source, asked in sorted(rows.items()):
        outside = [row for row in asked if row["answer"] == OUT_OF_SCOPE]
        inside = [row for row in asked if row["answer"] != OUT_OF_SCOPE]
        print(f"| {source} | {percent(right(inside))} | {len(inside):,} |")
        if outside:
            given = [row for row in asked if row["given"] == OUT_OF_SCOPE]
            print(f"| … out of scope, recall | {percent(right(outside))} | {len(outside):,} |")
            print(f"| … precision | {percent(right(given))} | {len(given):,} |")


def right(rows):
    return sum(row["right"] for row in rows) / len(rows) if rows else None


def unseen(folder):
    free, held = read(folder, "unseen"), read(folder, "held")
    print("\n| new: phrasings, words of labels | n | right | handed off | held to the list |\n| --- | ---: | ---: | ---: | ---: |")
    for key, task in sorted(free.items(), reverse=True):
        beside = percent(held[key]["value"]) if key in held else ""
        handed = percent(task["handed_off"] / task["n"])
        print(f"| {key} | {task['n']} | {percent(task['value'])} | {handed} | {beside} |")
        for source, one in sorted(task.get("sources", {}).items()):
            print(f"| … {source} | {one['n']} | {percent(one['value'])} | | |")


def main():
    folder = Path(sys.argv[1])
    for tables in (scores, hand_offs, official, unseen):
        tables(folder)


main()
