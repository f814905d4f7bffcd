"""Token ids of a corpus in one file that is mapped into memory, computed once for each content and tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import disk_cache
from zoo.data.progress import progress_bar
from zoo.data.text.corpus_chunks import Chunk, chunks
from zoo.data.text.corpus_files import Text
from zoo.data.text.separators import NO_SEPARATORS, Separators, TextSplitter
from zoo.text import Tokenizer

VERSION = 2  # of the key: 2 since separators end texts
Array = np.ndarray


@dataclass
class Counts:
    """Sizes of a split.

    Args:
        tokens: number of tokens.
        size: bytes of the texts in UTF-8.
        texts: number of texts.
        empty: number of texts that are empty and left out.
        separators: number of separators between texts within a file.
        inline: how often the names of separators occur as text.
    """

    tokens: int = 0
    size: int = 0
    texts: int = 0
    empty: int = 0
    separators: int = 0
    inline: int = 0


@dataclass
class Tokens:
    """The token ids of a split, and how many texts they are of.

    Args:
        ids: ``(n,)``, of the smallest integer type that holds them.
        counts: sizes of the split.
    """

    ids: Array
    counts: Counts


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest integer type for token ids."""
    for dtype in (np.uint8, np.uint16):
        if vocab_size <= np.iinfo(dtype).max + 1:
            return np.dtype(dtype)
    return np.dtype(np.uint32)


