"""CSV files with a header: separators, encodings, quotes and empty rows, as spreadsheets and programs write them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from zoo.data.csv_numbers import MISSING as MISSING
from zoo.data.csv_numbers import is_missing as is_missing
from zoo.data.csv_numbers import number as number
from zoo.data.text.encoding import check_encoding, read_text
from zoo.distributed import say

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_NAMED_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}
_SAMPLE_ROWS = 200  # rows by which the separator is chosen where the header leaves a choice
_MAX_CELL = 2**31 - 1  # characters; csv allows 131,072, and texts may be longer

Record = tuple[int, list[str]]
"""Number of a row in its file, the header being row 1, and its cells."""


@dataclass
class CSVTable:
    """A table as text, without surrounding space in its cells.

    Args:
        path: of the file.
        columns: the cells of each column, by its name.
        rows: number of each row in the file, the header being row 1.
    """

    path: str
    columns: dict[str, list[str]]
    rows: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def cell(self, index: int, column: str) -> str:
        """Return where a cell is, for messages."""
        return f"{self.path}, row {self.rows[index]}, column {column!r}"

    def require(self, *names: str) -> None:
        """Raise ValueError where a column is missing."""
        for name in names:
            if name in self.columns:
                continue
            hint = ""
            if len(self.columns) == 1:
                hint = "; if that is several columns, give --data.separator"
            raise ValueError(f"{self.path} has no column {name!r}; it has {', '.join(self.columns)}{hint}")


def read_table(path: str | Path, separator: str | None = None, encoding: str | None = None) -> CSVTable:
    """Read a CSV file with a header.

    Empty rows are left out, as are columns without a name, and a line says so.

    Args:
        path: the file.
        separator: between columns; null finds out which of comma, semicolon, tab and vertical bar it is.
        encoding: of a file without a byte order mark; null is UTF-8.

    Raises:
        ValueError: there is no such file, it is not text in this encoding, two columns have the same name, its rows
            are not of one length, or the separator is not clear.
    """
    path = Path(path)
    text = read_text(path, encoding or "utf-8")
    if separator is None:
        separator, text = _separator_line(text)
    if separator is None:
        separator = _find_separator(path, text)
    records = _records(path, text, separator)
    kept = [(row, cells) for row, cells in records if any(cells)]
    if not kept:
        raise ValueError(f"{path} has no rows")
    header_row, header = kept[0]
    rows = kept[1:]
    if not rows:
        raise ValueError(f"{path} has no rows below its header")
    _check_lengths(path, header, rows)
    _check_names(path, header)
    last = rows[-1][0]
    # Blank lines at the end of a file are no rows.
    empty = [row for row, cells in records if not any(cells) and (row < last or cells) and row > header_row]
    if empty:
        say(f"{path}: {len(empty)} empty rows are left out (the first is row {empty[0]})")
    nameless = [i for i, name in enumerate(header) if not name]
    if nameless:
        which = ", ".join(str(i + 1) for i in nameless)
        say(f"{path}: {len(nameless)} columns without a name are left out (column {which})")
    columns = {name: [cells[i] for _, cells in rows] for i, name in enumerate(header) if name}
    return CSVTable(str(path), columns, [row for row, _ in rows])


def read_csv(path: Path, encoding: str | None = None) -> dict[str, list[str]]:
    """Return the columns of a CSV file with a header, as text without surrounding space; see :func:`read_table`."""
    return read_table(path, encoding=encoding).columns


def check_format(separator: str | None, encoding: str | None) -> str | None:
    """Return the separator as one character.

    Args:
        separator: one character, or ``tab``, ``comma``, ``semicolon`` or ``space``; null is returned as it is.
        encoding: name of a text encoding, or null.

    Raises:
        ValueError: they are not such.
    """
    if encoding is not None:
        check_encoding(encoding)
    if separator is None:
        return None
    separator = _NAMED_SEPARATORS.get(separator, separator)
    if len(separator) != 1 or separator in '"\r\n':
        raise ValueError(f"separator must be one character, such as ';', or tab, got {separator!r}")
    return separator


def _separator_line(text: str) -> tuple[str | None, str]:
    """Return the separator of Excel's first line ``sep=;`` and the rest of the text; None without such a line."""
    first, _, rest = text.partition("\n")
    if len(first) == 5 and first.startswith("sep="):
        return first[4], rest
    return None, text


def _find_separator(path: Path, text: str) -> str:
    """Return the separator that makes columns of the header and, of several, rows of one length."""
    found = []
    for separator in SEPARATORS:
        lengths = _lengths(text, separator, 1)
        if lengths and lengths[0] > 1:
            found.append(separator)
    if len(found) < 2:
        return found[0] if found else ","
    regular = [separator for separator in found if len(set(_lengths(text, separator, _SAMPLE_ROWS))) == 1]
    if len(regular) > 1:
        names = " or ".join(SEPARATORS[separator] for separator in regular)
        raise ValueError(f"{path}: columns may be separated by {names}, all rows fit both: give --data.separator")
    return (regular or found)[0]


def _lengths(text: str, separator: str, count: int) -> list[int]:
    """Return the number of cells of the first rows that are not blank; empty where they cannot be read so."""
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        rows = list(islice((row for row in reader if any(cell.strip() for cell in row)), count))
    except csv.Error:
        return []
    return [len(row) for row in rows]


def _records(path: Path, text: str, separator: str) -> list[Record]:
    """Return all rows, blank ones too."""
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    records: list[Record] = []
    try:
        for row, cells in enumerate(reader, 1):
            records.append((row, [cell.strip() for cell in cells]))
    except csv.Error as error:
        reason = str(error)
        if "unexpected end of data" in reason:
            reason = "a quotation mark opens a cell there and is never closed"
        raise ValueError(f"{path}, row {len(records) + 1}: {reason}") from None
    return records


def _check_lengths(path: Path, header: list[str], rows: list[Record]) -> None:
    wrong = [(row, cells) for row, cells in rows if len(cells) != len(header)]
    if not wrong:
        return
    row, cells = wrong[0]
    more = ""
    if len(wrong) > 1:
        more = f" (and {len(wrong) - 1} more such rows)"
    hint = ""
    if len(header) == 1:
        hint = "; if the header is several columns, give --data.separator"
    raise ValueError(f"{path}, row {row}: {len(cells)} values for {len(header)} columns{more}{hint}")


def _check_names(path: Path, header: list[str]) -> None:
    if not any(header):
        raise ValueError(f"{path} has no names of columns in its first row")
    for name, count in Counter(header).items():
        if name and count > 1:
            raise ValueError(f"{path} has {count} columns named {name!r}: give each a name of its own")
