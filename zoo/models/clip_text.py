"""CLIP's text encoder (Radford et al. 2021, https://arxiv.org/abs/2103.00020), as Stable Diffusion uses it."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers.attention import attention
from zoo.weights.formats.clip_text import CLIPTextFormat
from zoo.weights.pretrained import PretrainedNet

Activation = Literal["gelu", "quick_gelu"]
# Stable Diffusion 1.x (OpenAI's ViT-L/14) and 2.x (OpenCLIP's ViT-H/14 without its last layer).
PRESETS: dict[str, dict[str, Any]] = {
    "sd-1.5": {"dim": 768, "depth": 12, "heads": 12, "hidden": 3072, "activation": "quick_gelu"},
    "sd-2.1": {"dim": 1024, "depth": 23, "heads": 16, "hidden": 4096, "activation": "gelu"},
}


class TokenEmbeddings(nn.Module):
    """Token embedding plus learned position embedding.

    Args:
        vocab_size: vocabulary size.
        max_length: number of positions.
        dim: embedding dimension.
    """

    def __init__(self, vocab_size: int, max_length: int, dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.token_embedding(ids) + self.position_embedding(positions)


class CausalAttention(nn.Module):
    """Causal multi-head self-attention, with one linear layer each for queries, keys and values.

    Args:
        dim: embedding dimension.
        heads: number of heads; divides ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # in transformers' order, so that a seed gives the same weights
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        q = self._split_heads(self.q_proj(x))
        k = self._split_heads(self.k_proj(x))
        v = self._split_heads(self.v_proj(x))
        y = attention(q, k, v, causal=True)  # (b, h, t, c)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t c"]:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Feed-forward block.

    Args:
        dim: embedding dimension.
        hidden: hidden dimension.
        activation: ``gelu``, or ``quick_gelu``: OpenAI's approximation ``x * sigmoid(1.702 x)``.
    """

    def __init__(self, dim: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        h = self.fc1(x)  # (b, t, hidden)
        if self.quick:
            return self.fc2(h * torch.sigmoid(1.702 * h))
        return self.fc2(F.gelu(h))


class EncoderLayer(nn.Module):
    """Pre-norm Transformer block: causal self-attention and MLP, each with a residual connection."""

    def __init__(self, dim: int, heads: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.self_attn = CausalAttention(dim, heads)
        self.layer_norm1 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden, activation)
        self.layer_norm2 = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPTextEncoder(PretrainedNet):
    """CLIP text encoder: hidden states of a prompt's tokens, which condition text-to-image models.

    Parameters are named as in transformers' ``CLIPTextModel``.

    Args:
        vocab_size: vocabulary size.
        max_length: maximum number of tokens, start and end tokens included.
        dim: embedding dimension.
        depth: number of layers.
        heads: number of attention heads; divides ``dim``.
        hidden: hidden dimension of the MLPs.
        activation: ``quick_gelu`` for OpenAI's weights, ``gelu`` for OpenCLIP's.
        clip_skip: number of last layers to skip before the final norm: 1 returns the penultimate hidden states.
    """

    weights_format = CLIPTextFormat()
    presets = PRESETS

    def __init__(
        self,
        vocab_size: int = 49408,
        max_length: int = 77,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        activation: Activation = "quick_gelu",
        clip_skip: int = 0,
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if dim % heads:
            raise ValueError(f"dim={dim} is not divisible by heads={heads}")
        if activation not in ("gelu", "quick_gelu"):
            raise ValueError(f"activation must be gelu or quick_gelu, got {activation!r}")
        if not 0 <= clip_skip < depth:
            raise ValueError(f"clip_skip must be 0 to {depth - 1} for {depth} layers, got {clip_skip}")
        self.clip_skip = clip_skip
        self.max_length = max_length
        self.dim = dim
        self.embeddings = TokenEmbeddings(vocab_size, max_length, dim)
        layers = nn.ModuleList()
        for _ in range(depth):
            layers.append(EncoderLayer(dim, heads, hidden, activation))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        if ids.shape[1] > self.max_length:
            raise ValueError(f"the text encoder takes at most {self.max_length} tokens, got {ids.shape[1]}")
        x = self.embeddings(ids)  # (b, t, d)
        layers = list(self.encoder["layers"])  # type: ignore[arg-type]
        for layer in layers[: len(layers) - self.clip_skip]:
            x = layer(x)
        return self.final_layer_norm(x)
