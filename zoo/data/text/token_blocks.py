"""Blocks of a long sequence of tokens, and the order in which an epoch reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.sampler import ResumableBatchSampler, mix_seeds


class TokenBlocks(Dataset):
    """Consecutive blocks of tokens, each with the tokens that follow: ``(x, y)``, both ``(b, block_size)``.

    Item ``i`` from 0 to ``len - 1`` begins at token ``i * block_size``; in a batch ``i + s * len`` is the block that
    begins ``s`` tokens later, or as late as the text allows.

    Args:
        ids: token ids ``(n,)`` of any integer type, in memory or mapped into it.
        block_size: tokens in a block.
    """

    def __init__(self, ids: np.ndarray, block_size: int) -> None:
        self.ids = ids
        self.block_size = block_size
        self._make_windows()

    def _make_windows(self) -> None:
        # A view of every block and the token behind it, (n - block_size, block_size + 1); no data is copied.
        self._windows = np.lib.stride_tricks.sliding_window_view(self.ids, self.block_size + 1)

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.block_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = range(len(self))[index]  # raises IndexError, which ends a loop over the blocks
        x, y = self.batch(torch.tensor([index]))
        return x[0], y[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        shift, block = np.divmod(indices.numpy(), len(self))
        starts = np.minimum(block * self.block_size + shift, len(self._windows) - 1)
        tokens = self._windows[starts]  # (b, block_size + 1)
        x = torch.from_numpy(tokens[:, :-1].astype(np.int64))
        y = torch.from_numpy(tokens[:, 1:].astype(np.int64))
        return x, y

    def __getstate__(self) -> dict[str, Any]:
        ids: Any = self.ids
        if isinstance(ids, np.memmap):
            # A worker process opens the file instead of getting a copy.
            ids = (ids.filename, ids.dtype, ids.shape)
        return {"ids": ids, "block_size": self.block_size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ids = state["ids"]
        if isinstance(ids, tuple):
            filename, dtype, shape = ids
            ids = np.memmap(filename, dtype, "r", shape=shape)
        self.ids = ids
        self.block_size = state["block_size"]
        self._make_windows()


class ShiftedBlockSampler(ResumableBatchSampler):
    """Blocks in a new order every epoch, all of them shifted by the same number of tokens, less than a block.

    Args:
        block_size: tokens in a block.
        n: number of blocks; further arguments are those of ``ResumableBatchSampler``.
    """

    def __init__(self, block_size: int, n: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(n, *args, shuffle=True, **kwargs)
        self.block_size = block_size

    def order(self) -> Tensor:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch, self.n))
        shift = int(torch.randint(self.block_size, (), generator=generator))
        return super().order() + self.n * shift
