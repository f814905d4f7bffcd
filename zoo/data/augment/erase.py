"""Rectangles taken out of images, for whole batches."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from zoo.data.augment.base import Augmentation, chosen, column, is_probability, level, place, uniform


class RandomErasing(Augmentation):
    """Paint over a rectangle of random place, area and shape (Zhong et al. 2017, https://arxiv.org/abs/1708.04896).

    Args:
        p: probability of each image.
        scale: least and greatest share of the image's area.
        ratio: least and greatest height divided by width.
        value: grey value, 0 to 255; ``random`` is noise, every pixel of its own, as in the paper.
    """

    moves = True

    def __init__(
        self,
        p: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float | Literal["random"] = 0.0,
    ) -> None:
        super().__init__()
        self.p = is_probability("RandomErasing", p)
        if not 0 <= scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            allowed = "scale is [low, high] in [0, 1], ratio [low, high] above 0"
            raise ValueError(f"RandomErasing: {allowed}, got scale={scale}, ratio={ratio}")
        self.scale, self.ratio = scale, ratio
        self.value: float | Literal["random"] = value

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        height, width = self.draw(x)
        top, left = place(x, x.shape[2] - height), place(x, x.shape[3] - width)
        return erase(x, boxes(x, top, left, height, width), self.value)

    def draw(self, x: Tensor) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """Heights and widths: the first of ten that is smaller than the image; 0 for images left as they are."""
        h, w = x.shape[2:]
        area = h * w * uniform(x, *self.scale, 10)
        ratio = uniform(x, math.log(self.ratio[0]), math.log(self.ratio[1]), 10).exp_()
        heights, widths = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (heights < h) & (widths < w)
        first = fits.long().argmax(1, keepdim=True)
        some = fits.any(1) & chosen(x, self.p)
        return heights.gather(1, first)[:, 0] * some, widths.gather(1, first)[:, 0] * some


class Cutout(Augmentation):
    """Paint over a square whose centre may lie anywhere, so that it may reach beyond the border (DeVries and Taylor
    2017, https://arxiv.org/abs/1708.04552).

    Args:
        size: side of the square, in pixels.
        p: probability of each image.
        value: grey value, 0 to 255.
    """

    moves = True

    def __init__(self, size: int, p: float = 1.0, value: float = 0.0) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"Cutout: size starts at 1, got {size}")
        self.size, self.p, self.value = size, is_probability("Cutout", p), value

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        top, left = (place(x, side - 1) - self.size // 2 for side in x.shape[2:])
        side = self.size * chosen(x, self.p)
        return erase(x, boxes(x, top, left, side, side), self.value)


def boxes(
    x: Shaped[Tensor, "b c h w"],
    top: Int[Tensor, " b"],
    left: Int[Tensor, " b"],
    height: Int[Tensor, " b"],
    width: Int[Tensor, " b"],
) -> Bool[Tensor, "b 1 h w"]:
    """Which pixels lie in a rectangle of each image.

    Args:
        x: images.
        top: first row of each rectangle; it may begin outside.
        left: first column of each rectangle.
        height: rows of each rectangle.
        width: columns of each rectangle.
    """
    rows = torch.arange(x.shape[2], device=x.device).view(1, 1, -1, 1) - column(top)
    columns = torch.arange(x.shape[3], device=x.device) - column(left)
    return (rows >= 0) & (rows < column(height)) & (columns >= 0) & (columns < column(width))


def erase(
    x: Shaped[Tensor, "b c h w"], where: Bool[Tensor, "b 1 h w"], value: float | Literal["random"] = 0.0
) -> Shaped[Tensor, "b c h w"]:
    """Paint over pixels.

    Args:
        x: images.
        where: the pixels to be painted.
        value: grey value, 0 to 255, or ``random`` for noise.
    """
    if value != "random":
        return x.masked_fill(where, level(value, x) if x.is_floating_point() else round(value))
    noise = torch.rand(x.shape, device=x.device)
    return torch.where(where, noise if x.is_floating_point() else noise.mul_(256).byte(), x)
