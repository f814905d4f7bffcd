"""Crops and flips, named as in torchvision.transforms.v2, for whole batches."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.data.augment.base import Augmentation, chosen, is_probability, level, place, to_bytes, uniform

TRIES = 10  # sizes that are sampled until one fits into the image
PADDING = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}  # torch's names


class RandomCrop(Augmentation):
    """Pad the images and crop a square from each at a random position.

    Args:
        size: height and width of the square, in pixels.
        padding: pixels added on each of the four sides first.
        fill: grey value of the padding, 0 to 255, with ``constant``.
        padding_mode: ``constant``, ``reflect`` (mirrored at the border), or ``edge`` (the border's pixels repeated).
    """

    moves = True

    def __init__(
        self,
        size: int,
        padding: int = 0,
        fill: float = 0.0,
        padding_mode: Literal["constant", "reflect", "edge"] = "constant",
    ) -> None:
        super().__init__()
        if size < 1 or padding < 0:
            raise ValueError(f"RandomCrop: size starts at 1 and padding at 0, got size={size}, padding={padding}")
        self.size = size
        self.padding = padding
        self.fill = fill
        self.padding_mode = padding_mode

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c s s"]:
        height, width = x.shape[2:]
        if self.padding:
            x = self._pad(x)
        room = [side - self.size for side in x.shape[2:]]
        if min(room) < 0:
            sides = f"{height}x{width}"
            raise ValueError(f"RandomCrop: images of {sides} with padding={self.padding} are below size={self.size}")
        top = place(x, room[0])
        left = place(x, room[1])
        return crop(x, top, left, self.size)

    def _pad(self, x: Tensor) -> Tensor:
        around = [self.padding] * 4
        if self.padding_mode == "constant":
            return F.pad(x, around, "constant", level(self.fill, x))
        if self.padding_mode == "reflect" and self.padding >= min(x.shape[2:]):
            sides = f"padding={self.padding} by reflect needs images larger than that"
            raise ValueError(f"RandomCrop: {sides}, got {x.shape[2:]}")
        padded = F.pad(x.float(), around, PADDING[self.padding_mode])  # torch mirrors no bytes
        if x.is_floating_point():
            return padded
        return padded.byte()


class RandomHorizontalFlip(Augmentation):
    """Mirror images left to right.

    Args:
        p: probability for each image.
    """

    moves = True

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = is_probability("RandomHorizontalFlip", p)

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        return flip(x, chosen(x, self.p), -1)


class RandomVerticalFlip(Augmentation):
    """Mirror images top to bottom.

    Args:
        p: probability for each image.
    """

    moves = True

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = is_probability("RandomVerticalFlip", p)

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        return flip(x, chosen(x, self.p), -2)


class AlternatingFlip(Augmentation):
    """Mirror half of the images left to right in one epoch and the other half in the next (Jordan 2024,
    https://arxiv.org/abs/2404.00498), so that two epochs show all of them both ways.

    Which half an image is in follows from its own pixels, so this must come before everything that changes them.
    """

    moves = True
    epoch = 0  # set by ``Chain``

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        pixels = x
        if x.is_floating_point():
            pixels = x.mul(255).round().long()
        hashes = pixels.flatten(1).sum(1)  # (b,)
        return flip(x, (hashes + self.epoch) % 2 == 1, -1)


class RandomResizedCrop(Augmentation):
    """Crop a rectangle of random area and aspect ratio from each image and resize it (Szegedy et al. 2015,
    https://arxiv.org/abs/1409.4842).

    Args:
        size: height and width of the result, in pixels.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width divided by height.
        antialias: average over all pixels when shrinking, as torchvision does by default.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        antialias: bool = True,
    ) -> None:
        super().__init__()
        if size < 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            allowed = "size starts at 1, scale is [low, high] in (0, 1], ratio [low, high] above 0"
            raise ValueError(f"RandomResizedCrop: {allowed}, got size={size}, scale={scale}, ratio={ratio}")
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.antialias = antialias

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c s s"]:
        height, width = self.draw(x)
        top = place(x, x.shape[2] - height)
        left = place(x, x.shape[3] - width)
        return resized_crop(x, top, left, height, width, self.size, self.antialias)

    def draw(self, x: Tensor) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """Return heights and widths: the first sampled size that fits, or the largest of an allowed aspect ratio."""
        h, w = x.shape[2:]
        area = h * w * uniform(x, *self.scale, TRIES)  # (b, tries)
        ratio = uniform(x, math.log(self.ratio[0]), math.log(self.ratio[1]), TRIES).exp_()
        widths = (area * ratio).sqrt().round().long()
        heights = (area / ratio).sqrt().round().long()
        fits = (widths > 0) & (widths <= w) & (heights > 0) & (heights <= h)
        fallback_height = h
        fallback_width = w
        if w / h < self.ratio[0]:
            fallback_height = min(h, round(w / self.ratio[0]))
        if w / h > self.ratio[1]:
            fallback_width = min(w, round(h * self.ratio[1]))
        first = fits.long().argmax(1, keepdim=True)  # (b, 1)
        any_fits = fits.any(1)
        height = torch.where(any_fits, heights.gather(1, first)[:, 0], fallback_height)
        width = torch.where(any_fits, widths.gather(1, first)[:, 0], fallback_width)
        return height, width


def crop(
    x: Shaped[Tensor, "b c h w"],
    top: Int[Tensor, " b"],
    left: Int[Tensor, " b"],
    size: int,
) -> Shaped[Tensor, "b c s s"]:
    """Crop a square from each image.

    Args:
        x: images.
        top: first row of each square.
        left: first column of each square.
        size: height and width of the squares, in pixels.
    """
    b, c, h, w = x.shape
    # All rows of all images lie one behind the other in memory: a row of a square is a window on that line.
    rows = torch.arange(b * c, device=x.device).view(b, c, 1) * h + torch.arange(size, device=x.device)  # (b, c, s)
    starts = (rows + top.view(b, 1, 1)) * w + left.view(b, 1, 1)
    windows = x.contiguous().view(-1).unfold(0, size, 1)
    return windows.index_select(0, starts.flatten()).view(b, c, size, size)


def flip(x: Shaped[Tensor, "b c h w"], which: Bool[Tensor, " b"], dim: int) -> Shaped[Tensor, "b c h w"]:
    """Mirror some of the images along a dimension."""
    both = torch.cat([x, x.flip(dim)])  # whole images are picked five times faster than pixels by torch.where
    rows = torch.arange(len(x), device=x.device) + which * len(x)
    return both.index_select(0, rows)


def resized_crop(
    x: Shaped[Tensor, "b c h w"],
    top: Int[Tensor, " b"],
    left: Int[Tensor, " b"],
    height: Int[Tensor, " b"],
    width: Int[Tensor, " b"],
    size: int,
    antialias: bool = True,
) -> Shaped[Tensor, "b c s s"]:
    """Resize a rectangle of each image to a square, bilinearly, by two matrix products.

    Args:
        x: images.
        top: first row of each rectangle.
        left: first column of each rectangle.
        height: rows of each rectangle.
        width: columns of each rectangle.
        size: height and width of the result, in pixels.
        antialias: widen the filter when shrinking.
    """
    rows = _resampling_weights(top, height, x.shape[2], size, antialias)  # (b, s, h)
    columns = _resampling_weights(left, width, x.shape[3], size, antialias)  # (b, s, w)
    out = rows.unsqueeze(1) @ x.float() @ columns.mT.unsqueeze(1)  # (b, c, s, s)
    if x.is_floating_point():
        return out
    return to_bytes(out)


def _resampling_weights(
    start: Int[Tensor, " b"],
    length: Int[Tensor, " b"],
    n: int,
    size: int,
    antialias: bool,
) -> Float[Tensor, "b s n"]:
    """Return the weights of ``n`` pixels in each of ``size`` new ones, which cover ``length`` pixels from ``start``."""
    start = start.view(-1, 1, 1)
    length = length.view(-1, 1, 1)
    scale = length / size
    centres = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * scale  # (b, s, 1)
    pixels = torch.arange(n, device=start.device).view(1, 1, -1) - start  # (b, 1, n)
    reach = scale.clamp(min=1) if antialias else 1.0
    weights = (1 - (pixels + 0.5 - centres).abs() / reach).clamp_(min=0)  # a triangle
    weights = weights * ((pixels >= 0) & (pixels < length))
    return weights / weights.sum(2, keepdim=True)
