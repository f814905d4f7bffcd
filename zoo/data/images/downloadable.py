"""The base of published image datasets, in the files that torchvision downloads and reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.augment.chain import resize
from zoo.data.base import split_indices
from zoo.data.downloads import locked, require_files
from zoo.data.images.base import ImageData, ImageDataset


class DownloadableImages(ImageData, ABC):
    """A published image dataset with a training and a test part, in the files that torchvision reads.

    Args:
        root: folder with the files, as torchvision lays them out.
        download: download files that are missing.
        val_split: share of the training images kept for validation; 0 validates on the test images.
    """

    download_size: ClassVar[str]  # of all files, such as "170 MB"

    def __init__(self, root: str = "data", download: bool = False, val_split: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= val_split < 1:
            raise ValueError(f"val_split is a share in [0, 1), got {val_split}")
        self.root = Path(root)
        self.download = download
        self.val_split = val_split

    @property
    def source(self) -> Any:
        """torchvision's class of the same name, which knows the files, their URLs and their checksums."""
        import torchvision.datasets

        return getattr(torchvision.datasets, type(self).__name__)

    # What subclasses implement ----------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.root

    @abstractmethod
    def missing_files(self) -> list[str]:
        """Return the names of the files that are not in ``folder``."""

    @abstractmethod
    def download_files(self, missing: list[str]) -> None:
        """Download missing files to ``folder``, as ``downloads.fetch`` does."""

    @abstractmethod
    def read(self, part: str) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """Return images and labels of ``train`` or ``test``."""

    # Files ------------------------------------------------------------------------------------------------------------

    def ensure_files(self) -> None:
        """Download missing files where ``download`` is set; raise ValueError for one that is still missing."""
        if self.download and self.missing_files():
            with locked(self.folder / ".lock"):
                missing = self.missing_files()  # another process may have downloaded them while this one waited
                if missing:
                    self.download_files(missing)
        require_files(type(self).__name__, self.folder, self.missing_files(), self.download_size)

    def splits(self) -> dict[str, Dataset]:
        self.ensure_files()
        images, labels = self._read_reduced("train")
        test = ImageDataset(*self._read_reduced("test"))
        if self.val_split == 0:
            return {"train": ImageDataset(images, labels), "val": test, "test": test}
        shares = [1 - self.val_split, self.val_split]
        train_rows, val_rows = split_indices(len(labels), shares, self.seed, labels)
        return {
            "train": ImageDataset(images, labels, train_rows),
            "val": ImageDataset(images, labels, val_rows),
            "test": test,
        }

    def _read_reduced(self, part: str) -> tuple[Tensor, Tensor]:
        """Read a part without colour and pixels that are not needed; channels or pixels are added on the device."""
        images, labels = self.read(part)  # (n, c, h, w), (n,)
        if self.in_channels < images.shape[1]:
            from torchvision.transforms.v2.functional import rgb_to_grayscale

            images = rgb_to_grayscale(images)  # (n, 1, h, w)
        if self.side and min(images.shape[2:]) > self.side:
            # In chunks, as resizing computes in floats.
            images = torch.cat([resize(chunk, self.side) for chunk in images.split(4096)])
        return images, labels
