"""Encodings of the columns of a table, fitted to its training rows: numbers, dates, one-hot categories.

Each encoding is a dataclass of plain values, so that a checkpoint keeps it; ``from_plain(encoding.plain())`` is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from zoo.data.csv_numbers import Decimal, is_missing, is_missing_number, number, numbers, unit_of
from zoo.data.statistics import is_constant, mean_and_std
from zoo.data.table_dates import date_features, has_time, is_day_first, looks_like_dates, parse_date
from zoo.distributed import say

FEW_NUMBERS = 20  # a column of words and no more different numbers than this may be one of codes
_MANY_CATEGORIES = 50
_LARGEST_EXACT = 2**53  # float64 holds all whole numbers up to it


@dataclass
class Column:
    """The cells of a column and how to read them.

    Args:
        name: of the column.
        cells: of all rows, as text or numbers.
        where: returns the place of a cell, by its index, for messages.
        decimal: the decimal sign of its numbers.
    """

    name: str
    cells: Sequence[Any]
    where: Callable[[int], str]
    decimal: Decimal = "."

    @classmethod
    def of(cls, name: str, cells: Sequence[Any]) -> Column:
        """Return a column that is not of a file."""
        return cls(name, cells, lambda i: f"row {i + 1}, column {name!r}")


@dataclass
class NumberColumn:
    """A column of numbers, standardized; a missing number becomes the training mean.

    Args:
        name: of the column.
        mean: of the training rows.
        std: of the training rows, 1 where they are constant.
        has_indicator: whether a second column marks the missing numbers with 1, as some training rows lack one.
    """

    kind: ClassVar[str] = "number"
    name: str
    mean: float
    std: float
    has_indicator: bool

    @classmethod
    def fit(cls, column: Column, train: Tensor) -> NumberColumn:
        """Return the encoding of a column by its cells in the training rows."""
        cells = [column.cells[i] for i in train.tolist()]
        values = torch.tensor(numbers(cells, column.decimal), dtype=torch.float64)
        known = values[~values.isnan()]
        mean, std = mean_and_std(known)
        if len(known) > 1 and is_constant(mean, float(known.std(correction=0)), len(known)):
            say(f"column {column.name!r} is {mean:g} in all training rows")
        return cls(column.name, mean, std, bool(values.isnan().any()))

    @property
    def width(self) -> int:
        return 2 if self.has_indicator else 1

    def encode(self, column: Column) -> Tensor:
        """Return a column ``(n, 1)``, or ``(n, 2)`` with the indicator.

        Raises:
            ValueError: a cell is neither a number nor missing.
        """
        values = torch.tensor(numbers(column.cells, column.decimal), dtype=torch.float64)
        missing = values.isnan()
        indices = missing.nonzero().flatten().tolist()
        for i in indices:
            if not is_missing_number(column.cells[i]):
                raise ValueError(f"{column.where(i)}: {column.cells[i]!r} is not a number, as the training rows have")
        if indices:
            first = str(column.cells[indices[0]])
            example = f" (such as {first!r})" if first else ""
            filled = f"filled with the training mean {self.mean:.4g}"
            say(f"column {self.name!r}: {len(indices)} missing numbers{example} {filled}")
        scaled = (values.where(~missing, torch.tensor(self.mean, dtype=torch.float64)) - self.mean) / self.std
        if not self.has_indicator:
            return scaled.float().unsqueeze(1)
        return torch.stack([scaled, missing.double()], 1).float()


@dataclass
class DateColumn:
    """A column of dates: its years, standardized, and sine and cosine of the phase in the year, the week and the day.

    A missing date becomes zeros.

    Args:
        name: of the column.
        mean: of the years of the training rows.
        std: of the years of the training rows, 1 where they are constant.
        day_first: whether 1/2/2024 is in February.
        with_time: whether there are two columns for the time of day.
    """

    kind: ClassVar[str] = "date"
    name: str
    mean: float
    std: float
    day_first: bool
    with_time: bool

    @classmethod
    def fit(cls, column: Column, train: Tensor) -> DateColumn:
        """Return the encoding of a column by its cells in the training rows.

        Raises:
            ValueError: day and month cannot be told apart.
        """
        cells = [str(column.cells[i]) for i in train.tolist() if not is_missing(column.cells[i])]
        try:
            day_first = is_day_first(cells)
        except ValueError as error:
            advice = "write them as 2024-03-31, or leave the column out: --data.ignore"
            raise ValueError(f"column {column.name!r} {error}: {advice} '[{column.name}]'") from None
        with_time = has_time(cells)
        dates = [date for cell in cells if (date := parse_date(cell, day_first)) is not None]
        years = date_features(dates, with_time)[:, 0] if dates else np.zeros(0)
        mean, std = mean_and_std(torch.from_numpy(years))
        say(f"column {column.name!r} has dates: inputs are its year, and its day in the year and in the week")
        return cls(column.name, mean, std, day_first, with_time)

    @property
    def width(self) -> int:
        return 7 if self.with_time else 5

    def encode(self, column: Column) -> Tensor:
        """Return columns ``(n, 5)``, or ``(n, 7)`` with the time of day.

        Raises:
            ValueError: a cell is neither a date nor missing.
        """
        known = []
        dates = []
        for i, cell in enumerate(column.cells):
            if is_missing(cell):
                continue
            date = parse_date(str(cell), self.day_first)
            if date is None:
                raise ValueError(f"{column.where(i)}: {cell!r} is not a date, as the training rows have")
            known.append(i)
            dates.append(date)
        block = torch.zeros(len(column.cells), self.width, dtype=torch.float64)
        if dates:
            features = torch.from_numpy(date_features(dates, self.with_time))
            features[:, 0] = (features[:, 0] - self.mean) / self.std
            block[known] = features
        if len(known) < len(column.cells):
            say(f"column {self.name!r}: {len(column.cells) - len(known)} missing dates are zeros")
        return block.float()


@dataclass
class CategoryColumn:
    """A column of categories, one-hot; a missing value and a category that training has not become zeros.

    Args:
        name: of the column.
        categories: of the training rows, sorted.
    """

    kind: ClassVar[str] = "category"
    name: str
    categories: list[str]

    @classmethod
    def fit(cls, column: Column, train: Tensor) -> CategoryColumn:
        """Return the encoding of a column by its cells in the training rows."""
        cells = [column.cells[i] for i in train.tolist()]
        categories = sorted({str(cell) for cell in cells if not is_missing(cell)})
        if len(categories) > _MANY_CATEGORIES and len(categories) > len(cells) / 2:
            say(
                f"column {column.name!r} has {len(categories)} different texts in {len(cells)} training rows, each an"
                f" input of its own: is it an identifier? --data.ignore '[{column.name}]' leaves it out"
            )
        return cls(column.name, categories)

    @property
    def width(self) -> int:
        return len(self.categories)

    def encode(self, column: Column) -> Tensor:
        """Return one-hot rows ``(n, k)``."""
        index = category_index(self.categories)
        block = torch.zeros(len(column.cells), self.width)
        num_missing = 0
        unknown = []
        for row, cell in enumerate(column.cells):
            position = find_category(index, cell)
            if position is not None:
                block[row, position] = 1.0
            elif is_missing(cell):
                num_missing += 1
            else:
                unknown.append(str(cell))
        if num_missing:
            say(f"column {self.name!r}: {num_missing} missing values are no category")
        if unknown:
            named = ", ".join(sorted(set(unknown))[:5])
            say(f"column {self.name!r}: {named} not seen in training; {len(unknown)} rows have no category")
        return block


Encoding = NumberColumn | DateColumn | CategoryColumn


def category_index(categories: Sequence[str]) -> dict[str | float, int]:
    """Return the position of each category, by its name; by its value, too, where all are numbers or truth values.

    A program that writes a table anew may make 1.0 of 1 and True of true.
    """
    index: dict[str | float, int] = {name: i for i, name in enumerate(categories)}
    values = [number(name) for name in categories]
    if len(set(values)) == len(values) and all(value == value for value in values):
        index |= {value: i for i, value in enumerate(values)}
    truth = {name.lower(): i for i, name in enumerate(categories)}
    if truth.keys() <= {"true", "false"} and len(truth) == len(categories):
        for name, i in truth.items():
            index |= {name: i, name.upper(): i, name.capitalize(): i}
    return index


def find_category(index: dict[str | float, int], cell: Any) -> int | None:
    """Return the position of the category of a cell, None if it is not among them."""
    position = index.get(str(cell))
    if position is None:
        position = index.get(number(cell))
    return position


def fit_column(column: Column, train: Tensor, categorical: bool = False) -> Encoding:
    """Return the encoding of a column, by its cells in the training rows: of numbers, of dates, else of categories.

    Args:
        column: the column.
        train: indices of the training rows.
        categorical: whether to read numbers as names of categories.

    Raises:
        ValueError: nearly all cells are numbers, and others are not; the message names the first of these.
    """
    if categorical:
        return CategoryColumn.fit(column, train)
    rows = train.tolist()
    values = numbers([column.cells[i] for i in rows], column.decimal)
    words = [
        i for i, value in zip(rows, values, strict=True) if value != value and not is_missing_number(column.cells[i])
    ]
    known = {value for value in values if value == value}
    if not words:
        return NumberColumn.fit(column, train)
    num_numbers = sum(value == value for value in values)
    if _is_column_of_numbers(num_numbers, len(known), [str(column.cells[i]) for i in words]):
        first = words[0]
        rest = "all others are" if len(words) == 1 else f"{num_numbers} others are ({len(words)} are not)"
        raise ValueError(
            f"{column.where(first)}: {column.cells[first]!r} is not a number, as {rest}: correct the cell or leave it"
            f" empty; --data.categorical '[{column.name}]' reads the column as names of categories"
        )
    refuse_units(column, words)
    if not known and looks_like_dates([str(column.cells[i]) for i in words]):
        return DateColumn.fit(column, train)
    return CategoryColumn.fit(column, train)


def refuse_units(column: Column, indices: Sequence[int]) -> None:
    """Raise ValueError where cells are many different numbers with a unit, which would be read as names.

    Args:
        column: the column.
        indices: of the cells that are no numbers.
    """
    cells = [str(column.cells[i]) for i in indices]
    if len(set(cells)) <= FEW_NUMBERS:
        return
    unit = unit_of(cells)
    if unit is not None:
        raise ValueError(
            f"{column.where(indices[0])}: {cells[0]!r} is a number with {unit!r}, as others of the column are: remove"
            f" it from the cells; --data.categorical '[{column.name}]' reads the column as names of categories"
        )


def _is_column_of_numbers(num_numbers: int, different: int, words: list[str]) -> bool:
    """Return whether a column with some words is one of numbers: these are many, or each word stands there once."""
    if different > FEW_NUMBERS:
        return num_numbers >= len(words)
    occurs_once = len(set(words)) == len(words)
    return different > 1 and occurs_once and num_numbers >= 9 * len(words)


def warn_of_identifier(column: Column) -> None:
    """Print a line where a column of whole numbers looks like an identifier of its rows."""
    cells = [cell for cell in column.cells if not is_missing(cell)]
    if len(cells) < 10 or len({str(cell) for cell in cells}) < len(cells):
        return
    values = numbers(cells, column.decimal)
    if not all(value == value and value == int(value) for value in values):
        return
    name = column.name.lower()
    named = name in ("id", "index", "row", "nr", "no", "key", "uuid") or name.endswith(("_id", " id"))
    consecutive = max(values) - min(values) == len(values) - 1
    huge = max(map(abs, values)) > _LARGEST_EXACT
    if not (named or column.name.endswith(("Id", "ID")) or consecutive or huge):
        return
    why = "another whole number in each row"
    if huge:
        why += ", some beyond 2^53, whose last digits are lost"
    advice = f"--data.ignore '[{column.name}]' leaves it out, --data.id {column.name} puts it beside predictions"
    say(f"column {column.name!r} looks like an identifier ({why}) and is an input: {advice}")


def plain(encoding: Encoding) -> dict[str, Any]:
    """Return an encoding as plain values, for checkpoints."""
    return {"kind": encoding.kind, **asdict(encoding)}


def from_plain(values: dict[str, Any]) -> Encoding:
    """Return the encoding of plain values, see :func:`plain`."""
    values = dict(values)
    kinds: dict[str, type[Encoding]] = {cls.kind: cls for cls in (NumberColumn, DateColumn, CategoryColumn)}
    return kinds[values.pop("kind")](**values)


def fit_as_before(column: Column, train: Tensor) -> Encoding:
    """Return the encoding that zoo had for a column before checkpoints kept encodings.

    Numbers if every cell of all rows is one or missing, with an indicator if any is missing; else categories.
    """
    values = numbers(column.cells, column.decimal)
    missing = [value != value for value in values]
    if any(is_nan and not is_missing(cell) for is_nan, cell in zip(missing, column.cells, strict=True)):
        return CategoryColumn.fit(column, train)
    fitted = NumberColumn.fit(column, train)
    fitted.has_indicator = any(missing)
    return fitted
