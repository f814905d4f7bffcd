"""Tables: four that scikit-learn ships, or any CSV file with a named target column."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import BatchTensorDataset, DataModule, split_train_val_test
from zoo.data.csv_tables import MISSING as MISSING
from zoo.data.csv_tables import is_missing, number, read_csv
from zoo.data.spec import DataSpec
from zoo.data.table_columns import CategoryColumn, NumberColumn, fit_column

BUNDLED = ("breast_cancer", "diabetes", "iris", "wine")
MAX_CLASSES = 20  # a numeric target of more different values is a regression


@dataclass
class Table:
    """A table, with its target apart.

    Args:
        columns: the features, by name.
        targets: ``(n,)`` class indices or numbers.
        classes: names of the classes, in the order of their indices; null for a regression.
    """

    columns: dict[str, list[Any]]
    targets: Tensor
    classes: list[str] | None


class Tabular(DataModule):
    """Rows of a table: scikit-learn's ``breast_cancer``, ``wine``, ``iris``, ``diabetes``, or a CSV file.

    Numeric columns are standardised by the training rows; a missing number becomes the training mean, and a column of
    its own marks it. Other columns are one-hot encoded by the categories of the training rows; a category that is not
    among them becomes zeros. Inputs ``(b, input_dim)``; targets class indices ``(b,)`` or numbers ``(b,)``.

    Args:
        name: one of the four tables; null with ``file``.
        file: a CSV file with a header.
        target: name of the target column of the file.
        kind: ``classification`` or ``regression``; null: classification unless the target is numbers of more than 20
            different values.
        ignore: columns of the file to leave out, such as an identifier.
        predict_file: a CSV file of new rows for ``predict``, encoded as fitted to the training rows; null predicts the
            test rows.
        val_split: share of the rows kept for validation.
        test_split: share of the rows kept for the test.
    """

    def __init__(
        self,
        name: Literal["breast_cancer", "wine", "iris", "diabetes"] | None = None,
        file: str | None = None,
        target: str | None = None,
        kind: Literal["classification", "regression"] | None = None,
        ignore: list[str] = [],
        predict_file: str | None = None,
        val_split: float = 0.15,
        test_split: float = 0.15,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (name is None) == (file is None):
            raise ValueError(f"Tabular takes either a name ({', '.join(BUNDLED)}) or a file, got {name=} and {file=}")
        if file is not None and target is None:
            raise ValueError(f"which column of {file} is the target? give --data.target")
        self.name = name
        self.file = file
        self.target = target
        self.kind = kind
        self.ignore = list(ignore)
        self.predict_file = predict_file
        self.val_split = val_split
        self.test_split = test_split

    # Data spec --------------------------------------------------------------------------------------------------------

    @property
    def class_names(self) -> list[str] | None:
        return self._table.classes

    def spec(self) -> DataSpec:
        train: Any = self.datasets["train"]
        x, y = train.tensors  # (n, d), (n,)
        classes = self.class_names
        if classes is None:
            numbers = y.double()
            return DataSpec(
                input_dim=x.shape[1],
                output_dim=1,
                target_mean=float(numbers.mean()),
                target_std=float(numbers.std()),
            )
        task = "binary" if len(classes) == 2 else "multiclass"
        return DataSpec(num_classes=len(classes), class_names=classes, task=task, input_dim=x.shape[1])

    # Reading ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _table(self) -> Table:
        if self.file is None:
            return load_bundled(str(self.name))
        path = Path(self.file)
        columns = read_csv(path)
        for column in [self.target, *self.ignore]:
            if column not in columns:
                raise ValueError(f"{path} has no column {column!r}; it has {', '.join(columns)}")
        for column in self.ignore:
            columns.pop(column, None)
        target = str(self.target)
        if target not in columns:
            raise ValueError(f"the target {target!r} of {path} cannot be ignored")
        values = columns.pop(target)
        if not columns:
            raise ValueError(f"{path} has no columns besides the target {target!r}")
        try:
            targets, classes = parse_targets(values, self.kind)
        except ValueError as error:
            raise ValueError(f"{path}: the target {target!r} {error}") from None
        return Table(columns, targets, classes)

    # Encoding ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _rows(self) -> dict[str, Tensor]:
        """Indices of the rows of each split."""
        y = self._table.targets
        labels = None if self.class_names is None else y
        rows = split_train_val_test(len(y), self.val_split, self.test_split, self.seed, labels)
        empty = [split for split, part in rows.items() if not len(part)]
        if empty:
            given = f"val_split={self.val_split} and test_split={self.test_split} of {len(y)} rows"
            raise ValueError(f"{given} leave nothing for {' and '.join(empty)}: each of the three needs a row")
        return rows

    @cached_property
    def _encodings(self) -> list[NumberColumn | CategoryColumn]:
        train = self._rows["train"]
        return [fit_column(name, values, train) for name, values in self._table.columns.items()]

    def _encode(self, columns: dict[str, list[Any]]) -> Tensor:
        """Return the features ``(n, d)`` of rows."""
        return torch.cat([encoding.encode(columns[encoding.name]) for encoding in self._encodings], 1)

    def splits(self) -> dict[str, Dataset]:
        x = self._encode(self._table.columns)
        y = self._table.targets
        return {split: BatchTensorDataset(x[rows], y[rows]) for split, rows in self._rows.items()}

    def predict_dataset(self) -> Dataset | None:
        if self.predict_file is None:
            return None
        columns = read_csv(Path(self.predict_file))
        for name in self._table.columns:
            if name not in columns:
                needed = ", ".join(self._table.columns)
                raise ValueError(f"{self.predict_file} has no column {name!r}; it needs {needed}")
        return BatchTensorDataset(self._encode(columns))


def load_bundled(name: str) -> Table:
    """Return one of the tables that scikit-learn ships."""
    import sklearn.datasets

    data = getattr(sklearn.datasets, f"load_{name}")()
    columns = {str(column): data.data[:, i].tolist() for i, column in enumerate(data.feature_names)}
    targets = torch.from_numpy(data.target)
    if name == "diabetes":
        return Table(columns, targets.float(), None)
    return Table(columns, targets.long(), [str(label) for label in data.target_names])


def parse_targets(values: list[str], kind: str | None) -> tuple[Tensor, list[str] | None]:
    """Return the targets of a column and the names of their classes, null for a regression.

    Args:
        values: the cells.
        kind: ``classification``, ``regression``, or null to choose by the values.
    """
    num_missing = sum(is_missing(value) for value in values)
    if num_missing:
        raise ValueError(f"is missing in {num_missing} rows; remove or fill them")
    numbers = [number(value) for value in values]
    no_numbers = [value for value, parsed in zip(values, numbers, strict=True) if math.isnan(parsed)]
    if kind is None:
        many_values = not no_numbers and len(set(numbers)) > MAX_CLASSES
        kind = "regression" if many_values else "classification"
    if kind == "regression":
        if no_numbers:
            raise ValueError(f"holds {no_numbers[0]!r}, which is not a number")
        return torch.tensor(numbers), None
    classes = sorted(set(values))
    if not no_numbers:
        classes.sort(key=number)  # 9 before 10
    if len(classes) < 2:
        raise ValueError(f"has one value only, {classes[0]!r}")
    index = {name: i for i, name in enumerate(classes)}
    return torch.tensor([index[value] for value in values]), classes
