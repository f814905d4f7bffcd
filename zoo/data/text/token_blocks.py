"""Blocks of a long row of tokens, and the order in which an epoch reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.sampler import ResumableBatchSampler, mix_seeds


class TokenBlocks(Dataset):
    """Blocks of tokens behind one another, each with the tokens one on: ``(x, y)``, both ``(b, block_size)``.

    Item ``i`` from 0 to ``len - 1`` begins at token ``i * block_size``; in a batch ``i + s * len`` is the block that
    begins ``s`` tokens later, or as late as the text allows.

    Args:
        ids: tokens ``(n,)`` of any integer type, in memory or mapped into it.
        block_size: tokens of a block.
    """

    def __init__(self, ids: np.ndarray, block_size: int) -> None:
        self.ids, self.block_size = ids, block_size
        self._map()

    def _map(self) -> None:
        self._windows = np.lib.stride_tricks.sliding_window_view(self.ids, self.block_size + 1)

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.block_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.batch(torch.tensor([range(len(self))[index]]))  # which ends a loop over the blocks
        return x[0], y[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        shift, block = np.divmod(indices.numpy(), len(self))
        starts = np.minimum(block * self.block_size + shift, len(self._windows) - 1)
        found = self._windows[starts]
        return torch.from_numpy(found[:, :-1].astype(np.int64)), torch.from_numpy(found[:, 1:].astype(np.int64))

    def __getstate__(self) -> dict[str, Any]:  # a process that loads opens the file instead of getting a copy
        ids = self.ids
        mapped = isinstance(ids, np.memmap)
        return {"ids": (ids.filename, ids.dtype, ids.shape) if mapped else ids, "block_size": self.block_size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ids, self.block_size = state["ids"], state["block_size"]
        self.ids = np.memmap(ids[0], ids[1], "r", shape=ids[2]) if isinstance(ids, tuple) else ids
        self._map()


class ShiftedBlockSampler(ResumableBatchSampler):
    """Blocks in a new order every epoch, and all of them shifted by as many tokens, from 0 to below a block.

    Args:
        block_size: tokens of a block.
        n: number of blocks; the rest is as in ``ResumableBatchSampler``.
    """

    def __init__(self, block_size: int, n: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(n, *args, shuffle=True, **kwargs)
        self.block_size = block_size

    def order(self) -> Tensor:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch, self.n))
        return super().order() + self.n * int(torch.randint(self.block_size, (), generator=generator))
