"""Key-value cache for generation (Pope et al. 2022, https://arxiv.org/abs/2211.05102), allocated once."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KVCache:
    """Keys and values of all layers; ``position`` is the number of tokens that they hold.

    Args:
        depth: number of layers.
        batch: number of sequences.
        kv_heads: number of key and value heads.
        length: maximum number of tokens.
        head_dim: dimension of a head.
        dtype: dtype of the network.
        device: device of the network.
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
        self.length = length
        self.position = 0
        # token ids, for networks that look back at them (token shift)
        self.ids = torch.zeros(batch, length, dtype=torch.long, device=device)
        self._hold(torch.empty(depth, 2, batch, kv_heads, length, head_dim, dtype=dtype, device=device))

    def _hold(self, data: Float[Tensor, "l 2 b h t c"]) -> None:
        keys, values = data.unbind(1)
        self.data = data
        self.batch = data.shape[2]
        self.keys = keys.unbind(0)
        self.values = values.unbind(0)

    def update(
        self, layer: int, k: Float[Tensor, "b h t c"], v: Float[Tensor, "b h t c"]
    ) -> tuple[Float[Tensor, "b h s c"], Float[Tensor, "b h s c"]]:
        """Append keys and values of new tokens to a layer, and return those of all its tokens.

        The position stays: the network calls :meth:`advance` after its last layer.

        Raises:
            ValueError: the cache is too short.
        """
        start = self.position
        end = start + k.shape[2]
        if end > self.length:
            raise ValueError(f"{end} tokens do not fit into a cache of length {self.length}")
        keys = self.keys[layer]  # (b, h, length, c)
        values = self.values[layer]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, tokens: int) -> None:
        """Move the position behind new tokens."""
        self.position += tokens

    def rewind(self, position: int = 0) -> None:
        """Drop all tokens from ``position`` on."""
        if not 0 <= position <= self.position:
            raise ValueError(f"position={position} is out of range: the cache holds {self.position} tokens")
        self.position = position

    def reset(self) -> None:
        """Drop all tokens."""
        self.rewind(0)

    def reorder(self, rows: Int[Tensor, " n"]) -> None:
        """Replace the batch by these of its rows, as in beam search or when some sequences have ended.

        Unless the batch grows, the only new memory is that of one layer.
        """
        n = len(rows)
        data = self.data
        if n > self.batch:
            layers, two, _, *rest = data.shape
            data = data.new_empty(layers, two, n, *rest)
        for new, old in zip(data, self.data, strict=True):  # (2, b, h, t, c)
            filled = old[:, :, :, : self.position]
            new[:, :n, :, : self.position] = filled.index_select(1, rows)
        self.ids = self.ids[rows]
        self._hold(data[:, :, :n])
