"""Numbers in the cells of a table: decimal points and commas, thousands separators, missing values."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

Decimal = Literal[".", ","]

# Cells without a value, in lower case: those of pandas, and "?" of the UCI tables.
MISSING = frozenset(
    {
        *("", "na", "n/a", "nan", "null", "none", "?", "<na>", "nat", "-nan"),
        *("#n/a", "#na", "#n/a n/a", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    }
)
# Among numbers also a dash, and what a spreadsheet writes where it cannot compute.
_MISSING_NUMBERS = frozenset(
    {"-", "--", "---", "–", "—", "#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!"}  # noqa: RUF001
)
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_GROUPS = r"[+-]?[1-9]\d{{0,2}}([{0}]\d{{3}})+"
# Groups of three digits, by the decimal sign: 1,234,567.8 or 1.234.567,8; also 1 234 567 and 1'234'567.
_SPACES = r" '\u00a0\u2009\u202f"
_GROUPED = {
    ".": re.compile(_GROUPS.format("," + _SPACES) + r"(\.\d*)?", re.ASCII),
    ",": re.compile(_GROUPS.format("." + _SPACES) + r"(,\d*)?", re.ASCII),
}
# One sign and three digits: 1,234 is either 1234 or 1.234.
_UNCLEAR = re.compile(r"[+-]?[1-9]\d{0,2}([.,])\d{3}", re.ASCII)
# A number with a currency in front of it, or with a unit of a few letters or signs behind it.
_WITH_UNIT = re.compile(
    r"(?P<before>(?:[$€£¥]|USD|EUR|GBP|CHF)?)\s*(?P<number>[+-]?\d[\d.,]*)\s*(?P<after>[^\d.,]{0,8})"
)
_HAS_SIGN = re.compile(r"\d[.,]|[.,]\d")
_GROUP_SIGNS = re.compile(f"[.,{_SPACES}]")


def is_missing(cell: str | float) -> bool:
    """Return whether a cell has no value."""
    return str(cell).lower() in MISSING


def is_missing_number(cell: str | float) -> bool:
    """Return whether a cell in a column of numbers has no value: also a dash, or an error of a spreadsheet."""
    text = str(cell).lower()
    return text in MISSING or text in _MISSING_NUMBERS


def number(cell: str | float, decimal: Decimal = ".") -> float:
    """Return a cell as a number, NaN where it is missing, infinite or no number.

    Args:
        cell: text or a number.
        decimal: the decimal sign; the other one separates thousands, as do spaces and apostrophes.
    """
    if not isinstance(cell, str):
        value = float(cell)
        return value if math.isfinite(value) else math.nan
    text = cell.replace("\u2212", "-")  # the minus sign of typesetting
    plain = text
    if decimal == ",":
        plain = "" if "." in text else text.replace(",", ".")
    if _PLAIN.fullmatch(plain):
        value = float(plain)
        return value if math.isfinite(value) else math.nan
    if not _GROUPED[decimal].fullmatch(text):
        return math.nan
    whole, _, fraction = text.partition(decimal)
    return float(f"{_GROUP_SIGNS.sub('', whole)}.{fraction}")


def numbers(cells: Sequence[str | float], decimal: Decimal = ".") -> list[float]:
    """Return cells as numbers, see :func:`number`."""
    if decimal == ".":
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            values = []
        # Python reads 1_000 as a number, which a table does not mean.
        if values and all(map(math.isfinite, values)) and not any("_" in str(cell) for cell in cells):
            return values
    return [number(cell, decimal) for cell in cells]


def unit_of(cells: Sequence[str]) -> str | None:
    """Return the unit that nine in ten cells have beside a number, such as ``%``, ``kg`` or ``$``; None without one."""
    units = Counter()
    for cell in cells:
        match = _WITH_UNIT.fullmatch(cell)
        if match is not None:
            units[match["before"] or match["after"].strip()] += 1
    for unit, count in units.most_common(1):
        if unit and 10 * count >= 9 * len(cells):
            return unit
    return None


class DecimalSigns:
    """The decimal sign of each column of a table, by the numbers in it.

    Args:
        columns: cells by the name of their column.
        given: the sign of all columns, where the user gives it.
        default: the sign of numbers such as ``1,234`` where nothing else in the table tells, as that of the training
            table; null refuses them.
    """

    def __init__(
        self,
        columns: dict[str, list[str]],
        given: Decimal | None = None,
        default: Decimal | None = None,
    ) -> None:
        self.given: Decimal | None = given
        self._columns = columns
        self._votes: dict[str, Decimal | None] = {}
        if given is None:
            self._votes = {name: _clear_sign(cells) for name, cells in columns.items()}
        clear: set[Decimal] = {sign for sign in self._votes.values() if sign is not None}
        self.of_table: Decimal | None = given
        if len(clear) == 1:
            self.of_table = clear.pop()
        self._default: Decimal | None = self.of_table or default

    def of(self, name: str) -> Decimal:
        """Return the sign of a column.

        Raises:
            ValueError: its numbers may be thousands or fractions.
        """
        if self.given is not None:
            return self.given
        vote = self._votes.get(name)
        if vote is not None:
            return vote
        unclear = [cell for cell in self._columns[name] if _UNCLEAR.fullmatch(str(cell))]
        signs = {match.group(1) for cell in unclear if (match := _UNCLEAR.fullmatch(cell))}
        points_only = signs == {"."}
        # 1.234 is an ordinary number, except among decimal commas.
        if not signs or (points_only and self._default != ","):
            return "."
        if signs == {","} and self._default is not None:
            return self._default
        whole = unclear[0].replace(",", "").replace(".", "")
        fraction = unclear[0].replace(",", ".")
        raise ValueError(
            f"column {name!r} has numbers such as {unclear[0]}, which may be {whole} or {fraction}: give --data.decimal"
        )


def _clear_sign(cells: Iterable[str]) -> Decimal | None:
    """Return the decimal sign that most numbers of a column have, None where none of them tells."""
    cells = list(cells)
    has_comma = any("," in cell for cell in cells)
    count = {".": 0, ",": 0}
    for cell in cells:
        if not _HAS_SIGN.search(cell) or _UNCLEAR.fullmatch(cell):
            continue
        point = number(cell, ".") == number(cell, ".")
        comma = number(cell, ",") == number(cell, ",")
        if point and not comma and not has_comma:
            return "."  # soon, as most columns are such
        if point != comma:
            count["." if point else ","] += 1
    if count[","] > count["."]:
        return ","
    if count["."]:
        return "."
    return None
