"""Vision Transformer (ViT; Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929)."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from zoo.layers.attention import attention
from zoo.layers.head import HeadKind, classifier_head
from zoo.tasks.base import require
from zoo.tasks.image_classification import ImageClassifier
from zoo.weights.formats.vit import ViTFormat
from zoo.weights.pretrained import PretrainedNet

Pool = Literal["class", "mean"]


class Size(NamedTuple):
    """Embedding dimension, number of blocks and number of heads."""

    dim: int
    depth: int
    heads: int


# Ti and S: DeiT (Touvron et al. 2020, https://arxiv.org/abs/2012.12877).
SIZES = {
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
}
# Patch sizes to suggest for images that the given one does not divide.
USUAL_PATCH_SIZES = (32, 16, 14, 8, 7, 5, 4, 3, 2)


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: embedding dimension.
        heads: number of attention heads; divides ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Queries, keys and values in one product, with the parameter names of nn.MultiheadAttention.
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.unflatten(2, (3, self.heads, -1))  # (b, t, 3, h, d / h)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, h, t, d / h) each
        y = attention(q, k, v).transpose(1, 2).flatten(2)  # (b, t, d)
        return self.out_proj(y)


class Block(nn.Module):
    """Pre-norm Transformer block: self-attention and MLP, each with a residual connection.

    Args:
        dim: embedding dimension; the MLP's hidden size is four times as large.
        heads: number of attention heads.
        dropout: dropout probability after attention and after both layers of the MLP.
        drop: stochastic depth: probability of skipping a residual branch, per sample (Huang et al. 2016).
        eps: epsilon of the layer normalizations.
    """

    def __init__(self, dim: int, heads: int, dropout: float, drop: float, eps: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps)
        self.self_attention = Attention(dim, heads)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(dim, eps)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )
        self.stochastic_depth = StochasticDepth(drop, "row")
        for layer in (self.mlp[0], self.mlp[3]):
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.normal_(layer.bias, std=1e-6)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        y = self.self_attention(self.ln_1(x))
        x = x + self.stochastic_depth(self.dropout(y))
        y = self.mlp(self.ln_2(x))
        return x + self.stochastic_depth(y)


class Encoder(nn.Module):
    """Transformer encoder: position embeddings, blocks, and pooling over the tokens.

    Args:
        grid: number of patches along each side of an image.
        dim: embedding dimension.
        depth: number of blocks.
        heads: number of attention heads.
        pool: ``class`` returns the class token, ``mean`` the mean of all patch tokens.
        dropout: dropout probability for the embeddings and in the blocks.
        stochastic_depth: probability of skipping a residual branch of the last block; increases linearly from 0 at the
            first block.
        eps: epsilon of the layer normalizations.
    """

    def __init__(
        self,
        grid: int,
        dim: int,
        depth: int,
        heads: int,
        pool: str,
        dropout: float,
        stochastic_depth: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.pool = pool
        num_tokens = grid * grid
        if pool == "class":
            num_tokens += 1
        self.pos_embedding = nn.Parameter(torch.randn(1, num_tokens, dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential()
        for i in range(depth):
            drop = stochastic_depth * i / max(1, depth - 1)
            self.layers.add_module(f"encoder_layer_{i}", Block(dim, heads, dropout, drop, eps))
        self.ln = nn.LayerNorm(dim, eps)

    def forward(self, x: Float[Tensor, "b t d"], rows: int, columns: int) -> Float[Tensor, "b d"]:
        x = x + resample(self.pos_embedding, rows, columns)
        x = self.layers(self.dropout(x))
        # timm pools before the norm; for a class token the order makes no difference.
        x = x[:, 0] if self.pool == "class" else x.mean(1)  # (b, d)
        return self.ln(x)


def resample(positions: Float[Tensor, "1 t d"], rows: int, columns: int) -> Float[Tensor, "1 u d"]:
    """Interpolate the position embeddings of a square grid of patches to another grid.

    Args:
        positions: embeddings of the patches, row by row, after that of a class token if there is one, which is kept.
        rows: rows of the new grid.
        columns: columns of the new grid.
    """
    side = math.isqrt(positions.shape[1])
    if (rows, columns) == (side, side):
        return positions
    num_extra = positions.shape[1] - side * side
    extra, grid = positions.split([num_extra, side * side], 1)
    grid = grid.transpose(1, 2).unflatten(2, (side, side))  # (1, d, side, side)
    grid = F.interpolate(grid.float(), (rows, columns), mode="bicubic", antialias=True)
    grid = grid.to(positions.dtype).flatten(2).transpose(1, 2)  # (1, rows * columns, d)
    return torch.cat([extra, grid], 1)


class ViT(PretrainedNet):
    """Vision Transformer: patch embedding, Transformer encoder and classifier head.

    Parameters have the names of torchvision. For images of another size than ``image_size``, position embeddings are
    interpolated.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        image_size: side of the images in pixels, a multiple of ``patch_size``.
        patch_size: side of a patch in pixels.
        dim: embedding dimension.
        depth: number of blocks.
        heads: number of attention heads; divides ``dim``.
        pool: input of the head: a ``class`` token, or the ``mean`` of the patch tokens, without a class token.
        dropout: dropout probability for the embeddings and in the blocks.
        stochastic_depth: probability of skipping a residual branch of the last block; increases linearly from 0 at the
            first block.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        norm_eps: epsilon of the layer normalizations; Hugging Face's models have 1e-12.
    """

    weights_format = ViTFormat(SIZES, resample)
    classifier_names = ("heads.head",)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        patch_size: int = 16,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        pool: Pool = "class",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        head: HeadKind = "linear",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if pool not in ("class", "mean"):
            raise ValueError(f"pool must be class or mean, got {pool!r}")
        if dim % heads:
            raise ValueError(f"dim={dim} is not divisible by heads={heads}")
        self.patch_size = patch_size
        self.conv_proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        grid = count_patches(image_size, patch_size)
        self.class_token = None
        if pool == "class":
            self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = Encoder(grid, dim, depth, heads, pool, dropout, stochastic_depth, norm_eps)
        self.heads = nn.Sequential()
        self.heads.add_module("head", classifier_head(head, dim, num_classes))
        self._init_weights()

    def _init_weights(self) -> None:
        fan_in = self.conv_proj.in_channels * self.patch_size**2
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / fan_in))
        nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]
        # torchvision starts with a zero head, which lets no gradient into the body at the first step.
        for module in self.heads.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        rows = count_patches(x.shape[2], self.patch_size)
        columns = count_patches(x.shape[3], self.patch_size)
        x = self.conv_proj(x)  # (b, d, rows, columns)
        x = x.flatten(2).transpose(1, 2)  # (b, rows * columns, d)
        if self.class_token is not None:
            class_token = self.class_token.expand(x.shape[0], -1, -1)  # len() would fix the batch in an export
            x = torch.cat([class_token, x], 1)
        return self.heads(self.encoder(x, rows, columns))


def count_patches(image_size: int, patch_size: int) -> int:
    """Return the number of patches along a side of an image.

    Raises:
        ValueError: the patches do not divide the side; the message names sizes that fit.
    """
    if image_size > 0 and image_size % patch_size == 0:
        return image_size // patch_size
    smaller = image_size // patch_size * patch_size
    if smaller == 0:
        smaller = patch_size
    message = f"image_size {image_size} is not divisible by patch_size {patch_size}"
    message += f": take images of {smaller} or {smaller + patch_size} pixels"
    fitting = [size for size in USUAL_PATCH_SIZES if image_size % size == 0 and size < image_size]
    if fitting:
        message += f", or a patch_size of {', '.join(map(str, fitting))}"
    raise ValueError(message)


class ViTClassifier(ImageClassifier):
    """Vision Transformer (ViT) image classifier.

    Args:
        size: embedding dimension, depth and heads by name: Ti, S, B, L or H.
        patch_size: side of a patch in pixels, a divisor of the image size; 2 to 4 for images of 32 pixels.
        pool: input of the head: a ``class`` token, or the ``mean`` of the patch tokens, without a class token.
        dropout: dropout probability for the embeddings and in the blocks.
        stochastic_depth: probability of skipping a residual branch of the last block; increases linearly from 0 at the
            first block.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        dim: embedding dimension; null takes that of ``size``.
        depth: number of blocks; null takes that of ``size``.
        heads: number of attention heads; null takes that of ``size``.
        norm_eps: epsilon of the layer normalizations; Hugging Face's models have 1e-12.
        in_channels: channels of the images; null takes it from the data.
        image_size: side of the images in pixels; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    tiny = {"patch_size": 4, "dim": 32, "depth": 2, "heads": 2}

    def __init__(
        self,
        size: Literal["Ti", "S", "B", "L", "H"] = "Ti",
        patch_size: int = 16,
        pool: Pool = "class",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        head: HeadKind = "linear",
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        norm_eps: float = 1e-6,
        in_channels: int | None = None,
        image_size: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        channels, pixels, classes = require(
            self,
            in_channels=in_channels,
            image_size=image_size,
            num_classes=num_classes,
        )
        preset = SIZES[size]
        net = ViT(
            in_channels=channels,
            num_classes=classes,
            image_size=pixels,
            patch_size=patch_size,
            dim=dim or preset.dim,
            depth=depth or preset.depth,
            heads=heads or preset.heads,
            pool=pool,
            dropout=dropout,
            stochastic_depth=stochastic_depth,
            head=head,
            norm_eps=norm_eps,
        )
        super().__init__(net=net, num_classes=num_classes, **kwargs)
