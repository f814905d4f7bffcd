"""Handwritten digits, 8x8 (Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import MethodType
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.augment.base import as_float
from zoo.data.augment.chain import resize
from zoo.data.base import BatchTensorDataset, split_train_val_test
from zoo.data.images.base import ImageData, Statistics
from zoo.data.images.new_images import NewImages

WHITE = 16  # the largest pixel value


class Digits(ImageData):
    """1,797 real handwritten digits of 8x8 grey pixels, from scikit-learn: no download.

    Inputs are ``(b, 1, 8, 8)``, or ``(b, 64)`` if flat, standardised by mean and standard deviation of the training
    pixels.

    Args:
        flat: return vectors of 64 pixels instead of images.
        val_split: share of the samples kept for validation.
        test_split: share of the samples kept for the test.
    """

    num_classes = 10
    class_names = [str(i) for i in range(10)]
    native_channels = 1
    native_size: int = 8

    def __init__(self, flat: bool = False, val_split: float = 0.15, test_split: float = 0.15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if flat and (self.augment or self.channels == 3):
            raise ValueError("Digits: vectors (flat) can be neither augmented nor given three channels")
        self.flat = flat
        self.val_split = val_split
        self.test_split = test_split
        if self._is_standardised_once:
            # Nothing is left to be done to a batch, and a step without the hook is faster.
            self.on_after_batch_transfer = MethodType(L.LightningDataModule.on_after_batch_transfer, self)

    @property
    def _is_standardised_once(self) -> bool:
        """Whether the datasets hold standardised images, as nothing is done to the pixels before that."""
        return not self.augment and self.channels != 3

    @property
    def input_dim(self) -> int:
        return (self.side or self.native_size) ** 2

    @cached_property
    def _parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Pixels from 0 to 16, ``(n, 1, h, w)``, and classes, by split."""
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        x = torch.from_numpy(digits.images).float().unsqueeze(1)  # (n, 1, 8, 8)
        y = torch.from_numpy(digits.target).long()
        rows = split_train_val_test(len(y), self.val_split, self.test_split, self.seed, labels=y)
        if self.side:
            x = resize(x, self.side)
        return {split: (x[part], y[part]) for split, part in rows.items()}

    def measure_statistics(self) -> Statistics:
        pixels = self._parts["train"][0] / WHITE
        return [float(pixels.mean())], [float(pixels.std())]

    def splits(self) -> dict[str, Dataset]:
        datasets: dict[str, Dataset] = {}
        for split, (x, y) in self._parts.items():
            if self._is_standardised_once:
                mean, std = self._pixel_statistics()
                x = (x - mean) / std
                if self.flat:
                    x = x.flatten(1)  # (n, 64)
            else:
                x = x / WHITE
            datasets[split] = BatchTensorDataset(x, y)
        return datasets

    def _pixel_statistics(self) -> tuple[Any, Any]:
        """Return mean and standard deviation of the training pixels from 0 to 16, or the user's for those."""
        if self.user_statistics is None:
            pixels = self._parts["train"][0]
            return pixels.mean(), pixels.std()
        mean, std = self.statistics
        return WHITE * mean[0], WHITE * std[0]

    def new_images(self, items: Sequence[Any]) -> NewImages:
        images = super().new_images(items)
        if self._is_standardised_once:
            images.complete = self._standardise
        return images

    def _standardise(self, x: Tensor) -> Tensor:
        mean, std = self.statistics
        x = (as_float(x) - mean[0]) / std[0]
        return x.flatten(1) if self.flat else x  # (b, 64) or (b, 1, 8, 8)

    def use_statistics(self, mean: list[float], std: list[float]) -> None:
        super().use_statistics(mean, std)
        self.reset_datasets()  # which may hold images that were standardised otherwise

    def override_spec(self, name: str, value: Any) -> bool:
        was_standardised = self._is_standardised_once
        is_adapted = super().override_spec(name, value)
        if was_standardised and not self._is_standardised_once:
            del self.on_after_batch_transfer  # the method of the class is needed again
            self.reset_datasets()
        return is_adapted

    def prepare(
        self,
        x: Tensor,
        y: Tensor | None = None,
        training: bool = False,
        epoch: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        if self._is_standardised_once:
            return x, y
        return super().prepare(x, y, training, epoch)
