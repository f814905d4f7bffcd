"""What decoders share around their blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.layers.kv_cache import KVCache


class SwiGLU(nn.Module):
    """Each token by itself: two layers, one of which opens the gates of the other, and back (Shazeer 2020).

    Source: https://arxiv.org/abs/2002.05202.

    Args:
        dim: width of the tokens.
        hidden_dim: width between.
        bias: whether the products have biases.
        dropout: share dropped behind it.
    """

    def __init__(self, dim: int, hidden_dim: int, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, 2 * hidden_dim, bias)  # the gates, then what passes them
        self.proj = nn.Linear(hidden_dim, dim, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        gate, x = self.fc(x).chunk(2, 2)
        return self.dropout(self.proj(F.silu(gate) * x))


def apply_token_shift(
    x: Float[Tensor, "b t d"],
    ids: Int[Tensor, "b t"],
    embedding: nn.Module,
    shares: Float[Tensor, "n d"],
    cache: KVCache | None,
) -> Float[Tensor, "b t d"]:
    """Add shares of the embeddings of the ``n`` tokens before to that of each; before the first there are none.

    Args:
        x: embeddings of the tokens.
        ids: the tokens.
        embedding: of the tokens.
        shares: of each channel, the nearest token first.
        cache: which keeps the tokens.
    """
    n, tokens = len(shares), x.shape[1]
    row = F.pad(x, (0, 0, n, 0))
    if cache is not None:
        start = cache.position
        if known := min(n, start):
            row = torch.cat([row[:, : n - known], embedding(cache.ids[:, start - known : start]), x], 1)
        cache.ids[:, start : start + tokens] = ids
    for i, share in enumerate(shares.unbind(), 1):
        x = torch.addcmul(x, row[:, n - i : n - i + tokens], share)
    return x


def initialize_decoder(net: nn.Module, depth: int) -> None:
    """As GPT-2: normal of 0.02, and less at the ends of branches (``proj``), whose sum grows with their number."""
    for name, parameter in net.named_parameters():
        if name.endswith(("bias", "token_shift")):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02 / ((2 * depth) ** 0.5 if ".proj." in name else 1))
        else:
            nn.init.ones_(parameter)


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Float[Tensor, "b t d"],
    rotary: tuple[Tensor, Tensor] | None,
    cache: KVCache | None,
    checkpointed: bool,
) -> Float[Tensor, "b t d"]:
    """Apply blocks one after the other, and move the cache on by these tokens.

    Args:
        blocks: called with tokens, rotary tables, cache and their number.
        x: tokens.
        rotary: cosines and sines of their positions.
        cache: keys and values of tokens before them.
        checkpointed: keep no activations but those between blocks.
    """
    for i, block in enumerate(blocks):
        given = x, rotary, cache, i
        x = checkpoint(block, *given, use_reentrant=False) if checkpointed else block(*given)
    if cache is not None:
        cache.advance(x.shape[1])
    return x


def cache_start(tokens: int, cache: KVCache | None, block_size: int) -> int:
    """Where new tokens begin, if they still fit into the context."""
    start = cache.position if cache is not None else 0
    if start + tokens > block_size:
        raise ValueError(f"{start + tokens} tokens are more than the context of {block_size}")
    return start
