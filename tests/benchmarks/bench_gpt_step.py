"""A training step of GPT against transformers' GPT-2, and against the notes' attention with a full mask, in one loop.

Four layers, width 128, four heads, blocks of 64, batches of 12, 98 characters: 814,080 parameters. Same batches on all
sides, AdamW, no dropout; each side's loop is zero_grad, forward, loss, backward, step. All run in this process and take
turns, so that a ratio is a median over neighbours. GPT also runs as ``precision: bf16-mixed``
and ``compile: true`` do it, and with both; the others compute in float32. Compiling took 8.5 s, once.

The limit: a token takes 6 operations for each of the 798,976 weights in products (two forward, four backward) and
12 x 64 x 128 x 4 / 2 for attention to what is before it, so a step of 768 tokens has 3.83 GFLOP: 38 ms on a core of
100 GFLOP/s in float32. All else (normalisations, GELU, softmax, AdamW) moves memory, and is what can be saved.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models import GPT

VOCAB, BLOCK, BATCH, DIM, DEPTH, HEADS = 98, 64, 12, 128, 4, 4


class NotesAttention(nn.Module):
    """As in the notes: scores of all pairs, and a mask over the future."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(d // HEADS)
        scores = scores.masked_fill(mask == 0, float("-inf"))
        return self.proj((F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().reshape(b, t, d))


class NotesBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(DIM), NotesAttention(), nn.LayerNorm(DIM)
        self.ff = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x), mask)
        return x + self.ff(self.ln2(x))


class NotesGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(VOCAB, DIM), nn.Embedding(BLOCK, DIM)
        self.blocks = nn.ModuleList([NotesBlock() for _ in range(DEPTH)])
        self.ln, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, VOCAB, bias=False)
        self.head.weight = self.tok.weight

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        x = self.tok(ids) + self.pos(torch.arange(t))
        mask = torch.tril(torch.ones(t, t)).unsqueeze(0).unsqueeze(0)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.ln(x))


class TransformersGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"vocab_size": VOCAB, "n_positions": BLOCK, "n_embd": DIM, "n_layer": DEPTH, "n_head": HEADS}
        off: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
        self.net = GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=None, eos_token_id=None))

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids).logits


def step_of(net: nn.Module, fused: bool | None = None, mixed: bool = False) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = net(x)
        F.cross_entropy(logits.float().flatten(0, 1), y.flatten()).backward()
        optimizer.step()

    return step


def compiled() -> GPT:
    net = GPT(VOCAB, BLOCK, DIM, DEPTH, HEADS)
    net.compile()  # as the option of every task does
    return net


def run(rounds: int = 60) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    sides = {
        "GPT": step_of(GPT(VOCAB, BLOCK, DIM, DEPTH, HEADS), fused=True),  # which zoo takes by itself
        "GPT, compiled": step_of(compiled(), fused=True),
        "GPT, bf16-mixed": step_of(GPT(VOCAB, BLOCK, DIM, DEPTH, HEADS), fused=True, mixed=True),
        "GPT, bf16-mixed and compiled": step_of(compiled(), fused=True, mixed=True),
        "transformers' GPT-2": step_of(TransformersGPT()),
        "the notes' GPT": step_of(NotesGPT()),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 5):
        ids = torch.randint(VOCAB, (BATCH, BLOCK + 1))
        for name, step in sides.items():
            began = time.perf_counter()
            step(ids[:, :-1], ids[:, 1:])
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(t[5:]) for name, t in times.items()}
    *ours, one, other = sides
    faster = min(one, other, key=medians.__getitem__)
    rows = []
    for name in ours:
        for peer in (one, other):
            ratio = statistics.median(a / b for a, b in list(zip(times[name], times[peer], strict=True))[5:])
            pair = {"ours_ms": medians[name] * 1e3, "peer_ms": medians[peer] * 1e3, "ratio": ratio}
            rows.append({"name": f"step of {name}", "peer": peer, **pair, "target": 0.6 if peer == faster else None})
    return rows


if __name__ == "__main__":
    for row in run():
        print(row)
