"""Parts that decoder-only Transformers share besides attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.layers.kv_cache import KVCache
from zoo.layers.rotary import RotaryEmbedding


class SwiGLU(nn.Module):
    """SwiGLU feed-forward block (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Args:
        dim: embedding dimension.
        hidden_dim: hidden dimension.
        bias: whether the linear layers have biases.
        dropout: dropout probability for the output.
    """

    def __init__(self, dim: int, hidden_dim: int, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, 2 * hidden_dim, bias)  # gates, then values
        self.proj = nn.Linear(hidden_dim, dim, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        gate, value = self.fc(x).chunk(2, 2)  # (b, t, hidden_dim) each
        return self.dropout(self.proj(F.silu(gate) * value))


class DecoderSpec(NamedTuple):
    """The modules of a decoder, by their role, for code that runs it in another way than its ``forward``.

    Args:
        embedding: token embedding.
        token_shift: weights ``(n, d)`` of :func:`apply_token_shift`; null for none.
        positions: learned position embedding; null for none.
        rotary: rotary position embedding; null for none.
        blocks: of each block the norm before attention, the attention, the norm before the MLP, and the MLP.
        activation: of the MLPs, by its name in ``zoo.layers.cpu.single_token_decoder.ACTIVATIONS``.
        norm: final norm.
        head: linear layer to the logits.
        softcap: bound of the logits (``softcap * tanh(logits / softcap)``); null for none.
        module_types: classes that belong to the decoder itself.
    """

    embedding: nn.Embedding
    token_shift: Tensor | None
    positions: nn.Embedding | None
    rotary: RotaryEmbedding | None
    blocks: Sequence[tuple[Any, Any, Any, Any]]
    activation: str
    norm: nn.Module
    head: nn.Linear
    softcap: float | None
    module_types: set[type[nn.Module]]


def apply_token_shift(
    x: Float[Tensor, "b t d"],
    ids: Int[Tensor, "b t"],
    embedding: nn.Module,
    weights: Float[Tensor, "n d"],
    cache: KVCache | None,
) -> Float[Tensor, "b t d"]:
    """Add the weighted embeddings of the ``n`` previous tokens to that of each token; before the first they are 0.

    Args:
        x: embeddings of the tokens.
        ids: token ids.
        embedding: token embedding.
        weights: per channel, the nearest token first.
        cache: cache that holds the previous token ids; null if there are none.
    """
    n = len(weights)
    steps = x.shape[1]
    padded = F.pad(x, (0, 0, n, 0))  # (b, n + t, d)
    if cache is not None:
        start = cache.position
        known = min(n, start)
        if known:
            previous = embedding(cache.ids[:, start - known : start])
            padded = torch.cat([padded[:, : n - known], previous, x], 1)
        cache.ids[:, start : start + steps] = ids
    for distance, weight in enumerate(weights.unbind(), 1):
        first = n - distance
        x = torch.addcmul(x, padded[:, first : first + steps], weight)
    return x


def initialize_decoder(net: nn.Module, depth: int) -> None:
    """Initialise weights as GPT-2 does: normal with std 0.02, smaller for the last layer of a residual branch.

    The residual stream is a sum of ``2 * depth`` branches, so their last layers (``proj``) get
    ``0.02 / sqrt(2 * depth)``.
    """
    for name, parameter in net.named_parameters():
        if name.endswith(("bias", "token_shift")):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:  # scales of norms
            nn.init.ones_(parameter)
        elif ".proj." in name:
            nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5)
        else:
            nn.init.normal_(parameter, std=0.02)


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Float[Tensor, "b t d"],
    rotary: tuple[Tensor, Tensor] | None,
    cache: KVCache | None,
    checkpointed: bool,
) -> Float[Tensor, "b t d"]:
    """Apply the blocks one after the other, then advance the cache by these tokens.

    Args:
        blocks: called with ``(x, rotary, cache, index of the block)``.
        x: hidden states.
        rotary: cosines and sines of the tokens' positions; null for none.
        cache: keys and values of earlier tokens; null for none.
        checkpointed: keep only the activations between blocks for the backward pass.
    """
    for i, block in enumerate(blocks):
        if checkpointed:
            x = checkpoint(block, x, rotary, cache, i, use_reentrant=False)
        else:
            x = block(x, rotary, cache, i)
    if cache is not None:
        cache.advance(x.shape[1])
    return x


def last_tokens(x: Float[Tensor, "b t d"], logits_to_keep: int) -> Float[Tensor, "b u d"]:
    """Return the hidden states of the last ``logits_to_keep`` tokens; of all for 0."""
    return x[:, -logits_to_keep:]  # from -0, so from the start, for 0


def cache_start(tokens: int, cache: KVCache | None, block_size: int) -> int:
    """Return the position of the first of the new tokens; raise ``ValueError`` if they exceed the context."""
    start = 0
    if cache is not None:
        start = cache.position
    end = start + tokens
    if end > block_size:
        raise ValueError(f"{end} tokens exceed the context of {block_size} (block_size)")
    return start
