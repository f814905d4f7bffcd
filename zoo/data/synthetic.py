"""Small synthetic classification problems with a known answer, generated from a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import BatchTensorDataset, DataModule, split_train_val_test
from zoo.data.csv_numbers import numbers
from zoo.data.new_rows import read_file
from zoo.data.new_samples import NewSamples, as_tensor, is_paths
from zoo.data.sources import ARRAYS, find_files_of
from zoo.errors import UserError


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

    def read_samples(self, source: Any) -> NewSamples:
        """Read new inputs.

        Args:
            source: a tensor or an array ``(n, ...)``; paths of ``.npy`` files, or of ``.csv`` files with a column for
                each number of a vector.
        """
        if not is_paths(source):
            x = as_tensor(source, f"inputs of {type(self).__name__} (a tensor) are")
            return NewSamples(self.new_dataset(x))
        parts = []
        columns: dict[str, list[Any]] = {"file": [], "row": []}
        for path in find_files_of(source, ARRAYS, "arrays: .npy or .csv"):
            rows, x = read_array(path)
            parts.append(x)
            columns["file"] += [str(path)] * len(x)
            columns["row"] += rows
        if len(set(columns["file"])) < 2:
            columns.pop("file")
        if len({part.shape[1:] for part in parts}) > 1:
            raise UserError(f"the files hold arrays of different shapes, {sorted({tuple(p.shape[1:]) for p in parts})}")
        return NewSamples(self.new_dataset(torch.cat(parts)), columns)

    def new_dataset(self, x: Tensor) -> Dataset:
        """Return new inputs as a dataset.

        Raises:
            UserError: their shape is not that of the training.
        """
        width = getattr(self, "input_dim", None)
        if not len(x) or x.ndim < 2 or (width is not None and x.shape[-1] != width):
            needed = "(n, ...)" if width is None else f"(n, ..., {width})"
            raise UserError(f"inputs {needed} of {type(self).__name__} are needed, got {tuple(x.shape)}")
        return BatchTensorDataset(x)

    def build_dataset(self, *parts: Tensor) -> Dataset:
        """Return the dataset of a split, of what ``generate`` returned for its samples."""
        return BatchTensorDataset(*parts)


def read_array(path: Path) -> tuple[list[int], Tensor]:
    """Return the numbers of the rows of a file, and its numbers as a tensor."""
    if path.suffix.lower() == ".npy":
        try:
            x = as_tensor(np.load(path, allow_pickle=False), f"{path}: numbers are")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is no array of numbers: {' '.join(str(error).split())[:120]}") from None
        return list(range(1, len(x) + 1)), x
    table = read_file(path)
    cells = [numbers(column) for column in table.columns.values()]
    x = torch.tensor(cells).T.contiguous()  # (n, d)
    if x.isnan().any():
        row = int(x.isnan().any(1).nonzero()[0])
        raise UserError(f"{path}, row {table.rows[row]}: all cells must be numbers")
    return table.rows, x


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
