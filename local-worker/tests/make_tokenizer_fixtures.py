#!/usr/bin/env python3
"""Writes fixtures/tokenizers/: small vocabularies of every kind the families have, and what others make of texts with them.

    pip install transformers==5.23.0 sentencepiece==0.2.3 gguf==0.19.0 llama-cpp-python==0.3.36
    python3 make_tokenizer_fixtures.py fixtures/tokenizers

Each kind is trained on `corpus.txt` and written in the form that its family publishes: `tokenizer.json`,
`tokenizer_config.json` with a chat template, and for SentencePiece a `vocabulary.gguf` that has no tensors. `expected.json` holds
tokens of plain texts (`texts`), of texts that spell control tokens (`marked`) and of conversations (`chats`, by
`apply_chat_template`) by `transformers`; in `gguf` by llama.cpp, of plain and of marked texts, of the GGUF.
"""
import io
import json
import os
import sys

import gguf
import llama_cpp
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT_4O = "|".join([
    rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}*{LETTERS[1]}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}+{LETTERS[1]}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])

TEXTS = [
    "Hello, world!", "  leading and   inner   spaces  ", " one", "line\nbreaks\n\n\tand tabs\t\t\n", "\n", " ", "   ", "",
    "numbers 1 22 333 4444 3.14159 1,000,000", "it's we'll they've I'M DON'T camelCase HTTPServer",
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \u2026 a\u0300e\u0301 \u00a0nbsp\u200bzero \u2581 lower one eighth block",
    "Der Fluß über Köln; größere Häuser.", "Где ключ от дома? Никто не знает.", "Πού είναι το κλειδί;", "أين مفتاح البيت؟ مرحبا",
    "איפה המפתח? שלום", "घर की चाबी कहाँ है? नमस्ते", "กุญแจบ้านอยู่ที่ไหน สวัสดี", "家里的钥匙在哪里?你好 世界", "家の鍵はどこですか。テキスト",
    "집 열쇠는 어디에 있나요? 안녕", "სად არის გასაღები? გამარჯობა", "\U0001f600\U0001f1eb\U0001f1f7 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \u2764\ufe0f \U0001fae8",
    "fn main() { println!(\"{}\", x_1 + 0xFF); } // done", "<table><tr><td>1</td></tr></table>", "a <b> c </s", "\u0000\u0007\u007f",
    "\U00010348 \U0001d11e \u4dc0 rare letters", "The water was quiet, and the boat left the harbour at seven in the morning. " * 3,
]
CHATS = [
    [("user", "What is the capital of the country?")],
    [("system", "Answer in one line."), ("user", " Where is the key? ")],
    [("user", "Hello!"), ("assistant", "Hello, how are you?"), ("user", "\u0413\u0434\u0435 \u043a\u043b\u044e\u0447? \U0001f600")],
    [("user", "a\n\n  b\n")],
]
TURNS = ("{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")
IM = ("{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
HEADERS = ("{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + "
           "message.content | trim + '<|eot_id|>' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
GEMMA = ("{{ bos_token }}{% for message in messages %}{% set role = 'model' if message.role == 'assistant' else message.role %}"
         "{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}")
PHI_2 = ("{% for turn in messages %}{{ {'system': '', 'assistant': 'Output: '}.get(turn.role, 'Instruct: ') + turn.content + '\\n' }}"
         "{% endfor %}Output:")
INST = ("{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}"
        "{% else %}{{ '[INST] ' + message.content + ' [/INST]' }}{% endif %}{% endfor %}")


def special(text, **options):
    return AddedToken(text, special=True, normalized=False, **options)


def own(text, **options):
    return AddedToken(text, special=False, normalized=False, **options)


def byte_level(corpus, added, pattern=None, digits=False, normalizer=None, whole=False, begin=None, size=512):
    """A byte-level vocabulary, split by `pattern` or as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if pattern:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    if digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([corpus], trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if begin:
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))])])
    return tokenizer


def train_pieces(corpus, control, defined, size):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.splitlines()), model_writer=model, model_type="bpe", vocab_size=size,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, split_digits=True, allow_whitespace_only_pieces=True, unk_id=control.index("<unk>"),
        bos_id=control.index("<s>") if "<s>" in control else control.index("<bos>"),
        eos_id=control.index("</s>") if "</s>" in control else control.index("<eos>"), pad_id=-1,
        bos_piece="<s>" if "<s>" in control else "<bos>", eos_piece="</s>" if "</s>" in control else "<eos>",
        control_symbols=[name for name in control if name not in ("<unk>", "<s>", "</s>", "<bos>", "<eos>")],
        user_defined_symbols=defined, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def ranked_merges(scores):
    """Every way to make a piece of two, as transformers derives merges from scores."""
    merges = []
    for piece, score in scores.items():
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
        merges += [(score, pair) for pair in sorted(pairs, key=lambda pair: (-scores[pair[0]], -scores[pair[1]]))]
    merges.sort(key=lambda merge: -merge[0])
    return [pair for _, pair in merges]


def kind_of(model, number):
    if model.IsUnknown(number):
        return gguf.TokenType.UNKNOWN
    if model.IsControl(number):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if model.IsByte(number) else gguf.TokenType.NORMAL


def pieces(model, added, prefix, defined):
    """A SentencePiece model in the form of tokenizer.json; `prefix` is none, `prepend`, or `first`."""
    count = model.GetPieceSize()
    names = [model.IdToPiece(number) for number in range(count)]
    normal = {names[n]: model.GetScore(n) for n in range(count)
              if kind_of(model, n) == gguf.TokenType.NORMAL and (names[n] not in defined or names[n].strip("\u2581") == "")}
    tokenizer = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=ranked_merges(normal),
                                     unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = normalizers.Replace(" ", "\u2581")
    strip = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    elif prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space])
    else:
        tokenizer.normalizer = space
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(strip + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    if prefix:
        begin = names[model.bos_id()]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, model.bos_id())])
    return tokenizer


def write_vocabulary(path, model, tokenizer, architecture, prefix, template):
    writer = gguf.GGUFWriter(path, architecture)
    names, scores, kinds = [], [], []
    added = tokenizer.get_added_tokens_decoder()
    for number in range(tokenizer.get_vocab_size(True)):
        known = number < model.GetPieceSize()
        kind = kind_of(model, number) if known else gguf.TokenType.USER_DEFINED
        name, score = tokenizer.id_to_token(number), model.GetScore(number) if known else -1000.0
        if number in added and kind != gguf.TokenType.UNKNOWN:
            kind = gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED
            score = -1000.0
        if kind == gguf.TokenType.USER_DEFINED:
            name = name.replace("\u2581", " ")
        names.append(name)
        scores.append(score)
        kinds.append(kind)
    writer.add_name("a made phi-3" if architecture == "phi3" else "made")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(bool(prefix))
    writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def expected(wrapped, tokenizer, marked):
    texts = [{"text": text, "tokens": tokenizer.encode(text, add_special_tokens=False).ids} for text in TEXTS]
    marked = [{"text": text, "tokens": tokenizer.encode(text, add_special_tokens=False).ids} for text in marked]
    chats = []
    for turns in CHATS:
        messages = [{"role": role, "content": content} for role, content in turns]
        text = wrapped.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        assert wrapped(text, add_special_tokens=False).input_ids == tokens
        chats.append({"messages": messages, "text": text, "tokens": tokens})
    decoded = [{"tokens": case["tokens"], "text": tokenizer.decode(case["tokens"])} for case in texts if case["tokens"]]
    return {"texts": texts, "marked": marked, "chats": chats, "decoded": decoded}


def peer(path, marked):
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    tokens = lambda text, special: model.tokenize(text.encode(), add_bos=False, special=special)
    # llama.cpp ends a text at its first NUL.
    texts = [{"text": text, "tokens": tokens(text, False)} for text in TEXTS if "\0" not in text]
    return {"texts": texts, "marked": [{"text": text, "tokens": tokens(text, True)} for text in marked]}


def kinds(corpus):
    phi = [special("<unk>"), special("<s>"), own("</s>", rstrip=True), special("<|endoftext|>")]
    phi += [special(f"<|{name}|>", rstrip=True) for name in ("assistant", "end", "system", "user")]
    spaces = ["\u2581" * count for count in range(2, 6)]
    lines = ["\n" * count for count in range(1, 4)]
    gemma = [special(name) for name in ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")]
    defined = lines + spaces + ["<table>", "</table>", "<tr>", "</tr>", "<td>", "</td>"]
    llama = [special("<unk>"), special("<s>"), special("</s>")]
    im = [special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")]
    marked = {
        "pieces_phi3": ["<|user|>\nHello there<|end|>\n<|assistant|>\n", "a<|end|>  b <s> c</s> d", "<|user|>", " x <|user|>  \n\ty"],
        "pieces_gemma": ["<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n", "a<eos> b\n\n\nc   d<table>"],
        "pieces_llama": ["<s>[INST] Hello [/INST] Yes </s><s>[INST]  two [/INST]", " <s> a"],
    }
    turn = [special(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")]
    yield ("pieces_phi3", "prepend", (["<unk>", "<s>", "</s>"], [], 900), phi, TURNS, ("<s>", "<|endoftext|>"), marked["pieces_phi3"])
    yield ("pieces_gemma", None, (["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], defined, 920),
           gemma + [own(text) for text in defined], GEMMA, ("<bos>", "<eos>"),
           marked["pieces_gemma"])
    yield ("pieces_llama", "first", (["<unk>", "<s>", "</s>"], [], 900), llama, INST, ("<s>", "</s>"), marked["pieces_llama"])
    yield ("bytes_llama3", lambda: byte_level(corpus, turn, LLAMA_3, whole=True, begin="<|begin_of_text|>"), None, turn, HEADERS,
           ("<|begin_of_text|>", "<|eot_id|>"), ["<|begin_of_text|>a<|eot_id|> b", "x<|eot_id|>\n\n<|start_header_id|>"])
    think = [own("<think>"), own("</think>"), own("<tool_call>"), own("</tool_call>")]
    yield ("bytes_qwen", lambda: byte_level(corpus, im + think, QWEN_2, normalizer=normalizers.NFC()), None, im, IM,
           (None, "<|im_end|>"), ["<|im_start|>user\nHi<|im_end|>\n", "<think>\n\n</think>\n\nso <tool_call>"])
    phi4 = [special(f"<|{name}|>") for name in ("endoftext", "system", "user", "assistant", "end")]
    yield ("bytes_gpt4o", lambda: byte_level(corpus, phi4, GPT_4O), None, phi4, TURNS.replace("\\n", ""),
           ("<|endoftext|>", "<|endoftext|>"), ["<|user|>Hello<|end|><|assistant|>"])
    runs = [AddedToken(" " * count, special=False, normalized=True) for count in range(2, 9)]
    runs += [AddedToken("\t" * count, special=False, normalized=True) for count in range(2, 4)]
    yield ("bytes_codegen", lambda: byte_level(corpus, [special("<|endoftext|>")] + runs), None, [], None,
           ("<|endoftext|>", "<|endoftext|>"), ["a<|endoftext|>  b", "if x:\n        return\t\t1"])
    yield ("bytes_smollm", lambda: byte_level(corpus, im, digits=True), None, im, IM, ("<|im_start|>", "<|im_end|>"),
           ["<|im_start|>user\nHi<|im_end|>\n"])


def main(folder):
    with open(os.path.join(folder, "corpus.txt"), encoding="utf-8") as file:
        corpus = file.read()
    for name, build, training, added, template, (begin, end), marked in kinds(corpus):
        path = os.path.join(folder, name)
        os.makedirs(path, exist_ok=True)
        model = None
        if training:
            control, defined, size = training
            model = train_pieces(corpus, control, defined, size)
            tokenizer = pieces(model, added, build, defined)
        else:
            tokenizer = build()
        tokenizer.save(os.path.join(path, "tokenizer.json"), pretty=False)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end,
                    "clean_up_tokenization_spaces": False}
        if template:
            settings["chat_template"] = template
        if name == "pieces_phi3":
            settings["add_bos_token"] = False
        with open(os.path.join(path, "tokenizer_config.json"), "w", encoding="utf-8") as file:
            json.dump({key: value for key, value in settings.items() if value is not None}, file)
        if template is None:
            # Phi-2 publishes none, but describes this form.
            settings["chat_template"] = PHI_2
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end)
        wrapped.chat_template = settings["chat_template"]
        record = expected(wrapped, tokenizer, marked)
        if model:
            vocabulary = os.path.join(path, "vocabulary.gguf")
            write_vocabulary(vocabulary, model, tokenizer, {"pieces_phi3": "phi3", "pieces_gemma": "gemma3"}.get(name, "llama"),
                             build, template)
            record["gguf"] = peer(vocabulary, marked)
        with open(os.path.join(path, "expected.json"), "w", encoding="utf-8") as file:
            json.dump(record, file, ensure_ascii=False)
            file.write("\n")
        print(name, tokenizer.get_vocab_size(True), "tokens")


main(sys.argv[1])
