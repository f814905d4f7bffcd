"""Decoded images in one file that is mapped into memory: built once for each content, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data import disk_cache

VERSION = 1


def default_cache_dir() -> Path:
    return disk_cache.user_folder("images")


def cache_key(root: Path, files: Sequence[str], **options: Any) -> str:
    """A name for the content: of files by name, size and time of change, and of how they are decoded."""
    digest = hashlib.sha256(json.dumps([VERSION, options], sort_keys=True).encode())
    for file in files:
        stat = os.stat(root / file)
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def load_or_build(
    folder: Path, key: str, shape: Sequence[int], images: Iterable[np.ndarray | str]
) -> tuple[Tensor, dict[int, str]]:
    """Map a cache into memory, after building it if it is not there.

    Args:
        folder: where caches are kept.
        key: of this one.
        shape: of each image, ``(c, h, w)``.
        images: the images in order, asked for only to build; a text is why one cannot be read.

    Returns:
        The images ``(n, c, h, w)`` that could be read, and the reasons of the others by number.
    """
    place = folder / key
    disk_cache.ensure(place, lambda new: _write(new, shape, images))
    index = json.loads((place / "index.json").read_text())
    unreadable = {int(i): reason for i, reason in index["unreadable"].items()}
    if index["images"] == 0:
        return torch.empty(0, *shape, dtype=torch.uint8), unreadable
    mapped = np.memmap(place / "images.bin", np.uint8, "c", shape=(index["images"], *shape))  # "c": never written back
    return torch.from_numpy(mapped), unreadable


def _write(new: Path, shape: Sequence[int], images: Iterable[np.ndarray | str]) -> None:
    unreadable, count = {}, 0
    # Written, not mapped: on a full disk a write raises, where touching a mapping would end the process.
    with open(new / "images.bin", "wb") as file:
        for i, image in enumerate(images):
            if isinstance(image, str):
                unreadable[i] = image
                continue
            check_shape(image, shape)
            file.write(image.tobytes())
            count += 1
        file.flush()
        os.fsync(file.fileno())
    (new / "index.json").write_text(json.dumps({"images": count, "shape": list(shape), "unreadable": unreadable}))


def build_in_memory(
    n: int, shape: Sequence[int], images: Iterable[np.ndarray | str]
) -> tuple[Tensor, dict[int, str]]:
    """The same in memory: the images that could be read, and the reasons of the others by number."""
    out, unreadable, count = torch.empty(n, *shape, dtype=torch.uint8), {}, 0
    for i, image in enumerate(images):
        if isinstance(image, str):
            unreadable[i] = image
            continue
        check_shape(image, shape)
        out[count] = torch.from_numpy(image.copy() if not image.flags.writeable else image)
        count += 1
    return out[:count], unreadable


def check_shape(image: np.ndarray, shape: Sequence[int]) -> None:
    if image.shape != tuple(shape):
        a, b = (f"{s[2]}x{s[1]}" for s in (image.shape, shape))
        raise ValueError(f"the images differ in size, {b} and {a}: give --data.image_size")


def free_memory() -> int:
    """Bytes of memory that may be taken, by the machine and by the limit of a container."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows has no sysconf, macOS does not know the first name
        free = 4 << 30
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        free = min(free, int(limit) - int(used))
    except (OSError, StopIteration, ValueError):
        pass  # no such file, or no limit
    return max(free, 0)
