#!/usr/bin/env python3
"""Writes fixtures/encoders/: tiny random sentence encoders of true architectures, and what `transformers` makes of texts.

    pip install torch transformers==5.23.0 safetensors
    python3 make_encoder_fixtures.py fixtures/encoders [all-MiniLM-L6-v2]

For each case a folder with `config.json`, safetensors, a tokenizer, sentence-transformers' pooling file where the case has one,
and `expected.json`: for each text its tokens and its vector of length one. Weights are large, so that layers matter.
With the folder of the real all-MiniLM-L6-v2 (fetch_minilm.sh) also what that makes of some texts, in `minilm.json`.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

TEXTS = [
    "How do I reset my password?", "a", "The CAT sat, didn't it?", "Crème brûlée", "", "日本 unknown zebra",
    "cat " * 40, "the dog and the cat and the dog " * 3, "[SEP] the cat",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "do", "i", "re", "##set", "my", "pass", "##word", "?", "a", "the",
         "cat", "sat", ",", "didn", "'", "t", "it", "creme", "brule", "##e", "dog", "and", "[", "]", "sep", "##s", "The"]
BASE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 56,
        "max_position_embeddings": 36, "layer_norm_eps": 1e-12, "type_vocab_size": 2}
# Name, element type, what names begin with, old names of norms, pooling, tokens read, configuration.
CASES = [
    ("bert", torch.float32, "bert.", True, None, 30, {**BASE, "model_type": "bert", "hidden_act": "gelu"}),
    ("bert_first", torch.bfloat16, "", False, "cls", None,
     {**BASE, "model_type": "bert", "hidden_act": "gelu_new", "hidden_size": 30, "num_attention_heads": 5}),
    ("roberta", torch.float16, "", False, "mean", None,
     {**BASE, "model_type": "roberta", "hidden_act": "gelu", "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0,
      "eos_token_id": 2, "layer_norm_eps": 1e-5, "max_position_embeddings": 38}),
    ("distilbert", torch.float32, "", False, "mean", None,
     {"model_type": "distilbert", "activation": "relu", "dim": 32, "hidden_dim": 40, "n_heads": 2, "n_layers": 2,
      "max_position_embeddings": 36}),
]


def tokenizer_of(name, folder, limit):
    if name == "roberta":
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(TEXTS * 3, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        bpe.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
        made = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, unk_token="<unk>", pad_token="<pad>",
                                       bos_token="<s>", eos_token="</s>", model_max_length=limit)
        bpe._tokenizer.save(str(folder / "tokenizer.json"))
        return made
    (folder / "vocab.txt").write_text("".join(word + "\n" for word in WORDS))
    cased = name == "bert_first"
    made = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=not cased, model_max_length=limit)
    if cased:
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    if name == "distilbert":
        made.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return made


REAL = [
    "How do I reset my password?", "I forgot my login code.", "What's the weather like in Paris today?",
    "Crème brûlée à la façon de l'École — naïve Ångström, Straße", "Привет, мир! 東京は日本の首都です。안녕하세요 😀 हिन्दी مرحبا",
    "fn main() { let x: Vec<u8> = b\"abc\".to_vec(); assert_eq!(x.len(), 3); }", "x", "[SEP] is no [MASK] and <b>1,234.56</b> isn't",
    "The quick brown fox jumps over the lazy dog. " * 40,
]


def rows_of(texts, tokenizer, model, longest, first=False):
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=longest)["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        vector = torch.nn.functional.normalize(hidden[0] if first else hidden.mean(0), dim=0)
        yield {"text": text, "tokens": len(ids), "vector": [round(value, 7) for value in vector.tolist()]}


def write(path, rows):
    path.write_text("[" + ",\n".join(json.dumps(row) for row in rows) + "]\n")


def main(out, real=None):
    torch.manual_seed(7)
    for name, kind, prefix, old, pooling, longest, given in CASES:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        limit = given["max_position_embeddings"] - (2 if name == "roberta" else 0)
        tokenizer = tokenizer_of(name, folder, min(longest or limit, limit))
        config = AutoConfig.for_model(**given, vocab_size=len(tokenizer))
        model = AutoModel.from_config(config).eval()
        for key, parameter in model.named_parameters():
            about = 1.0 if parameter.dim() == 1 and key.endswith("weight") else 0.0
            parameter.data = (torch.randn(parameter.shape) * (0.5 if parameter.dim() > 1 else 0.3) + about).to(kind).float()
        tensors = {}
        for key, value in model.state_dict().items():
            if old:
                key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[prefix + key] = value.to(kind).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**given, "vocab_size": len(tokenizer)}, indent=1) + "\n")
        if pooling:
            (folder / "1_Pooling").mkdir(exist_ok=True)
            flags = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags) + "\n")
        if longest:
            (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}) + "\n")
        write(folder / "expected.json", rows_of(TEXTS, tokenizer, model, tokenizer.model_max_length, pooling == "cls"))
    if real:
        rows = rows_of(REAL, AutoTokenizer.from_pretrained(real), AutoModel.from_pretrained(real).eval(), 256)
        write(out / "minilm.json", rows)



main(*map(pathlib.Path, sys.argv[1:]))
