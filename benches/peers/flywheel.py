"""One turn of the flywheel: what the large model answered to a task that sluice-nano hands off, learnt and tried beside it.

flywheel.py SLUICE CORPUS_FOLDER RECORDS.jsonl.gz FOLDER [--recorded 800] [--shadowed 300] [--task emotion] [--tokens 250000]
    [--rate 3e-4] [--beside 4000]

A gateway of its own serves the bundled model; the large model is `sluice simulate`, which knows the corpus' right answers. Half of
the traffic is a task that the bundled model declines, half the dev questions of five tasks that it answers. RECORDS is what
nano_records.py wrote: part of it is learnt beside the recorded answers, so that what the model knows is not lost. Prints what each
step said; FOLDER is made, and keeps everything.
"""

import argparse
import contextlib
import gzip
import json
import pathlib
import random
import re
import shutil
import sqlite3
import subprocess
import time

SERVED = ("intent_closed", "sentiment", "spam", "language_id", "topic")
POLICY = """name = "turning"
[models]
small = ["sluice-nano"]
large = ["openai/gpt-4.1-mini"]
[objective]
goal = "min-cost"
quality_target = 0.9
confidence = 0.95
[shadow]
share = 1.0
daily = "10 USD"
compare = "exact"
[flywheel]
graded = 100
confidence = 0.95
margin = 0.02
max_slower = 3
"""
RECIPE = """name = "student"
seed = 7
format = "q8_0"
[data]
licences = [{licences}]
decline = "HANDOFF"
prompt_weight = 0.0
long_records = "skip"
dev_records = 200
[training]
tokens = {tokens}
batch_tokens = 1024
peak_rate = {rate}
warm_up = 20000
weight_decay = 0.05
clip = 1.0
log_steps = 20
checkpoint_steps = 200
evaluate_steps = 200
threads = 1
"""
SETTINGS = """listen = "127.0.0.1:0"
data_dir = "{folder}/data"
policies_dir = "{folder}/policies"
default_policy = "turning"
reload_seconds = 1
[targets.openai]
base_url = "{large}"
api_key_file = "{folder}/key"
[tenants.local]
record = "text"
"""


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def started(processes, command, pattern, log):
    """Starts a process; what its output says in the pattern's group."""
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    processes.callback(process.terminate)
    for _ in range(600):
        found = re.search(pattern, log.read_text())
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"{command[1]} did not start; see {log}")


def shown(folder, new):
    """Shares that both models answered right while the candidate was tried, of the new task and of what the model knew."""
    store = sqlite3.connect(folder / "data/ledger.sqlite")
    texts = ((entry, json.loads(body).get("messages")) for entry, body in store.execute("select entry, body from recordings"))
    prompts = {entry: messages[0]["text"].strip() for entry, messages in texts if messages}
    graded = {}
    for (body,) in store.execute("select body from outcomes"):
        row = json.loads(body)
        graded.setdefault(row["entry"], {})[bool(row.get("candidate"))] = row["small_quality"]
    for name, is_new in (("new", True), ("known", False)):
        both = [pair for entry, pair in graded.items() if len(pair) == 2 and (prompts.get(entry) in new) == is_new]
        serving, candidate = (sum(pair[which] for pair in both) / max(len(both), 1) for which in (False, True))
        print(f"{name}: {len(both)} requests, {100 * serving:.1f} % right serving, {100 * candidate:.1f} % candidate")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sluice")
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("records")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--recorded", type=int, default=800)
    parser.add_argument("--shadowed", type=int, default=300)
    parser.add_argument("--task", default="emotion")
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--rate", default="3e-4")
    parser.add_argument("--beside", type=int, default=4000, help="records of what the model knows")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if folder.exists():
        raise SystemExit(f"{folder} exists; name a folder that does not")
    (folder / "policies").mkdir(parents=True)
    rng = random.Random(5)
    new = [r for r in read(given.corpus / "train.jsonl.gz") if r["task"] == given.task]
    known = [r for r in read(given.corpus / "dev.jsonl.gz") if r["task"] in SERVED and not r["licence"].startswith("unstated")]
    half = (given.recorded + given.shadowed) // 2
    traffic = rng.sample(new, half) + rng.sample(known, half)
    rng.shuffle(traffic)
    write(folder / "answers.jsonl.gz", traffic)
    beside = rng.sample(read(given.records), given.beside)
    write(folder / "beside.jsonl.gz", beside)
    licences = sorted({row["licence"] for row in beside} | {"tenant"})
    quoted = ", ".join(f'"{name}"' for name in licences)
    (folder / "recipe.toml").write_text(RECIPE.format(licences=quoted, tokens=given.tokens, rate=given.rate))
    (folder / "policies/turning.toml").write_text(POLICY)
    shutil.copy(pathlib.Path(__file__).parents[2] / "policies/models.toml", folder / "policies/models.toml")
    (folder / "key").write_text("none")
    with contextlib.ExitStack() as processes:
        turn_of(given, folder, traffic, processes)


def turn_of(given, folder, traffic, processes):
    simulate = [given.sluice, "simulate", "--answers", folder / "answers.jsonl.gz"]
    url = started(processes, simulate, r"at (\S+)", folder / "large.log")
    (folder / "sluice.toml").write_text(SETTINGS.format(folder=folder, large=url))
    address = started(processes, [given.sluice, "serve", "--config", folder / "sluice.toml"], r"READY (\S+)", folder / "serve.log")

    def asked(rows, pause=0.0):
        for row in rows:
            subprocess.run([given.sluice, "ask", "--address", address, row["prompt"]], check=True, capture_output=True)
            time.sleep(pause)

    turn = [given.sluice, "flywheel", "--policy", "turning", "--policies-dir", folder / "policies", "--data-dir", folder / "data"]
    turn += ["--folder", folder / "run", "--recipe", folder / "recipe.toml", "--data", folder / "beside.jsonl.gz"]
    asked(traffic[: given.recorded])
    time.sleep(3)  # the ledger's store takes entries in batches
    subprocess.run(turn, check=True)
    if json.loads((folder / "run/flywheel.json").read_text())["stage"] != "shadowing":
        return
    time.sleep(10)  # the gateway looks at its folder, and loads the candidate
    asked(traffic[given.recorded :], pause=0.5)  # a candidate answers when nothing else is to be done
    subprocess.run([*turn, "--wait", "120"], check=True)
    shown(folder, {row["prompt"].strip() for row in traffic if row["task"] == given.task})
    subprocess.run([given.sluice, "flywheel", "rollback", "--folder", folder / "run"], check=True)


main()
