"""Times of series: reading them, finding the grid they stand on, what the calendar says of them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from zoo.data.tabular import MISSING

Unit = Literal["second", "business day", "month", "step"]
Calendar = Literal["hour_of_day", "day_of_week", "day_of_month", "day_of_year"]
_LETTERS: dict[str, tuple[Unit, int]] = {
    "s": ("second", 1),
    "min": ("second", 60),
    "h": ("second", 3600),
    "D": ("second", 86400),
    "W": ("second", 7 * 86400),
    "B": ("business day", 1),
    "M": ("month", 1),
    "Y": ("month", 12),
}
_EXAMPLES = "15min, 1h, 1D, 1B (business days), 1W, 1M, 1Y"
_MIN_BUSINESS_DAYS = 10  # this many days without a weekend are business days, not a short daily series


@dataclass(frozen=True)
class TimeGrid:
    """Times at equal steps, which are numbered from 0.

    Args:
        unit: what steps are counted in; ``step`` for times that are plain whole numbers.
        size: units a step.
        origin: the time of number 0.
        month_end: months: each time is the last day of its month.
    """

    unit: Unit
    size: int
    origin: Any
    month_end: bool = False

    def __str__(self) -> str:
        if self.unit == "step":
            return str(self.size)
        fits = [(n, k) for n, (unit, k) in _LETTERS.items() if unit == self.unit and self.size % k == 0]
        letter, unit_size = max(fits, key=lambda fit: fit[1])
        return f"{self.size // unit_size}{letter}"

    @property
    def season(self) -> int:
        """The season that one expects: a day of hours, a week of days, a year of months; 1 for none."""
        if self.unit == "business day":
            return 5
        cycle = {"month": 12, "second": 86400 if self.size < 86400 else 7 * 86400}.get(self.unit, 0)
        return cycle // self.size if cycle and cycle % self.size == 0 else 1

    def numbers(self, times: NDArray) -> NDArray[np.int64]:
        """The numbers of times that are not before the first, and -1 for those that stand on no step."""
        if self.unit == "step":
            moved = times - self.origin
        elif self.unit == "second":
            moved = (times - self.origin).astype(np.int64)
        elif self.unit == "business day":
            moved = np.busday_count(self.origin.astype("M8[D]"), times.astype("M8[D]"))
        else:
            moved = (times.astype("M8[M]") - self.origin.astype("M8[M]")).astype(np.int64)
        number = moved // self.size
        return np.where(self.times(number) == times, number, -1)

    def times(self, numbers: NDArray[np.int64]) -> NDArray:
        """The times of numbers."""
        moved = numbers * self.size
        if self.unit == "step":
            return self.origin + moved
        if self.unit == "second":
            return self.origin + moved.astype("m8[s]")
        day = self.origin.astype("M8[D]")
        clock = self.origin - day.astype("M8[s]")
        if self.unit == "business day":
            days = np.busday_offset(day, moved, roll="forward")
        elif self.month_end:
            days = (day.astype("M8[M]") + moved + 1).astype("M8[D]") - 1
        else:
            days = (day.astype("M8[M]") + moved).astype("M8[D]") + (day - day.astype("M8[M]").astype("M8[D]"))
        return days.astype("M8[s]") + clock

    def labels(self, numbers: NDArray[np.int64]) -> list:
        """The times of numbers as text, nested as they are; dates alone where each is a midnight."""
        times = self.times(numbers)
        if self.unit == "step":
            return times.astype(str).tolist()
        daily = self.unit != "second" or self.size % 86400 == 0
        midnight = self.origin == self.origin.astype("M8[D]")
        return np.datetime_as_string(times, unit="D" if daily and midnight else "s").tolist()


def read_times(cells: list[str], column: str, format: str | None = None) -> NDArray:
    """Read a column of times: ISO 8601, a style of ``strptime``, or whole numbers of steps.

    Times with a zone become UTC.

    Args:
        cells: the column.
        column: its name, for errors.
        format: how times are written, such as ``%d.%m.%Y``; null reads ISO 8601 and whole numbers.

    Returns:
        ``(n,)`` of numpy's datetime64 in seconds, or of int64.

    Raises:
        ValueError: a time is missing, cannot be read, or only some have a zone.
    """
    for row, cell in enumerate(cells, 2):
        if cell.lower() in MISSING:
            raise ValueError(f"row {row}: the time is missing in column {column!r}")
    if format is None and all(re.fullmatch(r"[+-]?\d{1,7}", cell) for cell in cells):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    found = []
    for row, cell in enumerate(cells, 2):
        try:
            found.append(datetime.strptime(cell, format) if format else datetime.fromisoformat(cell))
        except ValueError:
            form = (
                f"in the style {format!r}"
                if format
                else "such as 2024-03-31 or 2024-03-31 14:00; else give time_format"
            )
            raise ValueError(f"row {row}: {cell!r} in column {column!r} is no time {form}") from None
    if len({time.tzinfo is None for time in found}) > 1:
        raise ValueError(f"some times in column {column!r} have a zone and others none")
    if found[0].tzinfo is not None:
        found = [time.astimezone(UTC).replace(tzinfo=None) for time in found]
    return np.array(found, dtype="M8[s]")


def find_grid(series: dict[str, NDArray], frequency: str | None = None) -> TimeGrid:
    """Find the steps on which the times of all series stand, or check that they stand on those given.

    Args:
        series: by name, the times of each, sorted and each once.
        frequency: such as ``15min``, ``1h``, ``1D``, ``1B`` (business days), ``1W``, ``1M``, ``1Y``; null finds it.

    Returns:
        The grid, which begins with the first time of all.

    Raises:
        ValueError: there is no such frequency, or a time does not stand on the grid.
    """
    origin = min(times[0] for times in series.values())
    grid = _named(frequency, origin, series) if frequency else _inferred(series, origin)
    for name, times in series.items():
        off = np.flatnonzero(grid.numbers(times) < 0)
        if len(off):
            i = int(off[0])
            where = f"series {name!r}: " if len(series) > 1 else ""
            begin = f"the times stand on no grid: most are {grid} apart" if not frequency else f"frequency is {grid}"
            raise ValueError(
                f"{where}{begin}, but {write_time(times[i])} is not a whole number of steps after"
                f" {write_time(origin)} ({len(off)} such times); resample them, or give the frequency"
            )
    return grid


def _named(frequency: str, origin: Any, series: dict[str, NDArray]) -> TimeGrid:
    whole = not np.issubdtype(np.asarray(origin).dtype, np.datetime64)
    form = re.fullmatch(r"(\d*)([A-Za-z]*)", frequency)
    if whole and form and form[1] and not form[2]:
        return TimeGrid("step", int(form[1]), origin)
    if whole or not form or form[2] not in _LETTERS or form[1] == "0":
        allowed = "a whole number of steps, as the times are whole numbers" if whole else f"one such as {_EXAMPLES}"
        raise ValueError(f"frequency is {frequency!r}, but must be {allowed}")
    unit, size = _LETTERS[form[2]]
    return TimeGrid(unit, size * int(form[1] or 1), origin, unit == "month" and _month_ends(series))


def _inferred(series: dict[str, NDArray], origin: Any) -> TimeGrid:
    steps = np.concatenate([np.diff(times) for times in series.values()])
    if not len(steps):
        raise ValueError("each series has one time only, so the frequency is unknown")
    times = np.concatenate(list(series.values()))
    if steps.dtype == np.int64:
        return TimeGrid("step", _commonest(steps), origin)
    days, clock = times.astype("M8[D]"), times - times.astype("M8[D]")
    if bool((clock == clock[0]).all()):  # each at the same time of day
        ends = _month_ends(series)
        day = days - days.astype("M8[M]").astype("M8[D]")
        if steps.min() >= np.timedelta64(28, "D") and (ends or bool((day == day[0]).all())):
            months = np.concatenate([np.diff(t.astype("M8[M]")) for t in series.values()]).astype(np.int64)
            return TimeGrid("month", _commonest(months), origin, ends)
        daily = _commonest(steps.astype(np.int64)) == 86400
        if daily and len(days) >= _MIN_BUSINESS_DAYS and bool(np.is_busday(days).all()):
            return TimeGrid("business day", 1, origin)
    return TimeGrid("second", _commonest(steps.astype(np.int64)), origin)


def _month_ends(series: dict[str, NDArray]) -> bool:
    days = np.concatenate(list(series.values())).astype("M8[D]")
    last = bool((days.astype("M8[M]") != (days + 1).astype("M8[M]")).all())
    return last and len(np.unique(days - days.astype("M8[M]").astype("M8[D]"))) > 1


def _commonest(steps: NDArray) -> int:
    return Counter(steps.tolist()).most_common(1)[0][0]


def calendar(times: NDArray, features: list[Calendar]) -> NDArray[np.float64]:
    """Sine and cosine of where in its day, week, month or year each time stands.

    Args:
        times: ``(n,)`` of datetime64.
        features: which, each for two columns.

    Returns:
        ``(n, 2 * len(features))`` in [-1, 1].

    Raises:
        ValueError: a feature is unknown, or the times are plain numbers.
    """
    columns = [np.empty((len(times), 0))]
    for feature in features:
        if feature not in get_args(Calendar):
            raise ValueError(f"calendar feature {feature!r} is unknown; there are {', '.join(get_args(Calendar))}")
        if not np.issubdtype(times.dtype, np.datetime64):
            raise ValueError(f"calendar feature {feature!r} needs dates, but the times are whole numbers")
        part = 2 * np.pi * _phase(times, feature)
        columns.append(np.stack([np.sin(part), np.cos(part)], 1))
    return np.concatenate(columns, 1)


def _phase(times: NDArray, feature: Calendar) -> NDArray[np.float64]:
    """How much of its day, week, month or year has passed, in [0, 1)."""
    if feature == "hour_of_day":
        return (times - times.astype("M8[D]")) / np.timedelta64(86400, "s")
    if feature == "day_of_week":  # by the day: what an hour has in common with the others of its day
        return ((times.astype("M8[D]").astype(np.int64) + 3) % 7) / 7  # 1 January 1970 was a Thursday
    unit = "M8[M]" if feature == "day_of_month" else "M8[Y]"
    start, stop = times.astype(unit).astype("M8[s]"), (times.astype(unit) + 1).astype("M8[s]")
    return (times - start) / (stop - start)


def write_time(time: Any) -> str:
    """A time as text: a date where it is midnight, whole numbers as they are."""
    if not np.issubdtype(np.asarray(time).dtype, np.datetime64):
        return str(int(time))
    return str(time.astype("M8[D]") if time == time.astype("M8[D]") else time.astype("M8[s]"))
