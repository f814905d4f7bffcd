"""What a table's training rows determine: encodings of its columns and of its target. A checkpoint keeps it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.data.csv_numbers import Decimal, is_missing, number, numbers
from zoo.data.statistics import mean_and_std
from zoo.data.table_columns import (
    Column,
    Encoding,
    category_index,
    find_category,
    from_plain,
    plain,
    refuse_units,
)

MAX_CLASSES = 20  # a numeric target of more different values is a regression
_CELL_END = "\x1f"
_ROW_END = "\x1e"


@dataclass
class Table:
    """A table as it was read.

    Args:
        source: name of the table, for messages.
        columns: the features, by name.
        target: the target column; null for rows without one.
        rows: number of each row in its file.
        ids: identifier of each row; null if no column is one.
        decimal: the decimal sign in the table, null if nothing tells.
    """

    source: str
    columns: dict[str, Column]
    target: Column | None
    rows: list[int]
    ids: list[str] | None = None
    decimal: Decimal | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class FittedTable:
    """What the training rows of a table determine.

    Args:
        encodings: of the features, in the order of the inputs.
        classes: names of the classes, in the order of their indices; null for a regression.
        target_mean: mean of the targets of a regression.
        target_std: standard deviation of the targets of a regression.
        num_rows: number of rows of the whole table, of training, validation and test.
        digest: hash of these rows, by which the table is recognized.
        decimal: the decimal sign in the table, null if nothing tells.
    """

    encodings: list[Encoding]
    classes: list[str] | None
    target_mean: float | None
    target_std: float | None
    num_rows: int
    digest: str
    decimal: Decimal | None = None
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = [encoding.name for encoding in self.encodings]

    @property
    def input_dim(self) -> int:
        return sum(encoding.width for encoding in self.encodings)

    def encode(self, columns: dict[str, Column]) -> Tensor:
        """Return the features ``(n, d)`` of rows."""
        return torch.cat([encoding.encode(columns[encoding.name]) for encoding in self.encodings], 1)

    def encode_targets(self, target: Column) -> Tensor:
        """Return class indices or numbers ``(n,)``.

        Raises:
            ValueError: a cell is missing, is no number, or names a class that training has not.
        """
        if self.classes is None:
            return _numeric_targets(target)
        _check_not_missing(target)
        index = category_index(self.classes)
        positions = []
        for i, cell in enumerate(target.cells):
            position = find_category(index, cell)
            if position is None:
                raise ValueError(f"{target.where(i)}: {cell!r} is no class of training: {', '.join(self.classes[:10])}")
            positions.append(position)
        return torch.tensor(positions)

    def is_table(self, table: Table) -> str:
        """Return what a table is to the one of training: ``same``, ``grown`` (rows were added below), or ``other``."""
        if table.target is None or len(table) < self.num_rows:
            return "other"
        if digest(table, self.names, self.num_rows) != self.digest:
            return "other"
        return "same" if len(table) == self.num_rows else "grown"

    def plain(self) -> dict[str, Any]:
        """Return this as plain values, for checkpoints."""
        return {
            "columns": [plain(encoding) for encoding in self.encodings],
            "classes": self.classes,
            "target_mean": self.target_mean,
            "target_std": self.target_std,
            "num_rows": self.num_rows,
            "digest": self.digest,
            "decimal": self.decimal,
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> FittedTable:
        """Return what :meth:`plain` was called on.

        Raises:
            ValueError: the values are not such.
        """
        try:
            values = dict(values)
            encodings = [from_plain(column) for column in values.pop("columns")]
            return cls(encodings=encodings, **values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"fitted is what a checkpoint keeps of a table, and cannot be read: {error}") from None


def fit_table(
    table: Table,
    targets: Tensor,
    classes: list[str] | None,
    train: Tensor,
    fit_column: Callable[[Column, Tensor], Encoding],
) -> FittedTable:
    """Fit the encodings of a table to its training rows.

    Args:
        table: the whole table.
        targets: ``(n,)``.
        classes: names of the classes; null for a regression.
        train: indices of the training rows.
        fit_column: returns the encoding of a column.
    """
    mean = None
    std = None
    if classes is None:
        mean, std = mean_and_std(targets[train], correction=1)
    encodings = [fit_column(column, train) for column in table.columns.values()]
    return FittedTable(
        encodings=encodings,
        classes=classes,
        target_mean=mean,
        target_std=std,
        num_rows=len(table),
        digest=digest(table, list(table.columns), len(table)),
        decimal=table.decimal,
    )


def digest(table: Table, names: Sequence[str], count: int) -> str:
    """Return a hash of the first rows of a table: of the named columns and the target."""
    assert table.target is not None
    columns = [table.columns[name] for name in names]
    sha = hashlib.sha256()
    for column in [*columns, table.target]:
        cells = _CELL_END.join(map(str, column.cells[:count]))
        sha.update((column.name + _CELL_END + cells + _ROW_END).encode())
    return sha.hexdigest()


def parse_targets(target: Column, kind: str | None) -> tuple[Tensor, list[str] | None]:
    """Return the targets of a column and the names of their classes, null for a regression.

    Args:
        target: the column.
        kind: ``classification``, ``regression``, or null to choose by the values.
    """
    _check_not_missing(target)
    values = numbers(target.cells, target.decimal)
    words = [i for i, value in enumerate(values) if math.isnan(value)]
    no_numbers = bool(words)
    if kind is None:
        _check_mixed(target, values, words)
        many_values = not no_numbers and len(set(values)) > MAX_CLASSES
        kind = "regression" if many_values else "classification"
    if kind == "regression":
        return _numeric_targets(target), None
    names = [str(cell) for cell in target.cells]
    classes = sorted(set(names))
    if not no_numbers:
        classes.sort(key=lambda name: number(name, target.decimal))  # 9 before 10
    if len(classes) < 2:
        raise ValueError(f"{target.where(0)}: the target has one value only, {classes[0]!r}")
    index = {name: i for i, name in enumerate(classes)}
    return torch.tensor([index[name] for name in names]), classes


def _check_mixed(target: Column, values: list[float], words: list[int]) -> None:
    """Raise ValueError where a target is of many different numbers, but for some cells."""
    if not words:
        return
    refuse_units(target, words)
    different = len({value for value in values if not math.isnan(value)})
    if different > MAX_CLASSES and len(words) <= len(values) - len(words):
        cell = target.cells[words[0]]
        raise ValueError(
            f"{target.where(words[0])}: the target {cell!r} is not a number, as {len(values) - len(words)} others are;"
            " --data.kind classification reads all as names of classes"
        )


def _numeric_targets(target: Column) -> Tensor:
    _check_not_missing(target)
    values = numbers(target.cells, target.decimal)
    for i, value in enumerate(values):
        if math.isnan(value):
            raise ValueError(f"{target.where(i)}: the target {target.cells[i]!r} is not a number")
    return torch.tensor(values)


def _check_not_missing(target: Column) -> None:
    missing = [i for i, cell in enumerate(target.cells) if is_missing(cell)]
    if missing:
        where = target.where(missing[0])
        raise ValueError(f"{where}: the target is missing, as in {len(missing)} rows; remove or fill them")
