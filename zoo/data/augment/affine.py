"""Rotations and other affine maps, as torchvision.transforms.v2 names them, for whole batches."""

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
    """Rotate, shift, scale and shear each image about its centre; it keeps its size.

    Args:
        degrees: the angle lies in ``[-degrees, degrees]``, or in a list of two.
        translate: greatest shift across and down, as shares of width and height; null is none.
        scale: least and greatest factor; null is none.
        shear: angle of the shear across, as ``degrees``, or a list of four with that downwards; null is none.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of what comes from outside the image.
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
        shears = shear if isinstance(shear, list) and len(shear) == 4 else [shear, None]
        if isinstance(shear, list) and len(shear) == 4:
            shears = [shear[:2], shear[2:]]
        self.shears = [None if s is None else pair(f"{name}: shear", s, 0.0, -math.inf, math.inf) for s in shears]  # type: ignore[arg-type]
        self.translate, self.scale = translate, scale
        self.fill = fill
        self.interpolation: Interpolation = interpolation
        self.moves = interpolation == "nearest"

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        angle, none = uniform(x, *self.degrees), torch.zeros(len(x), device=x.device)
        shift = [none, none]
        if self.translate is not None:
            most = [t * side for t, side in zip(self.translate, (x.shape[3], x.shape[2]), strict=True)]
            shift = [uniform(x, -m, m).round_() for m in most]
        scale = none + 1 if self.scale is None else uniform(x, *self.scale)
        shear = [none if s is None else uniform(x, *s) for s in self.shears]
        maps = inverse(angle, shift[0], shift[1], scale, shear[0], shear[1])
        return affine(x, maps, self.interpolation, self.fill)


class RandomRotation(RandomAffine):
    """Rotate each image about its centre, counter-clockwise; it keeps its size.

    Args:
        degrees: the angle lies in ``[-degrees, degrees]``, or in a list of two.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of what comes from outside the image.
    """

    def __init__(
        self, degrees: float | list[float], interpolation: Interpolation = "nearest", fill: float = 0.0
    ) -> None:
        super().__init__(degrees, interpolation=interpolation, fill=fill)

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        return affine(x, rotation(uniform(x, *self.degrees)), self.interpolation, self.fill)


def rotation(degrees: Float[Tensor, " b"]) -> Float[Tensor, "b 2 3"]:
    """The maps of output pixels to input pixels that rotate counter-clockwise, about the image's centre."""
    none = torch.zeros_like(degrees)
    return inverse(-degrees, none, none, none + 1, none, none)


def inverse(
    angle: Float[Tensor, " b"],
    right: Float[Tensor, " b"],
    down: Float[Tensor, " b"],
    scale: Float[Tensor, " b"],
    shear_x: Float[Tensor, " b"],
    shear_y: Float[Tensor, " b"],
) -> Float[Tensor, "b 2 3"]:
    """The maps of output pixels to input pixels, seen from the image's centre, of affine maps.

    Args:
        angle: clockwise, in degrees.
        right: shift in pixels.
        down: shift in pixels.
        scale: factor.
        shear_x: angle in degrees.
        shear_y: angle in degrees.
    """
    turn, sx, sy = angle.deg2rad(), shear_x.deg2rad(), shear_y.deg2rad()
    # rotation by ``turn`` after the shears; its determinant is 1, so that its inverse needs no division
    a, c = (turn - sy).cos() / sy.cos(), (turn - sy).sin() / sy.cos()
    b, d = -(a * sx.tan() + turn.sin()), turn.cos() - c * sx.tan()
    rows = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1) / scale.view(-1, 1, 1)
    shift = rows @ torch.stack([right, down], 1).unsqueeze(2)
    return torch.cat([rows, -shift], 2)


def affine(
    x: Shaped[Tensor, "b c h w"],
    maps: Float[Tensor, "b 2 3"],
    interpolation: Interpolation = "nearest",
    fill: float = 0.0,
) -> Shaped[Tensor, "b c h w"]:
    """Take each pixel from where its image's map says.

    Args:
        x: images.
        maps: of output pixels ``(x, y, 1)`` to input pixels, both from the image's centre.
        interpolation: ``nearest`` or ``bilinear``.
        fill: grey value, 0 to 255, of what comes from outside the image.
    """
    h, w = x.shape[2:]
    across = torch.arange(w, device=x.device) - (w - 1) / 2
    down = (torch.arange(h, device=x.device) - (h - 1) / 2).unsqueeze(1)
    grid = x.new_empty((len(x), h, w, 2), dtype=torch.float32)
    for i, side in enumerate((w, h)):  # grid_sample counts from -1 to 1
        m = maps[:, i].view(-1, 3, 1, 1) * (2 / side)
        torch.add(m[:, 0] * across, m[:, 1] * down + m[:, 2], out=grid[..., i])
    pixels, ground = x.float(), level(fill, x)
    if ground:
        pixels = pixels - ground
    out = F.grid_sample(pixels, grid, interpolation, "zeros", align_corners=False)
    if ground:
        out += ground
    return out if x.is_floating_point() else out.round_().byte()
