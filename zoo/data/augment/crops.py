"""Crops and flips, as torchvision.transforms.v2 names them, for whole batches."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.data.augment.base import Augmentation, chosen, is_probability, level, place, uniform

PADDING = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


class RandomCrop(Augmentation):
    """Pad the images and cut out a square, each at a place of its own.

    Args:
        size: side of the square, in pixels.
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
        self.size, self.padding, self.fill, self.padding_mode = size, padding, fill, padding_mode

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c s s"]:
        if self.padding:
            around = [self.padding] * 4
            mode, fill = PADDING[self.padding_mode], level(self.fill, x)
            x = F.pad(x, around, mode, fill) if mode == "constant" else _pad_like(x, around, mode)
        room = [side - self.size for side in x.shape[2:]]
        if min(room) < 0:
            sides = f"{x.shape[2] - 2 * self.padding}x{x.shape[3] - 2 * self.padding}"
            raise ValueError(f"RandomCrop: images of {sides} with padding={self.padding} are below size={self.size}")
        return crop(x, place(x, room[0]), place(x, room[1]), self.size)


class RandomHorizontalFlip(Augmentation):
    """Mirror images left to right.

    Args:
        p: probability of each image to be mirrored.
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
        p: probability of each image to be mirrored.
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

    Which half an image is in follows from its own pixels, so this must stand before all that changes them.
    """

    moves = True
    epoch = 0  # set by ``Chain``

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
        whole = x.mul(255).round().long() if x.is_floating_point() else x
        return flip(x, (whole.flatten(1).sum(1) + self.epoch) % 2 == 1, -1)


class RandomResizedCrop(Augmentation):
    """Cut a rectangle of random area and shape out of each image and resize it (Szegedy et al. 2015,
    https://arxiv.org/abs/1409.4842).

    Args:
        size: side of the result, in pixels.
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
        self.size, self.scale, self.ratio, self.antialias = size, scale, ratio, antialias

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c s s"]:
        height, width = self.draw(x)
        top, left = place(x, x.shape[2] - height), place(x, x.shape[3] - width)
        return resized_crop(x, top, left, height, width, self.size, self.antialias)

    def draw(self, x: Tensor) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """Heights and widths: the first of ten that fits into the image, or the largest of an allowed shape."""
        h, w = x.shape[2:]
        area = h * w * uniform(x, *self.scale, 10)
        ratio = uniform(x, math.log(self.ratio[0]), math.log(self.ratio[1]), 10).exp_()
        widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (widths > 0) & (widths <= w) & (heights > 0) & (heights <= h)
        first = fits.long().argmax(1, keepdim=True)
        tall = min(h, round(w / self.ratio[0])) if w / h < self.ratio[0] else h
        wide = min(w, round(h * self.ratio[1])) if w / h > self.ratio[1] else w
        some = fits.any(1)
        return (
            torch.where(some, heights.gather(1, first)[:, 0], tall),
            torch.where(some, widths.gather(1, first)[:, 0], wide),
        )


def crop(
    x: Shaped[Tensor, "b c h w"], top: Int[Tensor, " b"], left: Int[Tensor, " b"], size: int
) -> Shaped[Tensor, "b c s s"]:
    """Cut a square out of each image.

    Args:
        x: images.
        top: first row of each square.
        left: first column of each square.
        size: side of the squares, in pixels.
    """
    b, c, h, w = x.shape
    # All rows of all images lie one behind the other in memory: a row of a square is a window on that line.
    rows = torch.arange(b * c, device=x.device).view(b, c, 1) * h + torch.arange(size, device=x.device)
    starts = (rows + top.view(b, 1, 1)) * w + left.view(b, 1, 1)
    windows = x.contiguous().view(-1).unfold(0, size, 1)
    return windows.index_select(0, starts.flatten()).view(b, c, size, size)


def flip(x: Shaped[Tensor, "b c h w"], which: Bool[Tensor, " b"], dim: int) -> Shaped[Tensor, "b c h w"]:
    """Mirror the images that ``which`` names along a dimension."""
    both = torch.cat([x, x.flip(dim)])  # whole images are picked five times faster than pixels by torch.where
    return both.index_select(0, torch.arange(len(x), device=x.device) + which * len(x))


def resized_crop(
    x: Shaped[Tensor, "b c h w"],
    top: Int[Tensor, " b"],
    left: Int[Tensor, " b"],
    height: Int[Tensor, " b"],
    width: Int[Tensor, " b"],
    size: int,
    antialias: bool = True,
) -> Float[Tensor, "b c s s"]:
    """Resize a rectangle of each image to a square, bilinearly, by two matrix products.

    Args:
        x: images.
        top: first row of each rectangle.
        left: first column of each rectangle.
        height: rows of each rectangle.
        width: columns of each rectangle.
        size: side of the result, in pixels.
        antialias: widen the filter when shrinking.
    """
    rows = _resampling(top, height, x.shape[2], size, antialias)
    columns = _resampling(left, width, x.shape[3], size, antialias)
    out = rows.unsqueeze(1) @ x.float() @ columns.mT.unsqueeze(1)
    return out if x.is_floating_point() else out.round_().clamp_(0, 255).byte()


def _resampling(
    start: Int[Tensor, " b"], length: Int[Tensor, " b"], n: int, size: int, antialias: bool
) -> Float[Tensor, "b s n"]:
    """The weights with which ``n`` pixels make up ``size`` ones, of those from ``start`` on."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / size
    centres = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * scale
    pixels = torch.arange(n, device=start.device).view(1, 1, -1) - start
    reach = scale.clamp(min=1) if antialias else 1.0
    weights = (1 - (pixels + 0.5 - centres).abs() / reach).clamp_(min=0)
    weights = weights * ((pixels >= 0) & (pixels < length))
    return weights / weights.sum(2, keepdim=True)


def _pad_like(x: Tensor, around: list[int], mode: str) -> Tensor:
    if mode == "reflect" and around[0] >= min(x.shape[2:]):
        raise ValueError(f"RandomCrop: padding={around[0]} by reflect needs images larger than that, got {x.shape[2:]}")
    padded = F.pad(x.float(), around, mode)  # torch mirrors no bytes
    return padded if x.is_floating_point() else padded.byte()
