"""llama.cpp as a peer of the engine: reads one JSON command a line, answers with one JSON object a line.

Commands: {"do": "load", "file", "threads", "tokens"}, {"do": "decode", "context", "tokens"},
{"do": "batch", "sequences", "tokens"}, {"do": "prefill", "tokens"}, {"do": "memory"}.
Only the C calls are timed, so Python's own work does not count against llama.cpp.
"""

import ctypes
import json
import sys
import time

import llama_cpp as api

CELLS = 4096


def resident():
    """Bytes of physical memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


class Peer:
    def __init__(self):
        api.llama_backend_init()
        quiet = api.llama_log_callback(lambda *_: None)
        self.quiet = quiet
        api.llama_log_set(quiet, ctypes.c_void_p(0))
        self.before = resident()
        self.model = self.context = self.batch = None

    def load(self, file, threads, tokens=8):
        start = time.perf_counter()
        params = api.llama_model_default_params()
        self.model = api.llama_model_load_from_file(file.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp can't load {file}")
        settings = api.llama_context_default_params()
        settings.n_ctx = CELLS
        settings.n_batch = 512
        settings.n_ubatch = 512
        settings.n_seq_max = 16
        settings.kv_unified = True
        settings.n_threads = threads
        settings.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, settings)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(512, 0, 1)
        self.rows([(0, position, position == tokens - 1) for position in range(tokens)])
        return {"seconds": time.perf_counter() - start}

    def clear(self):
        api.llama_memory_clear(api.llama_get_memory(self.context), True)

    def token(self, index):
        return (index * 2654435761) % 4294967296 % self.vocabulary

    def rows(self, rows):
        """Decodes (sequence, position, wants logits) rows; returns the seconds of the C call."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for at, (sequence, position, wanted) in enumerate(rows):
            batch.token[at] = self.token(position + sequence)
            batch.pos[at] = position
            batch.seq_id[at][0] = sequence
            batch.n_seq_id[at] = 1
            batch.logits[at] = wanted
        start = time.perf_counter()
        if api.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        api.llama_synchronize(self.context)
        return time.perf_counter() - start

    def prompt(self, sequence, tokens):
        seconds = 0.0
        for first in range(0, tokens, 512):
            last = min(first + 512, tokens)
            seconds += self.rows([(sequence, at, at == tokens - 1) for at in range(first, last)])
        return seconds

    def decode(self, context, tokens):
        self.clear()
        self.prompt(0, context)
        seconds = sum(self.rows([(0, context + at, True)]) for at in range(tokens))
        return {"rate": tokens / seconds}

    def do_batch(self, sequences, tokens):
        self.clear()
        for sequence in range(sequences):
            self.prompt(sequence, 8)
        seconds = sum(self.rows([(sequence, 8 + at, True) for sequence in range(sequences)]) for at in range(tokens))
        return {"rate": sequences * tokens / seconds}

    def prefill(self, tokens):
        self.clear()
        return {"rate": tokens / self.prompt(0, tokens)}

    def memory(self):
        return {"bytes": resident() - self.before}


def main():
    peer = Peer()
    verbs = {"load": peer.load, "decode": peer.decode, "batch": peer.do_batch, "prefill": peer.prefill, "memory": peer.memory}
    for line in sys.stdin:
        command = json.loads(line)
        answer = verbs[command.pop("do")](**command)
        print(json.dumps(answer), flush=True)


main()
