"""What a teacher is worth: a student under a teacher beside the same student on right answers alone, over seeds.

distilled.py SLUICE START.gguf TEACHER.gguf TRAIN.jsonl.gz TOKENS SEEDS FOLDER NAME=SUITE.jsonl.gz... [-- OPTION of sluice distill...]

Both start from the same weights, see the same records in the same order and as many tokens; the seed draws the order. What is
told is the share of answers that are right by exact match (letter case and white space aside, JSON compared parsed), over all questions and as the mean over tasks.
Intervals are of 1,000 draws of questions and of seeds, the same for both, so differences are paired. FOLDER keeps runs and answers; what is there is not made again.
THREADS is how many a training computes on, 2 if absent.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from student_recipe import recipe

DRAWS = 1000


def right(given, answer):
    def read(text):
        try:
            return json.loads(text)
        except (TypeError, ValueError):
            return " ".join(text.lower().split())

    return read(given or "") == read(answer)


def run(command, log):
    with open(log, "a", encoding="utf-8") as file:
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=True)


def answers(sluice, model, suite, file, log):
    if not file.exists():
        part = file.with_suffix(".part")
        run([sluice, "eval", "model", "--model", str(model), "--suite", suite, "--max-tokens", "96", "--answers", str(part), "--json"], log)
        part.rename(file)
    with open(file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["task"], right(row["given"], row["answer"])) for row in rows]


def figures(graded):
    """Share right and mean over tasks."""
    tasks = {}
    for task, grade in graded:
        tasks.setdefault(task, []).append(grade)
    return 100 * sum(g for _, g in graded) / len(graded), 100 * sum(sum(t) / len(t) for t in tasks.values()) / len(tasks)


def main():
    options = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    sluice, start, teacher, data, tokens, seeds, folder, *suites = sys.argv[1:options]
    more = sys.argv[options + 1 :]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    suites = [suite.split("=", 1) for suite in suites]
    graded = {}
    for seed in range(1, int(seeds) + 1):
        for kind in ("gold", "distilled"):
            out = folder / f"{kind}-{seed}"
            log = folder / f"{kind}-{seed}.log"
            if not (out / "model.gguf").exists():
                file = folder / f"{kind}-{seed}.recipe.toml"
                settings = {"format": "q8_0", "embedding_rate": 0.4, "threads": os.environ.get("THREADS", 2)}
                file.write_text(recipe(seed=seed, start=Path(start).resolve(), tokens=tokens, **settings))
                verb = ["train", "model", str(file)] if kind == "gold" else ["distill", str(file), "--teacher", teacher, *more]
                run([sluice, *verb, "--data", data, "--folder", str(out)], log)
            for name, suite in suites:
                graded[kind, seed, name] = answers(sluice, out / "model.gguf", suite, folder / f"{kind}-{seed}.{name}.jsonl", log)
    for name, suite in suites:
        graded["teacher", 0, name] = answers(sluice, teacher, suite, folder / f"teacher.{name}.jsonl", folder / "teacher.log")
    rng = random.Random(5)
    print("| suite | n | | gold alone, by seed | distilled, by seed | difference (95 %) | teacher |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for name, _ in suites:
        every = range(1, int(seeds) + 1)
        n = len(graded["gold", 1, name])
        draws = []
        for _ in range(DRAWS):
            rows = [rng.randrange(n) for _ in range(n)]
            drawn = [rng.choice(every) for _ in every]
            both = []
            for kind in ("gold", "distilled"):
                one = {seed: figures([graded[kind, seed, name][row] for row in rows]) for seed in set(drawn)}
                both.append([sum(one[seed][i] for seed in drawn) / len(drawn) for i in (0, 1)])
            draws.append([both[1][i] - both[0][i] for i in (0, 1)])
        for i, what in ((0, "all answers"), (1, "mean over tasks")):
            told = {kind: [figures(graded[kind, seed, name])[i] for seed in every] for kind in ("gold", "distilled")}
            ordered = sorted(draw[i] for draw in draws)
            low, high = ordered[int(0.025 * DRAWS)], ordered[int(0.975 * DRAWS)]
            difference = sum(told["distilled"]) / len(every) - sum(told["gold"]) / len(every)
            shown = {kind: " / ".join(f"{value:.1f}" for value in values) for kind, values in told.items()}
            teachers = figures(graded["teacher", 0, name])[i]
            print(f"| {name} | {n:,} | {what} | {shown['gold']} | {shown['distilled']} | {difference:+.2f} ({low:+.2f} to {high:+.2f}) | {teachers:.1f} |")


main()
