"""Two small problems with a known answer, drawn from a seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.data.base import BatchTensorDataset, DataModule, split_indices


class _SyntheticData(DataModule):
    def __init__(self, samples: int, val_split: float, test_split: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if samples < 10:
            raise ValueError(f"samples must be 10 or more, got {samples}")
        self.samples, self.val_split, self.test_split = samples, val_split, test_split

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        raise ValueError(f"{type(self).__name__} does not say how to generate its samples: write generate(generator)")

    def splits(self) -> dict[str, BatchTensorDataset]:
        x, y = self.generate(torch.Generator().manual_seed(self.seed))
        shares = [1 - self.val_split - self.test_split, self.val_split, self.test_split]
        parts = split_indices(len(y), shares, self.seed, labels=y)
        return {name: BatchTensorDataset(x[i], y[i]) for name, i in zip(("train", "val", "test"), parts, strict=True)}


class Quadrants(_SyntheticData):
    """Points of the plane, drawn from a normal distribution; the class is the quadrant.

    Inputs ``(b, 2)``; class ``(x > 0) + 2 (y > 0)``.

    Args:
        samples: number of points.
        val_split: share of the samples kept for validation.
        test_split: share of the samples kept for the test.
    """

    num_classes, input_dim = 4, 2
    class_names = ["lower left", "lower right", "upper left", "upper right"]

    def __init__(self, samples: int = 1000, val_split: float = 0.1, test_split: float = 0.1, **kwargs: Any) -> None:
        super().__init__(samples, val_split, test_split, **kwargs)

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.samples, 2, generator=generator)
        return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


class SignOfSum(_SyntheticData):
    """Vectors of 20 normal numbers; the class, one of two, is whether their sum is above 0.

    Inputs ``(b, 20)``, targets 0 or 1; a binary task.

    Args:
        samples: number of vectors.
        val_split: share of the samples kept for validation.
        test_split: share of the samples kept for the test.
    """

    num_classes, input_dim, task = 2, 20, "binary"
    class_names = ["negative", "positive"]

    def __init__(self, samples: int = 2000, val_split: float = 0.1, test_split: float = 0.1, **kwargs: Any) -> None:
        super().__init__(samples, val_split, test_split, **kwargs)

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.samples, 20, generator=generator)
        return x, (x.sum(1) > 0).long()
