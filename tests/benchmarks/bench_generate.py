"""512 tokens of a GPT of 6 layers and width 256, against transformers and the notes' loop, with two vocabularies.

That of ``PythonDocs`` has 98 characters; of GPT-2's 50,257 tokens the last layer alone has 51 MB, three times all
others, which whoever draws from it has to read for each token.

transformers' ``generate`` has the same weights and a cache of its own; both draw from the whole softmax. The notes'
loop computes everything anew for each token, attention through a full mask; it is timed at every 64th token, each of
which stands for 64. Names state tokens a second, and the share of the memory bandwidth (of copying a large array)
that reading all weights once a token, and the keys and values so far, takes; it may be above 1 where they stay in a
cache. A batch of 16 with the large vocabulary is timed at half its length, and the loop once, as it takes minutes.
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
from zoo.tasks.generation import generate
from zoo.tasks.token_sampling import SamplingConfig

VOCABULARIES = (98, 50257)
CONTEXT, DIM, DEPTH, HEADS = 512, 256, 6, 8
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
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, DIM), nn.Embedding(CONTEXT, DIM)
        self.blocks = nn.ModuleList(NotesBlock() for _ in range(DEPTH))
        self.ln, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, vocab_size, bias=False)
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
        ids = torch.randint(net.head.out_features, (batch, length))
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


def run(pairs: int = 2, total: int = CONTEXT, batches: tuple[int, ...] = (1, 16)) -> list[dict[str, Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    logging.getLogger("transformers").setLevel(logging.ERROR)
    bandwidth, results = copy_bandwidth(), []
    for vocab_size in VOCABULARIES:
        torch.manual_seed(0)
        sizes = {"n_positions": CONTEXT, "n_embd": DIM, "n_layer": DEPTH, "n_head": HEADS}
        theirs = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes)).eval()  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = GPT.from_pretrained(folder)
        notes = NotesGPT(vocab_size).eval()
        for batch in batches:
            length = total // 2 if batch > 1 and vocab_size > 1000 else total
            times = measure(ours, theirs, notes, batch, length, pairs)
            results += rows(ours, batch, length, times, bandwidth)
    return results


def measure(
    ours: GPT, theirs: Any, notes: NotesGPT, batch: int, total: int, pairs: int
) -> dict[str, list[tuple[float, float]]]:
    """Pairs of our seconds and theirs, by what they are compared with; each pair in turn, the first thrown away."""
    half, vocab_size = copy.deepcopy(ours).bfloat16(), ours.vocab_size
    prompt, times = torch.randint(vocab_size, (batch, PROMPT)), {"theirs": [], "theirs half": [], "notes": []}
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
    for pair in range(pairs + 1):
        new = total - PROMPT if pair else 16
        began = time.perf_counter()
        texts = generate(ours, prompt.tolist(), new, SamplingConfig(), CONTEXT)
        seconds = time.perf_counter() - began
        assert [len(text) for text in texts] == [new] * batch
        began = time.perf_counter()
        theirs.generate(prompt, max_new_tokens=new, **options)
        other = time.perf_counter() - began
        began = time.perf_counter()
        generate(half, prompt.tolist(), new, SamplingConfig(), CONTEXT)
        in_half = time.perf_counter() - began
        if pair:
            times["theirs"].append((seconds, other))
            times["theirs half"].append((in_half, other))
        if pair == 1:
            times["notes"].append((seconds, notes_seconds(notes, batch, total)))
    return times


def rows(
    net: GPT, batch: int, total: int, times: dict[str, list[tuple[float, float]]], bandwidth: float
) -> list[dict[str, Any]]:
    new, weights = total - PROMPT, sum(p.nbytes for p in net.parameters()) - net.wpe.weight.nbytes  # type: ignore[union-attr]
    read = weights + 2 * DEPTH * batch * DIM * 4 * (total + PROMPT) / 2  # bytes of weights and cache for a token
    found = []
    for name, peer, target in (
        ("theirs", "transformers, cached", 1 / 3),
        ("notes", "the notes' loop", 0.1),
        ("theirs half", "transformers in float32", None),
    ):
        precision, size = ("bf16", 0.5) if "half" in name else ("float32", 1.0)
        mine, other = (statistics.median(side) for side in zip(*times[name], strict=True))
        speed = f"{batch * new / mine:.0f} tokens/s, {read * size * new / mine / bandwidth:.0%} of the memory bandwidth"
        found.append({
            "name": f"generate: {net.vocab_size} tokens, batch {batch}, {precision}, {speed}",
            "ours_ms": mine * 1e3, "peer": peer, "peer_ms": other * 1e3,
            "ratio": statistics.median(a / b for a, b in times[name]), "target": target,
        })  # fmt: skip
    return found


if __name__ == "__main__":
    for row in run():
        print(f"{row['name']}: {row['ratio']:.3f} of {row['peer']}", flush=True)
