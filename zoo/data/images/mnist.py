"""MNIST (LeCun et al. 1998, https://doi.org/10.1109/5.726791) and Fashion-MNIST, in their own file format."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from zoo.data.downloads import fetch
from zoo.data.images.downloadable import DownloadableImages

FILE_PREFIXES = {"train": "train", "test": "t10k"}
UINT8 = 8  # the code of bytes in the file format


class MNIST(DownloadableImages):
    """MNIST: 70,000 handwritten digits of 28x28 grey pixels (LeCun et al. 1998,
    https://doi.org/10.1109/5.726791).

    Reads torchvision's files, packed or not, in ``<root>/MNIST/raw``.
    """

    num_classes = 10
    class_names: ClassVar[list[str]] = [str(i) for i in range(10)]
    native_channels = 1
    native_size = 28
    default_mean = [0.1307]
    default_std = [0.3081]
    download_size = "11 MB"

    @property
    def folder(self) -> Path:
        return self.root / type(self).__name__ / "raw"

    def missing_files(self) -> list[str]:
        missing = []
        for packed, _ in self.source.resources:
            unpacked = packed.removesuffix(".gz")
            if not (self.folder / packed).is_file() and not (self.folder / unpacked).is_file():
                missing.append(packed)
        return missing

    def download_files(self, missing: list[str]) -> None:
        for file, md5 in self.source.resources:
            if file in missing:
                urls = [mirror + file for mirror in self.source.mirrors]
                fetch(type(self).__name__, urls, self.folder, file, md5)

    def read(self, part: str) -> tuple[UInt8[Tensor, "n 1 h w"], Int[Tensor, " n"]]:
        prefix = FILE_PREFIXES[part]
        images = read_idx(self.folder / f"{prefix}-images-idx3-ubyte")  # (n, 28, 28)
        labels = read_idx(self.folder / f"{prefix}-labels-idx1-ubyte").long()
        if len(images) != len(labels) or images.ndim != 3 or labels.amax() > 9:
            shapes = f"{tuple(images.shape)} images and {tuple(labels.shape)} labels"
            raise ValueError(f"{self.folder}: the {part} files do not belong together, {shapes}")
        return images.unsqueeze(1), labels


class FashionMNIST(MNIST):
    """Fashion-MNIST: 70,000 articles of clothing of 28x28 grey pixels (Xiao et al. 2017,
    https://arxiv.org/abs/1708.07747).

    Reads torchvision's files, packed or not, in ``<root>/FashionMNIST/raw``.
    """

    class_names: ClassVar[list[str]] = [
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ]  # fmt: skip
    default_mean = [0.2860]
    default_std = [0.3530]


def read_idx(path: Path) -> Tensor:
    """Return the bytes in a file of MNIST's format, or in its ``.gz`` where only that is there.

    Args:
        path: without ``.gz``.

    Raises:
        ValueError: the file is damaged.
    """
    opener = open
    if not path.is_file():
        path = path.with_name(path.name + ".gz")
        opener = gzip.open
    try:
        with opener(path, "rb") as file:
            data = file.read()
        # The header: two zero bytes, the type, the number of dimensions, then each of them as 4 bytes.
        zero, kind, ndim = struct.unpack(">HBB", data[:4])
        start = 4 + 4 * ndim
        shape = struct.unpack(f">{ndim}I", data[4:start])
        if (zero, kind) != (0, UINT8) or len(data) != start + math.prod(shape):
            raise ValueError("its length is not what its header says")
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and use --data.download true") from None
    array = np.frombuffer(data, np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(array.copy())
