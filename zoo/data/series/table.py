"""Series in a table: put on a grid of equal steps, gaps and duplicates handled, covariates searched for the target."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zoo.data.series.time_grid import TimeGrid, find_grid, read_times
from zoo.data.tabular import MISSING, number

Columns = dict[str, list[str]]


@dataclass
class ColumnRoles:
    """Which columns of a table are what.

    Args:
        time: the time of a row.
        target: what is to be forecast.
        series: which series a row belongs to; null for one series.
        past: covariates that are known up to now.
        future: covariates that are known in advance.
        format: how times are written, see :func:`read_times`.
    """

    time: str
    target: str
    series: str | None = None
    past: list[str] = field(default_factory=list)
    future: list[str] = field(default_factory=list)
    format: str | None = None

    def check(self, columns: Columns, source: str) -> None:
        numbers = [self.target, *self.past, *self.future]
        for name in filter(None, [self.time, self.series, *numbers]):
            if name not in columns:
                raise ValueError(f"{source} has no column {name!r}; it has {', '.join(columns)}")
        for name in numbers:
            roles = [r for r in ("time", "target", "series") if getattr(self, r) == name]
            roles += [r for r in ("past", "future") for given in getattr(self, r) if given == name]
            if len(roles) > 1:
                more = "; the target's own past is always an input" if roles == ["target", "past"] else ""
                raise ValueError(f"column {name!r} is {' and '.join(roles)}, but can be only one of them{more}")


@dataclass
class Series:
    """One series on the grid, from its first observed target on.

    Args:
        name: its identifier.
        start: number of its first step on the grid.
        length: steps up to its last observed target.
        values: ``(length + later, 1 + covariates)``: target, past and future ones. Gaps are filled from before them,
            and are NaN where nothing stands before. Rows from ``length`` on hold what is known in advance.
        observed: ``(length,)``, whether the target was there.
        later: whether every number known in advance was there, row by row behind ``length``.
    """

    name: str
    start: int
    length: int
    values: NDArray[np.float64]
    observed: NDArray[np.bool_]
    later: NDArray[np.bool_]


def read_series(
    columns: Columns, source: str, roles: ColumnRoles, frequency: str | None = None
) -> tuple[TimeGrid, list[Series], list[str]]:
    """Read the series of a table.

    Args:
        columns: of text.
        source: what it came from, for errors.
        roles: which columns are what.
        frequency: see :func:`find_grid`.

    Returns:
        The grid, the series in the order of the table, and what was done to them, in words.

    Raises:
        ValueError: a column is missing or no numbers, times stand on no grid, most steps of a series are missing.
    """
    roles.check(columns, source)
    try:
        times = read_times(columns[roles.time], roles.time, roles.format)
        names = [roles.target, *roles.past, *roles.future]
        values = np.stack([_numbers(columns[name], name) for name in names], 1)
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(columns[roles.series] if roles.series else [roles.target] * len(times)):
            rows.setdefault(name, []).append(i)
        notes = _Notes()
        merged = {name: _sorted(times[i], values[i], notes) for name, i in rows.items()}
        grid = find_grid({name: at for name, (at, _) in merged.items()}, frequency)
        found = [_on_grid(name, grid, at, table, len(roles.future), notes) for name, (at, table) in merged.items()]
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    kept = [series for series in found if series is not None]
    if not kept:
        raise ValueError(f"{source}: the target {roles.target!r} is missing in every row")
    return grid, kept, notes.texts(source, grid)


class _Notes:
    """Counts of what was done to the rows."""

    def __init__(self) -> None:
        self.unsorted = self.duplicates = self.missing = self.steps = self.empty = 0

    def texts(self, source: str, grid: TimeGrid) -> list[str]:
        share = f"{self.missing} of {self.steps} steps of {grid} have no target"
        said = {
            f"{source}: {self.unsorted} rows stood out of order and were sorted": self.unsorted,
            f"{source}: {self.duplicates} rows of a time that is there already were averaged into one": self.duplicates,
            f"{source}: {share}: inputs take the value before, and no loss or metric counts them": self.missing,
            f"{source}: {self.empty} series without a target were left out": self.empty,
        }
        return [text for text, count in said.items() if count]


def _numbers(cells: list[str], column: str) -> NDArray[np.float64]:
    found = np.array([number(cell) for cell in cells])
    for i in np.flatnonzero(np.isnan(found)):
        if cells[i].lower() not in MISSING:
            raise ValueError(f"row {i + 2}: {cells[i]!r} in column {column!r} is no number")
    return found


def _sorted(times: NDArray, values: NDArray, notes: _Notes) -> tuple[NDArray, NDArray]:
    """Rows by time, those of one time averaged."""
    notes.unsorted += int((times[1:] < times[:-1]).sum())
    at, which = np.unique(times, return_inverse=True)
    notes.duplicates += len(times) - len(at)
    known = ~np.isnan(values)
    total, count = np.zeros((len(at), values.shape[1])), np.zeros((len(at), values.shape[1]))
    np.add.at(total, which, np.where(known, values, 0.0))
    np.add.at(count, which, known)
    return at, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _on_grid(name: str, grid: TimeGrid, times: NDArray, values: NDArray, future: int, notes: _Notes) -> Series | None:
    numbers = grid.numbers(times)
    there = np.flatnonzero(~np.isnan(values[:, 0]))
    if not len(there):
        notes.empty += 1
        return None
    start, length = int(numbers[there[0]]), int(numbers[there[-1]] - numbers[there[0]]) + 1
    if len(there) * 2 < length:
        raise ValueError(
            f"series {name!r} has a target at {len(there)} of its {length} steps of {grid}: more than half is missing;"
            " give the right frequency, or resample it"
        )
    full = np.full((int(numbers[-1]) - start + 1, values.shape[1]), np.nan)
    full[numbers[there[0] :] - start] = values[there[0] :]
    observed = ~np.isnan(full[:length, 0])
    notes.steps, notes.missing = notes.steps + length, notes.missing + int((~observed).sum())
    later = np.isnan(full[length:, full.shape[1] - future :]).sum(1) == 0
    return Series(name, start, length, _filled(full), observed, later)


def _filled(values: NDArray) -> NDArray:
    """Each missing number replaced by the one before it: what comes later is not known yet."""
    last = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(last, 0), 0)


def find_leak(
    target: NDArray, column: NDArray, horizon: int, future: bool, sure: float = 0.9999
) -> tuple[int, float] | None:
    """Find out whether a covariate tells the target of a step that is to be forecast.

    Both are compared, and their changes from step to step, which a common trend does not make alike; and a shifted
    target must be closer than a smooth target is to itself.

    Args:
        target: ``(t,)``, NaN where unknown.
        column: ``(t,)``.
        horizon: steps of a forecast.
        future: whether the column is known over the horizon, or up to now only.
        sure: the correlation from which on two columns are the same.

    Returns:
        How many steps later than the column's the target's time is, and the correlation; None for no leak.
    """
    shifts = range(1 - horizon, horizon + 1) if future else range(1, horizon + 1)
    for shift in sorted(shifts, key=abs):
        if len(target) - abs(shift) < 20:
            continue
        early, late = slice(0, len(target) - abs(shift)), slice(abs(shift), None)
        x, y, own = (
            (column[early], target[late], target[early]) if shift > 0 else (column[late], target[early], target[late])
        )
        close = _correlation(x, y)
        if close < sure or _correlation(np.diff(x), np.diff(y)) < 1 - 10 * (1 - sure):
            continue
        if shift == 0 or 1 - close < 0.1 * (1 - _correlation(own, y)):
            return shift, close
    return None


def _correlation(x: NDArray, y: NDArray) -> float:
    """Without its sign; 0 where one of them does not vary."""
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = (v[both] - v[both].mean() if both.any() else v[both] for v in (x, y))
    size = float(np.sqrt((x @ x) * (y @ y)))
    # what is left of a constant, by rounding, is no variation
    return abs(float(x @ y)) / size if size > 1e-20 * max(1, len(x)) else 0.0
