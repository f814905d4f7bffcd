"""Latents in one file that is mapped into memory: made once for each content and encoder, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zoo.data import disk_cache

SHOWN = 2000  # images from which on a bar is shown


class Latent(NamedTuple):
    """Latents of some images, or of all.

    Args:
        moments: means, and behind them along the channels logarithms of variances, of each view of an image.
        rest: what else belongs to each image, by parts of a batch: labels, or a list of texts, if anything.
    """

    moments: Float[Tensor, "b v c h w"]
    rest: list[Any]


def load_or_build(folder: Path, key: str, made: Callable[[], Iterable[Latent]]) -> Latent:
    """Map latents into memory, after making them if they are not there.

    Args:
        folder: where caches are kept.
        key: of these.
        made: makes them, in order.
    """
    place = folder / key
    try:
        disk_cache.ensure(place, lambda new: _write(new, made()))
    except OSError as error:
        raise ValueError(
            f"latents cannot be written to {folder} ({error.strerror or error}): --data.cache_dir names another folder"
        ) from None
    shape = json.loads((place / "index.json").read_text())["shape"]
    try:
        mapped = np.memmap(place / "moments.bin", np.float32, "c", shape=tuple(shape))  # "c": never written back
        return Latent(torch.from_numpy(mapped), torch.load(place / "rest.pt", weights_only=True))
    except Exception:  # the folder was whole when it got its name
        raise ValueError(f"{place} is damaged: delete this folder, and its latents are made anew") from None


def _write(new: Path, made: Iterable[Latent]) -> None:
    rests, count, shape = [], 0, torch.Size()
    # Written, not mapped: on a full disk a write raises, where touching a mapping would end the process.
    with open(new / "moments.bin", "wb") as file:
        for moments, rest in made:
            file.write(moments.float().contiguous().numpy().data)
            count, shape = count + len(moments), moments.shape[1:]
            rests.append(rest)
        file.flush()
        os.fsync(file.fileno())
    torch.save([_joined(parts) for parts in zip(*rests, strict=True)], new / "rest.pt")
    (new / "index.json").write_text(json.dumps({"shape": [count, *shape]}))


def _joined(parts: Iterable[Any]) -> Any:
    parts = list(parts)
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [item for part in parts for item in part]


@contextmanager
def progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for work that takes a while; gives what tells it how many images were done."""
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn())
    quiet = not console.is_terminal or total < SHOWN
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        yield partial(bar.advance, bar.add_task(title, total=total))
