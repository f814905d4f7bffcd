"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf)."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from zoo.data.downloads import fetch, locked, require_files
from zoo.data.images.base import DownloadableImages

# All that the files are made of. Pickles may name any function; these are the only ones that are called.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class CIFAR10(DownloadableImages):
    """60,000 photographs of 32x32 pixels in 10 classes (Krizhevsky 2009,
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf).

    Reads torchvision's files in ``<root>/cifar-10-batches-py``.
    """

    num_classes = 10
    native_channels, native_size = 3, 32
    default_mean, default_std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    label_key = "labels"

    @property
    def source(self) -> Any:
        """torchvision's class, which names the files, their places and their checksums."""
        import torchvision.datasets

        return getattr(torchvision.datasets, type(self).__name__)

    @property
    def folder(self) -> Path:
        return self.root / self.source.base_folder

    def find(self) -> None:
        source, name = self.source, type(self).__name__
        files = [f for f, _ in (*source.train_list, *source.test_list)] + [source.meta["filename"]]
        with locked(self.root / ".lock") if self.download else nullcontext():
            if self.download and not all((self.folder / f).is_file() for f in files):
                fetch(name, [source.url], self.root, source.filename, source.tgz_md5, unpack=True)
        require_files(name, self.folder, files, "them (170 MB)")

    @cached_property
    def class_names(self) -> list[str]:
        self.find()
        names = read_pickle(self.folder / self.source.meta["filename"]).get(self.source.meta["key"], [])
        if len(names) != self.num_classes:
            raise ValueError(f"{self.folder / self.source.meta['filename']} names {len(names)} classes")
        return list(names)

    def read(self, part: str) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        names = self.source.train_list if part == "train" else self.source.test_list
        images, labels = [], []
        for name, _ in names:
            content = read_pickle(self.folder / name)
            data, own = content.get("data"), content.get(self.label_key)
            if not isinstance(data, np.ndarray) or own is None or data.shape != (len(own), 3 * 32 * 32):
                raise ValueError(f"{self.folder / name} is no part of {type(self).__name__}")
            images.append(torch.from_numpy(data).view(-1, 3, 32, 32))
            labels += own
        return torch.cat(images), torch.tensor(labels)


class CIFAR100(CIFAR10):
    """60,000 photographs of 32x32 pixels in 100 classes (Krizhevsky 2009,
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf).

    Reads torchvision's files in ``<root>/cifar-100-python``.
    """

    num_classes = 100
    default_mean, default_std = [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]
    label_key = "fine_labels"


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickle that holds nothing but arrays, numbers and text, or say what is wrong with it."""
    try:
        with open(path, "rb") as file:
            content = _SafeUnpickler(file, encoding="latin1").load()
    except (OSError, EOFError, ValueError, KeyError, IndexError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and use --data.download true") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds no table): delete it and use --data.download true")
    return content