def cache_key(splits: Mapping[str, Sequence[Text]], tokenizer: Any, separators: Separators) -> str:
    """Return a name for the token ids of texts.

    Args:
        splits: the texts.
        tokenizer: everything that decides the tokens, in plain values.
        separators: what stands between texts within a file.
    """
    content = {name: [(t.key, t.start, t.stop, t.field) for t in texts] for name, texts in splits.items()}
    parts = [VERSION, content, tokenizer, separators.plain()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


# Token ids ------------------------------------------------------------------------------------------------------------


def load_or_build(
    folder: Path,
    splits: Mapping[str, Sequence[Text]],
    tokenizer: Tokenizer,
    separators: Separators = NO_SEPARATORS,
) -> dict[str, Tokens]:
    """Map the token ids of splits into memory, after writing them if they are not there.

    Args:
        folder: folder of the caches.
        splits: texts by the names of splits.
        tokenizer: the tokenizer.
        separators: what stands between texts within a file.
    """
    place = folder / cache_key(splits, tokenizer.plain(), separators)
    disk_cache.ensure(place, lambda new: _write(new, splits, tokenizer, separators))
    index = json.loads((place / "index.json").read_text())
    dtype = smallest_dtype(len(tokenizer))
    found = {}
    for name, values in index.items():
        counts = Counts(**values)
        ids = np.empty(0, dtype)
        if counts.tokens:  # an empty file cannot be mapped
            ids = np.memmap(place / f"{name}.bin", dtype, "r", shape=(counts.tokens,))
        found[name] = Tokens(ids, counts)
    return found


def _write(new: Path, splits: Mapping[str, Sequence[Text]], tokenizer: Tokenizer, separators: Separators) -> None:
    index = {}
    for name, texts in splits.items():
        counts = Counts()
        # Written, not mapped: on a full disk a write raises, where touching a mapping would end the process.
        with open(new / f"{name}.bin", "wb") as file:
            for ids in encode_all(texts, tokenizer, counts, name, separators):
                file.write(ids.tobytes())
            file.flush()
            os.fsync(file.fileno())
        index[name] = asdict(counts)
    (new / "index.json").write_text(json.dumps(index))


def build_in_memory(
    splits: Mapping[str, Sequence[Text]],
    tokenizer: Tokenizer,
    separators: Separators = NO_SEPARATORS,
) -> dict[str, Tokens]:
    """Return the token ids of splits without a cache; the arguments are those of ``load_or_build``."""
    found = {}
    for name, texts in splits.items():
        counts = Counts()
        none = np.empty(0, smallest_dtype(len(tokenizer)))
        ids = np.concatenate([none, *encode_all(texts, tokenizer, counts, name, separators)])
        found[name] = Tokens(ids, counts)
    return found


# Tokenizers -----------------------------------------------------------------------------------------------------------


def load_or_train(
    folder: Path,
    texts: Sequence[Text],
    options: Mapping[str, Any],
    separators: Separators = NO_SEPARATORS,
) -> Tokenizer:
    """Return a tokenizer trained on texts, from the cache if it is there.

    Args:
        folder: folder of the caches.
        texts: the training texts.
        options: arguments of ``Tokenizer.train``.
        separators: what stands between texts within a file.
    """
    place = folder / cache_key({"train": texts}, dict(options), separators)

    def write(new: Path) -> None:
        tokenizer = train(texts, options, separators)
        (new / "index.json").write_text(json.dumps(tokenizer.plain()))

    disk_cache.ensure(place, write)
    return Tokenizer.from_plain(json.loads((place / "index.json").read_text()))


def train(texts: Sequence[Text], options: Mapping[str, Any], separators: Separators = NO_SEPARATORS) -> Tokenizer:
    """Return a tokenizer trained on texts without a cache; the arguments are those of ``load_or_train``."""
    size = sum(map(len, texts))
    with progress_bar(size, f"training {options['level']}", in_bytes=True) as advance:
        return Tokenizer.train(**options, texts=_ChunkReader(texts, separators, advance))


class _ChunkReader:
    """An iterable of texts in pieces, read anew for every loop over it.

    Args:
        texts: in order.
        separators: what stands between texts within a file.
        advance: called with the number of bytes read.
    """

    def __init__(self, texts: Sequence[Text], separators: Separators, advance: Callable[[int], None]) -> None:
        self.texts = texts
        self.separators = separators
        self.advance = advance

    def __iter__(self) -> Iterator[str]:
        splitter = TextSplitter(self.separators)
        for chunk in chunks(self.texts, lines=True, between="\n", splitter=splitter):
            yield from chunk.texts
            self.advance(chunk.read)


# Tokenizing -----------------------------------------------------------------------------------------------------------


def encode_all(
    texts: Sequence[Text],
    tokenizer: Tokenizer,
    counts: Counts,
    split: str,
    separators: Separators = NO_SEPARATORS,
) -> Iterator[Array]:
    """Yield the token ids of texts in order, computed in several threads, with a progress bar.

    Behind each text stands the end-of-text token, or where the tokenizer has none, a line break between two texts.

    Args:
        texts: in order.
        tokenizer: the tokenizer.
        counts: sizes, to which those of the texts are added.
        split: name of the split, for the progress bar.
        separators: what stands between texts within a file.
    """
    dtype = smallest_dtype(len(tokenizer))
    end = tokenizer.eos_id
    between = "\n" if end is None else ""

    def encode(chunk: Chunk) -> Array:
        found = [np.empty(0, dtype)]
        for text, ends in zip(chunk.texts, chunk.ends, strict=True):
            found.append(tokenizer.encode_array(text).astype(dtype, copy=False))
            if ends and end is not None:
                found.append(np.array([end], dtype))
        return np.concatenate(found)

    splitter = TextSplitter(separators)
    pieces = chunks(texts, cuts_at_lines(tokenizer), between, splitter)
    with progress_bar(sum(map(len, texts)), f"tokenizing {split}", in_bytes=True) as advance:
        for chunk, ids in _map_in_threads(encode, pieces):
            counts.tokens += len(ids)
            counts.size += sum(len(text.encode()) for text in chunk.texts)
            counts.texts += sum(chunk.ends)
            advance(chunk.read)
            yield ids
    counts.empty += splitter.num_empty
    counts.separators += splitter.num_separators
    counts.inline += splitter.num_inline


def _map_in_threads(encode: Callable[[Chunk], Array], pieces: Iterable[Chunk]) -> Iterator[tuple[Chunk, Array]]:
    """Yield every chunk and its token ids in order; a few chunks are read ahead of what is asked for."""
    workers = _num_cpus()
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[Chunk, Future[Array]]] = deque()
    try:
        for chunk in pieces:
            waiting.append((chunk, pool.submit(encode, chunk)))
            if len(waiting) > 2 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _num_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cuts_at_lines(tokenizer: Tokenizer) -> bool:
    """Return whether a text's tokens are those of its lines; some tokenizers put a space in front of every text."""
    if tokenizer.level == "characters":
        return True
    lines = ("One line.\n", "another one (2)\n", "\tdef x():\n", "last")
    whole = tokenizer.encode_batch(["".join(lines)])[0]
    by_line = []
    for line in lines:
        by_line += tokenizer.encode(line)
    return whole == by_line
