"""Whole-batch loading: a dataset is indexed by a batch of indices instead of one sample at a time."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.data.sampler import ResumableBatchSampler, ShardedBatchSampler


class BatchTensorDataset(Dataset):
    """A ``TensorDataset`` that also returns a whole batch by one indexing operation.

    Args:
        tensors: all with the same first dimension, the number of samples.
    """

    def __init__(self, *tensors: Tensor) -> None:
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) != 1:
            raise ValueError(f"tensors of one length are needed, got lengths {lengths}")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.index_select(0, indices) for tensor in self.tensors)


class _WholeBatches(Dataset):
    """Map ``(seed, indices)`` to a batch; the seed decides random augmentation, whichever worker does it."""

    def __init__(self, dataset: Dataset, collate: Callable[[list], Any], seeded: bool) -> None:
        self.dataset = dataset
        self.collate = collate
        # Tensors in memory are not augmented here, so seeding would only take time.
        self.seeded = seeded and not isinstance(dataset, BatchTensorDataset)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, Tensor]) -> Any:
        seed, indices = key
        if self.seeded:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)
        batch = getattr(self.dataset, "batch", None)
        if batch is not None:
            return batch(indices)
        return self.collate([self.dataset[i] for i in indices.tolist()])


class _BatchLoader(DataLoader):
    # Lightning asks for the first iterator before it has set the epoch and restored the loops: as a generator, this
    # starts with the first batch only.
    def __iter__(self) -> Iterator:  # type: ignore[override]
        if self.num_workers or self.pin_memory:
            yield from super().__iter__()
            return
        # The same without the bookkeeping of DataLoader's iterator, which takes longer than a small batch.
        for key in self.sampler:
            yield self.dataset[key]


def batch_loader(
    dataset: Dataset,
    sampler: ResumableBatchSampler | ShardedBatchSampler,
    collate: Callable[[list], Any],
    seeded: bool,
    num_workers: int,
    pin_memory: bool,
    persistent_workers: bool,
    seed: int,
) -> DataLoader:
    """Return a DataLoader of whole batches.

    Args:
        dataset: with ``batch(indices)`` where it can return whole batches; otherwise its samples are collated.
        sampler: yields ``(seed, indices)`` for each batch.
        collate: makes a batch of a list of samples.
        seeded: whether to seed the random number generators for each batch, for augmentation in the dataset.
        num_workers: number of worker processes; 0 loads in the main process.
        pin_memory: whether to return batches in page-locked memory.
        persistent_workers: keep the workers from one epoch to the next.
        seed: of the loader's own generator, so that it leaves the global one alone.
    """
    return _BatchLoader(
        _WholeBatches(dataset, collate, seeded),
        batch_size=None,  # the sampler yields batches
        sampler=sampler,
        collate_fn=_identity,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers and num_workers > 0,
        worker_init_fn=_ignore_ctrl_c,
        generator=torch.Generator().manual_seed(seed),
    )


def _ignore_ctrl_c(worker: int) -> None:
    # The main process finishes its step and stops the workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _identity(batch: Any) -> Any:
    return batch
