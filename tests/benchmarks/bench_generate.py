"""512 tokens of a GPT of 6 layers, width 256 and GPT-2's vocabulary, against transformers and the notes' loop.

transformers' ``generate`` has the same weights and a cache of its own; both draw from the whole softmax. The notes'
loop computes everything anew for each token, attention through a full mask; it is timed at every 64th token, each of
which stands for 64. Names state tokens a second, and the share of the memory bandwidth (of copying a large array)
that reading all weights once a token, and the keys and values so far, takes.
"""

from __future__ import annotations

import copy
import logging
import statistics
import tempfile
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.models import GPT
from zoo.tasks.generation import Sampling, generate

VOCAB, CONTEXT, DIM, DEPTH, HEADS = 50257, 512, 256, 6, 8
PROMPT = 8
EVERY = 64


class NotesBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.ff = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT) / (DIM // HEADS) ** 0.5
        attention = scores.masked_fill(mask == 0, float("-inf")).softmax(3)
        x = x + self.proj((attention @ v).transpose(1, 2).flatten(2))
        return x + self.ff(self.ln2(x))


class NotesGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, DIM), nn.Embedding(CONTEXT, DIM)
        self.blocks = nn.ModuleList(NotesBlock() for _ in range(DEPTH))
        self.ln, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, VOCAB, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        x = self.tokens(ids) + self.positions(torch.arange(t))
        mask = torch.tril(torch.ones(t, t))[None, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.ln(x))

    @torch.no_grad()
    def next_token(self, ids: Tensor) -> Tensor:
        probabilities = F.softmax(self(ids[:, -CONTEXT:])[:, -1], 1)
        return torch.cat([ids, torch.multinomial(probabilities, 1)], 1)


def notes_seconds(net: NotesGPT, batch: int, total: int) -> float:
    """Seconds for a whole text, from those of every 64th token."""
    found = 0.0
    for length in range(PROMPT + EVERY // 2, total, EVERY):
        ids = torch.randint(VOCAB, (batch, length))
        began = time.perf_counter()
        net.next_token(ids)
        found += EVERY * (time.perf_counter() - began)
    return found


def copy_bandwidth() -> float:
    """Bytes read and written a second by copying 256 MB."""
    a, b = torch.ones(2**26), torch.empty(2**26)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        b.copy_(a)
        best = min(best, time.perf_counter() - began)
    return 2 * a.nbytes / best


def run(pairs: int = 3, total: int = CONTEXT, batches: tuple[int, ...] = (1, 16)) -> list[dict[str, Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    sizes = {"n_positions": CONTEXT, "n_embd": DIM, "n_layer": DEPTH, "n_head": HEADS}
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes)).eval()  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = GPT.from_pretrained(folder)
    notes = NotesGPT().eval()
    half = copy.deepcopy(ours).bfloat16()
    weights = sum(p.nbytes for p in ours.parameters()) - ours.wpe.weight.nbytes  # type: ignore[union-attr]
    bandwidth, new = copy_bandwidth(), total - PROMPT
    results = []
    for batch in batches:
        prompt = torch.randint(VOCAB, (batch, PROMPT))
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0}
        times: list[tuple[float, ...]] = []
        for pair in range(pairs + 1):
            began = time.perf_counter()
            texts = generate(ours, prompt.tolist(), new if pair else 16, Sampling(), CONTEXT)
            middle = time.perf_counter()
            theirs.generate(prompt, **{**options, "max_new_tokens": new if pair else 16})  # type: ignore[operator]
            end = time.perf_counter()
            generate(half, prompt.tolist(), new if pair else 16, Sampling(), CONTEXT)
            in_half = time.perf_counter() - end
            loop = notes_seconds(notes, batch, total if pair else 80)
            times.append((middle - began, end - middle, loop, in_half))
            assert [len(text) for text in texts] == [new if pair else 16] * batch
        read = weights + 2 * DEPTH * batch * DIM * 4 * (total + PROMPT) / 2  # bytes of weights and cache for a token
        for own, precision, size in ((0, "float32", 1.0), (3, "bf16", 0.5)):
            mine = statistics.median(t[own] for t in times[1:])
            share = read * size * new / mine / bandwidth
            speed = f"{batch * new / mine:.0f} tokens/s, {share:.0%} of the memory bandwidth"
            for index, peer, target in ((1, "transformers, cached", 1 / 3), (2, "the notes' loop", 0.1)):
                other = statistics.median(t[index] for t in times[1:])
                ratio = statistics.median(t[own] / t[index] for t in times[1:])
                found = {"ours_ms": mine * 1e3, "peer": peer, "peer_ms": other * 1e3, "ratio": ratio, "target": target}
                results.append({"name": f"generate: batch {batch}, {precision}, {speed}", **found})
    return results
