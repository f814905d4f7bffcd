"""Captions of images: made of class names, or read from a file as in Hugging Face's ``imagefolder``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.text.text_files import FORMATS, read_texts

FILE_NAME = "file_name"  # the column by which Hugging Face's imagefolder finds an image


class CaptionedDataset(Dataset):
    """Images with texts instead of numbers, or without either.

    Args:
        images: a dataset of images and numbers, which also returns whole batches.
        texts: the text for each number; null drops the numbers, so that samples are images alone.
    """

    def __init__(self, images: Dataset, texts: Sequence[str] | None) -> None:
        self.images = images
        self.texts = texts

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
        return image, self.texts[int(number)]

    def batch(self, indices: Tensor) -> Any:
        images, numbers = self.images.batch(indices)  # type: ignore[attr-defined]
        if self.texts is None:
            return images
        return images, [self.texts[i] for i in numbers.tolist()]


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


def read_captions(root: Path, name: str, column: str, files: Sequence[str]) -> list[str]:
    """Return the captions of images, from the files of one name in a folder and those below it.

    Args:
        root: the folder.
        name: of the files, ``.jsonl``, ``.csv`` or ``.tsv`` with columns ``file_name``, a path relative to the file's
            own folder, and ``column``.
        column: of the captions.
        files: paths of the images within the folder.
    """
    caption_files = []
    for folder, _, names in os.walk(root, followlinks=True):
        if name in names:
            caption_files.append(Path(folder) / name)
    caption_files.sort()
    if not caption_files:
        raise ValueError(f"{root} has no {name} to read captions from")
    captions: dict[str, str] = {}
    for caption_file in caption_files:
        texts, images = read_texts(caption_file, column, FILE_NAME)
        for text, image in zip(texts, images, strict=True):
            path = os.path.normpath(os.path.relpath(caption_file.parent / image, root))
            if path in captions:
                raise ValueError(f"{caption_file} has two captions for {image}: each image has one")
            captions[path] = text
    where = str(caption_files[0])
    if len(caption_files) > 1:
        where = f"the {len(caption_files)} files {name} in {root}"
    _check_matched(where, captions, files)
    return [captions[file] for file in files]


def _check_matched(where: str, captions: dict[str, str], files: Sequence[str]) -> None:
    known = set(files)
    without_image = [path for path in captions if path not in known]
    if without_image:
        few = f"{len(without_image)} of {len(captions)}"
        raise ValueError(f"{where}: {few} captions have no image, the first is for {without_image[0]}")
    without_caption = [file for file in files if file not in captions]
    if without_caption:
        few = f"{len(without_caption)} of {len(files)}"
        raise ValueError(f"{where}: {few} images have no caption, the first is {without_caption[0]}")
