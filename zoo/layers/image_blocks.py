"""Blocks of networks that make images: residual convolutions (Ho et al. 2020, https://arxiv.org/abs/2006.11239)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


class GroupNormSiLU(nn.GroupNorm):
    """Normalise groups of channels, then SiLU."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.silu(super().forward(x))
        return GroupNormSiLUFunction.apply(x, self.weight, self.bias, self.num_groups, self.eps)


class GroupNormSiLUFunction(torch.autograd.Function):
    """Both in one for a CPU: what lies between them takes no memory, as it is made again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.sizes = x.shape[0], x.shape[1], x.shape[2:].numel(), groups
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *ctx.sizes, eps)  # type: ignore[call-arg]
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        shift, scale = (part.repeat_interleave(len(weight) // part.shape[1], 1) for part in (mean, rstd))
        scale = scale * weight
        shift = bias - shift * scale
        wide = x.to(weight.dtype)  # under autocast: torch is slow with channels last in bf16
        y = torch.addcmul(shift[..., None, None], wide, scale[..., None, None])
        torch.ops.aten.silu_backward.grad_input(grad.to(y.dtype), y, grad_input=y)
        given = (y, wide, mean, rstd, weight, *ctx.sizes, [True] * 3)
        of_x, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(*given)
        return of_x.to(x.dtype), of_weight, of_bias, None, None


class ResBlock(nn.Module):
    """Two normalised convolutions beside a shortcut; a vector (of the time) is added between them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        time_dim: width of the vector; null for none.
        groups: of the normalisations, dividing both numbers of channels.
        eps: of the normalisations.
        dropout: share dropped before the second convolution.
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
        self.time_emb_proj = nn.Linear(time_dim, out_channels) if time_dim else None
        self.norm2, self.dropout = GroupNormSiLU(groups, out_channels, eps), nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        nn.init.zeros_(self.conv2.weight)  # the block begins as its shortcut, as in DDPM's own code

    def forward(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b e"] | None = None
    ) -> Float[Tensor, "b d h w"]:
        h = self.conv1(self.norm1(x))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(self.dropout(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatialSelfAttention(nn.Module):
    """Every position of the image looks at every other one, beside a shortcut.

    Args:
        dim: channels of the image.
        heads: number of heads, dividing ``dim``.
        groups: of the normalisation.
        eps: of the normalisation.
    """

    def __init__(self, dim: int, heads: int = 1, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, dim, eps)
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))
        nn.init.zeros_(self.to_out[0].weight)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = to_tokens(self.group_norm(x))
        out = self.to_out(attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), self.heads))
        return x + to_image(out, x)


class Downsample(nn.Module):
    """Halve the image with a convolution.

    Args:
        channels: of the image.
        symmetric: pad all sides, or only right and below, as the autoencoder does.
    """

    def __init__(self, channels: int, symmetric: bool = True) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the image by repeating pixels, and smooth it with a convolution.

    Args:
        channels: of the image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        if x.device.type != "cpu" or x.dtype.itemsize < 4:  # in bf16 this is as fast
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        # Both in one: where the kernel meets a pixel twice its weights are added, not their products: 4 of 9 are left.
        kernel = self.conv.weight.flip(2, 3).transpose(0, 1)
        kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
        kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


class Stage(nn.Module):
    """Residual blocks at one resolution, attention behind each where the stage has it, then another resolution.

    Args:
        resnets: the residual blocks.
        attentions: as many, or fewer, or none.
        resize: to the next resolution: ``downsamplers`` or ``upsamplers`` by name, or none.
    """

    def __init__(self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], **resize: nn.Module) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        self.resizers = list(resize)
        for name, module in resize.items():
            self.add_module(name, nn.ModuleList([module]))

    def block(self, i: int, x: Tensor, time: Tensor | None, text: Tensor | None, again: bool = False) -> Tensor:
        """Apply block ``i``, and the attention behind it where there is one; ``again``: twice, to keep less."""
        if again:
            return checkpoint(self.block, i, x, time, text, use_reentrant=False)
        x = self.resnets[i](x, time)
        if i >= len(self.attentions):
            return x
        return self.attentions[i](x) if text is None else self.attentions[i](x, text)

    def resize(self, x: Tensor) -> Tensor:
        for name in self.resizers:
            x = self.get_submodule(name)[0](x)  # type: ignore[operator]
        return x

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, "b e"] | None = None,
        text: Float[Tensor, "b s d"] | None = None,
        again: bool = False,
    ) -> Float[Tensor, "b d i j"]:
        for i in range(len(self.resnets)):
            x = self.block(i, x, time, text, again)
        return self.resize(x)


def to_tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t c"]:
    """Positions of an image as a sequence; no copy where channels are last in memory."""
    return x.flatten(2).transpose(1, 2)


def to_image(tokens: Float[Tensor, "b t c"], like: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h w"]:
    """The inverse of ``to_tokens``, for an image of the same height and width."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def attend(
    q: Float[Tensor, "b t c"], k: Float[Tensor, "b s c"], v: Float[Tensor, "b s c"], heads: int
) -> Float[Tensor, "b t c"]:
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
