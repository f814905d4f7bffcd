"""Files of predictions: CSV, JSON lines and Parquet, written row by row."""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.files import atomic_file

SUFFIXES = (".csv", ".jsonl", ".parquet")
CHUNK = 10_000  # rows of a Parquet row group
Row = dict[str, Any]


def check_path(path: Path) -> None:
    """Raise ValueError for a file that predictions cannot be written to."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"predictions are written as {', '.join(SUFFIXES)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"no folder {str(path.parent)!r} to write {path.name} into")
    if path.suffix == ".parquet":
        import_pyarrow()


def import_pyarrow() -> Any:
    """Return pyarrow, with its module of Parquet."""
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError("predictions as .parquet need the package pyarrow: pip install pyarrow") from None
    return importlib.import_module("pyarrow")


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows of plain values to a file, whole or not at all, and return their number.

    Args:
        path: ends in ``.csv``, ``.jsonl`` or ``.parquet``.
        rows: with the same columns.
    """
    counter = _Counter(rows)
    with atomic_file(path) as temporary:
        if path.suffix == ".csv":
            _write_csv(temporary, counter)
        elif path.suffix == ".jsonl":
            _write_json_lines(temporary, counter)
        else:
            _write_parquet(temporary, counter)
    return counter.count


class _Counter:
    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = rows
        self.count = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            self.count += 1
            yield row


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    header: list[str] | None = None
    # The name of a file may hold bytes that are no text.
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        for row in rows:
            if header is None:
                header = list(row)
                writer.writerow(header)
            writer.writerow([_cell(row.get(name)) for name in header])


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _write_json_lines(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """Return a value with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    pyarrow = import_pyarrow()
    lines = path.with_name(f"{path.name}.0")  # the ending marks it as abandoned, should the process be killed
    try:
        _write_json_lines(lines, rows)
        # A column may have no value in the first rows, so that its type shows later.
        schema = None
        for table in _tables(pyarrow, lines):
            schemas = [table.schema] if schema is None else [schema, table.schema]
            schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
        schema = pyarrow.schema([]) if schema is None else schema
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for table in _tables(pyarrow, lines, schema):
                writer.write_table(table)
    finally:
        lines.unlink(missing_ok=True)


def _tables(pyarrow: Any, lines: Path, schema: Any = None) -> Iterator[Any]:
    with open(lines, encoding="utf-8") as file:
        while chunk := list(islice(file, CHUNK)):
            yield pyarrow.Table.from_pylist([json.loads(line) for line in chunk], schema=schema)
