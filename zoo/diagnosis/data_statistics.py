"""Statistics of the training, validation and test data from one pass over each: hashes, labels, ranges, batch sizes."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from zoo.diagnosis.near_duplicates import Descriptors
from zoo.diagnosis.recorder import named_tensors

MAX_SECONDS = 8.0
MAX_SAMPLES = 50_000
MAX_KEPT = 1000  # samples with inputs and targets
MAX_ROW_ELEMENTS = 4_000_000  # numbers in the rows that are kept


@dataclass
class SplitStatistics:
    """Statistics of one split.

    Args:
        samples: number of samples read.
        batch_sizes: number of batches of each size.
        hashes: number of occurrences of each input.
        rows: number of occurrences of each input together with its target.
        labels: number of occurrences of each target, where there is one per sample.
        inputs: the first input of the first thousand samples, in batches.
        targets: their targets.
        flat: all inputs of the first samples, each flattened, in batches ``(b, f)``.
        is_text: whether the first input is integers ``(b, t)``.
        descriptors: of images and token sequences, for the search for near duplicates.
        bad: number of samples with NaN or infinity by tensor.
        low: minimum of each feature, where the first input is ``(b, f)``.
        high: maximum of each feature.
    """

    samples: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    hashes: Counter[bytes] = field(default_factory=Counter)
    rows: Counter[bytes] = field(default_factory=Counter)
    labels: Counter[float] = field(default_factory=Counter)
    inputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    flat: list[np.ndarray] = field(default_factory=list)
    is_text: bool = False
    descriptors: Descriptors = field(default_factory=Descriptors)
    bad: Counter[str] = field(default_factory=Counter)
    low: Tensor | None = None
    high: Tensor | None = None

    def add(self, batch: Any, targets: set[str]) -> None:
        """Add a batch.

        Args:
            batch: the batch.
            targets: names of the tensors that are targets.
        """
        tensors = {name: t.detach().cpu() for name, t in named_tensors(batch).items() if t.ndim}
        inputs = _inputs(tensors, targets)
        if not inputs:
            return
        first = next(iter(inputs.values()))
        size = len(first)
        tensors = {name: t for name, t in tensors.items() if len(t) == size}
        for name, t in tensors.items():
            if t.is_floating_point():
                self.bad[name] += int((~torch.isfinite(t)).reshape(size, -1).any(1).sum())
        self._add_hashes(tensors, inputs, size)
        self._add_range(first)
        self.is_text = first.ndim == 2 and not first.is_floating_point()
        self.descriptors.add(first)
        label = next((t for name, t in tensors.items() if name in targets), None)
        if label is not None and label.numel() == size:
            self.labels.update(label.flatten().tolist())
            if self.samples < MAX_KEPT:
                self.inputs.append(first)
                self.targets.append(label.flatten())
        self.samples += size
        self.batch_sizes[size] += 1

    def _add_hashes(self, tensors: dict[str, Tensor], inputs: dict[str, Tensor], size: int) -> None:
        flat_inputs = [_flat(t) for name, t in tensors.items() if name in inputs]
        flat_targets = [_flat(t) for name, t in tensors.items() if name not in inputs]
        for i in range(size):
            content = b"".join(part[i].tobytes() for part in flat_inputs)
            self.hashes[_digest(content)] += 1
            content += b"".join(part[i].tobytes() for part in flat_targets)
            self.rows[_digest(content)] += 1
        kept = sum(part.size for part in self.flat)
        new = sum(part.size for part in flat_inputs)
        if flat_inputs and self.samples < MAX_KEPT and kept + new <= MAX_ROW_ELEMENTS:
            self.flat.append(np.concatenate([part.astype(np.float64) for part in flat_inputs], axis=1))

    def _add_range(self, first: Tensor) -> None:
        if first.ndim != 2 or not first.is_floating_point():
            return
        low = first.amin(0)
        high = first.amax(0)
        if self.low is not None and self.high is not None and self.low.shape == low.shape:
            low = torch.minimum(self.low, low)
            high = torch.maximum(self.high, high)
        self.low = low
        self.high = high


def _inputs(tensors: dict[str, Tensor], targets: set[str]) -> dict[str, Tensor]:
    """Return the tensors of a batch that are inputs."""
    inputs = {name: t for name, t in tensors.items() if name not in targets}
    if not inputs:
        return tensors
    if all(t.ndim == 1 for t in inputs.values()):
        # An autoencoder reconstructs its input, and the labels beside it are neither.
        for name, t in tensors.items():
            if name in targets and t.ndim > 2:
                return {name: t}
    return inputs


def _flat(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a contiguous array ``(b, f)``."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()  # NumPy has no such type
    return tensor.reshape(len(tensor), -1).contiguous().numpy()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def collect_statistics(trainer: Any, datamodule: Any, targets: set[str]) -> dict[str, SplitStatistics]:
    """Return the statistics of every split that the data has, reading each for a few seconds at most.

    Args:
        trainer: the trainer, connected to the training data.
        datamodule: the data.
        targets: names of the tensors in a batch that are targets.
    """
    statistics: dict[str, SplitStatistics] = {}
    for name in ("train", "val", "test"):
        split = SplitStatistics()
        start = time.monotonic()
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
        except Exception:  # a dataset without this split may raise anything
            return
    for loader in CombinedLoader(loaders, "sequential").flattened:
        yield from loader
