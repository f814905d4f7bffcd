"""MNIST (LeCun et al. 1998, https://doi.org/10.1109/5.726791) and Fashion-MNIST, in their own file format."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from zoo.data.downloads import fetch, locked, require_files
from zoo.data.images.base import DownloadableImages

PARTS = {"train": "train", "test": "t10k"}


class MNIST(DownloadableImages):
    """70,000 handwritten digits of 28x28 grey pixels (LeCun et al. 1998, https://doi.org/10.1109/5.726791).

    Reads torchvision's files, packed or not, in ``<root>/MNIST/raw``.
    """

    num_classes = 10
    class_names: ClassVar[list[str]] = [str(i) for i in range(10)]
    native_channels, native_size = 1, 28
    default_mean, default_std = [0.1307], [0.3081]

    @property
    def folder(self) -> Path:
        return self.root / type(self).__name__ / "raw"

    def find(self) -> None:
        import torchvision.datasets

        source = getattr(torchvision.datasets, type(self).__name__)  # names its places and checksums
        wanted = {file.removesuffix(".gz"): (file, md5) for file, md5 in source.resources}
        with locked(self.folder / ".lock") if self.download else nullcontext():
            for plain, (packed, md5) in wanted.items():
                if self.download and not any((self.folder / f).is_file() for f in (plain, packed)):
                    fetch(type(self).__name__, [m + packed for m in source.mirrors], self.folder, packed, md5)
        absent = [packed for plain, (packed, _) in wanted.items() if not (self.folder / plain).is_file()]
        require_files(type(self).__name__, self.folder, absent, "them (11 MB)" if len(absent) > 1 else "it")

    def read(self, part: str) -> tuple[UInt8[Tensor, "n 1 h w"], Int[Tensor, " n"]]:
        images = read_idx(self.folder / f"{PARTS[part]}-images-idx3-ubyte")
        labels = read_idx(self.folder / f"{PARTS[part]}-labels-idx1-ubyte").long()
        if len(images) != len(labels) or images.ndim != 3 or labels.amax() > 9:
            shapes = f"{tuple(images.shape)} images and {tuple(labels.shape)} labels"
            raise ValueError(f"{self.folder}: the {part} files do not belong together, {shapes}")
        return images.unsqueeze(1), labels


class FashionMNIST(MNIST):
    """70,000 articles of clothing of 28x28 grey pixels (Xiao et al. 2017, https://arxiv.org/abs/1708.07747).

    Reads torchvision's files, packed or not, in ``<root>/FashionMNIST/raw``.
    """

    class_names: ClassVar[list[str]] = [
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ]  # fmt: skip
    default_mean, default_std = [0.2860], [0.3530]


def read_idx(path: Path) -> Tensor:
    """Read the bytes in a file of MNIST's format, packed if only that is there, or say that it is damaged.

    Args:
        path: without ``.gz``.
    """
    packed = path.with_name(path.name + ".gz")
    path = path if path.is_file() else packed
    try:
        with gzip.open(path, "rb") if path == packed else open(path, "rb") as file:
            data = file.read()
        zero, kind, dims = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
        if (zero, kind) != (0, 8) or len(data) != 4 + 4 * dims + math.prod(shape):
            raise ValueError("its length is not what its head says")
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and use --data.download true") from None
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape).copy())
