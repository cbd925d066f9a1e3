"""Report cards of `sluice quantize` or `sluice prune` as one Markdown table: cards.py CARD.json...

All cards must be of the same source, whose column comes first.
"""

import json
import sys


def cell(value, form, missing="–"):
    return missing if value is None else form.format(value)


def column(name, side, card):
    share = lambda key: None if card is None or card[key] is None else card[key] * 100
    flips = None if card is None or card["routes_flipped"] is None else card["routes_flipped"]["share"] * 100
    value = lambda key: None if side.get(key) is None else side[key]["value"]
    macro = value("macro")
    return [
        name,
        f"{side['bytes'] / 2**20:.1f}",
        f"{side['resident_bytes'] / 2**20:.1f}",
        f"{side['tokens_per_s']:.0f}",
        cell(value("perplexity"), "{:.3f}"),
        cell(value("answer_perplexity"), "{:.3f}"),
        cell(share("top1_agreement"), "{:.2f}"),
        cell(None if macro is None else macro * 100, "{:.1f}"),
        cell(share("answers_changed"), "{:.1f}"),
        cell(flips, "{:.2f}"),
    ]


def main():
    cards = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            cards.append((path.rsplit("/", 1)[-1].split(".")[0], json.load(file)))
    rows = [column("before", cards[0][1]["before"], None)] + [column(name, card["after"], card) for name, card in cards]
    header = ["", "file, MiB", "weights, MiB", "tokens/s", "perplexity of text", "of right answers", "top-1 agreement, %"]
    header += ["macro average, %", "answers changed, %", "routes flipped, %"]
    print("| " + " | ".join(header) + " |")
    print("| --- |" + " ---: |" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


main()
