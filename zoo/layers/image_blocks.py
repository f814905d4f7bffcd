"""Blocks of image generators: residual blocks, attention and resampling (Ho et al. 2020, arxiv.org/abs/2006.11239)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.layers.attention import attention
from zoo.layers.cpu.image_blocks import GroupNormSiLUFunction, upsample_conv


class GroupNormSiLU(nn.GroupNorm):
    """Group normalization followed by SiLU."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return GroupNormSiLUFunction.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return F.silu(super().forward(x))


class ResBlock(nn.Module):
    """Residual block of two normalized 3x3 convolutions, conditioned on a time embedding that is added between them.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        time_dim: dimension of the time embedding; null for a block without one.
        groups: number of groups of both normalizations; divides ``in_channels`` and ``out_channels``.
        eps: epsilon of both normalizations.
        dropout: dropout probability before the second convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_dim: int | None = None,
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None
        if time_dim:
            self.time_emb_proj = nn.Linear(time_dim, out_channels)
        self.norm2 = GroupNormSiLU(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        # The residual branch starts at zero, as in the code of DDPM.
        nn.init.zeros_(self.conv2.weight)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b d h w"]:
        h = self.conv1(self.norm1(x))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]  # (b, d, 1, 1)
        h = self.conv2(self.dropout(self.norm2(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return h + x


class SpatialSelfAttention(nn.Module):
    """Self-attention over the positions of a feature map, with a residual connection.

    Args:
        dim: channels of the feature map.
        heads: number of attention heads; divides ``dim``.
        groups: number of groups of the normalization.
        eps: epsilon of the normalization.
    """

    def __init__(self, dim: int, heads: int = 1, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, dim, eps)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        # A Sequential because diffusers names this layer to_out.0.
        self.to_out = nn.Sequential(nn.Linear(dim, dim))
        nn.init.zeros_(self.to_out[0].weight)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = to_tokens(self.group_norm(x))
        q = self.to_q(tokens)
        k = self.to_k(tokens)
        v = self.to_v(tokens)
        out = self.to_out(attend(q, k, v, self.heads))
        return x + to_image(out, x)


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution.

    Args:
        channels: channels of the feature map.
        symmetric: pad all four sides; false pads only right and bottom, as Stable Diffusion's autoencoder does.
    """

    def __init__(self, channels: int, symmetric: bool = True) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(symmetric))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        if not self.symmetric:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width by nearest-neighbor interpolation, followed by a 3x3 convolution.

    Args:
        channels: channels of the feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        # In half precision the fused version is not faster.
        if x.device.type == "cpu" and x.dtype.itemsize >= 4:
            return upsample_conv(x, self.conv.weight, self.conv.bias)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """Residual blocks at one resolution, each followed by attention if the stage has it, then a change of resolution.

    Args:
        resnets: the residual blocks.
        attentions: attention modules of the first blocks, at most one per block.
        resize: change of resolution, named as in diffusers: ``downsamplers=module`` or ``upsamplers=module``, or none.
    """

    def __init__(self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], **resize: nn.Module) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        self.resizers = list(resize)
        for name, module in resize.items():
            self.add_module(name, nn.ModuleList([module]))

    def block(self, i: int, x: Tensor, time: Tensor | None, text: Tensor | None, recompute: bool = False) -> Tensor:
        """Apply residual block ``i`` and its attention; ``recompute`` recomputes activations in the backward pass."""
        if recompute:
            return checkpoint(self.block, i, x, time, text, use_reentrant=False)
        x = self.resnets[i](x, time)
        if i >= len(self.attentions):
            return x
        if text is None:
            return self.attentions[i](x)
        return self.attentions[i](x, text)

    def resize(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        """Change to the next resolution, if the stage does that."""
        for name in self.resizers:
            x = self.get_submodule(name)[0](x)  # type: ignore[operator]
        return x

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, "b e"] | None = None,
        text: Float[Tensor, "b s f"] | None = None,
        recompute: bool = False,
    ) -> Float[Tensor, "b d i j"]:
        for i in range(len(self.resnets)):
            x = self.block(i, x, time, text, recompute)
        return self.resize(x)


def to_tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t c"]:
    """Flatten the positions of a feature map to a sequence; a view if memory is channels-last."""
    return x.flatten(2).transpose(1, 2)


def to_image(tokens: Float[Tensor, "b t c"], like: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h w"]:
    """Invert :func:`to_tokens` for a feature map with the height and width of ``like``."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def attend(
    q: Float[Tensor, "b t c"],
    k: Float[Tensor, "b s c"],
    v: Float[Tensor, "b s c"],
    heads: int,
) -> Float[Tensor, "b t c"]:
    """Multi-head attention without a mask; heads are consecutive slices of the ``c`` features."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))  # (b, h, t, c / h)
    out = attention(q, k, v)
    return out.transpose(1, 2).flatten(2)  # (b, t, c)
