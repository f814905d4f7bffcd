"""Which samples make up which batch: a pure function of (seed, epoch), the same for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler


def batch_bounds(n: int, batch_size: int, world: int, drop_last: bool = False) -> list[tuple[int, int]]:
    """Return start and stop of each global batch, of ``batch_size * world`` samples, in ``n`` ordered samples.

    A last batch too small to give every process two samples (one is an error in BatchNorm) joins the batch before it,
    so that no sample is lost or repeated, and no process is without work.
    """
    size = batch_size * world
    stops = list(range(size, n + 1, size))
    remainder = n - len(stops) * size
    if remainder and not (stops and drop_last):
        if stops and remainder < 2 * world:
            stops[-1] = n
        else:
            stops.append(n)
    starts = [0, *stops]
    return list(zip(starts, stops, strict=False))


class ResumableBatchSampler(DistributedSampler):
    """Yield ``(seed, indices)`` for each batch of this process; a resumed run starts where the checkpoint stopped.

    It is a ``DistributedSampler`` in name so that Lightning neither replaces it nor forgets ``set_epoch``.

    Args:
        n: number of samples in the dataset.
        batch_size: samples per batch and process.
        shuffle: a new order every epoch.
        seed: decides the order, with the epoch.
        rank: of this process.
        world: number of processes.
        drop_last: leave out a last batch that is not full.
        skip: called when iteration starts; returns how many batches of this epoch were trained on already.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        skip: Callable[[], int] | None = None,
    ) -> None:
        check_enough_samples(n, world)
        self.n = n
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world = world
        self.skip = skip
        self.epoch = 0
        self.bounds = batch_bounds(n, batch_size, world, drop_last)

    def __len__(self) -> int:
        return len(self.bounds)

    def order(self) -> Tensor:
        """Return the indices of all samples, ``(n,)``, in the order of this epoch."""
        if not self.shuffle:
            return torch.arange(self.n)
        return torch.randperm(self.n, generator=seeded_generator(self.seed, self.epoch))

    # A generator: its body runs at the first batch, after Lightning has set the epoch and restored the checkpoint.
    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        order = self.order()
        first = 0
        if self.skip is not None:
            first = self.skip()
        for i, (start, stop) in enumerate(self.bounds[first:], first):
            seed = mix_seeds(self.seed, self.epoch, i, self.rank)
            # Every world-th sample of the global batch belongs to this process.
            yield seed, order[start + self.rank : stop : self.world]


class BucketBatchSampler(ResumableBatchSampler):
    """A ``ResumableBatchSampler`` whose batches hold samples of similar length, so that they need little padding.

    Samples are shuffled, sorted by length within pools of ``POOL`` batches, and the batches are shuffled again.

    Args:
        lengths: of the samples, ``(n,)``.
        n: number of samples in the dataset; other arguments are those of ``ResumableBatchSampler``.
    """

    POOL = 50

    def __init__(self, lengths: Tensor, n: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(n, *args, **kwargs)
        if len(lengths) != n:
            raise ValueError(f"{len(lengths)} lengths for {n} samples")
        self.lengths = lengths

    def order(self) -> Tensor:
        _, end = self.bounds[-1]
        order = super().order()[:end]  # what drop_last leaves out is left out before sorting
        _, size = self.bounds[0]
        pools = []
        for pool in order.split(size * self.POOL):
            by_length = self.lengths[pool].argsort(descending=True, stable=True)
            pools.append(pool[by_length])
        order = torch.cat(pools)
        num_full = sum(stop - start == size for start, stop in self.bounds)
        full = order[: num_full * size].view(num_full, size)
        rest = order[num_full * size :]  # the last batch stays the last
        shuffled = torch.randperm(num_full, generator=seeded_generator(self.seed, self.epoch, num_full))
        return torch.cat([full[shuffled].flatten(), rest])


class SequentialBatchSampler(ResumableBatchSampler, SequentialSampler):
    """A ``ResumableBatchSampler`` without shuffling, of the type that Lightning leaves alone for
    ``overfit_batches``."""


class ShardedBatchSampler(DistributedSampler):
    """Yield every ``world``-th sample in batches, in order, for validation and prediction: no sample twice.

    All processes have the same number of batches, as what they compute together needs; where one sample of this process
    would be a batch more, it joins the batch before.

    Args:
        n: number of samples in the dataset.
        batch_size: samples per batch and process.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, n: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        check_enough_samples(n, world)
        indices = torch.arange(n)[rank::world]
        num_batches = -(-(n // world) // batch_size)
        self.parts = list(indices.split(batch_size))
        if len(self.parts) > num_batches:
            self.parts[-2:] = [torch.cat(self.parts[-2:])]
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for part in self.parts:
            yield 0, part


def check_enough_samples(n: int, world: int) -> None:
    """Raise ValueError where a process would have no sample."""
    if n < world:
        raise ValueError(f"{n} samples cannot be shared among {world} processes; use fewer devices or more data")


def mix_seeds(*numbers: int) -> int:
    """Return one well spread seed for a few integers (FNV-1a over 64-bit words)."""
    state = 0xCBF29CE484222325
    for number in numbers:
        state ^= number & 0xFFFFFFFFFFFFFFFF
        state = (state * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 29
    return state & 0x7FFFFFFFFFFFFFFF


def seeded_generator(*numbers: int) -> torch.Generator:
    """Return a random number generator seeded by a few integers."""
    return torch.Generator().manual_seed(mix_seeds(*numbers))
