"""Encodings of the columns of a table, fitted to its training rows: standardised numbers, one-hot categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.data.csv_tables import is_missing, number
from zoo.distributed import say


@dataclass
class NumberColumn:
    """A column of numbers, standardised; a missing number becomes the training mean.

    Args:
        name: of the column.
        mean: of the training rows.
        std: of the training rows, 1 where it would be 0.
        has_indicator: whether a second column marks the missing numbers with 1.
    """

    name: str
    mean: Tensor
    std: Tensor
    has_indicator: bool

    @classmethod
    def fit(cls, name: str, numbers: Tensor, train: Tensor) -> NumberColumn:
        """Return the encoding of a column.

        Args:
            name: of the column.
            numbers: ``(n,)``, NaN where one is missing.
            train: indices of the training rows.
        """
        known = numbers[train]
        known = known[~known.isnan()]
        mean = torch.zeros((), dtype=torch.float64)
        std = torch.ones((), dtype=torch.float64)
        if len(known):
            mean = known.mean()
        if len(known) > 1 and known.std(correction=0) > 0:
            std = known.std(correction=0)
        return cls(name, mean, std, bool(numbers.isnan().any()))

    def encode(self, values: Sequence[Any]) -> Tensor:
        """Return a column ``(n, 1)``, or ``(n, 2)`` with the indicator, of values that are numbers or missing."""
        for value in values:
            if not is_missing(value) and number(value) != number(value):
                raise ValueError(f"column {self.name!r} holds {value!r}, which is not a number as in the training rows")
        numbers = torch.tensor([number(value) for value in values], dtype=torch.float64)
        missing = numbers.isnan()
        if missing.any():
            count = int(missing.sum())
            say(f"column {self.name!r}: {count} missing numbers filled with the training mean {float(self.mean):.4g}")
        scaled = (numbers.where(~missing, self.mean) - self.mean) / self.std
        if not self.has_indicator:
            return scaled.float().unsqueeze(1)
        return torch.stack([scaled, missing.double()], 1).float()


@dataclass
class CategoryColumn:
    """A column of categories, one-hot; a missing value and a category that training has not become zeros.

    Args:
        name: of the column.
        categories: of the training rows, sorted.
    """

    name: str
    categories: list[str]

    @classmethod
    def fit(cls, name: str, values: Sequence[Any], train: Tensor) -> CategoryColumn:
        """Return the encoding of a column, by its values in the training rows."""
        training_values = [values[i] for i in train.tolist()]
        categories = {str(value) for value in training_values if not is_missing(value)}
        return cls(name, sorted(categories))

    def encode(self, values: Sequence[Any]) -> Tensor:
        """Return one-hot rows ``(n, k)``."""
        index = {category: i for i, category in enumerate(self.categories)}
        block = torch.zeros(len(values), len(index))
        num_missing = 0
        unknown = []
        for row, value in enumerate(values):
            if str(value) in index:
                block[row, index[str(value)]] = 1.0
            elif is_missing(value):
                num_missing += 1
            else:
                unknown.append(str(value))
        if num_missing:
            say(f"column {self.name!r}: {num_missing} missing values are no category")
        if unknown:
            named = ", ".join(sorted(set(unknown))[:5])
            say(f"column {self.name!r}: {named} not seen in training; {len(unknown)} rows have no category")
        return block


def fit_column(name: str, values: Sequence[Any], train: Tensor) -> NumberColumn | CategoryColumn:
    """Return the encoding of a column: of numbers if every value is one or missing, else of categories.

    Args:
        name: of the column.
        values: of all rows, as text or numbers.
        train: indices of the training rows.
    """
    numbers = torch.tensor([number(value) for value in values], dtype=torch.float64)
    missing = torch.tensor([is_missing(value) for value in values])
    is_text = numbers.isnan() & ~missing
    if is_text.any():
        return CategoryColumn.fit(name, values, train)
    return NumberColumn.fit(name, numbers, train)
