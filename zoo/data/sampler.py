"""Which samples make up which batch: a pure function of (seed, epoch), the same on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler


def batch_bounds(n: int, batch_size: int, world: int, drop_last: bool = False) -> list[tuple[int, int]]:
    """Cut ``n`` ordered samples into global batches of ``batch_size * world``.

    A tail too small to give every process two samples (one is an error in BatchNorm) joins the batch before it, so
    that nothing is lost, repeated, or left without work.
    """
    size = batch_size * world
    stops = list(range(size, n + 1, size))
    tail = n - len(stops) * size
    if tail and not (stops and drop_last):
        if stops and tail < 2 * world:
            stops[-1] = n
        else:
            stops.append(n)
    return list(zip([0, *stops], stops, strict=False))


class ResumableBatchSampler(DistributedSampler):
    """Yield ``(seed, indices)`` for each batch of this process; a resumed run starts where the checkpoint stopped.

    It is a ``DistributedSampler`` in name so that Lightning neither replaces it nor forgets ``set_epoch``.

    Args:
        n: number of samples in the dataset.
        batch_size: samples per batch and process.
        shuffle: a new order every epoch.
        seed: with the epoch, decides the order.
        rank: of this process.
        world: number of processes.
        drop_last: leave out a last batch that is not full.
        skip: called when iteration starts; how many batches of this epoch are done already.
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
        if n < world:
            raise ValueError(f"{n} samples cannot be shared among {world} processes; use fewer devices or more data")
        self.n, self.shuffle, self.seed, self.rank, self.world, self.skip = n, shuffle, seed, rank, world, skip
        self.epoch = 0
        self.bounds = batch_bounds(n, batch_size, world, drop_last)

    def __len__(self) -> int:
        return len(self.bounds)

    def order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.n)
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch)))

    # A generator: its body runs at the first batch, after Lightning has set the epoch and restored the checkpoint.
    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        order, first = self.order(), self.skip() if self.skip else 0
        for i, (start, stop) in enumerate(self.bounds[first:], first):
            yield mix_seeds(self.seed, self.epoch, i, self.rank), order[start + self.rank : stop : self.world]


class BucketBatchSampler(ResumableBatchSampler):
    """The same with samples of similar length in a batch, so that little of it is padding.

    Samples are shuffled, sorted by length within pools of ``POOL`` batches, and the batches are shuffled again.

    Args:
        lengths: of the samples, ``(n,)``.
        n: number of samples in the dataset; the rest is as in ``ResumableBatchSampler``.
    """

    POOL = 50

    def __init__(self, lengths: Tensor, n: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(n, *args, **kwargs)
        if len(lengths) != n:
            raise ValueError(f"{len(lengths)} lengths for {n} samples")
        self.lengths = lengths

    def order(self) -> Tensor:
        order = super().order()[: self.bounds[-1][1]]  # what drop_last leaves out is left out before sorting
        size = self.bounds[0][1]
        pools = order.split(size * self.POOL)
        order = torch.cat([pool[self.lengths[pool].argsort(descending=True, stable=True)] for pool in pools])
        full = sum(stop - start == size for start, stop in self.bounds)
        whole, rest = order[: full * size].view(full, size), order[full * size :]
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch, full))
        return torch.cat([whole[torch.randperm(full, generator=generator)].flatten(), rest])


class SequentialBatchSampler(ResumableBatchSampler, SequentialSampler):
    """The same without shuffling; the type by which Lightning knows that ``overfit_batches`` needs no new sampler."""


class ShardedBatchSampler(DistributedSampler):
    """Every ``world``-th sample in batches, in the data's order, for validation and prediction: no sample twice."""

    def __init__(self, n: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if n < world:
            raise ValueError(f"{n} samples cannot be shared among {world} processes; use fewer devices or more data")
        self.indices, self.batch_size, self.epoch = torch.arange(n)[rank::world], batch_size, 0

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return iter([(0, part) for part in self.indices.split(self.batch_size)])


def mix_seeds(*numbers: int) -> int:
    """Turn a few integers into one seed, well spread (FNV-1a over 64-bit words)."""
    state = 0xCBF29CE484222325
    for number in numbers:
        state = ((state ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 29
    return state & 0x7FFFFFFFFFFFFFFF
