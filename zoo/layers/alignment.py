"""Attention of a recurrent decoder over the states of an encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.layers.attention_weights import report_weights


class Memory(NamedTuple):
    """Encoder outputs for attention: the states, the keys that queries are compared with, and the padding mask."""

    states: Float[Tensor, "b s d"]
    keys: Float[Tensor, "b s d"]
    padding: Bool[Tensor, "b s"]  # true in the padding


class DotAttention(nn.Module):
    """Dot-product attention, without scaling (Luong et al. 2015, https://arxiv.org/abs/1508.04025)."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Identity()

    def forward(
        self, query: Float[Tensor, "b t d"], memory: Memory
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t s"]]:
        """Return the context vector of each query, and the attention weights."""
        scores = query @ memory.keys.transpose(1, 2)  # (b, t, s)
        return attend(scores, memory)


class AdditiveAttention(nn.Module):
    """Additive attention: scores by an MLP of query and key (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473).

    Args:
        dim: dimension of the states, and of the MLP's hidden layer.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(dim, dim, bias=False)
        self.query = nn.Linear(dim, dim)
        self.energy = nn.Linear(dim, 1, bias=False)

    def forward(
        self, query: Float[Tensor, "b t d"], memory: Memory
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t s"]]:
        """Return the context vector of each query, and the attention weights."""
        sums = self.query(query).unsqueeze(2) + memory.keys.unsqueeze(1)  # (b, t, s, d)
        scores = self.energy(torch.tanh(sums)).squeeze(3)  # (b, t, s)
        return attend(scores, memory)


def attend(scores: Float[Tensor, "b t s"], memory: Memory) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t s"]]:
    """Return the mean of the encoder states weighted by the softmax of scores, and the weights (0 in the padding)."""
    hidden = memory.padding.unsqueeze(1)  # (b, 1, s)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(2)
    report_weights(weights)
    return weights @ memory.states, weights
