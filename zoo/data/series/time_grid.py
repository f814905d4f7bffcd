"""Timestamps of series: parsing, inference of their frequency, and calendar features."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from zoo.data.csv_numbers import is_missing

Unit = Literal["second", "business day", "month", "step"]
Calendar = Literal["hour_of_day", "day_of_week", "day_of_month", "day_of_year"]
_DAY = 86400  # seconds
_LETTERS: dict[str, tuple[Unit, int]] = {
    "s": ("second", 1),
    "min": ("second", 60),
    "h": ("second", 3600),
    "D": ("second", _DAY),
    "W": ("second", 7 * _DAY),
    "B": ("business day", 1),
    "M": ("month", 1),
    "Y": ("month", 12),
}
_EXAMPLES = "15min, 1h, 1D, 1B (business days), 1W, 1M, 1Y"
# this many days without a weekend are business days, not a short daily series
_MIN_BUSINESS_DAYS = 10


@dataclass(frozen=True)
class TimeGrid:
    """Regular time grid: equally spaced times, indexed from 0.

    Args:
        unit: unit of the step; ``step`` for times that are integers.
        size: units per step.
        origin: time at index 0.
        month_end: with ``month``, whether each time is the last day of its month.
    """

    unit: Unit
    size: int
    origin: Any
    month_end: bool = False

    def __str__(self) -> str:
        if self.unit == "step":
            return str(self.size)
        # the largest unit that divides the step: 1h rather than 60min
        letter = ""
        largest = 0
        for candidate, (unit, unit_size) in _LETTERS.items():
            if unit != self.unit or self.size % unit_size:
                continue
            if unit_size > largest:
                letter = candidate
                largest = unit_size
        return f"{self.size // largest}{letter}"

    @property
    def season(self) -> int:
        """Return the usual season length: a day for hours, a week for days, a year for months; 1 for none."""
        if self.unit == "business day":
            return 5
        if self.unit == "step":
            return 1
        if self.unit == "month":
            cycle = 12
        elif self.size < _DAY:
            cycle = _DAY
        else:
            cycle = 7 * _DAY
        if cycle % self.size:
            return 1
        return cycle // self.size

    def numbers(self, times: NDArray) -> NDArray[np.int64]:
        """Return the grid index of each time from the origin on, and -1 for times off the grid."""
        if self.unit == "step":
            units = times - self.origin
        elif self.unit == "second":
            units = (times - self.origin).astype(np.int64)
        elif self.unit == "business day":
            units = np.busday_count(self.origin.astype("M8[D]"), times.astype("M8[D]"))
        else:
            units = _month(times) - _month(self.origin)
            units = units.astype(np.int64)
        numbers = units // self.size
        on_grid = self.times(numbers) == times
        return np.where(on_grid, numbers, -1)

    def times(self, numbers: NDArray[np.int64]) -> NDArray:
        """Return the times at grid indices, in the same shape."""
        units = numbers * self.size
        if self.unit == "step":
            return self.origin + units
        if self.unit == "second":
            return self.origin + units.astype("m8[s]")
        day = self.origin.astype("M8[D]")
        time_of_day = self.origin - day.astype("M8[s]")
        if self.unit == "business day":
            days = np.busday_offset(day, units, roll="forward")
        elif self.month_end:
            # the day before the first of the next month
            days = (_month(day) + units + 1).astype("M8[D]") - 1
        else:
            days = (_month(day) + units).astype("M8[D]") + _day_of_month(day)
        return days.astype("M8[s]") + time_of_day

    def labels(self, numbers: NDArray[np.int64]) -> list:
        """Return the times at grid indices as text, nested like the array; dates alone where all are midnight."""
        times = self.times(numbers)
        if self.unit == "step":
            return times.astype(str).tolist()
        whole_days = self.unit != "second" or self.size % _DAY == 0
        unit = "s"
        if whole_days and self.origin == self.origin.astype("M8[D]"):
            unit = "D"
        return np.datetime_as_string(times, unit=unit).tolist()


def _month(times: Any) -> Any:
    return times.astype("M8[M]")


def _day_of_month(days: Any) -> Any:
    """Return the days since the first of the month."""
    return days - _month(days).astype("M8[D]")


def read_times(
    cells: list[str],
    column: str,
    format: str | None = None,
    rows: list[int] | None = None,
) -> NDArray:
    """Parse a column of timestamps: ISO 8601, a ``strptime`` format, or integers.

    Timestamps with a time zone are converted to UTC.

    Args:
        cells: cells of the column.
        column: name of the column, for error messages.
        format: ``strptime`` format such as ``%d.%m.%Y``; null for ISO 8601 or integers.
        rows: number of each row in its file, for messages; null counts from 2, below a header.

    Returns:
        ``(n,)`` array of datetime64 in seconds, or of int64.

    Raises:
        ValueError: a time is missing or cannot be parsed, or only some times have a time zone.
    """
    if rows is None:
        rows = list(range(2, len(cells) + 2))
    for row, cell in zip(rows, cells, strict=True):
        if is_missing(cell):
            raise ValueError(f"row {row}: the time is missing in column {column!r}")
    if format is None and all(re.fullmatch(r"[+-]?\d{1,7}", cell) for cell in cells):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    times = [_read_time(cell, row, column, format) for row, cell in zip(rows, cells, strict=True)]
    if len({time.tzinfo is None for time in times}) > 1:
        raise ValueError(f"some times in column {column!r} have a time zone and others have none")
    if times[0].tzinfo is not None:
        times = [time.astimezone(UTC).replace(tzinfo=None) for time in times]
    return np.array(times, dtype="M8[s]")


def _read_time(cell: str, row: int, column: str, format: str | None) -> datetime:
    try:
        if format:
            return datetime.strptime(cell, format)
        return datetime.fromisoformat(cell)
    except ValueError:
        expected = "such as 2024-03-31 or 2024-03-31 14:00; for another format give time_format"
        if format:
            expected = f"of the format {format!r}"
        raise ValueError(f"row {row}: {cell!r} in column {column!r} is not a time {expected}") from None


def find_grid(series: dict[str, NDArray], frequency: str | None = None, like: TimeGrid | None = None) -> TimeGrid:
    """Infer the time grid shared by all series, or check that they fit a given frequency.

    Args:
        series: sorted unique times of each series, by name.
        frequency: such as ``15min``, ``1h``, ``1D``, ``1B`` (business days), ``1W``, ``1M``, ``1Y``; null infers it.
        like: a grid whose steps to take without ``frequency``, as that of the training series.

    Returns:
        The grid, which begins at the earliest time of all series.

    Raises:
        ValueError: the frequency is unknown, or a time is off the grid.
    """
    origin = min(times[0] for times in series.values())
    if frequency:
        grid = _parse_frequency(frequency, origin, series)
        reason = f"frequency is {grid}"
    elif like is not None:
        if (like.unit == "step") != (not _is_date(origin)):
            raise ValueError("times must be integers, or dates, as those of the training series are")
        grid = replace(like, origin=origin)
        reason = f"the frequency of training is {grid}"
    else:
        grid = _infer_grid(series, origin)
        reason = f"the times are not equally spaced: most are {grid} apart"
    for name, times in series.items():
        off_grid = np.flatnonzero(grid.numbers(times) < 0)
        if not len(off_grid):
            continue
        where = ""
        if len(series) > 1:
            where = f"series {name!r}: "
        first = write_time(times[off_grid[0]])
        raise ValueError(
            f"{where}{reason}, but {first} is not a whole number of steps after {write_time(origin)}"
            f" ({len(off_grid)} such times); resample them, or give the frequency"
        )
    return grid


def _parse_frequency(frequency: str, origin: Any, series: dict[str, NDArray]) -> TimeGrid:
    match = re.fullmatch(r"(\d*)([A-Za-z]*)", frequency)
    count = ""
    letter = ""
    if match:
        count, letter = match.groups()
    if not _is_date(origin):
        if count and not letter:
            return TimeGrid("step", int(count), origin)
        raise ValueError(f"frequency is {frequency!r}, but must be a whole number of steps, as the times are integers")
    if letter not in _LETTERS or count == "0":
        raise ValueError(f"frequency is {frequency!r}, but must be one such as {_EXAMPLES}")
    unit, size = _LETTERS[letter]
    month_end = unit == "month" and _month_ends(series)
    return TimeGrid(unit, size * int(count or 1), origin, month_end)


def _infer_grid(series: dict[str, NDArray], origin: Any) -> TimeGrid:
    """Return the grid whose step is the most common difference between consecutive times."""
    steps = np.concatenate([np.diff(times) for times in series.values()])
    if not len(steps):
        raise ValueError("each series has one time only, so the frequency is unknown")
    if steps.dtype == np.int64:
        return TimeGrid("step", _most_common(steps), origin)
    step = _most_common(steps.astype(np.int64))
    times = np.concatenate(list(series.values()))
    days = times.astype("M8[D]")
    time_of_day = times - days
    if not bool((time_of_day == time_of_day[0]).all()):
        return TimeGrid("second", step, origin)

    month_end = _month_ends(series)
    day = _day_of_month(days)
    monthly = month_end or bool((day == day[0]).all())
    # no month is shorter than 28 days
    if monthly and steps.min() >= np.timedelta64(28, "D"):
        months = np.concatenate([np.diff(_month(t)) for t in series.values()])
        return TimeGrid("month", _most_common(months.astype(np.int64)), origin, month_end)
    no_weekend = len(days) >= _MIN_BUSINESS_DAYS and bool(np.is_busday(days).all())
    if step == _DAY and no_weekend:
        return TimeGrid("business day", 1, origin)
    return TimeGrid("second", step, origin)


def _month_ends(series: dict[str, NDArray]) -> bool:
    """Return whether all times are the last day of their month, and the months differ in length."""
    days = np.concatenate(list(series.values())).astype("M8[D]")
    if not bool((_month(days) != _month(days + 1)).all()):
        return False
    return len(np.unique(_day_of_month(days))) > 1


def _most_common(steps: NDArray) -> int:
    return Counter(steps.tolist()).most_common(1)[0][0]


def calendar(times: NDArray, features: list[Calendar]) -> NDArray[np.float64]:
    """Return cyclical calendar features: sine and cosine of the phase in the day, week, month or year.

    Args:
        times: ``(n,)`` of datetime64.
        features: names of the features, of two columns each.

    Returns:
        ``(n, 2 * len(features))`` in [-1, 1].

    Raises:
        ValueError: a feature is unknown, or the times are integers.
    """
    allowed = get_args(Calendar)
    columns = [np.empty((len(times), 0))]
    for feature in features:
        if feature not in allowed:
            raise ValueError(f"calendar feature {feature!r} is unknown; choose from {', '.join(allowed)}")
        if not _is_date(times):
            raise ValueError(f"calendar feature {feature!r} needs dates, but the times are integers")
        angle = 2 * np.pi * _phase(times, feature)
        columns.append(np.stack([np.sin(angle), np.cos(angle)], 1))
    return np.concatenate(columns, 1)


def _phase(times: NDArray, feature: Calendar) -> NDArray[np.float64]:
    """Return the elapsed part of the day, week, month or year, in [0, 1)."""
    days = times.astype("M8[D]")
    if feature == "hour_of_day":
        return (times - days) / np.timedelta64(_DAY, "s")
    if feature == "day_of_week":
        # whole days, so that all hours of a day share it; 1 January 1970 was a Thursday
        weekday = (days.astype(np.int64) + 3) % 7
        return weekday / 7
    unit = "M8[Y]"
    if feature == "day_of_month":
        unit = "M8[M]"
    period = times.astype(unit)
    start = period.astype("M8[s]")
    stop = (period + 1).astype("M8[s]")
    return (times - start) / (stop - start)


def _is_date(times: Any) -> bool:
    return np.issubdtype(np.asarray(times).dtype, np.datetime64)


def write_time(time: Any) -> str:
    """Return a time as text: the date alone at midnight; integers as they are."""
    if not _is_date(time):
        return str(int(time))
    day = time.astype("M8[D]")
    if time == day:
        return str(day)
    return str(time.astype("M8[s]"))
