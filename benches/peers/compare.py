"""The engine beside llama.cpp and stock candle on the same GGUF files: rounds alternate, so all meet the same machine.

compare.py ENGINE_PEER [--rounds N] [--busy] [--growth] [--threads N] FILE...

Prints Markdown: medians of the rounds' rates and of the rounds' ratios against llama.cpp. `--busy` adds the speed beside
one and two C++ compilers; `--growth` adds rates by sequences and by context.
"""

import argparse
import json
import os
import statistics
import signal
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA, OWN, CANDLE = "llama.cpp", "sluice", "candle"

# What the compilers beside are given: templates that keep one busy for seconds.
SOURCE = """
#include <functional>
#include <map>
#include <regex>
#include <string>
template <int N> struct Part { std::map<std::string, std::function<int(int)>> at; Part<N - 1> next; std::regex rule{"a+"}; };
template <> struct Part<0> {};
Part<60> parts;
"""


class Peer:
    """A child process that answers commands."""

    def __init__(self, command, threads):
        environment = dict(os.environ, CANDLE_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, **command):
        """The answer, or None if the peer can't."""
        if self.child.poll() is not None:
            return None
        try:
            self.child.stdin.write(json.dumps(command) + "\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        except BrokenPipeError:
            return None
        return json.loads(line) if line else None

    def end(self):
        self.child.stdin.close()
        self.child.wait()


def start(name, arguments):
    command = [sys.executable, f"{HERE}/llamacpp_peer.py"]
    if name != LLAMA:
        command = [arguments.engine, "own" if name == OWN else "candle"]
    return Peer(command, arguments.threads)


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def show(value, digits=0):
    return "–" if value is None else f"{value:,.{digits}f}"


def measure(file, arguments):
    """Rounds of every figure, by peer."""
    figures = {}

    def note(name, figure, answer, key):
        figures.setdefault(figure, {}).setdefault(name, []).append(answer and answer.get(key))

    names = [LLAMA, OWN, CANDLE]
    # The engine's prompts come with a template: the others are given as many tokens.
    peer = start(OWN, arguments)
    tokens = peer.ask(do="load", file=file, threads=arguments.threads)["prompt"]
    peer.end()
    of_round = lambda number: names if number < arguments.candle_rounds else names[:2]
    for number in range(arguments.rounds):
        for name in of_round(number):
            peer = start(name, arguments)
            loaded = peer.ask(do="load", file=file, threads=arguments.threads, tokens=tokens)
            note(name, "load to first token, ms", loaded, "seconds")
            note(name, "resident memory, MiB", peer.ask(do="memory"), "bytes")
            peer.end()
    peers = {name: start(name, arguments) for name in of_round(0)}
    for peer in peers.values():
        peer.ask(do="load", file=file, threads=arguments.threads)
    steps = [("decode, 1 sequence", dict(do="decode", context=8, tokens=64))]
    steps += [(f"decode, {n} sequences", dict(do="batch", sequences=n, tokens=48)) for n in (2, 4, 8)]
    steps += [("prefill of 512", dict(do="prefill", tokens=512))]
    for number in range(arguments.rounds):
        for figure, command in steps:
            for name in of_round(number):
                note(name, figure, peers[name].ask(**command), "rate")
    bandwidth = peers[OWN].ask(do="bandwidth")["rate"]
    for peer in peers.values():
        peer.end()
    return figures, bandwidth


def table(file, figures, bandwidth):
    print(f"\n### {os.path.basename(file)} ({os.path.getsize(file) / 1e6:.0f} MB)\n")
    print("| figure | llama.cpp | sluice | candle | sluice ÷ llama.cpp | candle ÷ llama.cpp |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for figure, by in figures.items():
        scale = 1000 if "ms" in figure else 1 / (1 << 20) if "MiB" in figure else 1
        cells = [median(by.get(name, [])) for name in (LLAMA, OWN, CANDLE)]
        ratio = lambda name: median(
            [a / b if a and b else None for a, b in zip(by.get(name, []), by[LLAMA])]
        )
        unit = "" if scale != 1 else ", tokens/s"
        shown = [show(cell and cell * scale, 0) for cell in cells]
        print(f"| {figure}{unit} | {' | '.join(shown)} | {show(ratio(OWN), 2)} × | {show(ratio(CANDLE), 2)} × |")
    one = median(figures["decode, 1 sequence"][OWN])
    if one is None:
        print("\nIts answers end before their speed alone could be measured.")
        return
    eight = median([a / b if a and b else None for a, b in zip(figures["decode, 8 sequences"][OWN], figures["decode, 1 sequence"][LLAMA])])
    print(f"\nEight sequences against llama.cpp at one: {show(eight, 2)} ×. At batch 1 the engine reads about "
          f"{one * os.path.getsize(file) / 1e9:.1f} GB/s of weights; one core reads {bandwidth / 1e9:.1f} GB/s out of memory "
          f"({100 * one * os.path.getsize(file) / bandwidth:.0f} %; above what memory gives where the weights stay in the cache).")


class Compilers:
    """So many compilers at work, until closed."""

    def __init__(self, count):
        self.source = tempfile.NamedTemporaryFile("w", suffix=".cpp")
        self.source.write(SOURCE)
        self.source.flush()
        loop = f"while c++ -O2 -c {self.source.name} -o /dev/null; do :; done"
        self.shells = [subprocess.Popen(["sh", "-c", loop], start_new_session=True) for _ in range(count)]

    def close(self):
        for shell in self.shells:
            if shell.poll() is not None:
                raise RuntimeError("a compiler did not run")
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        self.source.close()


def busy(file, arguments):
    print(f"\nBeside compilers, {os.path.basename(file)}, decode of one sequence, tokens/s:\n")
    print("| compilers | llama.cpp | of quiet | sluice | of quiet |\n| ---: | ---: | ---: | ---: | ---: |")
    peers = {name: start(name, arguments) for name in (LLAMA, OWN)}
    for peer in peers.values():
        peer.ask(do="load", file=file, threads=arguments.threads)
    quiet = {}
    for count in (0, 1, 2):
        compilers = Compilers(count)
        cells = []
        for name, peer in peers.items():
            rates = [peer.ask(do="decode", context=8, tokens=64)["rate"] for _ in range(arguments.rounds)]
            rate = median(rates)
            quiet.setdefault(name, rate)
            cells += [show(rate), f"{100 * rate / quiet[name]:.0f} %"]
        compilers.close()
        print(f"| {count} | {' | '.join(cells)} |")
    for peer in peers.values():
        peer.end()


def growth(file, arguments):
    peers = {name: start(name, arguments) for name in (LLAMA, OWN)}
    peers["sluice, cache in f32"] = start(OWN, arguments)
    for name, peer in peers.items():
        more = dict(cache="f32") if "f32" in name else {}
        peer.ask(do="load", file=file, threads=arguments.threads, **more)
    print(f"\nHow the engine grows, {os.path.basename(file)}, tokens/s:\n")
    print("| sequences | 1 | 2 | 4 | 8 | 16 |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    rates = [peers[OWN].ask(do="batch", sequences=n, tokens=48) for n in (1, 2, 4, 8, 16)]
    print("| together | " + " | ".join(show(rate and rate.get("rate")) for rate in rates) + " |")
    print("\n| one sequence after so many tokens | 64 | 512 | 1024 | 2048 | 3500 |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, peer in peers.items():
        rates = [peer.ask(do="decode", context=n, tokens=32) for n in (64, 512, 1024, 2048, 3500)]
        print(f"| {name} | " + " | ".join(show(rate and rate.get("rate")) for rate in rates) + " |")
        peer.end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--candle-rounds", type=int, default=1, help="it is slow, and no goal hangs on it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--growth", action="store_true")
    arguments = parser.parse_args()
    print(f"{arguments.rounds} rounds, {arguments.threads} thread(s) each; load average {os.getloadavg()[0]:.1f}")
    for file in arguments.files:
        table(file, *measure(file, arguments))
        if arguments.busy:
            busy(file, arguments)
        if arguments.growth:
            growth(file, arguments)


main()
