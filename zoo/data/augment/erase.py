"""Rectangles erased from images, for whole batches."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from zoo.data.augment.base import Augmentation, chosen, column, is_probability, level, place, uniform

TRIES = 10  # sizes that are sampled until one fits into the image


class RandomErasing(Augmentation):
    """Erase a rectangle of random position, area and aspect ratio (Zhong et al. 2017, https://arxiv.org/abs/1708.04896).

    Args:
        p: probability for each image.
        scale: least and greatest share of the image's area.
        ratio: least and greatest height divided by width.
        value: grey value, 0 to 255; ``random`` is noise, different in each pixel, as in the paper.
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
        if not 0 <= scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            allowed = "scale is [low, high] in [0, 1], ratio [low, high] above 0"
            raise ValueError(f"RandomErasing: {allowed}, got scale={scale}, ratio={ratio}")
        self.p = is_probability("RandomErasing", p)
        self.scale = scale
        self.ratio = ratio
        self.value: float | Literal["random"] = value

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        height, width = self.draw(x)
        top = place(x, x.shape[2] - height)
        left = place(x, x.shape[3] - width)
        return erase(x, boxes(x, top, left, height, width), self.value)

    def draw(self, x: Tensor) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """Return heights and widths: the first sampled size smaller than the image; 0 for images left as they are."""
        h, w = x.shape[2:]
        area = h * w * uniform(x, *self.scale, TRIES)  # (b, tries)
        ratio = uniform(x, math.log(self.ratio[0]), math.log(self.ratio[1]), TRIES).exp_()
        heights = (area * ratio).sqrt().round().long()
        widths = (area / ratio).sqrt().round().long()
        fits = (heights < h) & (widths < w)
        first = fits.long().argmax(1, keepdim=True)  # (b, 1)
        is_erased = fits.any(1) & chosen(x, self.p)
        height = heights.gather(1, first)[:, 0]
        width = widths.gather(1, first)[:, 0]
        return height * is_erased, width * is_erased


class Cutout(Augmentation):
    """Erase a square whose centre may lie anywhere, so that it may reach beyond the border (DeVries and Taylor
    2017, https://arxiv.org/abs/1708.04552).

    Args:
        size: height and width of the square, in pixels.
        p: probability for each image.
        value: grey value, 0 to 255.
    """

    moves = True

    def __init__(self, size: int, p: float = 1.0, value: float = 0.0) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"Cutout: size starts at 1, got {size}")
        self.size = size
        self.p = is_probability("Cutout", p)
        self.value = value

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        height, width = x.shape[2:]
        top = place(x, height - 1) - self.size // 2
        left = place(x, width - 1) - self.size // 2
        side = self.size * chosen(x, self.p)
        return erase(x, boxes(x, top, left, side, side), self.value)


def boxes(
    x: Shaped[Tensor, "b c h w"],
    top: Int[Tensor, " b"],
    left: Int[Tensor, " b"],
    height: Int[Tensor, " b"],
    width: Int[Tensor, " b"],
) -> Bool[Tensor, "b 1 h w"]:
    """Return which pixels lie in a rectangle of each image.

    Args:
        x: images.
        top: first row of each rectangle; it may lie outside.
        left: first column of each rectangle.
        height: rows of each rectangle.
        width: columns of each rectangle.
    """
    rows = torch.arange(x.shape[2], device=x.device).view(1, 1, -1, 1) - column(top)  # (b, 1, h, 1)
    columns = torch.arange(x.shape[3], device=x.device) - column(left)  # (b, 1, 1, w)
    in_rows = (rows >= 0) & (rows < column(height))
    in_columns = (columns >= 0) & (columns < column(width))
    return in_rows & in_columns


def erase(
    x: Shaped[Tensor, "b c h w"],
    where: Bool[Tensor, "b 1 h w"],
    value: float | Literal["random"] = 0.0,
) -> Shaped[Tensor, "b c h w"]:
    """Replace pixels by a grey value or noise.

    Args:
        x: images.
        where: the pixels to replace.
        value: grey value, 0 to 255, or ``random`` for noise.
    """
    if value == "random":
        noise = torch.rand(x.shape, device=x.device)
        if not x.is_floating_point():
            noise = noise.mul_(256).byte()
        return torch.where(where, noise, x)
    if x.is_floating_point():
        return x.masked_fill(where, level(value, x))
    return x.masked_fill(where, round(value))
