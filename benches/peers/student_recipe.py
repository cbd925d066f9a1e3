"""The recipe of a student in the benches: `student_recipe.py KEY=VALUE...` prints it, with values for the keys in CHOICES."""

import sys

CHOICES = {
    "name": "student", "seed": 7, "format": "f16", "start": None, "tokens": None, "peak_rate": 6e-4, "embedding_rate": 1.0,
    "prompt_weight": 0.0, "holdout_share": 0.01, "threads": 2,
}
RECIPE = """name = "{name}"
seed = {seed}
format = "{format}"
[data]
licences = ["Apache-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "CDLA-Sharing-1.0", "MIT", "project", "PSF-2.0"]
decline = "HANDOFF"
prompt_weight = {prompt_weight}
long_records = "skip"
holdout_share = {holdout_share}
[start]
model = "{start}"
[training]
tokens = {tokens}
batch_tokens = 2048
peak_rate = {peak_rate}
embedding_rate = {embedding_rate}
warm_up = {warm_up}
floor = 0.05
weight_decay = 0.05
clip = 1.0
threads = {threads}
precision = "bf16"
"""


def recipe(**chosen):
    values = CHOICES | chosen
    return RECIPE.format(warm_up=int(values["tokens"]) // 20, **values)


if __name__ == "__main__":
    print(recipe(**dict(argument.split("=", 1) for argument in sys.argv[1:])), end="")
