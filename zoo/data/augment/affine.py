"""Rotations and other affine transforms, named as in torchvision.transforms.v2, for whole batches."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from zoo.data.augment.base import Augmentation, level, pair, uniform

Interpolation = Literal["nearest", "bilinear"]


class RandomAffine(Augmentation):
    """Rotate, translate, scale and shear each image about its centre; it keeps its size.

    Args:
        degrees: the angle lies in ``[-degrees, degrees]``, or in a list of two.
        translate: greatest translation to the right and down, as fractions of width and height; null is none.
        scale: least and greatest factor; null is none.
        shear: angle of the horizontal shear, as ``degrees``, or a list of four with the vertical one; null is none.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of pixels from outside the image.
    """

    def __init__(
        self,
        degrees: float | list[float],
        translate: tuple[float, float] | None = None,
        scale: tuple[float, float] | None = None,
        shear: float | list[float] | None = None,
        interpolation: Interpolation = "nearest",
        fill: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.degrees = pair(f"{name}: degrees", degrees, 0.0, -math.inf, math.inf)
        if translate is not None and not all(0 <= t <= 1 for t in translate):
            raise ValueError(f"{name}: translate is {translate}, but must be two shares in [0, 1]")
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError(f"{name}: scale is {scale}, but must be [low, high] above 0")
        shear_x = shear
        shear_y = None
        if isinstance(shear, list) and len(shear) == 4:
            shear_x = shear[:2]
            shear_y = shear[2:]
        self.shears = [self._shear_range(angle) for angle in (shear_x, shear_y)]
        self.translate = translate
        self.scale = scale
        self.fill = fill
        self.interpolation: Interpolation = interpolation
        self.moves = interpolation == "nearest"

    def _shear_range(self, angle: float | list[float] | None) -> tuple[float, float] | None:
        if angle is None:
            return None
        return pair(f"{type(self).__name__}: shear", angle, 0.0, -math.inf, math.inf)

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        angle = uniform(x, *self.degrees)
        zero = torch.zeros(len(x), device=x.device)
        right = zero
        down = zero
        if self.translate is not None:
            height, width = x.shape[2:]
            most_right = self.translate[0] * width
            most_down = self.translate[1] * height
            right = uniform(x, -most_right, most_right).round_()
            down = uniform(x, -most_down, most_down).round_()
        scale = zero + 1
        if self.scale is not None:
            scale = uniform(x, *self.scale)
        shear_x, shear_y = (zero if bounds is None else uniform(x, *bounds) for bounds in self.shears)
        maps = inverse(angle, right, down, scale, shear_x, shear_y)
        return affine(x, maps, self.interpolation, self.fill)


class RandomRotation(RandomAffine):
    """Rotate each image about its centre, counter-clockwise; it keeps its size.

    Args:
        degrees: the angle lies in ``[-degrees, degrees]``, or in a list of two.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of pixels from outside the image.
    """

    def __init__(
        self,
        degrees: float | list[float],
        interpolation: Interpolation = "nearest",
        fill: float = 0.0,
    ) -> None:
        super().__init__(degrees, interpolation=interpolation, fill=fill)

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        maps = rotation(uniform(x, *self.degrees))
        return affine(x, maps, self.interpolation, self.fill)


def rotation(degrees: Float[Tensor, " b"]) -> Float[Tensor, "b 2 3"]:
    """Return the matrices from output to input pixels that rotate counter-clockwise about the image's centre."""
    zero = torch.zeros_like(degrees)
    return inverse(-degrees, zero, zero, zero + 1, zero, zero)


def inverse(
    angle: Float[Tensor, " b"],
    right: Float[Tensor, " b"],
    down: Float[Tensor, " b"],
    scale: Float[Tensor, " b"],
    shear_x: Float[Tensor, " b"],
    shear_y: Float[Tensor, " b"],
) -> Float[Tensor, "b 2 3"]:
    """Return the matrices from output to input pixels, both from the image's centre, of affine transforms.

    Args:
        angle: clockwise, in degrees.
        right: translation in pixels.
        down: translation in pixels.
        scale: factor.
        shear_x: angle in degrees.
        shear_y: angle in degrees.
    """
    turn = angle.deg2rad()
    sx = shear_x.deg2rad()
    sy = shear_y.deg2rad()
    # Rotation by ``turn`` after the shears: [[a, b], [c, d]]. Its determinant is 1, so its inverse needs no division.
    a = (turn - sy).cos() / sy.cos()
    c = (turn - sy).sin() / sy.cos()
    b = -(a * sx.tan() + turn.sin())
    d = turn.cos() - c * sx.tan()
    first_row = torch.stack([d, -b], 1)
    second_row = torch.stack([-c, a], 1)
    matrix = torch.stack([first_row, second_row], 1) / scale.view(-1, 1, 1)  # (b, 2, 2)
    translation = matrix @ torch.stack([right, down], 1).unsqueeze(2)  # (b, 2, 1)
    return torch.cat([matrix, -translation], 2)


def affine(
    x: Shaped[Tensor, "b c h w"],
    maps: Float[Tensor, "b 2 3"],
    interpolation: Interpolation = "nearest",
    fill: float = 0.0,
) -> Shaped[Tensor, "b c h w"]:
    """Apply an affine transform to each image.

    Args:
        x: images.
        maps: matrices from output pixels ``(x, y, 1)`` to input pixels, both from the image's centre.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of pixels from outside the image.
    """
    h, w = x.shape[2:]
    across = torch.arange(w, device=x.device) - (w - 1) / 2  # (w,)
    down = (torch.arange(h, device=x.device) - (h - 1) / 2).unsqueeze(1)  # (h, 1)
    grid = x.new_empty((len(x), h, w, 2), dtype=torch.float32)
    for i, side in enumerate((w, h)):
        m = maps[:, i].view(-1, 3, 1, 1) * (2 / side)  # (b, 3, 1, 1), as grid_sample counts from -1 to 1
        torch.add(m[:, 0] * across, m[:, 1] * down + m[:, 2], out=grid[..., i])
    pixels = x.float()
    # grid_sample fills with 0, so another fill value is subtracted before and added after it.
    ground = level(fill, x)
    if ground:
        pixels = pixels - ground
    out = F.grid_sample(pixels, grid, interpolation, "zeros", align_corners=False)
    if ground:
        out += ground
    if x.is_floating_point():
        return out
    return out.round_().byte()
