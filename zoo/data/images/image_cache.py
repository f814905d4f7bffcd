"""Decoded images in one memory-mapped file: built once for each content, whole or not at all."""

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

VERSION = 2  # of the files and of how they are decoded
ASSUMED_FREE = 4 << 30  # bytes of free memory where the system does not tell


def default_cache_dir() -> Path:
    return disk_cache.user_folder("images")


def cache_key(root: Path, files: Sequence[str], **options: Any) -> str:
    """Return a hash of files, by name, size and modification time, and of how they are decoded."""
    digest = hashlib.sha256(json.dumps([VERSION, options], sort_keys=True).encode())
    for file in files:
        stat = os.stat(root / file)
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def load_or_build(
    folder: Path,
    key: str,
    shape: Sequence[int],
    images: Iterable[np.ndarray | str],
) -> tuple[Tensor, dict[int, str]]:
    """Map a cache into memory, after building it if it is not there.

    Args:
        folder: where caches are kept.
        key: of this one.
        shape: of each image, ``(c, h, w)``.
        images: the images in order, iterated only to build; a text is why one cannot be read.

    Returns:
        The images ``(n, c, h, w)`` that could be read, and the reasons for the others by their index.
    """
    place = folder / key
    disk_cache.ensure(place, lambda new: _write(new, shape, images))
    index = json.loads((place / "index.json").read_text())
    unreadable = {int(i): reason for i, reason in index["unreadable"].items()}
    if index["images"] == 0:  # nothing cannot be mapped
        return torch.empty(0, *shape, dtype=torch.uint8), unreadable
    full_shape = (index["images"], *shape)
    mapped = np.memmap(place / "images.bin", np.uint8, "c", shape=full_shape)  # "c": never written back
    return torch.from_numpy(mapped), unreadable


def _write(new: Path, shape: Sequence[int], images: Iterable[np.ndarray | str]) -> None:
    unreadable = {}
    count = 0
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
    index = {"images": count, "shape": list(shape), "unreadable": unreadable}
    (new / "index.json").write_text(json.dumps(index))


def build_in_memory(
    n: int,
    shape: Sequence[int],
    images: Iterable[np.ndarray | str],
) -> tuple[Tensor, dict[int, str]]:
    """Return the images ``(m, c, h, w)`` that could be read, and the reasons for the others by their index.

    Args:
        n: number of images, readable or not.
        shape: of each image, ``(c, h, w)``.
        images: the images in order; a text is why one cannot be read.
    """
    out = torch.empty(n, *shape, dtype=torch.uint8)
    unreadable = {}
    count = 0
    for i, image in enumerate(images):
        if isinstance(image, str):
            unreadable[i] = image
            continue
        check_shape(image, shape)
        if not image.flags.writeable:  # as torch warns of such an array
            image = image.copy()
        out[count] = torch.from_numpy(image)
        count += 1
    return out[:count], unreadable


def check_shape(image: np.ndarray, shape: Sequence[int]) -> None:
    """Raise ValueError where an image has not the shape ``(c, h, w)`` of the others."""
    if image.shape == tuple(shape):
        return
    _, height, width = image.shape
    _, expected_height, expected_width = shape
    sizes = f"{expected_width}x{expected_height} and {width}x{height}"
    raise ValueError(f"the images differ in size, {sizes}: give --data.image_size")


def free_memory() -> int:
    """Return the bytes of memory that are free, by the machine and by the limit of a container."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows has no sysconf, macOS does not know the first name
        free = ASSUMED_FREE
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        free = int(available.split()[1]) * 1024  # the file is in kB
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, limit - used)
    except (OSError, StopIteration, ValueError):
        pass  # no such file, or no limit
    return max(free, 0)
