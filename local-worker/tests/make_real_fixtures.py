#!/usr/bin/env python3
"""Writes what llama.cpp makes of texts with real weights: fixtures/smollm2_greedy.json and fixtures/gemma3_greedy.json.

    pip install llama-cpp-python==0.3.36
    python3 make_real_fixtures.py MODEL.gguf fixtures/smollm2_greedy.json
    python3 make_real_fixtures.py --plain MODEL.gguf fixtures/gemma3_greedy.json

For each of 50 prompts: its tokens (in the model's own chat template, or with --plain, for a model that was not taught to chat,
a text to go on with), greedily chosen tokens, and at each step the distance between the two highest logits, rounded to 4 digits.
Then tokens of some texts, and the surprise over `fixtures/prose.txt`, read in windows of 512 tokens.
With --speed it prints tokens a second instead (one thread): prefill of 256 tokens, 64 tokens of decoding.
"""
import hashlib
import json
import os
import sys
import time

import llama_cpp
import numpy as np
from llama_cpp import llama_chat_format

WINDOW = 512
CONVERSATIONS = [
    [("user", "What is the capital of France?")],
    [("user", "Write a short poem about the sea.")],
    [("system", "You answer in one sentence."), ("user", "Why is the sky blue?")],
    [("user", "Translate to French: The cat sleeps on the sofa.")],
    [("user", "List three fruits and their colours.")],
    [("user", "What is 12 + 30?"), ("assistant", "42"), ("user", "And 12 * 3?")],
    [("user", "Summarize: The meeting was moved from Tuesday to Thursday because the room was taken.")],
    [("user", "Write a Python function that reverses a string.")],
    [("user", "Is the following review positive or negative? \"The food was cold and the staff was rude.\"")],
    [("user", "Explain photosynthesis to a child. Keep it simple: 2-3 sentences, no jargon.")],
]
QUESTIONS = [
    "Who wrote Romeo and Juliet?", "Name the planets of the solar system.", "How many legs does a spider have?",
    "What is the boiling point of water?", "Give a synonym for happy.", "What does a carpenter do?",
    "Describe a rainy day in one sentence.", "What is the opposite of cold?", "Name two rivers in Europe.",
    "Why do leaves fall in autumn?", "What is a triangle?", "Count from one to ten.", "Which animal barks?",
    "Write a greeting for a birthday card.", "What is the square root of 81?", "Where do penguins live?",
    "Tell me a fact about the moon.", "How do you make tea?", "What is the largest ocean?", "Name a musical instrument.",
    "Correct this sentence: He go to school yesterday.", "What colour do you get from blue and yellow?",
    "Wie heißt die Hauptstadt von Deutschland?", "¿Cuántos días tiene una semana?", "Quelle est la couleur du ciel?",
    "Was ist ein Fluss?", "Write a haiku about snow.", "What is the use of a compass?", "Who was Isaac Newton?",
    "List the months of the year.", "What is 7 times 8?", "Name a city in Italy.", "What is bread made of?",
    "Why is exercise good for you?", "What is the past tense of run?", "Explain what a gateway is.",
    "Give an example of a mammal.", "What happens when ice melts?", "Which month comes after June?", "Say goodbye politely.",
]
BEGINNINGS = [
    "The capital of France is", "Once upon a time, in a small village by the sea,", "Water boils at", "The sky is blue because",
    "def reverse(text):\n    \"\"\"Returns the text backwards.\"\"\"\n", "The three primary colours are", "In 1969, the first human",
    "A spider has", "The largest ocean on Earth is", "Dear Sir or Madam,\n\n", "1, 2, 3, 4, 5, 6,", "Monday, Tuesday, Wednesday,",
    "To make a cup of tea, first", "The old man looked at the river and said", "Die Hauptstadt von Deutschland ist",
    "La capitale de l'Italie est", "El sol sale por", "Столица России —", "日本の首都は", "中国的首都是", "مصر بلد في", "한국의 수도는",
    "The opposite of hot is cold. The opposite of up is", "Question: What is 2 + 2?\nAnswer:", "import numpy as np\n\ndef mean(values):\n",
    "Photosynthesis is the process by which", "Isaac Newton was", "The Pacific, the Atlantic, the", "Roses are red, violets are",
    "<h1>Welcome</h1>\n<p>", "SELECT name FROM users WHERE", "The recipe needs flour, sugar,", "She opened the door slowly, and",
    "The weather today is", "My favourite season is", "A triangle has three", "Ice melts when", "The bridge was built in",
    "According to the report, the number of", "Penguins live in", "The quick brown fox", "It was the best of times, it was",
    "To be, or not to be, that is", "The moon goes round the", "Bread is made of", "In the beginning there was",
    "for (int i = 0; i < 10; i++) {\n", "The main difference between a frog and a toad is", "Thank you for your letter of",
    "A haiku about snow:\n\n",
]
TEXTS = [
    "Hello, world!",
    "  leading and   inner   spaces  ",
    "line\nbreaks\n\n\tand tabs\t\t",
    "numbers 1 22 333 4444 3.14159 1,000,000",
    "it's we'll they've I'M DON'T",
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \u2026",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \U0001f600\U0001f1eb\U0001f1f7 \u0645\u0631\u062d\u0628\u0627",
    "fn main() { println!(\"{}\", x_1 + 0xFF); } // done",
    "a\u0300e\u0301 \u00a0nbsp\u200bzero",
    "",
    "Где ключ? Πού είναι; איפה? घर कहाँ है? อยู่ที่ไหน 在哪里 어디에 სად",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \u2764\ufe0f \U0001fae8 \U00010348 \u4dc0",
    "<table><tr><td>1</td></tr></table> <unused7> [multimodal]\n\n\n\n\n          ten spaces",
    "    indented\n\t\tcode\r\n\r\nend \u2581 block",
    "camelCase HTTPServer snake_case_name https://example.org/a?b=c&d=%20e",
]


