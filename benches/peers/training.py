"""Training steps of the lab and of PyTorch in turn, on the same shapes and threads: a Markdown table.

training.py TRAIN_SPEED [--rounds N] [--steps N] [--threads N]. The PyTorch network is written as its users would: fused
attention, fused AdamW, no padding, gradients clipped.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

# name, (vocabulary, width, layers, heads, kv_heads, feed_forward), rows, length
SHAPES = [
    ("5.5M, 8 x 256", (4096, 256, 6, 4, 2, 704), 8, 256),
    ("5.5M, 16 x 128", (4096, 256, 6, 4, 2, 704), 16, 128),
    ("13M, 8 x 256", (4096, 512, 4, 8, 8, 1280), 8, 256),
]


class Block(torch.nn.Module):
    def __init__(self, width, heads, kv_heads, feed_forward):
        super().__init__()
        self.heads, self.kv_heads, self.head = heads, kv_heads, width // heads
        linear = lambda a, b: torch.nn.Linear(a, b, bias=False)
        self.norm1, self.norm2 = torch.nn.RMSNorm(width, eps=1e-5), torch.nn.RMSNorm(width, eps=1e-5)
        self.qkv = linear(width, (heads + 2 * kv_heads) * self.head)
        self.out = linear(heads * self.head, width)
        self.gate_up, self.down = linear(width, 2 * feed_forward), linear(feed_forward, width)

    def forward(self, x, cosine, sine):
        b, t, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, -1, self.head).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        turn = lambda y: torch.cat(
            [
                y[..., : self.head // 2] * cosine - y[..., self.head // 2 :] * sine,
                y[..., : self.head // 2] * sine + y[..., self.head // 2 :] * cosine,
            ],
            -1,
        )
        q, k = turn(q), turn(k)
        times = self.heads // self.kv_heads
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Network(torch.nn.Module):
    def __init__(self, vocabulary, width, layers, heads, kv_heads, feed_forward):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        torch.nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = torch.nn.ModuleList(Block(width, heads, kv_heads, feed_forward) for _ in range(layers))
        self.norm = torch.nn.RMSNorm(width, eps=1e-5)
        self.head = width // heads

    def forward(self, ids):
        length, half = ids.shape[1], self.head // 2
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)[None]
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        return self.norm(x) @ self.embedding.weight.t()


def torch_speed(sizes, rows, length, steps, bf16):
    torch.manual_seed(1)
    network = Network(*sizes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    ids = torch.randint(0, sizes[0], (rows, length + 1))
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = network(ids[:, :-1])
            loss = F.cross_entropy(logits.reshape(-1, sizes[0]).float(), ids[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return rows * length / statistics.median(seconds[2:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", type=int, default=len(SHAPES))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"PyTorch {torch.__version__}, {given.threads} threads, load {os.getloadavg()[0]:.1f}; medians of {given.rounds} rounds\n")
    print("| weights, batch | sluice f32, tokens/s | PyTorch f32 | sluice ÷ PyTorch f32 | sluice bf16 | PyTorch bf16 | sluice ÷ PyTorch bf16 | GFLOP/s f32, of the machine's peak | bf16, of its peak |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, sizes, rows, length in SHAPES[: given.shapes]:
        ours, ours_brain, theirs, brain = [], [], [], []
        for _ in range(given.rounds):
            command = [given.speed, ",".join(map(str, sizes)), rows, length, given.steps, given.threads]
            for runs, more in ((ours, []), (ours_brain, ["bf16"])):
                told = subprocess.run(list(map(str, command + more)), check=True, capture_output=True, text=True).stdout
                runs.append(json.loads(told))
            theirs.append(torch_speed(sizes, rows, length, given.steps, False))
            brain.append(torch_speed(sizes, rows, length, given.steps, True))
        cells = [name]
        for runs, peers in ((ours, theirs), (ours_brain, brain)):
            tokens, peer = statistics.median(run["tokens_per_s"] for run in runs), statistics.median(peers)
            cells += [f"{tokens:,.0f}", f"{peer:,.0f}", f"{tokens / peer:.2f} ×"]
        for runs in (ours, ours_brain):
            flops, peak = statistics.median(run["gflops"] for run in runs), max(run["peak_gflops"] for run in runs)
            cells.append(f"{flops:.0f}, {flops / peak * 100:.0f} % of {peak:.0f}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
