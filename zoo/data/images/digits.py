"""Handwritten digits, 8x8 (Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80)."""

from __future__ import annotations

from functools import cached_property
from types import MethodType
from typing import Any

import lightning as L
import torch
from torch import Tensor

from zoo.data.augment.chain import resize
from zoo.data.base import BatchTensorDataset, split_indices
from zoo.data.images.base import ImageData


class Digits(ImageData):
    """1,797 real handwritten digits of 8x8 grey pixels, from scikit-learn: no download.

    Inputs are ``(b, 1, 8, 8)``, or ``(b, 64)`` if flat, standardised by the mean and deviation of the training pixels.

    Args:
        flat: give vectors of 64 instead of images.
        val_split: share of the samples kept for validation.
        test_split: share of the samples kept for the test.
    """

    num_classes = 10
    class_names = [str(i) for i in range(10)]
    native_channels, native_size = 1, 8

    def __init__(self, flat: bool = False, val_split: float = 0.15, test_split: float = 0.15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if flat and (self.augment or self.channels == 3):
            raise ValueError("Digits: vectors (flat) are neither augmented nor coloured")
        self.flat, self.val_split, self.test_split = flat, val_split, test_split
        if self._standardised_once:
            # Nothing is left to be done to a batch, and a step without the hook is shorter.
            self.on_after_batch_transfer = MethodType(L.LightningDataModule.on_after_batch_transfer, self)

    @property
    def _standardised_once(self) -> bool:
        """Whether images are standardised once, as nothing comes between the pixels and that."""
        return not self.augment and self.channels != 3

    @property
    def input_dim(self) -> int | None:
        return (self.side or 8) ** 2

    @cached_property
    def _parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Pixels from 0 to 16 and classes, by split."""
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        x = torch.from_numpy(digits.images).float().unsqueeze(1)
        y = torch.from_numpy(digits.target).long()
        shares = [1 - self.val_split - self.test_split, self.val_split, self.test_split]
        rows = split_indices(len(y), shares, self.seed, labels=y)
        if self.side:
            x = resize(x, self.side)
        return {name: (x[i], y[i]) for name, i in zip(("train", "val", "test"), rows, strict=True)}

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        if self.user_statistics:
            return super().statistics
        pixels = self._parts["train"][0] / 16
        return [float(pixels.mean())] * self.in_channels, [float(pixels.std())] * self.in_channels

    def splits(self) -> dict[str, BatchTensorDataset]:
        if not self._standardised_once:
            return {name: BatchTensorDataset(x / 16, y) for name, (x, y) in self._parts.items()}
        train = self._parts["train"][0]
        mean, std = (16 * v[0] for v in self.statistics) if self.user_statistics else (train.mean(), train.std())
        scaled = {name: ((x - mean) / std, y) for name, (x, y) in self._parts.items()}
        return {name: BatchTensorDataset(x.flatten(1) if self.flat else x, y) for name, (x, y) in scaled.items()}

    def setup(self, stage: str) -> None:
        before = self.user_statistics
        super().setup(stage)
        if self.user_statistics != before:  # and it is in the samples, which may have been made before
            self.__dict__.pop("datasets", None)

    def override_spec(self, name: str, value: Any) -> bool:
        adapted = super().override_spec(name, value)
        if adapted:
            self.__dict__.pop("on_after_batch_transfer", None)
        return adapted

    def prepare(
        self, x: Tensor, y: Tensor | None = None, training: bool = False, epoch: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        return (x, y) if self._standardised_once else super().prepare(x, y, training, epoch)
