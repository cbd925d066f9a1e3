#!/usr/bin/env python3
"""Writes fixtures/templates/expected.json: what `transformers` makes of conversations by the templates in that folder.

    pip install transformers==5.23.0 jinja2==3.1.6
    python3 make_template_fixtures.py fixtures/templates

The templates of SmolLM2 (Apache-2.0), Qwen2.5 and Qwen3 (Apache-2.0), Phi-3, Phi-3.5 and Phi-4-mini (MIT) are their publishers' text.
Those of Llama and Gemma may not stand here, so `*_like.jinja` were written to need the same of Jinja; `constructs.jinja` has
what else templates use. Today's date, which some templates print, is `{today}` in the expected text.
"""
import datetime
import json
import os
import sys

from transformers.utils.chat_template_utils import render_jinja_template

CONVERSATIONS = [
    [("user", "Hi")],
    [("system", "You answer in one line."), ("user", "  What is the capital?  \n")],
    [("user", "What is 12 + 30?"), ("assistant", "42"), ("user", "And 12 * 3?")],
    [("system", " s "), ("user", "a"), ("assistant", " b\n"), ("user", "c"), ("assistant", "<think>\nlong\n</think>\n\nd"), ("user", "e")],
    [("user", "Wo ist der Schlüssel? 家の鍵 😀 \u00a0<|user|> <b> & \"quoted\" 'single'")],
    [("user", "")],
    [("user", "one"), ("user", "two")],
    [("assistant", "first")],
    [("user", "look"), ("tool", "{\"temperature\": 7}"), ("user", "so?")],
    [("user", "line one\n\n\nline two\n   indented")],
]
NAMES = {"llama3_like": ("<|begin_of_text|>", "<|eot_id|>"), "gemma2_like": ("<bos>", "<eos>"), "gemma3_like": ("<bos>", "<eos>"),
         "phi3": ("<s>", "<|endoftext|>"), "phi3.5": ("<s>", "<|endoftext|>"), "phi4mini": ("<|endoftext|>", "<|endoftext|>"),
         "smollm2": ("<|im_start|>", "<|im_end|>"), "qwen2.5": (None, "<|im_end|>"), "qwen3": (None, "<|im_end|>"),
         "constructs": ("<s>", "</s>")}


def render(template, turns, begin, end):
    messages = [{"role": role, "content": content} for role, content in turns]
    tokens = {key: value for key, value in (("bos_token", begin), ("eos_token", end)) if value is not None}
    today = datetime.datetime.now().strftime("%d %b %Y")
    try:
        rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **tokens)
        return {"messages": messages, "text": rendered[0].replace(today, "{today}")}
    except Exception as error:
        return {"messages": messages, "error": str(error)}


def main(folder):
    expected = {}
    for file in sorted(os.listdir(folder)):
        name, ending = os.path.splitext(file)
        if ending != ".jinja":
            continue
        with open(os.path.join(folder, file), encoding="utf-8", newline="") as text:
            template = text.read()
        begin, end = NAMES.get(name, ("<s>", "</s>"))
        cases = [render(template, turns, begin, end) for turns in CONVERSATIONS]
        expected[name] = {"begin": begin or "", "end": end, "cases": cases}
        print(name, sum("text" in case for case in cases), "rendered,", sum("error" in case for case in cases), "refused")
    with open(os.path.join(folder, "expected.json"), "w", encoding="utf-8") as file:
        json.dump(expected, file, ensure_ascii=False, indent=1)
        file.write("\n")


main(sys.argv[1])
