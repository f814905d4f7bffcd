"""Street View House Numbers (Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers/nips2011_housenumbers.pdf)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from zoo.data.downloads import fetch
from zoo.data.images.downloadable import DownloadableImages


class SVHN(DownloadableImages):
    """SVHN: 99,289 photographs of digits of house numbers, 32x32 pixels, in 10 classes (Netzer et al. 2011,
    http://ufldl.stanford.edu/housenumbers/nips2011_housenumbers.pdf).

    Reads torchvision's files, ``train_32x32.mat`` and ``test_32x32.mat``, in ``<root>``.
    """

    num_classes = 10
    class_names: ClassVar[list[str]] = [str(i) for i in range(10)]
    native_channels = 3
    native_size = 32
    default_mean = [0.4377, 0.4438, 0.4728]
    default_std = [0.1980, 0.2010, 0.1970]
    download_size = "246 MB"

    def missing_files(self) -> list[str]:
        files = [self.source.split_list[part][1] for part in ("train", "test")]
        return [file for file in files if not (self.folder / file).is_file()]

    def download_files(self, missing: list[str]) -> None:
        for url, file, md5 in self.source.split_list.values():
            if file in missing:
                fetch(type(self).__name__, [url], self.folder, file, md5)

    def read(self, part: str) -> tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, " n"]]:
        return read_mat(self.folder / self.source.split_list[part][1])


def read_mat(path: Path) -> tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, " n"]]:
    """Return images and labels of a file in MATLAB's format.

    Raises:
        ValueError: the file is damaged, or holds anything else.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # scipy raises anything for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}): delete it and use --data.download true") from None
    pixels = content.get("X")
    labels = content.get("y")
    if pixels is None or labels is None or pixels.shape != (32, 32, 3, len(labels)) or pixels.dtype != "uint8":
        raise ValueError(f"{path} holds no images of SVHN: delete it and use --data.download true")
    images = torch.from_numpy(pixels).permute(3, 2, 0, 1).contiguous()  # (n, 3, 32, 32)
    classes = torch.from_numpy(labels.astype("int64")).flatten()  # (n,)
    # The digit 0 has label 10, as MATLAB counts from 1.
    return images, classes % 10
