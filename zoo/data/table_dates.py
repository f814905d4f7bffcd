"""Dates in the cells of a table: which format a column has, and the numbers that a network sees of a date."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

_TIME = r"(?:[T ]+(\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?\s*(Z|[+-]\d{2}:?\d{2})?)?"
_ISO = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})" + _TIME, re.ASCII)
_DAY_MONTH = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})" + _TIME, re.ASCII)
YEAR = 365.2425 * 86400  # seconds


def looks_like_dates(cells: Sequence[str]) -> bool:
    """Return whether cells, at least one, all are dates: ``2024-03-31``, ``31.3.2024``, ``3/31/2024 14:00``."""
    return bool(cells) and all(_match(cell) is not None for cell in cells)


def is_day_first(cells: Sequence[str]) -> bool:
    """Return whether dates such as 31.3.2024 and 31/3/2024 have the day first.

    Raises:
        ValueError: they tell neither, as all numbers are below 13; or both.
    """
    day_first = False
    month_first = False
    unclear = ""
    for cell in cells:
        match = _DAY_MONTH.fullmatch(cell)
        if match is None:
            continue
        first = int(match.group(1))
        second = int(match.group(3))
        if match.group(2) == "." or first > 12:  # only written with the day first
            day_first = True
        elif second > 12:
            month_first = True
        elif first != second:
            unclear = unclear or cell
    if day_first and month_first:
        raise ValueError("has dates with the day first and dates with the month first")
    if unclear and not day_first and not month_first:
        raise ValueError(f"has dates such as {unclear}, of which day and month cannot be told apart")
    return not month_first


def parse_date(cell: str, day_first: bool) -> datetime | None:
    """Return a date without time zone (those with one are converted to UTC), None where the cell is no date."""
    match = _match(cell)
    if match is None:
        return None
    first, _, second, third, *time = match.groups()
    hour, minute, second_of_minute, zone = time
    if len(first) == 4:
        year, month, day = first, second, third
    else:
        year = third
        day, month = (first, second) if day_first else (second, first)
    try:
        parsed = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second_of_minute or 0))
        if zone:
            offset = "+00:00" if zone == "Z" else zone
            parsed = datetime.fromisoformat(parsed.isoformat() + offset).astimezone(UTC).replace(tzinfo=None)
    except ValueError:
        return None
    return parsed


def has_time(cells: Sequence[str]) -> bool:
    """Return whether a date among the cells has a time of day."""
    for cell in cells:
        match = _match(cell)
        if match is not None and match.group(5) is not None:
            return True
    return False


def date_features(dates: Sequence[datetime], with_time: bool) -> NDArray[np.float64]:
    """Return columns of dates: years since 1970, and sine and cosine of the phase in the year, the week and the day.

    Args:
        dates: ``n`` dates.
        with_time: whether to add the two columns of the time of day.

    Returns:
        ``(n, 5)``, or ``(n, 7)`` with the time of day.
    """
    times = np.array(dates, dtype="M8[s]")
    seconds = times.astype(np.int64).astype(np.float64)
    days = times.astype("M8[D]")
    year_start = times.astype("M8[Y]")
    length = (year_start + 1).astype("M8[D]") - year_start.astype("M8[D]")
    phases = [
        (days - year_start.astype("M8[D]")) / length,
        ((days.astype(np.int64) + 3) % 7) / 7,  # 1 January 1970 was a Thursday
    ]
    if with_time:
        phases.append((times - days) / np.timedelta64(86400, "s"))
    columns = [seconds / YEAR]
    for phase in phases:
        columns.append(np.sin(2 * np.pi * phase))
        columns.append(np.cos(2 * np.pi * phase))
    return np.stack(columns, 1)


def _match(cell: str) -> re.Match[str] | None:
    return _ISO.fullmatch(cell) or _DAY_MONTH.fullmatch(cell)
