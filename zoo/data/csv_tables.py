"""CSV files with a header, and the numbers and missing values in them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})  # cells without a value, in lower case


def read_csv(path: Path) -> dict[str, list[str]]:
    """Return the columns of a CSV file with a header, as text without surrounding space.

    Raises:
        ValueError: there is no such file, it is not UTF-8, or its rows are not of one length.
    """
    if path.is_dir():
        raise ValueError(f"no file {path} (it is a folder)")
    if not path.is_file():
        raise ValueError(f"no file {path}")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [[cell.strip() for cell in row] for row in reader if row]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    if not rows and header:
        raise ValueError(f"{path} has no rows below its header")
    if not rows:
        raise ValueError(f"{path} has no rows")
    for i, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {i}: {len(row)} values for {len(header)} columns")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def is_missing(cell: str | float) -> bool:
    """Return whether a cell has no value."""
    return str(cell).lower() in MISSING


def number(cell: str | float) -> float:
    """Return a cell as a number, NaN where it is missing, infinite or no number."""
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    if math.isinf(value):
        return math.nan
    return value
