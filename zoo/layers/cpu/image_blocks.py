"""Fused image blocks for CPUs: same outputs and gradients as the plain layers, with less memory or arithmetic."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class GroupNormSiLUFunction(torch.autograd.Function):
    """GroupNorm followed by SiLU; the normalized input is recomputed in the backward pass instead of stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels = x.shape[:2]
        ctx.sizes = (batch, channels, x.shape[2:].numel(), groups)
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *ctx.sizes, eps)  # type: ignore[call-arg]
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        group_size = len(weight) // mean.shape[1]
        # GroupNorm as one affine map per sample and channel, x * scale + shift.
        scale = rstd.repeat_interleave(group_size, 1) * weight  # (b, c)
        shift = bias - mean.repeat_interleave(group_size, 1) * scale  # (b, c)
        # Under autocast x is bf16, which torch's kernel is slow with in channels-last memory.
        x_full = x.to(weight.dtype)
        y = torch.addcmul(shift[..., None, None], x_full, scale[..., None, None])
        torch.ops.aten.silu_backward.grad_input(grad.to(y.dtype), y, grad_input=y)
        # y holds the gradient of the normalized input from here on.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
            y,
            x_full,
            mean,
            rstd,
            weight,
            *ctx.sizes,
            [True, True, True],
        )
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None


def upsample_conv(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 3 3"],
    bias: Float[Tensor, " d"] | None,
) -> Float[Tensor, "b d 2*h 2*w"]:
    """Nearest-neighbor upsampling by 2 and a 3x3 convolution with padding 1, as one transposed convolution.

    Where the kernel covers a source pixel twice, its weights are added instead of their products: 4 of 9
    multiplications remain.
    """
    kernel = weight.flip(2, 3).transpose(0, 1)  # (c, d, 3, 3)
    kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))  # (c, d, 4, 3)
    kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))  # (c, d, 4, 4)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
