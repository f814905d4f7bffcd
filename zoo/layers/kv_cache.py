"""Keys and values of the tokens so far, so that the next one is computed alone (Pope et al. 2022).

Source: https://arxiv.org/abs/2211.05102. Memory is taken once, for as many tokens as may come.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KVCache:
    """Room for the keys and values of every layer; ``position`` is how many tokens it holds.

    Args:
        depth: number of layers.
        batch: number of sequences.
        kv_heads: heads that keys and values have, which may be fewer than those of the queries.
        length: tokens that there is room for.
        head_dim: width of a head.
        dtype: of the network.
        device: of the network.
    """

    def __init__(
        self,
        depth: int,
        batch: int,
        kv_heads: int,
        length: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.length, self.position = length, 0
        self.ids = torch.zeros(batch, length, dtype=torch.long, device=device)  # which tokens, where a network asks
        self._hold(torch.empty(depth, 2, batch, kv_heads, length, head_dim, dtype=dtype, device=device))

    def _hold(self, data: Float[Tensor, "l 2 b h t d"]) -> None:
        self.data, self.batch = data, data.shape[2]
        self.keys, self.values = (part.unbind(0) for part in data.unbind(1))

    def update(
        self, layer: int, k: Float[Tensor, "b h t d"], v: Float[Tensor, "b h t d"]
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
        """Keep those of new tokens, and return those of all tokens of a layer.

        The network calls :meth:`advance` once all layers have done so.
        """
        start, end = self.position, self.position + k.shape[2]
        if end > self.length:
            raise ValueError(f"{end} tokens do not fit into a cache of {self.length}")
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, start:end], values[:, :, start:end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, tokens: int) -> None:
        self.position += tokens

    def rewind(self, position: int = 0) -> None:
        """Forget all tokens from ``position`` on."""
        if not 0 <= position <= self.position:
            raise ValueError(f"a cache of {self.position} tokens cannot be rewound to {position}")
        self.position = position

    def reset(self) -> None:
        self.rewind(0)

    def reorder(self, rows: Int[Tensor, " n"]) -> None:
        """Take these rows of the batch in place of all, as a beam search needs it, or where some have ended.

        Where they are no more than before this takes no new memory but for one layer.
        """
        n = len(rows)
        data = self.data if n <= self.batch else self.data.new_empty(*self.data.shape[:2], n, *self.data.shape[3:])
        for new, old in zip(data, self.data, strict=True):
            new[:, :n, :, : self.position] = old[:, :, :, : self.position].index_select(1, rows)
        self.ids = self.ids[rows]
        self._hold(data[:, :, :n])
