"""Texts beside images: made of class names, or of a file as Hugging Face's ``imagefolder`` has it."""

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
    """Images with texts in the place of their numbers, or without any.

    Args:
        images: gives images with numbers, whole batches of them at once.
        texts: by number; null leaves the images alone.
    """

    def __init__(self, images: Dataset, texts: Sequence[str] | None) -> None:
        self.images, self.texts = images, texts

    @property
    def labels(self) -> Tensor:
        """Numbers of all the images."""
        return self.images.labels  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if (sample := self.images[index]) is None:
            return None
        image, number = sample
        return image if self.texts is None else (image, self.texts[int(number)])

    def batch(self, indices: Tensor) -> Any:
        images, numbers = self.images.batch(indices)  # type: ignore[attr-defined]
        return images if self.texts is None else (images, [self.texts[i] for i in numbers.tolist()])


def is_template(captions: str) -> bool:
    """Whether class names are put into it, rather than it being a file's name."""
    return "{}" in captions


def check_captions(captions: str, files: bool) -> None:
    """Say so where captions are neither a text for class names nor, where data can have one, a file."""
    if is_template(captions) or (files and Path(captions).suffix in FORMATS):
        return
    allowed = "a text with {} for the name of the class, such as 'a photo of a {}'"
    more = f", or the name of a file beside the images ({', '.join(FORMATS)})" if files else ""
    raise ValueError(f"captions is {captions!r}, but must be {allowed}{more}")


def captions_from_classes(template: str, names: Sequence[str]) -> list[str]:
    """A text for each class; what is ``_`` in a folder's name is a space in a text."""
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def read_captions(root: Path, name: str, column: str, files: Sequence[str]) -> list[str]:
    """The texts of images, from files of one name in their folder and in those below it.

    Args:
        root: the folder.
        name: of the files, ``.jsonl``, ``.csv`` or ``.tsv`` with columns ``file_name``, a path from the file's own
            folder, and ``column``.
        column: of the texts.
        files: paths of the images within the folder.
    """
    found: dict[str, str] = {}
    places = sorted(Path(place) / name for place, _, inside in os.walk(root, followlinks=True) if name in inside)
    if not places:
        raise ValueError(f"{root} holds no {name}, of which captions should be taken")
    for place in places:
        for text, file in zip(*read_texts(place, column, FILE_NAME), strict=True):
            path = os.path.normpath(os.path.relpath(place.parent / file, root))
            if path in found:
                raise ValueError(f"{place} has two captions for {file}: each image has one")
            found[path] = text
    where = places[0] if len(places) == 1 else f"the {len(places)} files {name} in {root}"
    own = set(files)
    if strange := [path for path in found if path not in own]:
        raise ValueError(f"{where}: {len(strange)} of {len(found)} captions have no image, the first of {strange[0]}")
    if bare := [file for file in files if file not in found]:
        raise ValueError(f"{where}: {len(bare)} of {len(files)} images have no caption, the first is {bare[0]}")
    return [found[file] for file in files]
