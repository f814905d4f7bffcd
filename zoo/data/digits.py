"""Handwritten digits, 8x8 (Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80)."""

from __future__ import annotations

from typing import Any

import torch

from zoo.data.base import DataModule, TensorSet, split_indices


class Digits(DataModule):
    """1,797 real handwritten digits of 8x8 grey pixels, from scikit-learn: no download.

    Inputs are ``(b, 1, 8, 8)``, or ``(b, 64)`` if flat, standardised by the mean and deviation of the training pixels.

    Args:
        flat: give vectors of 64 instead of images.
        val_share: share of the samples kept for validation.
        test_share: share of the samples kept for the test.
    """

    num_classes = 10
    class_names = [str(i) for i in range(10)]
    in_channels, image_size, input_dim = 1, 8, 64

    def __init__(self, flat: bool = False, val_share: float = 0.15, test_share: float = 0.15, **kwargs) -> None:
        super().__init__(**kwargs)
        self.flat, self.val_share, self.test_share = flat, val_share, test_share

    def splits(self) -> dict[str, TensorSet]:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        x = torch.from_numpy(digits.data).float().reshape(-1, 64 if self.flat else 1, *([] if self.flat else [8, 8]))
        y = torch.from_numpy(digits.target).long()
        shares = [1 - self.val_share - self.test_share, self.val_share, self.test_share]
        parts = split_indices(len(y), shares, self.seed, labels=y)
        x = (x - x[parts[0]].mean()) / x[parts[0]].std()
        return {name: TensorSet(x[i], y[i]) for name, i in zip(("train", "val", "test"), parts, strict=True)}
