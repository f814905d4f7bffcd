"""Small synthetic classification problems with a known answer, generated from a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import BatchTensorDataset, DataModule, split_train_val_test


class SyntheticData(DataModule, ABC):
    """The base of generated data.

    Args:
        samples: number of samples.
        val_split: share of the samples kept for validation.
        test_split: share of the samples kept for the test.
    """

    def __init__(self, samples: int, val_split: float, test_split: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if samples < 10:
            raise ValueError(f"samples must be 10 or more, got {samples}")
        self.samples = samples
        self.val_split = val_split
        self.test_split = test_split

    @abstractmethod
    def generate(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return inputs and targets of all samples, whose random numbers come from a generator."""

    def splits(self) -> dict[str, Dataset]:
        parts = self.generate(torch.Generator().manual_seed(self.seed))
        targets = parts[1]
        labels = None
        if targets.ndim == 1 and not targets.is_floating_point():
            labels = targets
        rows = split_train_val_test(len(targets), self.val_split, self.test_split, self.seed, labels)
        return {split: self.build_dataset(*(part[index] for part in parts)) for split, index in rows.items()}

    def build_dataset(self, *parts: Tensor) -> Dataset:
        """Return the dataset of a split, of what ``generate`` returned for its samples."""
        return BatchTensorDataset(*parts)


class Quadrants(SyntheticData):
    """Points of the plane from a normal distribution; the class is the quadrant.

    Inputs ``(b, 2)``; class ``(x > 0) + 2 (y > 0)``.

    Args:
        samples: number of points.
        val_split: share of the samples kept for validation.
        test_split: share of the samples kept for the test.
    """

    num_classes = 4
    input_dim = 2
    class_names = ["lower left", "lower right", "upper left", "upper right"]

    def __init__(self, samples: int = 1000, val_split: float = 0.1, test_split: float = 0.1, **kwargs: Any) -> None:
        super().__init__(samples, val_split, test_split, **kwargs)

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        points = torch.randn(self.samples, 2, generator=generator)
        x, y = points.unbind(1)
        return points, (x > 0).long() + 2 * (y > 0).long()


class SignOfSum(SyntheticData):
    """Vectors of 20 normally distributed numbers; the class, one of two, is whether their sum is above 0.

    Inputs ``(b, 20)``, targets 0 or 1; a binary task.

    Args:
        samples: number of vectors.
        val_split: share of the samples kept for validation.
        test_split: share of the samples kept for the test.
    """

    num_classes = 2
    input_dim = 20
    task = "binary"
    class_names = ["negative", "positive"]

    def __init__(self, samples: int = 2000, val_split: float = 0.1, test_split: float = 0.1, **kwargs: Any) -> None:
        super().__init__(samples, val_split, test_split, **kwargs)

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.samples, self.input_dim, generator=generator)
        return x, (x.sum(1) > 0).long()
