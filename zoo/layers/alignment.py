"""Attention of a recurrent decoder over what an encoder has read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Memory(NamedTuple):
    """What an encoder has read: a state a step, the keys that attention compares with, and where the padding is."""

    states: Float[Tensor, "b s d"]
    keys: Float[Tensor, "b s d"]
    padding: Bool[Tensor, "b s"]


class DotAttention(nn.Module):
    """Weights by the product of decoder and encoder states (Luong et al. 2015, https://arxiv.org/abs/1508.04025)."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Identity()

    def forward(
        self, query: Float[Tensor, "b t d"], memory: Memory
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t s"]]:
        """Return the weighted mean of the encoder's states for each query, and the weights."""
        return weighted_mean(query @ memory.keys.transpose(1, 2), memory)


class AdditiveAttention(nn.Module):
    """Weights by a small network of both states (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473).

    Args:
        dim: width of the states, and of the hidden layer.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.key, self.query = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.energy = nn.Linear(dim, 1, bias=False)

    def forward(
        self, query: Float[Tensor, "b t d"], memory: Memory
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t s"]]:
        """Return the weighted mean of the encoder's states for each query, and the weights."""
        hidden = torch.tanh(self.query(query).unsqueeze(2) + memory.keys.unsqueeze(1))  # (b, t, s, d)
        return weighted_mean(self.energy(hidden).squeeze(3), memory)


def weighted_mean(
    scores: Float[Tensor, "b t s"], memory: Memory
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t s"]]:
    """Turn scores into weights that add up to 1 without the padding, and the states into their weighted mean."""
    weights = scores.masked_fill(memory.padding.unsqueeze(1), -torch.inf).softmax(2)
    return weights @ memory.states, weights
