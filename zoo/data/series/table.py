"""Time series from a table: put on a regular grid, gaps and duplicates handled, covariates checked for leakage."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zoo.data.csv_numbers import DecimalSigns, is_missing_number, numbers
from zoo.data.series.time_grid import TimeGrid, find_grid, read_times

Columns = dict[str, list[str]]
_MIN_OVERLAP = 20  # a correlation of fewer steps says little


@dataclass
class ColumnRoles:
    """Roles of the columns of a table.

    Args:
        time: column of timestamps.
        target: column to forecast.
        series: column that identifies the series of a row; null for one series.
        past: covariates that are known up to the present.
        future: covariates that are known in advance.
        format: format of the timestamps, see :func:`read_times`.
    """

    time: str
    target: str
    series: str | None = None
    past: list[str] = field(default_factory=list)
    future: list[str] = field(default_factory=list)
    format: str | None = None

    def check(self, columns: Columns, source: str) -> None:
        """Check that all columns exist and that none has two roles.

        Raises:
            ValueError: a column is missing, or a column has two roles.
        """
        numbers = [self.target, *self.past, *self.future]
        for name in [self.time, self.series, *numbers]:
            if name and name not in columns:
                raise ValueError(f"{source} has no column {name!r}; it has {', '.join(columns)}")
        for name in numbers:
            roles = self._roles_of(name)
            if len(roles) == 1:
                continue
            hint = ""
            if roles == ["target", "past"]:
                hint = "; past values of the target are always an input"
            raise ValueError(f"column {name!r} is {' and '.join(roles)}, but can be only one of them{hint}")

    def _roles_of(self, name: str) -> list[str]:
        roles = [role for role in ("time", "target", "series") if getattr(self, role) == name]
        for role in ("past", "future"):
            # a column that is listed twice counts twice
            roles += [role] * getattr(self, role).count(name)
        return roles


@dataclass
class Series:
    """One series on the grid, from its first observed target on.

    Args:
        name: identifier of the series.
        start: grid index of its first step.
        length: number of steps up to its last observed target.
        values: ``(length + later, 1 + covariates)``: target, past and future covariates. Gaps are forward-filled, and
            NaN where there is no earlier value. Rows from ``length`` on hold the future covariates.
        observed: ``(length,)``, whether the target was observed.
        later: for each row after ``length``, whether all future covariates were observed.
    """

    name: str
    start: int
    length: int
    values: NDArray[np.float64]
    observed: NDArray[np.bool_]
    later: NDArray[np.bool_]


def read_series(
    columns: Columns,
    source: str,
    roles: ColumnRoles,
    frequency: str | None = None,
    rows: list[int] | None = None,
    signs: DecimalSigns | None = None,
    like: TimeGrid | None = None,
) -> tuple[TimeGrid, list[Series], list[str]]:
    """Read the time series of a table.

    Args:
        columns: columns of text, by name.
        source: name of the table, for error messages.
        roles: roles of the columns.
        frequency: see :func:`find_grid`.
        rows: number of each row in its file, for messages; null counts from 2, below a header.
        signs: the decimal signs of the columns; null is the point.
        like: see :func:`find_grid`.

    Returns:
        The grid, the series in the order of the table, and one message for each kind of repair.

    Raises:
        ValueError: a column is missing or not numeric, times do not fit a grid, or more than half of the steps of a
            series are missing.
    """
    roles.check(columns, source)
    repairs = _Repairs()
    try:
        if rows is None:
            rows = list(range(2, len(columns[roles.time]) + 2))
        tables = _tables_by_series(columns, roles, repairs, rows, signs or DecimalSigns({}, "."))
        times_by_series = {name: times for name, (times, _) in tables.items()}
        grid = find_grid(times_by_series, frequency, like)
        series = []
        for name, (times, values) in tables.items():
            one = _on_grid(name, grid, times, values, roles, repairs)
            if one is not None:
                series.append(one)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if not series:
        raise ValueError(f"{source}: the target {roles.target!r} is missing in every row")
    return grid, series, repairs.messages(source, grid)


class _Repairs:
    """Number of rows that were repaired, by kind."""

    def __init__(self) -> None:
        self.unsorted = 0
        self.duplicates = 0
        self.missing = 0
        self.steps = 0
        self.empty = 0
        self.covariates: dict[str, int] = {}

    def messages(self, source: str, grid: TimeGrid) -> list[str]:
        messages = []
        if self.unsorted:
            messages.append(f"{source}: {self.unsorted} rows were not in order of time and were sorted")
        if self.duplicates:
            messages.append(f"{source}: {self.duplicates} rows with a duplicate time were averaged into one")
        if self.missing:
            messages.append(
                f"{source}: {self.missing} of {self.steps} steps of {grid} have no target: inputs are forward-filled, "
                "and losses and metrics ignore these steps"
            )
        for name, count in self.covariates.items():
            messages.append(
                f"{source}: {count} missing values of {name!r} are forward-filled, or the training mean at the start"
            )
        if self.empty:
            messages.append(f"{source}: {self.empty} series without a target were left out")
        return messages


def _tables_by_series(
    columns: Columns,
    roles: ColumnRoles,
    repairs: _Repairs,
    rows: list[int],
    signs: DecimalSigns,
) -> dict[str, tuple[NDArray, NDArray]]:
    """Return the sorted times ``(t,)`` and the numbers ``(t, columns)`` of each series."""
    times = read_times(columns[roles.time], roles.time, roles.format, rows)
    names = [roles.target, *roles.past, *roles.future]
    values = np.stack([_numbers(columns[name], name, rows, signs) for name in names], 1)  # (rows, columns)
    series_of_row = [roles.target] * len(times)
    if roles.series:
        series_of_row = columns[roles.series]
        nameless = [row for row, name in zip(rows, series_of_row, strict=True) if not name]
        if nameless:
            raise ValueError(f"row {nameless[0]}: no series is named in column {roles.series!r}")
    else:
        _check_one_series(columns, roles, times)
    rows_of: dict[str, list[int]] = {}
    for i, name in enumerate(series_of_row):
        rows_of.setdefault(name, []).append(i)
    return {name: _sort_and_merge(times[i], values[i], repairs) for name, i in rows_of.items()}


def _check_one_series(columns: Columns, roles: ColumnRoles, times: NDArray) -> None:
    """Raise ValueError where rows of one time belong to several series, which another column names."""
    repeated = len(times) - len(np.unique(times))
    if 10 * repeated < len(times):  # a few, as of an hour that a change of the clock repeats, are averaged
        return
    for name, cells in columns.items():
        if name in (roles.time, roles.target, *roles.past, *roles.future):
            continue
        count = len(set(cells))
        # As many series as there are rows would be a column of other numbers.
        if count < 2 or 2 * count > len(cells):
            continue
        if len(set(zip(times.tolist(), cells, strict=True))) == len(times):
            raise ValueError(
                f"{repeated} rows have the time of another row, and another {name!r}: are they"
                f" {count} series? then give --data.series {name}"
            )


def _numbers(cells: list[str], column: str, rows: list[int], signs: DecimalSigns) -> NDArray[np.float64]:
    values = np.array(numbers(cells, signs.of(column)))
    for i in np.flatnonzero(np.isnan(values)):
        if not is_missing_number(cells[i]):
            raise ValueError(f"row {rows[i]}: {cells[i]!r} in column {column!r} is not a number")
    return values


def _sort_and_merge(times: NDArray, values: NDArray, repairs: _Repairs) -> tuple[NDArray, NDArray]:
    """Sort rows by time and average those with the same time, ignoring NaN."""
    repairs.unsorted += int((times[1:] < times[:-1]).sum())
    unique, group = np.unique(times, return_inverse=True)
    repairs.duplicates += len(times) - len(unique)
    known = ~np.isnan(values)
    total = np.zeros((len(unique), values.shape[1]))
    count = np.zeros((len(unique), values.shape[1]))
    np.add.at(total, group, np.where(known, values, 0.0))
    np.add.at(count, group, known)
    mean = np.full_like(total, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return unique, mean


def _on_grid(
    name: str,
    grid: TimeGrid,
    times: NDArray,
    values: NDArray,
    roles: ColumnRoles,
    repairs: _Repairs,
) -> Series | None:
    """Put a series on the grid; return None if it has no target."""
    numbers = grid.numbers(times)
    has_target = np.flatnonzero(~np.isnan(values[:, 0]))
    if not len(has_target):
        repairs.empty += 1
        return None
    first_row = has_target[0]
    last_row = has_target[-1]
    start = int(numbers[first_row])
    length = int(numbers[last_row]) - start + 1
    if len(has_target) * 2 < length:
        raise ValueError(
            f"series {name!r} has a target at {len(has_target)} of its {length} steps of {grid}: more than half are"
            " missing; give the right frequency, or resample the series"
        )
    rows = int(numbers[-1]) - start + 1
    full = np.full((rows, values.shape[1]), np.nan)  # (length + later, columns)
    full[numbers[first_row:] - start] = values[first_row:]
    observed = ~np.isnan(full[:length, 0])
    repairs.steps += length
    repairs.missing += int((~observed).sum())
    for column, covariate in enumerate([*roles.past, *roles.future], 1):
        missing = int(np.isnan(full[:length, column]).sum())
        if missing:
            repairs.covariates[covariate] = repairs.covariates.get(covariate, 0) + missing
    future = full[length:, full.shape[1] - len(roles.future) :]  # (later, len(roles.future))
    return Series(
        name=name,
        start=start,
        length=length,
        values=_forward_fill(full),
        observed=observed,
        later=np.isnan(future).sum(1) == 0,
    )


def _forward_fill(values: NDArray) -> NDArray:
    """Replace each NaN of ``(t, columns)`` by the last number before it; interpolation would look ahead in time."""
    steps = np.arange(len(values))[:, None]
    last = np.where(np.isnan(values), 0, steps)
    last = np.maximum.accumulate(last, 0)
    return np.take_along_axis(values, last, 0)


def find_leak(
    target: NDArray,
    column: NDArray,
    horizon: int,
    future: bool,
    threshold: float = 0.9999,
) -> tuple[int, float] | None:
    """Find out whether a covariate leaks the target of a forecast step.

    The covariate must correlate with the shifted target both in its values and in its differences, which a common
    trend alone does not; and more closely than a smooth target correlates with itself.

    Args:
        target: ``(t,)``, NaN where unknown.
        column: ``(t,)``, the covariate.
        horizon: number of forecast steps.
        future: whether the covariate is known over the horizon, or only up to the present.
        threshold: correlation from which on two columns are considered equal.

    Returns:
        By how many steps the covariate is ahead of the target, and the correlation; None if there is no leak.
    """
    first = 1
    if future:
        first = 1 - horizon
    for shift in sorted(range(first, horizon + 1), key=abs):
        overlap = len(target) - abs(shift)
        if overlap < _MIN_OVERLAP:
            continue
        early = slice(0, overlap)
        late = slice(abs(shift), None)
        x_part = late
        y_part = early
        if shift > 0:
            x_part = early
            y_part = late
        x = column[x_part]
        y = target[y_part]
        correlation = _correlation(x, y)
        if correlation < threshold:
            continue
        # differences are noisier than values, so their bound is ten times as loose
        if _correlation(np.diff(x), np.diff(y)) < 1 - 10 * (1 - threshold):
            continue
        if shift == 0:
            return shift, correlation
        autocorrelation = _correlation(target[x_part], y)
        if 1 - correlation < 0.1 * (1 - autocorrelation):
            return shift, correlation
    return None


def _correlation(x: NDArray, y: NDArray) -> float:
    """Return the absolute Pearson correlation, ignoring NaN; 0 where one of them is constant."""
    both = ~(np.isnan(x) | np.isnan(y))
    if not both.any():
        return 0.0
    x = x[both]
    y = y[both]
    x = x - x.mean()
    y = y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    # rounding leaves a little of a constant column, which is no variation
    if not size > 1e-20 * max(1, len(x)):
        return 0.0
    return abs(float(x @ y)) / size
