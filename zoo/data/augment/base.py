"""The base of augmentations: random numbers for each image of a batch, on the device where the batch is."""

from __future__ import annotations

import inspect

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn


class Augmentation(nn.Module):
    """Augment a batch of images, each by random numbers of its own: bytes or floats in [0, 1], the same type comes out.

    ``forward`` samples the parameters and calls a function of the same file that applies them. A class with ``moves``
    only moves pixels, so that bytes may stay bytes; for the others ``Chain`` makes them floats first.
    """

    moves = False

    def forward(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c i j"]:
        raise ValueError(f"{type(self).__name__} does nothing to a batch: implement forward(x)")

    def extra_repr(self) -> str:
        parts = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if value != parameter.default:
                parts.append(f"{name}={value}")
        return ", ".join(parts)


class LabelMixing(Augmentation):
    """The base of augmentations that mix images with others of the batch, and their labels accordingly."""

    def forward(  # type: ignore[override]
        self, x: Shaped[Tensor, "b c h w"], y: Float[Tensor, "b k"]
    ) -> tuple[Shaped[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        raise ValueError(f"{type(self).__name__} does nothing to a batch: implement forward(x, y)")


# Random numbers -------------------------------------------------------------------------------------------------------


def uniform(x: Tensor, low: float, high: float, *shape: int) -> Float[Tensor, "b ..."]:
    """Return a uniform random number for each image of ``x``, or ``shape`` of them."""
    return torch.empty(len(x), *shape, device=x.device).uniform_(low, high)


def chosen(x: Tensor, p: float) -> Bool[Tensor, " b"]:
    """Return for each image whether it is augmented, with probability ``p``."""
    return torch.rand(len(x), device=x.device) < p


def place(x: Tensor, room: int | Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Return a uniform random integer from 0 to ``room`` for each image."""
    positions = (torch.rand(len(x), device=x.device) * (room + 1)).long()
    return torch.clamp(positions, max=room)  # the product may have been rounded up


# Shapes, devices and pixel values -------------------------------------------------------------------------------------


def column(values: Shaped[Tensor, " b"]) -> Shaped[Tensor, "b 1 1 1"]:
    """Return one value an image in the shape that broadcasts over its pixels."""
    return values.view(-1, 1, 1, 1)


def to_device(values: Tensor, x: Tensor) -> Tensor:
    """Copy a few numbers to the device of ``x``, without waiting for what is still computed there."""
    if x.is_cuda:
        return values.pin_memory().to(x.device, non_blocking=True)
    return values.to(x.device)


def as_float(x: Tensor) -> Tensor:
    """Return bytes as floats in [0, 1], and floats as they are."""
    if x.is_floating_point():
        return x
    return x.float().mul_(1 / 255)


def as_bytes(x: Tensor) -> Tensor:
    """Return floats in [0, 1] as bytes, rounded, and bytes as they are."""
    if not x.is_floating_point():
        return x
    return to_bytes(x.mul(255))


def to_bytes(x: Tensor) -> Tensor:
    """Return floats from 0 to 255 as bytes, rounded and clipped; the floats are overwritten."""
    return x.round_().clamp_(0, 255).byte()


def brightest(x: Tensor) -> float:
    """Return the value of white: 1 for floats, 255 for bytes."""
    return 1.0 if x.is_floating_point() else 255.0


def level(value: float, x: Tensor) -> float:
    """Return a grey value from 0 to 255 in the unit of ``x``."""
    return value / 255 if x.is_floating_point() else value


# Arguments ------------------------------------------------------------------------------------------------------------


def is_probability(name: str, p: float) -> float:
    """Return ``p``; raise ValueError where it is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p is {p}, but a probability lies in [0, 1]")
    return p


def pair(name: str, value: float | list[float], centre: float, low: float, high: float) -> tuple[float, float]:
    """Return the range that an argument stands for.

    Args:
        name: of the argument, for the error message.
        value: ``v`` stands for ``[centre - v, centre + v]``, a list of two for itself.
        centre: of the range where only one number is given.
        low: least value allowed.
        high: greatest value allowed.
    """
    if isinstance(value, (int, float)):
        first = max(low, centre - value)
        last = centre + value
        is_valid = value >= 0
    elif len(value) == 2:
        first, last = value
        is_valid = True
    else:
        raise ValueError(f"{name} is {value}, but must be one number or two")
    if not is_valid or not low <= first <= last <= high:
        raise ValueError(f"{name} is {value}, but must be a number from 0 up or [low, high] within [{low:g}, {high:g}]")
    return float(first), float(last)
