"""Mean and standard deviation of each channel of a dataset of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.statistics import is_constant

MAX_IMAGES = 20_000  # of a larger dataset so many are read, evenly spaced
CHUNK = 512


def channel_statistics(data: Dataset, max_images: int = MAX_IMAGES) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel over all pixels, with bytes scaled to [0, 1].

    The deviation of a channel that is constant is 1, as it is divided by.

    Args:
        data: its samples begin with an image ``(c, h, w)``.
        max_images: number of images to read, evenly spaced, of a larger dataset.
    """
    n = len(data)  # type: ignore[arg-type]
    indices = torch.arange(n)
    if n > max_images:
        indices = torch.linspace(0, n - 1, max_images).long()
    shift: Tensor | None = None  # the first pixel: squares of what is far from 0 would lose the digits of the variance
    total = torch.zeros(1)
    squares = torch.zeros(1)
    num_pixels = 0
    for part in indices.split(CHUNK):
        x = stack_inputs(data, part)  # (b, c, h, w)
        scale = 1 if x.is_floating_point() else 255
        x = x.double() / scale
        if shift is None:
            shift = x[0, :, 0, 0]
        x = x - shift.view(-1, 1, 1)
        total = total + x.sum((0, 2, 3))  # (c,)
        squares = squares + x.square().sum((0, 2, 3))
        num_pixels += x.numel() // x.shape[1]
    mean = total / num_pixels
    variance = squares / num_pixels - mean.square()
    std = variance.clamp(min=0).sqrt()  # rounding may take it below 0
    if shift is not None:
        mean = mean + shift
    std = torch.where(is_constant(mean, std, num_pixels), 1.0, std)
    return mean.tolist(), std.tolist()


def stack_inputs(data: Dataset, indices: Tensor) -> Tensor:
    """Return the images ``(b, c, h, w)`` of some samples, without those that cannot be read."""
    read_batch = getattr(data, "batch", None)
    if read_batch is None:
        samples: list[Any] = [data[i] for i in indices.tolist()]
        return torch.stack([sample[0] for sample in samples if sample is not None])
    batch = read_batch(indices)
    if isinstance(batch, (tuple, list)):
        return batch[0]
    return batch