MARKED = [
    "<bos><start_of_turn>user\nHello there<end_of_turn>\n<start_of_turn>model\n", "a<eos> b <unused3>\n\n\n  c",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "x<|endoftext|>y  <|im_end|>  z",
]


def logits(model):
    row = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return np.ctypeslib.as_array(row, shape=(model.n_vocab(),)).copy()


def render(model, messages):
    metadata = model.metadata
    token = lambda key: model._model.token_get_text(int(metadata[key]))
    formatter = llama_chat_format.Jinja2ChatFormatter(
        template=metadata["tokenizer.chat_template"],
        eos_token=token("tokenizer.ggml.eos_token_id"),
        bos_token=token("tokenizer.ggml.bos_token_id"),
    )
    return formatter(messages=messages).prompt


def greedy(model, prompt, count):
    model.reset()
    model.eval(prompt)
    tokens, gaps = [], []
    while len(tokens) < count:
        row = logits(model)
        second, first = np.partition(row, -2)[-2:]
        tokens.append(int(row.argmax()))
        gaps.append(round(float(first - second), 4))
        if llama_cpp.llama_vocab_is_eog(model._model.vocab, tokens[-1]):
            break
        model.eval([tokens[-1]])
    return {"prompt": prompt, "tokens": tokens, "gaps": gaps, "text": model.detokenize(tokens).decode(errors="replace")}


def surprise(path, text):
    """The sum of -ln p over a text, each window alone after the begin token, if the model wants one."""
    model = llama_cpp.Llama(path, n_ctx=WINDOW, n_batch=WINDOW, n_threads=2, n_threads_batch=2, verbose=False, logits_all=True)
    tokens = model.tokenize(text.encode(), add_bos=False, special=False)
    begin = [model.token_bos()] if model.metadata.get("tokenizer.ggml.add_bos_token") == "true" else []
    size = WINDOW - len(begin)
    nats, scored = 0.0, 0
    for start in range(0, len(tokens), size):
        window = begin + tokens[start:start + size]
        if len(window) < 2:
            continue
        model.reset()
        model.eval(window)
        for at in range(len(window) - 1):
            row = model.scores[at].astype(np.float64)
            nats += float(np.log(np.exp(row - row.max()).sum()) + row.max() - row[window[at + 1]])
            scored += 1
    return {"tokens": scored, "nats": round(nats, 4), "window": WINDOW, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def speed(model):
    prompt = [int(token) for token in np.random.default_rng(1).integers(100, 40000, 256)]
    for _ in range(3):
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        middle = time.perf_counter()
        model.reset()
        model.eval(prompt[:8])
        begin = time.perf_counter()
        for token in prompt[8:72]:
            model.eval([token])
            logits(model)
        end = time.perf_counter()
        print(f"llama.cpp: prefill {256 / (middle - start):.0f}/s, decode {64 / (end - begin):.1f}/s, one thread")


def main():
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    path = arguments[0]
    model = llama_cpp.Llama(path, n_ctx=1024, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False)
    if "--speed" in sys.argv:
        return speed(model)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    cases = []
    if "--plain" in sys.argv:
        for text in BEGINNINGS:
            prompt = model.tokenize(text.encode(), add_bos=True, special=False)
            cases.append({"start": text, **greedy(model, prompt, 24)})
    else:
        for number, turns in enumerate(CONVERSATIONS + [[("user", question)] for question in QUESTIONS]):
            messages = [{"role": role, "content": content} for role, content in turns]
            prompt = model.tokenize(render(model, messages).encode(), add_bos=False, special=True)
            cases.append({"messages": messages, **greedy(model, prompt, 48 if number < len(CONVERSATIONS) else 16)})
    for case in cases:
        print(case["text"][:100].replace("\n", " "), "| least gap", min(case["gaps"]))
    assert len(cases) == 50
    texts = [{"text": text, "tokens": model.tokenize(text.encode(), add_bos=False, special=False)} for text in TEXTS]
    marked = [{"text": text, "tokens": model.tokenize(text.encode(), add_bos=False, special=True)} for text in MARKED]
    del model
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "prose.txt"), encoding="utf-8") as file:
        prose = surprise(path, file.read())
    print(prose, "perplexity", np.exp(prose["nats"] / prose["tokens"]))
    fixture = {"sha256": digest, "made_with": f"llama-cpp-python {llama_cpp.__version__}, defaults",
               "cases": cases, "texts": texts, "marked": marked, "prose": prose}
    with open(arguments[1], "w", encoding="utf-8") as file:
        json.dump(fixture, file, ensure_ascii=False)
        file.write("\n")


main()
