"""One reading of the training, validation and test data: hashes, labels, ranges."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from zoo.diagnosis.recorder import named_tensors

MAX_SECONDS = 8.0
MAX_SAMPLES = 50_000
MAX_KEPT = 1000


@dataclass
class SplitStatistics:
    """What was read of one split.

    Args:
        samples: how many were read.
        hashes: of the inputs, with how often each occurs.
        labels: how often each class number occurs, where the targets are such.
        inputs: the first thousand samples of the first input, and ``targets`` theirs.
        bad: tensors with NaN or infinity, and in how many samples.
        low: least value of each feature, where the first input is (b, f); ``high`` the greatest.
    """

    samples: int = 0
    hashes: Counter[bytes] = field(default_factory=Counter)
    labels: Counter[float] = field(default_factory=Counter)
    inputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    low: Tensor | None = None
    high: Tensor | None = None

    def add(self, batch: Any, targets: set[str]) -> None:
        tensors = {n: t.detach().cpu() for n, t in named_tensors(batch).items() if t.ndim}
        inputs = {n: t for n, t in tensors.items() if n not in targets} or tensors
        if not inputs:
            return
        size = len(next(iter(inputs.values())))
        for name, t in tensors.items():
            if t.is_floating_point() and len(t) == size:
                self.bad[name] += int((~torch.isfinite(t)).reshape(size, -1).any(1).sum())
        rows = [t.reshape(size, -1).contiguous() for t in inputs.values() if len(t) == size]
        raw = [t.float().numpy() if t.dtype == torch.bfloat16 else t.numpy() for t in rows]
        for i in range(size):
            self.hashes[hashlib.blake2b(b"".join(part[i].tobytes() for part in raw), digest_size=16).digest()] += 1
        first = next(iter(inputs.values()))
        label = next((t for n, t in tensors.items() if n in targets), None)
        if first.ndim == 2 and first.is_floating_point():
            low, high = first.amin(0), first.amax(0)
            fits = self.low is not None and self.low.shape == low.shape
            self.low = torch.minimum(self.low, low) if fits and self.low is not None else low
            self.high = torch.maximum(self.high, high) if fits and self.high is not None else high
        if label is not None:
            if label.numel() == size:
                self.labels.update(label.flatten().tolist())
            if self.samples < MAX_KEPT and label.numel() == size:
                self.inputs.append(first)
                self.targets.append(label.flatten())
        self.samples += size


def collect_statistics(trainer: Any, datamodule: Any, targets: set[str]) -> dict[str, SplitStatistics]:
    """Read every split, each for a few seconds at most; splits that the data does not have are absent.

    Args:
        trainer: whose training data is connected.
        datamodule: gives the other splits.
        targets: names of those tensors in a batch that are no inputs.
    """
    statistics = {}
    for name in ("train", "val", "test"):
        split, start = SplitStatistics(), time.monotonic()
        for batch in _batches(trainer, datamodule, name):
            split.add(batch, targets)
            if split.samples >= MAX_SAMPLES or time.monotonic() - start > MAX_SECONDS:
                break
        if split.samples:
            statistics[name] = split
    return statistics


def _batches(trainer: Any, datamodule: Any, split: str) -> Iterator[Any]:
    hook = f"{split}_dataloader"
    if not is_overridden(hook, datamodule):
        return
    if split == "train":
        loaders = trainer.train_dataloader
    else:
        try:
            if split == "test":
                datamodule.setup("test")
            loaders = getattr(datamodule, hook)()
        except Exception:  # the split is not there: a data set without a test set says so in many ways
            return
    for loader in CombinedLoader(loaders, "sequential").flattened:
        yield from loader
