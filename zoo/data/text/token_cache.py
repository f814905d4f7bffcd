"""Texts as numbers of tokens in one file that is mapped into memory, made once for each content and tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import disk_cache
from zoo.data.text.corpus_files import Chunk, Text, chunks
from zoo.text import Tokenizer

VERSION = 1
SHOWN = 4 << 20  # bytes from which on a bar is shown
Array = np.ndarray


@dataclass
class Tokens:
    """A split as numbers, and what they were made of.

    Args:
        ids: ``(n,)``, of the smallest type that holds them.
        size: bytes of the texts in UTF-8.
        texts: number of texts.
    """

    ids: Array
    size: int
    texts: int


@dataclass
class Counts:
    """Tokens of a split, bytes of its texts, and number of these."""

    tokens: int = 0
    size: int = 0
    texts: int = 0


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type of integers for tokens."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def cache_key(splits: Mapping[str, Sequence[Text]], tokenizer: Any) -> str:
    """A name for texts in splits, cut by a tokenizer.

    Args:
        splits: the texts.
        tokenizer: everything that decides the tokens, in plain values.
    """
    content = {name: [(t.key, t.start, t.stop, t.field) for t in texts] for name, texts in splits.items()}
    return hashlib.sha256(json.dumps([VERSION, content, tokenizer], sort_keys=True).encode()).hexdigest()[:24]


def load_or_build(folder: Path, splits: Mapping[str, Sequence[Text]], tokenizer: Tokenizer) -> dict[str, Tokens]:
    """Map the tokens of splits into memory, after writing them if they are not there.

    Args:
        folder: where caches are kept.
        splits: texts by the names of splits.
        tokenizer: cuts the texts.
    """
    place, dtype = folder / cache_key(splits, tokenizer.plain()), smallest_dtype(len(tokenizer))
    disk_cache.ensure(place, lambda new: _write(new, splits, tokenizer))
    index = {name: Counts(**counts) for name, counts in json.loads((place / "index.json").read_text()).items()}
    found = {}
    for name, counts in index.items():
        path = place / f"{name}.bin"
        ids = np.memmap(path, dtype, "r", shape=(counts.tokens,)) if counts.tokens else np.empty(0, dtype)
        found[name] = Tokens(ids, counts.size, counts.texts)
    return found


def _write(new: Path, splits: Mapping[str, Sequence[Text]], tokenizer: Tokenizer) -> None:
    index = {}
    for name, texts in splits.items():
        index[name] = counts = Counts()
        # Written, not mapped: on a full disk a write raises, where touching a mapping would end the process.
        with open(new / f"{name}.bin", "wb") as file:
            for ids in encode_all(texts, tokenizer, counts, name):
                file.write(ids.tobytes())
            file.flush()
            os.fsync(file.fileno())
    (new / "index.json").write_text(json.dumps({name: asdict(counts) for name, counts in index.items()}))


def build_in_memory(splits: Mapping[str, Sequence[Text]], tokenizer: Tokenizer) -> dict[str, Tokens]:
    """The same in memory."""
    found = {}
    for name, texts in splits.items():
        counts, none = Counts(), np.empty(0, smallest_dtype(len(tokenizer)))
        ids = np.concatenate([none, *encode_all(texts, tokenizer, counts, name)])
        found[name] = Tokens(ids, counts.size, counts.texts)
    return found


def load_or_train(folder: Path, texts: Sequence[Text], options: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer trained on texts, found again by the next run.

    Args:
        folder: where caches are kept.
        texts: of training.
        options: of ``Tokenizer.train``.
    """
    place = folder / cache_key({"train": texts}, dict(options))

    def write(new: Path) -> None:
        (new / "index.json").write_text(json.dumps(train(texts, options).plain()))

    disk_cache.ensure(place, write)
    return Tokenizer.from_plain(json.loads((place / "index.json").read_text()))


def train(texts: Sequence[Text], options: Mapping[str, Any]) -> Tokenizer:
    """The same without a cache."""
    with progress(sum(map(len, texts)), f"training {options['level']}") as advance:
        return Tokenizer.train(**options, texts=_ChunkReader(texts, advance))


class _ChunkReader:
    """Texts in pieces, each time they are asked for.

    Args:
        texts: in order.
        advance: told how many bytes were read.
    """

    def __init__(self, texts: Sequence[Text], advance: Callable[[int], None]) -> None:
        self.texts, self.advance = texts, advance

    def __iter__(self) -> Iterator[str]:
        for chunk in chunks(self.texts, lines=True, separator="\n"):
            yield from chunk.texts
            self.advance(chunk.read)


@contextmanager
def progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for work that takes a while; gives what tells it how many bytes were done."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal or total < SHOWN:
        yield lambda done: None  # a bar that is disabled prints an empty line in rich before 14.3
        return
    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield partial(bar.advance, task)


def encode_all(texts: Sequence[Text], tokenizer: Tokenizer, counts: Counts, split: str) -> Iterator[Array]:
    """Tokenise texts in order, several pieces at a time, with a progress bar.

    Behind each text stands the end-of-text token, or where there is none, an end of line between two texts.

    Args:
        texts: in order.
        tokenizer: cuts the texts.
        counts: to which tokens, bytes and texts are added.
        split: what the bar says.
    """
    dtype, end = smallest_dtype(len(tokenizer)), tokenizer.eos_id
    separator = "\n" if end is None else ""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def encode(chunk: Chunk) -> Array:
        found: list[Array] = []
        for text, last in zip(chunk.texts, chunk.ends, strict=True):
            found.append(tokenizer.encode_array(text).astype(dtype, copy=False))
            if last and end is not None:
                found.append(np.array([end], dtype))
        return np.concatenate(found)

    waiting: deque[tuple[Chunk, Any]] = deque()
    with progress(sum(map(len, texts)), f"tokenising {split}") as advance:
        pool = ThreadPoolExecutor(workers)
        try:
            for chunk in _and_none(chunks(texts, cuts_at_lines(tokenizer), separator), 2 * workers):
                if chunk is not None:
                    waiting.append((chunk, pool.submit(encode, chunk)))
                if waiting and (chunk is None or len(waiting) > 2 * workers):
                    done, future = waiting.popleft()
                    ids = future.result()
                    counts.tokens += len(ids)
                    counts.size += sum(len(text.encode()) for text in done.texts)
                    counts.texts += sum(done.ends)
                    advance(done.read)
                    yield ids
        finally:
            pool.shutdown(cancel_futures=True)


def _and_none(items: Iterable[Chunk], more: int) -> Iterator[Chunk | None]:
    yield from items
    yield from [None] * (more + 1)  # to take what still waits


def cuts_at_lines(tokenizer: Tokenizer) -> bool:
    """Whether a text's tokens are those of its lines; some tokenizers put a space before every text."""
    lines = "One line.\n", "another one (2)\n", "\tdef x():\n", "last"
    return tokenizer.level == "characters" or tokenizer.encode_batch(["".join(lines)])[0] == [
        i for line in lines for i in tokenizer.encode(line)
    ]
