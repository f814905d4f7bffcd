"""Graphs of image models: bytes in, resized and normalised within the graph as in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.data.augment.base import as_float
from zoo.data.augment.chain import centre, output_size, resize
from zoo.data.augment.colour import Normalize
from zoo.data.images.base import ImageData
from zoo.data.images.new_images import collect_images
from zoo.errors import UserError
from zoo.export.graph import NUM_SAMPLES, Export, Graph, predicted
from zoo.export.heads import Head, Outputs

UNREADABLE = (OSError, ValueError, ImportError)


class ImageGraph(Graph):
    """Repeat grey images, enlarge and crop to the size of training, normalise, and call the network.

    Args:
        head: what the task returns.
        data: of the training.
    """

    def __init__(self, head: Head, data: ImageData) -> None:
        super().__init__(head)
        self.in_channels = data.in_channels
        self.side = data.side
        self.crop = output_size(data.chain.steps)
        self.flat = bool(getattr(data, "flat", False))
        self.steps = len(normalizations(data))
        for i, (mean, std) in enumerate(normalizations(data)):
            self.register_buffer(f"mean_{i}", torch.tensor(mean).view(-1, 1, 1))  # (c, 1, 1)
            self.register_buffer(f"std_{i}", torch.tensor(std).view(-1, 1, 1))

    def forward(self, image: Tensor) -> Outputs:
        x = image
        if self.in_channels == 3 and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)  # (b, 3, h, w)
        if self.side and min(x.shape[2:]) < self.side:
            x = resize(x, self.side)
        if self.crop is not None:
            x = centre(x, self.crop)
        x = as_float(x)
        for i in range(self.steps):
            x = (x - self.get_buffer(f"mean_{i}")) / self.get_buffer(f"std_{i}")
        if self.flat:
            x = x.flatten(1)  # (b, h w)
        return self.head(x)


def normalizations(data: ImageData) -> list[tuple[list[float], list[float]]]:
    """Return mean and standard deviation of each normalisation that an evaluation applies, in order."""
    found = []
    for step in data.chain.steps:
        if isinstance(step, Normalize):
            assert step.mean is not None
            assert step.std is not None
            found.append((step.mean, step.std))
    return found


def export_of_images(head: Head, data: ImageData, source: Sequence[str] | None) -> Export:
    """Return the graph of an image model, with images to compare it on.

    Args:
        head: what the task returns.
        data: of the training, restored from the checkpoint.
        source: image files; null takes those of the test split, or generates some.
    """
    images, kind = sample_images(data, source)
    samples = data.read_samples(images)
    batch: Any = samples.dataset
    prepared = batch.batch(torch.arange(len(images)))
    if samples.prepare is not None:
        prepared = samples.prepare(prepared)
    view = data.new_view
    _, channels, height, width = images.shape
    return Export(
        graph=ImageGraph(head, data),
        inputs={"image": images},
        expected=predicted(head, prepared),
        descriptions={"image": f"bytes (batch, {channels}, {height}, {width}), values 0 to 255, {colours(channels)}"},
        facts={"resize": {"size": [height, width], "mode": view.resize, "interpolation": view.interpolation,
                          "crop_pct": view.crop_pct}},
        source=kind,
    )  # fmt: skip


def colours(channels: int) -> str:
    return "grey" if channels == 1 else "in the order red, green, blue"


def sample_images(data: ImageData, source: Sequence[str] | None) -> tuple[Tensor, str]:
    """Return images as they are stored, bytes ``(b, c, h, w)``, and what they are.

    Raises:
        UserError: a file cannot be read, or the size of the images is not known.
    """
    if source is not None:
        items, _ = collect_images(list(source))
        files = data.new_images(items[:NUM_SAMPLES])
        files.complete = None
        images = files.batch(torch.arange(len(files)))
        for index, why in sorted(files.failed.items()):
            raise UserError(f"--samples: {items[index]} cannot be read: {why}")
        return images, "images of --samples"
    images = _test_images(data)
    if images is not None:
        return images, "images of the test split"
    reader = data.new_images([])
    if reader.size is None:
        raise UserError("the checkpoint does not know the size of its images: give some with --samples")
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_SAMPLES, reader.channels, *reader.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), "random images"


def _test_images(data: ImageData) -> Tensor | None:
    """Return images of the test split where its files are there; nothing is downloaded."""
    vars(data).update(download=False)
    try:
        dataset: Any = data.dataset("test")
        batch = dataset.batch(torch.arange(min(NUM_SAMPLES, len(dataset))))
    except (*UNREADABLE, AttributeError):
        return None
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    if x.dtype == torch.uint8:
        return x
    # Standardised once and for all, as those of Digits.
    mean, std = data.statistics
    reader = data.new_images([])
    if reader.size is None:
        return None
    x = x.view(len(x), reader.channels, *reader.size)  # (b, c, h, w)
    pixels = x * torch.tensor(std[: x.shape[1]]).view(-1, 1, 1) + torch.tensor(mean[: x.shape[1]]).view(-1, 1, 1)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)
