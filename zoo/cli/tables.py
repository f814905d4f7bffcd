"""Tables of text for the terminal. Nothing here imports torch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.terminal import one_line, visible

# Columns are shortened no further than this when a table does not fit the terminal.
MIN_COLUMN_WIDTH = 8


def key_value_table(rows: Iterable[tuple[str, Any]]) -> str:
    """Return two aligned columns; floats have four decimals."""
    cells = []
    for name, value in rows:
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        cells.append((one_line(name), one_line(text)))
    width = max((len(name) for name, _ in cells), default=0)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in cells)


def number_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return right-aligned columns under a header, numbers in short form.

    Args:
        rows: one mapping a row; the keys of the first one are the header.
    """
    header = list(rows[0])
    lines = [header]
    for row in rows:
        lines.append([format_cell(row[key]) for key in header])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        texts.append("  " + "  ".join(cells).rstrip())
    return "\n".join(texts)


def format_cell(value: Any) -> str:
    """Format a value: four significant digits for floats, thousands separators for integers, yes and no."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return one_line(str(value))


def confusion_table(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Return a confusion matrix as text: a row for each true class, a column for each predicted class.

    Args:
        counts: of shape (k, k).
        names: of the k classes; column titles are cut to the width of the numbers, at least 8.
    """
    names = [one_line(name) for name in names]
    longest_count = max(len(str(count)) for row in counts for count in row)
    longest_name = max(len(name) for name in names)
    width = max(longest_count, min(8, longest_name)) + 1
    side = max(longest_name, len("true"))
    titles = "".join(name[: width - 1].rjust(width) for name in names)
    lines = [f"  {'true':<{side}}{titles}  (predicted)"]
    for name, row in zip(names, counts, strict=True):
        cells = "".join(f"{count:>{width}}" for count in row)
        lines.append(f"  {name:<{side}}{cells}")
    return "\n".join(lines)


def text_table(header: Sequence[str] | None, rows: Sequence[Sequence[str]], indent: int = 0) -> str:
    """Return a table of texts that fits the terminal: long cells wrap, empty columns are left out.

    Args:
        header: titles of the columns, or None.
        rows: texts, as many in each row as there are titles.
        indent: number of spaces before each line.
    """
    if not rows:
        return ""
    rows = [[visible(cell) for cell in row] for row in rows]
    filled = [i for i in range(len(rows[0])) if any(row[i] for row in rows)]
    lines = [] if header is None else [[header[i] for i in filled]]
    for row in rows:
        lines.append([row[i] for i in filled])
    widths = fit_widths(lines, indent)
    texts = []
    for line in lines:
        texts += _wrapped_row(line, widths, " " * indent)
    return "\n".join(texts)


def fit_widths(lines: Sequence[Sequence[str]], indent: int) -> list[int]:
    """Return the widths of the columns, shortened until they fit the terminal.

    The first column holds the names and stays whole. The widest column may keep twice the width of the others, and
    words are broken only if there is no other way.
    """
    columns = list(zip(*lines, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    longest_words = []
    for column in columns:
        words = [word for cell in column for word in cell.split()]
        longest_words.append(max((len(word) for word in words), default=0))
    widest = max(widths)
    weights = [2 if width == widest else 1 for width in widths]
    available = shutil.get_terminal_size((120, 40)).columns - indent - 2 * (len(widths) - 1)

    def priority(i: int) -> tuple[bool, float]:
        breaks_no_word = widths[i] > longest_words[i]
        return breaks_no_word, widths[i] / weights[i]

    while sum(widths) > available and max(widths[1:], default=0) > MIN_COLUMN_WIDTH:
        widths[max(range(1, len(widths)), key=priority)] -= 1
    return widths


def _wrapped_row(row: Sequence[str], widths: Sequence[int], margin: str) -> list[str]:
    cells = []
    for text, width in zip(row, widths, strict=True):
        cells.append(textwrap.wrap(text, width, break_on_hyphens=False))
    lines = []
    for i in range(max(1, *(len(cell) for cell in cells))):
        parts = []
        for cell, width in zip(cells, widths, strict=True):
            text = cell[i] if i < len(cell) else ""
            parts.append(f"{text:{width}}")
        lines.append((margin + "  ".join(parts)).rstrip())
    return lines


def shorten(names: Iterable[str], width: int = 26) -> str:
    """Join names by commas and end with dots where the rest does not fit; the first name is always there."""
    all_names = list(names)
    text = ", ".join(all_names[:1])
    for name in all_names[1:]:
        if len(text) + len(name) > width:
            return f"{text}, ..."
        text = f"{text}, {name}"
    return text
