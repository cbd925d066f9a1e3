"""What a model takes on a small machine: bytes on disk, and resident memory of `sluice serve` with it, by format.

footprint.py SLUICE MODEL.gguf[=FORMAT,FORMAT...]...

Each FORMAT is written by `sluice quantize` first (a model that is quantised already is widened on the way: what that lost stays lost,
and sizes are what is measured here). Each file is the only model of a gateway of its own: resident memory when it is ready, and after
an answer of 64 tokens; what of it is the file, mapped, the system takes back when it needs to. Keys and values are
bounded by `local.cache_bytes` and grow with answers, so they are hardly in these figures.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

POLICY = """name = "chat"
description = "All on the one model."
[models]
small = ["m"]
[objective]
goal = "fixed-threshold"
threshold = 0.0
"""
CATALOG = """[[models]]
id = "m"
kind = "file"
path = "{path}"
context = 512
max_output = 128
default_output = 64
"""


def quantised(sluice, model, form, folder):
    """The model in a format, made once."""
    out = folder / f"{model.stem}.{form}.gguf"
    if not out.exists():
        command = [sluice, "quantize", "--model", model, "--to", form, "--out", out, "--requantize", "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def memory(pid):
    """Resident bytes of a process, and those of them that are mapped files."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    kib = lambda key: int(re.search(rf"^{key}:\s+(\d+)", status, re.M).group(1))
    return kib("VmRSS") * 1024, kib("RssFile") * 1024


def measure(sluice, model):
    """Seconds to readiness, and memory then and after an answer."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "models.toml").write_text(CATALOG.format(path=model.resolve()))
        (folder / "chat.toml").write_text(POLICY)
        environment = {
            "SLUICE_LISTEN": "127.0.0.1:0",
            "SLUICE_DATA_DIR": str(folder / "data"),
            "SLUICE_POLICIES_DIR": str(folder),
            "SLUICE_DEFAULT_POLICY": "chat",
        }
        started = time.monotonic()
        with subprocess.Popen([sluice, "serve"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as serve:
            address = None
            for line in serve.stdout:
                found = re.search(r"^READY (\S+)", line)
                if found:
                    address = found.group(1)
                    break
            seconds = time.monotonic() - started
            ready = memory(serve.pid)
            ask = [sluice, "ask", "--address", address, "--max-tokens", "64", "Once upon a time"]
            answered = subprocess.run(ask, env={}, capture_output=True, text=True)
            after = memory(serve.pid)
            serve.terminate()
            serve.wait(30)
        return seconds, ready, after, answered.returncode == 0


def main():
    sluice, *models = sys.argv[1:]
    folder = pathlib.Path(os.environ.get("FOOTPRINT_CACHE", ".cache/footprint"))
    folder.mkdir(parents=True, exist_ok=True)
    mib = lambda count: f"{count / 2**20:.1f}"
    print("| model | format | disk, MiB | resident when ready, MiB | of that the mapped file and binary | after an answer | start to ready, ms |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for argument in models:
        path, _, forms = argument.partition("=")
        model = pathlib.Path(path)
        files = [("as it comes", model)]
        files += [(form, quantised(sluice, model, form, folder)) for form in forms.split(",") if form]
        for form, file in files:
            seconds, ready, after, answered = measure(sluice, file)
            last = mib(after[0]) if answered else f"{mib(after[0])} (no answer)"
            print(
                f"| {model.stem} | {form} | {mib(file.stat().st_size)} | {mib(ready[0])} | {mib(ready[1])} | {last} | {seconds * 1e3:.0f} |",
                flush=True,
            )


main()
