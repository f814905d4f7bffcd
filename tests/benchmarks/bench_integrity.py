"""What checking the digest of a checkpoint costs, beside opening it: building the module and loading its weights.

The checkpoint of a GPT of about 400 MB lies in the page cache, so that nothing hides the time of the check. Beside it
stands the check of a file without a digest, by the checksums of its archive.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch

from zoo.checkpoints import Checkpoint, integrity, mark_format
from zoo.models import GPTLanguageModel

SIZES = {"vocab_size": 32_000, "block_size": 256, "dim": 768, "depth": 7, "heads": 12}
ROUNDS = 5
TARGET = 0.05


def write(path: Path) -> None:
    """Write the checkpoint of a module, as ``zoo fit`` does."""
    module = GPTLanguageModel(**SIZES)
    content: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": {"_class_path": "zoo.models.GPTLanguageModel", **SIZES},
        "pytorch-lightning_version": L.__version__,
    }
    mark_format(content)
    torch.save(content, path)


def timed(action: Callable[[], Any]) -> float:
    """Return the median time of an action in milliseconds."""
    times = []
    for _ in range(ROUNDS):
        integrity.forget()
        began = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - began))
    return median(times)


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.ckpt")
        write(path)
        checksums = timed(lambda: integrity.verify(path))
        integrity.seal(path)
        check = timed(lambda: integrity.verify(path))
        load = timed(lambda: Checkpoint(path).build())
        megabytes = path.stat().st_size / 1e6
    rows = []
    for name, ours, target in (("digest", check, TARGET), ("checksums of the archive", checksums, None)):
        rows.append(
            {
                "name": f"{name}, {megabytes:.0f} MB",
                "ours_ms": ours,
                "peer": "Checkpoint.build",
                "peer_ms": load,
                "ratio": ours / load,
                "target": target,
            }
        )
    return rows
