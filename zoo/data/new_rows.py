"""New rows of a table for prediction: CSV, JSON lines, Parquet, and tables in memory."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from zoo.data.csv_tables import CSVTable, read_table
from zoo.data.new_samples import as_tensor, is_dataframe, is_paths
from zoo.data.sources import TABLES, find_files_of, table_suffix, with_stdin
from zoo.data.text.encoding import read_text
from zoo.data.text.json_lines import parse_object
from zoo.distributed import say
from zoo.errors import UserError

READS = "tables: .csv, .tsv, .jsonl or .parquet"


def read_rows(
    source: Any,
    separator: str | None = None,
    encoding: str | None = None,
    names: Sequence[str] = (),
) -> list[CSVTable]:
    """Return the tables that a source names.

    Args:
        source: paths; a DataFrame, a list of dicts, a dict of columns, or an array with a column for each name.
        separator: of CSV files, see :func:`zoo.data.csv_tables.read_table`.
        encoding: of text files.
        names: of the columns of an array.

    Raises:
        UserError: it is no table.
    """
    if is_paths(source):
        with with_stdin(source, table_suffix) as sources:
            files = find_files_of(sources, TABLES, READS)
            return [read_file(path, separator, encoding) for path in files]
    if is_dataframe(source):
        return [of_dataframe(source)]
    if isinstance(source, Mapping):
        return [of_columns({str(name): list(cells) for name, cells in source.items()}, "the table")]
    if isinstance(source, (list, tuple)) and source and all(isinstance(row, Mapping) for row in source):
        return [of_columns(columns_of(source), "the table")]
    if isinstance(source, (list, tuple, np.ndarray, Tensor)):
        values = as_tensor(source, "rows of a table are")
        if values.ndim != 2 or values.shape[1] != len(names):
            shape = tuple(values.shape)
            raise UserError(f"rows (n, {len(names)}) are needed, with {', '.join(names)}: got {shape}")
        return [of_columns({name: values[:, i].tolist() for i, name in enumerate(names)}, "the array")]
    raise UserError(f"rows of a table are needed: paths, a DataFrame, dicts or an array; got {type(source).__name__}")


def read_file(path: Path, separator: str | None = None, encoding: str | None = None) -> CSVTable:
    """Read a table by its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _read_json_lines(path, encoding)
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix == ".tsv" and separator is None:
        separator = "\t"
    return read_table(path, separator, encoding)


def of_columns(columns: dict[str, list[Any]], source: str) -> CSVTable:
    """Return a table of columns in memory, whose rows are numbered from 1."""
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) > 1:
        raise UserError(f"{source} has columns of different lengths: {sorted(lengths)}")
    count = lengths.pop() if lengths else 0
    cells = {name: [plain_cell(cell) for cell in values] for name, values in columns.items()}
    return CSVTable(source, cells, list(range(1, count + 1)))


def of_dataframe(frame: Any) -> CSVTable:
    """Return a DataFrame of pandas as a table."""
    if not frame.columns.is_unique:
        raise UserError(f"the DataFrame has columns of the same name: {', '.join(map(str, frame.columns))[:120]}")
    columns = {str(name): frame[name].astype(object).tolist() for name in frame.columns}
    return of_columns(columns, "the DataFrame")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the columns of rows; a row without one of them has an empty cell there."""
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(map(str, row))
    return {name: [row.get(name) for row in rows] for name in names}


def plain_cell(cell: Any) -> Any:
    """Return a cell as text or a number; empty where it is missing."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return ""
    if hasattr(cell, "isoformat"):
        return cell.isoformat(sep=" ") if hasattr(cell, "hour") else cell.isoformat()
    if isinstance(cell, (bool, np.bool_)):
        return str(bool(cell))
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, (int, float)):
        return "" if cell != cell else cell
    return str(cell).strip()


def _read_json_lines(path: Path, encoding: str | None) -> CSVTable:
    lines = read_text(path, encoding).split("\n")
    rows = []
    numbers = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        rows.append(parse_object(line, partial("{}, line {}".format, path, number)))
        numbers.append(number)
    if not rows:
        raise UserError(f"{path} has no rows")
    table = of_columns(columns_of(rows), str(path))
    return CSVTable(str(path), table.columns, numbers)


def _read_parquet(path: Path) -> CSVTable:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(f"{path}: Parquet needs the package pyarrow: pip install pyarrow") from None
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # errors of pyarrow are such
        raise UserError(f"{path} is no Parquet file that can be read: {' '.join(str(error).split())[:120]}") from None
    if not table.num_rows:
        raise UserError(f"{path} has no rows")
    return of_columns(table.to_pydict(), str(path))


# Columns --------------------------------------------------------------------------------------------------------------


def check_columns(table: CSVTable, needed: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a table without a column that is needed, and print which columns are not used.

    Args:
        table: new rows.
        needed: columns that are read.
        known: columns that may be there besides, such as the target.
    """
    needed = list(needed)
    missing = [name for name in needed if name not in table.columns]
    if missing:
        few = ", ".join(map(repr, missing[:8])) + (", ..." if len(missing) > 8 else "")
        there = ", ".join(list(table.columns)[:12])
        hint = "; if that is several columns, give --data.separator" if len(table.columns) == 1 else ""
        columns = "column" if len(missing) == 1 else "columns"
        raise UserError(f"{table.path} has no {columns} {few}; it has {there}{hint}")
    extra = [name for name in table.columns if name not in {*needed, *known}]
    if extra:
        say(f"{table.path}: columns that the model does not use: {', '.join(extra[:12])}")
