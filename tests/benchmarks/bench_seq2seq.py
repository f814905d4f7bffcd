"""Greedy decoding of a batch, stopped when all have ended, against the loop one would write: a sentence at a time.

Both run the same network, trained for a moment so that translations end, on the same dates, in turn. The loop encodes a
sentence, decodes a token on a call with the state kept, and stops at the end of the sentence: it wastes nothing else.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from zoo.data import DateTranslation
from zoo.models import Seq2SeqTranslator

CASES = [("dot", 256), ("additive", 256), ("none", 256)]


def trained(data: DateTranslation, attention: str, steps: int = 60) -> Seq2SeqTranslator:
    torch.manual_seed(0)
    facts = ("src_vocab_size", "tgt_vocab_size", "pad_id", "bos_id", "eos_id", "max_new_tokens")
    given: dict[str, Any] = {name: getattr(data, name) for name in facts}
    module = Seq2SeqTranslator(bidirectional=True, attention=attention, init_recurrent=True, **given)  # type: ignore
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    for i in range(steps):
        optimizer.zero_grad()
        module.step(data.datasets["train"].batch(torch.arange(i * 64, i * 64 + 64)), "train").backward()  # type: ignore
        optimizer.step()
    return module.eval()


@torch.no_grad()
def one_by_one(module: Seq2SeqTranslator, src: Tensor) -> list[list[int]]:
    net, found = module.net, []
    for row in src:
        states, state, lengths = net.encoder(row[row != module.pad_id].unsqueeze(0))
        memory, tokens, last = net.decoder.build_memory(states, lengths), [], module.bos_id
        while len(tokens) < module.max_new_tokens and last != module.eos_id:
            logits, state, _ = net.decoder(torch.tensor([[last]]), state, memory)
            last = int(logits[0, 0].argmax())
            tokens.append(last)
        found.append(tokens)
    return found


def run(pairs: int = 7) -> list[dict[str, Any]]:
    data, results = DateTranslation(), []
    for attention, n in CASES:
        module = trained(data, attention)
        (src, _), _ = data.datasets["test"].batch(torch.arange(n))  # type: ignore[attr-defined]
        times: list[tuple[float, float]] = []
        for _ in range(pairs + 1):
            began = time.perf_counter()
            ours = module.generate(src).tokens
            middle = time.perf_counter()
            peer = one_by_one(module, src)
            times.append((middle - began, time.perf_counter() - middle))
        assert [[t for t in row if t != module.pad_id] for row in ours.tolist()] == peer, "the same translations"
        times = times[1:]
        medians = [statistics.median(side) * 1e3 for side in zip(*times, strict=True)]
        tokens = sum(map(len, peer))
        name = f"seq2seq: greedy, {attention} attention, {n} dates, {tokens} tokens"
        results.append({"name": name, "ours_ms": medians[0], "peer": "a sentence at a time", "peer_ms": medians[1],
                        "ratio": statistics.median(a / b for a, b in times), "target": 0.1})  # fmt: skip
    return results


if __name__ == "__main__":
    for row in run():
        print(row)
