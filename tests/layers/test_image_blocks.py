"""Blocks of image networks: what is computed in one gives the same outputs and gradients as in two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.image_blocks import Downsample, GroupNormSiLU, ResBlock, Stage, Upsample

LAYOUTS = [torch.channels_last, torch.contiguous_format]


def gradients(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The output, and the gradients of a loss in the input and all parameters."""
    x = x.detach().requires_grad_()
    out = run(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 4, 12])
def test_normalisation_and_silu_in_one(layout, groups):
    norm = GroupNormSiLU(groups, 12).double()
    for p in norm.parameters():
        nn.init.normal_(p)
    x = (torch.randn(3, 12, 5, 4, dtype=torch.float64) * 3 + 1).to(memory_format=layout)
    two = gradients(norm, lambda x: F.silu(F.group_norm(x, groups, norm.weight, norm.bias, norm.eps)), x)
    one = gradients(norm, norm, x)
    for mine, other in zip(one, two, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)
    assert one[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["mixed", "half"])
def test_normalisation_and_silu_in_half_precision(layout, weights):
    norm = GroupNormSiLU(4, 16)
    for p in norm.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 16, 8, 8).to(torch.bfloat16, memory_format=layout)
    exact = gradients(norm.float(), norm, x.float())
    for mine, other in zip(gradients(norm.to(weights), norm, x), exact, strict=True):
        assert (mine.float() - other).abs().max() < 0.03 * other.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_doubling_and_convolution_in_one(layout):
    up = Upsample(6).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64).to(memory_format=layout)
    two = gradients(up, lambda x: up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")), x)
    for mine, other in zip(gradients(up, up, x), two, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)


def test_a_stage_ends_at_its_next_resolution():
    x = torch.randn(1, 8, 4, 4)
    for resize, side in (({}, 4), ({"downsamplers": Downsample(8)}, 2), ({"upsamplers": Upsample(8)}, 8)):
        assert Stage([ResBlock(8, 8, groups=2)], [], **resize)(x).shape == (1, 8, side, side)


def test_parts_of_other_tensors_are_normalised_as_any():
    norm, whole = GroupNormSiLU(2, 4).double(), torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for layout in LAYOUTS:
        part = whole.to(memory_format=layout)[:, 2:6, 1:5]
        for mine, other in zip(gradients(norm, norm, part), gradients(norm, norm, part.contiguous()), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)
