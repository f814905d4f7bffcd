"""Graphs of models of tables: raw columns in, encoded within the graph as in training."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.csv_numbers import is_missing, numbers
from zoo.data.new_rows import read_rows
from zoo.data.table_columns import (
    CategoryColumn,
    Column,
    DateColumn,
    Encoding,
    NumberColumn,
    category_index,
    find_category,
)
from zoo.data.table_dates import YEAR, parse_date
from zoo.data.tabular import Tabular, load_bundled
from zoo.export.dates import DAY, days_of, waves, week_phase, year_bounds
from zoo.export.graph import NUM_SAMPLES, Export, Graph, predicted, without_messages
from zoo.export.heads import Head, Outputs

NONE = float("nan")


class TableGraph(Graph):
    """Encode raw columns as the training rows determine, and call the network.

    Args:
        head: what the task returns.
        encodings: of the columns, in the order of the inputs.
    """

    def __init__(self, head: Head, encodings: Sequence[Encoding]) -> None:
        super().__init__(head)
        self.encodings = encodings

    def forward(self, columns: dict[str, Tensor]) -> Outputs:
        blocks = [encode(encoding, columns[encoding.name]) for encoding in self.encodings]
        return self.head(torch.cat(blocks, 1))  # (b, d)


def encode(encoding: Encoding, values: Tensor) -> Tensor:
    """Return the inputs of the network ``(b, w)`` for the raw values ``(b,)`` of a column."""
    if isinstance(encoding, NumberColumn):
        return _encode_numbers(encoding, values)
    if isinstance(encoding, DateColumn):
        return _encode_dates(encoding, values)
    categories = torch.arange(len(encoding.categories), device=values.device)
    return (values.unsqueeze(1) == categories).float()


def _encode_numbers(encoding: NumberColumn, values: Tensor) -> Tensor:
    missing = values.isnan()
    filled = torch.where(missing, torch.full_like(values, encoding.mean), values)
    scaled = ((filled - encoding.mean) / encoding.std).float()
    if not encoding.has_indicator:
        return scaled.unsqueeze(1)
    return torch.stack([scaled, missing.float()], 1)


def _encode_dates(encoding: DateColumn, values: Tensor) -> Tensor:
    missing = values.isnan()
    seconds = torch.where(missing, torch.zeros_like(values), values).long()
    days = days_of(seconds)
    first, following = year_bounds(days)
    phases = [(days - first).double() / (following - first).double(), week_phase(days)]
    if encoding.with_time:
        phases.append((seconds - days * DAY).double() / DAY)
    years = (seconds.double() / YEAR - encoding.mean) / encoding.std
    block = torch.stack([years, *waves(phases)], 1)  # (b, 5) or (b, 7)
    return torch.where(missing.unsqueeze(1), torch.zeros_like(block), block).float()


def export_of_table(head: Head, data: Tabular, source: Sequence[str] | None) -> Export:
    """Return the graph of a model of tables, with rows to compare it on.

    Args:
        head: what the task returns.
        data: of the training, restored from the checkpoint.
        source: files of rows; null takes the table of training where it is there, and generates some rows.
    """
    fitted = data.fitted
    columns = {encoding.name: generated_cells(encoding) for encoding in fitted.encodings}
    kind = "generated rows"
    real = _real_columns(data, source)
    if real is not None:
        kind = "rows, half of them generated" if source is None else "rows of --samples and as many generated"
        for name, column in real.items():
            values = numbers(column.cells, column.decimal) if is_number(fitted.encodings, name) else column.cells
            columns[name] = [*list(values)[:NUM_SAMPLES], *columns[name]]
    cells = {name: Column.of(name, values) for name, values in columns.items()}
    inputs = {encoding.name: raw_values(encoding, cells[encoding.name]) for encoding in fitted.encodings}
    with without_messages():
        prepared = fitted.encode(cells)  # (b, d)
    return Export(
        graph=TableGraph(head, fitted.encodings),
        inputs=inputs,
        expected=predicted(head, prepared),
        descriptions={encoding.name: describe(encoding) for encoding in fitted.encodings},
        as_dict=True,
        facts={"columns": list(inputs), "categories": categories_of(fitted.encodings), "target": data.target_name},
        source=kind,
    )


def _real_columns(data: Tabular, source: Sequence[str] | None) -> dict[str, Column] | None:
    """Return the columns of a table of the user or of training; None if there is none."""
    if source is not None:
        (read, *_) = read_rows(list(source), data.separator, data.encoding, data.fitted.names)
        return data._new_table(read).columns
    if data.name is not None:
        return load_bundled(data.name).columns
    if data.file is None or not Path(data.file).is_file():
        return None
    try:
        (read, *_) = read_rows([data.file], data.separator, data.encoding, data.fitted.names)
        return data._new_table(read).columns
    except ValueError:  # another file of this name
        return None


def is_number(encodings: Sequence[Encoding], name: str) -> bool:
    return any(encoding.name == name and isinstance(encoding, NumberColumn) for encoding in encodings)


def categories_of(encodings: Sequence[Encoding]) -> dict[str, list[str]]:
    """Return the categories of each column of categories, in the order of their indices."""
    return {encoding.name: encoding.categories for encoding in encodings if isinstance(encoding, CategoryColumn)}


def describe(encoding: Encoding) -> str:
    """Return what a graph takes for a column."""
    if isinstance(encoding, NumberColumn):
        return "numbers (batch,), NaN where missing"
    if isinstance(encoding, DateColumn):
        return "seconds since 1970-01-01 (batch,), NaN where missing"
    return "index of the category (batch,), in the order of categories; -1 for any other and where missing"


def raw_values(encoding: Encoding, column: Column) -> Tensor:
    """Return the cells of a column as a graph takes them: float64 numbers or seconds, or int64 indices."""
    if isinstance(encoding, NumberColumn):
        return torch.tensor(numbers(column.cells, column.decimal), dtype=torch.float64)
    if isinstance(encoding, DateColumn):
        seconds = []
        for cell in column.cells:
            date = None if is_missing(cell) else parse_date(str(cell), encoding.day_first)
            seconds.append(NONE if date is None else float(np.datetime64(date, "s").astype(np.int64)))
        return torch.tensor(seconds, dtype=torch.float64)
    index = category_index(encoding.categories)
    positions = [find_category(index, cell) for cell in column.cells]
    return torch.tensor([-1 if position is None else position for position in positions])


def generated_cells(encoding: Encoding) -> list[Any]:
    """Return cells such as a column may have, the last of them missing."""
    steps = range(NUM_SAMPLES - 1)
    if isinstance(encoding, NumberColumn):
        return [*(encoding.mean + (step - 3) * 0.7 * encoding.std for step in steps), NONE]
    if isinstance(encoding, CategoryColumn):
        count = len(encoding.categories)
        return [*(encoding.categories[step % count] if count else "" for step in steps), "neither of them"]
    dates = []
    for step in steps:
        years = encoding.mean + (step - 3) * 0.7 * encoding.std
        date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=round(years * YEAR))
        dates.append(date.strftime("%Y-%m-%d %H:%M:%S" if encoding.with_time else "%Y-%m-%d"))
    return [*dates, ""]
