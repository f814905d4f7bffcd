"""What all augmentations share: draws for each image of a batch, on the device where the batch is."""

from __future__ import annotations

import inspect

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn


class Augmentation(nn.Module):
    """Change a batch of images, each by a draw of its own: bytes or floats in [0, 1] go in, the same kind comes out.

    ``forward`` draws and calls a function of the same file that does the work at given parameters. A class with
    ``moves`` only moves pixels, so that bytes may stay bytes; for the others ``Chain`` makes them floats first.
    """

    moves = False

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c i j"]:
        raise ValueError(f"{type(self).__name__} does not say what it does to a batch: write forward(x)")

    def extra_repr(self) -> str:
        arguments = inspect.signature(type(self)).parameters.items()
        given = {k: getattr(self, k) for k, p in arguments if getattr(self, k, p.default) != p.default}
        return ", ".join(f"{k}={v}" for k, v in given.items())


class LabelMixing(Augmentation):
    """An augmentation that mixes images with others of the batch, and their labels with them."""

    def forward(  # type: ignore[override]
        self, x: Shaped[Tensor, "b c h w"], y: Float[Tensor, "b k"]
    ) -> tuple[Shaped[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        raise ValueError(f"{type(self).__name__} does not say what it does to a batch: write forward(x, y)")


def uniform(x: Tensor, low: float, high: float, *shape: int) -> Float[Tensor, "b ..."]:
    """Draw a number for each image of ``x``, or ``shape`` numbers, evenly between two bounds."""
    return torch.empty(len(x), *shape, device=x.device).uniform_(low, high)


def chosen(x: Tensor, p: float) -> Bool[Tensor, " b"]:
    """Draw for each image whether it is meant, with probability ``p``."""
    return torch.rand(len(x), device=x.device) < p


def place(x: Tensor, room: int | Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Draw a whole number from 0 to ``room`` for each image, every one as likely."""
    drawn = (torch.rand(len(x), device=x.device) * (room + 1)).long()
    return torch.clamp(drawn, max=room)  # the product may have been rounded up


def column(values: Shaped[Tensor, " b"]) -> Shaped[Tensor, "b 1 1 1"]:
    """Set one value an image so that it meets all the image's pixels."""
    return values.view(-1, 1, 1, 1)


def to_device(values: Tensor, x: Tensor) -> Tensor:
    """Copy small numbers to where the images are, without waiting for what is still computed there."""
    return values.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else values.to(x.device)


def as_float(x: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]; floats as they are."""
    return x if x.is_floating_point() else x.float().mul_(1 / 255)


def as_bytes(x: Tensor) -> Tensor:
    """Floats in [0, 1] as bytes, rounded; bytes as they are."""
    return x.mul(255).round_().clamp_(0, 255).byte() if x.is_floating_point() else x


def brightest(x: Tensor) -> float:
    """The value of white: 1 for floats, 255 for bytes."""
    return 1.0 if x.is_floating_point() else 255.0


def level(value: float, x: Tensor) -> float:
    """A grey value given as 0 to 255, in the unit of ``x``."""
    return value / 255 if x.is_floating_point() else value


def is_probability(name: str, p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p is {p}, but a probability lies in [0, 1]")
    return p


def pair(name: str, value: float | list[float], centre: float, low: float, high: float) -> tuple[float, float]:
    """Read ``v`` as ``[centre - v, centre + v]``, or a list of two as it is, within bounds."""
    first, last = (max(low, centre - value), centre + value) if isinstance(value, (int, float)) else _two(name, value)
    if (isinstance(value, (int, float)) and value < 0) or not low <= first <= last <= high:
        raise ValueError(f"{name} is {value}, but must be a number from 0 up or [low, high] within [{low:g}, {high:g}]")
    return float(first), float(last)


def _two(name: str, value: list[float]) -> tuple[float, float]:
    if len(value) != 2:
        raise ValueError(f"{name} is {value}, but must be one number or two")
    return value[0], value[1]
