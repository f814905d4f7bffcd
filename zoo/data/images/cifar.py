"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf)."""

from __future__ import annotations

import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from zoo.data.downloads import fetch
from zoo.data.images.downloadable import DownloadableImages
from zoo.terminal import printable

# A pickle may call any function. These are the only ones that the published files call, so no others are allowed.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class CIFAR10(DownloadableImages):
    """CIFAR-10: 60,000 photographs of 32x32 pixels in 10 classes (Krizhevsky 2009,
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf).

    Reads torchvision's files in ``<root>/cifar-10-batches-py``.
    """

    num_classes = 10
    native_channels = 3
    native_size = 32
    default_mean = [0.4914, 0.4822, 0.4465]
    default_std = [0.2470, 0.2435, 0.2616]
    label_key = "labels"
    download_size = "170 MB"

    @property
    def folder(self) -> Path:
        return self.root / self.source.base_folder

    def missing_files(self) -> list[str]:
        files = [file for file, _ in (*self.source.train_list, *self.source.test_list)]
        files.append(self.source.meta["filename"])
        return [file for file in files if not (self.folder / file).is_file()]

    def download_files(self, missing: list[str]) -> None:
        source = self.source
        fetch(type(self).__name__, [source.url], self.root, source.filename, source.tgz_md5, unpack=True)

    @cached_property
    def class_names(self) -> list[str]:
        self.ensure_files()
        path = self.folder / self.source.meta["filename"]
        names = read_pickle(path).get(self.source.meta["key"], [])
        if len(names) != self.num_classes:
            raise ValueError(f"{path} names {len(names)} classes, not {self.num_classes}")
        return list(names)

    def read(self, part: str) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        files = self.source.test_list
        if part == "train":
            files = self.source.train_list
        images, labels = [], []
        for file, _ in files:
            content = read_pickle(self.folder / file)
            pixels = content.get("data")
            classes = content.get(self.label_key)
            if not isinstance(pixels, np.ndarray) or classes is None or pixels.shape != (len(classes), 3 * 32 * 32):
                raise ValueError(f"{self.folder / file} is no part of {type(self).__name__}")
            images.append(torch.from_numpy(pixels).view(-1, 3, 32, 32))  # (n, 3, 32, 32)
            labels += classes
        return torch.cat(images), torch.tensor(labels)


class CIFAR100(CIFAR10):
    """CIFAR-100: 60,000 photographs of 32x32 pixels in 100 classes (Krizhevsky 2009,
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf).

    Reads torchvision's files in ``<root>/cifar-100-python``.
    """

    num_classes = 100
    default_mean = [0.5071, 0.4865, 0.4409]
    default_std = [0.2673, 0.2564, 0.2762]
    label_key = "fine_labels"


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dict in a pickle that holds nothing but arrays, numbers and text.

    Raises:
        ValueError: the file cannot be read, or holds anything else.
    """
    advice = "delete it and use --data.download true"
    try:
        with open(path, "rb") as file:
            content = _SafeUnpickler(file, encoding="latin1").load()
    except Exception as error:  # pickle raises whatever a damaged file brings it to
        raise ValueError(f"{path} is damaged ({printable(error)}): {advice}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds no dict): {advice}")
    return content
