"""Vision Transformer (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from zoo.layers.head import HeadKind, classifier_head
from zoo.tasks.base import require
from zoo.tasks.image_classification import ImageClassifier
from zoo.weights.formats import vit as vit_format
from zoo.weights.pretrained import Format, PretrainedNet, infer_head

# Width, blocks, heads. Ti and S: Touvron et al. 2020, https://arxiv.org/abs/2012.12877; H is here for its weights.
SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}


class Attention(nn.Module):
    """Every token looks at every other one, in several heads.

    Args:
        dim: width of the tokens.
        heads: number of heads; each is ``dim / heads`` wide.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # queries, keys and values in one product
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (b, h, t, d / h) each
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
            # forward and backward, the fused kernel takes 4 times as long as this with 65 tokens (torch 2.15)
            y = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each normalised before it and beside a shortcut.

    Args:
        dim: width of the tokens; the perceptron's hidden layer is four times as wide.
        heads: number of heads.
        dropout: share dropped behind attention and behind both layers of the perceptron.
        drop: probability of leaving either branch out, for each sample (Huang et al. 2016).
        eps: of the normalisations.
    """

    def __init__(self, dim: int, heads: int, dropout: float, drop: float, eps: float) -> None:
        super().__init__()
        self.ln_1, self.self_attention = nn.LayerNorm(dim, eps), Attention(dim, heads)
        self.dropout, self.ln_2 = nn.Dropout(dropout), nn.LayerNorm(dim, eps)
        self.mlp = nn.Sequential(
            *(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout)), *(nn.Linear(4 * dim, dim), nn.Dropout(dropout))
        )
        self.stochastic_depth = StochasticDepth(drop, "row")
        for layer in (self.mlp[0], self.mlp[3]):
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.normal_(layer.bias, std=1e-6)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        x = x + self.stochastic_depth(self.dropout(self.self_attention(self.ln_1(x))))
        return x + self.stochastic_depth(self.mlp(self.ln_2(x)))


class Encoder(nn.Module):
    """Add positions, apply the blocks, and make one vector of all tokens.

    Args:
        grid: rows (and columns) of patches.
        dim: width of the tokens.
        depth: number of blocks.
        heads: number of heads in each.
        pool: ``class`` takes the first token, ``mean`` the mean of all.
        dropout: share dropped from the tokens and in the blocks.
        stochastic_depth: probability of leaving out a branch of the last block; it rises evenly from 0 in the first.
        eps: of the normalisations.
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
        self.pos_embedding = nn.Parameter(torch.randn(1, grid * grid + (pool == "class"), dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        drops = [stochastic_depth * i / max(1, depth - 1) for i in range(depth)]
        self.layers = nn.Sequential()
        for i, drop in enumerate(drops):
            self.layers.add_module(f"encoder_layer_{i}", Block(dim, heads, dropout, drop, eps))
        self.ln = nn.LayerNorm(dim, eps)

    def forward(self, x: Float[Tensor, "b t d"], rows: int, columns: int) -> Float[Tensor, "b d"]:
        x = self.layers(self.dropout(x + resample(self.pos_embedding, rows, columns)))
        # timm pools before the norm; for a class token the order makes no difference
        return self.ln(x[:, 0] if self.pool == "class" else x.mean(1))


def resample(positions: Float[Tensor, "1 t d"], rows: int, columns: int) -> Float[Tensor, "1 u d"]:
    """Interpolate the positions of a square of patches to another grid; one before them, of a class token, stays."""
    side = math.isqrt(positions.shape[1])
    if (rows, columns) == (side, side):
        return positions
    first, grid = positions.split([positions.shape[1] - side * side, side * side], 1)
    grid = grid.transpose(1, 2).unflatten(2, (side, side))  # (1, d, rows, columns)
    grid = F.interpolate(grid.float(), (rows, columns), mode="bicubic", antialias=True).to(positions.dtype)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)


class ViT(PretrainedNet):
    """Patches of the image as tokens, positions added, through a transformer's encoder.

    Parameters are named as in torchvision. For images of another size than ``image_size``
    positions are interpolated.

    Args:
        in_channels: channels of the images.
        num_classes: number of outputs.
        image_size: side of the images in pixels, a multiple of ``patch_size``.
        patch_size: side of a patch in pixels.
        dim: width of the tokens.
        depth: number of blocks.
        heads: number of attention heads, which divides ``dim``.
        pool: what the head sees: a ``class`` token, or the ``mean`` of all patches, without one.
        dropout: share dropped from the tokens and in the blocks.
        stochastic_depth: probability of leaving out a branch of the last block; it rises evenly from 0 in the first.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout.
        norm_eps: of the normalisations; Hugging Face's files have 1e-12.
    """

    weights_enums = tuple(
        f"ViT_{size}_{patch}_Weights" for size, patch in (("B", 16), ("B", 32), ("L", 16), ("L", 32), ("H", 14))
    )
    input_conv, classifier_names, formats = "conv_proj.weight", ("heads.head",), ("torchvision", "timm", "huggingface")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        patch_size: int = 16,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        pool: Literal["class", "mean"] = "class",
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
            raise ValueError(f"the width {dim} is not divisible by {heads} heads")
        self.patch_size = patch_size
        self.conv_proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        grid = self._patches(image_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "class" else None
        self.encoder = Encoder(grid, dim, depth, heads, pool, dropout, stochastic_depth, norm_eps)
        self.heads = nn.Sequential()
        self.heads.add_module("head", classifier_head(head, dim, num_classes))
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (in_channels * patch_size**2)))
        nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]
        for module in self.heads.modules():
            if isinstance(
                module, nn.Linear
            ):  # not all zero, as in torchvision, by which no gradient would reach a body
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _patches(self, pixels: int) -> int:
        if pixels % self.patch_size or pixels <= 0:
            low = pixels // self.patch_size * self.patch_size
            near = f"{low or low + self.patch_size} or {(low or self.patch_size) + self.patch_size}"
            fits = [p for p in (32, 16, 14, 8, 7, 5, 4, 3, 2) if pixels % p == 0 and p < pixels]
            other = f", or a patch_size of {', '.join(map(str, fits))}" if fits else ""
            said = f"image_size {pixels} is not divisible by patch_size {self.patch_size}"
            raise ValueError(f"{said}: take images of {near} pixels{other}")
        return pixels // self.patch_size

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        rows, columns = (self._patches(pixels) for pixels in x.shape[-2:])
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.heads(self.encoder(x, rows, columns))

    # Published weights ------------------------------------------------------------------------------------------------

    @property
    def weights_enum(self) -> str | None:
        a = self.arguments
        size = next((s for s, given in SIZES.items() if given == (a["dim"], a["depth"], a["heads"])), None)
        group = f"ViT_{size}_{a['patch_size']}_Weights"
        return group if group in self.weights_enums else None

    @classmethod
    def convert_state_dict(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return vit_format.convert_state_dict(state)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        dim, channels, patch, _ = state["conv_proj.weight"].shape
        depth = len({k.split(".")[2] for k in state if k.startswith("encoder.layers.")})
        # Heads leave no trace in a file; they are 64 wide in all sizes but H.
        usual = next((heads for width, _, heads in SIZES.values() if width == dim), max(1, dim // 64))
        sizes = {
            "in_channels": channels,
            "patch_size": patch,
            "dim": dim,
            "depth": depth,
            **infer_head(state, "heads.head"),
        }
        sizes |= {"heads": config.get("num_attention_heads", usual), "norm_eps": config.get("layer_norm_eps", 1e-6)}
        if (positions := state.get("encoder.pos_embedding")) is not None:
            sizes["image_size"] = patch * math.isqrt(positions.shape[1])
        return {**sizes, "pool": "class" if "class_token" in state else "mean"}

    def resize_to_image_size(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        key = "encoder.pos_embedding"
        extra = state[key].shape[1] - math.isqrt(state[key].shape[1]) ** 2 if key in state else -1
        if extra != int(self.class_token is not None):
            return state  # none, or of another kind, which the comparison tells
        grid = self._patches(self.arguments["image_size"])
        return {**state, key: resample(state[key], grid, grid)}

    def save_in_format(self, path: Path, format: Format) -> None:
        state, told = self.state_dict(), {"arguments": self.arguments, "preprocessing": self.preprocessing}
        if format == "timm":
            vit_format.write_timm(path, state, **told)
        elif format == "huggingface":
            vit_format.write_huggingface(path, state, **told)
        else:
            super().save_in_format(path, format)


class ViTClassifier(ImageClassifier):
    """A vision transformer that tells images apart.

    Args:
        size: width, blocks and heads by name: Ti, S, B, L or H.
        patch_size: side of a patch in pixels, which divides that of the images; 2 to 4 for images of 32 pixels.
        pool: what the head sees: a ``class`` token, or the ``mean`` of all patches, without one.
        dropout: share dropped from the tokens and in the blocks.
        stochastic_depth: probability of leaving out a branch of the last block; it rises evenly from 0 in the first.
        head: ``linear``, or ``mlp`` with a hidden layer of 256, ReLU and dropout 0.5.
        dim: width of the tokens; null takes the size's.
        depth: number of blocks; null takes the size's.
        heads: number of attention heads; null takes the size's.
        norm_eps: of the normalisations; Hugging Face's files have 1e-12.
        in_channels: channels of the images; null takes it from the data.
        image_size: side of the images in pixels; null takes it from the data.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        size: Literal["Ti", "S", "B", "L", "H"] = "Ti",
        patch_size: int = 16,
        pool: Literal["class", "mean"] = "class",
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
            self, in_channels=in_channels, image_size=image_size, num_classes=num_classes
        )
        wide, deep, many = SIZES[size]
        sizes = {"dim": dim or wide, "depth": depth or deep, "heads": heads or many, "norm_eps": norm_eps}
        ends = {"pool": pool, "dropout": dropout, "stochastic_depth": stochastic_depth, "head": head}
        net = ViT(channels, classes, pixels, patch_size, **sizes, **ends)
        super().__init__(net=net, num_classes=num_classes, **kwargs)
