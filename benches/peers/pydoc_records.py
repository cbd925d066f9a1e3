"""Python's own documentation (PSF-2.0) as records to train on: paragraphs of some 200 words, the first third of each the prompt."""

import json
import pydoc_data.topics

WORDS = 200


def main():
    number = 0
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        words = text.split()
        for start in range(0, len(words), WORDS):
            part = words[start : start + WORDS]
            if len(part) < 30:
                continue
            row = {"id": f"pydoc-{number}", "task": "text", "source": "pydoc", "licence": "PSF-2.0"}
            cut = len(part) // 3
            print(json.dumps(row | {"prompt": " ".join(part[:cut]), "answer": " ".join(part[cut:])}))
            number += 1


main()
