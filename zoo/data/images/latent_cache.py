"""Latents in one memory-mapped file: computed once for each content and encoder, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zoo.data import disk_cache


class Latent(NamedTuple):
    """Latents of some images, or of all.

    Args:
        moments: means and log variances, one behind the other along the channels, of each view of an image.
        rest: what else belongs to the images, for each part of a batch: labels, or a list of texts, if anything.
    """

    moments: Float[Tensor, "b v c h w"]
    rest: list[Any]


def load_or_build(folder: Path, key: str, build: Callable[[], Iterable[Latent]]) -> Latent:
    """Map latents into memory, after computing them if they are not there.

    Args:
        folder: where caches are kept.
        key: of these.
        build: computes them, in order.
    """
    place = folder / key
    try:
        disk_cache.ensure(place, lambda new: _write(new, build()))
    except OSError as error:
        problem = f"latents cannot be written to {folder} ({error.strerror or error})"
        raise ValueError(f"{problem}: --data.cache_dir names another folder") from None
    index = json.loads((place / "index.json").read_text())
    shape = tuple(index["shape"])  # (n, v, c, h, w)
    try:
        mapped = np.memmap(place / "moments.bin", np.float32, "c", shape=shape)  # "c": never written back
        rest = torch.load(place / "rest.pt", weights_only=True)
        return Latent(torch.from_numpy(mapped), rest)
    except Exception:  # the folder was whole when it got its name
        raise ValueError(f"{place} is damaged: delete this folder, and its latents are computed anew") from None


def _write(new: Path, latents: Iterable[Latent]) -> None:
    rests = []
    count = 0
    shape = torch.Size()
    # Written, not mapped: on a full disk a write raises, where touching a mapping would end the process.
    with open(new / "moments.bin", "wb") as file:
        for moments, rest in latents:
            file.write(moments.float().contiguous().numpy().data)
            count += len(moments)
            shape = moments.shape[1:]
            rests.append(rest)
        file.flush()
        os.fsync(file.fileno())
    torch.save([_concatenate(parts) for parts in zip(*rests, strict=True)], new / "rest.pt")
    (new / "index.json").write_text(json.dumps({"shape": [count, *shape]}))


def _concatenate(parts: Iterable[Any]) -> Any:
    parts = list(parts)
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    items = []
    for part in parts:
        items += part
    return items
