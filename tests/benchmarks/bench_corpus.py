"""Text to tokens, and tokens to batches, against the usual Python ways of doing both.

Tokenising: source of Python's standard library, from files to a file of tokens, with all that the corpus checks on the
way; the other side reads file by file and encodes one text at a time, characters through a dict, pieces of words
through the tokenizers library, and keeps numpy arrays. Times are milliseconds for a megabyte of text. Pieces of words
cut as GPT-2 does are limited by one core, which cuts words and looks them up; those cut otherwise by the library's own
speed times the cores.

Sampling: one epoch of batches (x, y) from PythonDocs in memory, and from a mapped file; the other side is torch's
DataLoader over single blocks, a Dataset that slices a tensor. Times are milliseconds for a batch of 12 by 64 or 32 by
256.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.data import PythonDocs, PythonSource
from zoo.data.text import token_cache
from zoo.data.text.corpus_files import Text
from zoo.text import Tokenizer

MEGABYTE = 1e6
BATCHES = 200


class SingleBlocks(Dataset):
    """A block at a time, as a dataset is usually written."""

    def __init__(self, tokens: Tensor, block_size: int) -> None:
        self.tokens, self.block_size = tokens, block_size

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.block_size

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        at = i * self.block_size
        return self.tokens[at : at + self.block_size], self.tokens[at + 1 : at + 1 + self.block_size]


def in_turn(
    name: str, peer: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int, target: float
) -> dict[str, Any]:
    """Run both once to warm up, then in turn; each returns its milliseconds for a unit of work."""
    sides: list[list[float]] = [[], []]
    for i in range(rounds + 1):
        for side, run in zip(sides, (ours, theirs), strict=True):
            taken = run()
            if i:
                side.append(taken)
    ratio = statistics.median(a / b for a, b in zip(*sides, strict=True))
    medians = [statistics.median(side) for side in sides]
    return {"name": name, "ours_ms": medians[0], "peer": peer, "peer_ms": medians[1], "ratio": ratio, "target": target}


def timed(work: Callable[[], object], units: float) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000 / units


def one_by_one(texts: list[Text], encode: Callable[[str], list[int]]) -> np.ndarray:
    parts = [np.array(encode(Path(text.name).read_text(encoding="utf-8")), np.uint16) for text in texts]
    return np.concatenate(parts)


def tokenising(rounds: int) -> list[dict[str, Any]]:
    source = PythonSource().texts()["train"]
    sizes = itertools.accumulate(map(len, source))
    texts = [text for text, size in zip(source, sizes, strict=True) if size < 4 * MEGABYTE]
    units = sum(map(len, texts)) / MEGABYTE
    characters, bpe = (token_cache.train(texts, {"level": level}) for level in ("characters", "bpe"))
    index = {token: i for i, token in enumerate(characters.engine.source)}
    raw = bpe.engine.backend  # type: ignore[attr-defined]
    peers: list[tuple[Tokenizer, str, Callable[[str], list[int]], float]] = [
        (characters, "a dict, one text at a time", lambda text: [index[c] for c in text], 1 / 3),
        (bpe, "tokenizers, one text at a time", lambda text: raw.encode(text).ids, 1 / 3),
    ]
    rows = []
    for tokenizer, peer, encode, target in peers:
        with tempfile.TemporaryDirectory() as folder:
            runs = itertools.count()

            def ours(tokenizer: Tokenizer = tokenizer, folder: str = folder, runs: Any = runs) -> float:
                place = Path(folder) / str(next(runs))  # nothing is found again
                return timed(partial(token_cache.load_or_build, place, {"train": texts}, tokenizer), units)

            name = f"corpus: tokenising a MB, {tokenizer.level}"
            rows.append(in_turn(name, peer, ours, partial(timed, partial(one_by_one, texts, encode), units), rounds,
                                target))  # fmt: skip
    return rows


def epoch(loader: DataLoader) -> float:
    """Milliseconds a batch."""
    began, n = time.perf_counter(), 0
    for _ in itertools.islice(loader, BATCHES):
        n += 1
    return (time.perf_counter() - began) * 1000 / n


def sampling(rounds: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for batch_size, block_size in ((12, 64), (32, 256)):
            for cache in ("memory", "disk"):
                data = PythonDocs(batch_size=batch_size, block_size=block_size, cache=cache, cache_dir=folder)  # type: ignore[arg-type]
                blocks: Any = data.datasets["train"]
                single = SingleBlocks(torch.from_numpy(blocks.ids.astype(np.int64)), block_size)
                theirs = DataLoader(single, batch_size, shuffle=True)
                name = f"corpus: a batch of {batch_size} x {block_size}, {cache}"
                rows.append(in_turn(name, "DataLoader over single blocks", partial(epoch, data.train_dataloader()),
                                    partial(epoch, theirs), rounds, 1 / 3))  # fmt: skip
    return rows


def run(rounds: int = 9) -> list[dict[str, Any]]:
    return tokenising(max(3, rounds // 3)) + sampling(rounds)


if __name__ == "__main__":
    for row in run():
        print(row)
