"""Spatial transformer: cross-attention from images to text (Rombach et al. 2022, https://arxiv.org/abs/2112.10752)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.image_blocks import attend, to_image, to_tokens


class CrossAttention(nn.Module):
    """Multi-head attention from image positions to text states, or, without a text, self-attention.

    Args:
        dim: embedding dimension of the positions.
        heads: number of heads, a divisor of ``dim``.
        text_dim: dimension of the text states; None is self-attention.
        dropout: dropout probability of the output.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        text_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        source_dim = text_dim or dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(source_dim, dim, bias=False)
        self.to_v = nn.Linear(source_dim, dim, bias=False)
        # A Sequential because diffusers names this layer to_out.0.
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        # The residual branch starts at zero.
        nn.init.zeros_(self.to_out[0].weight)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        text: Float[Tensor, "b s e"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        source = x if text is None else text
        q = self.to_q(x)
        k = self.to_k(source)
        v = self.to_v(source)
        return self.to_out(attend(q, k, v, self.heads))


class GEGLU(nn.Module):
    """Linear layer gated by the GELU of another (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Args:
        dim: dimension of the input.
        hidden: dimension of the output.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # Both layers in one, values first, as in diffusers.
        self.proj = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Feed-forward block with a GEGLU activation and a hidden dimension of ``4 * dim``.

    Args:
        dim: embedding dimension.
        dropout: dropout probability of the hidden layer.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        hidden = 4 * dim
        self.net = nn.Sequential(
            GEGLU(dim, hidden),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
        )

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.net(x)


class SpatialTransformerBlock(nn.Module):
    """Pre-norm Transformer block: self-attention, cross-attention and MLP, each with a residual connection."""

    def __init__(self, dim: int, heads: int, text_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = CrossAttention(dim, heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = CrossAttention(dim, heads, text_dim, dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, dropout)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        text: Float[Tensor, "b s e"],
    ) -> Float[Tensor, "b t d"]:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Spatial transformer: a Transformer block over image positions, with cross-attention to a text and a residual
    connection.

    Args:
        dim: channels of the image.
        heads: number of heads.
        text_dim: dimension of the text states.
        groups: groups of the group normalization.
        linear: whether its projections are stored as linear layers or, equivalently, as 1x1 convolutions.
        dropout: dropout probability.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        text_dim: int,
        groups: int,
        linear: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, dim, 1e-6)
        self.proj_in = self._projection(dim)
        block = SpatialTransformerBlock(dim, heads, text_dim, dropout)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = self._projection(dim)
        # The residual branch starts at zero.
        nn.init.zeros_(self.proj_out.weight)  # type: ignore[arg-type]

    def _projection(self, dim: int) -> nn.Module:
        if self.linear:
            return nn.Linear(dim, dim)
        return nn.Conv2d(dim, dim, 1)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        text: Float[Tensor, "b s e"],
    ) -> Float[Tensor, "b c h w"]:
        h = self.norm(x)
        if self.linear:
            tokens = self.proj_in(to_tokens(h))  # (b, h * w, c)
        else:
            tokens = to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            tokens = block(tokens, text)
        if self.linear:
            return x + to_image(self.proj_out(tokens), x)  # (b, c, h, w)
        return x + self.proj_out(to_image(tokens, x))
