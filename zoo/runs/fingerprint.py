"""A fingerprint of the data that a run is trained on: cheap to take, and another one for other data.

It covers the files and folders that the arguments of the data name. Of files up to 256 MiB all bytes count, of larger
ones their size and blocks all over them; of folders the names and sizes of all files, and the beginnings of some.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.checkpoints.integrity import digest

WHOLE_FILE = 256 * 2**20  # bytes up to which a file is read as a whole
SAMPLES = 256  # blocks of a larger file, or files of a folder
SAMPLE_SIZE = 64 * 2**10
MAX_FILES = 200_000  # of a folder that are looked at
WITH_ROWS = {".csv", ".tsv", ".txt", ".jsonl", ".json", ".conll", ".iob", ".tab"}
# Arguments that name no training data: where results are kept, and new samples to predict.
IGNORED = ("cache_dir", "class_path", "download")
WORDS_FOR_PATHS = ("file", "path", "dir", "root", "folder")


def named_paths(arguments: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts in arguments that look like paths, each with the name of its argument.

    Args:
        arguments: of a datamodule or model, nested as in a config.
        name: of the argument that holds them.
    """
    if isinstance(arguments, Mapping):
        for key, value in arguments.items():
            if key in IGNORED or str(key).startswith("predict"):
                continue
            inner = name if key in ("init_args", "dict_kwargs") else f"{name}.{key}".lstrip(".")
            yield from named_paths(value, inner)
    elif isinstance(arguments, (list, tuple)):
        for value in arguments:
            yield from named_paths(value, name)
    elif isinstance(arguments, (str, Path)) and is_like_a_path(str(arguments), name):
        yield name, str(arguments)


def is_like_a_path(text: str, name: str) -> bool:
    """Return whether a text looks like a path, or its argument is named like one; ``iris`` may be a name."""
    if not text or "\n" in text or "://" in text:
        return False
    last = name.rpartition(".")[2]
    is_named = any(word in last.split("_") for word in WORDS_FOR_PATHS)
    return is_named or os.sep in text or bool(Path(text).suffix)


def take(arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the fingerprint of the files and folders that arguments name, by the name of the argument.

    Args:
        arguments: of a datamodule. One that downloads its files checks them by itself: it has no fingerprint.
    """
    found: dict[str, dict[str, Any]] = {}
    if "download" in arguments:
        return found
    for name, text in named_paths(arguments):
        path = Path(text).expanduser()
        key = name
        while key in found:  # a list of files
            key += "+"
        try:
            if path.is_file():
                found[key] = {"path": text, **of_file(path)}
            elif path.is_dir():
                found[key] = {"path": text, **of_folder(path)}
        except OSError:  # what cannot be read is reported by whoever needs it
            continue
    return found


def of_file(path: Path) -> dict[str, Any]:
    """Return number of rows (of texts), size and digest of a file."""
    size = path.stat().st_size
    entry: dict[str, Any] = {"bytes": size}
    if size == 0:
        return {**entry, "rows": 0, "digest": ""}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if size > WHOLE_FILE:
            return {**entry, "digest": _digest_of_samples(content, size)}
        if path.suffix.lower() in WITH_ROWS:
            lines = int(np.count_nonzero(np.frombuffer(content, np.uint8) == ord("\n")))
            entry["rows"] = lines + (content[-1:] != b"\n")
        return {**entry, "digest": digest(content, 0, size)}


def of_folder(folder: Path) -> dict[str, Any]:
    """Return number of files, their size, and the digest of their names, sizes and the beginnings of some."""
    files = list(_files(folder))
    total = hashlib.sha256()
    size = 0
    for name, path in files:
        bytes_of_file = path.stat().st_size
        size += bytes_of_file
        total.update(f"{name}\0{bytes_of_file}\n".encode(errors="surrogateescape"))
    every = max(1, len(files) // SAMPLES)
    for _, path in files[::every]:
        with open(path, "rb") as file:
            total.update(file.read(SAMPLE_SIZE))
    return {"files": len(files), "bytes": size, "digest": total.hexdigest()[:32]}


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or not path.is_file():
                continue
            yield path.relative_to(folder).as_posix(), path
            count += 1
            if count >= MAX_FILES:
                return


def _digest_of_samples(content: mmap.mmap, size: int) -> str:
    total = hashlib.sha256(str(size).encode())
    for i in range(SAMPLES):
        start = i * (size - SAMPLE_SIZE) // (SAMPLES - 1)
        total.update(content[start : start + SAMPLE_SIZE])
    return total.hexdigest()[:32]


# Comparing ------------------------------------------------------------------------------------------------------------


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe what has changed between two fingerprints: one text for each argument whose data are others.

    Args:
        then: of the training.
        now: of the data that are there.
    """
    texts = []
    for name, old in then.items():
        new = now.get(name)
        if new is None or new.get("digest") == old.get("digest"):
            continue
        texts.append(f"--data.{name} {new['path']} {change(old, new)}")
    return texts


def change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe how a file or folder differs from that of the training."""
    for unit in ("rows", "files"):
        if old.get(unit) is not None and new.get(unit) is not None and old[unit] != new[unit]:
            return f"has {new[unit]:,} {unit} instead of {old[unit]:,}"
    unit = "rows" if old.get("rows") else "bytes"
    return f"has other content in as many {unit}" if old.get(unit) == new.get(unit) else "has other content"


def summary(entry: Mapping[str, Any]) -> str:
    """Return a file or folder in words: ``wine.csv, 178 rows``."""
    for unit in ("rows", "files", "bytes"):
        if entry.get(unit) is not None:
            return f"{entry['path']}, {entry[unit]:,} {unit}"
    return str(entry["path"])
