"""Captions of images: made of class names, or of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.text.text_files import FORMATS

Caption = str | tuple[str, ...]
"""A text, or several of which one is taken at a time."""


class CaptionedDataset(Dataset):
    """Images with texts instead of numbers, or without either.

    Args:
        images: a dataset of images and numbers, which also returns whole batches.
        texts: the caption for each number; null drops the numbers, so that samples are images alone.
        draw: whether to draw one of several texts at random each time, as for training; otherwise it is the first.
    """

    def __init__(self, images: Dataset, texts: Sequence[Caption] | None, draw: bool = False) -> None:
        self.images = images
        self.texts = texts
        self.draw = draw

    @property
    def labels(self) -> Tensor:
        """The numbers of all images."""
        return self.images.labels  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        sample = self.images[index]
        if sample is None:  # an image that cannot be read
            return None
        image, number = sample
        if self.texts is None:
            return image
        return image, self._text(int(number))

    def batch(self, indices: Tensor) -> Any:
        images, numbers = self.images.batch(indices)  # type: ignore[attr-defined]
        if self.texts is None:
            return images
        return images, [self._text(i) for i in numbers.tolist()]

    def _text(self, number: int) -> str:
        assert self.texts is not None
        caption = self.texts[number]
        if isinstance(caption, str):
            return caption
        if not self.draw:
            return caption[0]
        # The loader seeds this generator for each batch, by run, epoch and batch.
        return caption[int(torch.randint(len(caption), ()))]


def is_template(captions: str) -> bool:
    """Return whether class names are put into this text, rather than it being the name of a file."""
    return "{}" in captions


def check_captions(captions: str, allow_files: bool) -> None:
    """Raise ValueError where captions are neither a template for class names nor, if allowed, the name of a file."""
    if is_template(captions):
        return
    if allow_files and Path(captions).suffix in FORMATS:
        return
    allowed = "a text with {} for the class name, such as 'a photo of a {}'"
    if allow_files:
        allowed += f", or the name of a file beside the images ({', '.join(FORMATS)})"
    raise ValueError(f"captions is {captions!r}, but must be {allowed}")


def captions_from_classes(template: str, names: Sequence[str]) -> list[str]:
    """Return a caption for each class; ``_`` in the name of a folder becomes a space."""
    return [template.replace("{}", name.replace("_", " ")) for name in names]
